"""What most tests of locking do, said once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import redlock

from .servers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .servers import Server

TTL = 20_000  # ms: longer than any test, so that a key that is gone was released and has not just expired
PROMPT = 5.0  # seconds: how long a call with dead or hung masters may take on a slow machine; not a measurement


class Place(Protocol):
    """Anything that a manager can be pointed at: a server, a proxy, a scripted server."""

    @property
    def url(self) -> str:
        """Where it is."""


def manager(places: Iterable[Place], retry_count: float = 3, retry_delay: float = 0.02) -> redlock.Redlock:
    """A manager of these masters, with short pauses."""
    return redlock.Redlock([place.url for place in places], retry_count, retry_delay)


def amanager(places: Iterable[Place], retry_count: float = 3, retry_delay: float = 0.02) -> redlock.AsyncRedlock:
    """An asyncio manager of these masters, with short pauses."""
    return redlock.AsyncRedlock([place.url for place in places], retry_count, retry_delay)


def held(servers: Iterable[Server], resource: str = "r") -> list[bytes | None]:
    """What each server has under ``resource``."""
    return [server.get(resource) for server in servers]


def is_held(servers: Iterable[Server], lock: redlock.Lock) -> bool:
    """Whether a quorum holds the lock, and nobody holds anything else under its name.

    A master that was not connected to when the others had decided need not have it.
    """
    values = held(servers, str(lock.resource))
    return values.count(lock.key) > len(values) // 2 and set(values) <= {lock.key, None}


def warm(dlm: redlock.Redlock, servers: Iterable[Server]) -> None:
    """Lock and unlock until every master takes part."""

    def everyone_takes_part() -> bool:
        lock = dlm.lock("warm", TTL)
        if not lock:
            return False
        values = held(servers, "warm")
        dlm.unlock(lock)
        return set(values) == {lock.key}

    wait_until(everyone_takes_part, what="every master connected")
    nothing_left(servers)


async def awarm(adlm: redlock.AsyncRedlock, servers: Iterable[Server]) -> None:
    """Lock and unlock until every master takes part."""
    everyone = list(servers)
    for _ in range(1000):
        lock = await adlm.lock("warm", TTL)
        if lock:
            everywhere = held(everyone, "warm") == [lock.key] * len(everyone)
            await adlm.unlock(lock)
            if everywhere:
                return
        await asyncio.sleep(0.005)
    message = "a master takes no part"
    raise AssertionError(message)


def nothing_left(servers: Iterable[Server], timeout: float = 2.0) -> None:
    """Wait until no server has any key, for much less than `TTL`."""
    everyone = list(servers)
    try:
        wait_until(lambda: not any(server.keys() for server in everyone), timeout)
    except TimeoutError as error:
        message = f"left: {[server.keys() for server in everyone]}"
        raise AssertionError(message) from error
