"""What an asyncio manager is pointed at: the items of a connection list, redis-py's asyncio clients among them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
import redis.connection

from redlock import _connections, _sentinel

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


def connect(items: Iterable[AsyncItem], guards: Guards) -> tuple[_connections.Masters, list[Any]]:
    """The masters; and, if the engine cannot stand in for all of them, an asyncio client for each.

    Args:
        items: URLs, mappings and clients.
        guards: of :func:`~redlock._arguments.guards`.

    Raises:
        Warning: an item that cannot be used, or one that is listed twice.
        TypeError: ``items`` is not iterable.
    """
    listed = list(items)
    masters = _connections.Masters.of_items(listed, _client, guards)
    masters.check_distinct()
    if masters.engine:
        return masters, []
    return masters, _connections.connect(listed, _own_client)


def _client(item: AsyncItem) -> SupportsSetEval:
    if _is_async(item):
        twin: SupportsSetEval = _twin(item)
        return twin
    return _connections.client(item)


def _is_async(item: object) -> bool:
    return any(base.__module__.startswith("redis.asyncio") for base in type(item).__mro__) or (
        inspect.iscoroutinefunction(getattr(item, "set", None))
        and inspect.iscoroutinefunction(getattr(item, "eval", None))
    )


def _own_client(item: AsyncItem) -> Any:
    """An asyncio client of redis-py's or the caller's, to be called.

    Raises:
        TypeError: there is none for it.
    """
    if isinstance(item, bytes):
        item = item.decode()
    if _is_async(item):
        return item
    if isinstance(item, str) and not _sentinel.is_url(item):
        return redis.asyncio.Redis.from_url(_connections.redis_pys(item))
    if isinstance(item, Mapping):
        return redis.asyncio.Redis(**item)
    what = "redis+sentinel URL" if isinstance(item, str) else type(item).__qualname__
    message = (
        f"AsyncRedlock cannot use this {what}: a master of the list has settings or methods of its own, so that all "
        "must be asyncio clients, mappings or URLs of other kinds"
    )
    raise TypeError(message)


def _twin(client: Any) -> Any:
    """A synchronous client with the settings of an asyncio one. It is read and never connects; nor does the other.

    One that is more than a plain client stays what it is: what it does differently would be lost.
    """
    pool: Any = getattr(client, "connection_pool", None)
    connection = _TWINS.get(getattr(pool, "connection_class", None))
    if type(client) is not redis.asyncio.Redis or connection is None or type(pool) not in _POOLS or _is_patched(client):
        return client
    settings = {name: value for name, value in pool.connection_kwargs.items() if name not in _connections.REDIS_PYS_OWN}
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=connection, **settings))


def _is_patched(client: redis.asyncio.Redis) -> bool:
    """Whether another method was put in the place of redis-py's: that is to be called then."""
    pool: Any = client.connection_pool
    methods = [getattr(client, method) for method in ("set", "eval", "execute_command")]
    return not all(map(_connections.does_as_redis_py, (*methods, pool.connection_class.connect)))
