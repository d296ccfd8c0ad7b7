"""What :class:`~redlock.Redlock` does with leases: over the engine, or over the clients' own calls where it cannot.

Imported when the first lease is asked for: it needs threads, which ``import redlock`` does not.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from redlock import _outcomes
from redlock._arguments import encode
from redlock._failures import log_failures
from redlock._lease import Lease
from redlock._lock import Lock, LockLost
from redlock._objects import attempts
from redlock._redlock import Held, Operation, Vote, finish, now
from redlock._terms import Keeping, Pace, Terms, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redlock._manager import Redlock
    from redlock._redlock import Engine, LeaseState
    from redlock._types import Encodable, HeldLike, Reason, Resource, SupportsUnlock

T = TypeVar("T")

TICK = 0.002  # seconds between looks at whether it is one's turn; an extension takes a round trip


# Leases that are still renewed when the interpreter ends are released. It does not wait for long.
atexit.register(finish, 0.1)


class Operations(Terms["Redlock"]):
    """What one lease needs of its manager, for the names it is for.

    Attributes:
        taken: what the engine has said of the tries for it.
    """

    def __init__(self, manager: Redlock, resources: Sequence[Encodable]) -> None:
        super().__init__(manager, resources)
        self.taken: list[Held | list[Vote]] = []
        self._turns = Turns()

    # -- what asks the masters ----------------------------------------------------------------------------------------

    def acquire(self, ttl: int, pace: Pace) -> HeldLike | list[Vote]:
        """Try until it is held, or what each master said in the last round."""
        manager = self._manager
        engine = manager._engine()  # noqa: SLF001
        if engine is None:
            from redlock import _objects  # noqa: PLC0415

            if pace.fencing:
                return [_outcomes.OWN_METHODS] * len(manager.servers)
            terms = ttl, self._drift(ttl)
            return _objects.obtain(manager, self._resources, terms, (pace.tries, pace.delay, pace.timeout))
        if manager._overrides("get_unique_id"):  # noqa: SLF001
            return self._acquire_keyed(engine, ttl, pace)
        return self._ask(engine, ttl, pace, None)

    def _acquire_keyed(self, engine: Engine, ttl: int, pace: Pace) -> HeldLike | list[Vote]:
        """With the caller's keys, a fresh one per try."""
        said: list[Vote] = []
        once = replace(pace, tries=1, delay=0.0, timeout=None)
        for _ in attempts(pace.tries, pace.delay, pace.timeout):
            outcome = self._ask(engine, ttl, once, encode("key", self._manager.get_unique_id()))
            if not isinstance(outcome, list):
                return outcome
            said = outcome
        return said

    def _ask(self, engine: Engine, ttl: int, pace: Pace, key: bytes | None) -> HeldLike | list[Vote]:
        script = self._manager._script()  # noqa: SLF001
        terms = self._names(), ttl, self.quorum, self._drift(ttl)
        operation = Operation.acquire(*terms, pace.tries, pace.delay, pace.timeout, script, key, pace.fencing)
        # Taken down without a step in between, in which an exception out of a signal handler would lose it.
        self.taken.extend(map(engine.run, (operation,)))
        self.attempts += operation.rounds
        return self.taken[-1]

    def extend(self, key: Encodable, ttl: int) -> HeldLike | list[Vote]:
        """Set the time to live anew, once.

        Args:
            key: of the lease.
            ttl: milliseconds.

        Returns:
            What is held now, or what each master said.
        """
        manager = self._manager
        engine = manager._engine()  # noqa: SLF001
        with self._timed():
            if engine is None:
                from redlock import _objects  # noqa: PLC0415

                outcome: HeldLike | list[Vote] = _objects.extend(manager, self._resources, key, (ttl, self._drift(ttl)))
            else:
                terms = ttl, self.quorum, self._drift(ttl)
                outcome = engine.run(Operation.extend(self._names(), encode("key", key), *terms))
        self.counters.extended += not isinstance(outcome, list)
        return outcome

    def extend_lease(self, state: LeaseState, key: Encodable, ttl: int) -> Reason | None:
        """Extend a lease, when no other thread extends or releases it.

        Args:
            state: of the lease.
            key: of the lease.
            ttl: milliseconds.

        Returns:
            Why it could not be extended.
        """
        engine = self._engine()
        if engine:
            return engine.run(Operation.extend_lease(state, ttl, self._drift(ttl)))
        return self._turns.take(lambda: self._extend_by_clients(state, key, ttl))

    def renew_by_clients(self, state: LeaseState, key: Encodable, ttl: int) -> None:
        """Extend a lease, since it is time to, unless another thread extends or releases it."""
        self._turns.take(lambda: self._extend_by_clients(state, key, ttl))

    def _extend_by_clients(self, state: LeaseState, key: Encodable, ttl: int) -> Reason | None:
        if reason := state.begin_extension(ttl, self._drift(ttl)):
            return reason
        outcome: HeldLike | list[Vote] | None = None
        try:
            outcome = self.extend(key, ttl)
        finally:
            reason = self.end_extension(state, ttl, outcome)
        return reason

    def release_lease(self, state: LeaseState, key: Encodable) -> None:
        """Release a lease on every master, once, after an extension that is under way; errors are logged."""
        engine = self._engine()
        if engine is None:
            self._turns.take(lambda: self._release_by_clients(state, key))
            return
        with self._timed():
            said = engine.run(Operation.release_lease(state))
        if said is not None:
            manager = self._manager
            log_failures(self.counters.failing_releases, self._resources, manager._names(), said)  # noqa: SLF001

    def _release_by_clients(self, state: LeaseState, key: Encodable) -> None:
        if state.begin_release():
            with self._timed():
                said = self._manager._release_all(self._resources, key)  # noqa: SLF001
            self.end_release(state, said)

    def giving_back(self, key: Encodable) -> Callable[[], None] | None:
        """What releases a lease that nothing refers to any more; ``None`` where the engine does."""
        if self._engine():
            return None

        def give_back() -> None:
            self.give_back(key)
            self.counters.ended(lost=False)

        return give_back

    def give_back(self, key: Encodable) -> None:
        """Release what was taken for a lease that was not made."""
        self._manager._release_all(self._resources, key)  # noqa: SLF001

    def _engine(self) -> Engine | None:
        return self._manager._engine()  # noqa: SLF001


class Turns:
    """One thread at a time.

    Not by a lock: a signal handler may call this while its own thread is in here, and may raise at any moment. To come
    and to go are single steps, so that no exception leaves a thread in here.
    """

    def __init__(self) -> None:
        self._turns: dict[int, None] = {}

    def take(self, work: Callable[[], T]) -> T:
        """Do something when no other thread does so: the threads come in the order in which they asked."""
        me = threading.get_ident()
        is_nested = me in self._turns
        try:
            self._turns.setdefault(me)
            while [*self._turns][0] != me:  # noqa: RUF015 - in one step: others come and go
                time.sleep(TICK)
            return work()
        finally:
            if not is_nested:
                self._turns.pop(me, None)


def acquire(manager: Redlock, resource: Resource, ttl: int, pace: Pace, keeping: Keeping) -> Lease:
    """:meth:`Redlock.acquire`."""
    operations = Operations(manager, listed(resource))
    if keeping.auto_extend and manager._engine() is None:  # noqa: SLF001
        from redlock import _objects  # noqa: PLC0415

        _objects.check_own_names(manager, "extend")
    ttl, start = operations.checked(ttl), now()
    leases: list[Lease] = []
    try:
        outcome = operations.acquire(ttl, pace)
        held = operations.decided(resource, outcome, pace, now() - start)
        leases.append(Lease(operations, resource, ttl, held, keeping.on_lost))
        if keeping.auto_extend:
            leases[0]._keep(keeping.max_hold)  # noqa: SLF001
        return leases[0]
    except BaseException:
        _undo(operations, leases)
        raise


def _undo(operations: Operations, leases: list[Lease]) -> None:
    """Leave nothing behind of an acquire in which something was raised, at whatever moment."""
    for lease in leases:
        lease.release()
    if not leases:
        for taken in operations.taken:
            if isinstance(taken, Held):
                operations.give_back(taken.key)


def extend(manager: Redlock, lock: SupportsUnlock, ttl: int) -> Lock | Literal[False]:
    """:meth:`Redlock.extend`."""
    if isinstance(lock, Lease):
        try:
            lock.extend(ttl)
        except LockLost:
            return False
        return Lock(lock.validity, lock.resource, lock.key)
    operations = Operations(manager, (lock.resource,))
    outcome = operations.extend(lock.key, operations.checked(ttl))
    return False if isinstance(outcome, list) else Lock(outcome.validity_ms, lock.resource, lock.key)


def look(manager: Redlock, resource: Encodable) -> list[_outcomes.Sighting]:
    """:meth:`Redlock.inspect`."""
    engine = manager._engine()  # noqa: SLF001
    if engine is None:
        from redlock import _objects  # noqa: PLC0415

        found = _objects.look(manager, resource)
    else:
        found = engine.run(Operation.inspect(encode("resource", resource)))
    return _outcomes.sightings(manager._names(), found)  # noqa: SLF001


def synchronized(
    manager: Redlock, name: Resource | Callable[..., Resource], ttl: int, terms: dict[str, Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """:meth:`Redlock.synchronized`; ``terms`` are the other arguments of :meth:`Redlock.acquire`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        refuse_suspending(function, type(manager).__name__)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with manager.acquire(name(*args, **kwargs) if callable(name) else name, ttl, **terms):
                return function(*args, **kwargs)

        return wrapper

    return decorate


def refuse_suspending(function: Callable[..., Any], manager: str) -> None:
    """Refuse functions whose call only makes something that runs later, when the lock would be released already.

    Raises:
        TypeError: it is a coroutine function, or a generator function.
    """
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        message = f"{function!r} is async: use AsyncRedlock.synchronized, {manager} would block the event loop"
        raise TypeError(message)
    if inspect.isgeneratorfunction(function):
        message = f"{function!r} is a generator: it would run after the release; acquire in its body"
        raise TypeError(message)
