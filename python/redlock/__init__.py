"""Distributed locks over N independent Redis masters: redlock-py's interface, a Rust engine.

>>> from redlock import Redlock
>>> manager = Redlock(["redis://a:6379", "redis://b:6379", "redis://c:6379"])
>>> lock = manager.lock("a resource", 10_000)  # milliseconds
>>> if lock:
...     manager.unlock(lock)
"""

from __future__ import annotations

from redlock._hints import make_late
from redlock._lock import (
    CannotObtainLock,
    FencingUnavailable,
    Lock,
    LockContended,
    LockLost,
    MultipleRedlockException,
    QuorumUnavailable,
)
from redlock._manager import Redlock
from redlock._redlock import __version__

__all__ = [
    "AsyncLease",
    "AsyncRedlock",
    "Attempt",
    "CannotObtainLock",
    "FencingUnavailable",
    "Histogram",
    "Lease",
    "Lock",
    "LockContended",
    "LockLost",
    "MasterStats",
    "MultipleRedlockException",
    "QuorumUnavailable",
    "Redlock",
    "Sighting",
    "Stats",
    "__version__",
]

for _public in (
    CannotObtainLock,
    FencingUnavailable,
    LockContended,
    LockLost,
    MultipleRedlockException,
    QuorumUnavailable,
    Redlock,
):
    make_late(_public)
    _public.__module__ = __name__  # where redlock-py has them: in tracebacks, logs and pickles
del _public

TYPE_CHECKING = False
if TYPE_CHECKING:
    from redlock._attempts import Attempt
    from redlock._lease import Lease
    from redlock._outcomes import Sighting
    from redlock._stats import Histogram, MasterStats, Stats
    from redlock.aio import AsyncLease, AsyncRedlock
else:
    # What not everybody needs, and where it is: imported when asked for, with the threads and types that it needs.
    _LATE = {
        "AsyncLease": "aio",
        "AsyncRedlock": "aio",
        "Attempt": "_attempts",
        "Histogram": "_stats",
        "Lease": "_lease",
        "MasterStats": "_stats",
        "Sighting": "_outcomes",
        "Stats": "_stats",
    }

    def __getattr__(name: str) -> object:
        """A late name; or `redlock.redis`, which redlock-py's callers patch in their tests."""
        import importlib  # noqa: PLC0415

        if name == "redis":
            return importlib.import_module("redis")
        if name in _LATE:
            found = getattr(importlib.import_module(f"redlock.{_LATE[name]}"), name)
            make_late(*(each for each in found.__mro__ if each.__module__.partition(".")[0] == "redlock"))
            return found
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
