"""What :class:`~redlock.Redlock` does with leases, whatever asks the masters.

Imported when the first lease is asked for: it needs threads, which ``import redlock`` does not.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from redlock._lease import Lease
from redlock._lock import Lock, LockLost
from redlock._redlock import finish, now, pause_driver, resume_driver
from redlock._terms import Keeping, Pace, Terms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redlock._manager import Redlock
    from redlock._redlock import Vote
    from redlock._types import Backend, Encodable, HeldLike, Manager, Reason, Resource, SupportsUnlock, TtlAndDrift

T = TypeVar("T")

TICK = 0.002  # seconds between looks at whether it is one's turn; an extension takes a round trip


# Leases that are still renewed when the interpreter ends are released. It does not wait for long.
atexit.register(finish, 0.1)

# A child of a fork could find a mutex locked that a thread had, and the interpreter warns of threads.
os.register_at_fork(before=pause_driver, after_in_parent=resume_driver)


class Operations(Terms["Backend"]):
    """A call of threads, and what becomes of it."""

    def __init__(self, manager: Manager[Backend], resources: Sequence[Encodable]) -> None:
        super().__init__(manager, resources)
        self.backend.taken = []

    def acquire(self, ttl: int, pace: Pace) -> HeldLike | list[Vote]:
        """Try until it is held, or what each master said in the last round."""
        return self.backend.acquire(self.resources, self._terms(ttl), pace.bounds, fencing=pace.fencing)

    def extend(self, key: Encodable, ttl: int) -> HeldLike | list[Vote]:
        """Set the time to live anew, once.

        Args:
            key: of the lock.
            ttl: milliseconds.

        Returns:
            What is held now, or what each master said.
        """
        return self._extend(self.backend, key, self._terms(ttl))

    def _extend(self, backend: Backend, key: Encodable, terms: TtlAndDrift) -> HeldLike | list[Vote]:
        with self.counters.round_trip.timed():
            outcome = backend.extend(self.resources, key, terms)
        self.counters.extended += not isinstance(outcome, list)
        return outcome

    def extend_lease(self, ttl: int) -> Reason | None:
        """Extend the lease, when no other thread extends or releases it.

        Args:
            ttl: milliseconds.

        Returns:
            Why it could not be extended.
        """
        return self._choose().extend_lease(self, self._terms(ttl))

    def extend_by(self, backend: Backend, terms: TtlAndDrift) -> Reason | None:
        """As :class:`~redlock._types.Leased`."""
        return self._in_turn(lambda: self._extend_by(backend, terms))

    def _in_turn(self, work: Callable[[], T]) -> T:
        """Do it when no other thread extends or releases the lease, where the engine does not see to that."""
        turns: Turns = vars(self).setdefault("_turns", Turns())  # in a single step
        return turns.take(work)

    def _extend_by(self, backend: Backend, terms: TtlAndDrift) -> Reason | None:
        if reason := self.state.begin_extension(*terms):
            return reason
        outcome: HeldLike | list[Vote] | None = None
        try:
            outcome = self._extend(backend, self.key, terms)
        finally:
            reason = self._end_extension(terms, outcome, backend.quorum)
        return reason

    def release_lease(self) -> None:
        """Release the lease on every master, once, after an extension that is under way; errors are logged."""
        self._choose().release_lease(self)

    def release_by(self, backend: Backend) -> None:
        """As :class:`~redlock._types.Leased`."""
        self._in_turn(lambda: self._release_by(backend))

    def _release_by(self, backend: Backend) -> None:
        if self.state.begin_release():
            with self.counters.round_trip.timed():
                said = backend.release(self.resources, self.key)
            self._end_release(said, backend.quorum)

    def giving_back(self) -> Callable[[], None] | None:
        """What releases the lease when nothing refers to it any more; ``None`` where the engine does."""
        if self.is_the_engines:
            return None
        # Without a reference to the lease's state, whose end is to be told.
        choose, resources, key, counters = self._choose, self.resources, self.key, self.counters

        def give_back() -> None:
            choose().release(resources, key)
            counters.ended(lost=False)

        return give_back

    def undo(self) -> None:
        """Release what was taken for a lease that was not made."""
        for taken in self.backend.taken or ():
            if not isinstance(taken, list):
                self._choose().release(self.resources, taken.key)


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


def acquire(operations: Operations, resource: Resource, ttl: int, pace: Pace, keeping: Keeping) -> Lease:
    """:meth:`Redlock.acquire`."""
    if keeping.auto_extend:
        operations.backend.check_extends()
    ttl, start = operations.checked(ttl), now()
    leases: list[Lease] = []
    try:
        outcome = operations.acquire(ttl, pace)
        held = operations.decided(resource, outcome, pace, now() - start)
        leases.append(Lease(operations, resource, ttl, held, keeping.on_lost))
        operations.end_call()
        if keeping.auto_extend:
            leases[0]._keep(keeping.max_hold)  # noqa: SLF001 - its other half
        return leases[0]
    except BaseException:
        # Nothing is to be left behind, whatever was raised, and at whatever moment.
        for lease in leases:
            lease.release()
        if not leases:
            operations.undo()
        raise


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


def synchronized(
    manager: Redlock, name: Resource | Callable[..., Resource], ttl: int, terms: dict[str, Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """:meth:`Redlock.synchronized`; ``terms`` are the other arguments of :meth:`Redlock.acquire`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        refuse_suspending(function, type(manager).__name__)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with manager.acquire(name(*args, **kwargs) if callable(name) else name, ttl, **terms):
                result = function(*args, **kwargs)
                refuse_coroutine(result, function)
                return result

        return wrapper

    return decorate


def refuse_suspending(function: Callable[..., Any], manager: str) -> None:
    """Refuse functions whose call only makes something that runs later, when the lock would be released already.

    Raises:
        TypeError: it is a coroutine function, or a generator function.
    """
    for called in (function, type(function).__call__):
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            message = f"{function!r} is async: use AsyncRedlock.synchronized, {manager} would block the event loop"
            raise TypeError(message)
        if inspect.isgeneratorfunction(called):
            message = f"{function!r} is a generator: it would run after the release; acquire in its body"
            raise TypeError(message)


def refuse_coroutine(result: object, function: Callable[..., Any]) -> None:
    """Refuse the same by what a call has returned: a decorator may hide that a function is async.

    Raises:
        TypeError: it is a coroutine.
    """
    if inspect.iscoroutine(result):
        result.close()  # it would warn that it was never awaited
        message = f"{function!r} returned a coroutine, which would run after the release: use AsyncRedlock.synchronized"
        raise TypeError(message)
