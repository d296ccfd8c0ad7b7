"""The types of the interface's arguments. Imported by type checkers only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

from redis.asyncio import Redis as AsyncRedis

if TYPE_CHECKING:
    from redlock._counters import Counters
    from redlock._redlock import Engine, LeaseState, Vote

B_co = TypeVar("B_co", bound="Asked", covariant=True)

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


TtlAndDrift: TypeAlias = tuple[int, int]
"""For how long, and how far the clocks may run apart in that time: ttl and drift in milliseconds."""

Tries: TypeAlias = tuple[int, float, float | None]
"""How many, the longest pause between two in seconds, and seconds for all together; ``None``: no bound."""


class Asked(Protocol):
    """What both kinds of backends have."""

    @property
    def engine(self) -> Engine | None:
        """What asks the masters; ``None`` where clients' own methods are called."""

    @property
    def names(self) -> Sequence[str]:
        """What logs call the masters."""

    @property
    def quorum(self) -> int:
        """How many of them must agree."""

    @property
    def counters(self) -> Counters:
        """Where to count what is done."""

    @property
    def attempts(self) -> int:
        """How often the engine has asked the masters for what is ``taken``."""

    def health(self) -> list[tuple[str | None, int, int]]:
        """Per master what it last failed with, how many errors there were, and how often it did not answer."""


class Backend(Asked, Protocol):
    """How the masters are asked in one call, and who they are: chosen once, by :meth:`Redlock._backend`.

    Attributes:
        taken: a list of the caller's, if it has one, of what came of the tries: what is granted is in there before any
            other code can run, an exception out of a signal handler among it.
    """

    taken: list[HeldLike | list[Vote]] | None

    @property
    def own_key(self) -> Encodable | None:
        """The caller's own key of the last try, as it was made, if there is one that the engine knows as bytes only."""

    def acquire(
        self, resources: Sequence[Encodable], terms: TtlAndDrift, pace: Tries, *, fencing: bool = False
    ) -> HeldLike | list[Vote]:
        """Take all resources, with one key for all; or none.

        Returns:
            What is held; else what each master said in the last round, which is nothing if there was none.

        Raises:
            TypeError: a resource of a type that cannot be sent.
            ValueError: one that is too long or not encodable.
        """

    def release(self, resources: Sequence[Encodable], key: Encodable) -> list[Vote]:
        """Release on every master; failures are logged.

        Returns:
            What each said: released, absent or its failure.

        Raises:
            TypeError: a resource or key of a type that cannot be sent.
        """

    def extend(self, resources: Sequence[Encodable], key: Encodable, terms: TtlAndDrift) -> HeldLike | list[Vote]:
        """Set a new TTL where the key is still there.

        Returns:
            What is held; else what each master said: extended, taken, absent or its failure.

        Raises:
            TypeError: as :meth:`release`.
            NotImplementedError: as :meth:`check_extends`.
        """

    def inspect(self, resource: Encodable) -> list[Sighting]:
        """Ask every master who holds it.

        Raises:
            TypeError: as :meth:`acquire`.
            NotImplementedError: that cannot be asked of these masters.
        """

    def extend_lease(self, lease: Leased, terms: TtlAndDrift) -> Reason | None:
        """Extend a lease, when nothing else extends or releases it. Returns why it was not extended."""

    def release_lease(self, lease: Leased) -> None:
        """Release a lease on every master, once, after an extension that is under way; failures are logged."""

    def check_extends(self) -> None:
        """Make sure that :meth:`extend` can be called.

        Raises:
            NotImplementedError: ``lock_instance`` is overridden, and only that knows where the key is.
        """


class AsyncBackend(Asked, Protocol):
    """The same for asyncio, by :meth:`AsyncRedlock._backend`. A caller that is cancelled leaves nothing taken."""

    async def acquire(
        self, resources: Sequence[Encodable], terms: TtlAndDrift, pace: Tries, *, fencing: bool = False
    ) -> HeldLike | list[Vote]:
        """As :class:`Backend`."""

    async def release(self, resources: Sequence[Encodable], key: Encodable) -> list[Vote]:
        """As :class:`Backend`; to the end, also when the caller is cancelled."""

    def begin_release(self, resources: Sequence[Encodable], key: Encodable) -> None:
        """Tell the masters that are connected, for a caller that cannot wait for their answers."""

    async def extend(self, resources: Sequence[Encodable], key: Encodable, terms: TtlAndDrift) -> HeldLike | list[Vote]:
        """As :class:`Backend`."""

    async def inspect(self, resource: Encodable) -> list[Sighting]:
        """As :class:`Backend`."""

    async def extend_lease(self, lease: AsyncLeased, terms: TtlAndDrift) -> Reason | None:
        """As :class:`Backend`."""

    async def release_lease(self, lease: AsyncLeased) -> None:
        """As :class:`Backend`."""


class LeasedBase(Protocol):
    """A lease, as backends see it."""

    @property
    def resources(self) -> Sequence[Encodable]:
        """What is held."""

    @property
    def state(self) -> LeaseState:
        """How long it can be relied on, and how it ended."""

    @property
    def is_the_engines(self) -> bool:
        """Whether the engine took it, and so can extend and release it by itself."""


class Leased(LeasedBase, Protocol):
    """The same, of threads."""

    def extend_by(self, backend: Backend, terms: TtlAndDrift) -> Reason | None:
        """Extend it by :meth:`Backend.extend`, when it is this thread's turn."""

    def release_by(self, backend: Backend) -> None:
        """Release it by :meth:`Backend.release`, once, when it is this thread's turn."""


class AsyncLeased(LeasedBase, Protocol):
    """The same, of tasks."""

    async def extend_by(self, backend: AsyncBackend, terms: TtlAndDrift) -> Reason | None:
        """Extend it by :meth:`AsyncBackend.extend`, when it is this task's turn."""

    async def release_by(self, backend: AsyncBackend) -> None:
        """Release it by :meth:`AsyncBackend.release`, once, when it is this task's turn."""


class Manager(Protocol[B_co]):
    """What both managers have, and leases need of them."""

    @property
    def retry_delay(self) -> float:
        """The longest pause between two tries, in seconds."""

    @property
    def clock_drift_factor(self) -> float:
        """The fraction of a ttl by which clocks may have drifted apart."""

    def _backend(self) -> B_co: ...


Resource: TypeAlias = Encodable | Sequence[Encodable]
"""What a lease is for: one name, or several at once."""

NotObtained: TypeAlias = Literal["contended", "timeout", "unavailable"]
"""Why a lease was not granted."""

Reason: TypeAlias = Literal["expired", "taken over", "unavailable", "forked", "released"]
"""Why a lease cannot be relied on."""

NotGranted: TypeAlias = Literal["contended", "expired", "unavailable", "unfenced"]
"""Why votes did not grant a lock."""

NotReleased: TypeAlias = Literal["expired", "unavailable"]
"""Why a release did not do what was asked."""

NotExtended: TypeAlias = Literal["taken over", "expired", "unavailable"]
"""Why a lock was not extended."""

NotDone: TypeAlias = Literal["contended", "taken over", "expired", "unavailable"]
"""Why an attempt did not do what was asked."""

Item: TypeAlias = str | bytes | Mapping[str, Any] | SupportsSetEval
"""A master, as a connection list has it."""

AsyncItem: TypeAlias = Item | AsyncRedis
"""The same for an asyncio manager."""
