"""The contenders: processes that lock and unlock when told, each in the environment of its library."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .meters import cpu_seconds
from .records import OURS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

HERE = Path(__file__).parent
WORKER = HERE / "worker.py"
RAW = "raw sockets"  # without any library: how the names of the probes begin
START = 60.0  # seconds until a contender must have started, with twenty others on a busy machine


class Library(NamedTuple):
    """Something to lock with.

    Attributes:
        name: for tables.
        environment: under .venvs; empty for this one.
        adapter: in `worker.py`.
        most: masters that it can lock on.
    """

    name: str
    environment: str
    adapter: str
    most: int = 99

    def command(self, environments: Path) -> list[str]:
        """How to start `worker.py`, without the URLs."""
        python = environments / self.environment / "bin" / "python" if self.environment else Path(sys.executable)
        return [str(python), "-W", "ignore", str(WORKER), self.adapter]


LIBRARIES = (
    Library(OURS, "", "redlock"),
    Library(f"{OURS} asyncio", "", "redlock-asyncio"),
    Library("redlock-py", "redlock-py", "redlock"),
    Library("pottery", "pottery", "pottery"),
    Library("redis-py Lock", "redis-py", "redis-py", most=1),
    Library("redlock (glasslion)", "glasslion", "glasslion"),
    Library("aioredlock", "aioredlock", "aioredlock"),
)

RAW_FROM_PYTHON = Library(f"{RAW}, Python", "", "raw")


def plain_environment() -> dict[str, str]:
    """As a user starts Python: not with our modules, and with bytecode that the start before has left."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


class Unable(Exception):  # noqa: N818 (an answer as good as another)
    """A contender cannot go on; why, is for the tables."""


class Contender:
    """A child process that times itself on command.

    Args:
        name: for the tables.
        command: how to start it.

    Attributes:
        pid: of the process.
        version: what it says it is.
        locked: microseconds until held, of all pairs.
        pairs: microseconds until released.
        turns: the median pair of each turn; None for a turn without any.
        failed: pairs that came to nothing, by what was raised.
        cpu: seconds of processor time for all pairs, failed ones included.
        spent: seconds that it was given.
        trouble: why it takes no more turns; empty while it does.
        work: what it is asked for in a turn.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self.version, self.trouble, self.work = name, "", "", "pairs"
        self.forget()
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=plain_environment()
        )
        self.pid = self._child.pid

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the child."""
        self.close()

    def forget(self) -> None:
        """Drop what was measured while warming up."""
        self.locked: list[float] = []
        self.pairs: list[float] = []
        self.turns: list[float | None] = []
        self.failed: Counter[str] = Counter()
        self.cpu: float | None = 0.0
        self.spent = 0.0

    # -- asking --------------------------------------------------------------------------------------------------------

    def greet(self) -> None:
        """Wait until it has started; notes its `trouble` if it cannot."""
        try:
            self.version = self.receive(START)["version"]
        except Unable as error:
            self.trouble = str(error)

    def send(self, question: str) -> None:
        """Ask; `receive` has the answer.

        Raises:
            Unable: it is gone.
        """
        assert self._child.stdin is not None  # noqa: S101 (for mypy: both are pipes)
        try:
            self._child.stdin.write(question.encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise Unable("gone") from None

    def fileno(self) -> int:
        """What gets readable when there is an answer."""
        assert self._child.stdout is not None  # noqa: S101
        return self._child.stdout.fileno()

    def receive(self, bound: float) -> dict[str, Any]:
        """An answer, within ``bound`` seconds.

        Raises:
            Unable: there was none, or it was that this cannot be done; the child has been ended.
        """
        assert self._child.stdout is not None  # noqa: S101
        ready, _, _ = select.select([self], [], [], bound)
        line = self._child.stdout.readline() if ready else b""
        answer: dict[str, Any] = json.loads(line or "{}")
        if "cannot" in answer or not line:
            self.close()
            raise Unable(answer.get("cannot") or ("gone" if ready else f"hangs (more than {bound:g} s)"))
        return answer

    def ask(self, question: str, bound: float) -> dict[str, Any]:
        """`send` and `receive`."""
        self.send(question)
        return self.receive(bound)

    # -- pairs ---------------------------------------------------------------------------------------------------------

    def take_turn(self, seconds: float, most: int, bound: float) -> None:
        """Time some pairs; notes its `trouble` if that cannot be done."""
        if self.trouble:
            return
        begin, cpu = time.perf_counter(), cpu_seconds(self.pid)
        try:
            answer = self.ask(f"{self.work} {seconds} {most}", bound)
        except Unable as error:
            self.trouble = str(error)
            return
        self.spent += time.perf_counter() - begin
        now = cpu_seconds(self.pid)
        self.cpu = self.cpu + now - cpu if None not in (self.cpu, now, cpu) else None  # type: ignore[operator]
        self.locked += answer["locked"]
        self.pairs += answer["pairs"]
        self.turns.append(statistics.median(answer["pairs"]) if answer["pairs"] else None)
        self.failed.update(answer["failed"])

    @property
    def operations(self) -> int:
        """Pairs, and those that failed."""
        return len(self.pairs) + self.failed.total()

    @property
    def troubles(self) -> str:
        """All that went wrong, in words."""
        words = [f"{why} ({times} of {self.operations})" for why, times in self.failed.items()]
        return "; ".join([*words, *([self.trouble] if self.trouble else [])])

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.communicate()


def start(library: Library, environments: Path, urls: Sequence[str]) -> Contender:
    """A library in a process of its own; `Contender.greet` waits for it."""
    return Contender(library.name, [*library.command(environments), *urls])


def start_probe(probe: Path, urls: Sequence[str]) -> Contender:
    """The limit: sockets without any library, and without an interpreter."""
    return Contender(f"{RAW}, Rust", [str(probe), *(url.partition("//")[2].partition("?")[0] for url in urls)])
