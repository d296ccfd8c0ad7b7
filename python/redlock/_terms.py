"""What a caller wants of a lease, checked: how hard to try, how to keep it, for which names. Whoever waits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from redlock._arguments import MAX_TRIES, check_type, encode, seconds, ttl_and_drift, whole_tries
from redlock._keeper import Keeper
from redlock._lock import LockContended
from redlock._outcomes import refusal
from redlock._redlock import Held, LeaseState, Vote, why_not_extended

if TYPE_CHECKING:
    from collections.abc import Callable

    from redlock._counters import Counters
    from redlock._types import Asked, Encodable, HeldLike, Manager, Reason, Resource, Tries, TtlAndDrift

B = TypeVar("B", bound="Asked")


@dataclass(frozen=True)
class Pace:
    """How hard to try, and whether for a fencing token, too; see :meth:`Redlock.acquire`."""

    tries: int
    delay: float
    timeout: float | None
    fencing: bool = False

    @classmethod
    def of(
        cls,
        manager: Manager[Any],
        timeout: float | None,
        retry_count: float | None,
        retry_delay: float | None,
        *,
        fencing: bool,
    ) -> Pace:
        """As the caller wants it, and otherwise without end, at the manager's pace.

        Raises:
            TypeError: not a number.
            ValueError: negative, or no try at all.
        """
        tries = MAX_TRIES if retry_count is None else whole_tries(retry_count)
        if tries < 1:
            message = f"retry_count must be at least 1, not {retry_count!r}"
            raise ValueError(message)
        delay = seconds(manager.retry_delay if retry_delay is None else retry_delay)
        timeout = None if timeout is None else seconds(timeout, "timeout")
        # Without any time, not even one round could be finished.
        return cls(1, delay, None, fencing) if timeout == 0 else cls(tries, delay, timeout, fencing)

    @property
    def bounds(self) -> Tries:
        """How hard to try, for a backend."""
        return self.tries, self.delay, self.timeout

    def is_waited_out(self, waited: float) -> bool:
        """Whether the timeout was what ended a call that waited so many seconds."""
        return bool(self.timeout) and (self.tries == MAX_TRIES or waited >= (self.timeout or 0.0))


@dataclass(frozen=True)
class Keeping:
    """How a lease is kept; see :meth:`Redlock.acquire`.

    Raises:
        ValueError: ``max_hold`` or ``on_lost`` without ``auto_extend``.
        TypeError: ``on_lost`` cannot be called.
    """

    auto_extend: bool
    max_hold: float | None
    on_lost: Callable[[Any], object] | None

    def __post_init__(self) -> None:
        if not self.auto_extend and (self.max_hold is not None or self.on_lost is not None):
            message = "max_hold and on_lost are for leases that are kept: they need auto_extend=True"
            raise ValueError(message)
        told: object = self.on_lost
        if told is not None and not callable(told):
            message = f"on_lost must be callable, not {type(told).__name__}: {told!r:.80}"
            raise TypeError(message)
        if self.max_hold is not None:
            seconds(self.max_hold, "max_hold")


def listed(resource: Resource) -> Sequence[Encodable]:
    """The names that a caller means: one, or each of a sequence.

    Raises:
        ValueError: none, or one twice; or not encodable.
        TypeError: of a type that cannot be sent.
    """
    if isinstance(resource, bytearray):
        check_type("resource", resource)  # which it is not, and no sequence of names either
    if not isinstance(resource, Sequence) or isinstance(resource, (str, bytes, memoryview)):
        return (resource,)
    names = [encode("resource", each) for each in resource]
    if not names:
        message = "resource: expected at least one name"
        raise ValueError(message)
    if len(set(names)) < len(names):
        message = f"resource: a name stands there twice: {resource!r:.200}"
        raise ValueError(message)
    return tuple(resource)


class Terms(Generic[B]):
    """A call for some names, and what becomes of it: the lease, if there is one.

    Attributes:
        resources: the names.
        backend: what asks the masters in this call, until it has ended.
        counters: the manager's.
        state: of the lease, once it is held.
        key: the same.
        is_the_engines: whether the engine took it.
        tried: is told how often the masters were asked for it.
    """

    tried: Callable[[int], object] | None = None
    state: LeaseState
    key: Encodable
    is_the_engines: bool

    def __init__(self, manager: Manager[B], resources: Sequence[Encodable]) -> None:
        self._manager = manager
        self.resources = resources
        self.backend = self._choose()
        self.counters: Counters = self.backend.counters

    def _choose(self) -> B:
        """What asks the masters in a later call for the same lease: callers change ``servers`` and patch methods."""
        return self._manager._backend()  # noqa: SLF001 - this is a part of the manager

    def named(self, votes: Sequence[Vote]) -> list[tuple[str, Vote]]:
        """What masters said in this call, with their names."""
        return list(zip(self.backend.names, votes, strict=False))

    def checked(self, ttl: int) -> int:
        """A ttl that leaves some validity.

        Raises:
            ValueError: it does not, or is no int.
            TypeError: not a number.
        """
        _, drift = self._terms(ttl)
        if ttl <= drift:
            message = f"ttl must leave some validity; of {ttl} ms, {drift} are for the clocks' drift"
            raise ValueError(message)
        return ttl

    def _terms(self, ttl: int) -> TtlAndDrift:
        return ttl_and_drift(ttl, self._manager.clock_drift_factor)

    def hold(self, held: HeldLike, ttl: int) -> LeaseState:
        """There is a lease: this was just granted."""
        self.key, self.is_the_engines = held.key, isinstance(held, Held)
        # Where clients' own methods are called, names and keys may be of any kind.
        mine = held if isinstance(held, Held) else None
        terms = self.backend.quorum, *self._terms(ttl), held.expires_at
        self.state = LeaseState(self.backend.engine, mine, *terms)
        return self.state

    def end_call(self) -> None:
        """The lease is made, and holds on to no more than it needs."""
        del self.backend

    def _end_extension(self, terms: TtlAndDrift, outcome: HeldLike | list[Vote] | None, quorum: int) -> Reason | None:
        """Note what came of an extension by :meth:`Backend.extend`.

        Args:
            terms: ttl and drift in milliseconds.
            outcome: what is held now, or what each master said; ``None``: something was raised.
            quorum: how many masters had to agree.

        Returns:
            Why it was not extended.
        """
        if outcome is None or isinstance(outcome, list):
            why: Reason = "unavailable" if outcome is None else why_not_extended(outcome, quorum)
            return self.state.end_extension(*terms, None, why)
        return self.state.end_extension(*terms, outcome.expires_at, None)

    def _end_release(self, said: list[Vote], quorum: int) -> None:
        """Note what each master said to a release by :meth:`Backend.release`."""
        self.state.end_release(said.count(Vote.ABSENT) <= len(said) - quorum)

    @property
    def keeper(self) -> Keeper:
        """The manager's in this process: a forked child has no threads of its parent."""
        keepers: dict[int, Keeper] = vars(self._manager).setdefault("_keepers", {})
        return keepers.get(os.getpid()) or keepers.setdefault(os.getpid(), Keeper())

    def write_log(self) -> None:
        """Log what was noticed of the masters."""
        if engine := self._choose().engine:
            engine.write_log()

    def decided(self, resource: Resource, outcome: HeldLike | list[Vote], pace: Pace, waited: float) -> HeldLike:
        """What was granted. Counts how the call ended.

        Args:
            resource: as the caller passed it.
            outcome: of the acquire.
            pace: how hard it tried.
            waited: seconds that it took.

        Raises:
            CannotObtainLock: nothing was.
        """
        if self.tried:
            self.tried(self.backend.attempts)
        if not isinstance(outcome, list):
            self.counters.granted(waited)
            if pace.fencing and isinstance(outcome, Held):
                self.counters.had_token(at_once=outcome.token_at_once)
            return outcome
        waited_out = pace.is_waited_out(waited)
        error = refusal(resource, self.named(outcome), self.backend.quorum, waited_out=waited_out)
        self.counters.refused(contended=isinstance(error, LockContended))
        try:
            raise error
        finally:
            del error  # its traceback names this frame: only the garbage collector would close the connections
