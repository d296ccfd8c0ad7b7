"""Replies that a real server cannot be brought to give on demand: late, lost, unasked for, malformed.

The numbers (H6 ...) name the hazard that a test reproduces.
"""

from __future__ import annotations

import time

import pytest

from redlock import Lock, QuorumUnavailable, Redlock
from redlock._redlock import close_unused
from support.locks import PROMPT, TTL, manager
from support.scripted import NIL, OK, PUSH, Act, Late
from support.servers import wait_until

pytestmark = pytest.mark.once

ERRORS = {
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "CLUSTERDOWN": b"-CLUSTERDOWN The cluster is down\r\n",
    "MOVED": b"-MOVED 3999 127.0.0.1:6381\r\n",
    "ASK": b"-ASK 3999 127.0.0.1:6381\r\n",
    "MISCONF": b"-MISCONF Redis is configured to save RDB snapshots, but it is unable to persist on disk.\r\n",
    "READONLY": b"-READONLY You can't write against a read only replica.\r\n",
    "MASTERDOWN": b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    "NOREPLICAS": b"-NOREPLICAS Not enough good replicas to write.\r\n",
    "OOM": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "BUSY": b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n",
    "TRYAGAIN": b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
    "NOPERM": b"-NOPERM this user has no permissions to run the 'set' command\r\n",
    "NOAUTH": b"-NOAUTH Authentication required.\r\n",
    "unknown": b"-ERR something new\r\n",
}
# What looks like success to a client that does not compare with an exact OK.
NOT_OK = {
    "queued": b"+QUEUED\r\n",
    "lower case": b"+ok\r\n",
    "longer": b"+OK then\r\n",
    "pong": b"+PONG\r\n",
    "one": b":1\r\n",
    "zero": b":0\r\n",
    "bulk one": b"$1\r\n1\r\n",
    "empty bulk": b"$0\r\n\r\n",
    "array": b"*1\r\n+OK\r\n",
    "empty array": b"*0\r\n",
    "nil array": b"*-1\r\n",
    "negative": b"$-7\r\n",
    "true": b"#t\r\n",
}
# No RESP at all, or more than anyone would want to hold in memory.
GARBAGE = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "binary": bytes(range(1, 255)),
    "endless line": b"+" + b"x" * 200_000,
    "huge bulk": b"$9223372036854775807\r\n",
    "half a gigabyte": b"$536870912\r\nx",
    "huge array": b"*2147483647\r\n",
    "deep": b"*1\r\n" * 100_000,
}


def on(name, *replies, after=None):
    """A script that gives these replies to the commands of a name, in turn, then ``after`` for ever."""
    left = list(replies)
    return lambda command: (left.pop(0) if left else after) if command.name == name else None


def always(name, reply):
    return lambda command: reply if command.name == name else None


def prompt(call):
    """The result of a call that must not hang."""
    start = time.monotonic()
    result = call()
    assert time.monotonic() - start < PROMPT
    return result


def releases(server):
    """The releases that a server received, as (connection, key under which, value)."""
    return [(command.connection, *command.words[3:5]) for command in server.named("EVAL", "EVALSHA")]


# -- what is a vote ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ERRORS if name != "MOVED"])  # which is followed
def test_an_error_is_no_vote_and_is_said(scripted, caplog, name):
    server = scripted(always("SET", ERRORS[name]))
    assert prompt(lambda: manager([server]).lock("r", TTL)) is False
    word = ERRORS[name].split()[0 if name != "unknown" else 1].lstrip(b"-").decode()
    assert word in caplog.text


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_one_master_of_three_is_outvoted(scripted, name):
    servers = [scripted(always("SET", ERRORS[name])), scripted(), scripted()]
    dlm = manager(servers, retry_count=1)
    lock = dlm.lock("r", TTL)
    assert lock
    dlm.unlock(lock)
    wait_until(lambda: not any(server.keys for server in servers), 2)


@pytest.mark.parametrize("text", [b"refused", b"granted", b"not asked", b"not awaited"])
def test_an_error_that_reads_like_a_vote_is_a_failure(scripted, text):
    servers = [scripted(always("SET", b"-" + text + b"\r\n")) for _ in range(3)]
    with pytest.raises(QuorumUnavailable) as caught:
        manager(servers).acquire("r", TTL, timeout=0)
    said = [said for _, said in caught.value.failed]
    assert len(said) >= 2  # the third need not be waited for
    assert set(said) == {text.decode()}


@pytest.mark.parametrize("text", [b"released", b"absent"])
def test_an_error_that_reads_like_a_release_is_reported(scripted, caplog, text):
    server = scripted(lambda command: b"-" + text + b"\r\n" if command.name in {"EVAL", "EVALSHA"} else None)
    manager([server]).unlock(Lock(TTL, "r", b"key"))
    assert f"Error unlocking resource r in server {server.host}:{server.port}/0: {text.decode()}" in caplog.text


@pytest.mark.parametrize("name", NOT_OK)
def test_only_an_exact_ok_is_a_vote(scripted, name):
    server = scripted(always("SET", NOT_OK[name]))
    assert prompt(lambda: manager([server]).lock("r", TTL)) is False


@pytest.mark.parametrize("name", GARBAGE)
@pytest.mark.parametrize("where", ["reply", "greeting"])
def test_garbage_is_no_vote_and_no_hang(scripted, name, where):
    server = scripted(greeting=GARBAGE[name]) if where == "greeting" else scripted(always("SET", GARBAGE[name]))
    assert prompt(lambda: manager([server], retry_count=2).lock("r", TTL)) is False


@pytest.mark.parametrize("name", ["http", "binary", "huge bulk", "huge array"])
def test_garbage_of_one_master_of_three_is_outvoted(scripted, name):
    servers = [scripted(always("SET", GARBAGE[name])), scripted(), scripted()]
    dlm = manager(servers, retry_count=1)
    for _ in range(3):
        lock = prompt(lambda: dlm.lock("r", TTL))
        assert lock
        prompt(lambda lock=lock: dlm.unlock(lock))


@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET, Act.SILENCE])
def test_a_connection_that_ends_or_says_nothing_is_no_vote(scripted, act):
    server = scripted(always("SET", act))
    assert prompt(lambda: manager([server]).lock("r", TTL)) is False


@pytest.mark.parametrize("name", [*ERRORS, *GARBAGE])
def test_an_error_while_logging_in_sets_nothing(scripted, name):
    """The first reply to AUTH, HELLO or SELECT is an error: nobody logs on any further."""
    reply = {**ERRORS, **GARBAGE}[name]
    server = scripted(lambda command: reply if command.name in {"AUTH", "HELLO", "SELECT"} else None)
    dlm = Redlock([f"redis://user:password@{server.host}:{server.port}/1"], 2, 0.01)
    assert prompt(lambda: dlm.lock("r", TTL)) is False
    assert server.keys == {}


# How servers and proxies that know less say so.
REFUSALS = {
    "name": b"-ERR 'HELLO'\r\n",
    "unknown": b"-ERR unknown command 'HELLO', with args beginning with: '3'\r\n",
    "unsupported": b"-ERR unsupported command\r\n",
    "not allowed": b"-ERR command not allowed\r\n",
    "not support": b"-ERR hello: not support\r\n",
    "no protocol": b"-NOPROTO unsupported protocol version\r\n",
    "close": Act.CLOSE,
}


def serves(server, query=""):
    """A manager of this server locks and unlocks, with one try each."""
    dlm = Redlock([server.url + query], 1)
    for _ in range(2):
        lock = prompt(lambda: dlm.lock("r", TTL))
        if not lock or server.keys.get(b"r") != lock.key:
            return False
        prompt(lambda lock=lock: dlm.unlock(lock))
        wait_until(lambda: not server.keys, 2)
    return True


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("query", ["", "?protocol=2", "?client_name=locker"])
def test_a_server_that_refuses_hello_is_spoken_to_without(scripted, name, query):
    assert serves(scripted(always("HELLO", REFUSALS[name])), query)


@pytest.mark.parametrize("reply", [b"-ERR wrong number of keys\r\n", Act.CLOSE])
@pytest.mark.parametrize("hello", [None, Act.CLOSE, REFUSALS["unsupported"]])
def test_a_right_to_eval_that_cannot_be_asked_for_is_assumed(scripted, reply, hello):
    server = scripted(
        lambda command: (
            reply if command.name == "EVAL" and command.words[2] == b"0" else hello if command.name == "HELLO" else None
        )
    )
    assert serves(server)


def test_a_proxy_that_hangs_up_at_all_that_it_does_not_pass_on(scripted):
    def script(command):
        passes = command.name in {"SET", "GET", "PING", "EVALSHA"} or command.words[2:3] == (b"1",)
        return None if passes else Act.CLOSE

    server = scripted(script)
    assert serves(server)
    connections = server.connections
    assert serves(server)
    assert server.connections <= connections + 3


@pytest.mark.parametrize("code", [b"NOAUTH", b"WRONGPASS", b"NOPERM"])
def test_a_refused_login_is_no_want_of_resp3(scripted, caplog, code):
    server = scripted(always("HELLO", b"-" + code + b" no\r\n"))
    assert prompt(lambda: manager([server], retry_count=1).lock("r", TTL)) is False
    assert server.keys == {}
    assert {command.name for command in server.commands} == {"HELLO"}
    assert f"refused the login: {code.decode()} no" in caplog.text


def test_guards_do_without_no_question(scripted):
    server = scripted(lambda command: Act.CLOSE if command.name in {"HELLO", "INFO"} else None)
    dlm = Redlock([server.url], 1, restart_guard=True)
    assert prompt(lambda: dlm.lock("r", TTL)) is False
    assert server.keys == {}


@pytest.mark.parametrize("reply", [*ERRORS.values(), *NOT_OK.values(), b"*3\r\n:1\r\n:2\r\n", Act.CLOSE, Act.SILENCE])
def test_unlock_raises_for_no_reply(scripted, reply):
    server = scripted(lambda command: reply if command.name in {"EVAL", "EVALSHA"} else None)
    dlm = manager([server])
    assert prompt(lambda: dlm.unlock(Lock(0, "r", b"k" * 22))) is None


def test_noscript_is_answered_with_eval(scripted):
    server = scripted(always("EVALSHA", b"-NOSCRIPT No matching script. Please use EVAL.\r\n"))
    dlm = manager([server])
    for _ in range(2):
        dlm.unlock(dlm.lock("r", TTL))
        assert server.keys == {}


@pytest.mark.parametrize("denied", ["EVALSHA", "SCRIPT"])
def test_a_user_without_evalsha_still_releases(scripted, denied):
    error = b"-NOPERM this user has no permissions to run the '%s' command\r\n" % denied.lower().encode()
    server = scripted(always(denied, error))
    dlm = manager([server])
    lock = dlm.lock("r", TTL)
    assert lock
    dlm.unlock(lock)
    assert server.keys == {}


# -- keys and releases -------------------------------------------------------------------------------------------------


def test_h6_each_attempt_has_a_key_of_its_own(scripted):
    """H6: with one key for all attempts, a late release of the first deletes what the second has set."""
    server = scripted(always("SET", NIL))
    assert manager([server], retry_count=5, retry_delay=0.001).lock("r", TTL) is False
    keys = [command.words[2] for command in server.named("SET")]
    assert len(keys) == len(set(keys)) == 5


@pytest.mark.parametrize("reply", [Act.SILENCE, ERRORS["BUSY"], Late(0.7, OK)])
def test_h9_what_was_not_refused_is_released_on_the_same_connection(scripted, reply):
    """H9: a release on another connection can overtake its SET; on the same one it cannot."""
    servers = [scripted(always("SET", reply)), scripted(always("SET", reply)), scripted()]
    dlm = manager(servers, retry_count=2)
    assert prompt(lambda: dlm.lock("r", TTL)) is False
    for server in servers:
        wait_until(lambda server=server: _all_released(server), 3, "a release for every SET")


def _all_released(server):
    sets = {(command.connection, *command.words[1:3]) for command in server.named("SET")}
    return sets <= set(releases(server))


def test_h10_every_master_is_released_after_a_lost_vote(scripted):
    """H10: one grants, two refuse: the one that granted is soon free again."""
    servers = [scripted(), scripted(always("SET", NIL)), scripted(always("SET", NIL))]
    assert manager(servers, retry_count=1).lock("r", TTL) is False
    wait_until(lambda: not servers[0].keys, 2)


def test_h60_after_a_refusal_one_designated_master_is_asked_first(scripted):
    """H60: contenders who all ask everyone at once split the vote; the first attempt is one round trip to all."""
    servers = [scripted(always("SET", NIL)) for _ in range(5)]
    assert manager(servers, retry_count=4, retry_delay=0.001).lock("r", TTL) is False
    *others, first = sorted(len(server.named("SET")) for server in servers)
    assert first == 4
    assert max(others) == 1
    assert sum(others) >= 2  # those connected to when the first attempt was decided


def test_h60_the_designated_master_is_the_same_for_everyone(scripted):
    """H60: or it would decide nothing. Two managers, the same resource."""
    servers = [scripted(always("SET", NIL)) for _ in range(5)]
    for _ in range(2):
        assert manager(servers, retry_count=4, retry_delay=0.001).lock("r", TTL) is False
    *others, first = sorted(len(server.named("SET")) for server in servers)
    assert first == 8
    assert max(others) <= 2


def test_h60_the_designated_masters_yes_brings_the_others_in(scripted):
    """H60: refused by all once, then granted by all."""
    servers = [scripted(on("SET", NIL)) for _ in range(3)]
    lock = manager(servers, retry_count=10, retry_delay=0.001).lock("r", TTL)
    assert lock
    wait_until(lambda: sum(server.keys == {b"r": lock.key} for server in servers) >= 2)


# -- late and lost replies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("between", [b"", PUSH], ids=["alone", "with a push"])
def test_h13_late_reply_is_never_read_as_the_next_answer(scripted, protocol, between):
    """H13: FIRST is answered OK after its deadline; SECOND is held by another, and stays so."""
    if between and protocol == 2:
        between = b""  # RESP2 has no pushes on such a connection
    late = [Late(0.7, between + OK)]

    def script(command):
        if command.name != "SET":
            return None
        return late.pop() if command.words[1] == b"FIRST" and late else NIL

    server = scripted(script)
    dlm = Redlock([f"{server.url}?protocol={protocol}"], 1)
    assert dlm.lock("FIRST", TTL) is False
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert dlm.lock("SECOND", TTL) is False


def test_h13_late_release_is_never_read_as_a_grant(scripted):
    """H13, the other way round: a release answered late, then a SET that is refused."""
    server = scripted(lambda command: {"EVAL": Late(0.7, OK), "EVALSHA": Late(0.7, OK), "SET": NIL}.get(command.name))
    dlm = manager([server], retry_count=1)
    prompt(lambda: dlm.unlock(Lock(0, "r", b"k" * 22)))
    for _ in range(3):
        assert prompt(lambda: dlm.lock("r", TTL)) is False


def test_h13_pushes_between_replies_are_not_replies(scripted):
    """H13: pushes before and after each answer, on RESP3."""
    server = scripted(lambda command: [PUSH, NIL, PUSH] if command.words[:2] == (b"SET", b"held") else None)
    dlm = Redlock([f"{server.url}?protocol=3"], 1)
    for _ in range(3):
        lock = dlm.lock("free", TTL)
        assert lock
        assert dlm.lock("held", TTL) is False
        dlm.unlock(lock)
        assert server.keys == {}


def test_h15_an_unasked_greeting_is_never_an_answer(scripted):
    """H15: everything after it would be off by one: the refused name would be granted with the free one's OK."""
    server = scripted(always("SET", NIL), greeting=b"-ERR max number of clients reached\r\n")
    granting = scripted(
        lambda command: NIL if command.words[:2] == (b"SET", b"held") else None, greeting=ERRORS["unknown"]
    )
    for place in (server, granting):
        dlm = manager([place], retry_count=1)
        for _ in range(4):
            prompt(lambda dlm=dlm: dlm.lock("free", TTL))
            assert prompt(lambda dlm=dlm: dlm.lock("held", TTL)) is False


@pytest.mark.parametrize("extra", [OK, NIL, b":1\r\n", ERRORS["unknown"]], ids=["ok", "nil", "one", "error"])
@pytest.mark.parametrize("name", ["HELLO", "SET", "EVAL", "EVALSHA", "INFO"])
@pytest.mark.parametrize("position", ["before", "after"])
def test_h15_one_reply_too_many_is_never_the_next_answer(scripted, extra, name, position):
    """H15, H13: a server, or a proxy, that answers twice at once.

    Of one that does so only when the next command is out already, nobody could tell.
    """
    server = scripted()

    def script(command):
        held = command.words[:2] == (b"SET", b"held")
        answer = NIL if held else server._store.answer(command)
        if command.name != name or held:
            return answer
        return extra + answer if position == "before" else answer + extra

    server.script = script
    dlm = manager([server], retry_count=1)
    for _ in range(4):
        lock = prompt(lambda: dlm.lock("free", TTL))
        assert prompt(lambda: dlm.lock("held", TTL)) is False
        if lock:
            prompt(lambda lock=lock: dlm.unlock(lock))


def test_h12_nothing_is_sent_twice_behind_the_callers_back(scripted):
    """H12: the SET was obeyed and the connection cut; sent again, it would be refused by its own key."""
    server = scripted()
    obeyed = []

    def script(command):
        if command.name == "SET" and not obeyed:
            obeyed.append(command)
            server._store.answer(command)
            return Act.RESET
        return None

    server.script = script
    dlm = manager([server], retry_count=3, retry_delay=0.01)
    lock = dlm.lock("r", TTL)
    if lock is False:
        wait_until(lambda: not server.keys, 2)
    else:
        assert server.keys == {b"r": lock.key}


def test_h3_a_slow_login_counts_against_validity(scripted):
    """H3: the masters are logged in to before they can be asked."""
    server = scripted(lambda command: Late(0.2, OK) if command.name == "SELECT" else None)
    locks = []
    for number in range(5):
        close_unused()
        locks.append(Redlock([f"{server.url}/1"], 1).lock(f"r{number}", TTL))
    assert any(locks)
    assert all(lock.validity <= TTL - 200 - (TTL // 100 + 2) for lock in locks if lock)


def test_the_deadline_is_the_rounds_and_not_each_masters(scripted):
    """Five silent masters cost as much as one."""
    servers = [scripted(always("SET", Act.SILENCE)) for _ in range(5)]
    assert prompt(lambda: manager(servers).lock("r", TTL)) is False


def test_a_healthy_master_is_not_disconnected(scripted):
    """One connection serves any number of calls."""
    server = scripted()
    dlm = manager([server])
    for _ in range(50):
        dlm.unlock(dlm.lock("r", TTL))
    assert server.connections == 1
    assert {command.connection for command in server.commands} == {1}


def test_a_refused_lock_costs_no_connection(scripted):
    server = scripted(always("SET", NIL))
    dlm = manager([server], retry_count=20, retry_delay=0.001)
    assert dlm.lock("r", TTL) is False
    assert server.connections == 1


def test_the_bytes_of_a_lock(scripted):
    """The key in Redis is exactly the resource, its value exactly the lock's key, and nothing else is asked."""
    server = scripted()
    dlm = manager([server])
    lock = dlm.lock("name", 12_345)
    (command,) = server.named("SET")
    assert command.words[:3] == (b"SET", b"name", lock.key)
    options = [word.upper() for word in command.words[3:]]
    assert sorted(options) == [b"12345", b"NX", b"PX"]
    assert options[options.index(b"PX") + 1] == b"12345"
    dlm.unlock(lock)
    assert releases(server)[-1][1:] == (b"name", lock.key)
    asked = {command.name for command in server.commands}
    assert asked <= {"SET", "EVAL", "EVALSHA", "HELLO", "INFO", "TIME", "ROLE", "COMMAND", "ACL"}
    assert "CLIENT" not in asked
