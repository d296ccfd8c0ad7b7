"""Masters that die, hang, start late, cut, refuse or disagree: through the public API, on real servers.

The numbers (H3 ...) name the hazard that a test reproduces.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from redlock import Lock, QuorumUnavailable, Redlock
from redlock._redlock import close_unused
from support.locks import PROMPT, TTL, held, is_held, manager, nothing_left, warm
from support.proxy import Mode, syn_black_hole
from support.scripted import Late
from support.servers import ServerKind, wait_until

pytestmark = pytest.mark.once

SIZES = [1, 2, 3, 5]


def minority(count: int) -> int:
    """How many of ``count`` masters may fail."""
    return count - (count // 2 + 1)


class Stopwatch:
    """Fails when its block took longer than a hang would."""

    def __enter__(self):
        self._start = time.monotonic()
        return self

    def __exit__(self, kind, error, trace):
        self.seconds = time.monotonic() - self._start
        if kind is None:
            assert self.seconds < PROMPT


def stays_free(servers, resource="r", seconds=0.3):
    """No key appears under ``resource`` while what was in flight arrives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert held(servers, resource) == [None] * len(servers)
        time.sleep(0.01)


# -- healthy -----------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
@pytest.mark.parametrize("count", SIZES)
def test_lock_sets_the_key_on_every_master_and_unlock_removes_it(masters, count):
    servers = masters(count)
    dlm = manager(servers)
    warm(dlm, servers)
    lock = dlm.lock("r", TTL)
    assert isinstance(lock, Lock)
    wait_until(lambda: held(servers) == [lock.key] * count)  # returned at quorum, the rest follows
    assert all(TTL - 5000 < server.admin.pttl("r") <= TTL for server in servers)
    assert dlm.unlock(lock) is None
    nothing_left(servers)


@pytest.mark.every_kind
@pytest.mark.parametrize("count", SIZES)
def test_contention_is_false_and_harms_nobody(masters, count):
    servers = masters(count)
    holder, other = manager(servers), manager(servers, retry_count=2)
    lock = holder.lock("r", TTL)
    assert other.lock("r", TTL) is False
    wait_until(lambda: is_held(servers, lock))
    holder.unlock(lock)
    assert other.lock("r", TTL)


@pytest.mark.parametrize("count", SIZES)
def test_an_expired_lock_is_free_for_the_next(masters, count):
    servers = masters(count)
    first, second = manager(servers), manager(servers, retry_count=1000)
    assert first.lock("r", 500)
    taken = second.lock("r", TTL)
    assert taken
    wait_until(lambda: is_held(servers, taken))


@pytest.mark.every_kind
@pytest.mark.parametrize("count", SIZES)
def test_h8_unlock_after_expiry_leaves_the_next_holders_key(masters, count):
    """H8: the first owner's lock expires, a second takes it, the first unlocks."""
    servers = masters(count)
    first, second = manager(servers), manager(servers, retry_count=1000)
    expired = first.lock("r", 500)
    assert expired
    taken = second.lock("r", TTL)
    wait_until(lambda: is_held(servers, taken))
    first.unlock(expired)
    first.unlock(expired)
    assert is_held(servers, taken)


def test_unlock_after_expiry_with_nobody_there(masters):
    servers = masters(3)
    dlm = manager(servers)
    lock = dlm.lock("r", 100)
    wait_until(lambda: held(servers) == [None] * 3)
    assert dlm.unlock(lock) is None
    assert dlm.lock("r", TTL)


def test_unlock_by_a_manager_that_has_never_connected(masters):
    servers = masters(3)
    lock = manager(servers).lock("r", TTL)
    manager(servers).unlock(lock)
    nothing_left(servers)


def test_h5_the_ttl_that_drift_eats_up_is_never_granted(masters):
    """H5: drift is int(ttl * 0.01) + 2 ms, so a ttl of 2 ms leaves nothing and 3 ms less than elapsed."""
    servers = masters(1)
    dlm = manager(servers, retry_count=1)
    assert [dlm.lock("r", ttl) for ttl in (0, 1, 2)] == [False, False, False]
    nothing_left(servers)


def test_h5_validity_is_ttl_less_elapsed_less_drift(masters):
    """H5."""
    lock = manager(masters(3)).lock("r", TTL)
    assert TTL - 5000 < lock.validity <= TTL - (TTL // 100 + 2)


def test_h6_every_lock_has_a_key_of_its_own(masters):
    """H6, H7: 22 alphanumeric characters, unlike any other's, whatever the seed of `random`."""
    dlm = manager(masters(1))
    keys = []
    for _ in range(50):
        random.seed(42)
        lock = dlm.lock("r", TTL)
        dlm.unlock(lock)
        keys.append(lock.key)
    assert len(set(keys)) == 50
    assert all(len(key) == 22 and key.isalnum() for key in keys)


# -- dead --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("when", ["before the first use", "later"])
def test_h10_h52_a_dead_minority_costs_nothing(masters, count, when, caplog):
    """H10, H52: a Lock, at once, without exception, and nothing stays behind on the live masters."""
    servers = masters(count)
    dlm = manager(servers, retry_count=1)
    if when == "later":
        dlm.unlock(dlm.lock("r", TTL))
    for server in servers[: minority(count)]:
        server.kill()
    with Stopwatch():
        locks = []
        for _ in range(20):
            lock = dlm.lock("r", TTL)
            assert lock
            dlm.unlock(lock)
            locks.append(lock)
    nothing_left(servers[minority(count) :])
    assert all(f":{server.port}" in caplog.text for server in servers[: minority(count)])


@pytest.mark.parametrize("count", SIZES)
def test_h27_a_dead_majority_is_false_within_the_tries_and_leaves_nothing(masters, count, caplog):
    """H27: the quorum is that of the masters configured, not of those that answer."""
    servers = masters(count)
    dlm = manager(servers)
    dead, alive = servers[: count - minority(count)], servers[count - minority(count) :]
    for server in dead:
        server.kill()
    with Stopwatch():
        assert dlm.lock("r", TTL) is False
        assert dlm.unlock(Lock(0, "r", b"k" * 22)) is None
    nothing_left(alive)
    assert any(record.levelno >= logging.WARNING for record in caplog.records)


def test_h28_two_masters_need_both(masters):
    """H28: an even number of masters tolerates no more than the odd number below it."""
    servers = masters(2)
    dlm = manager(servers)
    assert dlm.lock("r", TTL)
    servers[1].kill()
    assert dlm.lock("s", TTL) is False
    wait_until(lambda: servers[0].keys() == {b"r"}, 2)


@pytest.mark.every_kind
@pytest.mark.parametrize("count", [1, 3])
def test_servers_restarted_between_calls_cost_no_attempt(masters, count):
    servers = masters(count)
    dlm = manager(servers, retry_count=1)
    for _ in range(3):
        assert dlm.lock("r", TTL)
        for server in servers:
            server.restart()


def test_unlock_reaches_a_server_that_was_restarted_meanwhile(spawn):
    server = spawn(aof=True)
    dlm = manager([server], retry_count=1)
    lock = dlm.lock("r", TTL)
    server.restart()
    assert server.get("r") == lock.key
    dlm.unlock(lock)
    nothing_left([server])


def test_h32_h33_a_master_that_keeps_its_keys_keeps_the_lock(spawn):
    """H32, H33: with an append-only file a lock outlives kill -9 of its master."""
    servers = [spawn(aof=True)]
    assert manager(servers).lock("r", TTL)
    servers[0].restart()
    assert manager(servers).lock("r", TTL) is False


def test_h37_a_lock_that_an_operator_flushed_is_unlocked_in_peace(masters):
    """H37."""
    servers = masters(3)
    dlm = manager(servers)
    lock = dlm.lock("r", TTL)
    for server in servers:
        server.admin.flushall()
    assert dlm.unlock(lock) is None
    assert dlm.lock("r", TTL)


@pytest.mark.parametrize("late", [1, 2, 3])
def test_first_use_while_masters_are_still_starting(spawn, late):
    servers = [spawn(wait=position >= late) for position in range(3)]
    dlm = manager(servers, retry_count=100, retry_delay=0.1)
    lock = dlm.lock("r", TTL)
    assert lock
    for server in servers:
        server.wait_ready()
    dlm.unlock(lock)
    nothing_left(servers)


def test_a_master_that_comes_back_is_used_again(masters):
    servers = masters(3)
    dlm = manager(servers)
    servers[0].kill()
    assert dlm.lock("a", TTL)
    servers[0].restart()
    servers[1].kill()
    wait_until(lambda: dlm.lock("b", 500), 10, "a lock with the master that is back")


# -- hung --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("when", ["before the first use", "later"])
def test_h53_nobody_waits_for_a_hung_minority(masters, count, when):
    """H53."""
    servers = masters(count)
    dlm = manager(servers, retry_count=1)
    if when == "later":
        dlm.unlock(dlm.lock("r", TTL))
    for server in servers[: minority(count)]:
        server.freeze()
    with Stopwatch():
        for _ in range(100):  # each waiting for one deadline only would take 50 s
            lock = dlm.lock("r", TTL)
            assert lock
            dlm.unlock(lock)
    nothing_left(servers[minority(count) :])


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("when", ["before the first use", "later"])
def test_all_hung_is_false_within_the_tries(masters, count, when):
    servers = masters(count)
    dlm = manager(servers)
    if when == "later":
        dlm.unlock(dlm.lock("r", TTL))
    for server in servers:
        server.freeze()
    with Stopwatch():
        assert dlm.lock("r", TTL) is False
    with Stopwatch():
        dlm.unlock(Lock(0, "r", b"k" * 22))


def ask_twice_after(silence, dlm, name="r"):
    """Ask again and again until the event of its end is set; whether one of the two next calls is granted."""

    def ask():
        try:
            dlm.acquire(name, TTL, timeout=0).release()
        except QuorumUnavailable:
            return False
        return True

    while not silence.wait(0.05):
        ask()
    return ask() or ask()


def test_the_end_of_a_silence_of_all_masters_is_noticed_by_the_next_call(masters):
    servers = masters(3)
    dlm = manager(servers, retry_count=1)
    dlm.unlock(dlm.lock("r", TTL))
    for _ in range(2):
        for server in servers:
            server.freeze()
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert dlm.lock("r", TTL) is False
            time.sleep(0.05)
        for server in servers:
            server.thaw()
        taken = dlm.lock("r", TTL) or dlm.lock("r", TTL)
        assert taken
        dlm.unlock(taken)


def test_so_it_is_by_many_threads_that_waited_for_it(masters):
    servers = masters(3)
    dlm = manager(servers)
    warm(dlm, servers)
    for server in servers:
        server.freeze()
    silence = threading.Event()
    with ThreadPoolExecutor(20) as threads:
        asked = [threads.submit(ask_twice_after, silence, dlm, f"r{number}") for number in range(20)]
        time.sleep(0.7)
        for server in servers:
            server.thaw()
        silence.set()
        assert [each.result() for each in asked] == [True] * 20
    nothing_left(servers)


@pytest.mark.every_kind
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("when", ["before the first use", "later"])
def test_h9_a_lock_that_failed_on_hung_masters_does_not_appear_when_they_wake(masters, count, when):
    """H9: the release follows the SET on its own connection, so a master that wakes obeys both, or neither."""
    servers = masters(count)
    dlm = manager(servers)
    if when == "later":
        dlm.unlock(dlm.lock("warm", TTL))
    hung = servers[: count - minority(count)]
    for server in hung:
        server.freeze()
    assert dlm.lock("r", TTL) is False
    for server in hung:
        server.thaw()
    nothing_left(servers)
    stays_free(servers)
    assert dlm.lock("r", TTL)


@pytest.mark.every_kind
def test_h9_a_lock_released_while_a_master_hung_does_not_appear_when_it_wakes(masters):
    """H9: as above, for a lock that was granted by the others."""
    servers = masters(3)
    dlm = manager(servers)
    dlm.unlock(dlm.lock("warm", TTL))
    servers[0].freeze()
    lock = dlm.lock("r", TTL)
    assert lock
    dlm.unlock(lock)
    servers[0].thaw()
    nothing_left(servers)
    stays_free(servers)


def test_h9_nothing_is_delivered_late_by_a_manager_that_is_gone(masters):
    """H9: the manager was collected, its connections closed, while a master hung."""
    servers = masters(3)
    dlm = manager(servers)
    dlm.unlock(dlm.lock("warm", TTL))
    servers[0].freeze()
    dlm.unlock(dlm.lock("r", TTL))
    del dlm
    servers[0].thaw()
    nothing_left(servers)
    stays_free(servers)


def test_a_master_that_wakes_is_used_again(masters):
    servers = masters(3)
    dlm = manager(servers)
    dlm.unlock(dlm.lock("warm", TTL))
    servers[0].freeze()
    for _ in range(3):
        dlm.unlock(dlm.lock("r", TTL))
    servers[0].thaw()
    servers[1].freeze()
    wait_until(lambda: dlm.lock("b", 500), 10, "a lock with the master that woke")


def test_h9_a_release_does_not_overtake_its_set_on_another_threads_connection(masters, through):
    """H9: a lock whose SET is still on its way to one master, unlocked while another thread uses that connection."""
    servers = masters(3)
    proxies = [through(server) for server in servers]
    dlm = manager(proxies, retry_count=1)
    warm(dlm, servers)
    proxies[2].delay_requests = 0.3
    lock = dlm.lock("r", TTL)
    assert lock
    for proxy in proxies[:2]:
        proxy.delay = 0.05

    def lock_another() -> None:
        another = dlm.lock("other", TTL)
        assert another
        dlm.unlock(another)

    other = threading.Thread(target=lock_another)
    other.start()
    wait_until(lambda: servers[0].get("other"))
    for proxy in proxies:
        proxy.delay = proxy.delay_requests = 0
    dlm.unlock(lock)
    other.join()
    nothing_left(servers)
    stays_free(servers)


def test_h9_no_ghosts_through_a_slow_jittering_network(masters, through):
    """H9, H6: requests that are held for random times, rounds that end before the replies."""
    servers = masters(3)
    proxies = [through(server) for server in servers]
    dlm = manager(proxies, retry_count=2, retry_delay=0.01)
    dlm.unlock(dlm.lock("warm", TTL))
    for proxy in proxies:
        proxy.delay_requests, proxy.jitter = 0.02, 0.1
    outcomes = Counter()
    for attempt in range(12):
        lock = dlm.lock(f"r{attempt}", 150)  # a round ends after 75 ms at the latest
        outcomes[bool(lock)] += 1
        if lock:
            dlm.unlock(lock)
        stale = dlm.lock(f"s{attempt}", TTL)
        if stale:
            dlm.unlock(stale)
    assert outcomes[False], "the network was not slow enough for this test"
    nothing_left(servers)
    stays_free(servers, "s0")


# -- time --------------------------------------------------------------------------------------------------------------


def test_h3_time_counts_from_before_the_connection(spawn, through):
    """H3: connecting takes a good part of the ttl, which is then no longer valid."""
    server = spawn(password="secret")
    proxy = through(server)
    proxy.delay = 0.08
    url = f"redis://:secret@{proxy.host}:{proxy.port}"
    locks = []
    for number in range(5):
        close_unused()  # each over a connection of its own
        locks.append(Redlock([url], 1).lock(f"r{number}", TTL))
    assert any(locks)
    assert all(lock.validity <= TTL - 2 * 80 - (TTL // 100 + 2) for lock in locks if lock)


def test_h3_a_connection_that_takes_most_of_the_ttl_grants_nothing(spawn, through):
    """H3."""
    server = spawn(password="secret")
    proxy = through(server)
    proxy.delay = 0.6 * 0.5
    url = f"redis://:secret@{proxy.host}:{proxy.port}"
    assert Redlock([url], 1).lock("r", 500) is False
    nothing_left([server])


def test_h4_validity_is_what_the_slowest_of_the_quorum_leaves(masters, through):
    """H4: replies delayed by 0.1, 0.4 and 0.45 of the ttl; the second makes the quorum."""
    proxies = [through(server) for server in masters(3)]
    dlm = manager(proxies, retry_count=20)
    dlm.unlock(dlm.lock("warm", TTL))
    for proxy, part in zip(proxies, (0.1, 0.4, 0.45), strict=True):
        proxy.delay = part * 1.0
    lock = dlm.lock("r", 1000)
    assert lock
    assert lock.validity <= 1000 - 400 - 12


def test_h4_grants_that_come_after_validity_are_no_lock(masters, through):
    """H4: every master grants, after 1.2 times the ttl."""
    servers = masters(3)
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    dlm.unlock(dlm.lock("warm", TTL))
    for proxy in proxies:
        proxy.delay = 0.24
    with Stopwatch():
        assert dlm.lock("r", 200) is False
    nothing_left(servers)


def test_h14_a_dripping_reply_does_not_stretch_the_deadline(scripted):
    """H14: a timeout per read starts anew with every byte; one for the whole round does not."""
    text = b"-ERR " + b"x" * 1000 + b"\r\n"
    drops = [text[i : i + 1] for i in range(len(text))]

    def script(command):
        return [Late(0.02, drop) for drop in drops] if command.name == "SET" else None

    server = scripted(script)
    with Stopwatch():
        assert manager([server], retry_count=2).lock("r", TTL) is False


# -- network -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(through):
    """Puts a network that can be broken in front of servers."""
    return lambda servers: [through(server) for server in servers]


@pytest.mark.parametrize("mode", [Mode.SWALLOW, Mode.SWALLOW_REPLIES, Mode.HALF_OPEN])
@pytest.mark.parametrize("when", ["before the first use", "later"])
def test_h54_a_master_behind_a_dead_network_is_not_waited_for(masters, broken, mode, when):
    """H54: half-open and black-holed connections, one of three."""
    servers = masters(3)
    proxies = broken(servers)
    dlm = manager(proxies, retry_count=1)
    if when == "later":
        dlm.unlock(dlm.lock("warm", TTL))
    proxies[0].mode = mode
    with Stopwatch():
        for _ in range(50):
            lock = dlm.lock("r", TTL)
            assert lock
            dlm.unlock(lock)
    nothing_left(servers[1:])


@pytest.mark.parametrize("mode", [Mode.SWALLOW, Mode.SWALLOW_REPLIES, Mode.HALF_OPEN])
@pytest.mark.parametrize("when", ["before the first use", "later"])
def test_h54_most_masters_behind_a_dead_network_is_false_in_time(masters, broken, mode, when):
    """H54: two of three; the third, and those that obeyed without being heard, hold nothing."""
    servers = masters(3)
    proxies = broken(servers)
    dlm = manager(proxies)
    if when == "later":
        dlm.unlock(dlm.lock("warm", TTL))
    for proxy in proxies[:2]:
        proxy.mode = mode
    with Stopwatch():
        assert dlm.lock("r", TTL) is False
    nothing_left(servers)


def test_a_network_that_heals_is_used_again(masters, broken):
    proxies = broken(masters(1))
    dlm = manager(proxies)
    proxies[0].mode = Mode.SWALLOW
    assert dlm.lock("r", TTL) is False
    proxies[0].mode = Mode.PASS
    wait_until(lambda: dlm.lock("r", 500), 10, "a lock over the healed network")


class _Hole:
    def __init__(self, port):
        self.url = f"redis://127.0.0.1:{port}"


def test_h55_a_master_whose_syn_vanishes_is_not_waited_for(masters):
    """H55."""
    servers = masters(2)
    with syn_black_hole() as port:
        dlm = manager([_Hole(port), *servers], retry_count=1)
        with Stopwatch():
            for _ in range(50):
                lock = dlm.lock("r", TTL)
                assert lock
                dlm.unlock(lock)
        nothing_left(servers)


def test_h55_most_masters_whose_syn_vanishes_is_false_in_time(masters):
    """H55."""
    servers = masters(1)
    with syn_black_hole() as one, syn_black_hole() as two, Stopwatch():
        assert manager([_Hole(one), _Hole(two), *servers]).lock("r", TTL) is False
    nothing_left(servers)


def test_a_reset_between_calls_costs_no_attempt(masters, broken):
    servers = masters(3)
    proxies = broken(servers)
    dlm = manager(proxies, retry_count=1)
    for _ in range(5):
        lock = dlm.lock("r", TTL)
        assert lock
        for proxy in proxies:
            proxy.reset()
        dlm.unlock(lock)
        nothing_left(servers)


def test_replies_in_single_bytes_are_read_whole(masters, broken):
    servers = masters(3)
    proxies = broken(servers)
    for proxy in proxies:
        proxy.mode, proxy.drip = Mode.DRIP, 0
    dlm = manager(proxies)
    lock = dlm.lock("r", TTL)
    assert lock
    assert manager(proxies, retry_count=1).lock("r", TTL) is False
    dlm.unlock(lock)
    nothing_left(servers)


def test_h12_a_key_that_is_already_ours_is_not_contention(masters, broken):
    """H12: the master obeyed the SET, the connection died before its reply; that ghost refuses nobody."""
    servers = masters(1)
    proxies = broken(servers)
    dlm = manager(proxies, retry_count=30, retry_delay=0.05)
    dlm.unlock(dlm.lock("warm", TTL))
    proxies[0].mode = Mode.SWALLOW_REPLIES

    def cut():
        wait_until(lambda: servers[0].get("r"))
        proxies[0].reset()
        proxies[0].mode = Mode.PASS

    thread = threading.Thread(target=cut)
    thread.start()
    lock = dlm.lock("r", TTL)
    thread.join()
    assert lock
    assert servers[0].get("r") == lock.key


# -- idle connections --------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
@pytest.mark.parametrize("count", [1, 3])
def test_connections_killed_by_an_operator_cost_no_attempt(masters, count):
    servers = masters(count)
    dlm = manager(servers, retry_count=1)
    for _ in range(5):
        lock = dlm.lock("r", TTL)
        assert lock
        for server in servers:
            server.admin.client_kill_filter(_type="normal", skipme=True)
        dlm.unlock(lock)
        nothing_left(servers)
        for server in servers:
            server.admin.client_kill_filter(_type="normal", skipme=True)


def test_connections_closed_for_idleness_cost_no_attempt(masters):
    servers = masters(1)
    dlm = manager(servers, retry_count=1)
    lock = dlm.lock("r", TTL)
    servers[0].admin.config_set("timeout", 1)
    wait_until(lambda: not servers[0].connections(), 10, "closed for idleness")
    dlm.unlock(lock)
    nothing_left(servers)
    servers[0].admin.config_set("timeout", 0)
    assert dlm.lock("r", TTL)


# -- logging in --------------------------------------------------------------------------------------------------------


CANARY = "canary-3f9c"


def assert_fails_and_says(dlm, caplog, words):
    """`lock` is False in time, `unlock` is None, the log says why and never shows the password."""
    with Stopwatch():
        assert dlm.lock("r", TTL) is False
        assert dlm.unlock(Lock(0, "r", b"k" * 22)) is None
    assert words in caplog.text
    assert CANARY not in caplog.text
    assert CANARY not in repr(dlm)


def test_a_password_and_an_acl_user(spawn):
    server = spawn(password=CANARY)
    server.admin.acl_setuser("locker", enabled=True, passwords=[f"+{CANARY}"], keys=["*"], commands=["+@all"])
    place = f"127.0.0.1:{server.port}"
    for url in (f"redis://:{CANARY}@{place}", f"redis://locker:{CANARY}@{place}"):
        dlm = Redlock([url], 1)
        lock = dlm.lock("r", TTL)
        assert lock
        dlm.unlock(lock)
        nothing_left([server])


@pytest.mark.every_kind
@pytest.mark.parametrize(
    "login,words",
    [("", "NOAUTH"), (f":{CANARY}@", "WRONGPASS"), (f"nobody:{CANARY}@", "WRONGPASS")],
    ids=["none", "wrong password", "unknown user"],
)
def test_a_login_that_is_refused(spawn, caplog, login, words):
    server = spawn(password="right")
    assert_fails_and_says(Redlock([f"redis://{login}127.0.0.1:{server.port}"]), caplog, words)


def test_a_wrong_db(masters, caplog):
    (server,) = masters(1)
    assert_fails_and_says(Redlock([f"{server.url}/99"]), caplog, "DB index is out of range")


@pytest.mark.every_kind
def test_another_db(masters):
    (server,) = masters(1)
    dlm = Redlock([f"{server.url}/5"])
    lock = dlm.lock("r", TTL)
    assert server.keys() == set()
    assert server.client(db=5).get("r") == lock.key
    dlm.unlock(lock)
    assert server.client(db=5).get("r") is None


RIGHTS = {"eval": ["+set", "+get", "+del", "+eval"], "evalsha": ["+set", "+get", "+del", "+eval", "+evalsha"]}


@pytest.mark.every_kind
@pytest.mark.parametrize("rights", RIGHTS)
def test_the_least_rights_suffice(masters, rights):
    """A user that may do nothing but what a lock needs, on its own keys; what is not needed is not even tried."""
    (server,) = masters(1)
    server.admin.acl_setuser("locker", enabled=True, passwords=["+pw"], keys=["lock:*"], commands=RIGHTS[rights])
    dlm = Redlock([f"redis://locker:pw@127.0.0.1:{server.port}"], 1)
    for _ in range(3):
        lock = dlm.lock("lock:a", TTL)
        assert lock
        dlm.unlock(lock)
        assert server.keys() == set()
    denied = {entry["object"] for entry in server.admin.acl_log()}
    assert denied <= {"delifeq", "evalsha", "info", "time"}  # cheaper ways, whether two masters are one, clocks


@pytest.mark.parametrize("kind", [ServerKind.VALKEY91], indirect=True, ids=["valkey91"])
def test_valkey_without_eval_uses_its_own_compare_and_delete(masters, kind):
    (server,) = masters(1)
    rights = ["+set", "+delifeq"]
    server.admin.acl_setuser("locker", enabled=True, passwords=["+pw"], keys=["lock:*"], commands=rights)
    dlm = Redlock([f"redis://locker:pw@127.0.0.1:{server.port}"], 1)
    lock = dlm.lock("lock:a", TTL)
    assert lock
    dlm.unlock(lock._replace(key=b"another"))
    assert server.get("lock:a") == lock.key
    dlm.unlock(lock)
    assert server.keys() == set()


def test_a_key_outside_the_users_pattern(masters, caplog):
    (server,) = masters(1)
    server.admin.acl_setuser("locker", enabled=True, passwords=["+pw"], keys=["lock:*"], commands=RIGHTS["eval"])
    dlm = Redlock([f"redis://locker:pw@127.0.0.1:{server.port}"], 1)
    assert dlm.lock("other", TTL) is False
    assert "no permissions" in caplog.text.lower()


# -- replies (the table of the hazards) --------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_oom_is_no_vote_and_release_works(masters, caplog):
    (server,) = masters(1)
    dlm = manager([server])
    lock = dlm.lock("r", TTL)
    server.admin.config_set("maxmemory", 1)
    assert dlm.lock("s", TTL) is False
    assert "OOM" in caplog.text
    assert server.keys() == {b"r"}
    dlm.unlock(lock)
    nothing_left([server])


@pytest.mark.every_kind
def test_noreplicas_is_no_vote_and_a_release_that_failed_is_said(masters, caplog):
    (server,) = masters(1)
    dlm = manager([server])
    lock = dlm.lock("r", TTL)
    server.admin.config_set("min-replicas-to-write", 1)
    assert dlm.lock("s", TTL) is False
    caplog.clear()
    assert dlm.unlock(lock) is None
    assert "NOREPLICAS" in caplog.text or "Not enough good replicas" in caplog.text
    assert server.get("r") == lock.key


@pytest.mark.every_kind
def test_misconf_is_no_vote(spawn, caplog):
    """The snapshot cannot be written, because a directory has its name."""
    server = spawn("--save", "3600", "1")
    (server.directory / "dump.rdb").mkdir()
    dlm = manager([server])
    lock = dlm.lock("r", TTL)
    server.admin.bgsave()
    wait_until(lambda: server.info("rdb_last_bgsave_status") == "err")
    assert dlm.lock("s", TTL) is False
    assert "MISCONF" in caplog.text
    caplog.clear()
    assert dlm.unlock(lock) is None
    assert "MISCONF" in caplog.text or server.get("r") is None


@pytest.mark.every_kind
def test_a_user_without_eval_can_never_hold_what_it_could_not_release(masters, kind, caplog):
    """SET would be answered OK, the release NOPERM: found out before anything is set."""
    (server,) = masters(1)
    server.admin.acl_setuser("locker", enabled=True, passwords=["+pw"], keys=["*"], commands=["+set", "+get"])
    dlm = Redlock([f"redis://locker:pw@127.0.0.1:{server.port}"], 2, 0.01)
    assert dlm.lock("r", TTL) is False
    assert "no permissions" in caplog.text
    assert server.keys() == set()


@pytest.mark.every_kind
def test_h39_a_read_only_replica_is_no_vote(masters, caplog):
    """H39: it answers a release 0 without an error, which must not be taken for an answer."""
    server, primary = masters(2)
    primary.admin.config_set("repl-diskless-sync-delay", 0)
    server.admin.replicaof("127.0.0.1", primary.port)
    wait_until(lambda: server.info("master_link_status") == "up", 20)
    dlm = manager([server])
    assert dlm.lock("r", TTL) is False
    assert "replica" in caplog.text
    primary.admin.set("r", "k" * 22)
    wait_until(lambda: server.get("r"))
    assert dlm.unlock(Lock(0, "r", b"k" * 22)) is None
    assert primary.get("r") == b"k" * 22


def test_a_replica_without_its_primary_is_no_vote(masters, caplog):
    (server,) = masters(1)
    dlm = manager([server])
    lock = dlm.lock("r", TTL)
    server.admin.config_set("replica-serve-stale-data", "no")
    server.admin.replicaof("127.0.0.1", 1)
    assert dlm.lock("s", TTL) is False
    assert dlm.unlock(lock) is None
    assert "replica" in caplog.text or "MASTERDOWN" in caplog.text


@pytest.mark.every_kind
def test_a_busy_script_is_no_vote(masters, caplog):
    (server,) = masters(1)
    dlm = manager([server])
    dlm.unlock(dlm.lock("warm", TTL))
    server.admin.config_set("lua-time-limit", 10)
    busy = server.client(socket_timeout=30)
    thread = threading.Thread(target=_run_for_ever, args=(busy,))
    thread.start()
    try:
        wait_until(lambda: "BUSY" in _answer(server.admin))
        with Stopwatch():
            assert dlm.lock("r", TTL) is False
    finally:
        server.client().script_kill()
        thread.join()
    nothing_left([server])
    assert dlm.lock("r", TTL)


def _run_for_ever(client):
    with pytest.raises(redis.ResponseError, match="killed"):
        client.eval("while true do end", 0)


def _answer(client):
    try:
        return str(client.ping())
    except redis.RedisError as error:
        return str(error)


@pytest.mark.every_kind
def test_h41_a_cluster_without_slots_is_no_vote(spawn, caplog):
    """H41."""
    server = spawn("--cluster-enabled", "yes")
    assert manager([server]).lock("r", TTL) is False
    assert "CLUSTERDOWN" in caplog.text


@pytest.mark.every_kind
def test_paused_writes_end_at_the_deadline_and_leave_nothing(masters):
    servers = masters(3)
    dlm = manager(servers, retry_count=2)
    dlm.unlock(dlm.lock("warm", TTL))
    for server in servers[:2]:
        server.admin.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    with Stopwatch():
        assert dlm.lock("r", TTL) is False
    for server in servers[:2]:
        server.admin.client_unpause()
    nothing_left(servers)
    stays_free(servers)
    assert dlm.lock("r", TTL)


@pytest.mark.every_kind
def test_h43_something_foreign_under_the_name_is_held_and_stays(masters, caplog):
    """H43: a list, and a string without a TTL."""
    (server,) = masters(1)
    server.admin.rpush("list", "x")
    server.admin.set("string", "x")
    dlm = manager([server], retry_count=1)
    for name in ("list", "string"):
        assert dlm.lock(name, TTL) is False
        assert dlm.unlock(Lock(0, name, b"k" * 22)) is None
    assert "WRONGTYPE" in caplog.text
    assert server.keys() == {b"list", b"string"}


@pytest.mark.every_kind
def test_noscript_after_script_flush_is_one_more_round_trip(masters):
    servers = masters(3)
    dlm = manager(servers)
    for _ in range(3):
        lock = dlm.lock("r", TTL)
        for server in servers:
            server.admin.script_flush()
        dlm.unlock(lock)
        nothing_left(servers)


def test_h15_max_number_of_clients(spawn, caplog):
    """H15: an error that nobody asked for, at connect."""
    server = spawn("--maxclients", "1")
    wait_until(lambda: _answer(server.admin) == "True")  # when the probe has left
    assert manager([server]).lock("r", TTL) is False
    assert "max number of clients" in caplog.text


@pytest.mark.every_kind
def test_one_bad_master_of_three_is_logged_and_outvoted(masters, caplog):
    servers = masters(3)
    servers[0].admin.config_set("maxmemory", 1)
    dlm = manager(servers, retry_count=1)
    lock = dlm.lock("r", TTL)
    assert lock
    dlm.unlock(lock)
    nothing_left(servers)
    wait_until(lambda: dlm.lock("s", TTL) is not None and "OOM" in caplog.text)


# -- ways in -----------------------------------------------------------------------------------------------------------


def works(dlm, server):
    lock = dlm.lock("r", TTL)
    return bool(lock) and server.get("r") == lock.key and dlm.unlock(lock) is None and server.get("r") is None


@pytest.mark.every_kind
def test_ipv6(spawn):
    server = spawn(host="::1")
    assert works(manager([server]), server)
    assert works(Redlock([{"host": "::1", "port": server.port}]), server)


def test_a_name_of_two_addresses_of_which_one_refuses(spawn):
    """``localhost`` may be ::1 first; the server listens on 127.0.0.1 only."""
    server = spawn()
    assert works(Redlock([f"redis://localhost:{server.port}"], 1), server)


def test_a_name_that_does_not_exist(masters, caplog):
    servers = masters(2)
    dlm = Redlock(["redis://does-not-exist.invalid", *(server.url for server in servers)], 2)
    lock = dlm.lock("r", TTL)
    assert lock
    dlm.unlock(lock)
    nothing_left(servers)


@pytest.mark.every_kind
def test_unix_socket(spawn):
    server = spawn()
    assert works(Redlock([f"unix://{server.socket_path}"]), server)
    assert works(Redlock([{"unix_socket_path": str(server.socket_path)}]), server)
    lock = Redlock([f"unix://{server.socket_path}?db=3"]).lock("r", TTL)
    assert server.client(db=3).get("r") == lock.key


def test_unix_socket_that_is_gone(spawn):
    server = spawn()
    dlm = Redlock([f"unix://{server.socket_path}"], 2, 0.01)
    assert works(dlm, server)
    server.kill()
    server.socket_path.unlink(missing_ok=True)
    assert dlm.lock("r", TTL) is False
    server.restart()
    wait_until(lambda: works(dlm, server), 10)


@pytest.mark.every_kind
@pytest.mark.parametrize("protocol", [2, 3])
def test_both_protocols(masters, protocol):
    (server,) = masters(1)
    assert works(Redlock([f"{server.url}?protocol={protocol}"]), server)


def test_client_name(masters):
    (server,) = masters(1)
    dlm = Redlock([f"{server.url}?client_name=locker"])
    assert works(dlm, server)
    assert {client["name"] for client in server.connections()} == {"locker"}


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def front(masters, fronts):
    """TLS in front of the one server of a test."""
    return lambda *arguments, **options: fronts(masters(1)[0], *arguments, **options)


def test_tls_of_a_known_authority(front, masters, authority):
    url = front(authority.server).url
    (server,) = masters(1)
    assert works(Redlock([f"{url}?ssl_ca_certs={authority.ca}"]), server)
    place = {"host": "127.0.0.1", "port": int(url.rpartition(":")[2])}
    assert works(Redlock([{**place, "ssl": True, "ssl_ca_certs": str(authority.ca)}]), server)
    assert works(Redlock([{**place, "ssl": True, "ssl_ca_data": authority.ca.read_text()}]), server)
    assert works(Redlock([f"{url.replace('127.0.0.1', 'localhost')}?ssl_ca_certs={authority.ca}"]), server)


def test_tls_over_ipv6(front, masters, authority):
    tls = front(authority.server, host="::1")
    assert works(Redlock([f"rediss://[::1]:{tls.port}?ssl_ca_certs={authority.ca}"]), masters(1)[0])


@pytest.mark.parametrize("trust", ["system roots", "another authority"])
def test_tls_of_an_unknown_authority_is_refused(front, authority, other_authority, caplog, trust):
    tls = front(authority.server)
    query = f"?ssl_ca_certs={other_authority.ca}" if trust == "another authority" else ""
    with Stopwatch():
        assert Redlock([tls.url + query], 2, 0.01).lock("r", TTL) is False
    assert "certificate" in caplog.text.lower()
    assert tls.accepted == 0


def test_tls_for_another_name_is_refused(front, masters, authority, caplog):
    tls = front(authority.stranger)
    assert Redlock([f"{tls.url}?ssl_ca_certs={authority.ca}"], 2, 0.01).lock("r", TTL) is False
    assert "certificate" in caplog.text.lower()
    assert tls.accepted == 0
    unchecked = f"{tls.url}?ssl_ca_certs={authority.ca}&ssl_check_hostname=false"
    assert works(Redlock([unchecked]), masters(1)[0])


def test_tls_without_verification_when_asked(front, masters, other_authority):
    (server,) = masters(1)
    tls = front(other_authority.server)
    assert works(Redlock([f"{tls.url}?ssl_cert_reqs=none&ssl_check_hostname=false"]), server)
    assert works(Redlock([f"{tls.url}?ssl_cert_reqs=none"]), server)


def test_tls_with_a_client_certificate(front, masters, authority, other_authority, caplog):
    (server,) = masters(1)
    tls = front(authority.server, client_ca=authority.ca)
    trusting = f"{tls.url}?ssl_ca_certs={authority.ca}"
    own = f"&ssl_certfile={authority.client}&ssl_keyfile={authority.client_key}"
    assert works(Redlock([trusting + own]), server)
    assert Redlock([trusting], 2, 0.01).lock("r", TTL) is False
    foreign = f"&ssl_certfile={other_authority.client}&ssl_keyfile={other_authority.client_key}"
    assert Redlock([trusting + foreign], 2, 0.01).lock("r", TTL) is False


def test_tls_spoken_to_a_plain_server_ends(masters):
    (server,) = masters(1)
    with Stopwatch():
        assert Redlock([server.url.replace("redis:", "rediss:")], 2, 0.01).lock("r", TTL) is False


def test_plain_spoken_to_a_tls_server_ends(front, authority):
    tls = front(authority.server)
    with Stopwatch():
        assert Redlock([tls.url.replace("rediss:", "redis:")], 2, 0.01).lock("r", TTL) is False


# -- endpoint's own timeouts -------------------------------------------------------------------------------------------


def test_an_endpoints_own_timeout_shortens_the_wait(masters):
    """100 tries at the default deadline of 500 ms would take 50 s."""
    (server,) = masters(1)
    server.freeze()
    dlm = Redlock([f"{server.url}?socket_timeout=0.01&socket_connect_timeout=0.01"], 100, 0.001)
    with Stopwatch():
        assert dlm.lock("r", TTL) is False


# -- competition -------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_contenders_exclude_each_other_while_masters_fail(masters):
    """Five threads with a manager each, one critical section, and a master that dies and one that hangs on the way."""
    servers = masters(5)
    inside, entered, overlaps = [], Counter(dict.fromkeys(range(5), 0)), []
    stop = threading.Event()

    def contend(name):
        dlm = manager(servers, retry_count=50, retry_delay=0.01)
        while not stop.is_set():
            lock = dlm.lock("r", TTL)
            if lock:
                inside.append(name)
                overlaps.extend([tuple(inside)] if len(inside) > 1 else [])
                entered[name] += 1
                time.sleep(0.001)
                inside.remove(name)
                dlm.unlock(lock)

    threads = [threading.Thread(target=contend, args=(name,)) for name in range(5)]
    for thread in threads:
        thread.start()
    for harm in (servers[0].kill, servers[1].freeze, servers[1].thaw):
        before = entered.total()
        wait_until(lambda before=before: entered.total() > before + 20, 30, "progress")
        harm()
    stop.set()
    for thread in threads:
        thread.join()
    assert overlaps == []
    nothing_left(servers[1:])
