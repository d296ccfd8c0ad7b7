"""`redlock doctor`: each thing that breaks locks, on real servers that have it."""

from __future__ import annotations

import argparse
import json
from datetime import date

import pytest

from redlock._cli import checks
from redlock._cli.facts import Facts
from redlock.cli import main
from support.servers import Server, ServerKind, wait_until
from support.topology import Watched

QUIET = ("same-machine", "persistence", "version", "latency")  # what is so with all servers of this machine, or may be


@pytest.fixture
def doctor(capsys):
    """The doctor's exit code, and what it found that is not well: level and text by check."""

    def ask(*words, ignore=QUIET):
        ignored = [word for name in ignore for word in ("--ignore", name)]
        with pytest.raises(SystemExit) as caught:
            main(["--json", "doctor", *words, *ignored])
        facts = json.loads(capsys.readouterr().out)
        bad = [each for each in facts["findings"] if each["level"] != "ok"]
        assert all(each["remedy"] for each in bad)
        assert all(each["why"] for each in bad if each["level"] != "unknown")
        return caught.value.code, [(each["check"], each["level"], each["master"]) for each in bad]

    return ask


def places(servers):
    return [server.url for server in servers]


def name(server):
    return f"127.0.0.1:{server.port}/0"


@pytest.mark.every_kind
def test_three_good_masters_are_well(masters, kind, doctor):
    servers = masters(3)
    code, found = doctor(*places(servers))
    # Redis 6.2 has no ACL DRYRUN; but a lock was tried.
    assert (code, found) == (0, [])
    assert all(server.keys() == set() for server in servers)


def test_read_only_writes_nothing(masters, doctor):
    servers = masters(3)
    before = [server.info("rdb_changes_since_last_save") for server in servers]
    assert doctor(*places(servers), "--read-only", ignore=(*QUIET, "rights")) == (0, [])
    assert before == [server.info("rdb_changes_since_last_save") for server in servers]
    doctor(*places(servers))
    assert before != [server.info("rdb_changes_since_last_save") for server in servers]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_bad_number_of_masters(masters, doctor, count):
    assert doctor(*places(masters(count))) == (1, [("count", "warning", None)])


def test_one_server_under_two_names(masters, doctor):
    first, second = masters(2)
    code, found = doctor(first.url, f"{first.url}/1", second.url)
    assert (code, found) == (2, [("same-server", "wrong", None)])


def test_masters_on_one_machine(masters, doctor):
    code, found = doctor(*places(masters(3)), ignore=QUIET[1:])
    assert (code, found) == (1, [("same-machine", "warning", None)])


def test_a_master_that_is_down(masters, doctor):
    servers = masters(3)
    servers[1].kill()
    assert doctor(*places(servers)) == (2, [("reach", "wrong", name(servers[1]))])


def test_no_master_at_all(masters, doctor):
    (server,) = masters(1)
    server.kill()
    assert doctor(server.url, ignore=("count",)) == (2, [("reach", "wrong", name(server))])


def test_a_master_that_hangs(masters, doctor):
    servers = masters(3)
    servers[1].freeze()
    assert doctor(*places(servers)) == (2, [("reach", "wrong", name(servers[1]))])


def test_a_wrong_password(spawn, doctor):
    server = spawn(password="right")
    code, found = doctor(f"redis://:wrong@127.0.0.1:{server.port}", ignore=("count",))
    assert (code, found) == (2, [("reach", "wrong", name(server))])


def test_a_replica(masters, doctor):
    servers = masters(3)
    servers[2].admin.replicaof(servers[1].host, str(servers[1].port))
    code, found = doctor(*places(servers), ignore=(*QUIET, "failover", "reach"))
    assert code == 2
    assert ("role", "wrong", name(servers[2])) in found
    assert ("trial", "wrong", name(servers[2])) in found  # read-only


def test_replicas_that_sentinels_promote(capsys):
    watched = Watched(ServerKind.REDIS82)
    try:
        master = name(watched.master)
        with pytest.raises(SystemExit) as caught:
            main(["--json", "doctor", watched.master.url, "--read-only"])
    finally:
        watched.stop()
    assert caught.value.code == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    (found,) = [each for each in findings if each["check"] == "failover"]
    assert (found["level"], found["master"], found["what"]) == ("warning", master, "fails over by itself to 1 replica")


def test_replicas_that_nobody_promotes(spawn, doctor):
    master, replica = spawn(), spawn()
    replica.admin.replicaof(master.host, str(master.port))
    wait_until(lambda: master.info("connected_slaves") == 1)
    assert doctor(master.url, ignore=(*QUIET, "count")) == (1, [("failover", "warning", name(master))])


def test_an_evicting_policy(masters, doctor):
    servers = masters(3)
    servers[0].admin.config_set("maxmemory-policy", "allkeys-lru")
    assert doctor(*places(servers)) == (0, [])  # no limit, nothing to evict
    servers[0].admin.config_set("maxmemory", "1gb")
    assert doctor(*places(servers)) == (2, [("eviction", "wrong", name(servers[0]))])


def test_a_memory_that_is_nearly_full(masters, doctor):
    servers = masters(3)
    servers[0].admin.config_set("maxmemory", str(int(servers[0].info("used_memory") * 1.05)))
    code, found = doctor(*places(servers), "--read-only", ignore=(*QUIET, "rights"))
    assert (code, found) == (1, [("eviction", "warning", name(servers[0]))])


def test_what_a_restart_forgets(spawn, doctor):
    servers = [spawn(), spawn(aof=True), spawn("--appendonly", "yes", "--appendfsync", "everysec")]
    code, found = doctor(*places(servers), ignore=("same-machine", "version", "latency"))
    expected = [("persistence", "warning", name(server)) for server in (servers[0], servers[2])]
    assert (code, found) == (1, expected)


def test_a_slow_master(masters, doctor, through):
    servers = masters(3)
    proxy = through(servers[2])
    proxy.delay = 0.05
    ignore = ("same-machine", "persistence", "version", "same-server", "clock")
    words = ["--samples=3", "--ttl=200ms", "--read-only", *places([*servers[:2], proxy])]
    code, found = doctor(*words, ignore=(*ignore, "rights"))
    assert code == 1
    assert ("latency", "warning", name(proxy)) in found
    proxy.delay = 0.15
    code, found = doctor(*words, ignore=(*ignore, "rights"))
    assert code == 2
    assert ("latency", "wrong", name(proxy)) in found


def test_a_user_without_rights(spawn, doctor):
    server = spawn(password="pw")
    server.admin.acl_setuser("few", enabled=True, passwords=["+pw"], keys=["lock:*"], commands=["+set", "+get"])
    code, found = doctor(f"redis://few:pw@127.0.0.1:{server.port}", "--name=lock:doctor", ignore=("count",))
    assert code == 2
    assert ("trial", "wrong", name(server)) in found  # could never be released
    unknown = {check for check, level, _ in found if level == "unknown"}
    assert unknown == {
        "same-server",
        "role",
        "failover",
        "eviction",
        "persistence",
        "version",
        "clock",
        "commands",
        "rights",
    }


def test_a_user_with_rights_for_other_names(spawn, doctor):
    server = spawn(password="pw")
    server.admin.acl_setuser("some", enabled=True, passwords=["+pw"], keys=["lock:*"], categories=["+@all"])
    url = f"redis://some:pw@127.0.0.1:{server.port}"
    assert doctor(url, "--name=lock:doctor", ignore=(*QUIET, "count")) == (0, [])
    code, found = doctor(url, ignore=(*QUIET, "count"))
    assert code == 2
    assert ("trial", "wrong", name(server)) in found


@pytest.mark.parametrize(
    "missing, level", [("set", "wrong"), ("eval", "wrong"), ("pexpire", "warning"), ("pttl", "warning")]
)
def test_rights_that_are_missing_are_found_without_a_trial(doctor, missing, level):
    server = Server(ServerKind.REDIS82, password="pw")
    try:
        server.admin.acl_setuser(
            "most", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=[f"-{missing}"]
        )
        url = f"redis://most:pw@127.0.0.1:{server.port}"
        code, found = doctor(url, "--read-only", ignore=(*QUIET, "count"))
    finally:
        server.stop()
    assert (code, found) == (2 if level == "wrong" else 1, [("rights", level, name(server))])


def test_commands_that_the_provider_took_away(spawn, doctor):
    server = spawn("--rename-command", "EVAL", "", "--rename-command", "EVALSHA", "")
    code, found = doctor(server.url, "--read-only", ignore=(*QUIET, "count", "rights"))
    assert (code, found) == (2, [("commands", "wrong", name(server))])


def test_config_that_is_denied(spawn, doctor):
    server = spawn("--rename-command", "CONFIG", "", aof=True)
    code, found = doctor(server.url, ignore=("count", "version", "latency"))
    assert (code, found) == (1, [("persistence", "unknown", name(server))])


def test_a_certificate_that_nobody_verifies(masters, fronts, authority, doctor):
    front = fronts(masters(1)[0], authority.server)
    ignore = (*QUIET, "count")
    assert doctor(f"{front.url}?ssl_ca_certs={authority.ca}", ignore=ignore) == (0, [])
    code, found = doctor(f"{front.url}?ssl_cert_reqs=none", ignore=ignore)
    assert (code, found) == (2, [("tls", "wrong", name(front))])


# -- what no server of this machine is, by the facts alone -------------------------------------------------------------


def judged(check, *masters, ttl=10_000):
    options = argparse.Namespace(ttl=ttl, ignore=[each for each in checks.CHECKS if each != check])
    return [(each.level, each.master) for each in checks.judge(masters, options) if each.level != "ok"]


@pytest.mark.parametrize("offset, level", [(500, None), (-5_000, "warning"), (3_600_000, "wrong")])
def test_a_clock_that_is_off(offset, level):
    good = [Facts("a", offset_ms=1.0), Facts("b", offset_ms=-3.0)]
    bad = Facts("c", offset_ms=float(offset))
    assert judged("clock", *good, bad) == ([(level, "c")] if level else [])


def test_it_is_our_clock_that_is_off():
    assert judged("clock", *(Facts(name, offset_ms=7_200_000.0) for name in "abc")) == [("wrong", "this machine")]


def test_a_clock_is_not_blamed_for_a_slow_network():
    assert judged("clock", Facts("a", offset_ms=1_500.0, offset_error_ms=1_600.0), Facts("b", offset_ms=0.0)) == []


@pytest.mark.parametrize(
    "product, version, end",
    [
        ("Redis", "6.2.14", date(2025, 2, 28)),
        ("Redis", "5.0.3", date.min),
        ("Redis", "99.0.0", None),
        ("Valkey", "8.0.1", date(2027, 9, 15)),
        ("Redis", "odd", None),
    ],
)
def test_versions_end(product, version, end):
    assert checks.end_of_life(product, version) == end


@pytest.mark.parametrize(
    "facts, found",
    [
        (Facts("a", host="10.0.0.1", login=True), [("warning", "a")]),
        (Facts("a", host="redis.example"), [("warning", "a")]),
        (Facts("a", host="127.0.0.1", login=True), []),
        (Facts("a", host="localhost"), []),
        (Facts("a", host=None), []),
        (Facts("a", host="10.0.0.1", tls=True), []),
    ],
)
def test_passwords_in_the_clear(facts, found):
    assert judged("tls", facts) == found


def test_redlock_py_beside_this(tmp_path, monkeypatch):
    other = tmp_path / "redlock_py-1.0.8.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: redlock-py\nVersion: 1.0.8\n")
    assert judged("installed") == []
    monkeypatch.syspath_prepend(tmp_path)
    assert judged("installed") == [("wrong", None)]


# -- how it says so ----------------------------------------------------------------------------------------------------


def test_the_report_is_for_people(masters, capsys, monkeypatch):
    servers = masters(3)
    servers[2].kill()
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *places(servers)])
    assert caught.value.code == 2
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["MASTER", "SERVER", "ROLE", "AOF", "MEMORY", "FULL", "CLOCK", "P50", "P99"]
    first = lines.index("")
    assert lines[first + 1].startswith(f"wrong reach: {name(servers[2])} cannot be asked: ")
    assert lines[first + 2].startswith("    why: ")
    assert lines[first + 3].startswith("    do:  ")
    # What is so with several masters is said once.
    assert f"warning persistence: {name(servers[0])}, {name(servers[1])} has no append-only file" in lines
    assert "\x1b" not in out


def test_a_check_that_is_not_there_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "redis://localhost:1", "--ignore", "everything"])
    assert caught.value.code == 2
    assert "no check 'everything'; there are reach, count" in capsys.readouterr().err
