"""Leases: what is held for a block, extended, inspected, and told when it is lost. On real servers."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import os
import pickle
import threading
import time
import weakref

import pytest
import redis

import redlock
from redlock import (
    CannotObtainLock,
    Lease,
    Lock,
    LockContended,
    LockLost,
    MultipleRedlockException,
    QuorumUnavailable,
    Redlock,
    Sighting,
)
from redlock._outcomes import is_outage
from redlock._redlock import Vote, now
from support.locks import PROMPT, TTL, held, manager, nothing_left, warm
from support.programs import Program, run
from support.servers import Server, wait_until

SHORT = 500  # ms: a lease that expires within a test


@pytest.fixture
def servers(masters):
    return masters(3)


@pytest.fixture
def dlm(servers):
    made = manager(servers)
    warm(made, servers)
    return made


def occupy(servers, name="r", value="another", ttl=TTL):
    end = int(time.time() * 1000) + ttl  # on all in the same instant
    for server in servers:
        server.admin.set(name, value, pxat=end)


def refusal(dlm, name="r", **terms):
    with pytest.raises(CannotObtainLock) as caught:
        dlm.acquire(name, TTL, **terms)
    return caught.value


# -- holding and releasing ---------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_a_block_holds_the_lease_and_releases_it_at_its_end(servers, dlm):
    with dlm.acquire("r", ttl=TTL) as lease:
        assert isinstance(lease, Lease)
        wait_until(lambda: held(servers) == [lease.key] * 3)
        assert lease.resource == "r"
        assert 0 < lease.remaining <= lease.validity < TTL
        assert [vote for _, vote in lease.masters].count("granted") >= 2
        assert lease.released_in_time is None
        assert not lease.lost.is_set()
    assert held(servers) == [None] * 3
    assert lease.released_in_time is True
    assert lease.remaining == 0
    assert not lease.lost.is_set()


def test_a_lease_works_without_a_block(servers, dlm):
    lease = dlm.acquire("r", TTL)
    assert dlm.lock("r", TTL) is False
    lease.release()
    lease.release()
    nothing_left(servers)
    assert dlm.unlock(dlm.lock("r", TTL)) is None


def test_unlock_takes_a_lease(servers, dlm):
    lease = dlm.acquire(["a", "b"], TTL)
    dlm.unlock(lease)
    assert lease.released_in_time is True
    nothing_left(servers)


def test_what_the_body_raises_is_not_masked(servers, dlm):
    with pytest.raises(ZeroDivisionError), dlm.acquire("r", TTL):
        1 / 0  # noqa: B018
    nothing_left(servers)


def test_not_even_by_a_release_that_raises(servers):
    class Own(Redlock):
        def unlock_instance(self, server, resource, val):
            raise redis.RedisError

    dlm = Own([server.url for server in servers])
    with pytest.raises(ZeroDivisionError), dlm.acquire("a", TTL):
        1 / 0  # noqa: B018
    with pytest.raises(MultipleRedlockException), dlm.acquire("b", TTL):
        pass


def test_not_even_by_a_loss(servers, dlm):
    with pytest.raises(ZeroDivisionError), dlm.acquire("r", TTL) as lease:
        occupy(servers)
        with pytest.raises(LockLost):
            lease.extend()
        1 / 0  # noqa: B018


def test_a_lease_that_expired_is_released_with_a_warning(servers, dlm, caplog):
    with dlm.acquire("r", SHORT) as lease:
        wait_until(lease.lost.is_set)
        occupy(servers)
    assert lease.released_in_time is False
    assert lease.lost.reason == "expired"
    assert "released too late" in caplog.text
    assert held(servers) == [b"another"] * 3


def test_so_is_one_that_the_masters_no_longer_have(servers, dlm, caplog):
    with dlm.acquire("r", TTL) as lease:
        for server in servers:
            server.admin.delete("r")
    assert lease.released_in_time is False
    assert "released too late" in caplog.text


def test_no_text_shows_the_key(servers, dlm, caplog):
    caplog.set_level("DEBUG")
    lease = dlm.acquire("r", TTL)
    occupy(servers)
    with pytest.raises(LockLost) as caught:
        lease.extend()
    lease.release()
    shown = f"{lease!r} {lease.lost!r} {caught.value!r} {dlm.inspect('r')!r} {dlm.stats()!r} {caplog.text}"
    assert lease.key.decode() not in shown


# -- waiting, and not getting it ---------------------------------------------------------------------------------------


def test_no_timeout_waits_until_it_is_free(servers, dlm):
    occupy(servers, ttl=300)
    with dlm.acquire("r", TTL, retry_delay=0.01) as lease:
        wait_until(lambda: held(servers) == [lease.key] * 3)


def test_a_timeout_of_zero_tries_once(servers, dlm):
    dlm.acquire("r", TTL, timeout=0).release()
    occupy(servers)
    error = refusal(dlm, timeout=0)
    assert type(error) is LockContended
    assert (error.resource, error.reason) == ("r", "contended")
    assert [vote for _, vote in error.masters].count("refused") >= 2
    assert [name for name, _ in error.masters] == [f"127.0.0.1:{server.port}/0" for server in servers]


@pytest.mark.parametrize("down", [0, 2])
def test_what_failed_lets_go_of_its_manager_at_once(servers, down):
    """Not when the garbage collector gets to it: until then its connections would stay open."""
    occupy(servers)
    for server in servers[:down]:
        server.kill()
    dlm = manager(servers, retry_count=1)
    alive = weakref.ref(dlm)
    gc.disable()
    try:
        with pytest.raises(QuorumUnavailable if down else LockContended):
            dlm.acquire("r", TTL, timeout=0)
        del dlm
        assert alive() is None
    finally:
        gc.enable()


def test_a_timeout_is_waited_out(servers, dlm):
    occupy(servers)
    begin = now()
    error = refusal(dlm, timeout=0.3, retry_delay=0.02)
    assert 0.3 <= now() - begin < PROMPT
    assert type(error) is LockContended
    assert error.reason == "timeout"


@pytest.mark.parametrize("timeout", [0.05, 0.1, 0.15])
def test_contention_is_not_taken_for_an_outage_when_the_time_is_up_in_mid_round(servers, through, timeout):
    """The last round is cut short, and no master has answered in it."""
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    occupy(servers)
    for proxy in proxies:
        proxy.delay = 0.02
    assert refusal(dlm, timeout=timeout, retry_delay=0.001).reason == "timeout"


class OwnKeys(Redlock):
    """A manager whose keys are the caller's own: the engine is asked for one try after another."""

    def get_unique_id(self):
        return super().get_unique_id()


def test_a_timeout_ends_a_try_with_the_callers_own_key(servers):
    dlm = OwnKeys([f"{server.url}?socket_timeout=60" for server in servers])
    warm(dlm, servers)
    for server in servers:
        server.freeze()
    begin = now()
    assert refusal(dlm, timeout=0.1).reason == "unavailable"
    assert now() - begin < PROMPT


def test_a_try_with_the_callers_own_key_that_is_cut_short_tells_of_no_outage(servers, through):
    proxies = [through(server) for server in servers]
    dlm = OwnKeys([proxy.url for proxy in proxies])
    warm(dlm, servers)
    occupy(servers)
    for proxy in proxies:
        proxy.delay = 0.05
    assert refusal(dlm, timeout=1, retry_delay=0.001).reason == "timeout"


def test_tries_can_be_counted_instead(servers, dlm):
    occupy(servers)
    error = refusal(dlm, retry_count=2, retry_delay=0.01)
    assert error.reason == "contended"
    error = refusal(dlm, retry_count=2, retry_delay=0.01, timeout=PROMPT)
    assert error.reason == "contended"


def test_contention_with_a_master_down_is_contention(servers, dlm):
    occupy(servers)
    servers[2].kill()
    assert all(refusal(dlm, timeout=0).reason == "contended" for _ in range(20))


@pytest.mark.parametrize("count", [2, 4])
def test_contention_among_an_even_number_is_contention(masters, count):
    servers = masters(count)
    dlm = manager(servers)
    warm(dlm, servers)
    occupy(servers)
    assert all(refusal(dlm, timeout=0).reason == "contended" for _ in range(20))


def test_an_outage_is_an_outage(servers, dlm):
    for server in servers[1:]:
        server.kill()
    error = refusal(dlm, timeout=0)
    assert type(error) is QuorumUnavailable
    assert error.reason == "unavailable"
    assert [vote for _, vote in error.masters if "cannot connect" in vote or vote == "connection closed"]
    assert refusal(dlm, timeout=0.1).reason == "unavailable"
    nothing_left(servers[:1])


def test_so_are_masters_that_are_hung(servers, dlm):
    for server in servers[1:]:
        server.freeze()
    for timeout in (0, 0.2):
        error = refusal(dlm, timeout=timeout)
        assert type(error) is QuorumUnavailable


@pytest.mark.parametrize("fail", [Server.kill, Server.freeze])
def test_an_outage_goes_before_contention(servers, dlm, fail):
    """Whoever holds it on the master that is left: nobody can get it, in the first try or when the others are known."""
    occupy(servers[:1])
    for server in servers[1:]:
        fail(server)
    for terms in ({"timeout": 0}, {"timeout": 0}, {"retry_count": 4, "retry_delay": 0.01}):
        assert type(refusal(dlm, **terms)) is QuorumUnavailable


VOTES = {
    "granted": Vote.GRANTED,
    "refused": Vote.REFUSED,
    "not_asked": Vote.NOT_ASKED,
    "not_awaited": Vote.NOT_AWAITED,
}


@pytest.mark.parametrize(
    "said, outage",
    [
        ("refused refused not_awaited", False),
        ("refused not_asked not_asked", False),
        ("refused error granted", False),
        ("refused error error", True),
        ("refused no_answer error", True),
        ("granted granted granted", True),  # but too late
        ("not_asked not_asked not_asked", True),
    ],
)
def test_contention_is_what_a_refusal_and_enough_masters_show(said, outage):
    assert is_outage([VOTES.get(vote) or Vote.failure(vote) for vote in said.split()], 2) is outage


@pytest.mark.parametrize("error", [LockContended, QuorumUnavailable])
def test_an_outage_and_contention_are_both_caught_as_before(error):
    assert issubclass(error, CannotObtainLock)
    assert error.__module__ == "redlock"


def test_refusals_are_pickled_and_copied(servers, dlm):
    occupy(servers)
    error = refusal(dlm, timeout=0)
    for made in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(made) is LockContended
        assert (str(made), made.resource, made.reason, made.masters) == (str(error), "r", "contended", error.masters)
    bare = pickle.loads(pickle.dumps(CannotObtainLock("no masters")))
    assert (str(bare), bare.resource, bare.reason, bare.masters) == ("no masters", None, None, ())


@pytest.mark.parametrize(
    "terms, error",
    [
        ({"ttl": 0}, ValueError),
        ({"ttl": -5}, ValueError),
        ({"ttl": True}, ValueError),
        ({"ttl": 2}, ValueError),
        ({"ttl": 10.5}, ValueError),
        ({"ttl": "10"}, TypeError),
        ({"ttl": None}, TypeError),
        ({"timeout": -1}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"retry_count": 0}, ValueError),
        ({"retry_count": -1}, ValueError),
        ({"retry_delay": -0.1}, ValueError),
        ({"resource": None}, TypeError),
        ({"resource": True}, TypeError),
        ({"resource": []}, ValueError),
        ({"resource": ["a", b"a"]}, ValueError),
        ({"resource": ["a", None]}, TypeError),
        ({"resource": {"a", "b"}}, TypeError),
        ({"resource": bytearray(b"ab")}, TypeError),
        ({"max_hold": 5}, ValueError),
        ({"on_lost": print}, ValueError),
        ({"auto_extend": True, "on_lost": 5}, TypeError),
        ({"auto_extend": True, "max_hold": -5}, ValueError),
    ],
)
def test_nonsense_is_refused(servers, dlm, terms, error):
    with pytest.raises(error):
        dlm.acquire(**{"resource": "r", "ttl": TTL, "timeout": 0, **terms})
    nothing_left(servers)


# -- extending ---------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_extending_sets_the_ttl_anew(servers, dlm):
    with dlm.acquire("r", TTL) as lease:
        before = lease.remaining
        lease.extend(2 * TTL)
        assert before < TTL < lease.remaining
        wait_until(lambda: all(server.admin.pttl("r") > TTL for server in servers))
        for server in servers:
            server.admin.pexpire("r", TTL)
        lease.extend()
        assert lease.ttl == 2 * TTL
        wait_until(lambda: all(server.admin.pttl("r") > TTL for server in servers))


def test_extending_tells_that_it_is_gone(servers, dlm):
    with pytest.raises(LockLost) as at_the_end, dlm.acquire("r", TTL) as lease:
        for server in servers:
            server.admin.flushall()
        with pytest.raises(LockLost, match="'r' is not held") as caught:
            lease.extend()
        assert (caught.value.reason, caught.value.resource) == ("expired", "r")
        assert lease.lost.is_set()
        assert lease.remaining == 0
    assert at_the_end.value.reason == "expired"
    assert lease.released_in_time is False
    nothing_left(servers)


def test_extending_tells_that_another_has_it(servers, dlm):
    lease = dlm.acquire("r", TTL)
    occupy(servers)
    with pytest.raises(LockLost) as caught:
        lease.extend()
    assert caught.value.reason == lease.lost.reason == "taken over"
    lease.release()
    assert held(servers) == [b"another"] * 3


@pytest.mark.parametrize("known", [False, True])
def test_with_a_master_down_two_that_others_have_show_that_it_is_taken_over(servers, dlm, known):
    lease = dlm.acquire("r", TTL, auto_extend=True)
    wait_until(lambda: held(servers) == [lease.key] * 3)
    servers[0].kill()
    if known:
        dlm.unlock(dlm.lock("another", TTL))
    occupy(servers[1:])
    with pytest.raises(LockLost) as caught:
        lease.extend()
    assert caught.value.reason == lease.lost.reason == "taken over"
    lease.release()


def test_several_names_are_lost_where_one_of_them_is(servers, dlm):
    """Whatever the masters say of the others: here that the user may not touch them."""
    lease = dlm.acquire(["a", "b"], TTL)
    wait_until(lambda: held(servers, "a") == held(servers, "b") == [lease.key] * 3)
    for server in servers:
        server.admin.acl_setuser("default", reset=True, enabled=True, nopass=True, keys=["a"], categories=["+@all"])
        server.admin.delete("a")
    with pytest.raises(LockLost) as caught:
        lease.extend()
    assert caught.value.reason == "expired"


def test_an_extension_that_fails_leaves_the_lease_as_it_was(servers, dlm):
    with dlm.acquire("r", TTL) as lease:
        wait_until(lambda: held(servers) == [lease.key] * 3)
        for server in servers[1:]:
            server.freeze()
        deadline = lease._state.expires_at
        with pytest.raises(LockLost) as caught:
            lease.extend()
        assert caught.value.reason == "unavailable"
        assert lease._state.expires_at == deadline
        assert not lease.lost.is_set()
        assert lease.remaining > 0
        for server in servers[1:]:
            server.thaw()

        def extended():
            try:
                lease.extend()
            except LockLost:
                return False
            return True

        wait_until(extended)
        assert lease._state.expires_at > deadline


def extend_in_vain(servers, lease, ttl):
    """Most masters are stopped: what they were sent is carried out when they go on."""
    wait_until(lambda: held(servers) == [lease.key] * 3)
    for server in servers[1:]:
        server.freeze()
    with pytest.raises(LockLost) as caught:
        lease.extend(ttl)
    assert caught.value.reason == "unavailable"


def test_a_shorter_extension_that_fails_may_have_taken_effect(servers, dlm):
    lease = dlm.acquire("r", TTL)
    extend_in_vain(servers, lease, 3000)
    assert lease.remaining < 3000
    for server in servers[1:]:
        server.thaw()
    with manager(servers).acquire("r", TTL, timeout=2 * PROMPT):
        assert lease.lost.is_set()
        with pytest.raises(LockLost):
            lease.ensure()
    lease.release()


def test_so_may_one_that_an_exception_ends(servers, dlm, monkeypatch):
    lease = dlm.acquire("r", TTL)
    extend = lease._operations.extend_lease

    def interrupted(*args):
        extend(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(lease._operations, "extend_lease", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lease.extend(3000)
    assert sum(server.admin.pttl("r") <= 3000 for server in servers) >= 2
    assert lease.remaining < 3000
    lease.release()


def test_whoever_keeps_a_lease_is_told_of_its_earlier_end(servers, dlm):
    told = threading.Event()
    lease = dlm.acquire("r", TTL, auto_extend=True, on_lost=lambda _: told.set())
    extend_in_vain(servers, lease, 3000)
    assert told.wait(2 * PROMPT)
    lease.release()


def test_what_has_expired_is_not_revived(servers, dlm):
    lease = dlm.acquire("r", SHORT)
    wait_until(lease.lost.is_set)
    with pytest.raises(LockLost) as caught:
        lease.extend(TTL)
    assert caught.value.reason == "expired"
    wait_until(lambda: held(servers) == [None] * 3)


def test_a_late_extension_is_none(servers, through):
    """It reaches the masters in time, and its answers come when the old deadline is over."""
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    lease = dlm.acquire("r", SHORT)
    for proxy in proxies:
        proxy.delay = 1.0
    with pytest.raises(LockLost):
        lease.extend(TTL)
    assert lease.lost.wait(PROMPT)
    assert lease.lost.reason == "expired"


@pytest.mark.parametrize("ttl, error", [(0, ValueError), (-1, ValueError), (2, ValueError), ("9", TypeError)])
def test_a_ttl_that_would_delete_it_is_refused(servers, dlm, ttl, error):
    with dlm.acquire("r", TTL) as lease:
        wait_until(lambda: held(servers) == [lease.key] * 3)
        with pytest.raises(error):
            lease.extend(ttl)
        with pytest.raises(error):
            dlm.extend(Lock(1, "r", lease.key), ttl)
        assert held(servers) == [lease.key] * 3


def test_a_plain_lock_is_extended_by_any_manager(servers, dlm):
    lock = dlm.lock("r", SHORT)
    other = manager(servers)
    longer = other.extend(pickle.loads(pickle.dumps(lock)), TTL)
    assert isinstance(longer, Lock)
    assert (longer.resource, longer.key) == ("r", lock.key)
    assert SHORT < longer.validity < TTL
    assert sum(server.admin.pttl("r") > SHORT for server in servers) >= 2  # a new session need not reach all at once
    other.unlock(longer)
    assert other.extend(longer, TTL) is False
    with pytest.raises(AttributeError, match="resource"):
        other.extend(False, TTL)


def test_a_lease_is_extended_by_its_manager_too(servers, dlm):
    with pytest.raises(LockLost), dlm.acquire("r", TTL) as lease:
        assert dlm.extend(lease, 2 * TTL) == Lock(lease.validity, "r", lease.key)
        assert lease.remaining > TTL
        occupy(servers)
        assert dlm.extend(lease, TTL) is False
        with pytest.raises(LockLost):
            lease.ensure()


# -- is there time -----------------------------------------------------------------------------------------------------


def test_ensuring_time_that_is_there(dlm):
    with dlm.acquire("r", TTL) as lease:
        lease.ensure()
        lease.ensure(TTL / 2)


def test_ensuring_time_that_is_not_there(dlm):
    with dlm.acquire("r", TTL) as lease:
        with pytest.raises(LockLost) as caught:
            lease.ensure(TTL)
        assert caught.value.reason == "expired"
        assert not lease.lost.is_set()
    with pytest.raises(LockLost) as caught:
        lease.ensure()
    assert caught.value.reason == "released"
    with pytest.raises(LockLost) as caught:
        lease.extend()
    assert caught.value.reason == "released"


def test_a_loss_is_pickled_and_copied(dlm):
    lease = dlm.acquire("r", TTL)
    lease.release()
    with pytest.raises(LockLost) as caught:
        lease.ensure()
    for made in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert (type(made), str(made)) == (LockLost, str(caught.value))
        assert (made.resource, made.reason) == ("r", "released")


def test_the_event_is_set_by_the_clock(dlm):
    lease = dlm.acquire("r", SHORT)
    assert lease.lost.wait(0.001) is False
    assert lease.lost.wait() is True
    assert now() >= lease._state.expires_at
    assert lease.lost.is_set()
    assert lease.lost.reason == "expired"


def test_whoever_waits_for_the_event_goes_on_at_the_release(dlm):
    lease = dlm.acquire("r", TTL)
    heard = []
    waiter = threading.Thread(target=lambda: heard.append(lease.lost.wait()))
    waiter.start()
    lease.release()
    waiter.join(PROMPT)
    assert heard == [False]


def test_an_extension_puts_the_event_off(dlm):
    with dlm.acquire("r", SHORT) as lease:
        heard = []
        waiter = threading.Thread(target=lambda: heard.append(lease.lost.wait()))
        waiter.start()
        lease.extend(TTL)
        time.sleep(2 * SHORT / 1000)
        assert heard == []
    waiter.join(PROMPT)
    assert heard == [False]


# -- several resources -------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_several_are_held_together_with_one_key(servers, dlm):
    names = ["a", b"b", 3]
    with dlm.acquire(names, TTL) as lease:
        assert lease.resource is names
        wait_until(lambda: {server.get(name) for server in servers for name in "ab3"} == {lease.key})
        lease.extend(2 * TTL)
        wait_until(lambda: all(server.admin.pttl(name) > TTL for server in servers for name in "ab3"))
    nothing_left(servers)


def test_several_are_taken_all_or_none(servers, dlm):
    occupy(servers, "b")
    error = refusal(dlm, ("a", "b", "c"), timeout=0)
    assert error.resource == ("a", "b", "c")
    assert type(error) is LockContended
    assert all(server.keys() == {b"b"} for server in servers)


def test_callers_in_opposite_orders_do_not_block_each_other_for_ever(servers, dlm):
    counter = [0]

    def work(names):
        for _ in range(10):
            with dlm.acquire(names, TTL, timeout=60, retry_delay=0.01):
                value = counter[0]
                time.sleep(0.001)
                counter[0] = value + 1

    orders = [("a", "b", "c"), ("c", "b", "a"), ("b", "c"), ("c", "a")]
    threads = [threading.Thread(target=work, args=(names,)) for names in orders if "c" in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counter == [40]
    nothing_left(servers)


# -- looking -----------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_looking_at_a_lease_shows_its_holder_and_its_time(servers, dlm):
    assert dlm.locked("r") is False
    assert {(seen.holder, seen.ttl_ms, seen.error) for seen in dlm.inspect("r")} == {(None, None, None)}
    with dlm.acquire("r", TTL) as lease:
        wait_until(lambda: held(servers) == [lease.key] * 3)
        assert dlm.locked("r") is True
        seen = dlm.inspect("r")
        assert all(isinstance(each, Sighting) for each in seen)
        assert [each.master for each in seen] == [name for name, _ in lease.masters]
        assert {each.holder for each in seen} == {lease.holder}
        assert all(0 < each.ttl_ms <= TTL for each in seen)
    assert dlm.locked("r") is False


def test_a_minority_does_not_lock(servers, dlm):
    occupy(servers[:1])
    assert dlm.locked("r") is False
    servers[1].admin.set("r", "yet another")
    assert dlm.locked("r") is False
    servers[2].admin.set("r", "yet another")
    assert dlm.locked("r") is True
    assert [seen.ttl_ms is None for seen in dlm.inspect("r")] == [False, True, True]


def test_a_minority_cannot_tell(servers, dlm):
    servers[0].kill()
    assert dlm.locked("r") is False
    servers[1].kill()
    with pytest.raises(QuorumUnavailable) as caught:
        dlm.locked("r")
    assert len(caught.value.masters) == 2
    assert [seen.error is None for seen in dlm.inspect("r")] == [False, False, True]


# -- functions ---------------------------------------------------------------------------------------------------------


def test_a_synchronized_function_holds_a_lease_while_it_runs(servers, dlm):
    @dlm.synchronized("r", TTL)
    def job(value, *, more=0):
        """Its own text."""
        assert dlm.locked("r")
        return value + more

    assert job(1, more=2) == 3
    assert (job.__name__, job.__doc__) == ("job", "Its own text.")
    nothing_left(servers)


def test_its_name_may_come_from_its_arguments(servers, dlm):
    @dlm.synchronized(lambda order, **_: f"order:{order}", TTL, timeout=0)
    def ship(order, *, by="road"):
        return [server.keys() for server in servers], by

    keys, by = ship(7, by="sea")
    assert {b"order:7"} in keys
    assert by == "sea"
    occupy(servers, "order:8")
    with pytest.raises(LockContended):
        ship(8)
    ship(9)


def test_functions_that_run_after_their_call_are_refused(dlm):
    async def asynchronous():
        yield

    async def coroutine():
        pass

    def generator():
        yield

    for function, hint in ((asynchronous, "AsyncRedlock"), (coroutine, "AsyncRedlock"), (generator, "in its body")):
        called = type("Called", (), {"__call__": function})()
        for each in (function, functools.partial(function), called):
            with pytest.raises(TypeError, match=hint):
                dlm.synchronized("r", TTL)(each)


def test_a_coroutine_that_a_call_returns_is_refused(servers, dlm):
    async def coroutine():
        pass

    hidden = functools.wraps(coroutine)(lambda: coroutine())  # noqa: PLW0108 - no async function itself
    with pytest.raises(TypeError, match="AsyncRedlock"):
        dlm.synchronized("r", TTL)(hidden)()
    nothing_left(servers)
    run_through = functools.wraps(coroutine)(lambda: asyncio.run(coroutine()))
    assert dlm.synchronized("r", TTL)(run_through)() is None


# -- counting ----------------------------------------------------------------------------------------------------------


def test_what_happens_is_counted(servers, dlm):
    before = dlm.stats()
    with dlm.acquire("r", TTL) as lease:
        lease.extend()
        assert dlm.stats().held == 1
        assert dlm.lock("r", TTL) is False
        refusal(dlm, timeout=0)
    dlm.unlock(dlm.lock("r", TTL))
    lapsed = dlm.acquire("r", SHORT)
    wait_until(lapsed.lost.is_set)
    lapsed.release()
    for server in servers[:2]:
        server.kill()
    assert dlm.lock("r", TTL) is False
    refusal(dlm, timeout=0)
    after = dlm.stats()
    names = ("acquired", "contended", "unavailable", "extended", "lost", "released", "held")
    counts = {name: getattr(after, name) - getattr(before, name) for name in names}
    assert counts == {
        "acquired": 3, "contended": 2, "unavailable": 2, "extended": 1, "lost": 1, "released": 2, "held": 0,
    }  # fmt: skip
    assert after.wait.count == 2
    assert after.round_trip.count == 3
    assert after.round_trip.sum > 0
    assert [each.name for each in after.masters] == [f"127.0.0.1:{server.port}/0" for server in servers]
    assert [each.errors > 0 for each in after.masters] == [True, True, False]
    assert "cannot connect" in after.masters[0].failure
    assert after.masters[2].failure is None


def test_silence_is_counted_as_such(servers, dlm):
    for server in servers[1:]:
        server.freeze()
    refusal(dlm, timeout=0)
    masters = dlm.stats().masters
    assert [each.timeouts > 0 for each in masters] == [False, True, True]
    assert masters[1].failure == "no answer"


def test_a_manager_made_without_its_constructor_counts_as_well(dlm):
    other = Redlock.__new__(Redlock)
    other.servers, other.quorum, other.retry_count, other.retry_delay = dlm.servers, 2, 1, 0.1
    other.unlock(other.lock("r", TTL))
    assert other.stats().acquired == other.stats().released == 1


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_hold_what_its_parent_holds(servers):
    """H18: it is told so by everything there is, and cannot release its parent's lease."""
    said = run(
        """
        from redlock import LockLost
        dlm = Redlock(sys.argv[1:])
        lease = dlm.acquire("r", 20_000)
        child = fork()
        if not child:
            facts = [lease.lost.is_set(), lease.lost.reason, lease.remaining, lease.lost.wait()]
            for call in (lease.extend, lease.ensure):
                try:
                    call()
                except LockLost as error:
                    facts.append(error.reason)
            lease.release()
            dlm.unlock(lease)
            try:
                with lease:
                    pass
            except LockLost as error:
                facts.append(error.reason)
            say(*facts)
            with dlm.acquire("child's", 20_000):
                say("own")
            os._exit(0)
        os.waitpid(child, 0)
        say(lease.lost.is_set(), dlm.locked("r"))
        lease.release()
        say(lease.released_in_time, dlm.locked("r"))
        """,
        *(server.url for server in servers),
    )
    assert said.splitlines() == [
        "True forked 0 True forked forked forked",
        "own",
        "False True",
        "True False",
    ]


def test_ctrl_c_ends_the_wait_and_leaves_nothing(servers):
    occupy(servers, ttl=TTL)
    with Program(
        """
        dlm = Redlock(sys.argv[1:])
        say("waiting")
        try:
            dlm.acquire("r", 20_000)
        except KeyboardInterrupt:
            say("interrupted")
        """,
        *(server.url for server in servers),
    ) as program:
        assert program.hear() == "waiting"
        time.sleep(0.2)
        program.interrupt()
        assert program.hear() == "interrupted"
        assert program.finish()[0] == 0
    assert held(servers) == [b"another"] * 3


def test_late_names_are_there():
    assert all(hasattr(redlock, name) for name in redlock.__all__)
    assert not hasattr(redlock, "nonsense")
