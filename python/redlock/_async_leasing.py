"""What :class:`~redlock.AsyncRedlock` does with leases, whatever asks the masters."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from redlock._async_lease import AsyncLease
from redlock._redlock import now
from redlock._terms import Keeping, Pace, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from redlock._redlock import Vote
    from redlock._types import AsyncBackend, Encodable, HeldLike, Reason, Resource, TtlAndDrift
    from redlock.aio import AsyncRedlock

T = TypeVar("T")


class AsyncOperations(Terms["AsyncBackend"]):
    """A call of a task, and what becomes of it."""

    # For clients' own methods: one extension at a time, and none after the release.
    _turn: asyncio.Lock | None = None
    _work: set[asyncio.Task[Any]] | None = None  # asyncio itself holds its tasks by weak references

    async def acquire(self, ttl: int, pace: Pace) -> HeldLike | list[Vote]:
        """Try until it is held, or what each master said in the last round. Cancelled, it leaves nothing."""
        return await self.backend.acquire(self.resources, self._terms(ttl), pace.bounds, fencing=pace.fencing)

    async def release(self, key: Encodable) -> list[Vote]:
        """Release on every master; errors are logged. What each said."""
        return await self._release(self.backend, key)

    async def _release(self, backend: AsyncBackend, key: Encodable) -> list[Vote]:
        with self.counters.round_trip.timed():
            return await backend.release(self.resources, key)

    async def extend(self, key: Encodable, ttl: int) -> HeldLike | list[Vote]:
        """Set the time to live anew, once.

        Args:
            key: of the lock.
            ttl: milliseconds.

        Returns:
            What is held now, or what each master said.
        """
        return await self._extend(self.backend, key, self._terms(ttl))

    async def _extend(self, backend: AsyncBackend, key: Encodable, terms: TtlAndDrift) -> HeldLike | list[Vote]:
        with self.counters.round_trip.timed():
            outcome = await backend.extend(self.resources, key, terms)
        self.counters.extended += not isinstance(outcome, list)
        return outcome

    async def extend_lease(self, ttl: int) -> Reason | None:
        """Extend the lease, when no other task extends or releases it. Goes on when the caller is cancelled.

        Args:
            ttl: milliseconds.

        Returns:
            Why it could not be extended.
        """
        return await self._choose().extend_lease(self, self._terms(ttl))

    async def extend_by(self, backend: AsyncBackend, terms: TtlAndDrift) -> Reason | None:
        """As :class:`~redlock._types.AsyncLeased`."""
        return await self._to_the_end(self._extend_by(backend, terms))

    async def _extend_by(self, backend: AsyncBackend, terms: TtlAndDrift) -> Reason | None:
        async with self._in_turn():
            if reason := self.state.begin_extension(*terms):
                return reason
            outcome: HeldLike | list[Vote] | None = None
            try:
                outcome = await self._extend(backend, self.key, terms)
            finally:
                reason = self._end_extension(terms, outcome, backend.quorum)
            return reason

    async def release_lease(self) -> None:
        """Release the lease on every master, once, after an extension that is under way; errors are logged."""
        await self._choose().release_lease(self)

    async def release_by(self, backend: AsyncBackend) -> None:
        """As :class:`~redlock._types.AsyncLeased`."""
        if self.state.begin_release():
            await self._to_the_end(self._release_by(backend))

    async def _release_by(self, backend: AsyncBackend) -> None:
        async with self._in_turn():
            said = await self._release(backend, self.key)
        self._end_release(said, backend.quorum)

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, also when the caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._work = self._work or set()
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return await asyncio.shield(task)

    def _in_turn(self) -> asyncio.Lock:
        self._turn = self._turn or asyncio.Lock()
        return self._turn

    def begin_release(self) -> None:
        """Send the lease's release to the masters that are connected, for a caller that cannot wait for the answers."""
        self._choose().begin_release(self.resources, self.key)


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


async def acquire(
    operations: AsyncOperations, resource: Resource, ttl: int, pace: Pace, keeping: Keeping
) -> AsyncLease:
    """:meth:`AsyncRedlock.acquire`, awaited."""
    ttl, start = operations.checked(ttl), now()
    outcome = await operations.acquire(ttl, pace)
    lease: AsyncLease | None = None
    try:
        held = operations.decided(resource, outcome, pace, now() - start)
        lease = AsyncLease(operations, resource, ttl, held, keeping.on_lost)
        if keeping.auto_extend:
            lease._keep(keeping.max_hold)  # noqa: SLF001 - its other half
    except BaseException:
        # What watches the call may raise, and there may be no thread to be had.
        if lease:
            await lease.release()
        elif not isinstance(outcome, list):
            await operations.release(outcome.key)
        raise
    operations.end_call()
    return lease


def synchronized(
    manager: AsyncRedlock, name: Resource | Callable[..., Resource], ttl: int, terms: dict[str, Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """:meth:`AsyncRedlock.synchronized`; ``terms`` are the other arguments of :meth:`AsyncRedlock.acquire`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        # As it was before it was decorated: what that returns is awaited as well.
        called = inspect.unwrap(function)
        if not inspect.iscoroutinefunction(called) and not inspect.iscoroutinefunction(type(called).__call__):
            message = f"{function!r} is no async function: use Redlock.synchronized for one that runs when it is called"
            raise TypeError(message)

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            async with manager.acquire(name(*args, **kwargs) if callable(name) else name, ttl, **terms):
                return await function(*args, **kwargs)

        return wrapper

    return decorate
