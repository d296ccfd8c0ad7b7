"""What a caller holds until it releases it: :class:`Lease`, and what it shares with asyncio's.

All deadlines are on the engine's clock, :func:`redlock._redlock.now`, which runs on while the machine is
suspended, as the masters' do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from math import inf
from typing import TYPE_CHECKING, Any

from redlock._connections import logger
from redlock._keeper import LONGEST_WAIT, start_thread
from redlock._outcomes import digest, loss
from redlock._redlock import now

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from redlock._leasing import Operations
    from redlock._redlock import LeaseState
    from redlock._terms import Terms
    from redlock._types import Encodable, HeldLike, Reason


class Unreleased:
    """A part of a lease that is extended: warns when it is dropped with the lease, which is to be released instead."""

    __slots__ = ("_pid", "_resource")

    def __init__(self, resource: Any) -> None:
        self._resource = resource
        self._pid = os.getpid()

    def __del__(self) -> None:
        # One that is half made is silent.
        if getattr(self, "_pid", None) == os.getpid() and not sys.is_finalizing():
            message = f"a lease on {self._resource!r:.80} was dropped without having been released"
            warnings.warn(message, ResourceWarning, stacklevel=2, source=self)


class Released:
    """What an :class:`Unreleased` becomes.

    It is just freed: no code runs then, in which the exception of a signal handler would be lost.
    """

    __slots__ = Unreleased.__slots__  # or it could not be one


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
        token: the fencing token, greater than all before it; ``None`` if none was asked for.
    """

    resource: Any
    key: Encodable
    token: int | None

    # There may be thousands: what few of them need is made when it is needed.

    def __init__(self, operations: Terms[Any], resource: Any, ttl: int, held: HeldLike) -> None:
        self.resource, self.key = resource, held.key
        self.token = getattr(held, "token", None)
        self._operations = operations
        self._names, self._votes = operations.backend.names, tuple(map(str, held.votes))
        self._state: LeaseState = operations.hold(held, ttl)
        self._unreleased: Unreleased | None = None
        self._number: int | None = None  # that its keeper knows it by
        operations.counters.holds(self)

    def __repr__(self) -> str:
        """What is held and how long still; not the key."""
        return f"<{type(self).__name__} on {self.resource!r:.80}, {self._why_not() or f'{self.remaining} ms left'}>"

    @property
    def masters(self) -> Sequence[tuple[str, str]]:
        """Each master and what it had said when a quorum had granted; ``"granted"`` once it has the lock."""
        said = zip(self._names, self._votes, strict=False)
        return [(name, "granted" if self._state.is_at(index) else vote) for index, (name, vote) in enumerate(said)]

    @property
    def ttl(self) -> int:
        """How long the masters keep it from each extension on, in milliseconds."""
        return self._state.ttl_ms

    @property
    def validity(self) -> int:
        """Milliseconds it could be relied on when it was granted or last extended; see :attr:`remaining`."""
        return self._state.validity_ms

    @property
    def remaining(self) -> int:
        """Milliseconds it can still be relied on, by our own clock: 0 once it has expired, is lost or released."""
        return self._state.remaining_ms

    @property
    def released_in_time(self) -> bool | None:
        """Whether it could still be relied on when it was released; ``None`` before."""
        return self._state.released_in_time

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
        return self._state.why_not

    def _is_inherited(self) -> bool:
        """Whether this process was forked from the one that holds it. Then nothing of it may be touched here."""
        return self._state.why_not == "forked"

    def _is_first(self, what: str) -> bool:
        """Whether this is the first time that this happens to it.

        In a single step: neither a thread, nor a signal handler, nor an exception out of one can come in between.
        """
        mine = object()
        return vars(self).setdefault(f"_first_{what}", mine) is mine

    def _end(self) -> None:
        """It has ended: it is lost or about to be released."""
        if self._unreleased:
            self._unreleased.__class__ = Released  # type: ignore[assignment]
        self._operations.counters.holds_no_more(self)
        if self._number is not None:
            self._operations.keeper.forget(self._number)

    def _note_release(self) -> None:
        """Count a release, and say so if it came too late."""
        if not self._is_first("released"):
            return
        in_time = self.released_in_time is not False
        if not self._state.is_told:
            self._operations.counters.ended(lost=not in_time)
        if not in_time:
            logger.warning("%r was released too late: its validity was over, or the masters no longer had it", self)

    def _tell_loss(self) -> None:
        """Count it, tell the holder and log it, if it is lost and that was not done yet."""
        if not self._state.is_told or not self._is_first("told"):
            return
        self._end()
        self._operations.counters.ended(lost=True)
        self._tell_holder()
        logger.warning("%r is lost", self)  # last: a log handler may raise

    def _tell_holder(self) -> None:
        """Wake those who wait for the loss, and have ``on_lost`` called."""
        raise NotImplementedError

    def _on_event(self, what: str, ttl: int) -> None:
        """Do what the engine asks for: in the thread of the keeper."""
        raise NotImplementedError

    def _loss_in_body(self) -> Reason | None:
        """What is raised at the end of a block.

        Not that a lease without extensions has outlived its validity: that harmed nobody yet, and is logged.
        """
        if self._state.is_told or self._state.is_kept or self._is_inherited():
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
        lease, over = self._lease, self._lease._when_over()  # noqa: SLF001
        while lease._why_not() is None and (left := end - now()) > 0:  # noqa: SLF001
            # An extension puts the end off: then the wait was too short, and is followed by another.
            over.wait(min(left, lease._state.expires_at - now(), LONGEST_WAIT))  # noqa: SLF001
        return self.is_set()


class Lease(LeaseBase):
    """A lock that is held until its block is left, :meth:`release` is called, or its validity is over.

    Returned by :meth:`Redlock.acquire`, already held. Can be shared between threads. One that is extended is released
    as well when nothing refers to it any more, with a :class:`ResourceWarning`. A forked child does not hold what its
    parent holds: there it is lost.
    """

    _operations: Operations
    _over: Latch | None = None

    def __init__(
        self,
        operations: Operations,
        resource: Any,
        ttl: int,
        held: HeldLike,
        on_lost: Callable[[Lease], object] | None = None,
    ) -> None:
        self._on_lost = on_lost
        super().__init__(operations, resource, ttl, held)

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
            self._release_later()
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
            raise loss(self.resource, "forked")
        reason = self._operations.extend_lease(ttl)
        if reason is not None:
            self._tell_loss()
            raise loss(self.resource, reason)

    def release(self) -> None:
        """Give it back on every master; waits for an extension under way. Harmless when done twice.

        Never raises for a master's failure: those are logged. So is a lease that had already expired. An exception
        that a signal handler raises meanwhile does not keep it from being given back.
        """
        try:
            if self._is_inherited():
                return  # it is the parent's
            self._operations.release_lease()
            self._end_release()
        except BaseException:
            self._release_later()
            raise

    def _when_over(self) -> Latch:
        """What opens when it is over. Who asks for it looks after that whether it is over already."""
        latch: Latch = vars(self).setdefault("_over", Latch())
        return latch

    def _end_release(self) -> None:
        self._open_latch()
        self._end()
        self._note_release()

    def _open_latch(self) -> None:
        if self._over:
            self._over.open()

    def _release_later(self) -> None:
        """Have the release done that an exception has broken off."""
        if self._is_inherited():
            return
        self._state.release_later()
        self._end_release()

    def _keep(self, max_hold: float | None) -> None:
        """Have the engine renew it.

        Raises:
            RuntimeError: there are no more threads.
        """
        self._unreleased = Unreleased(self.resource)
        try:
            self._number = self._operations.keeper.keep(self, max_hold, self._operations.giving_back())
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
            # At the end of the interpreter, in an exit handler: what it does is most likely done within one TTL.
            self._unreleased.__class__ = Released  # type: ignore[assignment]
            logger.warning("%r is not extended: no thread can be started while the interpreter ends", self)

    def _on_event(self, what: str, ttl: int) -> None:
        if what == "renew":
            self._operations.extend_lease(ttl)
        elif what == "give back":
            self.release()
        elif what == "news":
            self._operations.write_log()
        self._tell_loss()

    def _tell_holder(self) -> None:
        self._open_latch()
        if self._on_lost:
            try:
                # In a thread of its own: the keeper has other leases to tell of.
                start_thread(self._tell, "redlock-on-lost")
            except RuntimeError:  # there are no more threads: better late for the others than never for this one
                try:
                    self._tell()
                except BaseException:  # noqa: BLE001 - as in a thread of its own
                    logger.exception("Error in what is called when %r is lost", self)

    def _tell(self) -> None:
        if self._on_lost:
            self._on_lost(self)
