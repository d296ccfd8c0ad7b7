"""``redis+sentinel://`` URLs: redis-py has no such scheme, but a client for what it says.

``redis+sentinel://[user:password@]host:port,host:port/service[/db][?options]``, with redis-py's options; the login and
the options are the master's. ``sentinel_username`` and ``sentinel_password`` are the sentinels'. ``rediss+sentinel://``
is TLS to both.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import redis
import redis.connection
import redis.sentinel

if TYPE_CHECKING:
    from redlock._types import SupportsSetEval

DEFAULT_PORT = 26379
# Not typed by redis-py.
_parse_url: Any = redis.connection.parse_url
_manager: Any = redis.sentinel.Sentinel
_URL = re.compile(
    r"(?P<scheme>rediss?)[+]sentinel://(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#@]+)/(?P<service>[^/?#]+)"
    r"(?:/(?P<db>[0-9]*))?(?P<query>[?].*)?"
)


class Pool(redis.sentinel.SentinelConnectionPool):
    """The pool of a client made here. Others' own clients are called as they are; the engine stands in for these."""


def is_url(text: str) -> bool:
    """Whether it is for :func:`client`."""
    return text.startswith(("redis+sentinel://", "rediss+sentinel://"))


def client(url: str) -> SupportsSetEval:
    """redis-py's client for the master that sentinels name; it does not connect.

    Raises:
        ValueError: not such a URL; the text does not quote it, for it may have a password.
    """
    found = _URL.fullmatch(url)
    if not found:
        message = "a sentinel URL is redis+sentinel://[user:password@]host:port,host:port/service[/db][?options]"
        raise ValueError(message)
    scheme, login, hosts, service, db, query = found.groups(default="")
    options = _parse_url(f"{scheme}://{login}@localhost/{db}{query}")
    for name in ("host", "connection_class"):
        options.pop(name, None)
    if scheme == "rediss":
        options["ssl"] = True
    manager = _manager(_places(hosts), sentinel_kwargs=_for_sentinels(options))
    made: SupportsSetEval = manager.master_for(unquote(service), redis.StrictRedis, Pool, **options)
    return made


def _places(hosts: str) -> list[tuple[str, int]]:
    found = [urlsplit(f"//{host}") for host in hosts.split(",")]
    if not all(place.hostname for place in found):
        message = "a sentinel URL names a host before each comma"
        raise ValueError(message)
    return [(str(place.hostname), place.port or DEFAULT_PORT) for place in found]


def _for_sentinels(options: dict[str, Any]) -> dict[str, Any]:
    """What of the options is for the sentinels' connections; their logins are taken out of the master's options."""
    shared = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl"))}
    logins = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    return {**shared, **logins}


def place(pool: redis.sentinel.SentinelConnectionPool | redis.sentinel.SentinelConnectionPoolProxy) -> dict[str, Any]:
    """Where the engine finds the master of such a client: arguments of its endpoint."""
    sentinels = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
    return {
        "service": pool.service_name,
        "sentinels": [(each["host"], each["port"]) for each in sentinels],
        "sentinel_username": sentinels[0].get("username"),
        "sentinel_password": sentinels[0].get("password"),
    }
