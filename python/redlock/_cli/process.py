"""The child of ``redlock run``: its signals, its terminal, its end, and who sees to that if this process is killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import NoReturn, TypeVar

    from typing_extensions import Self

    T = TypeVar("T")

# What ends a program unless it has other plans; passed on to the command, or ends the wait for the lock.
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_OTHERS = (signal.SIGCHLD, signal.SIGTSTP, signal.SIGWINCH)
# What Python, and this module, ignore: a program expects the defaults.
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTOU)
_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)

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
            # nohup, and shells without job control, have children ignore what is not for them.
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._noticed)
        return self

    def __exit__(self, *error: object) -> None:
        # The handlers stay: what comes now comes too late to matter, and must not change the exit code.
        signal.set_wakeup_fd(-1)

    def _noticed(self, number: int, _frame: FrameType | None) -> None:
        if self._raising and number in _ENDING:
            raise SystemExit(128 + number)

    def interrupting(self, work: Callable[[], T]) -> T:
        """Do something that a signal may end.

        Raises:
            SystemExit: with the exit code that shells give for the signal.
        """
        self._raising = True
        try:
            return work()
        finally:
            self._raising = False

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
        self.group = os.posix_spawnp(words[0], words, environment, setsigdef=_RESTORED, **start)  # type: ignore[arg-type]
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
            self._pause()
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
                    if os.WSTOPSIG(status) in _STOPS:
                        self._pause()
                elif pid == self.group:
                    self._status = status
                    self._terminal.take_back(self.group)

    def _pause(self) -> None:
        """Stop with it, as one job of the shell; returns when that is continued."""
        self._terminal.take_back(self.group)
        os.kill(os.getpid(), signal.SIGSTOP)
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
    """A process that ends the command if this one is killed, which could not extend the lease any more.

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

    def watch(self, group: int) -> None:
        """End this group when we are gone."""
        with contextlib.suppress(OSError):  # it has been killed
            os.write(self._writer, b"%d" % group)

    def dismiss(self) -> None:
        """Not needed any more."""
        with contextlib.suppress(OSError):  # the same
            os.write(self._writer, b".")
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
        said = b""
        while chunk := os.read(reader, 64):
            said += chunk
        if said and not said.endswith(b"."):
            _end(int(said), grace)
    finally:
        os._exit(0)


def _end(group: int, grace: float) -> None:
    deadline = time.monotonic() + grace
    there = terminate(group)
    while there and time.monotonic() < deadline:
        time.sleep(POLL)
        there = send(group, 0)
    send(group, signal.SIGKILL)
