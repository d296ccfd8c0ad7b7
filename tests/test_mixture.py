"""Plain clients among others: the engine speaks to those, the others are called as they are."""

from __future__ import annotations

import logging
from unittest import mock

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redlock import FencingUnavailable, Lock, LockContended, LockLost, QuorumUnavailable, Redlock
from support.locks import PROMPT, TTL, held, manager, nothing_left
from support.proxy import Mode


class Own(redis.Redis):
    """A client whose own methods are called."""


@pytest.fixture
def mixed(masters):
    """Three servers and a manager of them. The last is called by its client's own methods."""
    servers = masters(3)
    own = Own(host=servers[2].host, port=servers[2].port, retry=Retry(NoBackoff(), 0))
    yield servers, Redlock([servers[0].url, servers[1].url, own], 3, 0.02)
    own.close()


def test_all_of_them_are_asked(mixed):
    servers, dlm = mixed
    assert dlm._backend().engine is None
    lock = dlm.lock("r", TTL)
    assert held(servers) == [lock.key] * 3
    assert dlm.lock("r", TTL) is False
    assert manager(servers, 1).lock("r", TTL) is False
    assert [each.ttl_ms > 0 for each in dlm.inspect("r")] == [True] * 3
    assert dlm.locked("r")
    assert dlm.extend(lock, 2 * TTL).validity > TTL
    assert all(server.admin.pttl("r") > TTL for server in servers)
    dlm.unlock(lock)
    nothing_left(servers)
    assert dlm.extend(lock, TTL) is False
    # The plain clients themselves were not used.
    assert [client.connection_pool._created_connections for client in dlm.servers[:2]] == [0, 0]


def test_a_plain_master_that_is_silent_costs_half_a_second_and_not_redis_pys_timeouts(mixed, through, caplog):
    servers, _ = mixed
    proxy = through(servers[0])
    own = Own(host=servers[2].host, port=servers[2].port)
    dlm = Redlock([proxy.url, servers[1].url, own])
    dlm.unlock(dlm.lock("r", TTL))
    proxy.mode = Mode.SWALLOW
    lock = dlm.lock("r", TTL)
    assert lock.validity > TTL - 1000 * PROMPT
    dlm.unlock(lock)
    assert held(servers[1:]) == [None, None]
    assert dlm.stats().masters[0].failure == "no answer"
    assert [record.getMessage().count("gives no vote: no answer") for record in caplog.records].count(1) == 1
    own.close()


def test_a_minority_that_is_dead_costs_nothing_and_a_majority_the_lock(mixed):
    servers, dlm = mixed
    servers[0].kill()
    lock = dlm.lock("r", TTL)
    assert held(servers[1:]) == [lock.key] * 2
    assert dlm.extend(lock, TTL)
    dlm.unlock(lock)
    servers[2].kill()
    assert dlm.lock("r", TTL) is False
    with pytest.raises(QuorumUnavailable):
        dlm.acquire("r", TTL, timeout=0)
    nothing_left(servers[1:2])


def test_leases(mixed):
    servers, dlm = mixed
    with dlm.acquire(["a", "b"], TTL) as lease:
        assert held(servers, "b") == [lease.key] * 3
        with pytest.raises(LockContended):
            dlm.acquire("a", TTL, timeout=0)
    nothing_left(servers)
    with pytest.raises(LockLost), dlm.acquire("a", TTL) as lease:
        for server in servers[1:]:
            server.admin.set("a", "another")
        lease.extend()
    with pytest.raises(FencingUnavailable):
        dlm.acquire("c", TTL, fencing=True)


def test_hooks_are_given_the_clients(mixed):
    _, dlm = mixed
    seen = []

    def lock_instance(server, resource, val, ttl):
        seen.append(server)
        return server.set(resource, val, nx=True, px=ttl)

    dlm.lock_instance = lock_instance
    assert dlm.lock("r", TTL)
    assert seen == dlm.servers
    for client in dlm.servers:
        client.close()


def test_patched_methods_are_called(mixed):
    _, dlm = mixed
    with mock.patch.object(dlm.servers[0], "set", return_value=True) as patched:
        assert dlm.lock("r", TTL)
    assert patched.call_count == 1
    for client in dlm.servers:
        client.close()


def test_the_callers_script_releases(mixed):
    servers, dlm = mixed
    dlm.unlock_script = 'redis.call("set", "mark", ARGV[1]) return redis.call("del", KEYS[1])'
    lock = dlm.lock("r", TTL)
    dlm.unlock(Lock(0, "r", lock.key))
    assert held(servers, "mark") == [lock.key] * 3
    assert held(servers) == [None] * 3


def test_it_is_said_once(masters, caplog):
    (server,) = masters(1)
    dlm = Redlock([server.url, redis.Redis(port=1, encoding="latin-1")])
    for _ in range(3):
        dlm.lock("r", 50)
    said = [record for record in caplog.records if "cannot stand in" in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING]
