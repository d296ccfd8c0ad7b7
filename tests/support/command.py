"""The command `redlock`, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from .locks import Place

WORDS = (sys.executable, "-m", "redlock")


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without masters, and with ``env``."""
    return {**{name: value for name, value in os.environ.items() if name != "REDLOCK_URLS"}, **(env or {})}


class Command(subprocess.Popen[str]):
    """A process that is ended when its test has failed, instead of waited for."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            self.kill()
        super().__exit__(kind, error, trace)


def command(*words: str, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL) -> Command:
    """The process, started."""
    return Command(
        [*WORDS, *words],
        env=environment(env),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def redlock_(*words: str, env: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """The command, done: exit code, standard output, standard error."""
    with command(*words, env=env) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def urls(servers: Iterable[Place]) -> list[str]:
    """The options that name these masters."""
    return [word for server in servers for word in ("--redis", server.url)]
