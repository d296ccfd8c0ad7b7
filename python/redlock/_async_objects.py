"""The other path for asyncio: Redlock over the clients' own async ``set`` and ``eval``, all masters at once.

For asyncio clients that the engine cannot stand in for: fakes, subclasses, sentinel and cluster clients. As there, what
ends a try releases the masters, and elapsed time is not the wall clock's.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from redlock._arguments import check_type, random_key
from redlock._connections import logger
from redlock._objects import (
    EXTEND_SCRIPT,
    EXTENSIONS,
    FAILURES,
    Held,
    health_of,
    in_time,
    jittered,
    note,
    seen,
    text_of,
)
from redlock._redlock import Vote, now

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from redlock._types import Encodable, Sighting

# Seconds that a cancelled caller waits for what it took to be given back.
GRACE = 1.0

# asyncio itself holds its tasks by weak references.
_releases: set[asyncio.Task[list[Vote]]] = set()


class Clients:
    """The masters of a manager that are called by their clients' own methods.

    Args:
        clients: one per master.

    Attributes:
        failing: as :attr:`redlock._connections.Masters.failing`.
    """

    def __init__(self, clients: Sequence[Any]) -> None:
        self.clients = clients
        self.failing: dict[int, tuple[str | None, int]] = {}

    async def obtain(
        self,
        resources: Sequence[Encodable],
        terms: tuple[int, int, int],
        pace: tuple[int, float, float | None],
        script: str,
    ) -> Held | list[Vote]:
        """Try until a quorum grants.

        Args:
            resources: to be locked together, with one key.
            terms: ttl and drift in milliseconds, and the quorum.
            pace: how many tries, seconds of pause between them, and the timeout.
            script: that releases.

        Returns:
            What is held; else what each master said in the last round.
        """
        for resource in resources:
            check_type("resource", resource)
        tries, delay, timeout = pace
        end = math.inf if timeout is None else now() + timeout
        said: list[Vote] = []
        for attempt in range(tries):
            if attempt and not await _pause(delay, end):
                break
            held, said = await self._round(resources, terms, script)
            if held:
                return held
        return said

    async def _round(
        self, resources: Sequence[Encodable], terms: tuple[int, int, int], script: str
    ) -> tuple[Held | None, list[Vote]]:
        ttl, drift, quorum = terms
        key, start = random_key(), now()
        held: Held | None = None
        try:
            asked = (self._ask(client, resources, key, ttl) for client in self.clients)
            # To the end, whatever one of them raises: a release must not overtake what it releases.
            said = list(map(_said, await asyncio.gather(*asked, return_exceptions=True)))
            if said.count(Vote.GRANTED) >= quorum:
                held = in_time(start, (ttl, drift), key, said)
        finally:
            if held is None:
                await self.release(resources, key, script)
        return held, said

    async def _ask(self, client: Any, resources: Sequence[Encodable], key: Encodable, ttl: int) -> Vote:
        """Ask one master until something is not granted."""
        try:
            for resource in resources:
                if not await client.set(resource, key, nx=True, px=ttl):
                    note(self.failing, client, None)
                    return Vote.REFUSED
        except FAILURES as error:
            note(self.failing, client, error)
            return Vote.failure(text_of(error))
        note(self.failing, client, None)
        return Vote.GRANTED

    async def release(self, resources: Sequence[Encodable], key: Encodable, script: str) -> list[Vote]:
        """Release on every master, even when the caller is cancelled.

        Returns:
            What each said: released if all were, absent or its failure.
        """
        for resource in resources:
            check_type("resource", resource)
        check_type("key", key)
        task = asyncio.ensure_future(_all(self._release_one(each, resources, key, script) for each in self.clients))
        _releases.add(task)
        task.add_done_callback(_releases.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait((task,), timeout=GRACE)
            raise

    async def _release_one(self, client: Any, resources: Sequence[Encodable], key: Encodable, script: str) -> Vote:
        said = Vote.RELEASED
        for resource in resources:
            try:
                if not await client.eval(script, 1, resource, key) and said == Vote.RELEASED:
                    said = Vote.ABSENT
            except Exception as error:  # noqa: BLE001 - the others are to be released all the same
                if not isinstance(error, FAILURES):
                    logger.debug("what a client raised", exc_info=True)
                said = Vote.failure(text_of(error))
        return said

    async def extend(
        self, resources: Sequence[Encodable], key: Encodable, terms: tuple[int, int, int]
    ) -> Held | list[Vote]:
        """Set a new TTL where the key is still there.

        Returns:
            What is held; else what each master said: extended, taken, absent or its failure.
        """
        ttl, drift, quorum = terms
        start = now()
        said = await _all(_extend_all(each, resources, key, ttl) for each in self.clients)
        held = in_time(start, (ttl, drift), key, said) if said.count(Vote.EXTENDED) >= quorum else None
        return held or said

    def health(self) -> list[tuple[str | None, int, int]]:
        """As the engine's."""
        return health_of(self.failing, self.clients)

    async def look(self, resource: Encodable) -> list[Sighting]:
        """Ask every master who holds ``resource``, by each client's ``get`` and ``pttl``."""
        return await asyncio.gather(*(_look_at(each, resource) for each in self.clients))


def _said(answer: Vote | BaseException) -> Vote:
    if isinstance(answer, BaseException):
        raise answer
    return answer


async def _pause(delay: float, end: float) -> bool:
    """Sleep, and say whether there is time for another try."""
    pause, left = jittered(delay), end - now()
    await asyncio.sleep(max(0.0, min(pause, left)))
    return pause < left


async def _all(calls: Iterable[Coroutine[Any, Any, Vote]]) -> list[Vote]:
    return await asyncio.gather(*calls)


async def _extend_all(client: Any, resources: Sequence[Encodable], key: Encodable, ttl: int) -> Vote:
    said = Vote.ABSENT
    for resource in resources:
        try:
            reply = await client.eval(EXTEND_SCRIPT, 1, resource, key, ttl)
            said = EXTENSIONS.get(reply) or Vote.failure(f"unexpected reply: {reply!r:.80}")
        except FAILURES as error:
            said = Vote.failure(text_of(error))
        if said != Vote.EXTENDED:
            break
    return said


async def _look_at(client: Any, resource: Encodable) -> Sighting:
    try:
        return seen(await client.get(resource), await client.pttl(resource))
    except FAILURES as error:
        return None, None, text_of(error)
