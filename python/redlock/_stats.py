"""What :meth:`Redlock.stats` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from redlock._counters import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redlock._counters import Counters, Times
    from redlock._redlock import Engine


@dataclass(frozen=True)
class Histogram:
    """How often something took how long.

    Attributes:
        bounds: upper bounds of the buckets in seconds, rising; the last bucket has none.
        counts: how many fell into each bucket, not into those below: one more than there are bounds.
        sum: seconds in all.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


@dataclass(frozen=True)
class MasterStats:
    """One master, as the calls of this manager and of others with the same masters in this process have seen it.

    Attributes:
        name: as in the log.
        failure: what it last failed with, if it has not answered since; else ``None``.
        errors: how often it answered with an error, or could not be connected to.
        timeouts: how often it gave no answer in time.
    """

    name: str
    failure: str | None
    errors: int
    timeouts: int


@dataclass(frozen=True)
class Stats:
    """What a manager has done so far; a snapshot.

    Attributes:
        acquired: locks and leases granted.
        contended: calls that failed since others held it.
        unavailable: calls that failed since no quorum of masters answered.
        extended: extensions that succeeded, those by ``auto_extend`` among them.
        lost: leases that ended before they were released.
        released: leases released in time, and locks unlocked.
        held: leases held now.
        fenced: leases granted with a fencing token.
        fenced_at_once: how many of those took no second round.
        wait: seconds from a call of ``acquire`` to the lease.
        round_trip: seconds in which the masters answered an extension or a release.
        masters: in the order of ``servers``.
    """

    acquired: int
    contended: int
    unavailable: int
    extended: int
    lost: int
    released: int
    held: int
    fenced: int
    fenced_at_once: int
    wait: Histogram
    round_trip: Histogram
    masters: tuple[MasterStats, ...]


def snapshot(
    counters: Counters, engine: Engine | None, masters: Iterable[tuple[str, tuple[str | None, int, int]]]
) -> Stats:
    """The present counts.

    Args:
        counters: of the manager.
        engine: of the manager, if it has one.
        masters: each one's name, and its failure, errors and timeouts.
    """
    extended, given_back, counts, seconds = engine.renewals() if engine else (0, 0, [0] * (len(BOUNDS) + 1), 0.0)
    asked = counters.round_trip
    round_trip = Histogram(BOUNDS, tuple(map(sum, zip(asked.counts, counts, strict=True))), asked.sum + seconds)
    return Stats(
        acquired=counters.acquired,
        contended=counters.contended,
        unavailable=counters.unavailable,
        extended=counters.extended + extended,
        lost=counters.lost,
        released=counters.released + given_back,
        held=counters.held,
        fenced=counters.fenced,
        fenced_at_once=counters.fenced_at_once,
        wait=_histogram(counters.wait),
        round_trip=round_trip,
        masters=tuple(MasterStats(name, *health) for name, health in masters),
    )


def _histogram(times: Times) -> Histogram:
    return Histogram(BOUNDS, tuple(times.counts), times.sum)
