"""The public interface, used as its types promise. Read by mypy and pyright, never run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import redis
import redis.asyncio
from typing_extensions import assert_type

from redlock import (
    AsyncLease,
    AsyncRedlock,
    Attempt,
    CannotObtainLock,
    FencingUnavailable,
    Histogram,
    Lease,
    Lock,
    LockContended,
    LockLost,
    MasterStats,
    MultipleRedlockException,
    QuorumUnavailable,
    Redlock,
    Sighting,
    Stats,
    __version__,
)
from redlock.cli import main
from redlock.fencing import FencedResource, StaleToken

version: str = __version__

# -- making one --------------------------------------------------------------------------------------------------------

Redlock(["redis://a", b"redis://b", {"host": "c", "port": "6379", "db": None}, redis.Redis()])
Redlock([redis.StrictRedis(host="a")], 3, 0.2)
Redlock(("redis://a",), retry_count=None, retry_delay=None)
Redlock(connection_list=[OrderedDict(host="a")], retry_count=2.5, retry_delay=1)
Redlock(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Redlock([6379])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
Redlock(["redis://a"], "3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class OwnClient:
    """Set and eval are all that is asked of a client."""

    def set(self, name: str, value: bytes, *, nx: bool, px: int) -> bool | None: ...
    def eval(self, script: str, numkeys: int, *keys_and_args: object) -> object: ...


manager = Redlock([OwnClient()])
assert_type(manager.quorum, int)
assert_type(manager.retry_count, float)
assert_type(manager.retry_delay, float)
assert_type(manager.servers, list[Any])
manager.servers[0].get("key")
manager.retry_count = 5
manager.unlock_script = "return 0"

# -- lock and unlock ---------------------------------------------------------------------------------------------------

lock = manager.lock("resource", 1000)
assert_type(lock, Lock | Literal[False])
manager.lock(resource=b"resource", ttl=1000)
manager.lock(memoryview(b"resource"), 1000)
manager.lock(5, 1000)
manager.lock(1.5, 1000)
manager.lock(None, 1000)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
manager.lock("resource", 100.0)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
manager.lock("resource")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]

manager.unlock(lock)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
if lock:
    assert_type(lock, Lock)
    assert_type(lock.validity, int)
    validity, resource, key = lock
    manager.unlock(lock)
    manager.unlock(lock=lock._replace(validity=0))
    owner = lock.owner  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class Ticket:
    """Anything with a resource and a key can be unlocked."""

    resource: str
    key: str


manager.unlock(Ticket("resource", "key"))
manager.unlock(Lock(0, "resource", "key"))
manager.unlock(Lock(validity=0, resource="resource", key=b"key"))
manager.unlock("resource")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- leases ------------------------------------------------------------------------------------------------------------

with manager.acquire("resource", 1000) as lease:
    assert_type(lease, Lease)
    assert_type(lease.remaining, int)
    assert_type(lease.validity, int)
    assert_type(lease.ttl, int)
    assert_type(lease.token, int | None)
    assert_type(lease.holder, str)
    assert_type(lease.masters, Sequence[tuple[str, str]])
    assert_type(lease.released_in_time, bool | None)
    assert_type(lease.lost.is_set(), bool)
    assert_type(lease.lost.wait(1.5), bool)
    assert_type(lease.lost.reason, Literal["expired", "taken over", "unavailable", "forked", "released"] | None)
    lease.extend()
    lease.extend(2000)
    lease.extend(ttl=2000)
    lease.ensure()
    lease.ensure(500)
    lease.remaining = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
lease.release()
manager.unlock(lease)


def on_lost(lost: Lease) -> None: ...


manager.acquire(["a", b"b", 3], ttl=1000, timeout=5)
names: list[str] = ["a", "b"]
manager.acquire(names, 1000)
manager.acquire(("a", "b"), 1000, timeout=None, retry_count=3, retry_delay=0.1)
manager.acquire("resource", 1000, auto_extend=True, max_hold=3600, on_lost=on_lost)
assert_type(manager.acquire("resource", 1000, fencing=True).token, int | None)
manager.acquire("resource", 1000, 5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
manager.acquire("resource")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
manager.acquire({"a"}, 1000)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
manager.acquire("resource", 1000, on_lost=lambda: None)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType]

assert_type(manager.extend(Lock(0, "resource", "key"), 1000), Lock | Literal[False])
assert_type(manager.extend(lease, 1000), Lock | Literal[False])
manager.extend(False, 1000)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

attempt = manager.try_lock("resource", 1000)
assert_type(attempt, Attempt)
assert_type(attempt.lock, Lock | None)
assert_type(attempt.reason, Literal["contended", "taken over", "expired", "unavailable"] | None)
assert_type(attempt.masters, tuple[tuple[str, str], ...])
assert_type(attempt.failed, tuple[tuple[str, str], ...])
manager.try_lock("resource", 1000, timeout=None, retry_count=3, retry_delay=0.1)
manager.try_lock(["a", "b"], 1000)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
attempt.masters = ()  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
if attempt.lock:
    assert_type(manager.try_extend(attempt.lock, 1000), Attempt)
    assert_type(manager.try_unlock(attempt.lock), Attempt)
manager.try_unlock(attempt.lock)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

assert_type(manager.locked("resource"), bool)
for sighting in manager.inspect("resource"):
    assert_type(sighting, Sighting)
    assert_type(sighting.holder, str | None)
    assert_type(sighting.ttl_ms, int | None)
    assert_type(sighting.error, str | None)


@manager.synchronized("nightly", ttl=60_000, timeout=0)
def nightly(count: int, *, label: str = "") -> float:
    return count / len(label)


assert_type(nightly(5, label="five"), float)
nightly("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def name_of(order: int) -> str:
    return f"order:{order}"


@manager.synchronized(name_of, 1000, auto_extend=True)
def ship(order: int) -> None: ...


ships: Callable[[int], None] = ship

stats = manager.stats()
assert_type(stats, Stats)
assert_type(stats.acquired, int)
assert_type(stats.fenced_at_once, int)
assert_type(stats.wait, Histogram)
assert_type(stats.masters, tuple[MasterStats, ...])
stats.acquired = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

try:
    manager.acquire("resource", 1000)
except LockContended as contended:
    assert_type(contended.reason, Literal["contended", "timeout", "unavailable"] | None)
    assert_type(contended.masters, Sequence[tuple[str, str]])
except FencingUnavailable as unfenced:
    assert_type(unfenced.masters, Sequence[tuple[str, str]])
except QuorumUnavailable as unavailable:
    caught: CannotObtainLock = unavailable
except LockLost as loss:
    assert_type(loss.reason, Literal["expired", "taken over", "unavailable", "forked", "released"])

# -- asyncio -----------------------------------------------------------------------------------------------------------


async def asynchronously() -> None:
    """All that is awaited, and what is not."""
    adlm = AsyncRedlock(["redis://a", {"host": "b"}, redis.Redis(), redis.asyncio.Redis()], retry_count=3)
    lock = await adlm.lock("resource", 1000)
    assert_type(lock, Lock | Literal[False])
    await adlm.unlock(lock)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    if lock:
        await adlm.unlock(lock)
        assert_type(await adlm.extend(lock, 1000), Lock | Literal[False])
        assert_type(await adlm.try_extend(lock, 1000), Attempt)
        assert_type(await adlm.try_unlock(lock), Attempt)
    assert_type(await adlm.try_lock("resource", 1000, timeout=5), Attempt)
    async with adlm.acquire(["a", b"b"], 1000, timeout=5, auto_extend=True, on_lost=told) as lease:
        assert_type(lease, AsyncLease)
        assert_type(lease.remaining, int)
        assert_type(lease.lost.is_set(), bool)
        assert_type(await lease.lost.wait(), bool)
        lease.ensure(500)
        await lease.extend(2000)
    lease = await adlm.acquire("resource", ttl=1000)
    assert_type(lease, AsyncLease)
    await lease.release()
    await adlm.unlock(lease)
    assert_type(await adlm.locked("resource"), bool)
    assert_type(await adlm.inspect("resource"), list[Sighting])
    assert_type(adlm.stats(), Stats)

    @adlm.synchronized("nightly", ttl=60_000)
    async def job(count: int) -> float:
        return count / 2

    assert_type(await job(5), float)
    await job("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    adlm.synchronized("nightly", ttl=60_000)(nightly)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def told(lease: AsyncLease) -> None: ...


# -- subclasses --------------------------------------------------------------------------------------------------------


class Own(Redlock):
    """What callers override."""

    default_retry_count = 10
    default_retry_delay = 0.5
    clock_drift_factor = 0.02

    def get_unique_id(self) -> bytes:
        return b"key"

    def lock_instance(self, server: Any, resource: Any, val: Any, ttl: int) -> bool:
        return bool(super().lock_instance(server, resource, val, ttl))

    def unlock_instance(self, server: Any, resource: Any, val: Any) -> None:
        super().unlock_instance(server, resource, val)


Own(["redis://a"]).lock("resource", 1000)

# -- fencing -----------------------------------------------------------------------------------------------------------

document = FencedResource("text")
assert_type(document, FencedResource[str])
assert_type(document.value, str)
assert_type(document.greatest, int)
document.write(5, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
try:
    document.write("text", 5)
except StaleToken as stale:
    assert_type((stale.token, stale.greatest), tuple[int, int])

# -- errors and the command --------------------------------------------------------------------------------------------

error = MultipleRedlockException([redis.ConnectionError()])
for each in error.errors:
    assert_type(each, BaseException)
raise CannotObtainLock from error
main(["lock", "resource", "1000"])
