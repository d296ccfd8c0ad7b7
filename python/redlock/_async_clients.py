"""What an asyncio manager is pointed at: the items of a connection list, redis-py's asyncio clients among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
import redis.connection

from redlock import _connections

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redlock._arguments import Guards
    from redlock._types import AsyncItem, SupportsSetEval

# The same way to a server, to be read by what reads synchronous clients.
_TWINS: dict[object, Any] = {
    redis.asyncio.Connection: redis.connection.Connection,
    redis.asyncio.SSLConnection: redis.connection.SSLConnection,
    redis.asyncio.UnixDomainSocketConnection: redis.connection.UnixDomainSocketConnection,
}
_POOLS = (redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool)


def connect(items: Iterable[AsyncItem], guards: Guards) -> _connections.Masters:
    """The masters, all of them reached by the engine.

    Args:
        items: URLs, mappings and plain clients.
        guards: of :func:`~redlock._arguments.guards`.

    Raises:
        Warning: an item that cannot be used, or one that is listed twice.
        TypeError: ``items`` is not iterable.
    """
    masters = _connections.Masters(_connections.connect(items, _client), guards)
    masters.check_distinct()
    for server in masters.servers:
        if not _connections.endpoint(server):
            message = (
                f"AsyncRedlock cannot use {_connections.name(server)}: its {type(server).__qualname__} has settings or "
                "methods of its own, which only Redlock can call; pass a URL, a mapping or a plain redis-py client"
            )
            raise Warning(message)
    return masters


def _client(item: AsyncItem) -> SupportsSetEval:
    if any(base.__module__.startswith("redis.asyncio") for base in type(item).__mro__):
        return _twin(item)
    return _connections.client(item)


def _twin(client: Any) -> redis.Redis:
    """A synchronous client with the settings of an asyncio one. It is read and never connects; nor does the other.

    Raises:
        TypeError: it is more than a plain client: what it does differently would be lost.
    """
    kind = type(client)
    pool: Any = getattr(client, "connection_pool", None)
    connection = _TWINS.get(getattr(pool, "connection_class", None))
    if kind is not redis.asyncio.Redis or connection is None or type(pool) not in _POOLS:
        message = f"AsyncRedlock cannot use {kind.__module__}.{kind.__qualname__}: it is no plain redis.asyncio.Redis"
        raise TypeError(message)
    settings = {name: value for name, value in pool.connection_kwargs.items() if name not in _connections.REDIS_PYS_OWN}
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=connection, **settings))
