"""The lock manager, :class:`Redlock`: redlock-py's interface over the engine."""

from __future__ import annotations

from redlock._arguments import NO_GUARDS, check_ttl, guards, seconds, ttl_and_drift, whole_tries
from redlock._engine import EngineBackend
from redlock._lock import CannotObtainLock, Lock
from redlock._redlock import UNLOCK_SCRIPT, Vote, majority, random_key

TYPE_CHECKING = False  # importing `typing` would cost more than the rest of this package
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager
    from typing import Any, Literal, ParamSpec, TypeVar

    from redlock._attempts import Attempt
    from redlock._connections import Clients, Masters
    from redlock._counters import Counters
    from redlock._lease import Lease
    from redlock._outcomes import Sighting
    from redlock._stats import Stats
    from redlock._types import Backend, Encodable, Item, Resource, SupportsSetEval, SupportsUnlock

    P = ParamSpec("P")
    R = TypeVar("R")


class _Servers:
    """The servers of a manager, made when they are looked at for the first time: most programs never do."""

    def __get__(self, manager: Redlock | None, kind: type[Redlock]) -> Any:
        if manager is None:
            return self
        # Those of the connection list, also if others stood in their place meanwhile, as in a test.
        listed = manager.__dict__.get("_listed")
        if listed is None:
            message = f"{kind.__name__!r} object has no attribute 'servers'"
            raise AttributeError(message)
        masters = manager._masters  # noqa: SLF001 - a part of that class
        made = masters.made() if masters and masters.clients is listed else list(listed.made())
        return manager.__dict__.setdefault("servers", made)


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

    servers: list[Any] = _Servers()  # type: ignore[assignment] # which is what instances see
    quorum: int
    retry_count: float
    retry_delay: float
    _masters: Masters | None = None
    _listed: Clients | None = None  # of the connection list
    _guards = NO_GUARDS
    _counters: Counters | None = None
    # Around each `acquire`; it gives what is told how often the masters were asked.
    _watch: Callable[[Any, int], AbstractContextManager[Callable[[int], object]]] | None = None

    def __init__(
        self,
        connection_list: Collection[Item],
        retry_count: float | None = None,
        retry_delay: float | None = None,
        *,
        restart_guard: bool | int = False,
        clock_guard: bool = False,
    ) -> None:
        """Remember the masters; nothing connects yet.

        Args:
            connection_list: per master a URL (``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``, with
                redis-py's options), a mapping of ``redis.StrictRedis`` arguments, or a client. Clients other than plain
                redis-py ones have their own ``set`` and ``eval`` called, one after another.
            retry_count: how often to try; 0 and ``None`` mean ``default_retry_count``, less than 0 never.
            retry_delay: the longest pause between two tries in seconds; 0 and ``None`` mean ``default_retry_delay``.
            restart_guard: a master that has restarted without all its data, or was replaced, gives no vote until the
                longest TTL in use has passed: of those asked for here, or this many milliseconds, if other programs ask
                for longer ones ("Performance, crash recovery and fsync" in the Redis documentation).
            clock_guard: neither does one whose clock moves against ours by more than ``clock_drift_factor`` allows for.

        Raises:
            Warning: a master that cannot be used, or one that is listed twice, or that cannot be guarded.
            CannotObtainLock: no masters.
            TypeError: no list.
        """
        # With all that calls need later: what another thread is importing in the moment of a fork, the child would wait
        # for, for ever. They import redis-py, which `import redlock` must not.
        from redlock import _attempts, _connections, _leasing, _objects, _stats  # noqa: F401, PLC0415

        try:
            self._guards = guards(restart_guard, clock_guard)
            masters = _connections.Masters.of_items(connection_list, _connections.client, self._guards)
            self._masters, self._listed = masters, masters.clients
            if masters.servers is not None or "servers" in self.__dict__ or type(self).servers is not _SERVERS:
                self.servers = masters.made()
            masters.check_distinct()
        except Warning as warning:
            # Error trackers show the variables of every frame: not those that hold passwords.
            connection_list = ()
            raise warning.with_traceback(None) from None
        self.quorum = majority(len(masters.names))
        if not masters.names:
            message = "Failed to connect to the majority of redis servers"
            raise CannotObtainLock(message)
        self.retry_count = retry_count or self.default_retry_count
        self.retry_delay = retry_delay or self.default_retry_delay

    def __repr__(self) -> str:
        """How many masters; not which, for clients show passwords."""
        servers = self.__dict__.get("servers") or (self._masters.names if self._masters else ())
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
        terms = ttl, drift = ttl_and_drift(ttl, self.clock_drift_factor)
        tries = whole_tries(self.retry_count) if ttl > drift else 0
        delay = seconds(self.retry_delay)
        backend = self._backend()
        outcome = backend.acquire((resource,), terms, (tries, delay, None))
        if not isinstance(outcome, list):
            backend.counters.acquired += 1
            return Lock(outcome.validity_ms, resource, outcome.key if backend.own_key is None else backend.own_key)
        if outcome:
            from redlock._outcomes import is_outage  # noqa: PLC0415

            backend.counters.refused(contended=not is_outage(outcome, self.quorum))
        return False

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
        if type(lock) is not Lock:
            from redlock._lease import Lease  # noqa: PLC0415

            if isinstance(lock, Lease):
                lock.release()
                return
        backend = self._backend()
        backend.counters.released += Vote.RELEASED in backend.release((lock.resource,), lock.key)

    # -- the same, with reasons ----------------------------------------------------------------------------------------

    def try_lock(
        self,
        resource: Encodable,
        ttl: int,
        *,
        timeout: float | None = 0,
        retry_count: float | None = None,
        retry_delay: float | None = None,
    ) -> Attempt:
        """As :meth:`lock`, and tells why it failed. Tries once, unless it is to wait.

        Args:
            resource: the name, as in :meth:`lock`.
            ttl: how long the masters keep the lock, in milliseconds.
            timeout: seconds to wait at most, as in :meth:`acquire`; ``None`` waits without end.
            retry_count: the same; ``None``: as often as the timeout allows, whatever the manager's is.
            retry_delay: the same; ``None``: the manager's.

        Returns:
            Something true, with the lock; else something false, with the reason. Neither contention nor an outage
            raises anything.

        Raises:
            TypeError: a resource, ttl or time of a type that cannot be used.
            ValueError: a ttl that leaves no validity, a resource as :meth:`lock` refuses it, or a time that is
                negative.
        """
        from redlock import _attempts, _leasing, _terms  # noqa: PLC0415

        pace = _terms.Pace.of(self, timeout, retry_count, retry_delay, fencing=False)
        operations = _leasing.Operations(self, (resource,))
        try:
            return _attempts.to_lock(operations, resource, operations.acquire(operations.checked(ttl), pace))
        except BaseException:  # out of a signal handler, after the grant
            operations.undo()
            raise

    def try_unlock(self, lock: SupportsUnlock) -> Attempt:
        """As :meth:`unlock`, and tells what each master said.

        Args:
            lock: what :meth:`lock` or :meth:`try_lock` returned, here or in another process, or anything else with its
                ``resource`` and ``key``.

        Returns:
            Something true if a master still had the lock and a quorum answered; else something false, with the reason.
            An overridden ``unlock_instance`` does not tell whether a master had it: there each counts as one that had.

        Raises:
            AttributeError: it has no resource or key, as ``False`` has not.
            TypeError: a resource or key of a type that cannot be sent, or a lease, which has its own ``release``.
            MultipleRedlockException: ``unlock_instance`` is overridden and raised redis-py errors.
        """
        from redlock import _attempts, _leasing  # noqa: PLC0415

        _attempts.check_no_lease(lock)
        operations = _leasing.Operations(self, (lock.resource,))
        return _attempts.to_unlock(operations, operations.backend.release((lock.resource,), lock.key))

    def try_extend(self, lock: SupportsUnlock, ttl: int) -> Attempt:
        """As :meth:`extend`, and tells why it failed.

        Args:
            lock: as in :meth:`try_unlock`.
            ttl: milliseconds.

        Returns:
            Something true, with the lock and its new validity; else something false, with the reason. After
            ``"unavailable"`` another try may succeed: until then the lock ends when it would have, or when it would
            with this ``ttl``, whichever is earlier.

        Raises:
            AttributeError: it has no resource or key, as ``False`` has not.
            TypeError: a resource, key or ttl of a type that cannot be sent, or a lease, which has its own ``extend``.
            ValueError: a ttl that leaves no validity.
            NotImplementedError: ``lock_instance`` is overridden.
        """
        from redlock import _attempts, _leasing  # noqa: PLC0415

        _attempts.check_no_lease(lock)
        operations = _leasing.Operations(self, (lock.resource,))
        return _attempts.to_extend(operations, lock, operations.extend(lock.key, operations.checked(ttl)))

    # -- leases --------------------------------------------------------------------------------------------------------

    def acquire(  # noqa: PLR0913 - all but two have names and defaults
        self,
        resource: Resource,
        ttl: int,
        *,
        timeout: float | None = None,
        retry_count: float | None = None,
        retry_delay: float | None = None,
        auto_extend: bool = False,
        max_hold: float | None = None,
        on_lost: Callable[[Lease], object] | None = None,
        fencing: bool = False,
    ) -> Lease:
        """Acquire ``resource``, waiting for it, as a lease to use in a ``with`` block or to release by hand.

        Args:
            resource: the name, as in :meth:`lock`; or a sequence of names to be held together, with one key: all or
                none.
            ttl: how long the masters keep it from each extension on, in milliseconds.
            timeout: seconds to wait at most; ``None`` waits for ever, 0 tries once.
            retry_count: how often to try; ``None``: as often as the timeout allows, whatever the manager's is.
            retry_delay: the longest pause between two tries, in seconds; ``None``: the manager's.
            auto_extend: have the engine extend it at each third of the TTL until it is released, or nothing refers to
                it any more, which releases it as well.
            max_hold: seconds after which it ends, so that a holder that hangs does not keep it for good; ``None``: no
                bound.
            on_lost: called once, in a thread of its own, with the lease when it is lost: before its validity ends, if
                the interpreter gets to run.
            fencing: have a fencing token with it, :attr:`Lease.token`, greater than any before it: what the lease
                protects can refuse a holder that comes late. See ``docs/fencing.md``.

        Raises:
            LockContended: others hold it: as long as was to be waited, or in as many tries.
            QuorumUnavailable: no quorum of masters answered in the last round.
            FencingUnavailable: no quorum of masters runs the scripts of ``fencing``.
            TypeError: a resource, ttl or time of a type that cannot be used, or an ``on_lost`` that cannot be called.
            ValueError: a ttl that leaves no validity, a resource as :meth:`lock` refuses it, one named twice, a time
                that is negative, or ``max_hold`` or ``on_lost`` without ``auto_extend``.
            NotImplementedError: ``auto_extend`` where :meth:`extend` is not possible.
            RuntimeError: ``auto_extend``, and no thread can be started.
        """
        from redlock import _leasing, _terms  # noqa: PLC0415 - they need threads, which `import redlock` does not

        pace = _terms.Pace.of(self, timeout, retry_count, retry_delay, fencing=fencing)
        keeping = _terms.Keeping(auto_extend, max_hold, on_lost)

        def hold(tried: Callable[[int], object] | None) -> Lease:
            operations = _leasing.Operations(self, _terms.listed(resource))
            operations.tried = tried
            return _leasing.acquire(operations, resource, ttl, pace, keeping)

        if self._watch is None:
            return hold(None)
        leases: list[Lease] = []
        try:
            with self._watch(resource, ttl) as tried:
                leases.append(hold(tried))
            return leases[0]
        except BaseException:
            # Raised at the end of the span: the caller gets no lease to release.
            for lease in leases:
                lease.release()
            raise

    def extend(self, lock: SupportsUnlock, ttl: int) -> Lock | Literal[False]:
        """Set the time to live of a lock anew, from now. Never revives one that has expired or was taken over.

        Args:
            lock: what :meth:`lock` returned, here or in another process, or anything else with its ``resource`` and
                ``key``.
            ttl: milliseconds.

        Returns:
            The lock with its new validity; ``False`` if no quorum of masters has it any more, or answered. Then it
            ends when it would have, or when it would with this ``ttl``, whichever is earlier.

        Raises:
            AttributeError: it has no resource or key, as ``False`` has not.
            TypeError: a resource, key or ttl of a type that cannot be sent.
            ValueError: a ttl that leaves no validity.
            NotImplementedError: ``lock_instance`` is overridden.
        """
        from redlock import _leasing  # noqa: PLC0415

        return _leasing.extend(self, lock, ttl)

    def locked(self, resource: Encodable) -> bool:
        """Whether somebody holds ``resource`` on a quorum of masters.

        It may have changed by the time this returns.

        Raises:
            QuorumUnavailable: too few masters answered to tell.
            TypeError: a resource of a type that cannot be sent.
            NotImplementedError: as :meth:`inspect`.
        """
        from redlock._outcomes import is_locked  # noqa: PLC0415

        return is_locked(resource, self.inspect(resource), self.quorum)

    def inspect(self, resource: Encodable) -> list[Sighting]:
        """What each master has under the name of ``resource``: a digest of the holder's key, and for how long.

        Raises:
            TypeError: a resource of a type that cannot be sent.
            NotImplementedError: ``lock_instance`` is overridden, or a master is a client without ``get`` and
                ``pttl``.
        """
        from redlock._outcomes import sightings  # noqa: PLC0415

        backend = self._backend()
        return sightings(backend.names, backend.inspect(resource))

    def synchronized(  # noqa: PLR0913 - as above
        self,
        name: Resource | Callable[..., Resource],
        ttl: int,
        *,
        timeout: float | None = None,
        retry_count: float | None = None,
        retry_delay: float | None = None,
        auto_extend: bool = False,
        max_hold: float | None = None,
        on_lost: Callable[[Lease], object] | None = None,
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function so that each call holds a lease.

        Args:
            name: the resource, or a function that makes it from the arguments of each call.
            ttl: this and all others as in :meth:`acquire`, for each call.
            timeout: see there.
            retry_count: see there.
            retry_delay: see there.
            auto_extend: see there.
            max_hold: see there.
            on_lost: see there.

        Raises:
            TypeError: when it decorates: an async function (``AsyncRedlock`` has the same for those) or a generator
                function; when it is called: the function has returned a coroutine. All of them would run after the
                release.
        """
        from redlock import _leasing  # noqa: PLC0415

        keeping = {"auto_extend": auto_extend, "max_hold": max_hold, "on_lost": on_lost}
        pace = {"timeout": timeout, "retry_count": retry_count, "retry_delay": retry_delay}
        return _leasing.synchronized(self, name, ttl, {**pace, **keeping})

    def stats(self) -> Stats:
        """What this manager has done so far, and how its masters fare."""
        from redlock import _stats  # noqa: PLC0415

        backend = self._backend()
        return _stats.snapshot(backend.counters, backend.engine, zip(backend.names, backend.health(), strict=False))

    # -- what callers override -----------------------------------------------------------------------------------------

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
        from redlock import _masters, _objects  # noqa: PLC0415

        failing = self._count().failing_releases
        _objects.release_at(_masters.Client(server), resource, val, self.unlock_script, failing)

    def get_unique_id(self) -> Encodable:
        """A fresh key, 22 random letters and digits as bytes; called for each try where overridden."""
        return random_key()

    # -- what asks the masters -----------------------------------------------------------------------------------------

    def _backend(self) -> Backend:
        """What asks the masters in one call: the engine, unless methods of the caller's or of the servers' are called.

        Chosen for each call: callers change ``servers`` and patch methods at any time.
        """
        masters, kind, own = self._masters, type(self), self.__dict__
        servers = own.get("servers") if kind.servers is _SERVERS else self.servers
        # None: they are those of the connection list, and were not looked at.
        if masters is None or (masters.clients is not self._listed if servers is None else masters.servers != servers):
            masters = self._changed()
        counters = self._counters or self._count()
        if (
            masters.engine is None
            # As `_own` has it, written out: each call passes here.
            or kind.lock_instance is not _LOCK_INSTANCE
            or kind.unlock_instance is not _UNLOCK_INSTANCE
            or "lock_instance" in own
            or "unlock_instance" in own
            or masters.is_patched()
        ):
            return self._by_clients(masters, counters)
        backend = EngineBackend(masters.engine, masters.names, self.quorum, self.unlock_script, counters)
        if kind.get_unique_id is not _GET_UNIQUE_ID or "get_unique_id" in own:
            backend.new_key = self.get_unique_id
        return backend

    def _changed(self) -> Masters:
        """The masters where ``servers`` has changed."""
        from redlock._connections import Masters  # noqa: PLC0415

        if self._masters:
            self._masters.close_connections()
        masters = self._masters = Masters.of_servers(self.servers, self._guards)
        return masters

    def _by_clients(self, masters: Masters, counters: Counters) -> Backend:
        from redlock._objects import Hooks, Objects  # noqa: PLC0415

        if masters.servers is None:
            self.__dict__.setdefault("servers", masters.made())
        own = self._own("lock_instance", _LOCK_INSTANCE), self._own("unlock_instance", _UNLOCK_INSTANCE)
        hooks = Hooks(type(self).__name__, self.get_unique_id, *own)
        return Objects(masters, self.quorum, self.unlock_script, counters, hooks)

    def _own(self, hook: str, default: object) -> Callable[..., object] | None:
        """A method, if it is the caller's: a subclass's, this instance's, or patched into this class."""
        is_own = getattr(type(self), hook) is not default or hook in self.__dict__
        return getattr(self, hook) if is_own else None

    def _count(self) -> Counters:
        """Where to count; made late, for some make managers without calling `__init__`."""
        if self._counters is None:
            from redlock._counters import Counters  # noqa: PLC0415

            counters: Counters = self.__dict__.setdefault("_counters", Counters())
            return counters
        return self._counters


_SERVERS = Redlock.servers
_LOCK_INSTANCE = Redlock.lock_instance
_UNLOCK_INSTANCE = Redlock.unlock_instance
_GET_UNIQUE_ID = Redlock.get_unique_id
