"""`restart_guard` and `clock_guard`: a master that has forgotten, or whose clock jumps, has no vote for a while."""

from __future__ import annotations

import time

import pytest

from redlock import Redlock
from redlock._redlock import Held, Operation
from support.locks import PROMPT, TTL, held
from support.servers import wait_until

pytestmark = pytest.mark.once

LONG_AGO = 2  # seconds: older than the TTLs that these tests guard with


def guarded(servers, guard, **options):
    return Redlock([server.url for server in servers], 1, restart_guard=guard, **options)


def age(servers):
    """Wait until the servers have been up for longer than a guard of a second lets them out for."""
    wait_until(lambda: all(server.info("uptime_in_seconds") >= LONG_AGO for server in servers))


@pytest.mark.every_kind
def test_a_master_that_restarted_empty_does_not_grant_what_is_held(masters):
    servers = masters(3)
    holder = guarded(servers, 600_000)
    first = [server.info("run_id") for server in servers]
    # All three were started less than ten minutes ago.
    assert holder.lock("r", TTL) is False
    unguarded = Redlock([server.url for server in servers], 1)
    assert unguarded.lock("r", TTL)
    assert first == [server.info("run_id") for server in servers]


@pytest.mark.every_kind
def test_it_votes_again_when_the_time_is_over(spawn):
    server = spawn()
    dlm = guarded([server], 1000)
    age([server])
    assert dlm.lock("a", 1000)
    server.restart()
    assert dlm.lock("b", 1000) is False
    assert held([server], "b") == [None]
    wait_until(lambda: dlm.lock("c", 1000), what="a vote")
    assert server.info("uptime_in_seconds") >= 1


def test_the_others_vote_meanwhile_and_the_reason_is_told_and_logged_once(spawn, caplog):
    servers = [spawn() for _ in range(3)]
    age(servers)
    dlm = guarded(servers, 1000)
    assert dlm.lock("a", 500)
    servers[0].restart()
    said = []
    for _ in range(20):
        outcome = dlm._backend().engine.run(Operation.acquire([b"b"], 500, 3, 7, 1, 0.0))
        assert not isinstance(outcome, Held)
        said += outcome
    assert "not relied on: it restarted, and may have forgotten locks" in map(str, said)
    assert guarded(servers, 1000).lock("c", 500)
    records = [record for record in caplog.records if "it restarted" in record.getMessage()]
    assert 1 <= len(records) <= 2  # one for each manager that got to see it
    assert f":{servers[0].port}/" in records[0].getMessage()


def test_the_longest_ttl_asked_for_counts(spawn):
    server = spawn()
    age([server])
    dlm = guarded([server], True)
    assert dlm.lock("a", 500)
    assert dlm.lock("b", 600_000) is False


def test_releases_go_on(spawn):
    server = spawn()
    age([server])
    dlm = guarded([server], 500)
    lock = dlm.lock("a", TTL)
    assert lock is False  # a TTL longer than it has been up
    lock = dlm.lock("a", 600)
    assert lock is False  # the longest that was asked for still counts
    lock = Redlock([server.url]).lock("a", TTL)
    dlm.unlock(lock)
    assert held([server], "a") == [None]


def test_what_is_written_to_disk_before_it_is_answered_is_not_forgotten(spawn):
    server = spawn(aof=True)
    dlm = guarded([server], 600_000)
    lock = dlm.lock("r", TTL)
    assert lock
    server.restart()
    assert held([server]) == [lock.key]
    assert dlm.lock("other", TTL)


def test_what_is_written_to_disk_every_second_may_be(spawn):
    server = spawn(aof=True)
    server.admin.config_set("appendfsync", "everysec")
    assert guarded([server], 600_000).lock("r", TTL) is False


def test_a_demoted_master_counts_as_forgetting(spawn):
    server, other = spawn(), spawn()
    age([server])
    dlm = guarded([server], 1500)
    assert dlm.lock("a", 1000)
    server.admin.replicaof(other.host, other.port)
    wait_until(lambda: dlm.lock("b", 1000) is False)
    server.admin.replicaof("NO", "ONE")
    begin = time.monotonic()
    assert dlm.lock("c", 1000) is False
    wait_until(lambda: dlm.lock("d", 1000), what="a vote")
    assert time.monotonic() - begin < PROMPT


def test_a_user_who_may_not_ask_is_told(spawn):
    server = spawn()
    server.admin.acl_setuser("app", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
    url = server.url.replace("//", "//app:any@")
    dlm = Redlock([url], 1, restart_guard=True)
    with pytest.raises(Exception, match="restart_guard needs the right to INFO"):
        dlm.acquire("r", TTL, timeout=0)


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_jumps_is_logged_and_with_the_guard_has_no_vote(scripted, caplog, jump):
    shift = [0]

    def script(command):
        if command.name != "TIME":
            return None
        now = time.time() + shift[0]
        seconds = str(int(now)).encode()
        return b"*2\r\n$%d\r\n%b\r\n$6\r\n%06d\r\n" % (len(seconds), seconds, int(now % 1 * 1e6))

    server = scripted(script)

    def votes(dlm):
        lock = dlm.lock("r", 1000)
        return lock and (dlm.unlock(lock) or True)

    careless, careful = Redlock([server.url], 1), Redlock([server.url], 1, clock_guard=True)
    assert votes(careless)
    assert votes(careful)
    shift[0] = jump
    wait_until(lambda: not votes(careful), what="the guard to see it")
    assert votes(careless)
    assert "its clock moved by" in caplog.text
    wait_until(lambda: votes(careful), what="a vote, when what was granted before has run out")


@pytest.mark.parametrize(
    "wrong, error",
    [
        ({"restart_guard": "yes"}, "restart_guard: expected a bool or a TTL in milliseconds, not str"),
        ({"restart_guard": 1.5}, "restart_guard: expected a bool or a TTL in milliseconds, not float"),
        ({"restart_guard": None}, "restart_guard: expected a bool or a TTL in milliseconds, not NoneType"),
        ({"clock_guard": 1}, "clock_guard: expected a bool, not int"),
    ],
)
def test_a_guard_that_is_none_is_refused(wrong, error):
    with pytest.raises(TypeError, match=error):
        Redlock(["redis://127.0.0.1:1"], **wrong)


def test_masters_that_the_engine_does_not_reach_cannot_be_guarded():
    class Custom:
        def set(self, *_, **__):
            return True

        def eval(self, *_):
            return 1

    with pytest.raises(Warning, match="restart_guard and clock_guard need masters given as URLs"):
        Redlock([Custom()], restart_guard=True)
