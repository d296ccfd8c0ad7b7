"""Thousands of calls at once, and thousands of names in one call."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from redlock import AsyncRedlock, CannotObtainLock, Redlock
from support.locks import nothing_left, warm
from support.servers import wait_until

pytestmark = pytest.mark.once

TTL = 60_000  # ms: longer than this takes on a slow machine


def test_many_fenced_calls_at_once_do_not_cut_their_own_connection(masters, through):
    """Their answers come together, and are more than a server may send unasked."""
    (server,) = masters(1)
    proxy = through(server)
    names = [f"r{number}" for number in range(3000)]

    async def main():
        adlm = AsyncRedlock([f"{proxy.url}?socket_timeout=20"], 1)
        async with adlm.acquire("warm", TTL, fencing=True):
            pass
        proxy.delay = 0.1
        leases = await asyncio.gather(*(adlm.acquire(name, TTL, fencing=True) for name in names))
        assert all(lease.token for lease in leases)
        await asyncio.gather(*(lease.release() for lease in leases))

    asyncio.run(main())
    assert len(proxy.links) == 1
    assert not server.keys() & {name.encode() for name in names}


def test_many_names_in_one_call_leave_nothing_whether_they_are_had_or_not(masters):
    """The manager does nothing more for it when the call has returned."""
    servers = masters(3)
    dlm = Redlock([server.url for server in servers], 1)
    warm(dlm, servers)
    names = [f"r{number}" for number in range(100_000)]
    with contextlib.suppress(CannotObtainLock):
        dlm.acquire(names, TTL, retry_count=1).release()
    # A server that needs longer than a round for its part gets its releases over a connection that is given up.
    wait_until(lambda: [server.admin.dbsize() for server in servers] == [0, 0, 0], what="the end of all keys")
    nothing_left(servers)
