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
    """Says in the running loop when a descriptor is readable: what ``add_reader`` does in other loops.

    Lives until it is stopped or its loop is closed, and the thread as long as this.

    Args:
        fd: the descriptor.
        ready: called in the loop. The descriptor is looked at again when it has returned.
    """

    def __init__(self, fd: int, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._near, far = socket.socketpair()
        finalize(self, _close, self._near, os.getpid())
        selector = selectors.DefaultSelector()
        for each in (fd, far):
            selector.register(each, selectors.EVENT_READ)
        loop = asyncio.get_running_loop()
        self._stay(loop)
        # A weak reference, or the thread would keep alive what it is to end with.
        tell = _Teller(loop, WeakMethod(self._on_ready))
        threading.Thread(target=_watch, args=(selector, far, tell), name="redlock-watch", daemon=True).start()

    def _on_ready(self) -> None:
        try:
            self._ready()
        finally:
            self._near.send(b".")

    def _stay(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the loop refer to this: between two calls, nothing else does."""
        self._timer = loop.call_later(A_DAY, self._stay, loop)

    def stop(self) -> None:
        """End it now. Called in the loop."""
        self._timer.cancel()
        self._ready = _nothing


def _nothing() -> None:
    pass


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


def _watch(selector: selectors.BaseSelector, seen: socket.socket, tell: _Teller) -> None:
    """The thread. It tells of a readiness once, and waits until the loop has seen to it."""
    with seen, selector:
        while selector.select():
            tell()
            if not seen.recv(1):
                return
