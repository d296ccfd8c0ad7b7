"""What a thread of Python's has to do for leases that the engine renews: tell of a loss, and log.

A signal handler may raise between any two steps of the thread that calls, and may call itself. So callers take no lock
that the keeper takes, too.
"""

from __future__ import annotations

import _thread
import contextlib
import itertools
import threading
from typing import TYPE_CHECKING
from weakref import ref

from redlock._connections import logger
from redlock._redlock import Events

if TYPE_CHECKING:
    from collections.abc import Callable

    from redlock._lease import LeaseBase

# Seconds after which deadlines are looked at again: while the machine is suspended, what is waited stands still.
LONGEST_WAIT = 1.0


class _Kept(ref["LeaseBase"]):
    """A lease that is kept. There are thousands: no closures."""

    __slots__ = ("give_back", "number")

    give_back: Callable[[], object] | None
    number: int


class Keeper:
    """Keeps the leases of one manager, by one thread that is there only while there are any.

    The engine renews them without the interpreter; this is what it tells of a loss. It keeps no lease alive. Of one
    process: a forked child makes its own.
    """

    def __init__(self) -> None:
        self._events = Events()
        kept: dict[int, _Kept] = {}
        dropped: list[Callable[[], object]] = []  # what releases those that nothing refers to any more

        def drop(lease: ref[LeaseBase]) -> None:
            if isinstance(lease, _Kept) and lease.number in kept:
                del kept[lease.number]
                if lease.give_back:
                    dropped.append(lease.give_back)

        self._kept, self._dropped, self._drop = kept, dropped, drop
        self._numbers = itertools.count()
        self._at_work = threading.Lock()  # held by the thread, and taken by no other

    def keep(self, lease: LeaseBase, max_hold: float | None, give_back: Callable[[], object] | None = None) -> int:
        """Have a lease renewed until it ends or nothing refers to it any more.

        Args:
            lease: that was just granted.
            max_hold: seconds after which it ends; ``None``: no bound.
            give_back: releases it when nothing refers to it any more, if the engine cannot.

        Returns:
            The number to be forgotten when it has ended.

        Raises:
            RuntimeError: no thread can be started.
        """
        kept = _Kept(lease, self._drop)
        number = kept.number = next(self._numbers)
        kept.give_back = give_back
        self._kept[number] = kept
        try:
            if not self._at_work.locked():
                start_thread(self._run, "redlock-keeper")
            lease._state.keep(self._events, number, max_hold)  # noqa: SLF001 - its other half
        except BaseException:
            self.forget(number)
            raise
        return number

    def forget(self, number: int) -> None:
        """Have nothing to do with a lease any more, of which no code runs then when it is freed."""
        self._kept.pop(number, None)

    def _run(self) -> None:
        while self._at_work.acquire(blocking=False):  # or there is a thread already
            try:
                while self._kept or self._dropped:
                    self._attend()
            finally:
                self._at_work.release()
            if not self._kept and not self._dropped:  # what has come since would have found us at work
                return

    def _attend(self) -> None:
        while self._dropped:
            try:
                self._dropped.pop()()
            except BaseException:  # noqa: BLE001 - there are other leases
                _log_error("Error releasing what nothing refers to any more")
        news = self._events.wait(LONGEST_WAIT)
        # To tell a holder in time goes before everything else.
        for number, what, ttl in sorted(news, key=lambda each: each[1] != "lost"):
            known = self._kept.get(number)
            lease = known() if known else None
            if lease is not None:
                try:
                    lease._on_event(what, ttl)  # noqa: SLF001 - its other half
                except BaseException:  # noqa: BLE001 - there are other leases
                    _log_error("Error keeping %r", lease)
            del lease  # or the next wait would keep it alive


def _log_error(text: str, *args: object) -> None:
    """Log what was just raised. What a log handler raises must not end the thread: there are other leases."""
    with contextlib.suppress(BaseException):
        logger.exception(text, *args)


def start_thread(target: Callable[[], object], name: str) -> None:
    """Start a daemon thread: one that the interpreter does not wait for at its end.

    By one call into C: an exception in the middle of :meth:`threading.Thread.start` can leave a thread that never runs.

    Raises:
        RuntimeError: no thread can be started.
    """
    _thread.start_new_thread(_begin, (target, name))


def _begin(target: Callable[[], object], name: str) -> None:
    """In the new thread, in which no signal handler runs: have another run ``target``, which tools know by its name."""
    try:
        threading.Thread(target=target, name=name, daemon=True).start()
    except RuntimeError:  # that was the last one there was
        target()
