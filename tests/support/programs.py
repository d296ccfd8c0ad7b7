"""Python programs in processes of their own, talked to by lines."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

PRELUDE = """
import logging, os, random, signal, sys, threading, time
from redlock import Lock, Redlock

logging.getLogger("redlock").addHandler(logging.NullHandler())  # or warnings go to stderr, which must stay empty

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()

def fork():
    # Python 3.13 warns of a thread that goes on after the fork: the engine has one while masters are owed something.
    end = time.monotonic() + 2
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.005)
    return os.fork()

"""


class Program:
    """A running program; `say` and `hear` on its side are `hear` and `say` on this one.

    Args:
        source: Python, after `PRELUDE`; indentation is taken off.
        *arguments: ``sys.argv[1:]``.
        timeout: seconds until it is killed.
    """

    def __init__(self, source: str, *arguments: str, timeout: float = 60.0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(source), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that all that it forks can be killed with it
        )
        # A program that hangs is a test that fails, in `hear` as in `finish`.
        self._killer = threading.Timer(timeout, self._kill)
        self._killer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._killer.cancel()
        self._kill()
        self._process.communicate()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def hear(self) -> str:
        """The next line of its standard output, without the line's end; empty when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def say(self, line: str = "") -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal, SIGINT as by Ctrl-C."""
        self._process.send_signal(number)

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end.

        Returns:
            Exit code (-9 after its timeout), rest of its standard output, standard error.
        """
        out, err = self._process.communicate()
        return self._process.returncode, out, err


def run(source: str, *arguments: str, timeout: float = 60.0) -> str:
    """Run a program to its end; it must succeed and say nothing on standard error.

    Returns:
        Its standard output.
    """
    with Program(source, *arguments, timeout=timeout) as program:
        code, out, err = program.finish()
    assert (code, err) == (0, ""), f"exit code {code}\n{out}\n{err}"
    return out
