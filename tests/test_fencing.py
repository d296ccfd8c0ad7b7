"""Fencing tokens over a quorum of real servers."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time

import pytest

import redlock
from redlock import AsyncRedlock, FencingUnavailable, LockLost, QuorumUnavailable
from redlock._redlock import Held, Operation, Vote
from redlock.fencing import FencedResource, StaleToken
from support.locks import PROMPT, TTL, manager, warm
from support.servers import ServerKind, wait_until

DRIFT = TTL // 100 + 2
FENCE = b"r::rlfence"


@pytest.fixture
def servers(masters):
    return masters(3)


@pytest.fixture
def engine(servers):
    return connected(servers)


def connected(servers):
    engine = manager(servers)._backend().engine
    engine.run(Operation.inspect(b"r"))
    return engine


def acquire(*resources, tries=1, fencing=True):
    return Operation.acquire(resources or (b"r",), TTL, 2, DRIFT, tries, 0.02, fencing=fencing)


def release(engine, held, *resources):
    engine.run(Operation.release(resources or (b"r",), held.key))


def fences(servers, name=FENCE):
    return [int(server.get(name) or 0) for server in servers]


@pytest.mark.every_kind
def test_a_token_is_the_fence_of_a_quorum(servers, engine):
    before = time.time_ns() // 1000
    held = engine.run(acquire())
    assert isinstance(held, Held)
    assert before <= held.token <= time.time_ns() // 1000
    assert held.token_at_once
    assert fences(servers).count(held.token) >= 2
    assert [server.get("r") for server in servers].count(held.key) >= 2


@pytest.mark.every_kind
def test_a_release_leaves_the_fence(servers, engine):
    held = engine.run(acquire())
    release(engine, held)
    wait_until(lambda: not any(server.get("r") for server in servers))
    assert fences(servers).count(held.token) >= 2


@pytest.mark.every_kind
def test_tokens_grow_from_holder_to_holder(servers):
    tokens = []
    for engine in (connected(servers), connected(servers)) * 20:
        held = engine.run(acquire(tries=50))
        tokens.append(held.token)
        release(engine, held)
    assert tokens == sorted(set(tokens))


@pytest.mark.every_kind
def test_a_clock_behind_costs_a_second_round_and_nothing_else(servers, engine):
    ahead = time.time_ns() // 1000 + 30 * 10**6
    for server in servers:
        server.admin.set(FENCE, ahead)
    held = engine.run(acquire())
    assert (held.token, held.token_at_once) == (ahead + 1, False)
    assert fences(servers).count(ahead + 1) >= 2


@pytest.mark.every_kind
def test_fences_that_differ_give_a_token_greater_than_all_of_a_quorum(servers, engine):
    ahead = time.time_ns() // 1000 + 30 * 10**6
    for extra, server in enumerate(servers):
        server.admin.set(FENCE, ahead + extra)
    held = engine.run(acquire())
    assert held.token in (ahead + 2, ahead + 3)
    assert sorted(fences(servers))[1] == held.token


@pytest.mark.every_kind
def test_scripts_that_were_flushed_are_sent_again(servers, engine):
    first = engine.run(acquire())
    release(engine, first)
    for server in servers:
        server.admin.script_flush()
        server.admin.set(FENCE, first.token + 10**8)  # so that the second round's script is needed, too
    second = engine.run(acquire())
    assert second.token == first.token + 10**8 + 1


@pytest.mark.every_kind
def test_fenced_and_unfenced_callers_exclude_one_another(servers, engine):
    other = manager(servers, retry_count=1)
    held = engine.run(acquire())
    assert not other.lock("r", TTL)
    release(engine, held)
    lock = other.lock("r", TTL)
    assert engine.run(acquire()).count(Vote.REFUSED) >= 2
    other.unlock(lock)
    again = engine.run(acquire())
    assert again.token > held.token


@pytest.mark.every_kind
def test_several_resources_have_one_token_above_all_of_theirs(servers, engine):
    ahead = time.time_ns() // 1000 + 30 * 10**6
    for server in servers:
        server.admin.set("b::rlfence", ahead)
    held = engine.run(acquire(b"a", b"b", b"c"))
    assert held.token == ahead + 1
    for name in ("a", "b", "c"):
        assert fences(servers, f"{name}::rlfence").count(held.token) >= 2
    release(engine, held, b"a", b"b", b"c")
    assert engine.run(acquire(b"c")).token > held.token


@pytest.mark.every_kind
def test_where_one_name_is_taken_none_is_held(servers, engine):
    first = engine.run(acquire(b"b"))
    assert engine.run(acquire(b"a", b"b", b"c")).count(Vote.REFUSED) >= 2
    release(engine, first, b"b")
    wait_until(lambda: not any(server.get(name) for server in servers for name in "abc"))


@pytest.mark.every_kind
def test_one_master_that_runs_no_scripts_is_done_without(servers, engine):
    without_rights(servers[:1], "-eval -evalsha")
    assert connected(servers).run(acquire()).token
    assert not servers[0].get("r")


@pytest.mark.every_kind
@pytest.mark.parametrize("denied", ["-time", "-pexpire -set", "resetkeys ~r"])
def test_without_the_rights_there_is_no_lock_and_no_further_try(servers, denied):
    without_rights(servers, denied)
    engine = connected(servers)
    start = time.monotonic()
    votes = engine.run(acquire(tries=1000))
    assert sum(vote.is_unfenced for vote in votes) >= 2
    assert time.monotonic() - start < PROMPT
    assert not any(server.get("r") for server in servers)


@pytest.mark.parametrize("kind", [ServerKind.VALKEY91], indirect=True)
def test_where_no_script_runs_locks_are_had_without_a_token(servers):
    """Not so on other servers, on which no lock could be released without."""
    without_rights(servers, "-eval -evalsha")
    engine = connected(servers)
    assert sum(vote.is_unfenced for vote in engine.run(acquire())) >= 2
    assert engine.run(acquire(fencing=False)).token is None


@pytest.mark.every_kind
def test_where_hashes_may_not_be_called_the_script_goes_along(servers):
    without_rights(servers, "-evalsha")
    engine = connected(servers)
    for _ in range(3):
        release(engine, engine.run(acquire()))
    assert engine.run(acquire()).token


def without_rights(servers, denied):
    for server in servers:
        # The rig's own client keeps its rights: it has a user of its own.
        server.admin.execute_command("ACL", "SETUSER", "rig", "on", "nopass", "~*", "+@all")
        server.admin.execute_command("AUTH", "rig", "x")
        server.admin.execute_command("ACL", "SETUSER", "default", *denied.split())


@pytest.mark.every_kind
def test_a_master_that_lost_its_fence_takes_its_clock_for_it(servers, engine):
    held = engine.run(acquire())
    release(engine, held)
    wait_until(lambda: not any(server.get("r") for server in servers))
    for server in servers:
        server.admin.flushall()
    assert engine.run(acquire()).token > held.token


def test_processes_that_compete_get_tokens_in_the_order_of_their_locks(servers):
    """Threads with managers of their own: whoever holds the lock writes its token down."""
    tokens, errors = [], []

    def work():
        engine = connected(servers)
        for _ in range(15):
            held = engine.run(acquire(tries=1000))
            if not isinstance(held, Held):
                errors.append(held)
                return
            tokens.append(held.token)
            release(engine, held)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 60


# -- leases ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def dlm(servers):
    made = manager(servers)
    warm(made, servers)
    return made


@pytest.mark.every_kind
def test_a_lease_has_a_token_if_asked_for(dlm):
    with dlm.acquire("r", TTL) as lease:
        assert lease.token is None
    tokens = []
    for _ in range(3):
        with dlm.acquire("r", TTL, fencing=True) as lease:
            tokens.append(lease.token)
    assert tokens == sorted(set(tokens))


def test_an_extension_keeps_the_token(dlm):
    with dlm.acquire("r", TTL, fencing=True) as lease:
        token = lease.token
        lease.extend(2 * TTL)
        assert lease.token == token


def test_several_names_have_one_token(servers, dlm):
    with dlm.acquire(["a", "b"], TTL, fencing=True) as lease:
        assert fences(servers, "a::rlfence").count(lease.token) >= 2
        assert fences(servers, "b::rlfence").count(lease.token) >= 2
        token = lease.token
    with dlm.acquire("b", TTL, fencing=True) as lease:
        assert lease.token > token


def test_a_holder_that_was_stopped_is_turned_away(dlm):
    """What fencing is for: it believes to hold the lock, and does not."""
    resource = FencedResource("")
    stopped = dlm.acquire("r", 100, fencing=True)
    resource.write("its own", stopped.token)
    with dlm.acquire("r", TTL, timeout=PROMPT, fencing=True) as lease:
        resource.write("taken over", lease.token)
        with pytest.raises(StaleToken):
            resource.write("late", stopped.token)
    assert resource.value == "taken over"
    with pytest.raises(LockLost):
        stopped.ensure()


@pytest.mark.every_kind
def test_without_scripts_a_lease_is_refused_and_says_so(servers):
    without_rights(servers, "-time")
    dlm = manager(servers)
    with pytest.raises(FencingUnavailable, match="no fencing token for 'r'") as caught:
        dlm.acquire("r", TTL, fencing=True)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.resource, error.reason) == ("r", "unavailable")
    assert sum(vote.startswith("no fencing: ") for _, vote in error.masters) >= 2
    assert dlm.stats().unavailable == 1
    dlm.acquire("r", TTL).release()


def test_masters_that_are_down_are_not_masters_without_rights(servers, dlm):
    for server in servers:
        server.kill()
    with pytest.raises(QuorumUnavailable):
        dlm.acquire("r", TTL, timeout=0, fencing=True)


def test_clients_whose_own_methods_are_called_have_no_token(servers):
    class OwnClient:
        def __init__(self, server):
            self._client = server.admin

        def set(self, *args, **kwargs):
            return self._client.set(*args, **kwargs)

        def eval(self, *args):
            return self._client.eval(*args)

    with pytest.raises(FencingUnavailable, match="own methods"):
        redlock.Redlock([OwnClient(server) for server in servers]).acquire("r", TTL, fencing=True)
    assert not any(server.get("r") for server in servers)


def test_tokens_are_counted(servers, dlm):
    dlm.acquire("r", TTL, fencing=True).release()
    ahead = time.time_ns() // 1000 + 30 * 10**6
    for server in servers:
        server.admin.set(FENCE, ahead)
    dlm.acquire("r", TTL, timeout=PROMPT, fencing=True).release()
    dlm.acquire("r", TTL, timeout=PROMPT).release()
    stats = dlm.stats()
    assert (stats.fenced, stats.fenced_at_once) == (2, 1)


def test_a_key_of_the_callers_own_gets_a_token(servers):
    class OwnKeys(redlock.Redlock):
        def get_unique_id(self):
            return "mine"

    with OwnKeys([server.url for server in servers]).acquire("r", TTL, fencing=True) as lease:
        assert lease.key == b"mine"
        assert fences(servers).count(lease.token) >= 2


def test_asyncio_has_tokens_too(servers):
    async def main():
        dlm = AsyncRedlock([server.url for server in servers])
        tokens = []

        async def work():
            async with dlm.acquire("r", TTL, fencing=True) as lease:
                tokens.append(lease.token)

        await asyncio.gather(*(work() for _ in range(20)))
        return tokens, dlm.stats()

    tokens, stats = asyncio.run(main())
    assert tokens == sorted(set(tokens))
    assert (len(tokens), stats.fenced) == (20, 20)


@pytest.mark.parametrize("kind", [ServerKind.VALKEY91], indirect=True)
def test_asyncio_says_when_there_are_no_scripts(servers):
    without_rights(servers, "-time")

    async def main():
        await AsyncRedlock([server.url for server in servers]).acquire("r", TTL, fencing=True)

    with pytest.raises(FencingUnavailable):
        asyncio.run(main())
