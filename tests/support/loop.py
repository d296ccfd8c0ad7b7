"""One event loop in one daemon thread, on which every network double of the rig lives."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    import ssl
    from collections.abc import Coroutine, Iterator

T = TypeVar("T")
Serve: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

# Below the kernel's ephemeral range (32768 and up): a port of that range can be taken by an outgoing connection while
# its server is down, and a client that retries it can even connect to itself. Ten thousand above each is its bus, on
# which a node of a cluster listens as well: those are below, too, and no other program's.
_FIRST, _COUNT, BUS = 12_000, 10_000, 10_000
_PORTS: Iterator[int] = itertools.cycle(range(_COUNT))


class LoopThread:
    """An asyncio loop running in a daemon thread; started at the first use.

    Attributes:
        new_loop: makes the loop; to be changed before the first use.
    """

    def __init__(self) -> None:
        self.new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[object, object, T], timeout: float = 10.0) -> T:
        """Run a coroutine on the loop and wait for its result, ``timeout`` seconds at most."""
        return asyncio.run_coroutine_threadsafe(work, self._started()).result(timeout)

    def stop(self) -> None:
        """Cancel what still runs and end the thread. A later `run` starts anew."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self.run(_cancel_all())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
        self._loop = self._thread = None

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = self.new_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="rig", daemon=True)
            self._thread.start()
        return self._loop


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


RIG = LoopThread()


class Listener:
    """A TCP server on the rig's loop, which leaves no connection behind when it is stopped.

    Args:
        serve: what to do with a connection; it is closed afterwards. Its ``OSError`` says that the other side ended it.
        host: where to listen.
        tls: for a TLS server.

    Attributes:
        port: where it listens, also after it was stopped and started again.
        tls: what it is started with the next time.
    """

    def __init__(self, serve: Serve, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.port = free_port(host)
        self._serve, self._host, self.tls = serve, host, tls
        self._server: asyncio.Server | None = None
        self._served: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.start()

    @property
    def open_connections(self) -> int:
        """How many connections are served."""
        return len(self._served)

    def start(self) -> None:
        """Listen."""
        RIG.run(self._start())

    def refuse(self) -> None:
        """Listen no longer; present connections stay."""
        RIG.run(self._refuse())

    def stop(self) -> None:
        """Listen no longer, and close every connection."""
        RIG.run(self._refuse())
        RIG.run(self._end())

    async def _start(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, self._host, self.port, ssl=self.tls)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _end(self) -> None:
        for task, writer in self._served.items():
            task.cancel()
            writer.transport.abort()
        await asyncio.gather(*self._served, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # the kernel had accepted it before it was told
            writer.transport.abort()
            return
        task = asyncio.create_task(self._connection(reader, writer))
        self._served[task] = writer
        task.add_done_callback(self._served.pop)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            writer.close()


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port on which nothing listens at ``host``, nor at the bus of a cluster's node there."""
    for _ in range(_COUNT):
        port = (next(_PORTS) + os.getpid() * 37) % _COUNT + _FIRST
        if _is_free(host, port) and _is_free(host, port + BUS):
            return port
    message = f"no free port on {host}"
    raise RuntimeError(message)
