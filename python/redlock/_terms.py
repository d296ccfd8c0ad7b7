"""What a caller wants of a lease, checked: how hard to try, how to keep it, for which names. Whoever waits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from redlock._arguments import MAX_TRIES, check_ttl, check_type, drift_ms, encode, seconds, whole_tries
from redlock._keeper import Keeper
from redlock._lock import LockContended
from redlock._outcomes import refusal, why_not_extended
from redlock._redlock import Held, LeaseState, Vote, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from redlock._counters import Counters
    from redlock._redlock import Engine
    from redlock._types import Encodable, HeldLike, Manager, Reason, Resource

M = TypeVar("M", bound="Manager")


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
        manager: Manager,
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


class Terms(Generic[M]):
    """What one lease takes from its manager, for the names it is for."""

    def __init__(self, manager: M, resources: Sequence[Encodable]) -> None:
        self._manager = manager
        self._resources = resources
        self.attempts = 0  # rounds in which all masters, or the first of them, were asked for the lock

    @property
    def quorum(self) -> int:
        """How many masters must agree."""
        return self._manager.quorum

    @property
    def counters(self) -> Counters:
        """The manager's."""
        return self._manager._count()  # noqa: SLF001 - this module is a part of the manager

    def named(self, votes: Sequence[Vote]) -> list[tuple[str, Vote]]:
        """What masters said, with their names."""
        return list(zip(self._manager._names(), votes, strict=False))  # noqa: SLF001

    def checked(self, ttl: int) -> int:
        """A ttl that leaves some validity.

        Raises:
            ValueError: it does not, or is no int.
            TypeError: not a number.
        """
        check_ttl(ttl)
        drift = self._drift(ttl)
        if ttl <= drift:
            message = f"ttl must leave some validity; of {ttl} ms, {drift} are for the clocks' drift"
            raise ValueError(message)
        return ttl

    def state(self, held: HeldLike, ttl: int) -> LeaseState:
        """The state of a lease that was just granted."""
        engine, terms = self._engine(), (self.quorum, ttl, self._drift(ttl), held.expires_at)
        if engine is None or not isinstance(held, Held):  # clients' own methods are called: for any names and keys
            return LeaseState(None, None, *terms)
        return LeaseState(engine, held, *terms)

    def end_extension(self, state: LeaseState, ttl: int, outcome: HeldLike | list[Vote] | None) -> Reason | None:
        """Note what came of an extension by clients' own methods.

        Args:
            state: of the lease.
            ttl: milliseconds that were asked for.
            outcome: what is held now, or what each master said; ``None``: something was raised.

        Returns:
            Why it was not extended.
        """
        if outcome is None or isinstance(outcome, list):
            why: Reason = "unavailable" if outcome is None else why_not_extended(outcome, self.quorum)
            return state.end_extension(ttl, self._drift(ttl), None, why)
        return state.end_extension(ttl, self._drift(ttl), outcome.expires_at, None)

    def end_release(self, state: LeaseState, said: list[Vote]) -> None:
        """Note what each master said to a release by clients' own methods."""
        state.end_release(said.count(Vote.ABSENT) <= len(said) - self.quorum)

    @property
    def keeper(self) -> Keeper:
        """The manager's in this process: a forked child has no threads of its parent."""
        keepers: dict[int, Keeper] = vars(self._manager).setdefault("_keepers", {})
        return keepers.get(os.getpid()) or keepers.setdefault(os.getpid(), Keeper())

    def write_log(self) -> None:
        """Log what was noticed of the masters."""
        if engine := self._engine():
            engine.write_log()

    def _engine(self) -> Engine | None:
        """What asks the masters; ``None`` where clients' own methods are called."""
        raise NotImplementedError

    def _drift(self, ttl: int) -> int:
        return drift_ms(ttl, self._manager.clock_drift_factor)

    def _names(self) -> list[bytes]:
        return [encode("resource", each) for each in self._resources]

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
        if self._manager._tried:  # noqa: SLF001 - this module is a part of the manager
            self._manager._tried(self.attempts)  # noqa: SLF001
        if not isinstance(outcome, list):
            self.counters.granted(waited)
            if pace.fencing and isinstance(outcome, Held):
                self.counters.had_token(at_once=outcome.token_at_once)
            return outcome
        waited_out = pace.is_waited_out(waited)
        error = refusal(resource, self.named(outcome), self.quorum, waited_out=waited_out)
        self.counters.refused(contended=isinstance(error, LockContended))
        try:
            raise error
        finally:
            del error  # its traceback names this frame: only the garbage collector would close the connections

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = now()
        yield
        self.counters.round_trip.add(now() - start)
