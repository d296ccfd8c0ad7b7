"""The documentation's examples, run as a reader would: a page from top to bottom, each going on from those before.

What a page leaves to its reader stands in HTML comments, which nobody sees:

    <!-- python              code of the page's own: names that the examples use, checks of what they did
    ...                      (`sh` instead: functions for the shell examples after it)
    -->
    <!-- raises: LockLost -->        what the next block raises
    <!-- not run: why -->            the next block is not run

Masters are ``a:6379`` to ``e:6379``, or ``localhost:6379`` and the two ports after it.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PARTS = re.compile(
    r"""^(?P<indent>[ ]*)```(?P<language>python|sh)\b[^\n]*\n(?P<code>.*?)^(?P=indent)```$
      | ^<!--[ ](?P<hidden>python|sh)\n(?P<unseen>.*?)^-->$
      | ^[ ]*<!--[ ](?P<word>raises|not[ ]run):[ ](?P<detail>.*?)[ ]-->$""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_FENCE = re.compile(r"^ *```(?:python|sh)\b", re.MULTILINE)
_MASTER = re.compile(r"\b(?:([a-e]):6379|localhost:(6379|6380|6381))\b")


@dataclass(frozen=True)
class Block:
    """One example, or what its page keeps from the reader's eyes.

    Attributes:
        page: its name.
        line: of its first line of code.
        language: ``"python"`` or ``"sh"``.
        code: without indentation.
        hidden: whether it stands in a comment.
        raises: the name of the exception that it ends with.
        reason: why it is not run.
    """

    page: str
    line: int
    language: str
    code: str
    hidden: bool = False
    raises: str | None = None
    reason: str | None = None


def blocks(page: Path) -> list[Block]:
    """All examples of a page.

    Raises:
        ValueError: one is not closed, or a comment says something about no example.
    """
    text = page.read_text()
    found = list(_parse(page.name, text))
    if sum(not block.hidden for block in found) != len(_FENCE.findall(text)):
        message = f"{page.name}: a block of code is not understood"
        raise ValueError(message)
    return found


def _parse(page: str, text: str) -> Iterator[Block]:
    said: dict[str, str] = {}
    for part in _PARTS.finditer(text):
        if part["word"]:
            said[part["word"]] = part["detail"]
            continue
        group = "unseen" if part["hidden"] else "code"
        line = text.count("\n", 0, part.start(group)) + 1
        code = textwrap.dedent(part[group])
        if part["hidden"]:
            yield Block(page, line, part["hidden"], code, hidden=True)
        else:
            yield Block(page, line, part["language"], code, False, said.pop("raises", None), said.pop("not run", None))
    if said:
        message = f"{page}: {said} is said about no example"
        raise ValueError(message)


def run(page: Path, masters: Sequence[str], timeout: float = 120.0) -> None:
    """Run a page in a process of its own.

    Args:
        page: which.
        masters: ``host:port`` of each.
        timeout: seconds.

    Raises:
        AssertionError: an example failed; with what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "support.pages", str(page), *masters],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Reader:
    """Who runs the examples of one page."""

    def __init__(self, masters: Sequence[str]) -> None:
        self._masters = masters
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._shell = "set -euo pipefail\n"
        self._loop = asyncio.new_event_loop()

    def run(self, block: Block) -> None:
        """Run one.

        Raises:
            BaseException: whatever it raises.
            AssertionError: it did not raise what it should have.
        """
        try:
            self._run(block)
        except BaseException as error:
            if block.raises is None or block.raises not in (kind.__name__ for kind in type(error).__mro__):
                raise
        else:
            assert block.raises is None, f"{block.page}:{block.line} does not raise {block.raises}"

    def _run(self, block: Block) -> None:
        code = _MASTER.sub(self._place, block.code)
        if block.language == "sh":
            if block.hidden:
                self._shell += code
            else:
                subprocess.run(["bash", "-c", self._shell + code], check=True)
            return
        # As many lines before it as in the page, for the sake of tracebacks.
        compiled = compile("\n" * (block.line - 1) + code, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(compiled, self._names)
        if inspect.iscoroutine(result):
            self._loop.run_until_complete(result)

    def _place(self, found: re.Match[str]) -> str:
        name, port = found.groups()
        return self._masters["abcde".index(name) if name else int(port) - 6379]


def main() -> None:
    """Run the page of the first argument, with the masters of the others."""
    page, *masters = sys.argv[1:]
    reader = Reader(masters)
    for block in blocks(Path(page)):
        if block.reason is None:
            reader.run(block)


if __name__ == "__main__":
    main()
