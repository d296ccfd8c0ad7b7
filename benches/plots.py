"""The plots of the documents: the same records give the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .contenders import RAW
from .records import OURS, Record, Results, contenders
from .tables import number, short, time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

# Ours stands out; the others are told apart. Wong's palette, which the colour-blind can tell apart as well.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLE = {
    "svg.hashsalt": "redlock",  # instead of random names
    "svg.fonttype": "none",  # text stays text: small files, readable differences
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw(results: Results, directory: Path) -> None:
    """Write all plots."""
    directory.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Results], Figure]] = {
        "pairs": _pairs,
        "faults": _faults,
        "crowd": _crowd,
        "hand-over": _hand_over,
    }
    with mpl.rc_context(STYLE):
        for name, plot in plots.items():
            plot(results).savefig(
                directory / f"{name}.svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight"
            )


def _pairs(results: Results) -> Figure:
    records = results.where(lambda record: (record.scenario, record.condition) == ("pairs", "healthy"))
    panels = {f"N = {size}": [r for r in records if r.masters == size] for size in sorted({r.masters for r in records})}
    return _panels("lock and unlock, healthy masters", panels)


def _faults(results: Results) -> Figure:
    records = results.where(lambda record: record.scenario == "pairs")
    most = max(record.masters for record in records)
    conditions = ("healthy", "one slow", "one hung", "one dead")
    panels = {name: [r for r in records if (r.masters, r.condition) == (most, name)] for name in conditions}
    # The raw sockets wait for all, and were not asked.
    panels["healthy"] = [record for record in panels["healthy"] if not record.contender.startswith(RAW)]
    return _panels(f"lock and unlock, N = {most}", panels)


def _hand_over(results: Results) -> Figure:
    records = results.where(lambda record: record.scenario == "hand-over")
    groups = sorted({(record.masters, record.callers) for record in records})
    panels = {
        f"N = {size}, {callers} processes": [r for r in records if (r.masters, r.callers) == (size, callers)]
        for size, callers in groups
    }
    return _panels("from the unlock until another process holds the lock", panels)


def _panels(title: str, panels: dict[str, list[Record]]) -> Figure:
    """Contenders below each other; a dot for the median, a line for the middle half, on a scale of powers of ten."""
    names = contenders(record for records in panels.values() for record in records)
    figure = Figure(figsize=(2.6 * len(panels) + 1, 0.34 * len(names) + 1), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    figure.suptitle(title)
    for axis, (heading, records) in zip(axes, panels.items(), strict=True):
        axis.set_title(heading, fontsize=9)
        axis.set_xscale("log")
        axis.grid(axis="x", alpha=0.3)
        axis.set_ylim(len(names) - 0.5, -0.6)
        axis.set_yticks(range(len(names)), names)
        for record in records:
            _dot(axis, names.index(record.contender), record)
    axes[0].xaxis.set_major_formatter(lambda value, _: time(value, "µs"))
    return figure


def _dot(axis: Any, place: int, record: Record) -> None:
    if record.median is None or record.low is None or record.high is None:
        axis.text(0.02, place, short(record.trouble), transform=axis.get_yaxis_transform(), va="center", fontsize=7)
        return
    micro = {"µs": 1, "ms": 1e3}[record.unit]
    colour = COLOURS[0 if record.contender.startswith(OURS) else -1]
    axis.plot([record.low * micro, record.high * micro], [place, place], color=colour, alpha=0.5, linewidth=3)
    axis.plot([record.median * micro], [place], "o", color=colour, markersize=5)
    label = time(record.median, record.unit) + (" (some fail)" if record.trouble else "")
    axis.annotate(label, (record.median * micro, place), (0, 5), textcoords="offset points", ha="center", fontsize=7)


def _crowd(results: Results) -> Figure:
    records = results.where(lambda record: record.scenario == "crowd" and bool(record.samples))
    figure = Figure(figsize=(6.4, 3.2))
    axis = figure.subplots()
    axis.set_xscale("log", base=2)
    axis.set_ylim(0, max(record.high or 0 for record in records) * 1.05)
    axis.set_xticks(sorted({record.callers for record in records}))
    axis.xaxis.set_major_formatter(lambda value, _: number(value))
    axis.set_xlabel("threads that share one manager (under asyncio: tasks)")
    axis.set_title(f"pairs of lock and unlock a second, N = {records[0].masters}")
    axis.grid(alpha=0.3)
    for name, colour in zip(contenders(records), COLOURS, strict=False):
        _line(axis, [record for record in records if record.contender == name], colour)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _line(axis: Any, records: Sequence[Record], colour: str) -> None:
    callers = [record.callers for record in records]
    low, high = [record.low or 0 for record in records], [record.high or 0 for record in records]
    axis.fill_between(callers, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.plot(callers, [record.median or 0 for record in records], "o-", color=colour, label=records[0].contender)
