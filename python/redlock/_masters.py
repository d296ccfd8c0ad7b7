"""One master where the engine does not ask all of them: by its client's own methods, or by an engine of its own.

So a setting or a client that is beyond the engine costs its own master the engine, and no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, RedisError

from redlock._arguments import encode
from redlock._redlock import Endpoint, Engine, Held, Operation, Vote

if TYPE_CHECKING:
    from collections.abc import Callable

    from redlock._types import Encodable, Sighting

# What redis-py raises when a master fails; its cluster client has a family of its own.
FAILURES = (RedisError, RedisClusterException)

# Sets a TTL, and never a key: what has expired or was taken over stays so. It answers in numbers, for clients decode
# what is text, as they were told to.
# KEYS[1]: the resource. ARGV[1]: the key. ARGV[2]: the ttl in milliseconds.
# Returns 1: extended. 0: there is no such lock. -1: it is another's.
EXTEND_SCRIPT = """
    local held = redis.call("get",KEYS[1])
    if held == ARGV[1] then
        return redis.call("pexpire",KEYS[1],ARGV[2])
    else
        return held and -1 or 0
    end"""
_EXTENSIONS = {1: Vote.EXTENDED, 0: Vote.ABSENT, -1: Vote.TAKEN}

# The quorum of one master, and no drift: that is subtracted where the votes are counted.
_ALONE = 1, 0


class Master(Protocol):
    """One master.

    Each method raises what its client raises: :data:`FAILURES`, if the master has failed.
    """

    @property
    def origin(self) -> object:
        """What logs name, and what its failures are kept under: the client, as a rule."""

    def ask(self, resource: Encodable, key: Encodable, ttl: int) -> object:
        """Ask for the lock: something true if it was granted."""

    def release(self, resource: Encodable, key: Encodable, script: str) -> object:
        """Release by this script: something true if it was held."""

    def extend(self, resource: Encodable, key: Encodable, ttl: int) -> Vote:
        """Set a new TTL: extended, taken, absent, or how it failed."""

    def check_looks(self) -> None:
        """Make sure that :meth:`look` can be called.

        Raises:
            NotImplementedError: the client cannot do it.
        """

    def look(self, resource: Encodable) -> Sighting:
        """Who holds it."""


class Client:
    """A master that is asked by its client's own methods.

    Args:
        origin: the client.
        lock_instance: the caller's own way to ask for a lock; ``None``: by ``set``.
    """

    def __init__(self, origin: Any, lock_instance: Callable[..., object] | None = None) -> None:
        self.origin = origin
        self._lock_instance = lock_instance

    def ask(self, resource: Encodable, key: Encodable, ttl: int) -> object:
        """As every :class:`Master`."""
        if self._lock_instance:
            return self._lock_instance(self.origin, resource, key, ttl)
        return self.origin.set(resource, key, nx=True, px=ttl)

    def release(self, resource: Encodable, key: Encodable, script: str) -> object:
        """As every :class:`Master`."""
        return self.origin.eval(script, 1, resource, key)

    def extend(self, resource: Encodable, key: Encodable, ttl: int) -> Vote:
        """As every :class:`Master`."""
        return extension(self.origin.eval(EXTEND_SCRIPT, 1, resource, key, ttl))

    def check_looks(self) -> None:
        """As every :class:`Master`."""
        if not (callable(getattr(self.origin, "get", None)) and callable(getattr(self.origin, "pttl", None))):
            message = f"cannot inspect: a {type(self.origin).__qualname__} has no get and pttl"
            raise NotImplementedError(message)

    def look(self, resource: Encodable) -> Sighting:
        """As every :class:`Master`."""
        return sighting(self.origin.get(resource), self.origin.pttl(resource))


class Native:
    """A plain client's master among others' clients, asked by an engine of its own.

    Attributes:
        address: what logs call it.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        # Who calls logs it, as of any other client.
        self._engine = Engine([endpoint], _pass_over, shares=False)

    @property
    def origin(self) -> object:
        """Itself."""
        return self

    def ask(self, resource: Encodable, key: Encodable, ttl: int) -> bool:
        """As every :class:`Master`."""
        names, sent = [encode("resource", resource)], encode("key", key)
        said = self._engine.run(Operation.acquire(names, ttl, *_ALONE, 1, 0.0, None, None, sent))
        if isinstance(said, list) and said[0] != Vote.REFUSED:
            raise RedisConnectionError(str(said[0]))
        return isinstance(said, Held)

    def release(self, resource: Encodable, key: Encodable, script: str) -> bool:
        """As every :class:`Master`."""
        (said,) = self._engine.run(Operation.release([encode("resource", resource)], encode("key", key), script))
        if said.is_failure:
            raise RedisConnectionError(str(said))
        return said == Vote.RELEASED

    def extend(self, resource: Encodable, key: Encodable, ttl: int) -> Vote:
        """As every :class:`Master`."""
        terms = encode("key", key), ttl, *_ALONE, None
        said = self._engine.run(Operation.extend([encode("resource", resource)], *terms))
        return Vote.EXTENDED if isinstance(said, Held) else said[0]

    def check_looks(self) -> None:
        """As every :class:`Master`."""

    def look(self, resource: Encodable) -> Sighting:
        """As every :class:`Master`."""
        (found,) = self._engine.run(Operation.inspect(encode("resource", resource)))
        return found


def _pass_over(level: int, message: str) -> None:
    """Log nothing."""


def extension(reply: Any) -> Vote:
    """What a reply to :data:`EXTEND_SCRIPT` is worth."""
    return _EXTENSIONS.get(reply) or Vote.failure(f"unexpected reply: {reply!r:.80}")


def sighting(key: Any, ttl: int) -> Sighting:
    """What a client's ``get`` and ``pttl`` returned."""
    if key is None or ttl == -2:  # noqa: PLR2004 - Redis's word for no such key: gone before the second question
        return None, None, None
    return key if isinstance(key, bytes) else str(key).encode(), ttl if ttl >= 0 else None, None


def text_of(error: Exception) -> str:
    """What it says, or its name if it says nothing."""
    return str(error) or type(error).__name__
