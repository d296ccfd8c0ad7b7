"""One contender: locks and unlocks on command, and says how long it took.

Runs in the environment of its library, so it imports nothing else that is not Python's own.

    worker.py LIBRARY URL...    says {"version": text}, or {"cannot": why}; then a line of JSON for each line it gets:

    pairs SECONDS MOST     -> {"locked": [microseconds], "pairs": [microseconds], "failed": {why: times}}
    fresh SECONDS MOST     -> the same and {"unlocked": [microseconds]}, with a new manager for each pair; "locked" and
                              "unlocked" are the calls alone, "pairs" includes making and dropping the manager
    crowd CALLERS SECONDS  -> {"pairs": how many, "seconds": how long, "failed": {why: times}}
    hold                   -> {"at": nanoseconds}, once the lock of all contenders is ours
    free                   -> {"at": nanoseconds, "done": nanoseconds}, when the unlock began and when it returned
    weigh TTL              -> {"leases": how many, "objects": bytes for one of them in Python's own memory}
    keep LEASES TTL        -> {"leases": how many there are now}; the TTL in milliseconds
    rest SECONDS           -> {}, after so long; an event loop runs meanwhile
    watch SECONDS          -> {"renewals": how many, "lost": how many, "early": how many of these}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
import tracemalloc
from collections import Counter
from functools import partial
from hashlib import sha1
from importlib import import_module as _import
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

T = TypeVar("T")

TTL = 10  # seconds, for all
SAMPLE = 20  # leases that are looked at
SHARED = "bench:shared"  # what waiters wait for
PACKAGES = ("redlock-rs", "redlock-py", "pottery", "redlock", "aioredlock", "redis", "aioredis", "hiredis")


# ---- the libraries, each used as its documentation says, with its own defaults ---------------------------------------


class Library:
    """How to lock and unlock.

    Args:
        lock: takes the name of a resource; something false, or an exception, if the lock was not granted.
        unlock: takes what ``lock`` returned.
        awaits: whether both have to be awaited.
        manager: what else it has, for those who know it.
        close: to be awaited before the manager is dropped, if that is not enough.
    """

    def __init__(
        self,
        lock: Callable[[str], Any],
        unlock: Callable[[Any], Any],
        *,
        awaits: bool = False,
        manager: Any = None,
        close: Callable[[], Any] | None = None,
    ) -> None:
        self.lock, self.unlock, self.awaits, self.manager, self.close = lock, unlock, awaits, manager, close


def by_manager(manager: Any, ttl: int, **more: Any) -> Library:
    """A library whose locks are made by one object for all."""
    return Library(lambda resource: manager.lock(resource, ttl), manager.unlock, manager=manager, **more)


def by_object(make: Callable[[str], Any]) -> Library:
    """A library whose locks are objects; they are made once for each resource, which spares it that cost."""
    locks: dict[str, Any] = {}

    def lock(resource: str) -> Any:
        lock = locks.get(resource) or locks.setdefault(resource, make(resource))
        return lock if lock.acquire() else None

    return Library(lock, lambda lock: lock.release())


def redlock(urls: Sequence[str]) -> Library:
    """redlock-py, and this library: whatever `import redlock` finds."""
    return by_manager(_import("redlock").Redlock(list(urls)), TTL * 1000)


def redlock_asyncio(urls: Sequence[str]) -> Library:
    """This library under asyncio."""
    return by_manager(_import("redlock").AsyncRedlock(list(urls)), TTL * 1000, awaits=True)


def pottery(urls: Sequence[str]) -> Library:
    """The `Redlock` of pottery."""
    module, masters = _import("pottery"), {_client(url) for url in urls}
    return by_object(lambda resource: module.Redlock(key=resource, masters=masters, auto_release_time=TTL))


def redis_py(urls: Sequence[str]) -> Library:
    """The `Lock` of redis-py.

    Raises:
        ValueError: there is more than one master.
    """
    if len(urls) > 1:
        raise ValueError("one master only")
    client = _client(urls[0])
    return by_object(lambda resource: client.lock(resource, timeout=TTL))


def glasslion(urls: Sequence[str]) -> Library:
    """The package called `redlock`."""
    factory = _import("redlock").RedLockFactory([{"url": url} for url in urls])
    return by_object(lambda resource: factory.create_lock(resource, ttl=TTL * 1000))


def aioredlock(urls: Sequence[str]) -> Library:
    """aioredlock; the options of URLs are for redis-py, and it has no timeout that could be set instead."""
    masters = [url.partition("?")[0] for url in urls]
    manager = _import("aioredlock").Aioredlock(masters)
    return by_manager(manager, TTL, awaits=True, close=manager.destroy)


class Raw:
    """The limit from Python: what this library does at its least, over plain blocking sockets.

    No quorum, no deadline, no retry: written to all, then read from all.

    Args:
        urls: of the masters, at numeric addresses.
    """

    SCRIPT = b"if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end"

    def __init__(self, urls: Sequence[str]) -> None:
        self._sockets = []
        for url in urls:
            address = urlsplit(url)
            master = socket.create_connection((address.hostname, address.port or 6379))
            master.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(master)
        self._digest = sha1(self.SCRIPT).hexdigest().encode()  # noqa: S324 (the name that Redis has for it)
        self._round(b"$40\r\n%b\r\n" % self._digest, b"SCRIPT", b"LOAD", self.SCRIPT)

    def lock(self, resource: str) -> tuple[bytes, bytes]:
        """``SET`` with a fresh key."""
        lock = resource.encode(), os.urandom(11).hex().encode()
        self._round(b"+OK\r\n", b"SET", *lock, b"NX", b"PX", b"%d" % (TTL * 1000))
        return lock

    def unlock(self, lock: tuple[bytes, bytes]) -> None:
        """The release script."""
        self._round(b":1\r\n", b"EVALSHA", self._digest, b"1", *lock)

    def _round(self, wanted: bytes, *words: bytes) -> None:
        command = b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
        for master in self._sockets:
            master.sendall(command)
        for master in self._sockets:
            if (reply := master.recv(1024)) != wanted:
                raise ValueError(f"expected {wanted!r}, got {reply!r}")


def raw(urls: Sequence[str]) -> Library:
    """No library."""
    sockets = Raw(urls)
    return Library(sockets.lock, sockets.unlock)


def _client(url: str) -> Any:
    return _import("redis").Redis.from_url(url)


# ---- the stopwatch ---------------------------------------------------------------------------------------------------


class Caller:
    """Locks and unlocks one resource, and counts.

    Args:
        library: with which.
        resource: what.
    """

    def __init__(self, library: Library, resource: str) -> None:
        self._library, self._resource = library, resource
        self.locked: list[float] = []  # microseconds until held
        self.pairs: list[float] = []  # microseconds until released
        self.failed: Counter[str] = Counter()

    async def pair(self) -> None:
        """Lock and unlock once, and note how long it took, or why it came to nothing."""
        try:
            failure = await self._timed_pair()
        except Exception as error:  # noqa: BLE001 (whatever it is, it is told)
            failure = type(error).__name__
        if failure:
            self.failed[failure] += 1
            # What has been left behind is not to be in the way of the next pair.
            self._resource += "'"

    async def _timed_pair(self) -> str:
        begin = time.perf_counter_ns()
        lock = await self.lock()
        held = time.perf_counter_ns()
        if not lock:
            return "not granted"
        await self.unlock(lock)
        end = time.perf_counter_ns()
        self.locked.append((held - begin) / 1000)
        self.pairs.append((end - begin) / 1000)
        return ""

    async def pairs_until(self, end: float, most: float = float("inf")) -> None:
        """Lock and unlock at least once, until `end` by `time.perf_counter`, or ``most`` times."""
        await self.pair()
        while time.perf_counter() < end and len(self.pairs) < most:
            await self.pair()

    async def lock(self) -> Any:
        """One call of the library."""
        lock = self._library.lock(self._resource)
        return await lock if self._library.awaits else lock

    async def unlock(self, lock: Any) -> None:
        """Give it back."""
        done = self._library.unlock(lock)
        if self._library.awaits:
            await done

    async def hold(self) -> Any:
        """Call until the lock is there."""
        while True:
            try:
                lock = await self.lock()
            except Exception:  # noqa: BLE001 (some say no this way)
                lock = None
            if lock:
                return lock


class Worker:
    """Obeys commands.

    Args:
        make: what is timed, with a new manager.
    """

    def __init__(self, make: Callable[[], Library]) -> None:
        self._make, self._library = make, make()
        self._loop = asyncio.new_event_loop()
        self._resource = f"bench:{os.getpid()}"
        self._caller = Caller(self._library, SHARED)
        self._lock: Any = None
        self._leases: list[Any] = []
        self._early = 0

    def pairs(self, seconds: float, most: float) -> dict[str, object]:
        """One caller after another lock."""
        caller = Caller(self._library, self._resource)
        self._run(caller.pairs_until(time.perf_counter() + seconds, most))
        if caller.failed:
            self._resource += "'"
        return {"locked": caller.locked, "pairs": caller.pairs, "failed": caller.failed}

    def fresh(self, seconds: float, most: float) -> dict[str, object]:
        """One caller, with a new manager for each pair."""
        return self._run(self._fresh(time.perf_counter() + seconds, most))

    async def _fresh(self, end: float, most: float) -> dict[str, object]:
        locked: list[float] = []
        unlocked: list[float] = []
        pairs: list[float] = []
        failed: Counter[str] = Counter()
        while not (pairs or failed) or (time.perf_counter() < end and len(pairs) < most):
            begin = time.perf_counter_ns()
            lock, pair, failure = await self._pair_with_new_manager()
            took = (time.perf_counter_ns() - begin) / 1000
            locked += lock
            unlocked += [released - held for released, held in zip(pair, lock, strict=True)]
            pairs += [took] * len(pair)
            failed.update(failure)
        return {"locked": locked, "unlocked": unlocked, "pairs": pairs, "failed": failed}

    async def _pair_with_new_manager(self) -> tuple[list[float], list[float], Counter[str]]:
        """What a `Caller` has counted; the manager is dropped on return, which is part of the cost."""
        library = self._make()
        caller = Caller(library, self._resource)
        await caller.pair()
        if library.close is not None:
            await library.close()
        if caller.failed:
            self._resource += "'"
        return caller.locked, caller.pairs, caller.failed

    def crowd(self, callers: float, seconds: float) -> dict[str, object]:
        """Many callers of one manager, each with a resource of its own: threads, or tasks of one loop."""
        crowd = [Caller(self._library, f"{self._resource}:{number}") for number in range(int(callers))]
        begin = time.perf_counter()
        self._run_all([caller.pairs_until(begin + seconds) for caller in crowd])
        took = time.perf_counter() - begin
        failed: Counter[str] = sum((caller.failed for caller in crowd), Counter())
        if failed:
            self._resource += "'"
        return {"pairs": sum(len(caller.pairs) for caller in crowd), "seconds": took, "failed": failed}

    def hold(self) -> dict[str, int]:
        """Wait for the lock that all want."""
        self._lock = self._run(self._caller.hold())
        return {"at": time.perf_counter_ns()}

    def free(self) -> dict[str, int]:
        """Let the next one have it."""
        begin = time.perf_counter_ns()
        self._run(self._caller.unlock(self._lock))
        return {"at": begin, "done": time.perf_counter_ns()}

    def weigh(self, ttl: float) -> dict[str, float]:
        """Take some leases that are renewed, and look at what Python allocates for them."""
        self.keep(1, ttl)  # what comes with the first is no part of the others
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        self.keep(1 + SAMPLE, ttl)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return {"leases": len(self._leases), "objects": (after - before) / SAMPLE}

    def keep(self, leases: float, ttl: float) -> dict[str, int]:
        """Take leases that are renewed, until there are so many."""
        self._run(self._take(leases, ttl))
        return {"leases": len(self._leases)}

    async def _take(self, leases: float, ttl: float) -> None:
        while len(self._leases) < leases:
            name = f"{self._resource}:{len(self._leases)}"
            lease = self._library.manager.acquire(name, int(ttl), auto_extend=True, on_lost=self._on_lost)
            self._leases.append(await lease if self._library.awaits else lease)

    def _on_lost(self, lease: Any) -> None:
        # A holder is told a twentieth of the TTL before the end, and that is no loss of time.
        left = lease._state.expires_at - _import("redlock._redlock").now()  # noqa: SLF001 (`remaining` is 0 by now)
        self._early += left * 1000 > max(lease.ttl / 20, 50)

    def rest(self, seconds: float) -> dict[str, int]:
        """Do nothing, and let others of this process do what they have to."""
        if self._library.awaits:
            self._loop.run_until_complete(asyncio.sleep(seconds))
        else:
            time.sleep(seconds)
        return {}

    def watch(self, seconds: float) -> dict[str, int]:
        """Let them be renewed."""
        before = self._library.manager.stats()
        self.rest(seconds)
        after = self._library.manager.stats()
        return {"renewals": after.extended - before.extended, "lost": after.lost, "early": self._early}

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work) if self._library.awaits else drive(work)

    def _run_all(self, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        if self._library.awaits:
            self._loop.run_until_complete(_gathered(work))
            return
        threads = [threading.Thread(target=drive, args=(each,)) for each in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


async def _gathered(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    await asyncio.gather(*work)


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits: one around a blocking library, where a loop would only cost time."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise RuntimeError("a blocking library does not wait for an event loop")


# ---- obedience -------------------------------------------------------------------------------------------------------

LIBRARIES = {
    "redlock": redlock,
    "redlock-asyncio": redlock_asyncio,
    "pottery": pottery,
    "redis-py": redis_py,
    "glasslion": glasslion,
    "aioredlock": aioredlock,
    "raw": raw,
}


def versions() -> str:
    """Of all packages here that matter, and of the interpreter."""
    found = []
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join([*found, "Python {}.{}.{}".format(*sys.version_info)])


def say(answer: object) -> None:
    """A line of JSON."""
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Obey standard input until it ends."""
    # Nobody reads what is logged about the master that is broken on purpose; writing it is not what is timed.
    logging.disable()
    name, *urls = sys.argv[1:]
    try:
        worker = Worker(partial(LIBRARIES[name], urls))
    except Exception as error:  # noqa: BLE001 (it is passed on)
        say({"cannot": str(error) or type(error).__name__})
        return
    say({"version": versions()})
    for line in sys.stdin:
        command, *arguments = line.split()
        say(getattr(worker, command)(*map(float, arguments)))


if __name__ == "__main__":
    main()
