"""A plain client's master among others' clients: what :mod:`redlock._objects` calls of a client, done by the engine.

So a setting or a client that is beyond the engine costs its own master the engine, and no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError

from redlock._arguments import encode
from redlock._redlock import Endpoint, Engine, Held, Operation, Vote

if TYPE_CHECKING:
    from redlock._types import Encodable, Sighting

# The quorum of one master, and no drift: that is subtracted where the votes are counted.
_ALONE = 1, 0


class Native:
    """One master.

    Attributes:
        address: what logs call it.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self._engine = Engine([endpoint], _pass_over)  # who calls says it, as of any other client

    def set(self, name: Encodable, value: Encodable, *, nx: bool, px: int) -> bool:  # noqa: ARG002 - a client's
        """Ask for the lock.

        Raises:
            redis.exceptions.ConnectionError: it gave no vote.
        """
        key = encode("key", value)
        said = self._engine.run(Operation.acquire([encode("resource", name)], px, *_ALONE, 1, 0.0, None, None, key))
        return isinstance(said, Held) or _granted(said[0])

    def release(self, name: Encodable, key: Encodable, script: str | None) -> bool:
        """Release, with the caller's script if it is not ours; whether it was held.

        Raises:
            redis.exceptions.ConnectionError: it could not be.
        """
        (said,) = self._engine.run(Operation.release([encode("resource", name)], encode("key", key), script))
        if said.is_failure:
            raise RedisConnectionError(str(said))
        return said == Vote.RELEASED

    def extend(self, name: Encodable, key: Encodable, ttl: int) -> Vote:
        """Set a new TTL: extended, taken, absent, or how it failed."""
        terms = encode("key", key), ttl, *_ALONE, None
        said = self._engine.run(Operation.extend([encode("resource", name)], *terms))
        return Vote.EXTENDED if isinstance(said, Held) else said[0]

    def look(self, name: Encodable) -> Sighting:
        """Who holds it."""
        (found,) = self._engine.run(Operation.inspect(encode("resource", name)))
        return found


def _granted(vote: Vote) -> bool:
    if vote == Vote.REFUSED:
        return False
    raise RedisConnectionError(str(vote))


def _pass_over(level: int, message: str) -> None:
    """Log nothing."""
