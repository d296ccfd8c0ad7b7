"""The thread that extends the leases of one manager while their holders work."""

from __future__ import annotations

import threading
from math import inf
from typing import TYPE_CHECKING

from redlock._lease import LONGEST_WAIT
from redlock._redlock import now

if TYPE_CHECKING:
    from redlock._lease import Lease


class Keeper:
    """Extends leases as their plans say, by one thread that is there only while there are any.

    Of one process: a forked child makes its own.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._kept: set[Lease] = set()
        self._thread: threading.Thread | None = None

    def keep(self, lease: Lease) -> None:
        """Extend it from now on.

        Raises:
            RuntimeError: no thread can be started.
        """
        with self._changed:
            self._kept.add(lease)
            if self._thread is None:
                # Not one that the interpreter waits for at its end: what is still held then lapses.
                thread = threading.Thread(target=self._run, name="redlock-keeper", daemon=True)
                thread.start()
                self._thread = thread
            self._changed.notify()

    def drop(self, lease: Lease) -> None:
        """Extend it no more."""
        with self._changed:
            self._kept.discard(lease)
            self._changed.notify()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            lease, until = work
            lease._tend(until)  # noqa: SLF001 - its other half

    def _next(self) -> tuple[Lease, float] | None:
        """Wait for the next lease that is due; ``None``, and the end of the thread, when there is none left."""
        with self._changed:
            while self._kept:
                at = now()
                first = min(self._kept, key=_lost_at)  # to tell a holder in time goes before everything else
                lease = first if _lost_at(first) <= at else min(self._kept, key=_due)
                if (pause := _due(lease) - at) <= 0:
                    return lease, _lost_at(first)
                self._changed.wait(min(pause, LONGEST_WAIT))
            self._thread = None
            return None


def _due(lease: Lease) -> float:
    return lease._upkeep.due if lease._upkeep else inf  # noqa: SLF001


def _lost_at(lease: Lease) -> float:
    return lease._upkeep.lost_at if lease._upkeep else inf  # noqa: SLF001
