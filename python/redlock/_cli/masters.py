"""Which masters the command is about, and how it reaches them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from redlock import Redlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

STDIN = "-"

_SCHEMES = ("redis", "rediss", "unix", "redis+unix", "redis+sentinel", "rediss+sentinel")
_UNREADABLE = (
    "its login, host or port cannot be read; in a login, a blank is %20, a comma %2C, / %2F, ? %3F, # %23, @ %40"
)
# How messages of Python begin that quote a part of a URL which it takes for a port or a host.
_QUOTING = ("Port ", "Invalid IPv6", "netloc ", "'utf-8'")


def urls(options: argparse.Namespace) -> list[str]:
    """The masters' URLs: arguments, else a file, else the environment.

    Raises:
        ValueError: there are none, or the file cannot be read.
    """
    given = [*(getattr(options, "urls", None) or ()), *(options.redis or ()), *(options.more_redis or ())]
    if given:
        return given
    if options.urls_file is not None:
        return _from_file(options.urls_file)
    text = os.environ.get("REDLOCK_URLS")
    if text is None:
        raise ValueError("no masters: set REDLOCK_URLS, or give --redis URL for each of them, or --urls-file FILE")
    found = _split(text)
    if not found:
        raise ValueError("REDLOCK_URLS is set, but names no master")
    return found


def _split(text: str) -> list[str]:
    return re.findall(r"[^\s,]+", text)


def _from_file(path: str) -> list[str]:
    try:
        text = sys.stdin.read() if path == STDIN else Path(path).read_text()
    except OSError as error:
        raise ValueError(f"--urls-file: {error}") from None
    found = [url for line in text.splitlines() if not line.lstrip().startswith("#") for url in _split(line)]
    if not found:
        raise ValueError(f"--urls-file: no URL in {path}")
    return found


def manager(options: argparse.Namespace, retry_count: float | None = None, retry_delay: float | None = None) -> Redlock:
    """A manager of the masters.

    Args:
        options: of the command.
        retry_count: as in :class:`Redlock`.
        retry_delay: as there.

    Raises:
        Warning: URLs that cannot be used together.
        ValueError: one that cannot be used, or as :func:`urls`.
    """
    return Redlock(_checked(urls(options)), retry_count, retry_delay)


def _checked(given: list[str]) -> list[str]:
    """The URLs, if each can be used. A message names the place in the list: the text may be a piece of a password.

    Raises:
        ValueError: one cannot be used.
    """
    for number, url in enumerate(given, 1):
        if what := _mistake(url):
            raise ValueError(f"master {number} of {len(given)}: {what}")
    return given


def _mistake(url: str) -> str | None:
    scheme, _, rest = url.partition("://")
    if scheme not in _SCHEMES:
        return f"its scheme is none of {', '.join(_SCHEMES)}"
    place = re.split("[/?#]", rest)[0]
    if not scheme.endswith("unix") and "@" in rest[len(place) :].partition("=")[0]:
        return _UNREADABLE
    try:
        Redlock([url])
    except Warning as warning:
        text = str(warning)
        if "unexpected keyword argument" in text:
            return "it has an option that is not known"
        return _UNREADABLE if text.startswith(_QUOTING) else text
    return None


def for_one_call(manager: Redlock) -> Redlock:
    """The same manager, when the process ends after its call: that waits a little for the masters beyond the quorum.

    A lock on a bare majority is lost with the first of those masters.
    """
    masters = manager._masters  # noqa: SLF001 - no caller but a command knows that no other call follows
    if masters and masters.engine:
        masters.engine.expect_last_call()
    return manager


def names(manager: Redlock) -> list[str]:
    """What to call the masters: address and database, no secrets."""
    return [each.name for each in manager.stats().masters]


def probes(options: argparse.Namespace, timeout: float) -> list[Any]:
    """redis-py clients of the masters, for questions beyond locks: each answers in ``timeout`` seconds, or raises.

    Without redis-py's retries, which take ten seconds and more for a master that is down, and without CLIENT SETINFO,
    which least-privilege users are refused, in the ACL LOG.

    Raises:
        ValueError: a URL that cannot be used, or as :func:`urls`.
    """
    from redlock import _connections  # noqa: PLC0415 - imports redis-py

    clients: list[Any] = list(_connections.connect(_checked(urls(options)), _connections.client))
    for client in clients:
        settings = client.connection_pool.connection_kwargs
        for name in ("socket_timeout", "socket_connect_timeout"):
            settings[name] = min(settings.get(name) or timeout, timeout)
        settings.update(_quiet_settings())
    return clients


def _quiet_settings() -> dict[str, Any]:
    import inspect  # noqa: PLC0415

    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.connection import AbstractConnection  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    # Which of them there are differs from version to version; and `driver_info` has replaced the two after it.
    known = inspect.signature(AbstractConnection.__init__).parameters
    names = ["driver_info"] if "driver_info" in known else ["lib_name", "lib_version"]
    names += ["maint_notifications_config", "maint_notifications_pool_handler"]
    settings: dict[str, Any] = dict.fromkeys(name for name in names if name in known)
    return {**settings, "retry": Retry(NoBackoff(), 0), "retry_on_error": []}
