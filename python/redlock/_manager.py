"""The lock manager, :class:`Redlock`: redlock-py's interface over the engine."""

from __future__ import annotations

from redlock._arguments import check_ttl, drift_ms, encode, random_key, seconds, whole_tries
from redlock._lock import CannotObtainLock, Lock
from redlock._redlock import Held, Operation

TYPE_CHECKING = False  # importing `typing` would cost more than the rest of this package
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any, Literal

    from redlock._connections import Masters
    from redlock._redlock import Engine
    from redlock._types import Encodable, Item, SupportsSetEval, SupportsUnlock

# redlock-py's, letter for letter.
UNLOCK_SCRIPT = """
    if redis.call("get",KEYS[1]) == ARGV[1] then
        return redis.call("del",KEYS[1])
    else
        return 0
    end"""

_DONE = frozenset(("released", "absent"))


class Redlock:
    """Distributed locks over N independent Redis masters, each held where a majority of them grants it.

    Safe to share between threads and across ``fork``. Subclasses may change the class attributes, and override
    :meth:`lock_instance`, :meth:`unlock_instance` and :meth:`get_unique_id`: what is overridden is called.

    Attributes:
        servers: a redis-py client (or the object passed) per master.
        quorum: how many of them must grant: ``N // 2 + 1``.
        retry_count: how often :meth:`lock` tries.
        retry_delay: the longest pause between two tries, in seconds.
    """

    default_retry_count: float = 3
    default_retry_delay: float = 0.2
    clock_drift_factor: float = 0.01
    unlock_script: str = UNLOCK_SCRIPT

    servers: list[Any]
    quorum: int
    retry_count: float
    retry_delay: float
    _masters: Masters | None = None

    def __init__(
        self, connection_list: Collection[Item], retry_count: float | None = None, retry_delay: float | None = None
    ) -> None:
        """Remember the masters; nothing connects yet.

        Args:
            connection_list: per master a URL (``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``, with
                redis-py's options), a mapping of ``redis.StrictRedis`` arguments, or a client. Clients other than plain
                redis-py ones have their own ``set`` and ``eval`` called, one after another.
            retry_count: how often to try; 0 and ``None`` mean ``default_retry_count``, less than 0 never.
            retry_delay: the longest pause between two tries in seconds; 0 and ``None`` mean ``default_retry_delay``.

        Raises:
            Warning: a master that cannot be used, or one that is listed twice.
            CannotObtainLock: no masters.
            TypeError: no list.
        """
        from redlock import _connections  # noqa: PLC0415 - imports redis-py, which `import redlock` must not

        try:
            self.servers = _connections.connect(connection_list)
            self._masters = _connections.Masters(self.servers)
            self._masters.check_distinct()
        except Warning as warning:
            # Error trackers show the variables of every frame: not those that hold passwords.
            connection_list = ()
            raise warning.with_traceback(None) from None
        self.quorum = len(self.servers) // 2 + 1
        if not self.servers:
            message = "Failed to connect to the majority of redis servers"
            raise CannotObtainLock(message)
        self.retry_count = retry_count or self.default_retry_count
        self.retry_delay = retry_delay or self.default_retry_delay

    def __repr__(self) -> str:
        """How many masters; not which, for clients show passwords."""
        servers = getattr(self, "servers", ())
        return f"<{type(self).__name__} over {len(servers)} masters, quorum {getattr(self, 'quorum', None)}>"

    def lock(self, resource: Encodable, ttl: int) -> Lock | Literal[False]:
        """Acquire ``resource`` for ``ttl`` milliseconds, trying ``retry_count`` times.

        Masters are asked all at once; a quorum of grants, or of refusals, decides, and nobody waits for the rest.

        Args:
            resource: the name, and the key in Redis: text as utf-8, numbers as their repr; at most 64 MiB.
            ttl: how long the masters keep the lock, in milliseconds. Less than 3 would leave no validity: no master is
                asked.

        Returns:
            The lock; ``False`` if others hold it or no quorum could be reached (which is logged).

        Raises:
            TypeError: a resource or ttl of a type that cannot be sent.
            ValueError: a ttl that is no int, or a resource too long or not encodable.
        """
        outcome = self._acquire(resource, ttl)
        return outcome if isinstance(outcome, Lock) else False

    def unlock(self, lock: SupportsUnlock) -> None:
        """Release a lock on every master; harmless when it has expired or is another's.

        Args:
            lock: what :meth:`lock` returned, or anything else with its ``resource`` and ``key``.

        Raises:
            AttributeError: it has no resource or key, as ``False`` has not.
            TypeError: a resource or key of a type that cannot be sent.
            MultipleRedlockException: ``unlock_instance`` is overridden and raised redis-py errors. Otherwise
                masters' errors are logged.
        """
        self._release(lock)

    def lock_instance(self, server: SupportsSetEval, resource: Encodable, val: Encodable, ttl: int) -> object:
        """Ask one master, through its client; called only where overridden, or where the engine cannot be used.

        Returns:
            Something true if it granted.

        Raises:
            ValueError: ttl is no int.
            redis.exceptions.RedisError: the master failed.
        """
        check_ttl(ttl)
        return server.set(resource, val, nx=True, px=ttl)

    def unlock_instance(self, server: SupportsSetEval, resource: Encodable, val: Encodable) -> None:
        """Release on one master, through its client; called only where overridden, or where the engine cannot be used.

        Errors are logged.
        """
        from redlock import _objects  # noqa: PLC0415

        _objects.release_one(self, server, resource, val)

    def get_unique_id(self) -> Encodable:
        """A fresh key, 22 random letters and digits as bytes; called for each try where overridden."""
        return random_key()

    def _engine(self) -> Engine | None:
        """The engine; ``None`` where methods of the caller's or of the servers' own are to be called.

        Asked for each call: callers change ``servers`` and patch methods at any time.
        """
        masters = self._masters
        if masters is None or masters.servers != self.servers:
            from redlock._connections import Masters  # noqa: PLC0415

            masters = self._masters = Masters(self.servers)
        kind, own = type(self), self.__dict__
        if (
            # As `_overrides` has it, written out: each call passes here.
            kind.lock_instance is not _LOCK_INSTANCE
            or kind.unlock_instance is not _UNLOCK_INSTANCE
            or "lock_instance" in own
            or "unlock_instance" in own
            or masters.is_patched()
        ):
            return None
        return masters.engine

    def _overrides(self, hook: str) -> bool:
        """Whether a method is the caller's: a subclass's, this instance's, or patched into this class."""
        return getattr(type(self), hook) is not _HOOKS[hook] or hook in self.__dict__

    def _script(self) -> str | None:
        return None if self.unlock_script is UNLOCK_SCRIPT else self.unlock_script

    def _acquire(self, resource: Encodable, ttl: int) -> Lock | list[str]:
        """As :meth:`lock`, but a failure is what each master said in the last round; nothing if none was asked."""
        check_ttl(ttl)
        drift = drift_ms(ttl, self.clock_drift_factor)
        tries = whole_tries(self.retry_count) if ttl > drift else 0
        delay = seconds(self.retry_delay)
        engine = self._engine()
        if engine is None:
            from redlock import _objects  # noqa: PLC0415

            return _objects.acquire(self, resource, (ttl, drift), (tries, delay))
        name = encode("resource", resource)
        if tries < 1:
            return []
        if self._overrides("get_unique_id"):
            return self._acquire_keyed(engine, resource, (ttl, drift), (tries, delay))
        outcome = engine.run(Operation.acquire([name], ttl, self.quorum, drift, tries, delay, None, self._script()))
        return Lock(outcome.validity_ms, resource, outcome.key) if isinstance(outcome, Held) else outcome

    def _acquire_keyed(
        self, engine: Engine, resource: Encodable, terms: tuple[int, int], pace: tuple[int, float]
    ) -> Lock | list[str]:
        """With the caller's keys, a fresh one per try: a late release of one try must not meet the key of the next."""
        from redlock._objects import attempts  # noqa: PLC0415

        name, (ttl, drift) = encode("resource", resource), terms
        said: list[str] = []
        for _ in attempts(*pace):
            key = self.get_unique_id()
            script, sent = self._script(), encode("key", key)
            outcome = engine.run(Operation.acquire([name], ttl, self.quorum, drift, 1, 0.0, None, script, sent))
            if isinstance(outcome, Held):
                return Lock(outcome.validity_ms, resource, key)
            said = outcome
        return said

    def _release(self, lock: SupportsUnlock) -> list[str]:
        """As :meth:`unlock`, and what each master said."""
        resource, key = lock.resource, lock.key
        engine = self._engine()
        if engine is None:
            from redlock import _objects  # noqa: PLC0415

            return _objects.release(self, resource, key)
        said = engine.run(Operation.release([encode("resource", resource)], encode("key", key), self._script()))
        if not _DONE.issuperset(said):
            self._report(resource, said)
        return said

    def _report(self, resource: Encodable, said: list[str]) -> None:
        from redlock._connections import logger  # noqa: PLC0415

        for name, outcome in zip(self._names(), said, strict=False):
            if outcome not in _DONE:
                logger.error("Error unlocking resource %s in server %s: %s", resource, name, outcome)

    def _names(self) -> list[str]:
        """What logs call the masters of the last call; another thread may have changed ``servers`` since."""
        return self._masters.names if self._masters else []


_LOCK_INSTANCE = Redlock.lock_instance
_UNLOCK_INSTANCE = Redlock.unlock_instance
_HOOKS = {
    "lock_instance": _LOCK_INSTANCE,
    "unlock_instance": _UNLOCK_INSTANCE,
    "get_unique_id": Redlock.get_unique_id,
}
