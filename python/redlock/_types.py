"""The types of the interface's arguments. Imported by type checkers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

Encodable: TypeAlias = str | bytes | memoryview | int | float
"""What redis-py encodes: the type of a resource, and of a key."""


class SupportsSetEval(Protocol):
    """A client: it has ``set`` and ``eval`` as redis-py's have."""

    @property
    def set(self) -> Callable[..., Any]:
        """``set(name, value, nx=True, px=ttl)``: true if it was set."""

    @property
    def eval(self) -> Callable[..., Any]:
        """``eval(script, 1, resource, key)``: what the script returned."""


class SupportsUnlock(Protocol):
    """What can be unlocked: a lock, or anything else with its resource and key."""

    @property
    def resource(self) -> Encodable:
        """The resource, as passed to ``lock``."""

    @property
    def key(self) -> Encodable:
        """The lock's key."""


Sighting: TypeAlias = tuple[bytes | None, int | None, str | None]
"""What one master knows of a lock: the holder's key, the milliseconds it will keep it, and the error if it said one."""

Item: TypeAlias = str | bytes | Mapping[str, Any] | SupportsSetEval
"""A master, as a connection list has it."""
