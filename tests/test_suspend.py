"""The machine is suspended: its clock jumps, and what was waited for goes on from where it stood.

No machine is suspended here. The package's view of its clock jumps; the clock that waits are measured by does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from redlock import AsyncRedlock, LockLost, Redlock
from support.locks import amanager

pytestmark = pytest.mark.once

TTL = 90_000  # ms: the next extension is due after 30 s
SOON = 8.0  # seconds: a second, on a slow machine


@pytest.fixture
def servers(masters):
    return masters(3)


class Overslept:
    """The state of a lease after an hour of sleep: it is over by the engine's clock, and no timer has gone off."""

    why_not = "expired"
    remaining_ms = 0

    def __init__(self, state):
        self._state = state

    def __getattr__(self, name):
        return getattr(self._state, name)


def suspend(lease):
    lease._state = Overslept(lease._state)


def url_list(servers):
    return [server.url for server in servers]


def test_who_waits_for_a_loss_is_told_at_once_after_a_suspend(servers):
    lease = Redlock(url_list(servers)).acquire("r", TTL)
    waiter = threading.Thread(target=lease.lost.wait, daemon=True)
    waiter.start()
    time.sleep(0.2)
    suspend(lease)
    waiter.join(SOON)
    assert not waiter.is_alive()


def test_a_block_is_cancelled_at_once_after_a_suspend(servers):
    async def main():
        begin = time.monotonic()
        with pytest.raises(LockLost):
            async with amanager(servers).acquire("r", TTL) as lease:
                await asyncio.sleep(0.2)
                suspend(lease)
                await asyncio.sleep(25)
        assert time.monotonic() - begin < SOON

    asyncio.run(main())


def test_a_task_that_waits_for_a_loss_is_told_at_once_after_a_suspend(servers):
    async def main():
        lease = await AsyncRedlock(url_list(servers)).acquire("r", TTL)
        waiting = asyncio.create_task(lease.lost.wait())
        await asyncio.sleep(0.2)
        suspend(lease)
        assert await asyncio.wait_for(waiting, SOON)

    asyncio.run(main())


def test_the_loop_looks_at_the_engines_clock_again_within_a_second(servers):
    """The engine's deadlines are on its own clock; the loop's timers are set for no later than that."""

    async def main():
        loop = asyncio.get_running_loop()
        set_for, call_at = [], loop.call_at

        def noting(when, callback, *args, **kwargs):
            if "redlock" in getattr(callback, "__module__", ""):
                set_for.append(when - loop.time())
            return call_at(when, callback, *args, **kwargs)

        loop.call_at = noting
        # Where nothing is pushed, the next thing to do is the next try.
        adlm = AsyncRedlock([f"{url}?protocol=2" for url in url_list(servers)], 1000, 600)
        assert await adlm.lock("r", TTL)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(adlm.lock("r", TTL), 1.5)
        assert set_for
        assert max(set_for) <= 1.0

    asyncio.run(main())
