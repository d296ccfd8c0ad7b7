"""A lock that is granted reaches every master that is alive, and so does its release."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from redlock import Redlock
from support.locks import TTL, amanager, held, manager, nothing_left, warm
from support.proxy import Mode
from support.servers import wait_until

pytestmark = pytest.mark.once


@pytest.fixture
def servers(masters):
    return masters(3)


def stays_free(server, seconds=0.4):
    """No key appears while what was in flight arrives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.get("r") is None
        time.sleep(0.01)


def lock_everywhere(dlm, servers):
    """A lock that all masters have."""
    lock = dlm.lock("r", TTL)
    wait_until(lambda: held(servers) == [lock.key] * 3)
    return lock


@pytest.mark.every_kind
def test_a_lock_reaches_a_master_that_wakes_up(servers):
    dlm = manager(servers)
    servers[2].freeze()
    lock = dlm.lock("r", TTL)
    time.sleep(1)
    servers[2].thaw()
    wait_until(lambda: held(servers) == [lock.key] * 3)
    # For what is left of its time.
    assert servers[2].admin.pttl("r") <= servers[0].admin.pttl("r") + 100
    dlm.unlock(lock)
    nothing_left(servers)


@pytest.mark.every_kind
def test_a_lock_reaches_a_master_that_starts(servers):
    servers[1].kill()
    dlm = manager(servers)
    lock = dlm.lock("r", TTL)
    servers[1].start()
    wait_until(lambda: held(servers) == [lock.key] * 3)
    dlm.unlock(lock)
    nothing_left(servers)


def test_a_lock_reaches_a_master_where_another_held_it(servers, through):
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    proxies[1].delay = proxies[2].delay = 0.1  # so that the refusal comes before the quorum
    servers[0].admin.set("r", "other", px=500)
    lock = dlm.lock("r", TTL)
    assert lock
    wait_until(lambda: held(servers) == [lock.key] * 3)
    dlm.unlock(lock)
    nothing_left(servers)


def test_a_fencing_token_reaches_a_master_that_wakes_up(servers):
    dlm = manager(servers)
    servers[2].freeze()
    with dlm.acquire("r", TTL, fencing=True) as lease:
        assert lease.masters[2][1] != "granted"
        servers[2].thaw()
        wait_until(lambda: held(servers) == [lease.key] * 3)
        wait_until(lambda: lease.masters[2][1] == "granted")
        fences = [server.admin.get("r::rlfence") for server in servers]
        assert fences[2] == fences[0]


def test_an_asyncio_lock_reaches_a_master_that_wakes_up(servers):
    async def main():
        adlm = amanager(servers)
        servers[2].freeze()
        async with adlm.acquire("r", TTL) as lease:
            servers[2].thaw()
            await asyncio.to_thread(wait_until, lambda: held(servers) == [lease.key] * 3)
        nothing_left(servers)

    asyncio.run(main())


def test_a_lock_that_is_released_does_not_reach_a_master_that_wakes_up(servers):
    dlm = manager(servers)
    servers[2].freeze()
    lock = dlm.lock("r", TTL)
    dlm.unlock(lock)
    servers[2].thaw()
    stays_free(servers[2])


def test_an_extension_reaches_a_master_that_has_lost_the_lock(servers, through):
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    with dlm.acquire("r", TTL) as lease:
        wait_until(lambda: held(servers) == [lease.key] * 3)
        servers[2].admin.delete("r")
        proxies[2].delay = 0.2  # its answer comes after that of a quorum
        lease.extend()
        wait_until(lambda: held(servers) == [lease.key] * 3)
    nothing_left(servers)


@pytest.mark.every_kind
def test_a_release_reaches_a_master_that_wakes_up(servers):
    dlm = manager(servers)
    warm(dlm, servers)
    lock = lock_everywhere(dlm, servers)
    servers[2].freeze()
    dlm.unlock(lock)
    servers[2].thaw()
    nothing_left(servers)


def test_a_release_that_was_lost_is_sent_once_more(servers, through):
    """As when a NAT has forgotten an idle connection: nothing comes back, not even an error."""
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    lock = lock_everywhere(dlm, servers)
    proxies[2].forget()
    dlm.unlock(lock)
    wait_until(lambda: held(servers) == [None] * 3)


def test_a_release_over_killed_connections_reaches_all_masters(servers):
    dlm = manager(servers)
    warm(dlm, servers)
    for _ in range(20):
        lock = lock_everywhere(dlm, servers)
        servers[2].admin.client_kill_filter(_type="normal", skipme=True)
        dlm.unlock(lock)
        nothing_left(servers)


def test_locks_with_one_key_are_told_apart(servers):
    """A caller may use one key for all its locks. What a master is owed of one is no matter of another's."""

    class Mine(Redlock):
        def get_unique_id(self):
            return b"host:1"

    servers[2].kill()
    dlm = Mine([server.url for server in servers])
    one, _ = dlm.lock("one", TTL), dlm.lock("other", TTL)
    dlm.unlock(one)
    assert [server.get("one") for server in servers[:2]] == [None] * 2
    assert [server.get("other") for server in servers[:2]] == [b"host:1"] * 2
    servers[2].start()
    wait_until(lambda: servers[2].get("other") == b"host:1")
    assert servers[2].get("one") is None


def test_a_failed_attempt_is_released_when_its_masters_can_be_reached_again(servers, through):
    """The connections broke after the locks were set, and could not be made again at once."""
    proxies = [through(server) for server in servers]
    dlm = manager(proxies, retry_count=1)
    warm(dlm, servers)
    for proxy in proxies:
        proxy.mode = Mode.SWALLOW_REPLIES
    with ThreadPoolExecutor() as threads:
        call = threads.submit(dlm.lock, "r", TTL)
        wait_until(lambda: all(held(servers)))
        for proxy in proxies:
            proxy.refuse()
            proxy.reset()
        assert call.result() is False
    for proxy in proxies:
        proxy.mode = Mode.PASS
        proxy.accept()
    wait_until(lambda: held(servers) == [None] * 3)


def commands(server, *names):
    """How often these were sent there, refused or not."""
    stats = server.admin.info("commandstats")
    found = (stats.get(f"cmdstat_{name}", {}) for name in names)
    return sum(each.get("calls", 0) + each.get("rejected_calls", 0) for each in found)


@pytest.mark.every_kind
def test_a_master_that_refuses_is_not_asked_more_often_the_longer_a_lease_is_kept(servers):
    """Each renewal finds that it has not got the lock."""
    dlm = manager(servers)
    warm(dlm, servers)
    servers[2].admin.config_set("min-replicas-to-write", 1)
    before, begin = commands(servers[2], "set"), time.monotonic()
    with dlm.acquire("r", 600, auto_extend=True):
        time.sleep(5)
        asked, took = commands(servers[2], "set") - before, time.monotonic() - begin
    # By the call, one try after another with pauses up to a second, and each renewal where that is a `SET`.
    assert asked <= 15 + 2 * took + took / 0.1
    servers[2].admin.config_set("min-replicas-to-write", 0)
    nothing_left(servers)


@pytest.mark.every_kind
def test_a_master_that_refuses_is_told_of_one_release_at_a_time(servers):
    dlm = manager(servers)
    names = [f"r{number}" for number in range(50)]
    locks = [dlm.lock(name, TTL) for name in names]
    wait_until(lambda: all(servers[2].get(name) for name in names))
    servers[2].admin.config_set("min-replicas-to-write", 1)
    before = commands(servers[2], "eval", "evalsha", "delex", "delifeq")
    for lock in locks:
        dlm.unlock(lock)
    time.sleep(3)
    asked = commands(servers[2], "eval", "evalsha", "delex", "delifeq") - before
    # By `unlock`, once more by the first try of each, and then in turn.
    assert asked <= 3 * len(locks)
    servers[2].admin.config_set("min-replicas-to-write", 0)
    nothing_left(servers, 10)


REFUSALS = {
    "too few replicas": (
        lambda admin: admin.config_set("min-replicas-to-write", 1),
        lambda admin: admin.config_set("min-replicas-to-write", 0),
    ),
    "a replica": (lambda admin: admin.replicaof("127.0.0.1", 1), lambda admin: admin.replicaof("NO", "ONE")),
}


@pytest.mark.every_kind
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_release_that_a_master_refuses_for_now_is_sent_once_more(servers, refusal):
    begin, end = REFUSALS[refusal]
    dlm = manager(servers)
    lock = lock_everywhere(dlm, servers)
    begin(servers[2].admin)
    dlm.unlock(lock)
    assert held(servers) == [None, None, lock.key]
    end(servers[2].admin)
    wait_until(lambda: servers[2].get("r") is None)


def test_a_release_does_not_ask_first_whether_a_hung_master_is_there(servers):
    dlm = Redlock([f"{server.url}?health_check_interval=1&socket_timeout=20" for server in servers], 3, 0.02)
    lock = lock_everywhere(dlm, servers)
    time.sleep(1.5)
    servers[2].freeze()
    done = threading.Event()

    def unlock():
        dlm.unlock(lock)
        done.set()

    threading.Thread(target=unlock, daemon=True).start()
    assert done.wait(10)
    servers[2].thaw()
    nothing_left(servers)
