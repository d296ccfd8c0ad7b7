"""Connections that take longer than a round: masters far away, slow to look up, with addresses that do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
import redis

from redlock import AsyncRedlock, Redlock
from support import names
from support.locks import TTL, amanager, awarm, held, is_held, manager, nothing_left, warm
from support.programs import run
from support.proxy import syn_black_hole
from support.scripted import Act

pytestmark = pytest.mark.once

FAR = 0.15  # seconds one way: a connection takes two round trips and more, which is longer than a round
CALLS = 10  # many more than are needed
NAMES = pytest.mark.skipif(not names.AVAILABLE, reason="needs a C compiler, and LD_PRELOAD")


@pytest.fixture
def far(through):
    """Puts servers far away."""

    def put(servers, seconds=FAR):
        proxies = [through(server) for server in servers]
        for proxy in proxies:
            proxy.delay = proxy.delay_requests = seconds
        return proxies

    return put


@pytest.fixture
def resolver(tmp_path, monkeypatch):
    """Programs that are started resolve the names of `names.name`."""
    monkeypatch.setenv("LD_PRELOAD", str(names.library(tmp_path)))


def lock_in_some_call(dlm):
    """The lock, had in one of a few calls with a single try each."""
    locks = (dlm.lock("r", TTL) for _ in range(CALLS))
    return next((lock for lock in locks if lock), None)


# -- far away ----------------------------------------------------------------------------------------------------------


def test_far_masters_are_connected_to_over_several_calls(masters, far):
    servers = masters(3)
    dlm = manager(far(servers), retry_count=1)
    lock = lock_in_some_call(dlm)
    assert lock
    assert is_held(servers, lock)
    dlm.unlock(lock)
    nothing_left(servers)


def test_far_masters_are_connected_to_over_the_tries_of_one_call(masters, far):
    servers = masters(3)
    lease = Redlock([proxy.url for proxy in far(servers)]).acquire("r", TTL, timeout=10)
    lease.release()
    nothing_left(servers)


def test_far_masters_are_connected_to_over_tls(masters, fronts, far, authority):
    servers = masters(3)
    proxies = far([fronts(server, authority.server) for server in servers], FAR * 2 / 3)
    urls = [f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={authority.ca}" for proxy in proxies]
    dlm = Redlock(urls, 1)
    lock = lock_in_some_call(dlm)
    assert lock
    dlm.unlock(lock)
    nothing_left(servers)


def test_far_masters_are_connected_to_in_a_loop(masters, far):
    servers = masters(3)

    async def main():
        async with AsyncRedlock([proxy.url for proxy in far(servers)]).acquire("r", TTL, timeout=10):
            pass

    asyncio.run(main())
    nothing_left(servers)


def test_a_client_name_costs_no_round_trip_of_its_own(scripted):
    """The questions about the server go along with it."""
    server = scripted(lambda command: Act.SILENCE if command.name == "CLIENT" else None)
    assert Redlock([f"{server.url}?client_name=locker"], 1).lock("r", TTL) is False
    assert [command.name for command in server.commands[:3]] == ["HELLO", "CLIENT", "HELLO"]


def test_a_timeout_of_the_callers_own_lengthens_the_wait(masters, far):
    """One round trip is longer than the engine's own deadline, and one try is enough."""
    servers = masters(3)
    urls = [f"{proxy.url}?socket_timeout=6&socket_connect_timeout=7" for proxy in far(servers, 0.35)]
    dlm = Redlock(urls, 1)
    lock = dlm.lock("r", TTL)
    assert lock
    dlm.unlock(lock)
    nothing_left(servers)


def test_a_connection_that_is_late_carries_the_release(masters, through):
    servers = masters(3)
    proxies = [through(server) for server in servers]

    async def main():
        adlm = amanager(proxies)
        await awarm(adlm, servers)
        lock = await adlm.lock("r", TTL)
        assert lock
        for proxy in proxies:
            proxy.delay = proxy.delay_requests = FAR
            proxy.reset()
        await adlm.unlock(lock)
        await asyncio.to_thread(nothing_left, servers, 5)

    asyncio.run(main())


# -- names -------------------------------------------------------------------------------------------------------------


@NAMES
@pytest.mark.usefixtures("resolver")
def test_a_name_that_is_slow_to_look_up_is_looked_up_over_several_calls(masters):
    (server,) = masters(1)
    url = f"redis://{names.name('127.0.0.1', seconds=0.8)}:{server.port}"
    source = f"""
        dlm = Redlock([{url!r}], 1)
        say(any(dlm.lock("r", {TTL}) for _ in range({CALLS})))
    """
    assert run(source) == "True\n"


@NAMES
@pytest.mark.usefixtures("resolver")
def test_addresses_that_do_not_answer_are_passed_by_and_remembered(masters):
    """The last of three is the server's. The second lock is over new connections, and has one try."""
    (server,) = masters(1)
    holes = ("127.0.0.2", "127.0.0.3")
    url = f"redis://{names.name(*holes, '127.0.0.1')}:{server.port}"
    source = f"""
        import redis

        dlm = Redlock([{url!r}], 1)
        lock = next((lock for lock in (dlm.lock("r", {TTL}) for _ in range({CALLS})) if lock), None)
        say(bool(lock))
        dlm.unlock(lock)
        redis.Redis(port={server.port}).client_kill_filter(_type="normal", skipme=True)
        say(bool(dlm.lock("r", {TTL})))
    """
    with contextlib.ExitStack() as stack:
        for hole in holes:
            stack.enter_context(syn_black_hole(hole, server.port))
        assert run(source) == "True\nTrue\n"


# -- forgotten ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def forgotten(masters, through):
    """A manager with one try, its three servers, and what has its idle connections forgotten."""
    servers = masters(3)
    proxies = [through(server) for server in servers]
    dlm = manager(proxies, retry_count=1)
    warm(dlm, servers)

    def forget():
        time.sleep(1.2)  # idle for longer than a connection in use
        for proxy in proxies:
            proxy.forget()

    return dlm, servers, forget


def test_a_lock_is_had_although_the_idle_connections_were_forgotten(forgotten):
    dlm, servers, forget = forgotten
    forget()
    lock = dlm.lock("r", TTL)
    assert lock
    assert is_held(servers, lock)
    dlm.unlock(lock)
    nothing_left(servers)


def test_a_lock_is_released_although_the_idle_connections_were_forgotten(forgotten):
    """At once: nothing is left when the call returns, and the session is not driven after that."""
    dlm, servers, forget = forgotten
    lock = dlm.lock("r", TTL)
    forget()
    dlm.unlock(lock)
    assert held(servers) == [None] * 3


def test_a_lock_is_extended_although_the_idle_connections_were_forgotten(forgotten):
    dlm, servers, forget = forgotten
    lock = dlm.lock("r", TTL)
    forget()
    assert dlm.extend(lock, 2 * TTL)
    # By a quorum when the call returns: the session is not driven after that.
    assert sum(server.client().pttl("r") > TTL for server in servers) >= 2


@pytest.mark.parametrize("interval, checked", [(0, []), (60, []), (0.05, ["PING"])])
def test_a_connection_that_was_idle_for_the_health_check_interval_is_asked_first(scripted, interval, checked):
    server = scripted()
    dlm = Redlock([redis.Redis.from_url(server.url, health_check_interval=interval)], 1)
    dlm.unlock(dlm.lock("r", TTL))
    before = len(server.commands)
    time.sleep(0.1)
    dlm.unlock(dlm.lock("r", TTL))
    names = [command.name for command in server.commands[before:]]
    assert names == [*checked, "SET", "EVALSHA"]


def test_a_connection_that_does_not_pass_its_health_check_is_replaced(masters, through):
    """And nothing else is sent over it."""
    (server,) = masters(1)
    proxy = through(server)
    dlm = Redlock([redis.Redis.from_url(proxy.url, health_check_interval=0.05)], 1)
    dlm.unlock(dlm.lock("r", TTL))
    time.sleep(0.1)
    proxy.forget()
    lock = dlm.lock("r", TTL)
    assert lock
    assert is_held([server], lock)
    dlm.unlock(lock)
    nothing_left([server])


def test_a_busy_connection_that_is_slow_is_not_taken_for_forgotten(masters, through):
    """It was idle, and is slower than usual: its answer comes before a new connection could be made."""
    (server,) = masters(1)
    proxy = through(server)
    dlm = manager([proxy], retry_count=1)
    warm(dlm, [server])
    time.sleep(1.2)
    proxy.delay = 0.1
    lock = dlm.lock("r", TTL)
    assert lock
    proxy.delay = 0.0
    dlm.unlock(lock)
    nothing_left([server])
