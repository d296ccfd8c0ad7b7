"""What a caller holds until it releases it: :class:`Lease`, and what it shares with asyncio's.

All deadlines are on the engine's clock, :func:`redlock._redlock.now`, which runs on while the machine is
suspended, as the masters' do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import warnings
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

from redlock._connections import logger
from redlock._keeper import LONGEST_WAIT, start_thread
from redlock._outcomes import digest, in_words, loss, why_not_extended
from redlock._redlock import now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from redlock._counters import Counters
    from redlock._keeper import Kept
    from redlock._leasing import Operations
    from redlock._types import Encodable, HeldLike, Reason


T = TypeVar("T")

TICK = 0.002  # seconds between looks at whether it is one's turn; an extension takes a round trip


class Upkeep:
    """When a lease that is kept by extensions is to be extended next, and when it has to be given up.

    Nothing is read and nothing waits in here; times are seconds on :func:`~redlock._redlock.now`.

    Args:
        since: when the lease was granted.
        max_hold: seconds from then in which it may be extended; ``None``: for ever.

    Attributes:
        extend_at: the next extension, a third of the TTL after the last.
        lost_at: when the holder has to be told, unless an extension has succeeded: a little before validity ends, so
            that it can stop in time.
    """

    extend_at: float
    lost_at: float

    def __init__(self, since: float, max_hold: float | None) -> None:
        self._stop_at = since + (inf if max_hold is None else max_hold)
        self.extend_at = self.lost_at = inf
        self._pause = 0.0

    def granted(self, expires_at: float, ttl_ms: int) -> None:
        """Plan anew: from now on validity ends at ``expires_at``."""
        ttl = ttl_ms / 1000
        self.extend_at = expires_at - ttl * 2 / 3
        self.lost_at = expires_at - min(max(ttl / 20, 0.05), ttl / 3)
        self._pause = min(ttl / 20, 1.0)

    def shortened(self, expires_at: float, ttl_ms: int) -> None:
        """Validity may end at ``expires_at``, as was asked for, and ends no later than it would have."""
        before = self.extend_at, self.lost_at
        self.granted(expires_at, ttl_ms)
        self.extend_at, self.lost_at = min(self.extend_at, before[0]), min(self.lost_at, before[1])

    def failed(self, at: float) -> None:
        """Plan the next try after an extension that failed at the moment ``at``."""
        self.extend_at = at + self._pause

    @property
    def due(self) -> float:
        """When there is something to do."""
        return self.lost_at if self.extend_at >= self._stop_at else min(self.extend_at, self.lost_at)

    @property
    def reason(self) -> Reason:
        """Why it will be lost at ``lost_at``: nobody answered, or nobody was asked any more."""
        return "expired" if self.extend_at >= self._stop_at else "unavailable"


class Unreleased:
    """A part of a lease that is extended: warns when it is dropped with the lease, which is to be released instead."""

    _pid = 0  # of no process: one that is half made is silent

    def __init__(self, resource: Any) -> None:
        self._resource = resource
        self._pid = os.getpid()

    def __del__(self) -> None:
        if self._pid == os.getpid() and not sys.is_finalizing():
            message = f"a lease on {self._resource!r:.80} was dropped without having been released"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)


class Released:
    """What an :class:`Unreleased` becomes.

    It is just freed: no code runs then, in which the exception of a signal handler would be lost.
    """


class Latch:
    """An event that happens once. Unlike :class:`threading.Event`, a signal handler may set it while its thread waits.

    A wait may end too early.
    """

    def __init__(self) -> None:
        self._closed = threading.Lock()
        self._closed.acquire()

    def open(self) -> None:
        """End all waits."""
        with contextlib.suppress(RuntimeError):  # it is open
            self._closed.release()

    def wait(self, timeout: float) -> None:
        """Wait so many seconds at most."""
        # Not for long: a signal that comes just before the wait does not interrupt it.
        if self._closed.acquire(timeout=min(max(0.0, timeout), LONGEST_WAIT)):
            self.open()  # for the next who waits


class LeaseBase:
    """A lease, whoever waits: what it is, and whether it can still be relied on.

    Attributes:
        resource: what is held: the very object that was passed.
        key: the proof of ownership, bytes: the value of the resource's key in Redis.
        ttl: how long the masters keep it from each extension on, in milliseconds.
        validity: milliseconds it could be relied on when it was granted or last extended; see :attr:`remaining`.
        masters: each master and what it had said when a quorum had granted.
        token: the fencing token, greater than all before it; ``None`` if none was asked for.
        released_in_time: whether it could still be relied on when it was released; ``None`` before.
    """

    resource: Any
    key: Encodable
    ttl: int
    validity: int
    masters: Sequence[tuple[str, str]]
    token: int | None
    released_in_time: bool | None = None
    _told = False  # of its loss, as opposed to one that merely outlived its validity

    def __init__(
        self,
        resource: Any,
        ttl: int,
        held: HeldLike,
        masters: Sequence[tuple[str, str]],
        counters: Counters,
    ) -> None:
        self.resource, self.key, self.masters = resource, held.key, masters
        self.token = getattr(held, "token", None)
        self._upkeep: Upkeep | None = None
        self._unreleased: Unreleased | None = None
        self._pid = os.getpid()
        # What happens once only. Who comes first is decided by `setdefault`, a single step: neither a thread, nor a
        # signal handler, nor an exception out of one can come in between.
        self._done: dict[str, tuple[Reason | None]] = {}
        self._counters = counters
        self._granted(held, ttl)
        counters.holds(self)

    def __repr__(self) -> str:
        """What is held and how long still; not the key."""
        return f"<{type(self).__name__} on {self.resource!r:.80}, {self._why_not() or f'{self.remaining} ms left'}>"

    @property
    def remaining(self) -> int:
        """Milliseconds it can still be relied on, by our own clock: 0 once it has expired, is lost or released."""
        return 0 if self._why_not() else max(0, int((self._expires_at - now()) * 1000))

    @property
    def holder(self) -> str:
        """A digest of the key, as `inspect` shows it."""
        return digest(self.key if isinstance(self.key, bytes) else str(self.key).encode())

    def ensure(self, min_ms: float = 1) -> None:
        """Make sure that there is time for what is to be done: call it before the write that matters.

        Asks no master.

        Args:
            min_ms: milliseconds that have to be left.

        Raises:
            LockLost: there are fewer, or the lease is lost or released.
        """
        reason = self._why_not()
        if reason is None and self.remaining < min_ms:
            reason = "expired"
        if reason is not None:
            raise loss(self.resource, reason)

    def _why_not(self) -> Reason | None:
        """Why it cannot be relied on; ``None`` while it can."""
        if self._reason is not None:
            return self._reason
        if self._is_inherited():
            return "forked"
        return None if now() < self._expires_at else "expired"

    def _is_inherited(self) -> bool:
        """Whether this process was forked from the one that holds it. Then nothing of it may be touched here."""
        return self._pid != os.getpid()

    def _granted(self, held: HeldLike, ttl: int) -> None:
        self.ttl, self.validity, self._expires_at = ttl, held.validity_ms, held.expires_at
        if self._upkeep:
            self._upkeep.granted(held.expires_at, ttl)

    def _assume_extended(self, ttl: int, seconds: float) -> bool:
        """Assume the worst of an extension that is about to be asked for: it may take effect though it seems to fail.

        Where it sets a shorter time than is left, that is all that can be relied on from now on, whether no quorum
        answers, an exception ends the call or its task is cancelled.

        Args:
            ttl: milliseconds that are asked for.
            seconds: that a lock of that ttl can be relied on from now.

        Returns:
            Whether it ends earlier now.
        """
        expires_at = now() + seconds
        if expires_at >= self._expires_at:
            return False
        self._expires_at = expires_at
        if self._upkeep:
            self._upkeep.shortened(expires_at, ttl)
        return True

    def _plan(self, max_hold: float | None) -> Upkeep:
        """Plan extensions, and warn if it is dropped: without them it would merely lapse."""
        upkeep = Upkeep(now(), max_hold)
        upkeep.granted(self._expires_at, self.ttl)
        self._unreleased = Unreleased(self.resource)
        self._upkeep = upkeep
        return upkeep

    def _is_first(self, what: str, reason: Reason | None = None) -> bool:
        """Whether this is the first time that this happens to it."""
        mine = (reason,)
        return self._done.setdefault(what, mine) is mine

    @property
    def _reason(self) -> Reason | None:
        """Why it was ended; ``None`` if it was not."""
        return self._done.get("end", (None,))[0]

    def _end(self, reason: Reason) -> bool:
        """End it, for the first reason there is.

        Returns:
            Whether this was the first.
        """
        is_first = self._is_first("end", reason)
        if self._unreleased:
            self._unreleased.__class__ = Released  # type: ignore[assignment]
        self._counters.holds_no_more(self)
        return is_first

    def _begin_release(self) -> bool:
        """End it, since it is going to be released.

        Returns:
            Whether that is to be done: not twice.
        """
        if not self._is_first("release"):
            return False
        self._end_for_release()
        return True

    def _end_for_release(self) -> None:
        self._end(self._why_not() or "released")
        if self.released_in_time is None:
            self.released_in_time = self._reason == "released"

    def _end_release(self, *, was_held: bool) -> None:
        """Note what the masters said of the release: whether a quorum had it until then."""
        if not self._is_first("released"):
            return
        self.released_in_time = self.released_in_time and was_held
        if not self._told:
            self._counters.ended(lost=not self.released_in_time)
        if not self.released_in_time:
            logger.warning("%r was released too late: its validity was over, or the masters no longer had it", self)

    def _may_extend_until(self) -> float:
        """No extension may go on beyond: what succeeds after the holder was told of a loss would come too late."""
        return min(self._expires_at, self._upkeep.lost_at) if self._upkeep else self._expires_at

    def _loss_in_body(self) -> Reason | None:
        """What is raised at the end of a block.

        Not that a lease without extensions has outlived its validity: that harmed nobody yet, and is logged.
        """
        if self._told or self._upkeep or self._is_inherited():
            reason = self._why_not()
            return None if reason == "released" else reason
        return None


class Loss:
    """Whether a lease is lost, as an event: what :class:`threading.Event` has for those who wait.

    It is set when a lease is found to be lost, and in any case as soon as our own clock says that it has expired.
    """

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def __repr__(self) -> str:
        return f"<Loss of {self._lease.resource!r:.80}: {self.reason or 'not lost'}>"

    @property
    def reason(self) -> Reason | None:
        """Why it is lost, as :attr:`LockLost.reason`; ``None`` if it is not."""
        reason = self._lease._why_not()  # noqa: SLF001 - a part of the lease
        return None if reason == "released" else reason

    def is_set(self) -> bool:
        """Whether it is lost. A lease that was released in time is not."""
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is lost or released.

        Args:
            timeout: seconds to wait at most; ``None``: no bound.

        Returns:
            Whether it is lost: ``False`` when it has been released, or the timeout is over.
        """
        end = inf if timeout is None else now() + timeout
        lease = self._lease
        while lease._why_not() is None and (left := end - now()) > 0:  # noqa: SLF001
            # An extension puts the end off: then the wait was too short, and is followed by another.
            lease._over.wait(min(left, lease._expires_at - now(), LONGEST_WAIT))  # noqa: SLF001
        return self.is_set()


class Lease(LeaseBase):
    """A lock that is held until its block is left, :meth:`release` is called, or its validity is over.

    Returned by :meth:`Redlock.acquire`, already held. Can be shared between threads. One that is extended is released
    as well when nothing refers to it any more, with a :class:`ResourceWarning`. A forked child does not hold what its
    parent holds: there it is lost.
    """

    def __init__(
        self,
        operations: Operations,
        resource: Any,
        ttl: int,
        held: HeldLike,
        on_lost: Callable[[Lease], object] | None = None,
    ) -> None:
        # One extension at a time, and none after the release: the threads that want to, in the order in which they
        # came; the first may. To come and to go are single steps, so that no exception leaves a thread in here.
        self._turns: dict[int, None] = {}
        self._kept: Kept | None = None
        self._operations = operations
        self._on_lost = on_lost
        self._over = Latch()
        super().__init__(resource, ttl, held, in_words(operations.named(held.votes)), operations.counters)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release; what the body raised is never replaced.

        Raises:
            LockLost: the lease was lost meanwhile, and the body raised nothing.
        """
        reason: Reason | None = None
        try:
            reason = self._loss_in_body()
            self.release()
        except BaseException as failure:
            self._finish_later()
            if error is None or not isinstance(failure, Exception):
                raise
            logger.exception("Error releasing %r", self.resource)
        if error is None and reason is not None:
            raise loss(self.resource, reason)

    @property
    def lost(self) -> Loss:
        """The event of its loss: poll it, or wait for it."""
        return Loss(self)

    def extend(self, ttl: int | None = None) -> None:
        """Set its time to live anew, from now, on a quorum of masters. Never revives what has expired or was taken.

        Args:
            ttl: milliseconds; by default as many as before. Also what further extensions set.

        Raises:
            LockLost: no quorum extended it. Where the reason is ``"unavailable"``, another try may succeed. Until then
                it has its old deadline; or the one that ``ttl`` would have set, if that is earlier, for masters may
                have obeyed whose answers did not come.
            ValueError: a ttl that leaves no validity.
            TypeError: the same, of another type.
            NotImplementedError: a master that is a client without such operations.
        """
        ttl = self.ttl if ttl is None else self._operations.checked(ttl)
        if self._is_inherited():
            # Not even a turn may be waited for: a thread of the parent may have it.
            raise loss(self.resource, "forked")
        ended = self._reason
        try:
            reason = self._in_turn(lambda: self._try_to_extend(ttl, self._may_extend_until()))
        finally:
            if ended is None and "released" in self._done:
                # By a signal handler, meanwhile, whatever it then raised; and it may have been extended since.
                self._operations.release(self.key)
        if reason is not None:
            raise loss(self.resource, reason)

    def release(self) -> None:
        """Give it back on every master; waits for an extension under way. Harmless when done twice.

        Never raises for a master's failure: those are logged. So is a lease that had already expired. An exception
        that a signal handler raises meanwhile does not keep it from being given back.
        """
        if self._is_inherited():
            return  # it is the parent's
        try:
            self._in_turn(self._give_back)
        except BaseException:
            self._finish_later()
            raise

    def _give_back(self) -> None:
        if not self._begin_release():
            return
        self._over.open()
        was_held = self._operations.release(self.key)
        self._end_release(was_held=was_held)
        self._forget()

    def _finish_later(self) -> None:
        """Have the release done that an exception has broken off: by the keeper, if it has one."""
        if self._is_inherited() or not self._is_first("owed"):
            return
        if kept := self._kept:
            kept.is_owed = True
            self._operations.keeper.look_at(kept)
        elif "released" not in self._done:
            with contextlib.suppress(Exception):  # another one is on its way to the caller
                self._finish_in_turn()

    def _finish_in_turn(self) -> None:
        self._in_turn(self._finish)

    def _finish(self) -> None:
        """Release it, whatever has been done of that."""
        self._end_for_release()
        self._over.open()
        if "released" not in self._done:
            self._operations.release(self.key)
            self._end_release(was_held=True)  # as far as can be told: it may have been released before
        self._forget()

    def _start_keeping(self, max_hold: float | None) -> None:
        """Have the keeper extend it.

        Raises:
            RuntimeError: there are no more threads.
        """
        keeper = self._operations.keeper
        self._kept = kept = keeper.kept(self, self._operations, self._plan(max_hold))
        try:
            keeper.look_at(kept)
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
            # At the end of the interpreter, in an exit handler: what it does is most likely done within one TTL.
            self._upkeep = self._kept = None
            kept.is_over = True
            logger.warning("%r is not extended: no thread can be started while the interpreter ends", self)

    def _forget(self) -> None:
        self._over.open()
        if kept := self._kept:
            self._kept = None  # so that nothing is to be done when it is freed
            kept.is_over = True
            self._operations.keeper.look_at(kept)

    def _in_turn(self, work: Callable[[], T]) -> T:
        """Do something when no other thread extends or releases it.

        Not by a lock: a signal handler may call this while its own thread is in here, and may raise at any moment.
        """
        me = threading.get_ident()
        is_nested = me in self._turns
        try:
            self._turns.setdefault(me)
            while not self._is_turn_of(me):
                time.sleep(TICK)
            return work()
        finally:
            if not is_nested:
                self._turns.pop(me, None)

    def _is_turn_of(self, thread: int) -> bool:
        return [*self._turns][0] == thread  # noqa: RUF015 - in one step: others come and go

    def _try_to_extend(self, ttl: int, until: float) -> Reason | None:
        """Extend, with `_turn` held.

        Args:
            ttl: milliseconds.
            until: when to break off.

        Returns:
            Why it could not be extended.
        """
        if (reason := self._why_not()) is not None:
            return reason
        if self._assume_extended(ttl, self._operations.relied_on(ttl)) and (kept := self._kept):
            self._operations.keeper.look_at(kept)  # earlier than it meant to
        outcome = self._operations.extend(self.key, ttl, min(until, self._may_extend_until()))
        if (reason := self._why_not()) is not None:
            return reason  # meanwhile: it was too late
        if not isinstance(outcome, list):
            self._granted(outcome, ttl)
            return None
        reason = why_not_extended(outcome, self._operations.quorum)
        if reason != "unavailable":
            self._lose(reason)
        return reason

    def _lose(self, reason: Reason) -> None:
        """Tell the holder."""
        if not self._end(reason):
            return
        self._told = True
        self._counters.ended(lost=True)
        self._forget()
        logger.warning("%r is lost", self)
        if self._on_lost:
            try:
                # In a thread of its own: the keeper has other leases to extend.
                start_thread(self._tell, "redlock-on-lost")
            except RuntimeError:  # there are no more threads: better late for the others than never for this one
                try:
                    self._tell()
                except BaseException:  # noqa: BLE001 - as in a thread of its own
                    logger.exception("Error in what is called when %r is lost", self)

    def _tell(self) -> None:
        if self._on_lost:
            self._on_lost(self)

    def _tend(self, until: float) -> bool:
        """Do what is due: the keeper calls it, and it never raises.

        Args:
            until: when the keeper has to be back.

        Returns:
            Whether it is to be kept any longer.
        """
        upkeep, at = self._upkeep, now()
        assert upkeep is not None  # noqa: S101
        try:
            if self._reason is not None:
                return False
            if at >= upkeep.lost_at:
                self._lose(self._why_not() or upkeep.reason)
            elif at >= upkeep.due and not self._renew(until):
                upkeep.failed(now())
        except Exception:  # noqa: BLE001 - the keeper has other leases to extend
            logger.exception("Error extending %r", self)
            upkeep.failed(now())
        return True

    def _renew(self, until: float) -> bool:
        """Extend it, unless somebody else is just extending or releasing it.

        Returns:
            Whether it was extended.
        """
        me = threading.get_ident()
        self._turns.setdefault(me)
        try:
            return self._is_turn_of(me) and self._try_to_extend(self.ttl, until) is None
        finally:
            self._turns.pop(me, None)
