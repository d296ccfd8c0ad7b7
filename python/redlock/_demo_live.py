"""The live table of ``redlock demo``; the one module that needs rich."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from typing_extensions import Self

    from redlock.demo import Act, Master, Phase, Score

STATES = {
    "up": Text("● up", "green"),
    "down": Text("✖ killed", "bold red"),
    "frozen": Text("❄ frozen", "bold cyan"),
    "starting": Text("◌ starts", "yellow"),
}
WORKERS = ("cyan", "magenta", "yellow", "green", "blue", "red")
WIDTH = 80


class LiveView:
    """Masters, locks and phases, redrawn in place.

    Args:
        score: what to show.
        masters: the same.
        seconds: how long the whole will take.
    """

    def __init__(self, score: Score, masters: Sequence[Master], seconds: float) -> None:
        self._score, self._masters, self._seconds = score, masters, seconds
        self._text = ""
        # No thread of rich's: what is shown changes only when `update` says so.
        self._live = Live(auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give it back, with the last table left standing."""
        self._live.stop()

    def begin(self, elapsed: float, act: Act) -> None:
        """Show what happens."""
        self._text = act.text
        self.update(elapsed)

    def update(self, elapsed: float) -> None:
        """Draw."""
        self._live.update(self._picture(min(elapsed, self._seconds)), refresh=True)

    def _picture(self, elapsed: float) -> RenderableType:
        top = Table.grid(padding=(0, 3))
        top.add_row(self._master_table(), self._lock_table())
        body = Group(self._headline(elapsed), "", top, "", self._phase_table())
        return Panel(body, title="redlock demo", subtitle=self._tally(), width=WIDTH, padding=(1, 1))

    def _headline(self, elapsed: float) -> Table:
        line = Table.grid(expand=True)
        line.add_column()
        line.add_column(justify="right", width=24)
        line.add_row(Text(self._text, "bold"), ProgressBar(self._seconds, elapsed, width=24))
        return line

    def _master_table(self) -> Table:
        table = _table("master", "state   ", ">ping ms", ">keys")
        for master in self._masters:
            state, ping_ms, keys = master.reading
            ping = "" if ping_ms is None else f"{ping_ms:.2f}"
            table.add_row(f"{master.number} :{master.port}", STATES[state], ping, "" if keys is None else str(keys))
        return table

    def _lock_table(self) -> Table:
        table = _table("lock", "holder", ">hand-overs")
        for lock, section in sorted(self._score.last.items()):
            holder = Text(f"worker {section.worker}", WORKERS[section.worker % len(WORKERS)])
            table.add_row(lock, holder, str(self._score.hand_overs[lock]))
        return table

    def _phase_table(self) -> Table:
        table = _table("phase", ">sections", ">lock+unlock p50", ">p99", ">hand-over ms")
        now = self._score.phases.index(self._score.phase)
        for number, phase in enumerate(self._score.phases):
            if number > now:
                table.add_row(phase.title, style="bright_black")
            else:
                table.add_row(_marked(phase, on=number == now), *phase.row(), style="bold" if number == now else "")
        return table

    def _tally(self) -> Text:
        sections, overlaps = self._score.sections.total(), self._score.overlaps
        style = "bold white on red" if overlaps else "bold green"
        return Text(f" {sections} critical sections, {overlaps} overlaps ", style)


def _marked(phase: Phase, *, on: bool) -> str:
    return f"{phase.title} ◂" if on else phase.title


def _table(*headings: str) -> Table:
    """A table without lines between rows; a heading with ``>`` before it is for numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bright_black")
    for heading in headings:
        table.add_column(heading.lstrip(">"), justify="right" if heading.startswith(">") else "left", no_wrap=True)
    return table
