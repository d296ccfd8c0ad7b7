"""The masters of one call of asyncio's, asked by the engine: as an :class:`~redlock._types.AsyncBackend`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redlock._arguments import encode
from redlock._failures import log_failures
from redlock._redlock import UNLOCK_SCRIPT, Held, Operation, Vote

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redlock._counters import Counters
    from redlock._loop import LoopHosts
    from redlock._redlock import Engine
    from redlock._types import AsyncLeased, Encodable, Reason, Sighting, Tries, TtlAndDrift


class AsyncEngineBackend:
    """As :class:`~redlock._types.AsyncBackend`.

    Args:
        engine: that asks them.
        hosts: that wait for it, one for each event loop.
        names: what logs call them.
        quorum: how many must agree.
        script: that releases.
        counters: of the manager.
    """

    __slots__ = ("_hosts", "_script", "attempts", "counters", "engine", "names", "quorum")

    def __init__(  # noqa: PLR0913 - all but two have names
        self, engine: Engine, hosts: LoopHosts, *, names: Sequence[str], quorum: int, script: str, counters: Counters
    ) -> None:
        self.engine = engine
        self.names = names
        self.quorum = quorum
        self.counters = counters
        self.attempts = 0
        self._hosts = hosts
        self._script = None if script is UNLOCK_SCRIPT else script

    async def acquire(
        self,
        resources: Sequence[Encodable],
        terms: TtlAndDrift,
        pace: Tries,
        *,
        fencing: bool = False,
    ) -> Held | list[Vote]:
        """As every backend."""
        names, (ttl, drift) = _names(resources), terms

        def give_back(outcome: Held | list[Vote]) -> Operation[list[Vote]] | None:
            return Operation.release(names, outcome.key, self._script) if isinstance(outcome, Held) else None

        operation = Operation.acquire(names, ttl, self.quorum, drift, *pace, self._script, fencing=fencing)
        outcome = await self._hosts.current().run(operation, give_back)
        self.attempts += operation.rounds
        if isinstance(outcome, Held) and not outcome.validity_ms:
            # The loop was busy for so long with something else.
            await self._hosts.current().run(Operation.release(names, outcome.key, self._script))
            return outcome.votes
        return outcome

    async def release(self, resources: Sequence[Encodable], key: Encodable) -> list[Vote]:
        """As every backend."""
        said = await self._hosts.current().run(self._release(resources, key))
        log_failures(self.counters.failing_releases, resources, self.names, said)
        return said

    def begin_release(self, resources: Sequence[Encodable], key: Encodable) -> None:
        """As every backend."""
        self._hosts.current().begin(self._release(resources, key))

    def _release(self, resources: Sequence[Encodable], key: Encodable) -> Operation[list[Vote]]:
        return Operation.release(_names(resources), encode("key", key), self._script)

    async def extend(self, resources: Sequence[Encodable], key: Encodable, terms: TtlAndDrift) -> Held | list[Vote]:
        """As every backend."""
        ttl, drift = terms
        operation = Operation.extend(_names(resources), encode("key", key), ttl, self.quorum, drift)
        outcome: Held | list[Vote] = await self._hosts.current().run(operation)
        if isinstance(outcome, Held) and not outcome.validity_ms:
            return outcome.votes  # the loop was busy for so long with something else
        return outcome

    async def inspect(self, resource: Encodable) -> list[Sighting]:
        """As every backend."""
        return await self._hosts.current().run(Operation.inspect(encode("resource", resource)))

    async def extend_lease(self, lease: AsyncLeased, terms: TtlAndDrift) -> Reason | None:
        """As every backend."""
        return await self._hosts.current().run(Operation.extend_lease(lease.state, *terms))

    async def release_lease(self, lease: AsyncLeased) -> None:
        """As every backend."""
        with self.counters.round_trip.timed():
            said = await self._hosts.current().run(Operation.release_lease(lease.state))
        if said is not None:
            log_failures(self.counters.failing_releases, lease.resources, self.names, said)

    def health(self) -> list[tuple[str | None, int, int]]:
        """As every backend."""
        return self.engine.health()


def _names(resources: Sequence[Any]) -> list[bytes]:
    return [encode("resource", each) for each in resources]
