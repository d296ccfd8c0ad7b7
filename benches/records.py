"""What was measured: one flat record for each number that a table or a plot shows, kept as JSON and as CSV."""

from __future__ import annotations

import csv
import json
import statistics
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

OURS = "redlock-rs"


class Spread(NamedTuple):
    """A median and the middle half around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        """Of at least one number."""
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        low, median, high = statistics.quantiles(sample, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass
class Record:
    """One contender in one situation.

    Attributes:
        scenario: as the keys of ``tables.TITLES``.
        condition: of the masters, as `Condition` names it.
        masters: how many.
        callers: how many at once; of leases, how many are kept.
        contender: who.
        unit: of the numbers that follow.
        samples: how many; 0 if it could not do it at all, and then the numbers are None.
        median: of all samples, with the quartiles in ``low`` and ``high``.
        p99: the percentile.
        worst: the largest.
        locked: the median until the lock was held, where the number is of lock and unlock together.
        first: the first one with a master broken.
        control: the median over turns of the same contender where nothing is wrong, in the same turns.
        times: what it is beside its control: the median over turns of one's median divided by the other's.
        ours: what `OURS` is beside this contender: the median over turns of one's median divided by the other's.
        cpu: microseconds of processor time for an operation, in the contender's process.
        calls: system calls for an operation (or what else ``machine["system calls"]`` says was counted).
        commands: that all masters together carried out for an operation.
        least: how often the one held the lock who got it least often, and in ``most`` who got it most often.
        connections: to the first master, at most.
        left: keys that are left on the first master.
        whole: of the samples, how many locks all masters had; in ``fewest`` how many masters had the lock that the
            fewest had.
        gone: milliseconds from the return of an unlock until no master had the key, at most.
        ttl: seconds, of leases.
        rate: operations a second.
        lost: leases that were lost, and in ``early`` those of them that had more time than the holder needs to be told.
        memory: bytes by which the process grew for an operation or a lease; in ``objects`` what Python's objects are.
        trouble: what went wrong, if anything did.
    """

    scenario: str
    condition: str
    masters: int
    callers: int
    contender: str
    unit: str
    samples: int = 0
    median: float | None = None
    low: float | None = None
    high: float | None = None
    p99: float | None = None
    worst: float | None = None
    locked: float | None = None
    first: float | None = None
    control: float | None = None
    times: float | None = None
    times_low: float | None = None
    times_high: float | None = None
    ours: float | None = None
    ours_low: float | None = None
    ours_high: float | None = None
    cpu: float | None = None
    calls: float | None = None
    commands: float | None = None
    least: int | None = None
    most: int | None = None
    connections: int | None = None
    left: int | None = None
    whole: int | None = None
    fewest: int | None = None
    gone: float | None = None
    ttl: int = 0
    rate: float | None = None
    lost: int | None = None
    early: int | None = None
    memory: float | None = None
    objects: float | None = None
    trouble: str = ""

    def fill(self, sample: Sequence[float]) -> None:
        """Describe a sample, which may be empty."""
        self.samples = len(sample)
        if sample:
            self.median, self.low, self.high = Spread.of(sample)
            self.worst = max(sample)
        if len(sample) > 1:
            self.p99 = statistics.quantiles(sample, n=100, method="inclusive")[98]

    def count(self, holders: Sequence[int]) -> None:
        """Describe locks by how many masters had each of them."""
        self.samples = len(holders)
        if holders:
            self.whole, self.fewest = holders.count(self.masters), min(holders)

    def compare(self, ours: Sequence[float | None], theirs: Sequence[float | None]) -> None:
        """Set ours beside theirs, turn by turn."""
        if ratios := _ratios(ours, theirs):
            self.ours, self.ours_low, self.ours_high = Spread.of(ratios)

    def check(self, turns: Sequence[float | None], control: Sequence[float | None]) -> None:
        """Set it beside its control, turn by turn."""
        if medians := [each for each in control if each]:
            self.control = statistics.median(medians)
        if ratios := _ratios(turns, control):
            self.times, self.times_low, self.times_high = Spread.of(ratios)


def _ratios(some: Sequence[float | None], others: Sequence[float | None]) -> list[float]:
    """Of each turn; one in which one of them had nothing does not count."""
    return [a / b for a, b in zip(some, others, strict=False) if a and b]


@dataclass
class Results:
    """One run.

    Attributes:
        machine: what a reader must know to compare its numbers with others.
        records: in the order in which they were measured.
    """

    machine: dict[str, str]
    records: list[Record]

    def where(self, condition: Callable[[Record], bool]) -> list[Record]:
        """Some of the records."""
        return [record for record in self.records if condition(record)]

    def save(self, directory: Path, name: str) -> Path:
        """Write both files.

        Returns:
            The path of the JSON.
        """
        directory.mkdir(parents=True, exist_ok=True)
        rows = [asdict(record) for record in self.records]
        path = directory / f"{name}.json"
        path.write_text(json.dumps({"machine": self.machine, "records": rows}, indent=1) + "\n")
        with (directory / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Record)])
            writer.writeheader()
            writer.writerows(rows)
        return path

    @classmethod
    def load(cls, path: Path) -> Results:
        """What `save` has written."""
        content = json.loads(path.read_text())
        return cls(content["machine"], [Record(**row) for row in content["records"]])


def contenders(records: Iterable[Record]) -> list[str]:
    """Their names, ours first, then in the order in which they were measured."""
    names = dict.fromkeys(record.contender for record in records)
    return sorted(names, key=lambda name: not name.startswith(OURS))
