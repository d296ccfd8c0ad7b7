"""What is said where: results on stdout, everything else on stderr, or one JSON object per line."""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence
    from typing import Any, TextIO

DONE, NOT_DONE, USAGE, OUTAGE = 0, 1, 2, 3
INTERRUPTED = 130  # as shells count a death by SIGINT

NO_MAJORITY = "no majority of the masters answered"

_COLOURS = {"green": 32, "yellow": 33, "red": 31, "cyan": 36, "dim": 2, "bold": 1}


class Output:
    """Where one call of the command writes.

    Args:
        options: with ``quiet`` and ``json``.
        results: where JSON goes; ``run`` leaves stdout to its command.
    """

    def __init__(self, options: argparse.Namespace, results: TextIO | None = None) -> None:
        self.quiet: bool = options.quiet
        self.json: bool = options.json
        self._results = results or sys.stdout

    def say(self, text: str) -> None:
        """A line for people, on stderr; for what is as it should be, conflicts among it."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """The same, for what must be known: ``--quiet`` does not hide it."""
        if not self.json:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def result(self, facts: dict[str, Any], text: str = "") -> None:
        """The outcome: ``facts`` as JSON if that is asked for, else ``text`` on stdout unless it is empty."""
        if self.json:
            _print(json.dumps(facts, ensure_ascii=False), self._results)
        elif text:
            _print(text, sys.stdout)

    def error(self, text: str, **facts: Any) -> None:
        """What went wrong: a line on stderr, or JSON with ``error``."""
        self.warn(f"error: {text}")
        if self.json:
            self.result({"error": text, **facts})


class CannotWriteError(Exception):
    """Standard output, or where else results go, takes nothing."""


def _print(text: str, stream: TextIO) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWriteError(f"cannot write to standard output: {error.strerror}") from None


def votes(masters: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """What masters said, for JSON."""
    return [{"master": master, "said": said} for master, said in masters]


def is_colourful(stream: TextIO | None = None) -> bool:
    """Whether colours are wanted: on a terminal that has them, and not with NO_COLOR (https://no-color.org)."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, colour: str, *, on: bool) -> str:
    """``text`` in a colour, or as it is."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if on and text else text


def printable(text: str) -> str:
    """A name that others chose, without what would control the terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, colour: bool = False) -> str:
    """Columns under headings; a heading with ``>`` before it is for numbers."""
    names = [heading.lstrip(">") for heading in headings]
    body = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if heading.startswith(">") else cell.ljust(width)
            for cell, width, heading in zip(cells, widths, headings, strict=True)
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([painted(line(names), "dim", on=colour), *map(line, body)])
