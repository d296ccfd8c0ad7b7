"""What is measured, one function for each scenario; each ends within its time, whatever a contender does."""

from __future__ import annotations

import contextlib
import random
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .contenders import LIBRARIES, RAW_FROM_PYTHON, Contender, Library, Unable, plain_environment, start, start_probe
from .meters import cpu_seconds, most_connections, resident, switches, system_calls
from .records import OURS, Record
from .setting import Condition, setting
from .worker import SHARED, TTL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from support.servers import ServerKind

    from .setting import Setting

HOLD = (0.01, 0.15)  # seconds that a lock is held before it is handed over: out of step with all polling
FREEZE = 1.0  # seconds
TAKING = 0.05  # seconds in which a lease must have been taken, on a busy machine
PARTS = 100  # of what is to show whether memory grows
BRIEF = (0.0, 0.002)  # the same, where nobody polls
MANY = 1_000_000  # pairs: as many as there is time for
SETTLING = 1.0  # seconds, and some round trips, until nothing is on its way any more
LATER = 0.05  # seconds after a grant
LEASES, LEASE_TTL = 20, 3  # while masters are restarted; the TTL in seconds
BETWEEN = 0.5  # seconds between the restarts of two masters
RESTARTING = 6.0  # seconds: for all restarts, and then more than a TTL
IDLE = 1.2  # seconds: more than the one after which the engine takes a connection for one that may be forgotten
SLICE = 0.2  # seconds that a contender rests at a time while its masters are looked at


class Effort(NamedTuple):
    """How much is done.

    Attributes:
        sizes: numbers of masters.
        turns: of each contender.
        turn: seconds for a turn.
        most: pairs in a turn.
        bound: seconds in which a contender must answer, or hangs.
        crowds: numbers of threads.
        crowd_turns: of each contender, for each of them.
        waiters: numbers of contenders for one lock.
        hand_over: seconds for each of them.
        queue: hand-overs to see how they are spread.
        keeping: leases, seconds of their TTL, and for how long they are watched.
        freezing: the same, while a majority is frozen for a second.
        lasting: pairs over which the memory is to stay as it is.
        imports: how often.
        away: how far away one master is.
        locks: whose masters are counted.
        idles: unlocks after a time in which nothing happens.
    """

    sizes: tuple[int, ...]
    turns: int
    turn: float
    most: int
    bound: float
    crowds: tuple[int, ...]
    crowd_turns: int
    waiters: tuple[int, ...]
    hand_over: float
    queue: int
    keeping: tuple[tuple[int, int, float], ...]
    freezing: tuple[tuple[int, int, float], ...]
    lasting: int
    imports: int
    away: tuple[Condition, ...]
    locks: int
    idles: int

    @property
    def usual(self) -> int:
        """As many masters as most people have."""
        return max(size for size in self.sizes if size <= 3)  # noqa: PLR2004


FULL = Effort(
    (1, 3, 5),
    20,
    0.06,
    100,
    6.0,
    (1, 4, 16, 64),
    5,
    (2, 20),
    2.5,
    1000,
    ((1000, 3, 30), (10_000, 10, 30)),
    ((1000, 3, 10),),
    100_000,
    12,
    (Condition.DISTANT, Condition.REMOTE),
    100,
    5,
)
QUICK = Effort(
    (3,),
    6,
    0.03,
    50,
    2.0,
    (1, 16),
    2,
    (2, 8),
    0.8,
    100,
    ((100, 3, 3),),
    ((100, 3, 3),),
    2000,
    3,
    (Condition.DISTANT,),
    10,
    1,
)


@dataclass(frozen=True)
class Bench:
    """What every measurement needs.

    Attributes:
        kind: of the servers.
        environments: where those of the libraries are.
        probe: the compiled examples/raw_probe.rs.
        effort: how much to do.
    """

    kind: ServerKind
    environments: Path
    probe: Path
    effort: Effort

    @contextlib.contextmanager
    def contenders(
        self, urls: Sequence[str], libraries: Sequence[Library] = LIBRARIES, *, probes: bool = False
    ) -> Iterator[list[Contender]]:
        """All of them, started; one that cannot run says so as its trouble."""
        with ExitStack() as stack:
            started = [start(library, self.environments, urls) for library in libraries]
            if probes:
                started.append(start(RAW_FROM_PYTHON, self.environments, urls))
                started.append(start_probe(self.probe, urls))
            for contender in started:
                stack.enter_context(contender)
            for contender in started:
                contender.greet()
            yield started


# ---- lock and unlock, one caller alone -------------------------------------------------------------------------------

PAIRED = (
    Condition.HEALTHY,
    Condition.AWAKE,
    Condition.DELAYED,
    Condition.SLOW,
    Condition.HUNG,
    Condition.DEAD,
)


def pairs(bench: Bench) -> Iterator[list[Record]]:
    """Every size in every condition."""
    for condition in PAIRED:
        for size in bench.effort.sizes:
            if size > 1 or not condition.is_fault:
                yield _pairs(bench, size, condition)


def _pairs(bench: Bench, size: int, condition: Condition) -> list[Record]:
    # The raw probes wait for all masters, also for broken ones: they are no limit there.
    probes = not condition.is_fault
    with setting(bench.kind, size, condition) as masters, bench.contenders(masters.urls, probes=probes) as contenders:
        firsts = _take_all_turns(bench.effort, contenders, masters)
        records = [_pairs_record("pairs", contender, contenders[0], masters) for contender in contenders]
        for record, first in zip(records, firsts, strict=True):
            record.first = first
        if condition is Condition.HEALTHY:
            for record, contender in zip(records, contenders, strict=True):
                record.calls = _calls(contender, bench.effort)
        return records


def _take_all_turns(effort: Effort, contenders: Sequence[Contender], masters: Setting) -> list[float | None]:
    """Some to warm up, then the masters' condition, then those that count.

    Returns:
        Microseconds of each one's first call in that condition, where it makes a difference.
    """
    _take_turns(effort, contenders, turns=2)
    for contender in contenders:
        contender.forget()
    masters.strike()
    uneven = masters.condition.is_uneven
    firsts = [_first(contender, effort) if uneven else None for contender in contenders]
    _take_turns(effort, contenders, effort.turns)
    return firsts


def _take_turns(effort: Effort, contenders: Sequence[Contender], turns: int) -> None:
    """In blocks, each round in another order, so that whatever else the machine does strikes all."""
    for turn in range(turns):
        first = turn % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            # Whoever takes seconds for one pair has said enough after a few.
            if contender.spent < 2 * effort.turns * effort.turn:
                contender.take_turn(effort.turn, effort.most, effort.bound)


def _first(contender: Contender, effort: Effort) -> float | None:
    """Microseconds of the call that finds a master broken."""
    contender.take_turn(0, 1, effort.bound)
    return contender.pairs[0] if contender.pairs else None


def _pairs_record(scenario: str, contender: Contender, ours: Contender, masters: Setting) -> Record:
    record = Record(scenario, masters.condition.value, masters.size, 1, contender.name, "µs")
    record.fill(contender.pairs)
    record.trouble = contender.troubles
    if contender.locked:
        record.locked = statistics.median(contender.locked)
    if contender.cpu is not None and contender.operations:
        record.cpu = contender.cpu * 1e6 / contender.operations
    if contender is not ours:
        record.compare(ours.turns, contender.turns)
    return record


def _calls(contender: Contender, effort: Effort) -> float | None:
    """System calls for a pair, or else context switches."""
    if contender.trouble:
        return None
    before, done = switches(contender.pid), contender.operations
    counted = system_calls(contender.pid, lambda: contender.take_turn(effort.bound / 4, effort.most, effort.bound))
    if counted is None and before is not None:
        contender.take_turn(effort.turn, effort.most, effort.bound)
        counted = (switches(contender.pid) or before) - before
    fresh = contender.operations - done
    return counted / fresh if counted is not None and fresh else None


# ---- many callers of one manager -------------------------------------------------------------------------------------


def crowd(bench: Bench) -> Iterator[list[Record]]:
    """Threads, or tasks of one event loop, each with a lock of its own; pairs a second over all."""
    with setting(bench.kind, bench.effort.usual) as masters, bench.contenders(masters.urls) as contenders:
        for callers in bench.effort.crowds:
            yield _crowd(bench.effort, masters, contenders, callers)


def _crowd(effort: Effort, masters: Setting, contenders: Sequence[Contender], callers: int) -> list[Record]:
    rates: dict[str, list[float | None]] = {contender.name: [] for contender in contenders}
    for turn in range(effort.crowd_turns + 1):
        for contender in contenders[:: 1 if turn % 2 else -1]:
            rate = _rate(contender, effort, callers)
            if turn > 0:
                rates[contender.name].append(rate)
    return [_crowd_record(contender, rates, masters, callers) for contender in contenders]


def _rate(contender: Contender, effort: Effort, callers: int) -> float | None:
    if contender.trouble:
        return None
    try:
        answer = contender.ask(f"crowd {callers} {4 * effort.turn}", effort.bound)
    except Unable as error:
        contender.trouble = f"{error} with {callers} callers"
        return None
    contender.failed.update(answer["failed"])
    rate: float = answer["pairs"] / answer["seconds"]
    return rate or None


def _crowd_record(contender: Contender, rates: dict[str, list[float | None]], masters: Setting, callers: int) -> Record:
    record = Record("crowd", masters.condition.value, masters.size, callers, contender.name, "pairs/s")
    record.fill([rate for rate in rates[contender.name] if rate])
    failures = ", ".join(f"{why} ({times})" for why, times in contender.failed.items())
    record.trouble = "; ".join(filter(None, (failures, contender.trouble)))
    contender.failed.clear()
    if contender.name != OURS:
        record.compare(rates[OURS], rates[contender.name])
    return record


# ---- one lock that all want ------------------------------------------------------------------------------------------


def hand_over(bench: Bench) -> Iterator[list[Record]]:
    """From the beginning of an unlock until another process holds the lock."""
    for size in bench.effort.sizes[:2]:
        by_library = [_hand_overs(bench, size, library) for library in LIBRARIES]
        yield from map(list, zip(*by_library, strict=True))


def _hand_overs(bench: Bench, size: int, library: Library) -> list[Record]:
    """With some waiters and with many; the same processes, started once."""
    counts = bench.effort.waiters
    with setting(bench.kind, size) as masters, ExitStack() as stack:
        many = max(counts) if size <= library.most else 1
        crew = [stack.enter_context(start(library, bench.environments, masters.urls)) for _ in range(many)]
        for contender in crew:
            contender.greet()
        return [_hand_over(bench.effort, masters, crew, count) for count in counts]


def _hand_over(effort: Effort, masters: Setting, crew: Sequence[Contender], count: int) -> Record:
    record = Record("hand-over", masters.condition.value, masters.size, count, crew[0].name, "ms")
    _relay(record, masters, crew[:count], effort.bound, lambda relay: relay.run(HOLD, effort.hand_over))
    return record


def queue(bench: Bench) -> Iterator[list[Record]]:
    """Many hand-overs in a row, ours alone: others take minutes. How often each of the processes held the lock."""
    yield [_queue(bench, library) for library in LIBRARIES if library.name.startswith(OURS)]


def _queue(bench: Bench, library: Library) -> Record:
    effort, size, many = bench.effort, bench.effort.sizes[:2][-1], max(bench.effort.waiters)
    with setting(bench.kind, size) as masters, ExitStack() as stack:
        crew = [stack.enter_context(start(library, bench.environments, masters.urls)) for _ in range(many)]
        for contender in crew:
            contender.greet()
        record = Record("queue", masters.condition.value, size, many, library.name, "ms")
        _relay(record, masters, crew, effort.bound, lambda relay: relay.run(BRIEF, count=effort.queue))
    return record


def _relay(
    record: Record, masters: Setting, crew: Sequence[Contender], bound: float, run: Callable[[Relay], None]
) -> None:
    record.trouble = next((contender.trouble for contender in crew if contender.trouble), "")
    if record.trouble:
        return
    relay = Relay(crew, bound)
    try:
        relay.begin()
        before = masters.commands()
        run(relay)
        record.commands = (masters.commands() - before) / len(relay.times)
        relay.end()
    except Unable as error:
        record.trouble = crew[0].trouble = str(error)
    record.fill(relay.times)
    record.least, record.most = min(relay.held.values()), max(relay.held.values())


class Relay:
    """One holds the lock, the others wait for it; whoever gave it back waits again.

    Args:
        crew: all of them, at rest.
        bound: seconds within which somebody must have got the lock, or `Unable` is raised.

    Attributes:
        times: milliseconds from the beginning of each unlock until the next one held the lock.
        held: how often each of them did, but for the first.
    """

    def __init__(self, crew: Sequence[Contender], bound: float) -> None:
        self.times: list[float] = []
        self.held = dict.fromkeys(crew, 0)
        self._bound = bound
        self._holder, *self._waiting = crew
        self._random = random.Random(len(crew))  # noqa: S311 (the same pauses for all)

    def begin(self) -> None:
        """One holds it, all others wait."""
        self._holder.ask("hold", self._bound)
        for contender in self._waiting:
            contender.send("hold")

    def run(self, hold: tuple[float, float], seconds: float = 0.0, count: int = 1) -> None:
        """Hand over again and again, after a random while each: for some seconds, and so often at least."""
        end = time.perf_counter() + seconds
        while len(self.times) < count or time.perf_counter() < end:
            time.sleep(self._random.uniform(*hold))
            before, took = self._holder, self._pass_on()
            self.times.append(took)
            self.held[self._holder] += 1
            before.send("hold")
            self._waiting.append(before)

    def end(self) -> None:
        """Let all come to rest."""
        while self._waiting:
            self._pass_on()
        self._holder.ask("free", self._bound)

    def _pass_on(self) -> float:
        if select.select(self._waiting, [], [], 0)[0]:
            raise Unable("TWO HELD THE LOCK AT ONCE")
        freed = self._holder.ask("free", self._bound)["at"]
        ready, _, _ = select.select(self._waiting, [], [], self._bound)
        if not ready:
            raise Unable(f"nobody got it within {self._bound:g} s")
        self._holder = ready[0]
        self._waiting.remove(self._holder)
        taken = self._holder.receive(self._bound)["at"]
        milliseconds: float = (taken - freed) / 1e6
        return milliseconds


# ---- leases that are kept, and memory --------------------------------------------------------------------------------


def leases(bench: Bench) -> Iterator[list[Record]]:
    """What it costs to keep many leases, ours alone, and whether all are kept; no library beside it has them."""
    effort, size = bench.effort, bench.effort.usual
    for condition, situations in ((Condition.FAR, effort.keeping), (Condition.FROZEN, effort.freezing)):
        for many, ttl, seconds in situations:
            yield [_leases(bench, library, (size, condition), (many, ttl, seconds)) for library in _ours()]


def _ours() -> list[Library]:
    return [library for library in LIBRARIES if library.name.startswith(OURS)]


def _leases(
    bench: Bench, library: Library, masters: tuple[int, Condition], situation: tuple[int, int, float]
) -> Record:
    (size, condition), (many, ttl, seconds) = masters, situation
    record = Record("leases", condition.value, size, many, library.name, "µs", ttl=ttl)
    with setting(bench.kind, size, condition) as places, start(library, bench.environments, places.urls) as contender:
        contender.greet()
        try:
            _keep(record, places, contender, seconds, bench.effort.bound)
        except Unable as error:
            record.trouble = contender.trouble or str(error)
    return record


def _keep(record: Record, masters: Setting, contender: Contender, seconds: float, bound: float) -> None:
    weighed = contender.ask(f"weigh {record.ttl * 1000}", bound)
    empty = resident(contender.pid)
    # They are taken while the masters are near: one after another, ten thousand would take minutes.
    contender.ask(f"keep {record.callers} {record.ttl * 1000}", bound + record.callers * TAKING)
    masters.strike()
    commands, cpu, begin = masters.commands(), cpu_seconds(contender.pid), time.perf_counter()
    contender.send(f"watch {seconds}")
    if masters.condition is Condition.FROZEN:
        time.sleep(seconds / 3)
        masters.freeze(FREEZE)
    seen = contender.receive(seconds + bound)
    took, now, full = time.perf_counter() - begin, cpu_seconds(contender.pid), resident(contender.pid)
    record.samples, record.lost, record.early = seen["renewals"], seen["lost"], seen["early"]
    record.rate, record.objects = record.samples / took, weighed["objects"]
    if record.samples:
        record.commands = (masters.commands() - commands) / record.samples
        record.cpu = (now - cpu) * 1e6 / record.samples if now is not None and cpu is not None else None
    if full is not None and empty is not None:
        record.memory = (full - empty) / (record.callers - weighed["leases"])


def memory(bench: Bench) -> Iterator[list[Record]]:
    """Of a process that locks and unlocks for long, ours alone: whether it grows."""
    yield [_memory(bench, library) for library in _ours()]


def _memory(bench: Bench, library: Library) -> Record:
    effort, size = bench.effort, bench.effort.usual
    with setting(bench.kind, size) as masters, start(library, bench.environments, masters.urls) as contender:
        contender.greet()
        part, grown = effort.lasting // PARTS, []
        for _ in range(PARTS):
            contender.take_turn(effort.bound, part, 2 * effort.bound)
            grown.append(resident(contender.pid))
        record = Record("memory", masters.condition.value, size, 1, library.name, "MiB", trouble=contender.troubles)
        sizes = [each for each in grown if each is not None]
        record.fill([each / 2**20 for each in sizes])
        record.samples = len(contender.pairs)
        if sizes:
            # The first tenth is what it takes to begin with.
            early = sizes[len(sizes) // 10]
            record.memory = (sizes[-1] - early) / (record.samples * 0.9)
        return record


# ---- one master that is not like the others --------------------------------------------------------------------------

BESIDE = tuple(library for library in LIBRARIES if library.environment in {"", "redlock-py", "pottery"})


def distant(bench: Bench) -> Iterator[list[Record]]:
    """One master far away: a pair beside one with all masters near, and what is open and left at the far one."""
    for condition in bench.effort.away:
        for size in bench.effort.sizes:
            if size > 1:
                yield _distant(bench, size, condition)


def _distant(bench: Bench, size: int, condition: Condition) -> list[Record]:
    with (
        setting(bench.kind, size, condition) as masters,
        setting(bench.kind, size) as healthy,
        bench.contenders(masters.urls, BESIDE) as contenders,
        bench.contenders(healthy.urls, BESIDE) as controls,
    ):
        records = _checked_pairs("distant", bench.effort, masters, contenders, controls)
        for record, contender in zip(records, contenders, strict=True):
            record.connections = _connections(contender, bench.effort, masters)
        seconds = SETTLING + 4 * masters.round_trip
        _tell(contenders, f"rest {seconds}")
        _answers(contenders, seconds + bench.effort.bound)
        for record, contender in zip(records, contenders, strict=True):
            record.left = masters.left(contender.pid)
        return records


def _checked_pairs(
    scenario: str, effort: Effort, masters: Setting, contenders: Sequence[Contender], controls: Sequence[Contender]
) -> list[Record]:
    """Of contenders, each beside its control in the same turns."""
    firsts = _take_all_turns(effort, [*contenders, *controls], masters)
    records = [_pairs_record(scenario, contender, contenders[0], masters) for contender in contenders]
    for record, contender, control, first in zip(records, contenders, controls, firsts, strict=False):
        record.first = first
        record.check(contender.turns, control.turns)
    return records


def _connections(contender: Contender, effort: Effort, masters: Setting) -> int | None:
    """How many it has to the first master at most, in a turn that is not timed."""
    if contender.trouble:
        return None
    return most_connections(
        contender.pid, masters.first_port, lambda: contender.take_turn(effort.bound / 4, MANY, effort.bound)
    )


def _tell(contenders: Sequence[Contender], question: str) -> None:
    """Ask all at once; `_answers` has what they say."""
    for contender in contenders:
        if not contender.trouble:
            try:
                contender.send(question)
            except Unable as error:
                contender.trouble = str(error)


def _answers(contenders: Sequence[Contender], bound: float) -> list[dict[str, Any]]:
    """Of all; an empty one of those that cannot answer, which note why."""
    return [_answer(contender, bound) for contender in contenders]


def _answer(contender: Contender, bound: float) -> dict[str, Any]:
    if contender.trouble:
        return {}
    try:
        return contender.receive(bound)
    except Unable as error:
        contender.trouble = str(error)
        return {}


def first_unlock(bench: Bench) -> Iterator[list[Record]]:
    """Of a manager that has just been made, with a master hung before that."""
    effort, size = bench.effort, bench.effort.usual
    with setting(bench.kind, size, Condition.HUNG_BEFORE) as masters, setting(bench.kind, size) as healthy:
        masters.strike()
        with (
            bench.contenders(masters.urls, BESIDE) as contenders,
            bench.contenders(healthy.urls, BESIDE) as controls,
        ):
            everyone = [*contenders, *controls]
            turns = [[_first_unlock(contender, effort.bound) for contender in everyone] for _ in range(effort.turns)]
            unlocks = list(zip(*turns, strict=True))
            records = [
                _first_unlock_record(contender, masters, times, unlocks[0])
                for contender, times in zip(contenders, unlocks, strict=False)
            ]
            for record, times, control in zip(records, unlocks, unlocks[len(records) :], strict=False):
                record.check(times, control)
            yield records


def _first_unlock(contender: Contender, bound: float) -> float | None:
    """Milliseconds."""
    if contender.trouble:
        return None
    try:
        answer = contender.ask("fresh 0 1", bound)
    except Unable as error:
        contender.trouble = str(error)
        return None
    contender.pairs += answer["pairs"]
    contender.failed.update(answer["failed"])
    unlocked: list[float] = answer["unlocked"]
    return unlocked[0] / 1000 if unlocked else None


def _first_unlock_record(
    contender: Contender, masters: Setting, times: Sequence[float | None], ours: Sequence[float | None]
) -> Record:
    record = Record("first unlock", masters.condition.value, masters.size, 1, contender.name, "ms")
    record.fill([each for each in times if each is not None])
    record.trouble = contender.troubles
    if contender.name != OURS:
        record.compare(ours, times)
    return record


# ---- whether all masters have a lock, and none after its end ---------------------------------------------------------


def coverage(bench: Bench) -> Iterator[list[Record]]:
    """How many masters have a lock soon after its grant, one of them a little farther away, ours alone."""
    for condition in (Condition.NEAR, Condition.NEARBY):
        yield [_coverage(bench, library, condition) for library in _ours()]


def _coverage(bench: Bench, library: Library, condition: Condition) -> Record:
    effort, holders = bench.effort, []
    record = Record("coverage", condition.value, effort.usual, 1, library.name, "masters")
    with setting(bench.kind, effort.usual, condition) as masters:
        masters.strike()
        with start(library, bench.environments, masters.urls) as contender:
            contender.greet()
            try:
                for _ in range(effort.locks):
                    contender.ask("hold", effort.bound)
                    contender.ask(f"rest {LATER}", effort.bound)
                    holders.append(masters.having(SHARED))
                    contender.ask("free", effort.bound)
            except Unable as error:
                record.trouble = contender.trouble or str(error)
    record.count(holders)
    return record


def restarts(bench: Bench) -> Iterator[list[Record]]:
    """Leases that are kept while all masters are restarted with their data, ours alone."""
    effort, size = bench.effort, bench.effort.usual
    with setting(bench.kind, size, Condition.RESTARTED) as masters:
        masters.strike()
        with bench.contenders(masters.urls, _ours()) as contenders:
            _tell(contenders, f"keep {LEASES} {LEASE_TTL * 1000}")
            _answers(contenders, effort.bound)
            _tell(contenders, f"watch {RESTARTING}")
            begin = time.perf_counter()
            masters.restart(BETWEEN)
            too_long = time.perf_counter() - begin + LEASE_TTL > RESTARTING
            seen = _answers(contenders, RESTARTING + effort.bound)
            yield [_restarts_record(*each, masters, too_long=too_long) for each in zip(contenders, seen, strict=True)]


def _restarts_record(contender: Contender, seen: dict[str, Any], masters: Setting, *, too_long: bool) -> Record:
    record = Record("restarts", masters.condition.value, masters.size, LEASES, contender.name, "", ttl=LEASE_TTL)
    record.samples = seen.get("renewals", 0)
    record.lost, record.early = seen.get("lost"), seen.get("early")
    record.trouble = contender.trouble or ("restarts took too long for the losses to be seen" if too_long else "")
    return record


def command(bench: Bench) -> Iterator[list[Record]]:
    """How many masters have a lock when the command that took it has ended, each time a new process."""
    effort, times, holders = bench.effort, [], []
    failed: Counter[str] = Counter()
    record = Record("command", Condition.HEALTHY.value, effort.usual, 1, OURS, "ms")
    with setting(bench.kind, effort.usual) as masters:
        addresses = [word for url in masters.urls for word in ("--redis", url)]
        words = [sys.executable, "-m", "redlock", "--quiet", *addresses, "lock"]
        environment = plain_environment()
        for number in range(effort.locks):
            name = f"bench:command:{number}"
            begin = time.perf_counter()
            code = subprocess.run(
                [*words, name, f"{TTL}s"], check=False, cwd="/", env=environment, stdout=subprocess.DEVNULL
            ).returncode
            times.append((time.perf_counter() - begin) * 1000)
            holders.append(masters.having(name))
            if code:
                failed[f"exit code {code}"] += 1
    record.fill(times)
    record.count(holders)
    record.trouble = "; ".join(f"{why} ({often} of {effort.locks})" for why, often in failed.items())
    yield [record]


def forgotten(bench: Bench) -> Iterator[list[Record]]:
    """An unlock over connections that are idle and on which everything is lost, ours alone."""
    yield [_forgotten(bench, library) for library in _ours()]


def _forgotten(bench: Bench, library: Library) -> Record:
    effort, times, gone = bench.effort, [], []
    record = Record("forgotten", Condition.FORGOTTEN.value, effort.usual, 1, library.name, "ms")
    with (
        setting(bench.kind, effort.usual, Condition.FORGOTTEN) as masters,
        start(library, bench.environments, masters.urls) as contender,
    ):
        contender.greet()
        try:
            for _ in range(effort.idles):
                contender.ask("hold", effort.bound)
                contender.ask(f"rest {IDLE}", IDLE + effort.bound)
                masters.strike()
                call = contender.ask("free", effort.bound)
                times.append((call["done"] - call["at"]) / 1e6)
                gone.append(_gone(contender, masters, call["done"], effort.bound))
        except Unable as error:
            record.trouble = contender.trouble or str(error)
    record.fill(times)
    record.gone = max(gone, default=None)
    return record


def _gone(contender: Contender, masters: Setting, since: int, bound: float) -> float:
    """Milliseconds from an instant until no master has the lock.

    Raises:
        Unable: some have it for longer than ``bound`` seconds.
    """
    end = time.perf_counter() + bound
    while time.perf_counter() < end:
        contender.send(f"rest {SLICE}")  # an event loop that does not run would release nothing
        at = 0
        while not at and not select.select([contender], [], [], 0.001)[0]:
            at = 0 if masters.having(SHARED) else time.perf_counter_ns()
        contender.receive(bound)
        if at:
            return (at - since) / 1e6
    raise Unable(f"still on {masters.having(SHARED)} masters after {bound:g} s")


# ---- managers that are not kept --------------------------------------------------------------------------------------


def managers(bench: Bench) -> Iterator[list[Record]]:
    """A new manager for each pair, beside one that is kept."""
    libraries = [library for library in LIBRARIES if library.most >= bench.effort.usual]
    with (
        setting(bench.kind, bench.effort.usual) as masters,
        bench.contenders(masters.urls, libraries) as contenders,
        bench.contenders(masters.urls, libraries) as controls,
    ):
        for contender in contenders:
            contender.work = "fresh"
        yield _checked_pairs("managers", bench.effort, masters, contenders, controls)


# ---- import ----------------------------------------------------------------------------------------------------------


def imports(bench: Bench) -> Iterator[list[Record]]:
    """What `import redlock` adds to an interpreter's start, here and with redlock-py."""
    pythons = {
        library.name: library.command(bench.environments)[0] for library in LIBRARIES if library.adapter == "redlock"
    }
    extra: dict[str, list[float | None]] = {name: [] for name in pythons}
    for python in pythons.values():
        _start_ms(python, "import redlock")
    for _ in range(bench.effort.imports):
        for name, python in pythons.items():
            bare = _start_ms(python, "pass")
            extra[name].append(_start_ms(python, "import redlock") - bare)
    records = [Record("import", "", 0, 0, name, "ms") for name in pythons]
    for record in records:
        record.fill([sample for sample in extra[record.contender] if sample])
        if record.contender != OURS:
            record.compare(extra[OURS], extra[record.contender])
    yield records


def _start_ms(python: str, code: str) -> float:
    environment = plain_environment()
    begin = time.perf_counter()
    subprocess.run([python, "-c", code], check=True, cwd="/", env=environment)
    return (time.perf_counter() - begin) * 1000


SCENARIOS: tuple[Callable[[Bench], Iterator[list[Record]]], ...] = (
    pairs,
    crowd,
    hand_over,
    queue,
    leases,
    memory,
    distant,
    first_unlock,
    coverage,
    restarts,
    command,
    forgotten,
    managers,
    imports,
)
