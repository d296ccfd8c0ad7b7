"""Watching descriptors for an event loop that cannot do it itself, as Windows' default one: by a thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import threading
from typing import TYPE_CHECKING
from weakref import WeakMethod, finalize

if TYPE_CHECKING:
    from collections.abc import Callable

A_DAY = 86_400.0


class WatchingThread:
    """Says in the running loop when a descriptor is ready: what `add_reader` and `add_writer` do in other loops.

    Lives until its loop is closed, and the thread as long as this.

    Args:
        ready: called in the loop. Descriptors are looked at again when it has returned.
    """

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._wanted: dict[int, int] = {}
        self._near, far = socket.socketpair()
        self._near.settimeout(0)
        finalize(self, _close, self._near, os.getpid())
        loop = asyncio.get_running_loop()
        self._stay(loop)
        # A weak reference, or the thread would keep alive what it is to end with.
        tell = _Teller(loop, WeakMethod(self._on_ready))
        threading.Thread(target=_watch, args=(far, self._wanted, tell), name="redlock-watch", daemon=True).start()

    def watch(self, fd: int, read: bool, write: bool) -> None:  # noqa: FBT001 - as the engine says it
        """Watch a descriptor for this from now on; for nothing if neither."""
        events = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
        if events:
            self._wanted[fd] = events
        else:
            self._wanted.pop(fd, None)
        self._look_again()

    def _on_ready(self) -> None:
        self._ready()
        self._look_again()

    def _look_again(self) -> None:
        with contextlib.suppress(BlockingIOError):  # so many have been sent that it is about to
            self._near.send(b".")

    def _stay(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop refer to this: between two calls, nothing else does."""
        loop.call_later(A_DAY, self._stay, loop)


def _close(near: socket.socket, pid: int) -> None:
    """Close it; not in a forked child, where its number may have become another file's."""
    if pid == os.getpid():
        near.close()
    else:
        near.detach()


class _Teller:
    """Calls a method in a loop, if both are still there."""

    def __init__(self, loop: asyncio.AbstractEventLoop, method: WeakMethod[Callable[[], None]]) -> None:
        self._loop, self._method = loop, method

    def __call__(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._call)

    def _call(self) -> None:
        if method := self._method():
            method()


def _watch(nudge: socket.socket, wanted: dict[int, int], tell: _Teller) -> None:
    """The thread. It tells of each readiness once: until it is nudged, the loop has not seen to it."""
    told = False
    with nudge:
        while True:
            if nudge not in _wait(nudge, {} if told else dict(wanted)):
                told = True
                tell()
            elif nudge.recv(4096):
                told = False
            else:
                return


def _wait(nudge: socket.socket, wanted: dict[int, int]) -> list[object]:
    with selectors.DefaultSelector() as selector:
        selector.register(nudge, selectors.EVENT_READ)
        for fd, events in wanted.items():
            with contextlib.suppress(OSError):  # closed a moment ago: we are about to be told
                selector.register(fd, events)
        return [key.fileobj for key, _ in selector.select()]
