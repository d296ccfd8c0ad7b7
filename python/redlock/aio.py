"""The lock manager for asyncio, :class:`AsyncRedlock`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from redlock import _async_clients
from redlock._arguments import check_ttl, drift_ms, encode, seconds, whole_tries
from redlock._connections import logger
from redlock._lock import CannotObtainLock, Lock
from redlock._loop import LoopHosts
from redlock._manager import UNLOCK_SCRIPT
from redlock._redlock import Held, Operation

if TYPE_CHECKING:
    from collections.abc import Collection

    from redlock._types import AsyncItem, Encodable, SupportsUnlock

_DONE = frozenset(("released", "absent"))


class AsyncRedlock:
    """Distributed locks over N independent Redis masters, for asyncio.

    Excludes, and is excluded by, :class:`redlock.Redlock`. Safe to use from several event loops, in several threads,
    one after another and at once; each has one connection to each master, however many tasks it runs.

    Attributes:
        quorum: how many masters must grant: ``N // 2 + 1``.
        retry_count: how often :meth:`lock` tries.
        retry_delay: the longest pause between two tries, in seconds.
    """

    default_retry_count: float = 3
    default_retry_delay: float = 0.2
    clock_drift_factor: float = 0.01
    unlock_script: str = UNLOCK_SCRIPT

    quorum: int
    retry_count: float
    retry_delay: float

    def __init__(
        self, connection_list: Collection[AsyncItem], retry_count: float | None = None, retry_delay: float | None = None
    ) -> None:
        """Remember the masters; nothing connects yet, and no loop need be running.

        Args:
            connection_list: per master a URL (``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``, with
                redis-py's options), a mapping of ``redis.Redis`` arguments, or a plain ``redis.asyncio.Redis`` or
                ``redis.Redis``, of which only the settings are used.
            retry_count: how often to try; 0 and ``None`` mean ``default_retry_count``, less than 0 never.
            retry_delay: the longest pause between two tries in seconds; 0 and ``None`` mean ``default_retry_delay``.

        Raises:
            Warning: a master that cannot be used, or one that is listed twice.
            CannotObtainLock: no masters.
            TypeError: no list.
        """
        try:
            masters = _async_clients.connect(connection_list)
        except Warning as warning:
            # Error trackers show the variables of every frame: not those that hold passwords.
            connection_list = ()
            raise warning.with_traceback(None) from None
        if masters.engine is None:
            message = "Failed to connect to the majority of redis servers"
            raise CannotObtainLock(message)
        self._names = masters.names
        self._hosts = LoopHosts(masters.engine)
        self.quorum = len(masters.names) // 2 + 1
        self.retry_count = retry_count or self.default_retry_count
        self.retry_delay = retry_delay or self.default_retry_delay

    def __repr__(self) -> str:
        """How many masters; not which, for clients show passwords."""
        return f"<{type(self).__name__} over {len(self._names)} masters, quorum {self.quorum}>"

    async def lock(self, resource: Encodable, ttl: int) -> Lock | Literal[False]:
        """Acquire ``resource`` for ``ttl`` milliseconds, trying ``retry_count`` times.

        As :meth:`redlock.Redlock.lock`. Cancelled, it leaves nothing at the masters.

        Returns:
            The lock; ``False`` if others hold it or no quorum could be reached (which is logged).

        Raises:
            TypeError: a resource or ttl of a type that cannot be sent.
            ValueError: a ttl that is no int, or a resource too long or not encodable.
        """
        check_ttl(ttl)
        drift = drift_ms(ttl, self.clock_drift_factor)
        tries = whole_tries(self.retry_count) if ttl > drift else 0
        delay = seconds(self.retry_delay)
        names = [encode("resource", resource)]
        if tries < 1:
            return False
        script = self._script()
        operation = Operation.acquire(names, ttl, self.quorum, drift, tries, delay, unlock_script=script)

        def give_back(outcome: object) -> Operation[Any] | None:
            return Operation.release(names, outcome.key, script) if isinstance(outcome, Held) else None

        outcome = await self._hosts.current().run(operation, give_back)
        return Lock(outcome.validity_ms, resource, outcome.key) if isinstance(outcome, Held) else False

    async def unlock(self, lock: SupportsUnlock) -> None:
        """Release a lock on every master; harmless when it has expired or is another's.

        Cancelled, it releases all the same. Masters' errors are logged.

        Args:
            lock: what :meth:`lock` returned, or anything else with its ``resource`` and ``key``.

        Raises:
            AttributeError: it has no resource or key, as ``False`` has not.
            TypeError: a resource or key of a type that cannot be sent.
        """
        names, key = [encode("resource", lock.resource)], encode("key", lock.key)
        said = await self._hosts.current().run(Operation.release(names, key, self._script()))
        for name, outcome in zip(self._names, said, strict=True):
            if outcome not in _DONE:
                logger.error("Error unlocking resource %s in server %s: %s", lock.resource, name, outcome)

    def _script(self) -> str | None:
        return None if self.unlock_script is UNLOCK_SCRIPT else self.unlock_script


AsyncRedlock.__module__ = "redlock"  # where it is imported from: in tracebacks and logs
