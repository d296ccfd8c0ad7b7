"""What the engine can be asked to do beyond `lock` and `unlock`, on real servers."""

from __future__ import annotations

import pytest

from redlock._redlock import Held, Operation, Vote, now
from support.locks import PROMPT, TTL, held, manager
from support.servers import wait_until

DRIFT = TTL // 100 + 2


@pytest.fixture
def servers(masters):
    return masters(3)


@pytest.fixture
def engine(servers):
    engine = manager(servers)._backend().engine
    # Connects to all: a round that is decided before a master has its connection sends nothing there.
    engine.run(Operation.inspect(b"r"))
    return engine


def acquire(*resources, ttl=TTL, tries=1, timeout=None):
    return Operation.acquire(resources, ttl, 2, DRIFT, tries, 0.02, timeout)


def extend(*resources, key, ttl=TTL, valid_until=None):
    return Operation.extend(resources, key, ttl, 2, DRIFT, valid_until)


@pytest.mark.every_kind
def test_extending_sets_the_ttl_anew_and_says_until_when(servers, engine):
    lock = engine.run(acquire(b"r"))
    before = now()
    longer = engine.run(extend(b"r", key=lock.key, ttl=2 * TTL))
    assert isinstance(longer, Held)
    assert longer.key == lock.key
    assert before + (2 * TTL - DRIFT) / 1000 <= longer.expires_at <= now() + (2 * TTL - DRIFT) / 1000
    assert longer.votes.count(Vote.EXTENDED) >= 2
    wait_until(lambda: all(server.admin.pttl("r") > TTL for server in servers))


@pytest.mark.every_kind
def test_extending_does_not_revive_a_lock_that_is_gone(servers, engine):
    lock = engine.run(acquire(b"r"))
    for server in servers[:2]:
        server.admin.delete("r")
    assert engine.run(extend(b"r", key=lock.key, valid_until=now() + 10)).count(Vote.ABSENT) == 2
    assert held(servers)[:2] == [None, None]


@pytest.mark.every_kind
def test_extending_leaves_another_holder_alone(servers, engine):
    for server in servers:
        server.admin.set("r", "another", px=TTL)
    said = engine.run(extend(b"r", key=b"mine", ttl=10 * TTL))
    assert said.count(Vote.TAKEN) >= 2
    assert all(server.admin.pttl("r") <= TTL for server in servers)


@pytest.mark.every_kind
def test_a_master_that_forgot_is_given_a_lock_that_is_still_ours(servers, engine):
    lock = engine.run(acquire(b"r"))
    servers[0].admin.delete("r")
    # Whether the master's answer came before those of the quorum is chance: ask until it did.
    for _ in range(200):
        engine.run(extend(b"r", key=lock.key, valid_until=now() + 10))
        if held(servers)[0]:
            break
    assert held(servers) == [lock.key] * 3


def test_a_lock_that_may_have_run_out_is_given_to_nobody(servers, engine):
    lock = engine.run(acquire(b"r"))
    servers[0].admin.delete("r")
    for _ in range(50):
        engine.run(extend(b"r", key=lock.key, valid_until=now()))
        engine.run(extend(b"r", key=lock.key))
    assert held(servers)[0] is None


def test_a_minority_that_is_down_does_not_stop_an_extension(servers, engine):
    lock = engine.run(acquire(b"r"))
    servers[2].kill()
    assert isinstance(engine.run(extend(b"r", key=lock.key)), Held)
    servers[1].kill()
    assert isinstance(engine.run(extend(b"r", key=lock.key)), list)


@pytest.mark.every_kind
def test_several_resources_are_taken_together_and_released_together(servers, engine):
    lock = engine.run(acquire(b"a", b"b", b"c"))
    wait_until(lambda: {server.get(name) for server in servers for name in "abc"} == {lock.key})
    assert engine.run(Operation.release([b"a", b"b", b"c"], lock.key)) == [Vote.RELEASED] * 3
    assert all(server.keys() == set() for server in servers)


def test_several_resources_are_taken_all_or_none(servers, engine):
    for server in servers:
        server.admin.set("b", "another", px=TTL)
    said = engine.run(acquire(b"a", b"b", b"c"))
    assert said.count(Vote.REFUSED) >= 2
    assert all(server.keys() == {b"b"} for server in servers)


def test_several_resources_are_extended_all_or_not_at_all(servers, engine):
    lock = engine.run(acquire(b"a", b"b"))
    for server in servers:
        server.admin.delete("b")
    assert engine.run(extend(b"a", b"b", key=lock.key)).count(Vote.ABSENT) >= 2


@pytest.mark.every_kind
def test_inspecting_says_who_and_how_long(servers, engine):
    servers[0].admin.set("r", "holder", px=TTL)
    servers[1].admin.set("r", "for ever")
    first, second, third = engine.run(Operation.inspect(b"r"))
    assert first[0] == b"holder"
    assert 0 < first[1] <= TTL
    assert second == (b"for ever", None, None)
    assert third == (None, None, None)


def test_inspecting_names_what_went_wrong(servers, engine):
    servers[0].kill()
    servers[1].admin.rpush("r", "a list")
    first, second, third = engine.run(Operation.inspect(b"r"))
    assert "cannot connect" in first[2]
    assert "WRONGTYPE" in second[2]
    assert third == (None, None, None)


def test_a_timeout_bounds_the_rounds_and_the_pauses(servers, engine):
    for server in servers:
        server.admin.set("r", "another", px=TTL)
    begin = now()
    assert engine.run(acquire(b"r", tries=2**62, timeout=0.3)).count(Vote.REFUSED) >= 1
    assert 0.3 <= now() - begin < PROMPT


def test_a_lock_that_becomes_free_within_the_timeout_is_taken(servers, engine):
    for server in servers:
        server.admin.set("r", "another", px=200)
    assert isinstance(engine.run(acquire(b"r", tries=2**62, timeout=PROMPT)), Held)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Operation.acquire([], TTL, 2, DRIFT, 1, 0.0),
        lambda: Operation.release([], b"key"),
        lambda: Operation.acquire([b"r"], TTL, 2, DRIFT, 1, -1.0),
        lambda: Operation.acquire([b"r"], TTL, 2, DRIFT, 1, 0.0, float("nan")),
    ],
)
def test_nonsense_is_refused_before_anything_is_sent(wrong):
    with pytest.raises(ValueError, match="expected"):
        wrong()
