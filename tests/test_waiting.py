"""A waiter learns at once that a lock has become free: no polling where the servers can say so."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from redlock import Redlock
from redlock._redlock import Held, Operation, Vote, now
from support.locks import PROMPT, TTL, manager, warm
from support.servers import wait_until

pytestmark = pytest.mark.once

NEVER = 600.0  # seconds: a pause that no test lives to see the end of


@pytest.fixture
def servers(masters):
    return masters(3)


def acquire(*resources, timeout=None):
    return Operation.acquire(resources, TTL, 2, TTL // 100 + 2, 2**62, NEVER, timeout)


class Waiter(threading.Thread):
    """Waits for `r` on a manager of its own, or on this one."""

    def __init__(self, servers, query="", timeout=30.0, dlm=None) -> None:
        super().__init__(daemon=True)
        self.engine = (dlm or Redlock([server.url + query for server in servers]))._backend().engine
        self.timeout = timeout
        self.outcome = None
        self.start()

    def run(self):
        self.outcome = self.engine.run(acquire(b"r", timeout=self.timeout))

    def took_it(self):
        self.join(PROMPT)
        return isinstance(self.outcome, Held)


def hold(servers, ttl=TTL):
    return manager(servers).lock("r", ttl)


def as_user(servers, *rights):
    """The servers, for a user with all other rights than these."""
    for server in servers:
        server.admin.acl_setuser("waiter", enabled=True, nopass=True, keys=["*"], commands=["+@all", *rights])
    return [server.url.replace("//", "//waiter:any@") for server in servers]


def watched(servers, at=2):
    """Whether the waiter has armed its watch on so many, so that what happens next happens to one who waits."""
    return sum(server.info("tracking_total_keys") > 0 for server in servers) >= at


@pytest.mark.every_kind
def test_a_release_wakes_the_waiter(servers):
    lock = hold(servers)
    waiter = Waiter(servers)
    wait_until(lambda: watched(servers))
    manager(servers).unlock(lock)
    assert waiter.took_it()


@pytest.mark.every_kind
def test_redlock_pys_release_wakes_the_waiter(servers):
    lock = hold(servers)
    waiter = Waiter(servers)
    wait_until(lambda: watched(servers))
    for server in servers:
        server.admin.eval(Redlock.unlock_script, 1, "r", lock.key)
    assert waiter.took_it()


@pytest.mark.every_kind
def test_the_end_of_a_ttl_wakes_the_waiter(servers):
    hold(servers, ttl=700)
    assert Waiter(servers).took_it()


def test_a_lock_that_is_extended_is_waited_for_again(servers):
    lock = hold(servers)
    waiter = Waiter(servers)
    wait_until(lambda: watched(servers))
    for server in servers:
        server.admin.pexpire("r", 2 * TTL)
    wait_until(lambda: watched(servers))
    manager(servers).unlock(lock)
    assert waiter.took_it()


def test_a_quorum_of_releases_is_enough(servers):
    hold(servers)
    waiter = Waiter(servers)
    wait_until(lambda: watched(servers))
    servers[2].freeze()
    for server in servers[:2]:
        server.admin.delete("r")
    assert waiter.took_it()
    servers[2].thaw()


def test_one_release_of_three_wakes_nobody(servers):
    dlm = manager(servers)
    warm(dlm, servers)  # one that is not connected yet is not watched
    for server in servers:  # a lock may be held on two alone
        server.admin.set("r", "another", px=TTL)
    waiter = Waiter(servers, timeout=0.6, dlm=dlm)
    wait_until(lambda: watched(servers, at=3))
    before = servers[1].info("total_commands_processed")
    servers[0].admin.delete("r")
    waiter.join(PROMPT)
    assert waiter.outcome.count(Vote.REFUSED) >= 1
    # The questions of this test itself, and no round.
    assert servers[1].info("total_commands_processed") - before <= 1


def calls(servers, command):
    """How often each server has carried out this command."""
    return [server.admin.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"] for server in servers]


def test_waiters_that_know_of_each_other_do_not_split_the_votes(servers):
    """H60: five that are new ask one master first, and only who has its vote asks the others."""
    for server in servers:
        server.admin.set("r", "another", px=TTL)
    before, dlm = calls(servers, "pttl"), manager(servers)
    waiters = [Waiter(servers, timeout=5.0, dlm=dlm) for _ in range(5)]
    wait_until(lambda: all(asked >= had + 5 for asked, had in zip(calls(servers, "pttl"), before, strict=True)))
    sets = sum(calls(servers, "set"))
    for server in servers:
        server.admin.delete("r")
    wait_until(lambda: any(isinstance(waiter.outcome, Held) for waiter in waiters))
    # Seven, and a few by those whose second was over, for a push may be lost; five that ask three are fifteen.
    assert sum(calls(servers, "set")) - sets < 5 * 3
    [waiter.join() for waiter in waiters]


def test_the_drop_in_interface_is_woken_too(servers):
    lock = hold(servers)
    dlm = manager(servers, retry_count=2, retry_delay=NEVER)
    timer = threading.Timer(0.3, manager(servers).unlock, [lock])
    timer.start()
    begin = now()
    assert dlm.lock("r", TTL)
    assert now() - begin < PROMPT


def test_of_twenty_who_wait_none_starves_and_none_asks_in_vain(servers, record_property):
    """A thousand hand-overs: fifty for each would be even, and all masters know of each what each waiter asked."""
    held = dict.fromkeys(range(20), 0)

    def work(name):
        dlm = manager(servers, retry_count=1_000_000)
        while sum(held.values()) < 1000:
            lock = dlm.lock("r", 60_000)
            held[name] += 1
            dlm.unlock(lock)
            time.sleep(0.005)  # or it would take it again before anybody has heard of it

    before = sum(server.info("total_commands_processed") for server in servers)
    threads = [threading.Thread(target=work, args=[name]) for name in held]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    commands = sum(server.info("total_commands_processed") for server in servers) - before
    record_property("hand-overs", f"{sorted(held.values())}, {commands / sum(held.values()):.0f} commands each")
    assert min(held.values()) >= 10
    assert commands / sum(held.values()) < 2 * len(servers) * len(held)


@pytest.mark.parametrize("cause", ["rights", "protocol"])
def test_where_nothing_is_pushed_the_waiter_asks_and_says_so_once(servers, caplog, cause):
    caplog.set_level(logging.INFO, "redlock")
    urls = as_user(servers, "-client") if cause == "rights" else [f"{server.url}?protocol=2" for server in servers]
    lock = hold(servers)
    dlm = Redlock(urls, 2000, 0.01)
    timer = threading.Timer(0.3, manager(servers).unlock, [lock])
    timer.start()
    assert dlm.lock("r", TTL)
    said = [record for record in caplog.records if "does not say when" in record.getMessage()]
    assert 2 <= len(said) <= 3


def test_a_waiter_that_may_not_ask_for_a_ttl_has_votes_all_the_same(servers, caplog):
    lock = hold(servers)
    dlm = Redlock(as_user(servers, "-pttl"), 3, 0.01)
    assert dlm.lock("r", TTL) is False
    assert "no vote" not in caplog.text
    dlm.unlock(lock)
    assert dlm.lock("r", TTL)


def test_a_server_that_goes_away_does_not_take_the_waiter_along(servers):
    lock = hold(servers)
    waiter = Waiter(servers)
    wait_until(lambda: watched(servers))
    servers[0].restart()
    time.sleep(0.05)
    manager(servers).unlock(lock)
    # Though the pause is ten minutes: what is left of the watch says it, or the cap of a second.
    assert waiter.took_it()
