"""A long way to a master, in a process of its own, so that many leases are not slowed down by what measures them.

wire.py PORT    says the port on which it listens; then each line it gets is the delay each way, in seconds. Ends when
there are no more lines.
"""

from __future__ import annotations

import asyncio
import selectors
import sys

CHUNK = 65_536


class Wire:
    """Delivers to a port, order kept.

    Args:
        port: of the master.
    """

    def __init__(self, port: int) -> None:
        self._port, self._delay = port, 0.0

    async def run(self) -> None:
        """Serve until standard input ends."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        loop, end = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), self._obey, end)
        await end.wait()

    def _obey(self, end: asyncio.Event) -> None:
        line = sys.stdin.readline()
        if line:
            self._delay = float(line)
        else:
            end.set()

    async def _serve(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        try:
            far_in, far_out = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:  # the master is being restarted
            near_out.close()
            return
        await asyncio.gather(self._pump(near_in, far_out), self._pump(far_in, near_out))

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop, data = asyncio.get_running_loop(), b"?"
        while data:
            try:
                data = await source.read(CHUNK)
            except OSError:
                data = b""
            loop.call_later(self._delay, _deliver, sink, data)


def _deliver(sink: asyncio.StreamWriter, data: bytes) -> None:
    if not data:
        sink.close()
    elif not sink.is_closing():
        sink.write(data)


if __name__ == "__main__":
    # epoll waits whole milliseconds, which is much of what this is to wait.
    wire_loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    wire_loop.run_until_complete(Wire(int(sys.argv[1])).run())
