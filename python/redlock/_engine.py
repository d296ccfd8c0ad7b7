"""The masters of one call, asked by the engine: the :class:`~redlock._types.Backend` of nearly all calls."""

from __future__ import annotations

import sys

from redlock._arguments import encode
from redlock._redlock import UNLOCK_SCRIPT, Operation, Vote, finish, now

TYPE_CHECKING = False  # as in `_manager`, which imports this
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redlock._counters import Counters
    from redlock._redlock import Engine, Held
    from redlock._types import Encodable, HeldLike, Leased, Reason, Sighting, Tries, TtlAndDrift


class EngineBackend:
    """As :class:`~redlock._types.Backend`.

    Args:
        engine: that asks them.
        names: what logs call them.
        quorum: how many must agree.
        script: that releases.
        counters: of the manager.

    Attributes:
        new_key: makes the caller's own keys, if it has such: a fresh one for each try, since a late release of one must
            not meet the key of the next.
    """

    new_key: Callable[[], Encodable] | None = None
    own_key: Encodable | None = None
    taken: list[HeldLike | list[Vote]] | None = None
    attempts = 0

    def __init__(self, engine: Engine, names: Sequence[str], quorum: int, script: str, counters: Counters) -> None:
        self.engine = engine
        self.names = names
        self.quorum = quorum
        self.counters = counters
        self._script = None if script is UNLOCK_SCRIPT else script

    def acquire(
        self,
        resources: Sequence[Encodable],
        terms: TtlAndDrift,
        pace: Tries,
        *,
        fencing: bool = False,
    ) -> HeldLike | list[Vote]:
        """As every backend."""
        names = [encode("resource", each) for each in resources]
        (ttl, drift), (tries, delay, timeout) = terms, pace
        if tries < 1:
            return []
        if self.new_key is None:
            return self._run(
                Operation.acquire(names, ttl, self.quorum, drift, tries, delay, timeout, self._script, None, fencing)
            )
        from redlock._objects import attempts  # noqa: PLC0415

        said: list[Vote] = []
        end = None if timeout is None else now() + timeout
        for _ in attempts(tries, delay, timeout):
            self.own_key = self.new_key()
            sent = encode("key", self.own_key)
            left = None if end is None else max(0.0, end - now())
            outcome = self._run(
                Operation.acquire(names, ttl, self.quorum, drift, 1, 0.0, left, self._script, sent, fencing)
            )
            if not isinstance(outcome, list):
                return outcome
            if said and end is not None and now() >= end:
                break  # cut short, it tells less than the one before it
            said = outcome
        return said

    def _run(self, operation: Operation[Held | list[Vote]]) -> HeldLike | list[Vote]:
        if self.taken is None:
            return self.engine.run(operation)
        # Taken down without a step in between, in which an exception out of a signal handler would lose it.
        self.taken.extend(map(self.engine.run, (operation,)))
        self.attempts += operation.rounds
        return self.taken[-1]

    def release(self, resources: Sequence[Encodable], key: Encodable) -> list[Vote]:
        """As every backend."""
        names = [encode("resource", each) for each in resources]
        said = self.engine.run(Operation.release(names, encode("key", key), self._script))
        if self.counters.failing_releases or said.count(Vote.RELEASED) < len(said):
            if sys.is_finalizing():
                finish(0.1)  # for what is left to the driver; there is no module left to log with
            else:
                self._log(resources, said)
        return said

    def extend(self, resources: Sequence[Encodable], key: Encodable, terms: TtlAndDrift) -> HeldLike | list[Vote]:
        """As every backend."""
        ttl, drift = terms
        names = [encode("resource", each) for each in resources]
        return self.engine.run(Operation.extend(names, encode("key", key), ttl, self.quorum, drift))

    def inspect(self, resource: Encodable) -> list[Sighting]:
        """As every backend."""
        return self.engine.run(Operation.inspect(encode("resource", resource)))

    def extend_lease(self, lease: Leased, terms: TtlAndDrift) -> Reason | None:
        """As every backend."""
        if lease.is_the_engines:
            return self.engine.run(Operation.extend_lease(lease.state, *terms))
        return lease.extend_by(self, terms)

    def release_lease(self, lease: Leased) -> None:
        """As every backend."""
        if not lease.is_the_engines:
            lease.release_by(self)
            return
        with self.counters.round_trip.timed():
            said = self.engine.run(Operation.release_lease(lease.state))
        if said is not None:
            self._log(lease.resources, said)

    def check_extends(self) -> None:
        """As every backend."""

    def health(self) -> list[tuple[str | None, int, int]]:
        """As every backend."""
        return self.engine.health()

    def _log(self, resources: Sequence[Encodable], said: list[Vote]) -> None:
        from redlock._failures import log_failures  # noqa: PLC0415 - it imports redis-py

        log_failures(self.counters.failing_releases, resources, self.names, said)
