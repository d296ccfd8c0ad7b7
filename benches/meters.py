"""What an operation costs the machine: processor time, system calls and connections of a process, seen from outside."""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ATTACH = 5.0  # seconds that strace may take
LOOK = 0.005  # seconds between two looks at the connections
_REMOTE, _INODE = 2, 9  # columns of /proc/net/tcp
_UNFINISHED = re.compile(rb"<unfinished \.\.\.>$")


def cpu_seconds(pid: int) -> float | None:
    """Processor time that a process has taken so far, its ended threads included; None where that cannot be asked."""
    if sys.platform != "linux":
        return None
    # clock_getcpuclockid(3), which Python has for threads only: the clock of a process is made of its number.
    return time.clock_gettime((~pid << 3) | 2)


def resident(pid: int) -> int | None:
    """Bytes of memory that a process has; None where that cannot be asked."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None


def system_calls(pid: int, work: Callable[[], None]) -> int | None:
    """How many system calls all threads of a process make while ``work`` goes on.

    Returns:
        None if strace is not there, or may not attach.
    """
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        tracer = _attached(pid, log)
        if tracer is None:
            return None
        try:
            work()
        finally:
            tracer.send_signal(signal.SIGINT)  # strace lets go and ends
            tracer.communicate()
        return sum(_is_call(line) for line in log.read_bytes().splitlines())


def _attached(pid: int, log: Path) -> subprocess.Popen[bytes] | None:
    strace = shutil.which("strace")
    if strace is None:
        return None
    tracer = subprocess.Popen([strace, "-f", "-o", log, "-p", str(pid)], stderr=subprocess.PIPE)
    assert tracer.stderr is not None  # noqa: S101 (for mypy)
    line = tracer.stderr.readline()  # it says so, or why not, at once
    if b"attached" in line:
        return tracer
    tracer.kill()
    tracer.communicate()
    return None


def _is_call(line: bytes) -> bool:
    """A call that began and ended, or the end of one that another thread's interrupted in the log."""
    return b" = " in line and not _UNFINISHED.search(line)


def most_connections(pid: int, port: int, work: Callable[[], None]) -> int | None:
    """How many connections to a port of this machine a process has at most while ``work`` goes on.

    Returns:
        None where that cannot be asked.
    """
    if sys.platform != "linux":
        return None
    counts, done = [_connections(pid, port)], threading.Event()

    def watch() -> None:
        while not done.wait(LOOK):
            counts.append(_connections(pid, port))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(counts)


def _connections(pid: int, port: int) -> int:
    """How many there are now, those included that are being made or closed."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    there = {f"socket:[{row[_INODE]}]" for row in rows if row[_REMOTE].endswith(f":{port:04X}")}
    return sum(_link(file) in there for file in Path(f"/proc/{pid}/fd").iterdir())


def _link(file: Path) -> str:
    try:
        return str(file.readlink())
    except OSError:  # it has been closed meanwhile
        return ""


def switches(pid: int) -> int | None:
    """How often the threads that a process has now have waited so far; None where that cannot be asked."""
    total = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status.read_text(), re.MULTILINE)
        total += int(found[1]) if found else 0
    return total or None


def what_is_counted() -> str:
    """For the machine line: what stands for the system calls here."""
    strace = shutil.which("strace")
    if strace is not None:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        counted = system_calls(child.pid, lambda: None)
        child.communicate(b"\n")
        if counted is not None:
            version = subprocess.run([strace, "--version"], capture_output=True, text=True, check=True).stdout
            return f"by {version.partition(chr(10))[0].replace('-- version ', '')}"
    return "not counted; voluntary context switches instead"
