"""Between a decision and its caller: what happens there must neither be lost nor be left out of the account."""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import time

import pytest
import redis

from redlock import CannotObtainLock, LockLost, Redlock
from redlock._loop import _Call
from support.locks import PROMPT, TTL, amanager, awarm, manager, nothing_left, warm

pytestmark = pytest.mark.once

DRIFT = TTL // 100 + 2
NAP = 0.4  # seconds
SHORT = 300  # ms: a nap is more
LONG = 1000  # ms: short enough to wait for its end, long enough for a stall of the machine


class Slow(logging.Handler):
    """Takes so many seconds for a record."""

    def __init__(self, seconds):
        super().__init__()
        self._seconds = seconds
        self.is_used = False

    def emit(self, _record):
        time.sleep(self._seconds)
        self.is_used = True


class Ending(logging.Handler):
    """Raises this while the first record is written, as a signal handler does that ends the program just then."""

    def __init__(self, end):
        super().__init__()
        self._end = [end]

    def emit(self, _record):
        if self._end:
            raise self._end.pop()


class Failing(logging.Handler):
    """Raises this for each record that has this text."""

    def __init__(self, error, text=""):
        super().__init__()
        self._error, self._text = error, text

    def emit(self, record):
        if self._text in record.getMessage():
            raise self._error


class Own(redis.Redis):
    """A subclass may do anything, so it is called."""


@pytest.fixture
def handler():
    """Adds a handler to the logger, for the test."""
    logger = logging.getLogger("redlock")
    added = []

    def add(one):
        logger.addHandler(one)
        added.append(one)

    yield add
    for one in added:
        logger.removeHandler(one)


@pytest.fixture
def degraded(masters):
    """Three servers, the last of which is down, and a record is written of that by the first call."""
    servers = masters(3)
    servers[2].kill()
    return servers


# -- the validity that a caller gets -----------------------------------------------------------------------------------


def test_the_time_that_a_log_takes_is_no_part_of_the_validity(degraded, handler):
    handler(Slow(NAP))
    lock = manager(degraded).lock("r", TTL)
    assert 0 < lock.validity <= TTL - DRIFT - NAP * 1000


def test_neither_is_it_a_part_of_a_leases(degraded, handler):
    handler(Slow(NAP))
    with manager(degraded).acquire("r", TTL) as lease:
        assert 0 < lease.validity <= TTL - DRIFT - NAP * 1000


def test_nor_of_an_extensions(masters, handler):
    servers = masters(3)
    dlm = manager(servers)
    warm(dlm, servers)
    lock = dlm.lock("r", TTL)
    servers[2].kill()
    slow = Slow(NAP)
    handler(slow)
    # A quorum may decide before it is noticed that the third is down: a later call writes that record.
    while not slow.is_used:
        extended = dlm.extend(lock, TTL)
    assert 0 < extended.validity <= TTL - DRIFT - NAP * 1000


def test_a_lock_that_is_over_when_it_is_had_is_refused(degraded, handler):
    handler(Slow(NAP))
    assert manager(degraded, retry_count=1).lock("r", SHORT) is False


def test_a_lease_that_is_over_when_it_is_had_is_refused(degraded, handler):
    handler(Slow(NAP))
    with pytest.raises(CannotObtainLock):
        manager(degraded).acquire("r", SHORT, timeout=0)


@pytest.fixture
def busy(monkeypatch):
    """Has the loop do something else for a while, between the end of an operation and the task that waits for it."""
    finish = _Call.finish

    def late(call, outcome):
        time.sleep(NAP)
        finish(call, outcome)

    return lambda: monkeypatch.setattr(_Call, "finish", late)


def test_the_time_for_which_a_loop_is_busy_is_no_part_of_the_validity(masters, busy):
    async def main():
        adlm = amanager(servers, retry_count=1)
        await awarm(adlm, servers)
        busy()
        lock = await adlm.lock("r", TTL)
        assert 0 < lock.validity <= TTL - DRIFT - NAP * 1000
        extended = await adlm.extend(lock, TTL)
        assert 0 < extended.validity <= TTL - DRIFT - NAP * 1000
        await adlm.unlock(lock)

    servers = masters(3)
    asyncio.run(main())


def test_what_is_over_when_its_task_goes_on_is_refused(masters, busy):
    async def main():
        adlm = amanager(servers, retry_count=1)
        await awarm(adlm, servers)
        lock = await adlm.lock("other", TTL)
        busy()
        assert await adlm.lock("r", SHORT) is False
        with pytest.raises(CannotObtainLock):
            await adlm.acquire("r", SHORT, timeout=0)
        assert await adlm.extend(lock, SHORT) is False

    servers = masters(3)
    asyncio.run(main())


# -- what ends the program while a record is written -------------------------------------------------------------------


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_while_a_record_is_written_reaches_it(degraded, handler, end):
    """And the lock is given back before."""
    dlm = manager(degraded)
    handler(Ending(end))
    with pytest.raises(end):
        dlm.lock("r", TTL)
    nothing_left(degraded[:2])
    assert dlm.lock("r", TTL)


def test_a_release_that_is_followed_by_it_is_done(masters, handler):
    servers = masters(3)
    dlm = manager(servers)
    warm(dlm, servers)
    lock = dlm.lock("r", TTL)
    servers[2].kill()
    handler(Ending(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dlm.unlock(lock)
    nothing_left(servers[:2])


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_it_ends_an_event_loop_too(degraded, handler, end):
    """As from any other callback: the tasks are cancelled, and give back what they took."""

    async def main():
        await amanager(degraded).lock("r", TTL)
        await asyncio.sleep(60)

    handler(Ending(end))
    with pytest.raises(end):
        asyncio.run(main())
    nothing_left(degraded[:2])


def test_a_handler_that_fails_costs_nobody_a_lock(degraded, handler, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: said.append(str(unraisable.exc_value)))
    handler(Ending(OSError("no space left")))
    assert manager(degraded).lock("r", TTL)
    assert said == ["no space left"]


# -- a handler that fails when a lease is lost -------------------------------------------------------------------------


def take_over(servers, name):
    for server in servers:
        server.admin.set(name, "another", px=TTL)


@pytest.mark.parametrize("error", [OSError, SystemExit])
@pytest.mark.parametrize("is_own", [False, True], ids=["engine", "own clients"])
def test_it_keeps_no_holder_from_being_told(masters, handler, is_own, error):
    """The thread that tells goes on: it tells of later losses, and renews the leases of clients that are called."""
    servers, told = masters(3), queue.SimpleQueue()
    clients = [Own(host=server.host, port=server.port) for server in servers]
    dlm = Redlock(clients) if is_own else manager(servers)
    warm(dlm, servers)
    handler(Failing(error))
    with dlm.acquire("kept", LONG, auto_extend=True) as kept:
        leases = [dlm.acquire(name, LONG, auto_extend=True, on_lost=told.put) for name in ("first", "second")]
        for lease in leases:
            take_over(servers, lease.resource)
            assert told.get(timeout=PROMPT) is lease
        time.sleep(2 * LONG / 1000)
        kept.ensure()
    for client in clients:
        client.close()


def test_it_keeps_no_block_from_being_cancelled(masters, handler):
    servers, told = masters(3), []

    async def main():
        with pytest.raises(LockLost):
            async with amanager(servers).acquire("r", LONG, auto_extend=True, on_lost=told.append) as lease:
                take_over(servers, "r")
                await asyncio.sleep(PROMPT)
                pytest.fail("it was not cancelled")
        assert told == [lease]

    handler(Failing(OSError, "is lost"))
    asyncio.run(main())


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_it_raises_reaches_who_extends(masters, handler, end):
    servers = masters(3)
    lease = manager(servers).acquire("r", TTL)
    take_over(servers, "r")
    handler(Failing(end, "is lost"))
    with pytest.raises(end):
        lease.extend()
