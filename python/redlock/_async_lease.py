"""What a task holds until it releases it: :class:`AsyncLease`."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

from redlock._connections import logger
from redlock._keeper import LONGEST_WAIT
from redlock._lease import LeaseBase, Unreleased
from redlock._outcomes import loss
from redlock._redlock import now

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from typing_extensions import Self

    from redlock._async_leasing import AsyncOperations
    from redlock._types import HeldLike, Reason

T = TypeVar("T")


class AsyncLoss:
    """Whether a lease is lost, as an event: what :class:`asyncio.Event` has for those who wait.

    It is set when a lease is found to be lost, and in any case as soon as our own clock says that it has expired.
    """

    def __init__(self, lease: AsyncLease) -> None:
        self._lease = lease

    def __repr__(self) -> str:
        return f"<AsyncLoss of {self._lease.resource!r:.80}: {self.reason or 'not lost'}>"

    @property
    def reason(self) -> Reason | None:
        """Why it is lost, as :attr:`LockLost.reason`; ``None`` if it is not."""
        reason = self._lease._why_not()  # noqa: SLF001 - a part of the lease
        return None if reason == "released" else reason

    def is_set(self) -> bool:
        """Whether it is lost. A lease that was released in time is not."""
        return self.reason is not None

    async def wait(self) -> bool:
        """Wait until it is lost or released.

        Returns:
            Whether it is lost.
        """
        lease = self._lease
        while lease._why_not() is None:  # noqa: SLF001
            over = lease._over = lease._over or lease._loop.create_future()  # noqa: SLF001
            # An extension puts the end off: then the wait was too short, and is followed by another.
            await asyncio.wait((over,), timeout=min(lease._state.expires_at - now(), LONGEST_WAIT))  # noqa: SLF001
        return self.is_set()


class Body:
    """The block that a lease is held for, as seen from outside: how it is cancelled, and no one else's doing.

    Source: what :func:`asyncio.timeout` does.

    Attributes:
        task: that runs it.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self.task = task
        self._cancelling = task.cancelling() if hasattr(task, "cancelling") else 0  # 3.10 does not count them
        self._is_cancelled = False

    def cancel(self) -> None:
        """Cancel it, once."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self.task.cancel()

    def is_ended_by_us(self, error: BaseException | None) -> bool:
        """Take the cancellation back, now that the block has ended with ``error``.

        Returns:
            Whether the block ended because of it, and of no other that came as well.
        """
        if not self._is_cancelled:
            return False
        left = self.task.uncancel() if hasattr(self.task, "uncancel") else 0
        return isinstance(error, asyncio.CancelledError) and left <= self._cancelling


class AsyncLease(LeaseBase):
    """A lock that is held until its block is left, :meth:`release` is called, or its validity is over.

    Made by :meth:`AsyncRedlock.acquire`, already held. It belongs to the event loop it was acquired in. A forked child
    does not hold what its parent holds: there it is lost.
    """

    _operations: AsyncOperations
    _body: Body | None = None
    _over: asyncio.Future[None] | None = None
    _work: set[asyncio.Task[Any]] | None = None  # asyncio itself holds its tasks by weak references
    # Who wait for an extension, and will be told how it ended.
    _asking: frozenset[asyncio.Task[Any] | None] = frozenset()

    def __init__(
        self,
        operations: AsyncOperations,
        resource: Any,
        ttl: int,
        held: HeldLike,
        on_lost: Callable[[AsyncLease], object] | None = None,
    ) -> None:
        super().__init__(operations, resource, ttl, held)
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        """Have the block cancelled when the lease is lost; at once if it is lost already."""
        self._body = Body()
        self._cancel_if_lost()
        if not self._state.is_kept:
            self._set_alarm()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release. What the body raised is never replaced, unless it is the cancellation by a loss.

        Raises:
            LockLost: the lease was lost before the end of the block, and the body raised nothing else.
        """
        reason = self.lost.reason
        body, self._body = self._body, None
        is_ours = body is not None and body.is_ended_by_us(error)
        try:
            await self.release()
        except Exception:
            if error is None:
                raise
            logger.exception("Error releasing %r", self.resource)
        if reason is not None and (error is None or is_ours):
            raise loss(self.resource, reason) from error

    @property
    def lost(self) -> AsyncLoss:
        """The event of its loss: poll it, or wait for it."""
        return AsyncLoss(self)

    async def extend(self, ttl: int | None = None) -> None:
        """Set its time to live anew, from now, on a quorum of masters. Never revives what has expired or was taken.

        Args:
            ttl: milliseconds; by default as many as before. Also what further extensions set.

        Raises:
            LockLost: no quorum extended it. Where the reason is ``"unavailable"``, another try may succeed. Until then
                it has its old deadline; or the one that ``ttl`` would have set, if that is earlier, for masters may
                have obeyed whose answers did not come.
            ValueError: a ttl that leaves no validity.
            TypeError: the same, of another type.
        """
        ttl = self.ttl if ttl is None else self._operations.checked(ttl)
        if self._is_inherited():
            raise loss(self.resource, "forked")
        asking = asyncio.current_task()
        self._asking |= {asking}
        try:
            # In a task of its own: a caller that is cancelled does not wait for its end, but the release does.
            reason = await asyncio.shield(self._start(self._extend(ttl)))
        except asyncio.CancelledError:
            self._cancel_if_lost()  # for it is not told by what is raised here
            raise
        finally:
            self._asking -= {asking}
        if reason is not None:
            raise loss(self.resource, reason)

    async def _extend(self, ttl: int) -> Reason | None:
        reason = await self._operations.extend_lease(ttl)
        self._tell_loss()
        return reason

    async def release(self) -> None:
        """Give it back on every master; waits for an extension under way. Harmless when done twice.

        Never raises for a master's failure: those are logged. So is a lease that had already expired. Goes on behind
        the back of a caller that is cancelled.
        """
        if self._is_inherited():
            return
        release = self._operations.release_lease()
        try:
            await (asyncio.shield(self._start(release)) if self._state.is_kept or self._work else release)
        except asyncio.CancelledError:
            # This may be the last that the loop does. In case it goes on, so does the release, after an extension.
            self._operations.begin_release()
            raise
        finally:
            self._set_over()
            self._end()
            self._note_release()

    def _keep(self, max_hold: float | None) -> None:
        """Have the engine renew it.

        Raises:
            RuntimeError: there are no more threads.
        """
        self._number = self._operations.keeper.keep(self, max_hold)
        self._unreleased = Unreleased(self.resource)

    # -- how it is told ------------------------------------------------------------------------------------------------

    def _on_event(self, what: str, ttl: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._see_to, what, ttl)

    def _see_to(self, what: str, ttl: int) -> None:
        if what == "renew":
            self._start(self._operations.extend_lease(ttl))
        elif what == "give back":
            self._start(self.release())
        elif what == "news":
            self._operations.write_log()
        self._tell_loss()

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._loop.create_task(work)
        self._work = self._work or set()
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def _set_over(self) -> None:
        if self._over and not self._over.done():
            self._over.set_result(None)

    def _set_alarm(self) -> None:
        """Have the loop look at it when its validity ends, for the block that it is held for."""
        # Not less than a loop's clock can tell: it would go off again and again until it is time.
        pause = min(max(self._state.expires_at - now(), 0.001), LONGEST_WAIT)
        self._loop.call_later(pause, _look, ref(self))

    def _look(self) -> None:
        reason = self._why_not()
        if reason == "expired":
            self._state.lose(reason)
            self._tell_loss()
        elif reason is None and self._body:
            self._set_alarm()

    def _tell_holder(self) -> None:
        self._set_over()
        self._cancel_body()
        if self._on_lost:
            self._start(self._tell(self._on_lost))

    def _cancel_body(self) -> None:
        """Cancel the block, unless its task is told anyway."""
        if self._body and self._body.task not in self._asking:
            self._body.cancel()

    def _cancel_if_lost(self) -> None:
        """Have the block cancelled if it was not when its holder was told, in the task that runs it."""
        if self._state.is_told:
            # When the task waits: one that it does not get before the end of the block would end the release.
            self._loop.call_soon(self._cancel_body)

    async def _tell(self, on_lost: Callable[[AsyncLease], object]) -> None:
        try:
            told = on_lost(self)
            if inspect.isawaitable(told):
                await told
        except Exception:  # noqa: BLE001 - the caller's own, and nobody waits for it
            logger.exception("Error in what is called when %r is lost", self)


def _look(lease: ref[AsyncLease]) -> None:
    """What a loop's timer calls: it must not be what keeps a lease that nothing else refers to."""
    if known := lease():
        known._look()  # noqa: SLF001 - a part of it
