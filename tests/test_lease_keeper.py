"""Leases that are kept: extended while their holder works, and given up in time when they cannot be."""

from __future__ import annotations

import os
import threading
import time

import pytest

from redlock import LockLost
from redlock._lease import Upkeep
from redlock._redlock import now
from support.locks import PROMPT, TTL, held, manager, nothing_left, warm
from support.programs import Program, run
from support.servers import wait_until

SHORT = 600  # ms: needs several extensions within a test
LONG = 1000  # ms: short enough to wait for its end, long enough for a stall of the machine


@pytest.fixture
def servers(masters):
    return masters(3)


@pytest.fixture
def dlm(servers):
    made = manager(servers)
    warm(made, servers)
    return made


def keepers():
    return [thread for thread in threading.enumerate() if thread.name == "redlock-keeper"]


def wait_for_no_keeper():
    wait_until(lambda: not keepers(), what="the end of the keeper")


# -- the plan, by exact values -----------------------------------------------------------------------------------------


def plan(ttl_ms, max_hold=None, since=100.0):
    upkeep = Upkeep(since, max_hold)
    upkeep.granted(since + ttl_ms / 1000, ttl_ms)
    return upkeep


@pytest.mark.parametrize(
    "ttl_ms, extend_at, lost_at",
    [
        (30_000, 110.0, 128.5),  # a twentieth
        (900, 100.3, 100.85),  # 50 ms
        (90, 100.03, 100.06),  # no more than a third
    ],
)
def test_it_is_extended_at_a_third_and_given_up_a_little_before_its_end(ttl_ms, extend_at, lost_at):
    upkeep = plan(ttl_ms)
    assert (upkeep.extend_at, upkeep.lost_at, upkeep.due) == pytest.approx((extend_at, lost_at, extend_at))
    assert upkeep.reason == "unavailable"


@pytest.mark.parametrize("ttl_ms, pause", [(10_000, 0.5), (3_600_000, 1.0)])
def test_what_failed_is_tried_again_soon(ttl_ms, pause):
    upkeep = plan(ttl_ms)
    upkeep.failed(105.0)
    assert upkeep.due == pytest.approx(105.0 + pause)


def test_the_last_try_is_not_after_the_end():
    upkeep = plan(10_000)
    upkeep.failed(upkeep.lost_at - 0.1)
    assert upkeep.due == upkeep.lost_at


def test_after_max_hold_it_is_left_to_lapse():
    upkeep = plan(10_000, max_hold=5.0)
    assert upkeep.due == pytest.approx(100.0 + 10 / 3)
    upkeep.granted(113.0, 10_000)
    assert upkeep.due == upkeep.lost_at == pytest.approx(112.5)
    assert upkeep.reason == "expired"


# -- keeping -----------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_a_slow_holder_keeps_its_lease(servers, dlm):
    other = manager(servers, retry_count=1)
    with dlm.acquire(["r", "s"], SHORT, auto_extend=True) as lease:
        end = now() + 3 * SHORT / 1000
        while now() < end:
            assert other.lock("r", TTL) is False
            lease.ensure()
            time.sleep(0.02)
        assert lease.lost.is_set() is False
    assert lease.released_in_time is True
    assert dlm.stats().lost == 0
    nothing_left(servers)


def test_there_is_one_keeper_and_only_while_it_is_needed(servers, dlm):
    with dlm.acquire("r", TTL):
        assert keepers() == []
    leases = [dlm.acquire(f"r{number}", SHORT, auto_extend=True) for number in range(20)]
    assert len(keepers()) == 1
    assert keepers()[0].daemon
    time.sleep(3 * SHORT / 1000)
    assert [lease.lost.is_set() for lease in leases] == [False] * 20
    for lease in leases:
        assert len(keepers()) == 1
        lease.release()
    wait_for_no_keeper()
    with dlm.acquire("r", SHORT, auto_extend=True):
        assert len(keepers()) == 1
        time.sleep(2 * SHORT / 1000)
    assert dlm.stats().lost == 0
    wait_for_no_keeper()


def test_the_holder_may_extend_it_as_well(servers, dlm):
    with dlm.acquire("r", SHORT, auto_extend=True) as lease:
        for _ in range(50):
            lease.extend()
        lease.extend(2 * SHORT)
        time.sleep(3 * SHORT / 1000)
        lease.ensure()
        assert lease.ttl == 2 * SHORT


def test_an_outage_shorter_than_the_ttl_does_no_harm(servers, dlm):
    with dlm.acquire("r", 4 * LONG, auto_extend=True) as lease:
        wait_until(lambda: held(servers) == [lease.key] * 3)
        for server in servers[1:]:
            server.freeze()
        wait_until(lambda: lease.remaining < 2 * LONG)
        for server in servers[1:]:
            server.thaw()
        wait_until(lambda: lease.remaining > 2 * LONG)
    assert lease.released_in_time is True


# -- losing ------------------------------------------------------------------------------------------------------------


def stop(server):
    server.kill()


def hang(server):
    server.freeze()


@pytest.mark.parametrize("fail", [stop, hang])
def test_the_holder_is_told_before_the_validity_ends(servers, dlm, fail):
    told = []

    def on_lost(lost):
        told.append((lost, lost.lost.is_set(), lost._expires_at - now()))

    with pytest.raises(LockLost) as caught, dlm.acquire("r", LONG, auto_extend=True, on_lost=on_lost) as lease:
        for server in servers[1:]:
            fail(server)
        assert lease.lost.wait(PROMPT)
        assert lease._expires_at - now() > 0
        assert lease.remaining == 0
        wait_until(lambda: told)
    assert caught.value.reason == lease.lost.reason == "unavailable"
    ((who, was_set, left),) = told
    assert who is lease
    assert was_set
    assert left > 0
    assert lease.released_in_time is False
    assert dlm.stats().lost == 1
    wait_for_no_keeper()


def test_one_that_another_has_taken_is_lost_at_once(servers, dlm):
    with pytest.raises(LockLost, match="somebody else"), dlm.acquire("r", LONG, auto_extend=True) as lease:
        for server in servers:
            server.admin.set("r", "another", px=TTL)
        assert lease.lost.wait(PROMPT)
        assert lease.lost.reason == "taken over"
    assert held(servers) == [b"another"] * 3


def test_one_that_the_masters_have_forgotten_is_lost_at_once(servers, dlm):
    with pytest.raises(LockLost), dlm.acquire("r", LONG, auto_extend=True) as lease:
        for server in servers:
            server.admin.flushall()
        assert lease.lost.wait(PROMPT)
        assert lease.lost.reason == "expired"
    nothing_left(servers)


def test_a_loss_does_not_disturb_the_others(servers, dlm):
    with dlm.acquire("b", LONG, auto_extend=True) as other, pytest.raises(LockLost):
        with dlm.acquire("a", LONG, auto_extend=True, on_lost=lambda _: threading.Event().wait(PROMPT)) as lease:
            for server in servers:
                server.admin.delete("a")
            assert lease.lost.wait(PROMPT)
        time.sleep(2 * LONG / 1000)
        other.ensure()


def test_a_short_lease_is_told_in_time_while_a_long_one_waits_for_an_answer(servers, dlm):
    """No quorum answers, and the long one's extension is due first: it must not outlast the short one."""
    told = threading.Event()
    short = dlm.acquire("short", SHORT, auto_extend=True, on_lost=lambda lost: left.append(lost._expires_at - now()))
    left = []
    long = dlm.acquire("long", 20 * SHORT, auto_extend=True, on_lost=lambda _: told.set())
    long._upkeep.extend_at = short._upkeep.extend_at - 0.02
    dlm._keepers[os.getpid()].keep(long)  # wake it
    for server in servers[1:]:
        server.freeze()
    wait_until(lambda: left, PROMPT)
    assert left[0] > 0
    assert not told.is_set()
    for server in servers[1:]:
        server.thaw()
    wait_until(lambda: long._expires_at - now() > 15 * SHORT / 1000)
    for lease in (short, long):
        lease.release()


def test_after_max_hold_it_lapses(servers, dlm):
    with pytest.raises(LockLost) as caught, dlm.acquire("r", SHORT, auto_extend=True, max_hold=0.3) as lease:
        since = now()
        assert lease.lost.wait(PROMPT)
        assert 0.3 < now() - since < 0.3 + SHORT / 1000 + PROMPT / 2
        assert caught is not None
        wait_until(lambda: dlm.locked("r") is False)
    assert caught.value.reason == "expired"


def test_an_extension_that_raises_is_tried_again(servers, dlm, caplog, monkeypatch):
    with dlm.acquire("r", LONG, auto_extend=True) as lease:
        extend, left = lease._operations.extend, [RuntimeError("first"), RuntimeError("second")]

        def fail(*args):
            if left:
                raise left.pop(0)
            return extend(*args)

        monkeypatch.setattr(lease._operations, "extend", fail)
        wait_until(lambda: not left)
        since = lease._expires_at
        wait_until(lambda: lease._expires_at > since)
    assert caplog.text.count("Error extending") == 2


def test_what_cannot_be_kept_is_not_held(servers, dlm, monkeypatch):
    """A thread cannot be started, as in interpreters that forbid it."""

    def refuse(_):
        raise RuntimeError("no threads")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="no threads"):
        dlm.acquire("r", TTL, auto_extend=True)
    nothing_left(servers)


# -- renewal never outlives its release --------------------------------------------------------------------------------


def test_h22_no_extension_outlives_its_release(servers, dlm):
    """H22: releases at all moments of an extension, by the keeper and by the holder."""

    def work(name):
        for turn in range(60):
            lease = dlm.acquire(name, 60 + turn, auto_extend=True)
            lease._upkeep.extend_at = now() + turn % 7 / 10_000
            dlm._keepers[os.getpid()].keep(lease)  # wake it
            time.sleep(turn % 5 / 10_000)
            lease.release()

    threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(server.keys() for server in servers)
    assert dlm.stats().extended > 0
    wait_for_no_keeper()


def test_a_release_waits_for_an_extension_under_way(servers, through):
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    lease = dlm.acquire("r", TTL)
    for proxy in proxies:
        proxy.delay = 0.1
    extending = threading.Thread(target=lease.extend)
    extending.start()
    wait_until(lambda: not lease._turn.acquire(blocking=False) or lease._turn.release())
    lease.release()
    extending.join(PROMPT)
    assert not any(server.keys() for server in servers)


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_has_a_keeper_of_its_own(servers):
    said = run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: that is what is tested
        dlm = Redlock(sys.argv[1:])
        lease = dlm.acquire("parent's", 600, auto_extend=True)
        time.sleep(0.5)
        for _ in range(5):
            child = os.fork()
            if not child:
                assert lease.lost.reason == "forked"
                with dlm.acquire("child's", 600, auto_extend=True) as own:
                    time.sleep(0.7)
                    own.ensure()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        lease.release()
        say(lease.released_in_time)
        """,
        *(server.url for server in servers),
    )
    assert said == "True\n"
    nothing_left(servers)


def test_h24_a_process_that_was_stopped_for_too_long_is_told_the_truth(servers):
    """H24: whatever it asks first when it goes on."""
    with Program(
        """
        from redlock import LockLost
        dlm = Redlock(sys.argv[1:])
        try:
            with dlm.acquire("r", 500, auto_extend=True) as lease:
                say("held")
                hear()
                say(lease.lost.is_set(), lease.remaining, lease.lost.reason)
        except LockLost as error:
            say(error.reason)
        """,
        *(server.url for server in servers),
    ) as program:
        assert program.hear() == "held"
        os.kill(program.pid, 19)
        time.sleep(1.5)
        program.say()
        os.kill(program.pid, 18)
        assert program.hear() == "True 0 expired"
        assert program.hear() == "expired"
        assert program.finish()[0] == 0


def test_an_interpreter_that_ends_does_not_wait_for_its_keeper(servers):
    run(
        """
        dlm = Redlock(sys.argv[1:])
        lease = dlm.acquire("r", 300, auto_extend=True)
        time.sleep(0.7)
        lease.ensure()
        """,
        *(server.url for server in servers),
        timeout=20,
    )
    nothing_left(servers)
