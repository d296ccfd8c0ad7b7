"""The command `redlock`, as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .locks import Place

WORDS = (sys.executable, "-m", "redlock")


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without masters, and with ``env``."""
    return {**{name: value for name, value in os.environ.items() if name != "REDLOCK_URLS"}, **(env or {})}


def command(
    *words: str, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """The process, started."""
    return subprocess.Popen(
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
