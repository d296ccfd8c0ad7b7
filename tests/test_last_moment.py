"""Between a decision and its caller: what happens there must neither be lost nor be left out of the account."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest

from support.locks import TTL, amanager, manager, nothing_left, warm

pytestmark = pytest.mark.once



class Ending(logging.Handler):
    """Raises this while the first record is written, as a signal handler does that ends the program just then."""

    def __init__(self, end):
        super().__init__()
        self._end = [end]

    def emit(self, _record):
        if self._end:
            raise self._end.pop()


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
