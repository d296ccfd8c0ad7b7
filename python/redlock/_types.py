"""The types of the interface's arguments. Imported by type checkers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from redis.asyncio import Redis as AsyncRedis

if TYPE_CHECKING:
    from redlock._counters import Counters
    from redlock._redlock import Vote

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


class HeldLike(Protocol):
    """What was granted: the engine's :class:`~redlock._redlock.Held`, or the same by another path."""

    @property
    def validity_ms(self) -> int:
        """Milliseconds it may be relied on, from when it was granted."""

    @property
    def expires_at(self) -> float:
        """When validity ends, on :func:`redlock._redlock.now`."""

    @property
    def key(self) -> Encodable:
        """The proof of ownership."""

    @property
    def votes(self) -> Sequence[Vote]:
        """What each master had said when it was decided."""


class Manager(Protocol):
    """What both managers have, and leases need of them."""

    @property
    def quorum(self) -> int:
        """How many masters must agree."""

    @property
    def retry_delay(self) -> float:
        """The longest pause between two tries, in seconds."""

    @property
    def clock_drift_factor(self) -> float:
        """The fraction of a ttl by which clocks may have drifted apart."""

    @property
    def _tried(self) -> Callable[[int], None] | None: ...
    def _count(self) -> Counters: ...
    def _script(self) -> str | None: ...
    def _names(self) -> Sequence[str]: ...


Resource: TypeAlias = Encodable | Sequence[Encodable]
"""What a lease is for: one name, or several at once."""

NotObtained: TypeAlias = Literal["contended", "timeout", "unavailable"]
"""Why a lease was not granted."""

Reason: TypeAlias = Literal["expired", "taken over", "unavailable", "forked", "released"]
"""Why a lease cannot be relied on."""

NotDone: TypeAlias = Literal["contended", "taken over", "expired", "unavailable"]
"""Why an attempt did not do what was asked."""

Item: TypeAlias = str | bytes | Mapping[str, Any] | SupportsSetEval
"""A master, as a connection list has it."""

AsyncItem: TypeAlias = Item | AsyncRedis
"""The same for an asyncio manager."""
