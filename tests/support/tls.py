"""A certificate authority and its certificates, and TLS in front of a plain server; no server here has it built in."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING

import trustme

from .loop import Listener

if TYPE_CHECKING:
    from pathlib import Path

    from .servers import Server


class Authority:
    """A CA with a certificate for this machine, one for a name that is not this machine's, and one for clients.

    All attributes are PEM files in ``directory``.
    """

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self.server = directory / "server.pem"
        self.stranger = directory / "stranger.pem"
        self.client, self.client_key = directory / "client.pem", directory / "client.key"
        authority.cert_pem.write_to_path(self.ca)
        authority.issue_cert("localhost", "127.0.0.1", "::1").private_key_and_cert_chain_pem.write_to_path(self.server)
        authority.issue_cert("elsewhere.example").private_key_and_cert_chain_pem.write_to_path(self.stranger)
        client = authority.issue_cert("client.example")
        client.cert_chain_pems[0].write_to_path(self.client)
        client.private_key_pem.write_to_path(self.client_key)


class TlsFront:
    """A TLS listener that passes the plain text on to a server.

    Args:
        server: the plain server.
        certificate: PEM file with key and chain.
        client_ca: when given, clients must show a certificate of this authority.
        host: where to listen.
    """

    def __init__(
        self, server: Server, certificate: Path, client_ca: Path | None = None, host: str = "127.0.0.1"
    ) -> None:
        self._target = (server.host, server.port)
        self.host = host
        self.accepted = 0  # completed handshakes
        self._listener = Listener(self._serve, host, _context(certificate, client_ca))
        self.port = self._listener.port

    @property
    def url(self) -> str:
        """For `Redlock`."""
        return f"rediss://{self.host}:{self.port}"

    def restart(self, certificate: Path, client_ca: Path | None = None) -> None:
        """Close everything, and listen at the same port with another certificate."""
        self._listener.stop()
        self._listener.tls = _context(certificate, client_ca)
        self._listener.start()

    def stop(self) -> None:
        """Close everything."""
        self._listener.stop()

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        self.accepted += 1
        server_in, server_out = await asyncio.open_connection(*self._target)
        pumps = [asyncio.create_task(_copy(client_in, server_out)), asyncio.create_task(_copy(server_in, client_out))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            server_out.close()


def _context(certificate: Path, client_ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
