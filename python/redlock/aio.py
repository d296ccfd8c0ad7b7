"""The lock manager for asyncio, :class:`AsyncRedlock`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from redlock import _async_clients, _async_leasing, _attempts
from redlock._arguments import encode, guards, seconds, ttl_and_drift, whole_tries
from redlock._async_engine import AsyncEngineBackend
from redlock._async_lease import AsyncLease
from redlock._async_leasing import Acquisition, AsyncOperations
from redlock._counters import Counters
from redlock._lock import CannotObtainLock, Lock, LockLost
from redlock._loop import LoopHosts
from redlock._outcomes import Sighting, is_locked, is_outage, sightings
from redlock._redlock import UNLOCK_SCRIPT, Vote, majority
from redlock._stats import Stats, snapshot
from redlock._terms import Keeping, Pace, listed

__all__ = ["AsyncLease", "AsyncRedlock"]

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine
    from contextlib import AbstractContextManager
    from typing import ParamSpec

    from redlock._async_objects import Clients
    from redlock._attempts import Attempt
    from redlock._types import AsyncBackend, AsyncItem, Encodable, Resource, SupportsUnlock

    P = ParamSpec("P")
    R = TypeVar("R")


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
    _clients: Clients | None = None  # where the engine cannot stand in for them
    _watch: Callable[[Any, int], AbstractContextManager[Callable[[int], object]]] | None = None  # of `otel`

    def __init__(
        self,
        connection_list: Collection[AsyncItem],
        retry_count: float | None = None,
        retry_delay: float | None = None,
        *,
        restart_guard: bool | int = False,
        clock_guard: bool = False,
    ) -> None:
        """Remember the masters; nothing connects yet, and no loop need be running.

        Args:
            connection_list: per master a URL (``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://``, with
                redis-py's options), a mapping of ``redis.Redis`` arguments, or a plain ``redis.asyncio.Redis`` or
                ``redis.Redis``, of which only the settings are used. Other asyncio clients have their own ``set`` and
                ``eval`` called, and so do all if there is one of them.
            retry_count: how often to try; 0 and ``None`` mean ``default_retry_count``, less than 0 never.
            retry_delay: the longest pause between two tries in seconds; 0 and ``None`` mean ``default_retry_delay``.
            restart_guard: as :class:`redlock.Redlock` has it.
            clock_guard: the same.

        Raises:
            Warning: a master that cannot be used, or one that is listed twice.
            CannotObtainLock: no masters.
            TypeError: no list.
        """
        try:
            masters, clients = _async_clients.connect(connection_list, guards(restart_guard, clock_guard))
        except Warning as warning:
            # Error trackers show the variables of every frame: not those that hold passwords.
            connection_list = ()
            raise warning.with_traceback(None) from None
        if not masters.names:
            message = "Failed to connect to the majority of redis servers"
            raise CannotObtainLock(message)
        self._choose: Callable[..., AsyncBackend]
        if masters.engine:
            self._choose = partial(AsyncEngineBackend, masters.engine, LoopHosts(masters.engine))
        else:
            from redlock._async_objects import AsyncObjects, Clients  # noqa: PLC0415 - others do without

            self._clients = Clients(clients)
            self._choose = partial(AsyncObjects, self._clients)
        self._master_names = masters.names
        self._counters = Counters()
        self.quorum = majority(len(masters.names))
        self.retry_count = retry_count or self.default_retry_count
        self.retry_delay = retry_delay or self.default_retry_delay

    def __repr__(self) -> str:
        """How many masters; not which, for clients show passwords."""
        names = getattr(self, "_master_names", ())
        return f"<{type(self).__name__} over {len(names)} masters, quorum {getattr(self, 'quorum', None)}>"

    async def lock(self, resource: Encodable, ttl: int) -> Lock | Literal[False]:
        """Acquire ``resource`` for ``ttl`` milliseconds, trying ``retry_count`` times.

        As :meth:`redlock.Redlock.lock`. Cancelled, it leaves nothing at the masters.

        Returns:
            The lock; ``False`` if others hold it or no quorum could be reached (which is logged).

        Raises:
            TypeError: a resource or ttl of a type that cannot be sent.
            ValueError: a ttl that is no int, or a resource too long or not encodable.
        """
        terms = ttl, drift = ttl_and_drift(ttl, self.clock_drift_factor)
        tries, delay = whole_tries(self.retry_count), seconds(self.retry_delay)
        if ttl <= drift or tries < 1:
            encode("resource", resource)
            return False
        outcome = await self._backend().acquire((resource,), terms, (tries, delay, None))
        if isinstance(outcome, list):
            self._counters.refused(contended=not is_outage(outcome, self.quorum))
            return False
        self._counters.acquired += 1
        return Lock(outcome.validity_ms, resource, outcome.key)

    async def unlock(self, lock: SupportsUnlock) -> None:
        """Release a lock on every master; harmless when it has expired or is another's.

        Cancelled, it releases all the same. Masters' errors are logged.

        Args:
            lock: what :meth:`lock` returned, or anything else with its ``resource`` and ``key``; a lease, too.

        Raises:
            AttributeError: it has no resource or key, as ``False`` has not.
            TypeError: a resource or key of a type that cannot be sent.
        """
        if isinstance(lock, AsyncLease):
            await lock.release()
            return
        with self._counters.round_trip.timed():
            said = await self._backend().release((lock.resource,), lock.key)
        self._counters.released += Vote.RELEASED in said

    # -- the same, with reasons ----------------------------------------------------------------------------------------

    async def try_lock(
        self,
        resource: Encodable,
        ttl: int,
        *,
        timeout: float | None = 0,
        retry_count: float | None = None,
        retry_delay: float | None = None,
    ) -> Attempt:
        """As :meth:`lock`, and tells why it failed. Tries once, unless it is to wait.

        Cancelled, it leaves nothing at the masters.

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
        pace = Pace.of(self, timeout, retry_count, retry_delay, fencing=False)
        operations = AsyncOperations(self, (resource,))
        return _attempts.to_lock(operations, resource, await operations.acquire(operations.checked(ttl), pace))

    async def try_unlock(self, lock: SupportsUnlock) -> Attempt:
        """As :meth:`unlock`, and tells what each master said. Cancelled, it releases all the same.

        Args:
            lock: what :meth:`lock` or :meth:`try_lock` returned, here or in another process, or anything else with its
                ``resource`` and ``key``.

        Returns:
            Something true if a master still had the lock and a quorum answered; else something false, with the reason.

        Raises:
            AttributeError: it has no resource or key, as ``False`` has not.
            TypeError: a resource or key of a type that cannot be sent, or a lease, which has its own ``release``.
        """
        _attempts.check_no_lease(lock)
        operations = AsyncOperations(self, (lock.resource,))
        return _attempts.to_unlock(operations, await operations.release(lock.key))

    async def try_extend(self, lock: SupportsUnlock, ttl: int) -> Attempt:
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
        """
        _attempts.check_no_lease(lock)
        operations = AsyncOperations(self, (lock.resource,))
        return _attempts.to_extend(operations, lock, await operations.extend(lock.key, operations.checked(ttl)))

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
        on_lost: Callable[[AsyncLease], object] | None = None,
        fencing: bool = False,
    ) -> Acquisition:
        """Acquire ``resource``, waiting for it, as a lease.

        ``async with manager.acquire(...) as lease`` holds it for a block. When the lease is lost, because it has
        expired or for another reason, the block is cancelled, and :class:`LockLost` raised at its end.
        ``lease = await manager.acquire(...)`` leaves it to the caller to watch :attr:`AsyncLease.lost` and to release.

        Args:
            resource: the name, as in :meth:`lock`; or a list or tuple of names to be held together, with one key: all
                or none.
            ttl: how long the masters keep it from each extension on, in milliseconds.
            timeout: seconds to wait at most; ``None`` waits for ever, 0 tries once.
            retry_count: how often to try; ``None``: as often as the timeout allows, whatever the manager's is.
            retry_delay: the longest pause between two tries, in seconds; ``None``: the manager's.
            auto_extend: have the engine extend it at each third of the TTL until it is released, or nothing refers to
                it any more, which releases it as well.
            max_hold: seconds after which it ends, so that a holder that hangs does not keep it for good; ``None``: no
                bound.
            on_lost: called once with the lease when it is lost: before its validity ends, if the loop is not busy. May
                be async.
            fencing: have a fencing token with it, :attr:`AsyncLease.token`, greater than any before it: what the lease
                protects can refuse a holder that comes late. See ``docs/fencing.md``.

        Raises:
            LockContended: when awaited or entered: others hold it, as long as was to be waited, or in as many tries.
            QuorumUnavailable: the same: no quorum of masters answered in the last round.
            FencingUnavailable: the same: no quorum of masters runs the scripts of ``fencing``.
            TypeError: a resource, ttl or time of a type that cannot be used, or an ``on_lost`` that cannot be called.
            ValueError: a ttl that leaves no validity, a resource as :meth:`lock` refuses it, one named twice, a time
                that is negative, or ``max_hold`` or ``on_lost`` without ``auto_extend``.
        """
        pace = Pace.of(self, timeout, retry_count, retry_delay, fencing=fencing)
        keeping = Keeping(auto_extend, max_hold, on_lost)
        return Acquisition(self._acquire(resource, ttl, pace, keeping))

    async def _acquire(self, resource: Resource, ttl: int, pace: Pace, keeping: Keeping) -> AsyncLease:
        operations = AsyncOperations(self, listed(resource))
        leases: list[AsyncLease] = []
        try:
            with self._watch(resource, ttl) if self._watch else nullcontext() as operations.tried:
                leases.append(await _async_leasing.acquire(operations, resource, ttl, pace, keeping))
            return leases[0]
        except BaseException:
            # Raised at the end of the span: the caller gets no lease to release.
            for lease in leases:
                await lease.release()
            raise

    async def extend(self, lock: SupportsUnlock, ttl: int) -> Lock | Literal[False]:
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
        """
        if isinstance(lock, AsyncLease):
            try:
                await lock.extend(ttl)
            except LockLost:
                return False
            return Lock(lock.validity, lock.resource, lock.key)
        operations = AsyncOperations(self, (lock.resource,))
        outcome = await operations.extend(lock.key, operations.checked(ttl))
        return False if isinstance(outcome, list) else Lock(outcome.validity_ms, lock.resource, lock.key)

    async def locked(self, resource: Encodable) -> bool:
        """Whether somebody holds ``resource`` on a quorum of masters.

        It may have changed by the time this returns.

        Raises:
            QuorumUnavailable: too few masters answered to tell.
            TypeError: a resource of a type that cannot be sent.
        """
        return is_locked(resource, await self.inspect(resource), self.quorum)

    async def inspect(self, resource: Encodable) -> list[Sighting]:
        """What each master has under the name of ``resource``: a digest of the holder's key, and for how long.

        Raises:
            TypeError: a resource of a type that cannot be sent.
        """
        return sightings(self._master_names, await self._backend().inspect(resource))

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
        on_lost: Callable[[AsyncLease], object] | None = None,
    ) -> Callable[[Callable[P, Coroutine[Any, Any, R]]], Callable[P, Coroutine[Any, Any, R]]]:
        """Decorate an async function so that each call holds a lease, and is cancelled when that is lost.

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
            TypeError: when it decorates: not an async function, by ``functools.wraps`` or its ``__call__`` either;
                ``Redlock`` has the same for others.
        """
        keeping = {"auto_extend": auto_extend, "max_hold": max_hold, "on_lost": on_lost}
        pace = {"timeout": timeout, "retry_count": retry_count, "retry_delay": retry_delay}
        return _async_leasing.synchronized(self, name, ttl, {**pace, **keeping})

    def stats(self) -> Stats:
        """What this manager has done so far, and how its masters fare."""
        backend = self._backend()
        return snapshot(self._counters, backend.engine, zip(backend.names, backend.health(), strict=True))

    def _backend(self) -> AsyncBackend:
        """What asks the masters in one call."""
        return self._choose(
            names=self._master_names, quorum=self.quorum, script=self.unlock_script, counters=self._counters
        )


for _public in (AsyncLease, AsyncRedlock):
    _public.__module__ = "redlock"  # where it is imported from: in tracebacks and logs
del _public
