"""`make bench-docs`: the tables and plots of the documents, from the newest results."""

from __future__ import annotations

import argparse
import re
import textwrap
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from .plots import draw
from .records import Record, Results
from .tables import markdown, summary, table, title

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HERE = Path(__file__).parent
ROOT = HERE.parent
IMAGES = ROOT / "docs" / "img"
ALT = {
    "pairs": "Lock and unlock with healthy masters: microseconds for each library and number of masters.",
    "faults": "Lock and unlock with one master slow, hung or dead: milliseconds for each library.",
    "crowd": "Pairs a second by the number of threads that share one manager, for each library.",
    "hand-over": "From the unlock until a waiting process holds the lock: milliseconds for each library.",
}
NOTES = {
    "leases": """\
Each lease is renewed at every third of its TTL. The way to each master leads through a proxy in a process of its own,
which shares the processors with what is measured. "Lost too early" are leases that were lost with more time left than
the twentieth of the TTL that a holder has to be told. CPU is that of the process that holds the leases, for a renewal.
Of the bytes by which it grew for a lease, those beside Python's objects are the engine's and the allocators'.""",
}


def readme(results: Results) -> str:
    """The section of the README."""
    return "\n\n".join([markdown(summary(results)), _machine_line(results), _image("faults", "docs/img")])


def performance(results: Results) -> str:
    """The section of docs/performance.md: all that was measured."""
    facts = markdown([("", "measured on and with"), *results.machine.items()])
    images = [_image(name, "img") for name in ALT]
    return "\n\n".join([facts, *images, *_sections(results.records)])


def _sections(records: Iterable[Record]) -> Iterator[str]:
    """A table each, and before the first one of a scenario what must be known to read it."""
    notes = dict(NOTES)
    for group in _tables(records):
        note = notes.pop(group[0].scenario, "")
        yield "\n\n".join(filter(None, [f"### {_heading(group[0])}", note, markdown(table(group))]))


def _tables(records: Iterable[Record]) -> list[list[Record]]:
    return [list(group) for _, group in groupby(records, title)]


def _heading(record: Record) -> str:
    text = title(record)
    return text[0].upper() + text[1:]


def _image(name: str, directory: str) -> str:
    return f"![{ALT[name]}]({directory}/{name}.svg)"


def _machine_line(results: Results) -> str:
    facts = results.machine
    text = (
        "Medians of a lock and its unlock, or of the time from an unlock until another process holds it; in place "
        f"of a number, what happened instead. {facts['cpu']}, {facts['system']}, {facts['python']}, {facts['server']}, "
        f"everything on one machine; a {facts['effort'].partition(',')[0]} run of `make bench`. All the rest, and how "
        "to repeat it, is in [docs/performance.md](docs/performance.md)."
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def insert(path: Path, text: str) -> None:
    """Put ``text`` between the marks that a document has for it.

    Raises:
        ValueError: there are none.
    """
    begin, end = "<!-- bench: begin -->", "<!-- bench: end -->"
    whole = re.compile(f"{begin}.*{end}", re.DOTALL)
    document, times = whole.subn(lambda _: f"{begin}\n\n{text}\n\n{end}", path.read_text())
    if times != 1:
        raise ValueError(f"{path}: expected {begin} and {end}, once")
    path.write_text(document)


def _newest() -> Path:
    found = sorted((HERE / "results").glob("*.json"))
    if not found:
        raise SystemExit("no results: run `make bench` first")
    return found[-1]


def main() -> None:
    """Write everything anew."""
    parser = argparse.ArgumentParser(prog="benches.docs", description="Tables and plots for the documents.")
    parser.add_argument("results", type=Path, nargs="?", help="a JSON of `make bench` (default: the newest)")
    path = parser.parse_args().results or _newest()
    results = Results.load(path)
    draw(results, IMAGES)
    insert(ROOT / "README.md", readme(results))
    insert(ROOT / "docs" / "performance.md", performance(results))
    print(f"README.md, docs/performance.md and docs/img are now those of {path}")


if __name__ == "__main__":
    main()
