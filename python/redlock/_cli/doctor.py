"""``redlock doctor``: what breaks locks in production."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redlock._cli.checks import CHECKS, judge
from redlock._cli.durations import shown
from redlock._cli.facts import gather, percentile
from redlock._cli.output import DONE, Output, is_colourful, painted, printable, table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from redlock._cli.checks import Finding
    from redlock._cli.facts import Facts

WARNED, WRONG = 1, 2
_COLOURS = {"wrong": "red", "warning": "yellow", "unknown": "cyan", "ok": "green"}


def doctor(options: argparse.Namespace) -> int:
    """``redlock doctor``."""
    unknown = set(options.ignore) - set(CHECKS)
    if unknown:
        raise ValueError(f"--ignore: no check {min(unknown)!r}; there are {', '.join(CHECKS)}")
    if options.read_only:
        options.ignore.append("trial")
    masters = gather(options)
    findings = judge(masters, options)
    level = findings[0].level if findings else "ok"
    facts = {"masters": [_facts(each) for each in masters], "findings": [each._asdict() for each in findings]}
    Output(options).result({"level": level, **facts}, _shown(masters, findings))
    return {"wrong": WRONG, "ok": DONE}.get(level, WARNED)


def _facts(each: Facts) -> dict[str, Any]:
    product, version = each.server or (None, None)
    return {
        "master": each.name,
        "server": product,
        "version": version,
        "role": (each.info or {}).get("role"),
        "clock_offset_ms": each.offset_ms,
        "p50_ms": percentile(each.round_trips_ms, 50),
        "p99_ms": percentile(each.round_trips_ms, 99),
        "error": each.error,
    }


def _shown(masters: Sequence[Facts], findings: Sequence[Finding]) -> str:
    colour = is_colourful()
    headings = ("MASTER", "SERVER", "ROLE", "AOF", "MEMORY FULL", ">CLOCK", ">P50", ">P99")
    lines = [table(headings, map(_row, masters), colour=colour), ""]
    same: dict[Finding, list[str]] = {}  # as on other masters
    for each in findings:
        same.setdefault(each._replace(master=None), []).append(each.master or "")
    for each, names in same.items():
        light = painted("●" if colour else each.level, _COLOURS[each.level], on=colour)
        whose = ", ".join(filter(None, names))
        lines.append(f"{light} {painted(each.check, 'bold', on=colour)}: {whose}{whose and ' '}{printable(each.what)}")
        lines += [f"    {mark} {text}" for mark, text in (("why:", each.why), ("do: ", each.remedy)) if text]
    return "\n".join(lines)


def _row(each: Facts) -> tuple[str, ...]:
    if each.error is not None:
        return (each.name, "-", "-", "-", "-", "-", "-", "-")
    info, config = each.info or {}, each.config or {}
    aof = "?" if each.info is None else config.get("appendfsync", "?") if info.get("aof_enabled") else "no"
    clock = "?" if each.offset_ms is None else f"{each.offset_ms:+.1f}ms"
    full = str(info.get("maxmemory_policy", "?")) if info.get("maxmemory", 1) else "no limit"
    times = (shown(percentile(each.round_trips_ms, percent)) for percent in (50, 99))
    return (each.name, " ".join(each.server or "?"), str(info.get("role", "?")), aof, full, clock, *times)
