"""Records as tables: for a terminal, and for the documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .records import OURS, Record, Results, contenders

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Row = tuple[str, ...]

TITLES = {
    "pairs": "lock and unlock, one caller, {condition}, N = {masters}; microseconds",
    "crowd": "{callers} callers of one manager, N = {masters}; pairs a second",
    "hand-over": "hand-over among {callers} processes, N = {masters}; milliseconds from the unlock on",
    "queue": "hand-over after hand-over among {callers} processes, N = {masters}; milliseconds from the unlock on",
    "leases": "{callers} leases with a TTL of {ttl} s are kept, {condition}, N = {masters}",
    "memory": "memory of a process in which one caller locks and unlocks, N = {masters}; MiB",
    "distant": "lock and unlock, one caller, {condition}, N = {masters}; microseconds",
    "first unlock": "first unlock of a new manager, {condition}, N = {masters}; milliseconds",
    "coverage": "masters that have a lock 50 ms after its grant, {condition}, N = {masters}",
    "restarts": "{callers} leases with a TTL of {ttl} s are kept, {condition}, N = {masters}",
    "command": "masters that have a lock when `redlock lock` has ended, N = {masters}; milliseconds",
    "forgotten": "unlock, {condition}, N = {masters}; milliseconds",
    "managers": "lock and unlock, a new manager for each pair, N = {masters}; microseconds",
    "import": "import redlock, beyond a bare interpreter; milliseconds",
}


def number(value: float | None) -> str:
    """Three digits that say something."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004 (three digits)


def ratio(record: Record) -> str:
    """What ours is beside it, with the middle half."""
    return _times(record.ours, record.ours_low, record.ours_high)


def beside_control(record: Record) -> str:
    """How many times its control it is, with the middle half."""
    return _times(record.times, record.times_low, record.times_high)


def _times(median: float | None, low: float | None, high: float | None) -> str:
    return "" if median is None else f"{number(median)} x ({number(low)}-{number(high)})"


Column = tuple[str, "Callable[[Record], str]"]

MEDIAN: tuple[Column, ...] = (
    ("contender", lambda record: record.contender),
    ("median", lambda record: number(record.median)),
    ("middle half", lambda record: f"{number(record.low)}-{number(record.high)}" if record.samples else ""),
)
P99: Column = ("p99", lambda record: number(record.p99))
WORST: Column = ("worst", lambda record: number(record.worst))
HELD_AFTER: Column = ("held after", lambda record: number(record.locked))
FIRST_CALL: Column = ("first call", lambda record: number(record.first))
PAIR: tuple[Column, ...] = (*MEDIAN, P99, HELD_AFTER, FIRST_CALL)
HAND_OVERS: Column = ("hand-overs", lambda record: str(record.samples or ""))
COMMANDS: Column = ("commands each", lambda record: number(record.commands))
HEALTHY: tuple[Column, ...] = (
    ("healthy", lambda record: number(record.control)),
    ("beside healthy", beside_control),
)
TROUBLE: Column = ("trouble", lambda record: record.trouble)
REST: tuple[Column, ...] = (("redlock-rs is", ratio), TROUBLE)
HOLDERS: tuple[Column, ...] = (
    ("locks", lambda record: str(record.samples or "")),
    ("on all masters", lambda record: number(record.whole)),
    ("fewest masters", lambda record: number(record.fewest)),
)
COLUMNS: dict[str, tuple[Column, ...]] = {
    "pairs": (
        *PAIR,
        ("CPU", lambda record: number(record.cpu)),
        ("system calls", lambda record: number(record.calls)),
        *REST,
    ),
    "crowd": (*MEDIAN, *REST),
    "hand-over": (
        *MEDIAN,
        WORST,
        HAND_OVERS,
        COMMANDS,
        TROUBLE,
    ),
    "queue": (
        *MEDIAN,
        P99,
        WORST,
        HAND_OVERS,
        ("each held it", lambda record: f"{record.least}-{record.most} times" if record.samples else ""),
        COMMANDS,
        TROUBLE,
    ),
    "leases": (
        MEDIAN[0],
        ("lost", lambda record: number(record.lost)),
        ("lost too early", lambda record: number(record.early)),
        ("renewals/s", lambda record: number(record.rate)),
        ("CPU each, µs", lambda record: number(record.cpu)),
        ("commands/s", lambda record: number(record.rate and record.commands and record.rate * record.commands)),
        ("bytes a lease", lambda record: number(record.memory)),
        ("beside Python's objects", lambda record: number(_beside(record))),
        TROUBLE,
    ),
    "memory": (
        *MEDIAN,
        WORST,
        ("pairs", lambda record: str(record.samples or "")),
        ("bytes a pair", lambda record: number(record.memory)),
        TROUBLE,
    ),
    "distant": (
        *PAIR,
        *HEALTHY,
        ("connections", lambda record: number(record.connections)),
        ("keys left", lambda record: number(record.left)),
        *REST,
    ),
    "first unlock": (
        *MEDIAN,
        WORST,
        *HEALTHY,
        *REST,
    ),
    "coverage": (MEDIAN[0], *HOLDERS, TROUBLE),
    "restarts": (
        MEDIAN[0],
        ("lost", lambda record: number(record.lost)),
        ("lost too early", lambda record: number(record.early)),
        ("renewals", lambda record: str(record.samples or "")),
        TROUBLE,
    ),
    "command": (*MEDIAN, WORST, *HOLDERS, TROUBLE),
    "forgotten": (
        *MEDIAN,
        WORST,
        ("unlocks", lambda record: str(record.samples or "")),
        ("gone after", lambda record: number(record.gone)),
        TROUBLE,
    ),
    "managers": (
        *MEDIAN,
        P99,
        ("kept", lambda record: number(record.control)),
        ("beside kept", beside_control),
        *REST,
    ),
    "import": (*MEDIAN, *REST),
}


def _beside(record: Record) -> float | None:
    return None if record.memory is None or record.objects is None else record.memory - record.objects


def title(record: Record) -> str:
    """Of the table that a record is in."""
    return TITLES[record.scenario].format(**vars(record))


def table(records: Sequence[Record]) -> list[Row]:
    """Records of one scenario, the heading first; columns that nobody fills are left out."""
    columns = [(name, [cell(record) for record in records]) for name, cell in COLUMNS[records[0].scenario]]
    kept = [(name, *cells) for name, cells in columns if any(cells)]
    return list(zip(*kept, strict=True))


def terminal(records: Sequence[Record]) -> str:
    """One table."""
    columns = [_aligned(column) for column in zip(*table(records), strict=True)]
    heading, *lines = zip(*columns, strict=True)
    rows = (heading, ["-" * len(cell) for cell in heading], *lines)
    return "\n".join([f"\n{title(records[0])}", *("  " + "  ".join(row).rstrip() for row in rows)])


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    right = any(cell.replace(".", "", 1).isdigit() for cell in column)
    return [cell.rjust(width) if right else cell.ljust(width) for cell in column]


def markdown(rows: Sequence[Row]) -> str:
    """A table for a document, its first row the heading."""
    heading, *lines = rows
    rule = ["---", *["--:"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, rule, *lines))


# ---- the one table of the README -------------------------------------------------------------------------------------


def summary(results: Results) -> list[Row]:
    """Who takes how long, in the situations that matter most; beside each number, how many times ours it is."""
    rows: list[Row] = []
    columns = _situations(results)
    names = contenders(record for _, records in columns for record in records)
    for name in names:
        cells = (next((record for record in records if record.contender == name), None) for _, records in columns)
        rows.append((f"**{name}**" if name.startswith(OURS) else name, *(_cell(cell) for cell in cells)))
    return [("", *(heading for heading, _ in columns)), *rows]


def _situations(results: Results) -> list[tuple[str, list[Record]]]:
    pairs = results.where(lambda record: record.scenario == "pairs")
    most = max(record.masters for record in pairs)
    found = {
        f"N = {size}": [r for r in pairs if r.masters == size and r.condition == "healthy"]
        for size in sorted({record.masters for record in pairs})
    }
    for condition in ("one hung", "one dead"):
        found[f"N = {most}, {condition}"] = [r for r in pairs if (r.masters, r.condition) == (most, condition)]
    relays = results.where(lambda record: record.scenario == "hand-over")
    size = max(record.masters for record in relays)
    for callers in sorted({record.callers for record in relays}):
        found[f"hand-over among {callers}, N = {size}"] = [
            r for r in relays if (r.masters, r.callers) == (size, callers)
        ]
    return list(found.items())


def _cell(record: Record | None) -> str:
    if record is None:
        return "–"  # noqa: RUF001 (a dash, for there is nothing to compare)
    if record.median is None:
        return short(record.trouble) or "–"  # noqa: RUF001
    text = time(record.median, record.unit)
    return f"{text} (some: {short(record.trouble)})" if record.trouble else text


def short(trouble: str) -> str:
    """The first reason, without the counts."""
    return trouble.partition("; ")[0].partition(" (")[0]


def time(value: float, unit: str) -> str:
    """In the unit that suits it."""
    micro = value * {"µs": 1, "ms": 1e3}[unit]
    if micro < 1e3:  # noqa: PLR2004 (a millisecond)
        return f"{number(micro)} µs"
    return f"{number(micro / 1e3)} ms" if micro < 1e6 else f"{number(micro / 1e6)} s"  # noqa: PLR2004 (a second)
