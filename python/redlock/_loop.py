"""The asyncio host: one engine session per event loop, waited for by the loop itself. No threads, if the loop can."""

from __future__ import annotations

import asyncio
import contextlib
import os
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from redlock._watching import WatchingThread

T = TypeVar("T")

if TYPE_CHECKING:
    from collections.abc import Callable

    from redlock._redlock import Engine, LoopSession, Operation

    GiveBack = Callable[[T], Operation[Any] | None]

# Seconds that a cancelled caller waits for what it took to be given back. Well masters take a round trip; the engine
# itself gives up the others sooner than this.
GRACE = 1.0
# Seconds after which the engine looks at its clock again: the loop's stands still while the machine is suspended.
LONGEST_WAIT = 0.5
# Seconds for which connections are kept for the next manager when the last one is gone, and how many managers' at most.
LONGEST_UNUSED = 60
MOST_UNUSED = 8


class LoopHost:
    """Waits for the engine's sockets and deadlines with a reader and the timers of one loop.

    The loop owns it: it lives as long as that reader, a timer or a task of the loop refers to it. When the loop is
    closed none does, and the connections end with it. Managers of the same masters share it. When the last of them is
    gone it is kept for :data:`LONGEST_UNUSED`, and then ends as soon as nothing is left to do on its connections.
    """

    def __init__(self, session: LoopSession) -> None:
        self._session = session
        self._calls: dict[int, _Call[Any]] = {}
        self._due: float | None = None  # not the timer: that would keep the loop alive
        self._watched: int | None = None
        self._thread: ref[WatchingThread] | None = None  # the loop keeps it
        self._managers: set[ref[LoopHosts]] = set()
        self.unused_since: float | None = None
        self._is_timed = False

    def serve(self, manager: LoopHosts) -> None:
        """Wait for what this manager begins as well, until it is collected."""
        host, loop, pid = ref(self), ref(asyncio.get_running_loop()), os.getpid()
        self._managers.add(ref(manager, lambda gone: _leave(host, gone, loop, pid)))
        self.unused_since = None

    def leave(self, gone: ref[LoopHosts]) -> None:
        """A manager was collected. Called in the loop."""
        self._managers.discard(gone)
        if self._managers:
            return
        loop = asyncio.get_running_loop()
        self.unused_since = loop.time()
        if not self._is_timed:
            self._age_in(LONGEST_UNUSED)
        for host in _unused(loop)[:-MOST_UNUSED]:
            host.close()

    def _age_in(self, seconds: float) -> None:
        self._is_timed = True
        asyncio.get_running_loop().call_later(seconds, _age, ref(self), os.getpid())

    def age(self) -> None:
        """Close it, unless it was used meanwhile. Called in the loop."""
        self._is_timed = False
        if self.unused_since is None:
            return
        left = self.unused_since + LONGEST_UNUSED - asyncio.get_running_loop().time()
        if left > 0:
            self._age_in(left)
        else:
            self.close()

    def close(self) -> None:
        """Have no manager find it any more, and its connections end. Called in the loop."""
        shared, home = _HOSTS[asyncio.get_running_loop()], self._session.home
        if shared.get(home) is self:
            del shared[home]
            self._close_when_done()

    def _close_when_done(self) -> None:
        """Have the connections end as soon as nothing is left to do on them."""
        loop = asyncio.get_running_loop()
        if self._calls or self._session.is_busy():
            loop.call_later(LONGEST_WAIT, self._close_when_done)
            return
        self._due = None  # or a timer that is still set would begin again
        if self._thread and (thread := self._thread()):
            thread.stop()
        elif self._watched is not None:
            loop.remove_reader(self._watched)

    async def run(self, operation: Operation[T], give_back: GiveBack[T] | None = None) -> T:
        """Run an operation to its end and return its outcome.

        A caller that is cancelled leaves nothing behind. It waits for that, for :data:`GRACE` at most; cancelled once
        more it leaves at once, and the rest is done behind its back.

        Args:
            operation: what to do.
            give_back: what undoes the outcome that a cancelled caller does not see, if anything does.

        Raises:
            asyncio.CancelledError: the calling task was cancelled.
        """
        call = _Call(self, give_back)
        number = self.start(operation, call)
        try:
            return await call.outcome
        except asyncio.CancelledError:
            if call.outcome.cancelled():
                self._session.cancel(number)
                self._turn()
            else:  # cancelled when the outcome was there and the task had not gone on yet
                call.orphan(call.outcome.result())
            await asyncio.wait((call.over,), timeout=GRACE)
            raise

    def begin(self, operation: Operation[Any]) -> None:
        """Begin an operation whose end no caller waits for."""
        self.start(operation, _Call(self, None))

    def start(self, operation: Operation[Any], call: _Call[Any]) -> int:
        """Begin an operation that tells ``call`` its outcome; returns its number."""
        number = self._session.start(operation)
        self._calls[number] = call
        self._turn()
        return number

    def _turn(self) -> None:
        """Let the engine go on, with what has come and what is due."""
        finished, queue, pause, is_news = self._session.turn()
        if is_news:
            # Not here: a handler may end the program, and what has just ended is still in our hands.
            asyncio.get_running_loop().call_soon(self._session.write_log)
        if queue is not None and queue != self._watched:
            self._watch(queue)
        if pause is not None:
            self._wake_in(pause)
        for number, outcome in finished:
            self._calls.pop(number).finish(outcome)

    def _watch(self, queue: int) -> None:
        try:
            asyncio.get_running_loop().add_reader(queue, self._turn)
        except NotImplementedError:
            self._thread = ref(WatchingThread(queue, self._turn))
        self._watched = queue

    def _wake_in(self, pause: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + min(pause, LONGEST_WAIT)
        # A timer that goes off too early costs one turn; setting it anew for each operation would cost more.
        if self._due is None or due < self._due:
            self._due = due
            loop.call_at(due, self._on_timer, due)

    def _on_timer(self, due: float) -> None:
        if due == self._due:
            self._due = None
            self._turn()


class _Call(Generic[T]):
    """An operation in progress, and who waits for it.

    Attributes:
        outcome: for the caller.
        over: done when a cancelled caller has nothing left behind.
    """

    __slots__ = ("_give_back", "_host", "outcome", "over")

    def __init__(self, host: LoopHost, give_back: GiveBack[T] | None) -> None:
        loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[T] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self._host = host
        self._give_back = give_back

    def finish(self, outcome: T) -> None:
        """The operation has ended."""
        if self.outcome.done():
            self.orphan(outcome)
        else:
            self.outcome.set_result(outcome)

    def orphan(self, outcome: T) -> None:
        """Nobody is there to see the outcome: give back what it took."""
        give_back, self._give_back = self._give_back, None
        operation = give_back(outcome) if give_back else None
        if operation:
            self._host.start(operation, self)
        elif not self.over.done():
            self.over.set_result(None)


def _leave(host: ref[LoopHost], gone: ref[LoopHosts], loop: ref[asyncio.AbstractEventLoop], pid: int) -> None:
    """Called when a manager is collected: in any thread, in the middle of anything, and in a forked child as well."""
    left, running = host(), loop()
    if left and running and pid == os.getpid():
        with contextlib.suppress(RuntimeError):  # it is closed
            running.call_soon_threadsafe(left.leave, gone)


def _age(host: ref[LoopHost], pid: int) -> None:
    """Called in the loop when a host was not used for long; in a forked child that goes on with it as well."""
    kept = host()
    if kept and pid == os.getpid():
        kept.age()


# The hosts of each loop, by what the engines have in common that may share one.
_HOSTS: WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[int, LoopHost]] = WeakKeyDictionary()


def _unused(loop: asyncio.AbstractEventLoop) -> list[LoopHost]:
    """Those of a loop that no manager uses, the one first that is unused for longest."""
    unused = [(since, host) for host in list(_HOSTS[loop].values()) if (since := host.unused_since) is not None]
    return [host for _, host in sorted(unused, key=itemgetter(0))]


def _close_unused() -> None:
    """Close what no manager uses in the running loop: a forked child would keep those connections open."""
    with contextlib.suppress(RuntimeError, KeyError):  # there is no loop, or none of ours in it
        for host in _unused(asyncio.get_running_loop()):
            host.close()


os.register_at_fork(before=_close_unused)


class LoopHosts:
    """The hosts of one manager: one for each event loop that it is used in. Others of the same masters share them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._hosts: WeakKeyDictionary[asyncio.AbstractEventLoop, ref[LoopHost]] = WeakKeyDictionary()

    def current(self) -> LoopHost:
        """The running loop's. A forked child gets new ones, for it must not touch its parent's connections.

        Raises:
            RuntimeError: no loop is running.
        """
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._forget()
        known = self._hosts.get(loop)
        host = known() if known else None
        if host is None:
            shared = _HOSTS.setdefault(loop, WeakValueDictionary())
            host = shared.get(self._engine.home)
            if host is None:
                host = shared[self._engine.home] = LoopHost(self._engine.loop_session())
            host.serve(self)
            self._hosts[loop] = ref(host)
        return host
