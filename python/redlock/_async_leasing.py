"""What :class:`~redlock.AsyncRedlock` does with locks and leases, over the engine."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from redlock._arguments import encode
from redlock._async_lease import AsyncLease
from redlock._failures import log_failures
from redlock._outcomes import OWN_METHODS
from redlock._redlock import Held, Operation, Vote, now
from redlock._terms import Keeping, Pace, Terms, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from types import TracebackType

    from redlock._redlock import Engine, LeaseState
    from redlock._types import Encodable, HeldLike, Reason, Resource
    from redlock.aio import AsyncRedlock

T = TypeVar("T")


class AsyncOperations(Terms["AsyncRedlock"]):
    """What one lease, or one lock, needs of its manager."""

    def __init__(self, manager: AsyncRedlock, resources: Sequence[Encodable]) -> None:
        super().__init__(manager, resources)
        self._turn = asyncio.Lock()  # for clients' own methods: one extension at a time, and none after the release
        self._work: set[asyncio.Task[Any]] = set()  # asyncio itself holds its tasks by weak references

    async def acquire(self, ttl: int, pace: Pace) -> HeldLike | list[Vote]:
        """Try until it is held, or what each master said in the last round. Cancelled, it leaves nothing."""
        if clients := self._manager._clients:  # noqa: SLF001
            if pace.fencing:
                return [OWN_METHODS] * len(clients.clients)
            tries = pace.tries, pace.delay, pace.timeout
            return await clients.obtain(self._resources, self._terms(ttl), tries, self._manager.unlock_script)
        names, script = self._names(), self._manager._script()  # noqa: SLF001 - this module is a part of the manager
        terms = ttl, self.quorum, self._drift(ttl)

        def give_back(outcome: Held | list[Vote]) -> Operation[list[Vote]] | None:
            return Operation.release(names, outcome.key, script) if isinstance(outcome, Held) else None

        operation = Operation.acquire(names, *terms, pace.tries, pace.delay, pace.timeout, script, fencing=pace.fencing)
        outcome = await self._manager._run(operation, give_back)  # noqa: SLF001
        self.attempts += operation.rounds
        if isinstance(outcome, Held) and not outcome.validity_ms:
            # The loop was busy for so long with something else.
            await self._manager._run(Operation.release(names, outcome.key, script))  # noqa: SLF001
            return outcome.votes
        return outcome

    def _terms(self, ttl: int) -> tuple[int, int, int]:
        return ttl, self._drift(ttl), self.quorum

    async def extend(self, key: Encodable, ttl: int) -> HeldLike | list[Vote]:
        """Set the time to live anew, once.

        Args:
            key: of the lease.
            ttl: milliseconds.

        Returns:
            What is held now, or what each master said.
        """
        terms = ttl, self.quorum, self._drift(ttl)
        operation = Operation.extend(self._names(), encode("key", key), *terms)
        outcome: HeldLike | list[Vote]
        with self._timed():
            if clients := self._manager._clients:  # noqa: SLF001
                outcome = await clients.extend(self._resources, key, self._terms(ttl))
            else:
                outcome = await self._manager._run(operation)  # noqa: SLF001
        if isinstance(outcome, Held) and not outcome.validity_ms:
            return outcome.votes  # the loop was busy for so long with something else
        self.counters.extended += not isinstance(outcome, list)
        return outcome

    async def extend_lease(self, state: LeaseState, key: Encodable, ttl: int) -> Reason | None:
        """Extend a lease, when no other task extends or releases it. Goes on when the caller is cancelled.

        Args:
            state: of the lease.
            key: of the lease.
            ttl: milliseconds.

        Returns:
            Why it could not be extended.
        """
        if self._engine():
            return await self._manager._run(Operation.extend_lease(state, ttl, self._drift(ttl)))  # noqa: SLF001
        return await self._to_the_end(self._extend_by_clients(state, key, ttl))

    async def _extend_by_clients(self, state: LeaseState, key: Encodable, ttl: int) -> Reason | None:
        async with self._turn:
            if reason := state.begin_extension(ttl, self._drift(ttl)):
                return reason
            outcome: HeldLike | list[Vote] | None = None
            try:
                outcome = await self.extend(key, ttl)
            finally:
                reason = self.end_extension(state, ttl, outcome)
            return reason

    async def release_lease(self, state: LeaseState, key: Encodable) -> None:
        """Release a lease on every master, once, after an extension that is under way; errors are logged."""
        if not self._engine():
            if state.begin_release():
                await self._to_the_end(self._release_by_clients(state, key))
            return
        with self._timed():
            said = await self._manager._run(Operation.release_lease(state))  # noqa: SLF001
        if said is not None:
            log_failures(self.counters.failing_releases, self._resources, self._manager._names(), said)  # noqa: SLF001

    async def _release_by_clients(self, state: LeaseState, key: Encodable) -> None:
        async with self._turn:
            said = await self.release_all(key)
        self.end_release(state, said)

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, also when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return await asyncio.shield(task)

    def _engine(self) -> Engine | None:
        return self._manager._engine  # noqa: SLF001

    def begin_release(self, key: Encodable) -> None:
        """Send a release to the masters that are connected, for a caller that cannot wait for their answers."""
        self._manager._begin(Operation.release(self._names(), encode("key", key), self._manager._script()))  # noqa: SLF001

    async def release_all(self, key: Encodable) -> list[Vote]:
        """Release on every master; errors are logged. What each said."""
        operation = Operation.release(self._names(), encode("key", key), self._manager._script())  # noqa: SLF001
        with self._timed():
            if clients := self._manager._clients:  # noqa: SLF001
                said = await clients.release(self._resources, key, self._manager.unlock_script)
            else:
                said = await self._manager._run(operation)  # noqa: SLF001
        log_failures(self.counters.failing_releases, self._resources, self._manager._names(), said)  # noqa: SLF001
        return said


class Acquisition(Coroutine[Any, Any, "AsyncLease"]):
    """A call of :meth:`AsyncRedlock.acquire`: to be awaited, or entered by ``async with``; once.

    A coroutine, so that it can be a task: ``asyncio.create_task`` takes nothing else.
    """

    def __init__(self, acquiring: Coroutine[Any, Any, AsyncLease]) -> None:
        self._acquiring = acquiring
        self._lease: AsyncLease | None = None

    def __await__(self) -> Generator[Any, None, AsyncLease]:
        return self._acquiring.__await__()

    def send(self, value: Any) -> Any:
        """As of any coroutine: go on until it waits."""
        return self._acquiring.send(value)

    def throw(self, *error: Any) -> Any:
        """As of any coroutine: raise this where it waits."""
        return self._acquiring.throw(*error)

    def close(self) -> None:
        """As of any coroutine: end it where it waits."""
        self._acquiring.close()

    async def __aenter__(self) -> AsyncLease:
        self._lease = await self._acquiring
        return await self._lease.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lease:
            await self._lease.__aexit__(kind, error, trace)


async def acquire(manager: AsyncRedlock, resource: Resource, ttl: int, pace: Pace, keeping: Keeping) -> AsyncLease:
    """:meth:`AsyncRedlock.acquire`, awaited."""
    operations = AsyncOperations(manager, listed(resource))
    with manager._watch(resource, ttl) if manager._watch else nullcontext():  # noqa: SLF001
        ttl, start = operations.checked(ttl), now()
        outcome = await operations.acquire(ttl, pace)
        held = operations.decided(resource, outcome, pace, now() - start)
    lease = AsyncLease(operations, resource, ttl, held, keeping.on_lost)
    if keeping.auto_extend:
        try:
            lease._keep(keeping.max_hold)  # noqa: SLF001
        except BaseException:
            await lease.release()
            raise
    return lease


def synchronized(
    manager: AsyncRedlock, name: Resource | Callable[..., Resource], ttl: int, terms: dict[str, Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """:meth:`AsyncRedlock.synchronized`; ``terms`` are the other arguments of :meth:`AsyncRedlock.acquire`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        if not inspect.iscoroutinefunction(function):
            message = f"{function!r} is no async function: use Redlock.synchronized for one that runs when it is called"
            raise TypeError(message)

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            async with manager.acquire(name(*args, **kwargs) if callable(name) else name, ttl, **terms):
                return await function(*args, **kwargs)

        return wrapper

    return decorate
