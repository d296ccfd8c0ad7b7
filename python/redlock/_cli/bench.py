"""``redlock bench``: how long locking takes, from here."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from redlock._cli import masters
from redlock._cli.durations import shown
from redlock._cli.locks import outage
from redlock._cli.output import DONE, NOT_DONE, OUTAGE, Output, is_colourful, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from redlock import Redlock

TTL = 10_000
WARMING = 20  # rounds that are not counted: connections are made, scripts loaded
STEPS = ("lock", "extend", "unlock", "lock + unlock")
PERCENTS = (50, 90, 99, 100)


def bench(options: argparse.Namespace) -> int:
    """``redlock bench``."""
    out = Output(options)
    manager = masters.manager(options, retry_count=1)
    name = f"{options.name}-{secrets.token_hex(4)}"
    first = manager.try_lock(name, TTL)
    if first.lock:
        manager.unlock(first.lock)
    elif first.reason == "unavailable":
        return outage(out, name, first)
    for _ in range(WARMING):
        _round(manager, name)
    times: dict[str, list[float]] = {step: [] for step in STEPS}
    end, failed = time.monotonic() + options.time, 0
    while time.monotonic() < end or not (failed or times["lock"]):
        took = _round(manager, name)
        failed += took is None
        for step, ms in zip(STEPS, took or (), strict=False):
            times[step].append(ms)
    _report(out, manager, times, failed)
    return OUTAGE if not times["lock"] else NOT_DONE if failed else DONE


def _round(manager: Redlock, name: str) -> tuple[float, float, float, float] | None:
    """Milliseconds for each of `STEPS`; ``None`` if there was no lock."""
    start = time.perf_counter()
    lock = manager.lock(name, TTL)
    locked = time.perf_counter()
    if not lock:
        return None
    extended = manager.extend(lock, TTL)
    before = time.perf_counter()
    manager.unlock(lock)
    after = time.perf_counter()
    if not extended:
        return None
    took = locked - start, before - locked, after - before, locked - start + after - before
    return took[0] * 1000, took[1] * 1000, took[2] * 1000, took[3] * 1000


def _report(out: Output, manager: Redlock, times: dict[str, list[float]], failed: int) -> None:
    figures = {
        step: {f"p{percent}": _percentile(sorted(sample), percent) for percent in PERCENTS}
        for step, sample in times.items()
    }
    count = len(times["lock"])
    rows = [(step, *(shown(figure) for figure in figures[step].values())) for step in STEPS]
    text = table(("", ">P50", ">P90", ">P99", ">MAX"), rows, colour=is_colourful())
    rest = f"; {failed} failed: see `redlock doctor`" if failed else ""
    facts = {"masters": masters.names(manager), "rounds": count, "failed": failed, "ms": figures}
    out.result(facts, f"{len(manager.servers)} masters, {count} rounds{rest}\n\n{text}")


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else None
