"""A TCP proxy that is a bad network: delays, loses, cuts and refuses, as told while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from .loop import RIG, Listener, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .servers import Server
    from .tls import TlsFront

CHUNK = 65_536


class Mode(Enum):
    """What the proxy does with bytes that arrive."""

    PASS = auto()
    SWALLOW = auto()  # both directions vanish, both connections stay
    SWALLOW_REPLIES = auto()  # the server gets, and obeys, what nobody hears the answer of
    DRIP = auto()  # a byte at a time, `drip` seconds apart
    HALF_OPEN = auto()  # the server's side is closed, the client is never told


@dataclass(eq=False)
class Link:
    """One client connection through the proxy, and how many bytes went each way."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    sent: bytearray = field(default_factory=bytearray)  # what the client wrote, delivered or not
    received: int = 0  # bytes the server wrote, delivered or not
    open: bool = True
    forgotten: bool = False


class Proxy:
    """Between a client and a server. Attributes may be set at any time; they hold for what arrives afterwards.

    Args:
        server: where to pass bytes to.
        seed: of the jitter.

    Attributes:
        mode: see `Mode`.
        delay: seconds that replies are held.
        delay_requests: seconds that requests are held.
        jitter: up to so many further seconds, order kept.
        drip: seconds between bytes in `Mode.DRIP`.
        links: every connection there has been, in order.
    """

    def __init__(self, server: Server | TlsFront, seed: int = 1) -> None:
        self._target = (server.host, server.port)
        self.host = "127.0.0.1"
        self.mode = Mode.PASS
        self.delay = self.delay_requests = self.jitter = 0.0
        self.drip = 0.001
        self.links: list[Link] = []
        self._random = random.Random(seed)  # a repeatable network
        self._listener = Listener(self._serve, self.host)
        self.port = self._listener.port

    @property
    def url(self) -> str:
        """For `Redlock`."""
        return f"redis://{self.host}:{self.port}"

    @property
    def sent(self) -> int:
        """Bytes that clients wrote on all connections."""
        return sum(len(link.sent) for link in self.links)

    def refuse(self) -> None:
        """Answer further connection attempts with RST (ECONNREFUSED); the present ones stay."""
        self._listener.refuse()

    def accept(self) -> None:
        """Undo `refuse`."""
        self._listener.start()

    def reset(self) -> None:
        """RST on every present connection of a client, as from a machine that has rebooted."""
        RIG.run(self._end_links(rst=True))

    def close(self) -> None:
        """FIN on every present connection of a client, as from a server that closes idle ones."""
        RIG.run(self._end_links(rst=False))

    def forget(self) -> None:
        """Lose all further bytes on the present connections, as a NAT does with idle ones; new ones work."""
        for link in self.links:
            link.forgotten = True

    def stop(self) -> None:
        """Refuse and cut everything."""
        self._listener.stop()

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        try:
            server_in, server_out = await asyncio.open_connection(*self._target)
        except OSError:
            _abort(client_out)
            return
        link = Link(client_out, server_out)
        self.links.append(link)
        pumps = [
            asyncio.create_task(self._pump(link, client_in, server_out, up=True)),
            asyncio.create_task(self._pump(link, server_in, client_out, up=False)),
        ]
        try:
            await asyncio.gather(*pumps)
        except OSError:
            _abort(client_out)
        finally:
            for pump in pumps:
                pump.cancel()
            link.open = False
            server_out.close()

    async def _pump(self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, up: bool) -> None:
        """Read without pause, deliver each chunk when its time has come: a delay costs latency, not throughput."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivery = asyncio.create_task(self._deliver(queue, link, sink, up=up))
        try:
            data = b"?"
            while data:
                data = await source.read(CHUNK)
                link.sent.extend(data if up else b"")
                link.received += 0 if up else len(data)
                queue.put_nowait((self._due(up=up), data))
            await delivery
        finally:
            delivery.cancel()

    def _due(self, *, up: bool) -> float:
        delay = self.delay_requests if up else self.delay
        return asyncio.get_running_loop().time() + delay + self._random.uniform(0, self.jitter)

    async def _deliver(
        self, queue: asyncio.Queue[tuple[float, bytes]], link: Link, sink: asyncio.StreamWriter, *, up: bool
    ) -> None:
        data = b"?"
        while data:
            due, data = await queue.get()
            await asyncio.sleep(due - asyncio.get_running_loop().time())
            if self.mode is Mode.HALF_OPEN:
                link.server.close()
            elif not (link.forgotten or self._lost(up=up)):
                await self._write(sink, data)

    def _lost(self, *, up: bool) -> bool:
        return self.mode is Mode.SWALLOW or (self.mode is Mode.SWALLOW_REPLIES and not up)

    async def _write(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        if not data:
            sink.write_eof()
            return
        for piece in (data[i : i + 1] for i in range(len(data))) if self.mode is Mode.DRIP else [data]:
            sink.write(piece)
            await sink.drain()
            if self.mode is Mode.DRIP:
                await asyncio.sleep(self.drip)

    async def _end_links(self, *, rst: bool) -> None:
        for link in self.links:
            if link.open and rst:
                _abort(link.client)
            elif link.open:
                link.client.close()
            link.server.close()
        await asyncio.sleep(0)


def _abort(writer: asyncio.StreamWriter) -> None:
    """RST: close with a linger time of zero."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextlib.contextmanager
def syn_black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port on which a connection attempt is neither accepted nor refused: a listener whose backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port or free_port()))
        listener.listen(0)
        for _ in range(8):  # the kernel rounds the backlog up; the ones too many just stay in SYN_SENT
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
