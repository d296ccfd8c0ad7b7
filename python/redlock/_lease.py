"""What a caller holds until it releases it: :class:`Lease`, and what it shares with asyncio's.

All deadlines are on the engine's clock, :func:`redlock._redlock.now`, which runs on while the machine is
suspended, as the masters' do.
"""

from __future__ import annotations

import os
import threading
from math import inf
from typing import TYPE_CHECKING, Any

from redlock._connections import logger
from redlock._outcomes import digest, in_words, loss, why_not_extended
from redlock._redlock import now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from redlock._leasing import Operations
    from redlock._types import Encodable, HeldLike, Reason


# Seconds after which deadlines are looked at again: while the machine is suspended, what is waited stands still.
LONGEST_WAIT = 1.0


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
    _reason: Reason | None = None
    _told = False  # of its loss, as opposed to one that merely outlived its validity

    def __init__(self, resource: Any, ttl: int, held: HeldLike, masters: Sequence[tuple[str, str]]) -> None:
        self.resource, self.key, self.masters = resource, held.key, masters
        self.token = getattr(held, "token", None)
        self._upkeep: Upkeep | None = None
        self._pid = os.getpid()
        self._once = threading.Lock()
        self._granted(held, ttl)

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

    def _keep(self, max_hold: float | None) -> None:
        """Plan extensions."""
        self._upkeep = Upkeep(now(), max_hold)
        self._upkeep.granted(self._expires_at, self.ttl)

    def _end(self, reason: Reason) -> bool:
        """End it, for the first reason there is.

        Returns:
            Whether this was the first.
        """
        with self._once:  # the keeper may give it up just when it is released
            first = self._reason is None
            self._reason = self._reason or reason
        return first

    def _begin_release(self) -> bool:
        """End it, since it is going to be released.

        Returns:
            Whether that is to be done: not twice.
        """
        if self.released_in_time is not None:
            return False
        self._end(self._why_not() or "released")
        self.released_in_time = self._reason == "released"
        return True

    def _end_release(self, *, was_held: bool) -> None:
        """Note what the masters said of the release: whether a quorum had it until then."""
        self.released_in_time = self.released_in_time and was_held
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

    Returned by :meth:`Redlock.acquire`, already held. Can be shared between threads. A forked child does not hold
    what its parent holds: there it is lost.
    """

    def __init__(
        self,
        operations: Operations,
        resource: Any,
        ttl: int,
        held: HeldLike,
        on_lost: Callable[[Lease], object] | None = None,
    ) -> None:
        super().__init__(resource, ttl, held, in_words(operations.named(held.votes)))
        self._operations = operations
        self._on_lost = on_lost
        self._over = threading.Event()
        # One extension at a time, and none after the release. The lock can be taken again by the same thread: a signal
        # handler may want to release while an extension is under way.
        self._turn = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release; what the body raised is never replaced.

        Raises:
            LockLost: the lease was lost meanwhile, and the body raised nothing.
        """
        reason = self._loss_in_body()
        try:
            self.release()
        except Exception:
            if error is None:
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
            raise loss(self.resource, "forked")  # not even the lock may be touched: a thread of the parent may hold it
        with self._turn:
            reason = self._try_to_extend(ttl, self._may_extend_until())
        if reason is not None:
            raise loss(self.resource, reason)

    def release(self) -> None:
        """Give it back on every master; waits for an extension under way. Harmless when done twice.

        Never raises for a master's failure: those are logged. So is a lease that had already expired.
        """
        if self._is_inherited():
            return  # it is the parent's
        with self._turn:
            if not self._begin_release():
                return
        self._forget()
        was_held = self._operations.release(self.key)
        self._end_release(was_held=was_held)
        if not self._told:
            self._operations.counters.ended(lost=not self.released_in_time)

    def _forget(self) -> None:
        self._over.set()
        if self._upkeep:
            self._operations.keeper.drop(self)

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
        if self._assume_extended(ttl, self._operations.relied_on(ttl)) and self._upkeep:
            self._operations.keeper.keep(self)  # it has to look at it earlier than it meant to
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
        self._operations.counters.ended(lost=True)
        self._forget()
        logger.warning("%r is lost", self)
        if self._on_lost:
            # In a thread of its own: the keeper has other leases to extend.
            threading.Thread(target=self._on_lost, args=(self,), name="redlock-on-lost", daemon=True).start()

    def _tend(self, until: float) -> None:
        """Do what is due: the keeper calls it, and it never raises.

        Args:
            until: when the keeper has to be back.
        """
        upkeep, at = self._upkeep, now()
        assert upkeep is not None  # noqa: S101
        try:
            if at >= upkeep.lost_at:
                self._lose(self._why_not() or upkeep.reason)
            elif at >= upkeep.due and not self._renew(until):
                upkeep.failed(now())
        except Exception:  # noqa: BLE001 - the keeper has other leases to extend
            logger.exception("Error extending %r", self)
            upkeep.failed(now())

    def _renew(self, until: float) -> bool:
        """Extend it, unless somebody else is just extending or releasing it.

        Returns:
            Whether it was extended.
        """
        if not self._turn.acquire(blocking=False):
            return False
        try:
            return self._try_to_extend(self.ttl, until) is None
        finally:
            self._turn.release()
