"""Faults at random, for as long as told: does anybody ever lose an update made under the lock?

Worker processes add one to a counter by reading it, dawdling, and writing it, each time under the lock. Meanwhile
masters are frozen, killed and restarted with their data, their connections are delayed, swallowed, cut and dripped, and
workers are stopped for longer than their locks last. The counter is the last line of a file, and each line says who
wrote it, so that every lost update can be laid at somebody's door.

A worker that is stopped between its last look at the clock and its write writes late. No lock with a time limit can
prevent that (only a fencing token can): such losses are counted apart. Any other is a bug, and the exit code says so.

    python tests/chaos.py --seconds 300 --seed 7
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from support.loop import RIG
from support.proxy import Mode, Proxy
from support.servers import Server, ServerKind

if TYPE_CHECKING:
    from collections.abc import Callable

MASTERS = 5
WORKERS = 4
TTL_MS = 600

WORKER = """
import os, random, sys, time
from redlock import Redlock

def now():
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

def last(counter):
    size = os.fstat(counter).st_size
    lines = os.pread(counter, 4096, max(0, size - 4096)).split(b"\\n")
    return int(lines[-2].split()[0]) if size else 0

path, until, seed, ttl, *urls = sys.argv[1:]
chance = random.Random(int(seed))
dlm = Redlock(urls, retry_count=5, retry_delay=0.05)
counter = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
written = 0
while now() < float(until):
    lock = dlm.lock("counter", int(ttl))
    if not lock:
        continue
    deadline = now() + lock.validity / 1000
    value = last(counter)
    time.sleep(chance.uniform(0, 0.01))
    if now() < deadline:
        written += 1
        me = f"{os.getpid()}.{written}"
        os.write(counter, f"{value + 1} {value} {me}\\n".encode())
        # Known only afterwards: a stop may have come between the look at the clock and the write.
        print(me, "late" if now() >= deadline else "in time", flush=True)
    dlm.unlock(lock)
"""


@dataclass
class Report:
    """What was done, and what came of it."""

    seed: int
    updates: int = 0
    lost: int = 0
    lost_to_late_writes: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items()))
        return (
            f"seed {self.seed}: {self.updates} updates under {sum(self.faults.values())} faults ({faults}); "
            f"{self.lost} lost, and {self.lost_to_late_writes} to holders stopped past their time"
        )


class Chaos:
    """Servers, proxies and workers, and what is done to them."""

    def __init__(self, seed: int) -> None:
        self.report = Report(seed)
        self._chance = random.Random(seed)
        kinds = [ServerKind.VALKEY91, ServerKind.REDIS82]
        self.servers = [Server(kinds[number % 2], aof=True) for number in range(MASTERS)]
        self.proxies = [Proxy(server, seed) for server in self.servers]
        self.workers: list[subprocess.Popen[str]] = []
        self._faults: dict[str, Callable[[], Callable[[], object]]] = {
            "frozen masters": self._freeze,
            "killed masters": self._kill,
            "slow networks": self._delay,
            "swallowed bytes": self._swallow,
            "swallowed replies": self._swallow_replies,
            "half-open connections": self._half_open,
            "dripped bytes": self._drip,
            "reset connections": self._reset,
            "stopped workers": self._stop_worker,
        }

    def run(self, seconds: float) -> Report:
        """Do damage for so long, mend everything, and count."""
        with tempfile.TemporaryDirectory() as directory:
            counter = Path(directory) / "counter"
            try:
                self._start_workers(counter, seconds)
                self._do_damage(seconds)
                said = [worker.communicate(timeout=60)[0] for worker in self.workers]
                failed = [worker.returncode for worker in self.workers if worker.returncode]
                assert not failed, f"workers died: {failed}"
                self._count(counter.read_text().splitlines(), "".join(said).splitlines())
            finally:
                self._clean_up()
        return self.report

    def _start_workers(self, counter: Path, seconds: float) -> None:
        urls = [proxy.url for proxy in self.proxies]
        until = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)) + seconds
        for number in range(WORKERS):
            arguments = [str(counter), str(until), str(self.report.seed + number), str(TTL_MS), *urls]
            self.workers.append(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, *arguments],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )

    def _do_damage(self, seconds: float) -> None:
        """One to three faults at a time, each for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            names = self._chance.sample(sorted(self._faults), self._chance.randint(1, 3))
            mend = [self._faults[name]() for name in names]
            self.report.faults.update(names)
            time.sleep(self._chance.uniform(0.05, 1.0))
            for undo in mend:
                undo()
            time.sleep(self._chance.uniform(0.0, 0.4))

    # Each fault begins when called, and returns what ends it.

    def _freeze(self) -> Callable[[], object]:
        server = self._chance.choice(self.servers)
        server.freeze()
        return server.thaw

    def _kill(self) -> Callable[[], object]:
        server = self._chance.choice(self.servers)
        server.kill()
        return server.restart

    def _delay(self) -> Callable[[], object]:
        proxy = self._chance.choice(self.proxies)
        proxy.delay, proxy.jitter = self._chance.uniform(0, 0.05), self._chance.uniform(0, 0.2)

        def mend() -> None:
            proxy.delay = proxy.jitter = 0.0

        return mend

    def _mode(self, mode: Mode) -> Callable[[], object]:
        proxy = self._chance.choice(self.proxies)
        proxy.mode = mode

        def mend() -> None:
            # Bytes that TCP has swallowed never come back on the same connection: it ends.
            proxy.reset()
            proxy.mode = Mode.PASS

        return mend

    def _swallow(self) -> Callable[[], object]:
        return self._mode(Mode.SWALLOW)

    def _swallow_replies(self) -> Callable[[], object]:
        return self._mode(Mode.SWALLOW_REPLIES)

    def _half_open(self) -> Callable[[], object]:
        return self._mode(Mode.HALF_OPEN)

    def _drip(self) -> Callable[[], object]:
        return self._mode(Mode.DRIP)

    def _reset(self) -> Callable[[], object]:
        self._chance.choice(self.proxies).reset()
        return lambda: None

    def _stop_worker(self) -> Callable[[], object]:
        worker = self._chance.choice(self.workers)
        if worker.poll() is not None:
            return lambda: None
        worker.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * TTL_MS / 1000)
        return lambda: worker.send_signal(signal.SIGCONT)

    def _count(self, lines: list[str], said: list[str]) -> None:
        late = {line.split()[0] for line in said if line.endswith("late")}
        self.report.updates = len(lines)
        before = 0
        for line in lines:
            value, read, writer = line.split()
            if int(read) != before:
                missing = before - int(read)
                if writer in late:
                    self.report.lost_to_late_writes += missing
                else:
                    self.report.lost += missing
            before = int(value)

    def _clean_up(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                os.kill(worker.pid, signal.SIGCONT)
                worker.kill()
            worker.wait()
        for proxy in self.proxies:
            proxy.stop()
        for server in self.servers:
            server.stop()


def main() -> int:
    """Run once; 1 if an update was lost without excuse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--json", action="store_true", help="the report for programs")
    options = parser.parse_args()
    try:
        report = Chaos(options.seed).run(options.seconds)
    finally:
        RIG.stop()
    print(json.dumps(vars(report)) if options.json else report)
    return 1 if report.lost else 0


if __name__ == "__main__":
    sys.exit(main())
