"""Leases that are kept: extended while their holder works, and given up in time when they cannot be."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import textwrap
import threading
import time
import tracemalloc
import warnings

import pytest

from redlock import LockLost, Redlock
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


def wait_for_one_keeper():
    wait_until(lambda: len(keepers()) == 1, what="one keeper")


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
    wait_for_no_keeper()
    with dlm.acquire("r", TTL):
        assert keepers() == []
    leases = [dlm.acquire(f"r{number}", SHORT, auto_extend=True) for number in range(20)]
    wait_for_one_keeper()
    assert keepers()[0].daemon
    time.sleep(3 * SHORT / 1000)
    assert [lease.lost.is_set() for lease in leases] == [False] * 20
    for lease in leases:
        assert len(keepers()) == 1
        lease.release()
    wait_for_no_keeper()
    with dlm.acquire("r", SHORT, auto_extend=True):
        wait_for_one_keeper()
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


def test_thousands_of_them_are_small(servers, dlm):
    first = dlm.acquire("first", TTL, auto_extend=True)  # what comes with it is no part of the others
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        leases = [dlm.acquire(f"r{number}", TTL, auto_extend=True) for number in range(100)]
        gc.collect()  # or what the calls left in cycles counts too
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for lease in [first, *leases]:
        lease.release()
    assert (after - before) / len(leases) < 1800, "bytes of Python's"
    nothing_left(servers)


# -- losing ------------------------------------------------------------------------------------------------------------


def stop(server):
    server.kill()


def hang(server):
    server.freeze()


@pytest.mark.parametrize("fail", [stop, hang])
def test_the_holder_is_told_before_the_validity_ends(servers, dlm, fail):
    told = []

    def on_lost(lost):
        told.append((lost, lost.lost.is_set(), lost._state.expires_at - now()))

    with pytest.raises(LockLost) as caught, dlm.acquire("r", LONG, auto_extend=True, on_lost=on_lost) as lease:
        for server in servers[1:]:
            fail(server)
        assert lease.lost.wait(PROMPT)
        assert lease._state.expires_at - now() > 0
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
    told, long_told = threading.Event(), threading.Event()
    long = dlm.acquire("long", 5 * SHORT, auto_extend=True, on_lost=lambda _: long_told.set())
    time.sleep(5 * SHORT / 3000 - 0.15)  # until shortly before it is extended; the short one will be after that
    short = dlm.acquire("short", SHORT, auto_extend=True, on_lost=lambda _: told.set())
    for server in servers[1:]:
        server.freeze()
    assert told.wait(PROMPT)
    assert short.lost.reason == "unavailable"  # not "expired": before its validity ended
    assert not long_told.is_set()
    for server in servers[1:]:
        server.thaw()
    wait_until(lambda: long.remaining > 4 * SHORT)
    for lease in (short, long):
        lease.release()


def test_it_ends_with_max_hold_and_not_with_its_ttl(servers, dlm):
    with pytest.raises(LockLost) as caught, dlm.acquire("r", 6 * TTL, auto_extend=True, max_hold=0.5) as lease:
        assert lease.remaining <= 500
        assert lease.lost.wait(PROMPT)
        nothing_left(servers)
    assert caught.value.reason == "expired"
    assert dlm.stats().lost == 1


def test_the_last_renewal_ends_with_max_hold(servers, dlm):
    with pytest.raises(LockLost), dlm.acquire("r", SHORT, auto_extend=True, max_hold=1.5) as lease:
        assert lease.lost.wait(PROMPT)
        assert lease.lost.reason == "expired"
        assert max(server.admin.pttl("r") for server in servers) < SHORT / 2
        nothing_left(servers)


# An address space so small that the stack of no further thread fits in.
NO_THREADS = """
        import resource
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (4 << 20), -1))
        threading.stack_size(64 << 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits are the system's own")
def test_what_cannot_be_kept_is_not_held(servers):
    """No thread can be started, as under a limit of processes."""
    said = run(
        """
        dlm = Redlock(sys.argv[1:])
        dlm.unlock(dlm.lock("r", 20_000))
        """
        + NO_THREADS
        + """
        try:
            dlm.acquire("r", 20_000, auto_extend=True)
        except RuntimeError as error:
            say(error)
        say(dlm.stats().held)
        with dlm.acquire("r", 20_000) as lease:
            say(lease.lost.is_set())
        """,
        *(server.url for server in servers),
    )
    assert said.splitlines() == ["can't start new thread", "0", "False"]
    nothing_left(servers)


@pytest.mark.skipif(sys.platform != "linux", reason="limits are the system's own")
def test_a_loss_needs_no_further_thread(servers):
    with Program(
        """
        dlm = Redlock(sys.argv[1:])
        lease = dlm.acquire("r", 600, auto_extend=True, on_lost=lambda lost: say(lost.lost.reason))
        time.sleep(0.3)
        """
        + NO_THREADS
        + """
        say("held")
        hear()
        """,
        *(server.url for server in servers),
    ) as program:
        assert program.hear() == "held"
        for server in servers:
            server.admin.set("r", "another", px=TTL)
        assert program.hear() == "taken over"
        program.say()
        assert program.finish() == (0, "", "")


def test_an_exit_handler_may_have_a_lease_that_is_extended(servers):
    """No thread can be started any more where it runs, from Python 3.12 on: then the lease lasts for its TTL."""
    said = run(
        """
        import atexit
        dlm = Redlock(sys.argv[1:])

        @atexit.register
        def at_exit():
            with dlm.acquire("r", 20_000, auto_extend=True) as lease:
                lease.ensure(10_000)
                lease.extend()
                say(dlm.stats().held)
            say(lease.released_in_time, dlm.stats().held)
        """,
        *(server.url for server in servers),
    )
    assert said == "1\nTrue 0\n"
    nothing_left(servers)


# -- exceptions out of signal handlers, and releases by them -----------------------------------------------------------

LIMIT = """
import contextlib
from redlock import LockLost

class Limit(Exception):
    pass

def strike(*_):
    raise Limit

signal.signal(signal.SIGALRM, strike)
"""


@pytest.mark.parametrize("auto_extend", [True, False])
def test_a_release_that_is_broken_off_while_it_waits_for_an_extension_is_done(servers, through, auto_extend):
    proxies = [through(server) for server in servers]
    with Program(
        LIMIT
        + textwrap.dedent("""
            dlm = Redlock(sys.argv[2:])
            dlm.unlock(dlm.lock("r", 20_000))
            lease = dlm.acquire("r", 20_000, auto_extend=sys.argv[1] == "True")
            say("held")
            hear()
            def extend():
                with contextlib.suppress(LockLost):
                    lease.extend()
            threading.Thread(target=extend).start()
            time.sleep(0.1)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                lease.release()
            except Limit:
                say("struck")
            hear()
            say(dlm.stats().held, lease.lost.is_set(), lease.remaining)
            """),
        str(auto_extend),
        *(proxy.url for proxy in proxies),
    ) as program:
        assert program.hear() == "held"
        for proxy in proxies:
            proxy.delay = 0.15
        program.say()
        assert program.hear() == "struck"
        nothing_left(servers)
        program.say()
        assert program.hear() == "0 False 0"
        assert program.finish() == (0, "", "")


def test_a_block_that_is_left_while_the_keeper_extends_leaves_nothing(servers, through):
    proxies = [through(server) for server in servers]
    for proxy in proxies:
        proxy.delay = 0.05
    said = run(
        LIMIT
        + textwrap.dedent("""
            dlm = Redlock(sys.argv[1:])
            struck = 0
            for turn in range(6):
                try:
                    with dlm.acquire(f"r{turn}", 900, auto_extend=True):
                        signal.setitimer(signal.ITIMER_REAL, 0.3 + 0.06 + turn / 50)
                        time.sleep(0.36)  # in the middle of its extension
                    time.sleep(0.5)
                except Limit:
                    struck += 1
            say(struck, dlm.stats().held)
            """),
        *(proxy.url for proxy in proxies),
    )
    assert int(said.split()[0]) > 0
    assert said.split()[1] == "0"
    nothing_left(servers)


@pytest.mark.parametrize("auto_extend", [True, False])
def test_a_release_is_done_whichever_of_its_functions_begins_when_a_signal_handler_raises(servers, dlm, auto_extend):
    """That is where the interpreter runs handlers. All functions but `release` itself, which has done nothing then."""

    def strike(_frame, event, _argument):
        nonlocal calls
        calls += event == "call"
        if calls == moment:
            raise KeyError

    before, moment, calls = sys.gettrace(), 1, 1
    while calls >= moment:
        moment, calls = moment + 1, 0
        lease = dlm.acquire("r", TTL, auto_extend=auto_extend)
        sys.settrace(strike)
        try:
            lease.release()
        except KeyError:
            pass
        finally:
            sys.settrace(before)
        nothing_left(servers)
        assert dlm.stats().held == 0
    assert moment > 5


def test_a_signal_handler_may_release_what_its_thread_waits_for(servers):
    """At any moment of the wait: the handler runs in its midst, in the same thread."""
    said = run(
        """
        signal.signal(signal.SIGALRM, lambda *_: lease.release())
        dlm = Redlock(sys.argv[1:])
        rng = random.Random(1)
        for turn in range(200):
            lease = dlm.acquire("r", 20_000, auto_extend=turn % 2 == 0)
            signal.setitimer(signal.ITIMER_REAL, 1e-6 + rng.random() ** 2 * 40e-6)
            lost = lease.lost.wait(0.2)  # a signal just before it does not interrupt it
            assert (lost, lease.released_in_time, dlm.stats().held) == (False, True, 0), turn
        say("done")
        """,
        *(server.url for server in servers),
    )
    assert said == "done\n"
    nothing_left(servers)


def test_a_signal_handler_may_release_what_its_thread_extends_and_raise(servers, through):
    """One master has told the extension that it lost the lock, which it gets from a quorum that grants."""
    proxies = [through(server) for server in servers]

    def strike(*_):
        for proxy in proxies:
            proxy.delay = 0.0
        lease.release()
        raise KeyError

    before = signal.signal(signal.SIGALRM, strike)
    try:
        dlm = Redlock([proxy.url for proxy in proxies])
        warm(dlm, servers)
        lease = dlm.acquire("r", 20_000)
        wait_until(lambda: held(servers) == [lease.key] * 3, what="the lock at all masters")
        servers[0].admin.delete("r")
        for proxy in proxies[1:]:
            proxy.delay = 0.4
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyError):
            try:
                lease.extend()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    time.sleep(0.5)
    nothing_left(servers)


# -- dropped without a release -----------------------------------------------------------------------------------------


def drop(lease):
    """Warnings at the drop of a lease that only this refers to: `drop([lease])`, with none besides."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lease.clear()
        gc.collect()
    return [each for each in caught if issubclass(each.category, ResourceWarning) and "lease" in str(each.message)]


def test_one_that_is_dropped_is_given_back(servers, dlm):
    before = dlm.stats()
    leases = [dlm.acquire(["r", "s"], TTL, auto_extend=True)]
    assert dlm.stats().held == 1
    (warning,) = drop(leases)
    assert "['r', 's']" in str(warning.message)
    assert dlm.stats().held == 0
    nothing_left(servers)
    wait_for_no_keeper()
    assert (dlm.stats().released, dlm.stats().lost) == (before.released + 1, before.lost)


def test_one_that_is_dropped_with_its_manager_is_given_back(servers):
    dlm = manager(servers)
    leases = [dlm.acquire("r", TTL, auto_extend=True)]
    del dlm
    assert len(drop(leases)) == 1
    nothing_left(servers)
    wait_for_no_keeper()


@pytest.mark.filterwarnings("ignore:a lease on:ResourceWarning")  # where the keeper is the last to refer to it
def test_one_that_is_dropped_while_it_is_extended_is_given_back(servers, through):
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    leases = [dlm.acquire("r", 3 * LONG, auto_extend=True)]
    for proxy in proxies:
        proxy.delay = 0.1
    time.sleep(LONG / 1000 + 0.05)
    drop(leases)
    wait_until(lambda: dlm.stats().held == 0)
    nothing_left(servers)
    wait_for_no_keeper()


def test_others_are_extended_when_one_is_dropped(servers, dlm):
    with dlm.acquire("r", LONG, auto_extend=True) as lease:
        for number in range(20):
            drop([dlm.acquire(f"r{number}", LONG, auto_extend=True)])
        time.sleep(2 * LONG / 1000)
        lease.ensure()
        assert dlm.stats().held == 1
        assert set().union(*(server.keys() for server in servers)) <= {"r", b"r"}


def test_one_that_was_released_is_dropped_in_silence(servers, dlm):
    with dlm.acquire("r", TTL, auto_extend=True) as lease:
        leases = [lease]
    del lease
    assert drop(leases) == []


def test_one_that_was_lost_is_dropped_in_silence(servers, dlm):
    leases = [dlm.acquire("r", LONG, auto_extend=True)]
    for server in servers:
        server.admin.set("r", "another", px=TTL)
    assert leases[0].lost.wait(PROMPT)
    assert drop(leases) == []
    assert held(servers) == [b"another"] * 3
    assert dlm.stats().held == 0


def test_a_dropped_one_without_extensions_lapses_as_ever(servers, dlm):
    leases = [dlm.acquire("r", TTL)]
    assert drop(leases) == []
    assert dlm.stats().held == 0
    assert dlm.locked("r")


# -- renewal never outlives its release --------------------------------------------------------------------------------


def test_h22_no_extension_outlives_its_release(servers, dlm):
    """H22: releases at all moments of an extension, by the keeper and by the holder."""

    def work(name):
        for turn in range(60):
            lease = dlm.acquire(name, 60 + turn, auto_extend=True)
            time.sleep((60 + turn) / 3000 + (turn % 9 - 4) / 10_000)  # when it is due, or a little before or after
            lease.release()

    threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(server.keys() for server in servers)
    assert dlm.stats().extended > 0
    wait_for_no_keeper()


@pytest.mark.parametrize("auto_extend", [True, False])
def test_a_release_waits_for_an_extension_under_way(servers, through, auto_extend):
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    lease = dlm.acquire("r", TTL, auto_extend=auto_extend)
    for proxy in proxies:
        proxy.delay = 0.1

    def extend():
        with contextlib.suppress(LockLost):  # "released": it depends on who is first
            lease.extend()

    extending = threading.Thread(target=extend)
    extending.start()
    time.sleep(0.05)
    lease.release()
    extending.join(PROMPT)
    nothing_left(servers)
    assert lease.released_in_time is True


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
