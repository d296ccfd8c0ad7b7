"""The masters of one call of asyncio's, asked all at once by their clients' own async ``set`` and ``eval``.

For asyncio clients that the engine cannot stand in for: fakes, subclasses, sentinel and cluster clients. As in
:mod:`redlock._objects`, what ends a try releases the masters, and elapsed time is not the wall clock's.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from redlock._arguments import check_type, encode
from redlock._connections import logger
from redlock._failures import log_failures
from redlock._masters import EXTEND_SCRIPT, FAILURES, extension, sighting, text_of
from redlock._objects import Held, health_of, held_of, note
from redlock._outcomes import OWN_METHODS
from redlock._redlock import Vote, now, pause, random_key

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from redlock._counters import Counters
    from redlock._types import AsyncLeased, Encodable, Reason, Sighting, Tries, TtlAndDrift

# Seconds that a cancelled caller waits for what it took to be given back.
GRACE = 1.0

# asyncio itself holds its tasks by weak references.
_releases: set[asyncio.Task[list[Vote]]] = set()


class Clients:
    """The clients of a manager.

    Attributes:
        clients: one per master.
        failing: as :attr:`redlock._connections.Masters.failing`.
    """

    def __init__(self, clients: Sequence[Any]) -> None:
        self.clients = clients
        self.failing: dict[int, tuple[str | None, int]] = {}


class AsyncObjects:
    """As :class:`~redlock._types.AsyncBackend`.

    Args:
        clients: that are called.
        names: what logs call the masters.
        quorum: how many must agree.
        script: that releases.
        counters: of the manager.
    """

    engine = None
    attempts = 0

    def __init__(self, clients: Clients, *, names: Sequence[str], quorum: int, script: str, counters: Counters) -> None:
        self.names = names
        self.quorum = quorum
        self.counters = counters
        self._clients = clients.clients
        self._failing = clients.failing
        self._script = script

    async def acquire(
        self,
        resources: Sequence[Encodable],
        terms: TtlAndDrift,
        pace: Tries,
        *,
        fencing: bool = False,
    ) -> Held | list[Vote]:
        """As every backend."""
        if fencing:
            return [OWN_METHODS] * len(self._clients)
        for resource in resources:
            check_type("resource", resource)
        tries, delay, timeout = pace
        end = math.inf if timeout is None else now() + timeout
        said: list[Vote] = []
        for attempt in range(tries):
            if attempt:
                seconds, is_time_left = pause(delay, end - now())
                await asyncio.sleep(seconds)
                if not is_time_left:
                    break
            outcome = await self._round(resources, terms)
            if isinstance(outcome, Held):
                return outcome
            said = outcome
        return said

    async def _round(self, resources: Sequence[Encodable], terms: TtlAndDrift) -> Held | list[Vote]:
        key, start = random_key(), now()
        held: Held | None = None
        try:
            asked = (self._ask(client, resources, key, terms[0]) for client in self._clients)
            # To the end, whatever one of them raises: a release must not overtake what it releases.
            said = list(map(_said, await asyncio.gather(*asked, return_exceptions=True)))
            held = held_of(said, self.quorum, terms, start, key)
        finally:
            if held is None:
                await self._release(resources, key)
        return held or said

    async def _ask(self, client: Any, resources: Sequence[Encodable], key: Encodable, ttl: int) -> Vote:
        """Ask one master until something is not granted."""
        try:
            for resource in resources:
                if not await client.set(resource, key, nx=True, px=ttl):
                    note(self._failing, client, None)
                    return Vote.REFUSED
        except FAILURES as error:
            note(self._failing, client, error)
            return Vote.failure(text_of(error))
        note(self._failing, client, None)
        return Vote.GRANTED

    async def release(self, resources: Sequence[Encodable], key: Encodable) -> list[Vote]:
        """As every backend."""
        _check(resources, key)
        said = await self._release(resources, key)
        log_failures(self.counters.failing_releases, resources, self.names, said)
        return said

    async def _release(self, resources: Sequence[Encodable], key: Encodable) -> list[Vote]:
        task = asyncio.ensure_future(_all(self._release_at(each, resources, key) for each in self._clients))
        _releases.add(task)
        task.add_done_callback(_releases.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait((task,), timeout=GRACE)
            raise

    async def _release_at(self, client: Any, resources: Sequence[Encodable], key: Encodable) -> Vote:
        said = Vote.RELEASED
        for resource in resources:
            try:
                if not await client.eval(self._script, 1, resource, key) and said == Vote.RELEASED:
                    said = Vote.ABSENT
            except Exception as error:  # noqa: BLE001 - the others are to be released all the same
                if not isinstance(error, FAILURES):
                    logger.debug("what a client raised", exc_info=True)
                said = Vote.failure(text_of(error))
        return said

    def begin_release(self, resources: Sequence[Encodable], key: Encodable) -> None:
        """As every backend: clients of their own finish what they have begun."""

    async def extend(self, resources: Sequence[Encodable], key: Encodable, terms: TtlAndDrift) -> Held | list[Vote]:
        """As every backend."""
        _check(resources, key)
        start = now()
        said = await _all(_extend_at(each, resources, key, terms[0]) for each in self._clients)
        return held_of(said, self.quorum, terms, start, key) or said

    async def inspect(self, resource: Encodable) -> list[Sighting]:
        """As every backend."""
        encode("resource", resource)
        return await asyncio.gather(*(_look_at(each, resource) for each in self._clients))

    async def extend_lease(self, lease: AsyncLeased, terms: TtlAndDrift) -> Reason | None:
        """As every backend."""
        return await lease.extend_by(self, terms)

    async def release_lease(self, lease: AsyncLeased) -> None:
        """As every backend."""
        await lease.release_by(self)

    def health(self) -> list[tuple[str | None, int, int]]:
        """As every backend."""
        return health_of(self._failing, self._clients)


def _check(resources: Sequence[Encodable], key: Encodable) -> None:
    """Be as strict as the engine."""
    for resource in resources:
        encode("resource", resource)
    encode("key", key)


def _said(answer: Vote | BaseException) -> Vote:
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def _all(calls: Iterable[Coroutine[Any, Any, Vote]]) -> list[Vote]:
    return await asyncio.gather(*calls)


async def _extend_at(client: Any, resources: Sequence[Encodable], key: Encodable, ttl: int) -> Vote:
    said = Vote.ABSENT
    for resource in resources:
        try:
            said = extension(await client.eval(EXTEND_SCRIPT, 1, resource, key, ttl))
        except FAILURES as error:
            said = Vote.failure(text_of(error))
        if said != Vote.EXTENDED:
            break
    return said


async def _look_at(client: Any, resource: Encodable) -> Sighting:
    try:
        return sighting(await client.get(resource), await client.pttl(resource))
    except FAILURES as error:
        return None, None, text_of(error)
