"""What a task holds until it releases it: :class:`AsyncLease`. The loop's timers watch over it; no thread does."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import TYPE_CHECKING, Any
from weakref import ref

from redlock._connections import logger
from redlock._keeper import LONGEST_WAIT
from redlock._lease import LeaseBase
from redlock._outcomes import in_words, loss, why_not_extended
from redlock._redlock import now

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine
    from types import TracebackType

    from typing_extensions import Self

    from redlock._async_leasing import AsyncOperations
    from redlock._lease import Upkeep
    from redlock._types import HeldLike, Reason


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
            # An extension puts the end off: then the wait was too short, and is followed by another.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(lease._over.wait(), min(lease._expires_at - now(), LONGEST_WAIT))  # noqa: SLF001
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
        """Cancel it."""
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

    def __init__(
        self,
        operations: AsyncOperations,
        resource: Any,
        ttl: int,
        held: HeldLike,
        on_lost: Callable[[AsyncLease], object] | None = None,
    ) -> None:
        super().__init__(resource, ttl, held, in_words(operations.named(held.votes)), operations.counters)
        self._operations = operations
        self._on_lost = on_lost
        self._body: Body | None = None
        self._over = asyncio.Event()
        self._turn = asyncio.Lock()  # one extension at a time, and none after the release
        self._alarm: asyncio.TimerHandle | None = None
        self._work: set[asyncio.Task[Any]] = set()  # asyncio itself holds its tasks by weak references
        self._asking: set[asyncio.Task[Any] | None] = set()  # who wait for an extension, and will be told how it ended

    async def __aenter__(self) -> Self:
        """Have the block cancelled when the lease is lost."""
        self._body = Body()
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
        asking = asyncio.current_task()
        self._asking.add(asking)
        try:
            # In a task of its own: whoever asked may be cancelled, but the release has to wait for its end.
            reason = await asyncio.shield(self._start(self._extend_in_turn(ttl)))
        finally:
            self._asking.discard(asking)
        if reason is not None:
            raise loss(self.resource, reason)

    async def release(self) -> None:
        """Give it back on every master; waits for an extension under way. Harmless when done twice.

        Never raises for a master's failure: those are logged. So is a lease that had already expired. Goes on behind
        the back of a caller that is cancelled.
        """
        if self._is_inherited() or not self._begin_release():
            return
        self._forget()
        if not self._turn.locked():
            await self._give_back()
            return
        work = self._start(self._give_back_in_turn())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            # This may be the last that the loop does. In case it goes on, the release is repeated after the extension.
            self._operations.begin_release(self.key)
            raise

    async def _give_back_in_turn(self) -> None:
        while True:
            try:
                await self._turn.acquire()
                break
            except asyncio.CancelledError:  # the loop is to end, and waits for this: the extension, too, ends soon
                continue
        try:
            await self._give_back()
        finally:
            self._turn.release()

    async def _give_back(self) -> None:
        was_held = True
        try:
            was_held = await self._operations.release(self.key)
        finally:
            self._end_release(was_held=was_held)

    def _forget(self) -> None:
        self._over.set()
        self._set_alarm()

    def _start(self, work: Coroutine[Any, Any, Reason | None]) -> asyncio.Task[Reason | None]:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Reason | None]) -> None:
        self._work.discard(task)
        self._set_alarm()

    # -- extending -----------------------------------------------------------------------------------------------------

    async def _extend_in_turn(self, ttl: int) -> Reason | None:
        """Extend; why not, if it could not be."""
        if self._is_inherited():
            return "forked"
        async with self._turn:
            return await self._try_to_extend(ttl)

    async def _try_to_extend(self, ttl: int) -> Reason | None:
        if (reason := self._why_not()) is not None:
            return reason
        self._assume_extended(ttl, self._operations.relied_on(ttl))
        outcome = await self._operations.extend(self.key, ttl, self._may_extend_until())
        if (reason := self._why_not()) is not None:
            return reason  # meanwhile: it was too late
        if not isinstance(outcome, list):
            self._granted(outcome, ttl)
            return None
        reason = why_not_extended(outcome, self._operations.quorum)
        if reason != "unavailable":
            self._lose(reason, unless=self._asking)
        return reason

    async def _renew(self, upkeep: Upkeep) -> None:
        try:
            if await self._extend_in_turn(self.ttl) is not None:
                upkeep.failed(now())
        except Exception:  # noqa: BLE001 - there is time for another try
            logger.exception("Error extending %r", self)
            upkeep.failed(now())

    # -- watching ------------------------------------------------------------------------------------------------------

    def _watch(self, max_hold: float | None) -> None:
        """Extend it from now on."""
        self._plan(max_hold)
        self._set_alarm()

    def _lost_at(self) -> float:
        return self._upkeep.lost_at if self._upkeep else self._expires_at

    def _set_alarm(self) -> None:
        """Have the loop look at it when something is due, if there is anybody for whom."""
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        if self._reason is None and (self._upkeep or self._body):
            due = self._upkeep.due if self._upkeep and not self._work else self._lost_at()
            # Not less than a loop's clock can tell: it would go off again and again until it is time.
            pause = min(max(due - now(), 0.001), LONGEST_WAIT)
            self._alarm = asyncio.get_running_loop().call_later(pause, _look, ref(self))

    def _look(self) -> None:
        """Do what is due."""
        upkeep, at = self._upkeep, now()
        if at >= self._lost_at():
            self._lose(self._why_not() or (upkeep.reason if upkeep else "expired"))
        elif upkeep and at >= upkeep.due and not self._work:
            self._start(self._renew(upkeep))
        self._set_alarm()

    def _lose(self, reason: Reason, unless: Collection[object] = ()) -> None:
        """Tell the holder, but do not cancel tasks that are told anyway."""
        if not self._end(reason):
            return
        self._told = True
        self._counters.ended(lost=True)
        self._forget()
        logger.warning("%r is lost", self)
        if self._body and self._body.task not in unless:
            self._body.cancel()
        if self._on_lost:
            self._start(self._tell(self._on_lost))

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
