"""The public interface, used as its types promise. Read by mypy and pyright, never run."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import redis
from typing_extensions import assert_type

from redlock import CannotObtainLock, Lock, MultipleRedlockException, Redlock, __version__
from redlock.cli import main

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

# -- errors and the command --------------------------------------------------------------------------------------------

error = MultipleRedlockException([redis.ConnectionError()])
for each in error.errors:
    assert_type(each, BaseException)
raise CannotObtainLock from error
main(["lock", "resource", "1000"])
