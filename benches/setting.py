"""The masters of a measurement: real servers, and what is wrong with one of them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import selectors
import statistics
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from support.loop import RIG
from support.proxy import Proxy
from support.servers import Server, ServerKind

from .awake import awake

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import redis

    from support.locks import Place

# Of replies, and up to so much more each way. With what the proxy itself takes, about 2 ms: `far` measures it.
DELAY, JITTER = 0.001, 0.0005  # seconds
SLOW = 0.05  # seconds; well within the timeout below
# What one would set who expects masters to break. Contenders without such an option go without.
TIMEOUTS = "?socket_timeout=0.1&socket_connect_timeout=0.1"


class Condition(Enum):
    """How the masters are."""

    HEALTHY = "healthy"
    AWAKE = "healthy, no processor sleeps"
    DELAYED = "2 ms away"
    FAR = "5 ms away each way"
    FROZEN = "5 ms away each way, a majority frozen for 1 s"
    NEAR = "one 0.5 ms away"
    NEARBY = "one 3 ms away"
    DISTANT = "one 50 ms away"
    REMOTE = "one 1 s away"
    RESTARTED = "one 3 ms away, all restarted one after another"
    HUNG_BEFORE = "one hung before the first call"
    FORGOTTEN = "all idle connections forgotten"
    SLOW = "one slow"
    HUNG = "one hung"
    DEAD = "one dead"

    @property
    def is_fault(self) -> bool:
        """Whether one master breaks, which N = 1 cannot survive, and all are given a timeout for it."""
        return self in {Condition.SLOW, Condition.HUNG, Condition.DEAD}

    @property
    def is_uneven(self) -> bool:
        """Whether one master becomes worse than the others, which a first call has to find out."""
        return self.is_fault or self in AWAY


# Seconds of a round trip to the masters behind wires: to the first one, or to all of them.
AWAY = {
    Condition.NEAR: 0.0005,
    Condition.NEARBY: 0.003,
    Condition.RESTARTED: 0.003,
    Condition.DISTANT: 0.05,
    Condition.REMOTE: 1.0,
}
ALL_AWAY = {Condition.FAR: 0.01, Condition.FROZEN: 0.01}


class Wire:
    """The way to a server through a process of its own: `wire.py`.

    Args:
        server: where it leads.
    """

    def __init__(self, server: Server) -> None:
        command = [sys.executable, str(Path(__file__).with_name("wire.py")), str(server.port)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._child.stdout is not None  # noqa: S101 (for mypy: both are pipes)
        self.url = f"redis://127.0.0.1:{int(self._child.stdout.readline())}"

    def delay(self, seconds: float) -> None:
        """Hold what arrives from now on so long, each way."""
        assert self._child.stdin is not None  # noqa: S101
        self._child.stdin.write(f"{seconds}\n".encode())
        self._child.stdin.flush()

    def stop(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()


class Setting:
    """Running masters, all well until `strike`.

    Args:
        kind: of the servers.
        size: how many.
        condition: how they will be.
        stack: what ends them.
    """

    def __init__(self, kind: ServerKind, size: int, condition: Condition, stack: ExitStack) -> None:
        self.size, self.condition = size, condition
        self._servers: list[Server] = []
        for _ in range(size):
            self._servers.append(Server(kind, aof=condition is Condition.RESTARTED))
            stack.callback(self._servers[-1].stop)
        self._wires: list[Wire] = []
        for server in self._behind_wires():
            self._wires.append(Wire(server))
            stack.callback(self._wires[-1].stop)
        self._proxies: list[Proxy] = []
        for server in self._behind_proxies():
            self._proxies.append(Proxy(server))
            stack.callback(self._proxies[-1].stop)
        if condition is Condition.DELAYED:
            for proxy in self._proxies:
                proxy.delay, proxy.jitter = DELAY, JITTER

    def _behind_wires(self) -> Sequence[Server]:
        if self.condition in ALL_AWAY:
            return self._servers
        return self._servers[:1] if self.condition in AWAY else []

    def _behind_proxies(self) -> Sequence[Server]:
        among = {
            Condition.DELAYED: self._servers,
            Condition.FORGOTTEN: self._servers,
            Condition.SLOW: self._servers[:1],
        }
        return among.get(self.condition, [])

    @property
    def _places(self) -> Sequence[Place | Wire]:
        between: list[Place | Wire] = [*self._wires, *self._proxies]
        return [*between, *self._servers[len(between) :]]

    @property
    def urls(self) -> list[str]:
        """Of the masters, with the timeouts that all contenders are given where one master is going to break."""
        options = TIMEOUTS if self.condition.is_fault else ""
        return [place.url + options for place in self._places]

    @property
    def first_port(self) -> int:
        """Where contenders connect to the first master."""
        return int(self._places[0].url.rpartition(":")[2])

    @property
    def round_trip(self) -> float:
        """Seconds to the master that is farthest away, once it is."""
        return {**AWAY, **ALL_AWAY}.get(self.condition, 0.0)

    def strike(self) -> None:
        """Break the first master, move masters away or forget connections, if that is the condition."""
        for wire in self._wires:
            wire.delay(self.round_trip / 2)
        if self.condition is Condition.FORGOTTEN:
            for proxy in self._proxies:
                proxy.forget()
        elif self.condition is Condition.SLOW:
            self._proxies[0].delay = SLOW
        elif self.condition in {Condition.HUNG, Condition.HUNG_BEFORE}:
            self._servers[0].freeze()
        elif self.condition is Condition.DEAD:
            self._servers[0].kill()

    def freeze(self, seconds: float) -> None:
        """Stop a majority for so long."""
        majority = self._servers[: self.size // 2 + 1]
        for server in majority:
            server.freeze()
        time.sleep(seconds)
        for server in majority:
            server.thaw()

    def restart(self, pause: float) -> None:
        """Kill each master and start it with its data, one after another, with seconds between them."""
        for server in self._servers:
            server.restart()
            time.sleep(pause)

    def having(self, resource: str) -> int:
        """How many masters have one and the same lock."""
        keys = Counter(key for server in self._servers if (key := server.get(resource)) is not None)
        return max(keys.values(), default=0)

    def left(self, pid: int) -> int:
        """How many locks of a contender the first master has."""
        keys = self._servers[0].keys()
        return sum(bool(re.search(rb"bench:%d\b" % pid, key)) for key in keys)

    def commands(self) -> int:
        """How many all masters together have carried out so far."""
        return sum(int(_admin(server).info("stats")["total_commands_processed"]) for server in self._servers)

    def round_trips(self) -> list[float]:
        """Some to the first master, in milliseconds, from Python."""
        client = self._servers[0].client(port=self.first_port)
        return [_ping(client) for _ in range(30)][10:]


def _admin(server: Server) -> redis.Redis:
    return server.admin


def _ping(client: redis.Redis) -> float:
    begin = time.perf_counter()
    client.ping()
    return (time.perf_counter() - begin) * 1000


@contextlib.contextmanager
def setting(kind: ServerKind, size: int, condition: Condition = Condition.HEALTHY) -> Iterator[Setting]:
    """Masters, ended afterwards."""
    with ExitStack() as stack:
        if condition is Condition.AWAKE:
            stack.enter_context(awake())
        yield Setting(kind, size, condition, stack)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Where the proxies run, ended afterwards."""
    # epoll waits whole milliseconds, which is as long as what the proxy is to wait.
    RIG.new_loop = lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        yield
    finally:
        RIG.stop()


def far(kind: ServerKind, condition: Condition) -> str:
    """How far away masters behind the proxy are, as measured."""
    with setting(kind, 1, condition) as masters:
        masters.strike()
        times = masters.round_trips()
    cuts = statistics.quantiles(times, n=20)
    return f"{statistics.median(times):.1f} ms ({cuts[0]:.1f}-{cuts[-1]:.1f})"
