"""The child of ``redlock run``: its signals, its terminal, its end, and who sees to that if this process cannot."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from math import inf

from redlock._redlock import finish, now

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import NoReturn, TypeVar

    from typing_extensions import Self

    T = TypeVar("T")

# What ends a program unless it has other plans; passed on to the command, or ends the wait for the lock.
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_OTHERS = (signal.SIGCHLD, signal.SIGWINCH)
# What Python, and this module, ignore: a program expects the defaults.
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTOU)
_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

_DISMISSED = "."  # what the guard is told when it is not needed any more

POLL = 0.05  # seconds between looks at a group that nobody tells the end of


class Signals:
    """Signals as a queue, for as long as the context lasts; those that were ignored before stay ignored."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._raising = False

    def __enter__(self) -> Self:
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (*_ENDING, *_OTHERS):
            self._notice(number)
        return self

    def __exit__(self, *error: object) -> None:
        # The handlers stay: what comes now comes too late to matter, and must not change the exit code.
        signal.set_wakeup_fd(-1)

    def _notice(self, number: int) -> None:
        # nohup, and shells without job control, have children ignore what is not for them.
        if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, self._noticed)

    def _noticed(self, number: int, _frame: FrameType | None) -> None:
        if self._raising and number in _ENDING:
            raise SystemExit(128 + number)

    def interrupting(self, work: Callable[[], T]) -> T:
        """Do something that a signal may end, or stop: until there is a command, SIGTSTP stops us as any program.

        Raises:
            SystemExit: with the exit code that shells give for the signal.
        """
        self._raising = True
        try:
            return work()
        finally:
            self._raising = False
            self._notice(signal.SIGTSTP)

    def wake(self) -> None:
        """End a wait early; from any thread."""
        with contextlib.suppress(BlockingIOError):  # full: it will wake up anyway
            os.write(self._writer, b"\0")

    def wait(self, timeout: float | None) -> list[int]:
        """The signals that have come, after ``timeout`` seconds at most; ``None``: no bound."""
        select.select([self._reader], [], [], timeout)
        try:
            return [number for number in os.read(self._reader, 512) if number]
        except BlockingIOError:
            return []


@contextlib.contextmanager
def ended_late() -> Iterator[None]:
    """Have a signal that ends a program raise in here, and end this one afterwards; those that come later are nothing.

    Raises:
        SystemExit: with the exit code that shells give for the signal; out of here only as the first process of a
            container, which does not die of signals.
    """
    came = 0

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if not came:
            came = number
            raise SystemExit(128 + number)

    # Another thread can set no handlers, and gets no signals.
    mine = _ENDING if threading.current_thread() is threading.main_thread() else ()
    ending = [number for number in mine if signal.getsignal(number) == signal.SIG_DFL]
    for number in ending:
        signal.signal(number, end)
    try:
        yield
    finally:
        ended, came = came, -1
        for number in ending:
            signal.signal(number, signal.SIG_DFL)
        if ended:
            finish(0.1)  # for releases that are left to the driver, as at the interpreter's end
            os.kill(os.getpid(), ended)


class Terminal:
    """The terminal, lent to the command if it is ours alone, so that it can read it and ask for passwords.

    In a pipeline it is not: the other programs in it need it. Then the command has a session of its own, and what is
    typed to interrupt it reaches it through us.
    """

    def __init__(self) -> None:
        self._file: int | None = None
        with contextlib.suppress(OSError):  # none
            if os.isatty(0) and os.isatty(1) and os.tcgetpgrp(0) == os.getpgrp() == os.getpid():
                self._file = 0
                signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or taking it back would stop us

    @property
    def is_ours(self) -> bool:
        """Whether it can be lent."""
        return self._file is not None

    def lend(self, group: int) -> None:
        """Let a process group have it, if we have it."""
        self._hand(os.getpgrp(), group)

    def take_back(self, group: int) -> None:
        """Have it again."""
        self._hand(group, os.getpgrp())

    def _hand(self, giver: int, taker: int) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # it has been closed
                if os.tcgetpgrp(self._file) == giver:
                    os.tcsetpgrp(self._file, taker)


class Command:
    """A running program, in a process group of its own.

    Attributes:
        group: its number.
        is_stopped: whether it was stopped as one job with us; :meth:`pause` is to follow, and then :meth:`go_on`.

    Args:
        words: the program and its arguments.
        environment: its environment.
        terminal: to lend it.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, words: Sequence[str], environment: dict[str, str], terminal: Terminal) -> None:
        # Not by `fork`, which Python must not go on from while other threads run.
        start = {"setpgroup": 0} if terminal.is_ours else {"setsid": True}
        self._terminal = terminal
        self._status: int | None = None
        self.is_stopped = False
        self.group = os.posix_spawnp(words[0], words, environment, setsigdef=_RESTORED, **start)  # type: ignore[arg-type]
        if terminal.is_ours:
            terminal.lend(self.group)
            self.send(signal.SIGCONT)  # if it wanted to read before the terminal was its own

    @property
    def exit_code(self) -> int | None:
        """As shells count: 128 and the signal that ended it; ``None`` while it runs."""
        if self._status is None:
            return None
        code = os.waitstatus_to_exitcode(self._status)
        return code if code >= 0 else 128 - code

    def send(self, number: int) -> None:
        """Send a signal to the whole group."""
        send(self.group, number)

    def pass_on(self, number: int) -> None:
        """What to do with a signal that we have got."""
        if number == signal.SIGTSTP:
            self.send(signal.SIGSTOP)  # not TSTP, which a session without a terminal ignores
            self.is_stopped = True
        elif number != signal.SIGCHLD:
            self.send(number)

    def reap(self) -> None:
        """Notice ends: of the command, and, as the init of a container, of all orphans."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
                if pid == 0:
                    return
                if pid == self.group and os.WIFSTOPPED(status):
                    self.is_stopped |= os.WSTOPSIG(status) in _STOPS
                elif pid == self.group:
                    self._status = status
                    self._terminal.take_back(self.group)

    def pause(self) -> None:
        """Stop, as one job of the shell with it; returns when that is continued, with the command still stopped."""
        self._terminal.take_back(self.group)
        os.kill(os.getpid(), signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self.is_stopped = False
        self._terminal.lend(self.group)
        self.send(signal.SIGCONT)


def send(group: int, number: int) -> bool:
    """Send a signal to a process group.

    Returns:
        Whether there is one.
    """
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # its members have become somebody else, by sudo: they are there
        return True
    return True


def terminate(group: int) -> bool:
    """Ask a process group to end, also if it is stopped.

    Returns:
        Whether there is one.
    """
    return send(group, signal.SIGTERM) and send(group, signal.SIGCONT)


class Guard:
    """A process that ends the command if this one cannot: it was killed, or is stopped while the command is not.

    To be made before there are other threads. It knows of the command from :meth:`watch` on: who is killed in the
    microseconds before that leaves a command without a lease.

    Args:
        grace: seconds from SIGTERM to SIGKILL.
    """

    def __init__(self, grace: float) -> None:
        reader, self._writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._writer)
            _stand_guard(reader, grace)
        os.close(reader)
        os.set_blocking(self._writer, False)

    def watch(self, group: int, until: float = inf) -> None:
        """End this group when we are gone, or when it is ``until`` and we have not said anything else."""
        self._say(f"{group} {until!r}")

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it has been killed, or is stopped itself and does not listen
            os.write(self._writer, f"{line}\n".encode())

    def dismiss(self) -> None:
        """Not needed any more."""
        self._say(_DISMISSED)
        os.close(self._writer)
        with contextlib.suppress(ChildProcessError):  # reaped together with orphans
            os.waitpid(self._pid, 0)


@contextlib.contextmanager
def guarded(grace: float) -> Iterator[Guard]:
    """A guard for as long as the context lasts."""
    guard = Guard(grace)
    try:
        yield guard
    finally:
        guard.dismiss()


def _stand_guard(reader: int, grace: float) -> NoReturn:
    try:
        os.setsid()  # what is typed at the terminal is not for it
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        if group := _wait_for_end(reader):
            _end(group, grace)
    finally:
        os._exit(0)


def _wait_for_end(reader: int) -> int:
    """The group that has to be ended now; 0 if none has to be."""
    group, until, rest = 0, inf, b""
    while True:
        # No longer than a second at once, if there is a deadline: the time during a suspend does not count as waited.
        pause = None if until == inf else min(max(until - now(), 0.0), 1.0)
        if select.select([reader], [], [], pause)[0]:
            chunk = os.read(reader, 4096)
            if not chunk:
                return group
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.decode() == _DISMISSED:
                    return 0
                number, deadline = line.split()
                group, until = int(number), float(deadline)
        elif now() >= until:
            return group


def _end(group: int, grace: float) -> None:
    deadline = time.monotonic() + grace
    there = terminate(group)
    while there and time.monotonic() < deadline:
        time.sleep(POLL)
        there = send(group, 0)
    send(group, signal.SIGKILL)
