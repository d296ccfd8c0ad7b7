"""The thread that extends the leases of one manager while their holders work.

A signal handler may raise between any two steps of the thread that calls, and may call itself. So callers take no lock
that the keeper takes, too: they hand over work by single calls into C, which are done or not done.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from redlock._connections import logger
from redlock._redlock import now

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from redlock._lease import Lease, Upkeep
    from redlock._leasing import Operations

# Seconds after which deadlines are looked at again: while the machine is suspended, what is waited stands still.
LONGEST_WAIT = 1.0


class Kept(weakref.ref["Lease"]):
    """What the keeper knows of a lease: no more than a weak reference, so that it ends with its holder.

    Attributes:
        is_over: whether nothing of it is left at the masters.
        is_owed: whether its holder was kept from releasing it, and the keeper has to.
    """

    __slots__ = ("_key", "_operations", "is_over", "is_owed", "upkeep")

    is_over: bool
    is_owed: bool
    upkeep: Upkeep

    def __eq__(self, other: object) -> bool:
        """Each is itself, also when the lease is gone."""
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __new__(cls, lease: Lease, tell: Callable[[Kept], object], _operations: Operations, _upkeep: Upkeep) -> Self:
        """A reference whose loss is told to ``tell``."""
        return super().__new__(cls, lease, tell)

    def __init__(self, lease: Lease, tell: Callable[[Kept], object], operations: Operations, upkeep: Upkeep) -> None:
        super().__init__(lease, tell)  # type: ignore[call-arg]
        self._operations, self._key, self.upkeep = operations, lease.key, upkeep
        self.is_over = self.is_owed = False

    def give_back(self) -> None:
        """Release it at the masters, now that its holder has dropped it."""
        if not self.is_over:
            self.is_over = True
            self._operations.release(self._key)
            self._operations.counters.ended(lost=False)


class Keeper:
    """Extends leases as their plans say, by one thread that is there only while there are any.

    Of one process: a forked child makes its own.
    """

    def __init__(self) -> None:
        self._news: SimpleQueue[Kept] = SimpleQueue()  # leases to look at: new, released, dropped
        self._kept: set[Kept] = set()  # the thread's own
        self._at_work = threading.Lock()  # held by the thread, and taken by no other

    def kept(self, lease: Lease, operations: Operations, upkeep: Upkeep) -> Kept:
        """What is to be known of a lease in order to keep it."""
        return Kept(lease, self._news.put, operations, upkeep)

    def look_at(self, kept: Kept) -> None:
        """Extend a lease from now on, until it is over or nothing refers to it; or see what has become of it.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._news.put(kept)
        if not self._at_work.locked():
            start_thread(self._run, "redlock-keeper")

    def _run(self) -> None:
        while self._at_work.acquire(blocking=False):  # or there is a thread already
            try:
                self._attend()
            finally:
                self._at_work.release()
            if self._news.empty():  # what has come since would have found us at work
                return

    def _attend(self) -> None:
        """Work until there is no lease left."""
        while (pause := self._tend()) is not None or not self._news.empty():
            with contextlib.suppress(Empty):
                self._take_up(self._news.get(timeout=min(pause or 0.0, LONGEST_WAIT)))

    def _tend(self) -> float | None:
        """Do what is due first, if anything is; the seconds until something is, ``None`` for never."""
        if not self._kept:
            return None
        at = now()
        first = min(self._kept, key=_lost_at)  # to tell a holder in time goes before everything else
        kept = first if _lost_at(first) <= at else min(self._kept, key=_due)
        if (pause := _due(kept) - at) > 0:
            return pause
        lease = kept()
        if lease is None or not lease._tend(_lost_at(first)):  # noqa: SLF001 - its other half
            self._kept.discard(kept)
        return 0.0

    def _take_up(self, kept: Kept) -> None:
        lease = kept()
        try:
            if lease is None:
                self._kept.discard(kept)
                kept.give_back()
            elif kept.is_owed:
                self._kept.discard(kept)
                lease._finish_in_turn()  # noqa: SLF001 - its other half
            elif kept.is_over:
                self._kept.discard(kept)
            else:
                self._kept.add(kept)
        except Exception:  # noqa: BLE001 - there are other leases
            logger.exception("Error releasing what %r refers to", kept)


def start_thread(target: Callable[[], object], name: str) -> None:
    """Start a daemon thread: one that the interpreter does not wait for at its end.

    By one call into C: an exception in the middle of :meth:`threading.Thread.start` can leave a thread that never runs.

    Raises:
        RuntimeError: no thread can be started.
    """
    _thread.start_new_thread(_begin, (target, name))


def _begin(target: Callable[[], object], name: str) -> None:
    """In the new thread, in which no signal handler runs: have another run ``target``, which tools know by its name."""
    try:
        threading.Thread(target=target, name=name, daemon=True).start()
    except RuntimeError:  # that was the last one there was
        target()


def _due(kept: Kept) -> float:
    return kept.upkeep.due


def _lost_at(kept: Kept) -> float:
    return kept.upkeep.lost_at
