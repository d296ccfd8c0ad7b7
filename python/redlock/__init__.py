"""Distributed locks over N independent Redis masters: redlock-py's interface, a Rust engine.

>>> from redlock import Redlock
>>> manager = Redlock(["redis://a:6379", "redis://b:6379", "redis://c:6379"])
>>> lock = manager.lock("a resource", 10_000)  # milliseconds
>>> if lock:
...     manager.unlock(lock)
"""

from __future__ import annotations

from redlock._lock import CannotObtainLock, Lock, MultipleRedlockException
from redlock._manager import Redlock
from redlock._redlock import __version__

__all__ = ["CannotObtainLock", "Lock", "MultipleRedlockException", "Redlock", "__version__"]

for _public in (CannotObtainLock, MultipleRedlockException, Redlock):
    _public.__module__ = __name__  # where redlock-py has them: in tracebacks, logs and pickles
del _public

TYPE_CHECKING = False
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """`redlock.redis`, which redlock-py's callers patch in their tests; imported when asked for."""
        if name == "redis":
            import redis  # noqa: PLC0415 - slow

            return redis
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
