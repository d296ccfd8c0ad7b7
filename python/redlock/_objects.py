"""The masters of one call, asked one after another by their clients' own ``set`` and ``eval``, as redlock-py asks them.

For what the engine cannot speak to itself (Sentinel and cluster clients, subclasses, fakes, any object) and for
managers whose ``lock_instance`` or ``unlock_instance`` is the caller's. What redlock-py did wrong is put right here,
too: elapsed time is not the wall clock's, errors of a minority lose no lock, and whatever ends a try, the masters are
released. What the votes come to, the engine's own rules say.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisError

from redlock._arguments import check_type
from redlock._connections import logger, name
from redlock._failures import log_failure
from redlock._lock import MultipleRedlockException
from redlock._masters import FAILURES, Client, text_of
from redlock._outcomes import OWN_METHODS
from redlock._redlock import Vote, now, pause, validity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from redlock._connections import Masters
    from redlock._counters import Counters
    from redlock._masters import Master
    from redlock._types import Encodable, HeldLike, Leased, Reason, Sighting, Tries, TtlAndDrift

    Failing = dict[int, tuple[str | None, int]]


class Held(NamedTuple):
    """As the engine's :class:`~redlock._redlock.Held`."""

    validity_ms: int
    expires_at: float
    key: Encodable
    votes: list[Vote]


class Hooks(NamedTuple):
    """The caller's own methods, and a method of the manager's.

    Attributes:
        owner: the manager's class.
        new_key: makes the key of a try.
        lock_instance: what :meth:`Redlock.lock_instance` was overridden with, if it was. It may take other resources
            than we do, and alone knows where the key is.
        unlock_instance: the same of :meth:`Redlock.unlock_instance`.
    """

    owner: str
    new_key: Callable[[], Encodable]
    lock_instance: Callable[..., object] | None
    unlock_instance: Callable[..., object] | None


class Objects:
    """As :class:`~redlock._types.Backend`.

    Args:
        masters: of the manager.
        quorum: how many must agree.
        script: that releases.
        counters: of the manager.
        hooks: the same; they are given the clients.
    """

    engine = None
    own_key = None
    taken: list[HeldLike | list[Vote]] | None = None
    attempts = 0

    def __init__(self, masters: Masters, quorum: int, script: str, counters: Counters, hooks: Hooks) -> None:
        self.names = masters.names
        self.quorum = quorum
        self.counters = counters
        self._failing = masters.failing
        self._script = script
        self._hooks = hooks
        self._masters: Sequence[Master] = (
            [Client(server, hooks.lock_instance) for server in masters.made()]
            if hooks.lock_instance or hooks.unlock_instance
            else masters.one_by_one()
        )

    def acquire(
        self,
        resources: Sequence[Encodable],
        terms: TtlAndDrift,
        pace: Tries,
        *,
        fencing: bool = False,
    ) -> Held | list[Vote]:
        """As every backend.

        Raises:
            BaseException: what a hook or a client raised, if no redis-py error; the masters are released first.
        """
        if fencing:
            return [OWN_METHODS] * len(self._masters)
        if not self._hooks.lock_instance:
            for resource in resources:
                check_type("resource", resource)
        said: list[Vote] = []
        for _ in attempts(*pace):
            outcome = self._round(resources, terms)
            if isinstance(outcome, Held):
                if self.taken is not None:
                    self.taken.append(outcome)
                return outcome
            said = outcome
        return said

    def _round(self, resources: Sequence[Encodable], terms: TtlAndDrift) -> Held | list[Vote]:
        key = self._hooks.new_key()
        held: Held | None = None
        start = now()
        try:
            said = [self._ask(master, resources, key, terms[0]) for master in self._masters]
            held = held_of(said, self.quorum, terms, start, key)
        finally:
            if held is None:
                self._abandon(resources, key)
        return held or said

    def _ask(self, master: Master, resources: Sequence[Encodable], key: Encodable, ttl: int) -> Vote:
        """Ask until something is not granted."""
        for resource in resources:
            try:
                granted = master.ask(resource, key, ttl)
            except FAILURES as error:
                note(self._failing, master.origin, error)
                return Vote.failure(text_of(error))
            note(self._failing, master.origin, None)
            if not granted:
                return Vote.REFUSED
        return Vote.GRANTED

    def _abandon(self, resources: Sequence[Encodable], key: Encodable) -> None:
        """Release on every master, whatever one of them raises."""
        unlock_instance = self._hooks.unlock_instance
        for resource in resources:
            for master in self._masters:
                if unlock_instance is None:
                    self._release_at(master, resource, key)
                    continue
                try:
                    unlock_instance(master.origin, resource, key)
                except Exception as error:  # noqa: BLE001 - the other masters are to be released all the same
                    _log(self.counters.failing_releases, resource, master.origin, error)

    def release(self, resources: Sequence[Encodable], key: Encodable) -> list[Vote]:
        """As every backend; a hook of the caller's tells no more than that it returned.

        Raises:
            MultipleRedlockException: ``unlock_instance`` is the caller's, and raised redis-py errors.
        """
        said = zip(*(self._release(resource, key) for resource in resources), strict=True)
        return [next((each for each in of_one if each != Vote.RELEASED), Vote.RELEASED) for of_one in said]

    def _release(self, resource: Encodable, key: Encodable) -> list[Vote]:
        if self._hooks.unlock_instance is None:
            check_type("resource", resource)
            check_type("key", key)
            return [self._release_at(master, resource, key) for master in self._masters]
        errors = []
        for master in self._masters:
            try:
                self._hooks.unlock_instance(master.origin, resource, key)
            except RedisError as error:
                errors.append(error)
        if errors:
            raise MultipleRedlockException(errors)
        return [Vote.RELEASED] * len(self._masters)

    def _release_at(self, master: Master, resource: Encodable, key: Encodable) -> Vote:
        return release_at(master, resource, key, self._script, self.counters.failing_releases)

    def extend(self, resources: Sequence[Encodable], key: Encodable, terms: TtlAndDrift) -> Held | list[Vote]:
        """As every backend.

        Raises:
            NotImplementedError: ``lock_instance`` is the caller's.
        """
        self.check_extends()
        start = now()
        said = [_extend_at(master, resources, key, terms[0]) for master in self._masters]
        return held_of(said, self.quorum, terms, start, key) or said

    def inspect(self, resource: Encodable) -> list[Sighting]:
        """As every backend.

        Raises:
            NotImplementedError: ``lock_instance`` is the caller's, or a client cannot be asked.
        """
        self._check_own_names("inspect")
        for master in self._masters:
            master.check_looks()
        return [_look_at(master, resource) for master in self._masters]

    def extend_lease(self, lease: Leased, terms: TtlAndDrift) -> Reason | None:
        """As every backend."""
        return lease.extend_by(self, terms)

    def release_lease(self, lease: Leased) -> None:
        """As every backend."""
        lease.release_by(self)

    def check_extends(self) -> None:
        """As every backend."""
        self._check_own_names("extend")

    def _check_own_names(self, what: str) -> None:
        if self._hooks.lock_instance:
            message = f"cannot {what}: lock_instance of {self._hooks.owner} is overridden, and only that knows how"
            raise NotImplementedError(message)

    def health(self) -> list[tuple[str | None, int, int]]:
        """As every backend; here a client that waits in vain raises an error like any other."""
        return health_of(self._failing, (master.origin for master in self._masters))


def attempts(tries: int, delay: float, timeout: float | None = None) -> Iterator[int]:
    """Count the tries, with a pause before each but the first.

    Args:
        tries: how many.
        delay: the longest pause in seconds; the shortest is half of it.
        timeout: seconds after which there is no further try; ``None``: no bound.
    """
    end = math.inf if timeout is None else now() + timeout
    for attempt in range(tries):
        if attempt:
            seconds, is_time_left = pause(delay, end - now())
            time.sleep(seconds)
            if not is_time_left:
                return
        yield attempt


def held_of(said: list[Vote], quorum: int, terms: TtlAndDrift, start: float, key: Encodable) -> Held | None:
    """What a quorum granted or extended, unless it took so long that nothing is left of it.

    Args:
        said: what each master said.
        quorum: how many must agree.
        terms: ttl and drift in milliseconds.
        start: when the first master was asked.
        key: of what is held.
    """
    left = validity(said, quorum, *terms, start, now())
    return left and Held(*left, key, said)


def release_at(master: Master, resource: Encodable, key: Encodable, script: str, failing: set[object]) -> Vote:
    """Release on one master; errors are logged as redlock-py logged them.

    Args:
        master: which.
        resource: what.
        key: its key.
        script: that releases.
        failing: the manager's masters on which the last release failed; brought up to date.

    Returns:
        Released, absent or the failure.
    """
    try:
        deleted = master.release(resource, key, script)
    except Exception as error:  # noqa: BLE001 - redlock-py's contract: an unlock does not raise
        _log(failing, resource, master.origin, error)
        return Vote.failure(text_of(error))
    failing.discard(id(master.origin))
    return Vote.RELEASED if deleted else Vote.ABSENT


def _log(failing: set[object], resource: Encodable, server: object, error: Exception) -> None:
    # redis-py's errors say it all; where any other comes from is worth a traceback.
    trace = None if isinstance(error, FAILURES) else error
    log_failure(failing, id(server), ((resource,), name(server), text_of(error)), trace)


def _extend_at(master: Master, resources: Sequence[Encodable], key: Encodable, ttl: int) -> Vote:
    said = Vote.ABSENT
    for resource in resources:
        try:
            said = master.extend(resource, key, ttl)
        except FAILURES as error:
            said = Vote.failure(text_of(error))
        if said != Vote.EXTENDED:
            break
    return said


def _look_at(master: Master, resource: Encodable) -> Sighting:
    try:
        return master.look(resource)
    except FAILURES as error:
        return None, None, text_of(error)


def note(failing: Failing, server: Any, error: Exception | None) -> None:
    """Log a server's change of state, not each of its errors: an outage would drown the log."""
    failed, errors = failing.get(id(server), (None, 0))
    if error:
        failing[id(server)] = text_of(error), errors + 1
        if not failed:
            logger.warning("master %s gives no vote: %s", name(server), text_of(error))
    elif failed:
        failing[id(server)] = None, errors
        logger.info("master %s answers again", name(server))


def health_of(failing: Failing, servers: Iterable[object]) -> list[tuple[str | None, int, int]]:
    """What has become of the calls of these servers: as the engine's ``health``."""
    return [(*failing.get(id(server), (None, 0)), 0) for server in servers]
