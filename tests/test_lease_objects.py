"""Leases over clients that the engine cannot replace: their own `set`, `eval`, `get` and `pttl` are called."""

from __future__ import annotations

import time
from unittest import mock

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redlock import LockContended, LockLost, QuorumUnavailable, Redlock, _leasing
from support.locks import TTL, held, manager, nothing_left
from support.servers import wait_until

SHORT = 600  # ms


class Own(redis.Redis):
    """A subclass may do anything, so it is called."""


class SetAndEval:
    """All that redlock-py asked of a client."""

    def __init__(self, server):
        client = server.client()
        self.set, self.eval = client.set, client.eval


@pytest.fixture
def servers(masters):
    return masters(3)


@pytest.fixture
def dlm(servers):
    never = Retry(NoBackoff(), 0)  # by default redis-py tries for many seconds
    made = Redlock([Own(host=server.host, port=server.port, retry=never) for server in servers])
    yield made
    for client in made.servers:
        client.close()


def occupy(servers, name="r"):
    for server in servers:
        server.admin.set(name, "another", px=TTL)


@pytest.mark.every_kind
def test_a_lease_is_held_extended_looked_at_and_released(servers, dlm):
    with dlm.acquire("r", TTL, timeout=1) as lease:
        assert held(servers) == [lease.key] * 3
        assert [vote for _, vote in lease.masters] == ["granted"] * 3
        assert dlm.locked("r")
        assert {seen.holder for seen in dlm.inspect("r")} == {lease.holder}
        lease.extend(2 * TTL)
        assert all(server.admin.pttl("r") > TTL for server in servers)
        assert TTL < lease.remaining < 2 * TTL
        with pytest.raises(LockContended) as caught:
            dlm.acquire("r", TTL, timeout=0.05, retry_delay=0.01)
        assert caught.value.reason == "timeout"
    assert lease.released_in_time
    assert not dlm.locked("r")
    nothing_left(servers)


def test_it_is_kept(servers, dlm):
    with dlm.acquire("r", SHORT, auto_extend=True) as lease:
        time.sleep(3 * SHORT / 1000)
        lease.ensure()
    nothing_left(servers)


def test_what_is_gone_is_not_revived(servers, dlm):
    lease = dlm.acquire("r", TTL)
    for server in servers:
        server.admin.delete("r")
    with pytest.raises(LockLost) as caught:
        lease.extend()
    assert caught.value.reason == "expired"
    nothing_left(servers)


def test_nor_what_another_has(servers, dlm):
    lease = dlm.acquire("r", TTL)
    occupy(servers)
    assert dlm.extend(lease, 2 * TTL) is False
    assert lease.lost.reason == "taken over"
    assert all(server.admin.pttl("r") <= TTL for server in servers)


def test_a_minority_that_is_down_does_no_harm(servers, dlm):
    lease = dlm.acquire("r", TTL)
    servers[0].kill()
    lease.extend()
    assert dlm.locked("r")
    servers[1].kill()
    with pytest.raises(LockLost) as caught:
        lease.extend()
    assert caught.value.reason == "unavailable"
    with pytest.raises(QuorumUnavailable):
        dlm.locked("r")
    with pytest.raises(QuorumUnavailable):
        dlm.acquire("s", TTL, timeout=0)
    assert [each.errors > 0 for each in dlm.stats().masters] == [True, True, False]
    assert dlm.stats().masters[0].failure


def test_several_are_taken_all_or_none(servers, dlm):
    with dlm.acquire(["a", "b"], TTL) as lease:
        assert all(server.get(name) == lease.key for server in servers for name in "ab")
        lease.extend(2 * TTL)
        assert all(server.admin.pttl(name) > TTL for server in servers for name in "ab")
    nothing_left(servers)
    occupy(servers, "b")
    with pytest.raises(LockContended):
        dlm.acquire(["a", "b", "c"], TTL, timeout=0)
    assert all(server.keys() == {b"b"} for server in servers)


def test_decoded_answers_are_as_good(servers):
    dlm = Redlock([Own(host=server.host, port=server.port, decode_responses=True) for server in servers])
    with dlm.acquire("r", TTL) as lease:
        assert dlm.locked("r")
        assert {seen.holder for seen in dlm.inspect("r")} == {lease.holder}
        lease.extend()


def test_set_and_eval_are_enough_to_hold_but_not_to_look(servers):
    dlm = Redlock([SetAndEval(server) for server in servers])
    with dlm.acquire("r", SHORT, auto_extend=True) as lease:
        with pytest.raises(NotImplementedError, match="SetAndEval"):
            dlm.inspect("r")
        with pytest.raises(NotImplementedError, match="SetAndEval"):
            dlm.locked("r")
        time.sleep(2 * SHORT / 1000)
        lease.ensure()
    nothing_left(servers)


def test_what_patched_methods_took_is_extended_and_released_when_they_are_gone(servers):
    dlm = manager(servers)
    with mock.patch.object(redis.Redis, "set", autospec=True, side_effect=redis.Redis.set):
        lease = dlm.acquire("r", TTL)
        other = dlm.acquire("s", TTL)
    lease.extend(2 * TTL)
    # The engine's first call: a master whose connection takes longer than the quorum is not waited for.
    assert sum(server.admin.pttl("r") > TTL for server in servers) >= 2
    lease.release()
    wait_until(lambda: held(servers) == [None] * 3)
    occupy(servers, "s")
    with pytest.raises(LockLost):
        other.extend()
    for client in dlm.servers:
        client.close()


def test_what_is_raised_between_the_grant_and_the_lease_leaves_nothing(servers, dlm, monkeypatch):
    monkeypatch.setattr(_leasing, "Lease", mock.Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        dlm.acquire("r", TTL)
    nothing_left(servers)


class Prefixed(Redlock):
    """Stores its keys elsewhere."""

    def lock_instance(self, server, resource, val, ttl):
        return super().lock_instance(server, f"lock:{resource}", val, ttl)

    def unlock_instance(self, server, resource, val):
        super().unlock_instance(server, f"lock:{resource}", val)


def test_where_only_the_caller_knows_the_keys_nothing_is_guessed(servers):
    dlm = Prefixed([server.url for server in servers])
    with dlm.acquire("r", TTL) as lease:
        assert held(servers, "lock:r") == [lease.key] * 3
        with pytest.raises(NotImplementedError, match="lock_instance of Prefixed"):
            lease.extend()
        with pytest.raises(NotImplementedError, match="lock_instance of Prefixed"):
            dlm.locked("r")
    nothing_left(servers)
    with pytest.raises(NotImplementedError, match="lock_instance of Prefixed"):
        dlm.acquire("r", TTL, auto_extend=True)
    nothing_left(servers)


def test_the_callers_own_keys_are_used(servers):
    class Numbered(Redlock):
        count = 0

        def get_unique_id(self):
            self.count += 1
            return f"key {self.count}"

    occupy(servers)
    dlm = Numbered([server.url for server in servers])
    with pytest.raises(LockContended):
        dlm.acquire("r", TTL, timeout=0.1, retry_delay=0.01)
    assert dlm.count > 1
    with dlm.acquire(["a", "b"], TTL) as lease:
        assert lease.key == f"key {dlm.count}".encode()
        wait_until(lambda: held(servers, "b") == [lease.key] * 3)
        lease.extend()
        assert dlm.inspect("a")[0].holder == lease.holder
    assert not any(server.keys() - {b"r"} for server in servers)
