"""What a manager counts while it works. `_stats` makes of it what callers see.

Plain additions, without a lock, which a fork could leave taken for ever: exact where one thread runs at a time; on a
free-threaded interpreter two threads that count in the same instant may be counted once.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import ref

from redlock._redlock import now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redlock._lease import LeaseBase

# Upper bounds in seconds, from a round trip in one rack to a wait that somebody notices.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class Times:
    """How often something took how long."""

    counts: list[int]
    sum: float

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count how long the block takes, if it raises nothing."""
        start = now()
        yield
        self.add(now() - start)


class Counters:
    """Of one manager, since it was made; in a forked child they go on from its parent's.

    Attributes:
        failing_releases: masters on which the last release failed, which the log has been told.
    """

    acquired: int
    contended: int
    unavailable: int
    extended: int
    lost: int
    released: int
    fenced: int
    fenced_at_once: int
    wait: Times
    round_trip: Times
    failing_releases: set[object]

    def __init__(self) -> None:
        self.acquired = self.contended = self.unavailable = 0
        self.extended = self.lost = self.released = 0
        self.fenced = self.fenced_at_once = 0
        self._held: set[ref[Any]] = set()
        self._drop = self._held.discard  # one for all
        self.wait = Times()
        self.round_trip = Times()
        self.failing_releases = set()

    def granted(self, waited: float) -> None:
        """Count a lease, for which its caller waited so many seconds."""
        self.acquired += 1
        self.wait.add(waited)

    @property
    def held(self) -> int:
        """How many leases are held."""
        return len(self._held)

    def holds(self, lease: LeaseBase) -> None:
        """Count a lease as held, until :meth:`holds_no_more`, or until nothing refers to it any more."""
        self._held.add(ref(lease, self._drop))

    def holds_no_more(self, lease: LeaseBase) -> None:
        """Do not count it any more."""
        self._held.discard(ref(lease))

    def had_token(self, *, at_once: bool) -> None:
        """Count a fencing token: whether the masters accepted the first that was proposed."""
        self.fenced += 1
        self.fenced_at_once += at_once

    def refused(self, *, contended: bool) -> None:
        """Count a call that got nothing: since others hold it, or since no quorum answered."""
        if contended:
            self.contended += 1
        else:
            self.unavailable += 1

    def ended(self, *, lost: bool) -> None:
        """Count the end of a lease: each is either released or lost."""
        if lost:
            self.lost += 1
        else:
            self.released += 1
