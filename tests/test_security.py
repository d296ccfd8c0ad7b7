"""Secrets, rights and what is said to a server: what docs/security.md promises, on real servers.

`test_compat_secrets.py` looks for a password wherever redlock-py showed it; this looks wherever else there is.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redlock import Lock, Redlock
from support.locks import PROMPT, TTL, nothing_left
from support.programs import Program
from support.servers import ServerKind, wait_until
from support.tls import TlsFront

USER, PASSWORD = "canary-user-41c7", "canary-word-9be2"
SECRETS = (USER, PASSWORD)

FORGED = Lock(0, "lock:a", b"k" * 22)


@pytest.fixture
def said(caplog):
    """All that anybody logged, with tracebacks and the values of their variables."""
    caplog.set_level(logging.DEBUG)

    def text():
        lines = []
        for record in caplog.records:
            lines.append(f"{record.name} {record.getMessage()} {record.args!r}")
            if record.exc_info and record.exc_info[1]:
                lines.append(with_locals(record.exc_info[1]))
        return "\n".join(lines)

    return text


def with_locals(error):
    """The traceback as error reporters send it: with the variables of every frame but this module's own."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    chain = [told]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    lines = [f"{frame.filename} {frame.locals}" for each in chain for frame in each.stack if frame.filename != __file__]
    return "\n".join([*lines, *(str(each) for each in chain), repr(error), repr(pickle.dumps(error))])


def url_of(place, scheme="redis", user=USER, password=PASSWORD):
    return f"{scheme}://{user}:{password}@{place.host}:{place.port}"


def assert_secret(*texts):
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text], text


# -- secrets -----------------------------------------------------------------------------------------------------------


def restrict(server):
    server.admin.acl_setuser(USER, enabled=True, passwords=[f"+{PASSWORD}"], keys=["lock:*"], commands=["+@all"])


def change_password(server):
    server.admin.acl_setuser(USER, enabled=True, passwords=["+another"], keys=["*"], commands=["+@all"])


def stop(server):
    restrict(server)
    server.kill()


STATES = {"right": restrict, "wrong password": change_password, "unknown user": lambda _: None, "down": stop}


@pytest.mark.every_kind
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("subclass", [False, True], ids=["engine", "client's own methods"])
def test_a_login_is_never_shown(masters, said, recwarn, capfd, state, subclass):
    (server,) = masters(1)
    STATES[state](server)
    options = "?encoding=latin-1" if subclass else ""
    dlm = Redlock([url_of(server) + options], 1)
    lock = dlm.lock("lock:a", TTL)
    assert bool(lock) is (state == "right")
    dlm.unlock(lock or FORGED)
    with pytest.raises(AttributeError) as caught:
        dlm.unlock(False)
    shown = [repr(dlm), repr(dlm._masters.engine), repr(pickle.dumps(lock)), with_locals(caught.value)]
    assert_secret(said(), *shown, *capfd.readouterr(), *(str(warning.message) for warning in recwarn))
    assert "lock:a" in said() or state == "right"  # there was something to find it in
    dlm.servers[0].close()


BAD = [
    [f"redis://{USER}:{PASSWORD}@h:port"],
    [f"redis://{USER}:{PASSWORD}@h?cat=hog"],
    [{"host": "h", "username": USER, "password": PASSWORD, "cat": "hog"}],
    [{"host": "h", "username": USER, "password": PASSWORD, "ssl": True, "ssl_ca_certs": "/nowhere.pem"}],
    [f"redis://{USER}:{PASSWORD}@h", f"redis://{USER}:{PASSWORD}@h"],
]


@pytest.mark.parametrize("items", BAD, ids=range(len(BAD)))
def test_a_login_is_not_in_the_variables_of_a_traceback(items):
    """Error reporters, pytest and rich send the variables of every frame; the caller's own are the caller's."""
    with pytest.raises(Warning) as caught:
        Redlock(items)
    assert_secret(with_locals(caught.value))


def test_a_login_is_not_in_a_dump_of_all_threads(masters):
    """What a crash leaves on standard error: while a call waits for a server that hangs."""
    (server,) = masters(1)
    restrict(server)
    with Program(
        """
        import faulthandler
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        dlm = Redlock([sys.argv[1]], 1000)
        say("waiting")
        dlm.lock("lock:a", 10_000)
        """,
        url_of(server),
    ) as program:
        server.freeze()
        assert program.hear() == "waiting"
        time.sleep(0.5)  # now it does
        program.interrupt(faulthandler_signal())
        program.interrupt()
        _, out, err = program.finish()
    assert "_manager.py" in err
    # The program's own argument is this test's.
    assert_secret(out, err)


def faulthandler_signal():
    import signal  # noqa: PLC0415 - not on Windows

    return signal.SIGUSR1


def test_a_login_is_not_in_the_arguments_of_the_command(masters):
    """Every user of a machine can read a process's arguments; only its own user, its environment."""
    (server,) = masters(1)
    restrict(server)
    server.admin.set("lock:a", "held")
    command = [sys.executable, "-m", "redlock", "lock", "lock:a", "10000", "--retry-count=-1"]
    with subprocess.Popen(
        command, env={**os.environ, "REDLOCK_URLS": url_of(server)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: any(client["user"] == USER for client in server.connections()), what="logged in")
        arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
        names = [path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/comm")]
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert "lock:a" in arguments
    assert_secret(arguments, *names, out.decode(), err.decode())


# -- TLS ---------------------------------------------------------------------------------------------------------------


def test_a_login_is_not_sent_to_a_server_that_is_not_trusted(masters, said, authority, other_authority):
    (server,) = masters(1)
    restrict(server)
    front = TlsFront(server, other_authority.server)
    try:
        dlm = Redlock([f"{url_of(front, 'rediss')}?ssl_ca_certs={authority.ca}"], 2)
        assert dlm.lock("lock:a", TTL) is False
    finally:
        front.stop()
    assert "UnknownIssuer" in said()
    assert front.accepted == 0
    assert_secret(said())


def test_a_login_is_not_sent_in_the_clear_where_tls_was_asked_for(masters, through, said):
    (server,) = masters(1)
    restrict(server)
    proxy = through(server)
    dlm = Redlock([url_of(proxy, "rediss")], 2)
    assert dlm.lock("lock:a", TTL) is False
    assert proxy.sent > 0
    assert_secret(said(), *(bytes(link.sent).decode("latin-1") for link in proxy.links))


def test_a_private_key_is_not_quoted(tmp_path):
    broken = tmp_path / "client.pem"
    broken.write_text(f"-----BEGIN PRIVATE KEY-----\n{PASSWORD}\n{PASSWORD}=\n-----END PRIVATE KEY-----\n")
    for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
        with pytest.raises(Warning) as caught:
            Redlock([{"host": "h", "ssl": True, name: str(broken)}])
        assert_secret(with_locals(caught.value))


# -- keys of locks -----------------------------------------------------------------------------------------------------


def fail_to_release(server):
    server.admin.config_set("min-replicas-to-write", 1)


def replace_by_a_hash(server):
    server.admin.delete("lock:a")
    server.admin.hset("lock:a", "field", "value")


@pytest.mark.every_kind
@pytest.mark.parametrize("spoil", [fail_to_release, replace_by_a_hash])
def test_the_key_of_a_lock_is_not_logged(masters, said, spoil):
    """Who knows the key can release the lock."""
    (server,) = masters(1)
    dlm = Redlock([server.url], 1)
    lock = dlm.lock("lock:a", TTL)
    spoil(server)
    assert dlm.lock("lock:b", TTL) is False or spoil is replace_by_a_hash
    dlm.unlock(lock)
    assert "Error unlocking resource lock:a" in said() or server.admin.exists("lock:a") == 0
    assert lock.key.decode() not in said()


def test_a_server_that_quotes_its_arguments_is_not_quoted(scripted, said):
    """`-ERR unknown command`, as Redis words it, shows the first arguments: the key of the lock among them."""

    def script(command):
        if command.name not in ("EVALSHA", "EVAL") or command.words[2] == b"0":
            return None
        quoted = b" ".join(b"'%s'" % word for word in command.words[1:])
        return b"-ERR unknown command '%s', with args beginning with: %s\r\n" % (command.words[0], quoted)

    dlm = Redlock([scripted(script).url], 1)
    lock = dlm.lock("lock:a", TTL)
    dlm.unlock(lock)
    assert "unknown command" in said()
    assert lock.key.decode() not in said()


LINES = b"ERR a\r\nCRITICAL forged\nanother\x1b[2J"
UNRULY = {
    "lines": b"!%d\r\n%s\r\n" % (len(LINES), LINES),
    "pages": b"-ERR " + b"x" * 50_000 + b"\r\n",
    "no RESP": b"!3\r\nERR and more\r\n",
}


@pytest.mark.parametrize("text", UNRULY)
def test_a_server_writes_no_lines_of_its_own_into_the_log(scripted, caplog, text):
    dlm = Redlock([scripted(lambda command: UNRULY[text] if command.name in ("SET", "EVALSHA") else None).url], 1)
    assert dlm.lock("lock:a", TTL) is False
    dlm.unlock(FORGED)
    messages = [record.getMessage() for record in caplog.records]
    assert messages
    assert [message for message in messages if not message.isprintable() or len(message) > 600] == []


# -- rights ------------------------------------------------------------------------------------------------------------

DOCUMENT = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
RULES = {
    "+set +get +del +eval": list(ServerKind),
    "+set +get +del +eval +evalsha": list(ServerKind),
    "+set +delifeq": [ServerKind.VALKEY91],
}


def rights_user(server, rights):
    server.admin.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", "~lock:*", *rights.split())
    server.admin.acl_log_reset()
    server.admin.config_resetstat()
    return Redlock([url_of(server)], 1)


def denied(server):
    """What stands in the ACL LOG: command and number of times."""
    return {entry["object"]: int(entry["count"]) for entry in server.admin.acl_log()}


def test_the_documented_rights_are_those_tested():
    documented = re.findall(r"ACL SETUSER locker on >password ~lock:\* (.*)", DOCUMENT)
    assert documented == list(RULES)


@pytest.mark.every_kind
@pytest.mark.parametrize("rights", RULES)
def test_the_documented_rights_suffice(masters, kind, said, rights):
    """And the ACL LOG, where operators look for intruders, gets no more than one line per command and connection."""
    if kind not in RULES[rights]:
        pytest.skip(f"{kind.label} has no DELIFEQ")
    (server,) = masters(1)
    dlm = rights_user(server, rights)
    for _ in range(20):
        lock = dlm.lock("lock:a", TTL)
        assert lock
        dlm.unlock(lock)
        assert server.keys() == set()
    assert "gives no vote" not in said()
    log = denied(server)
    assert set(log) == expected_denials(kind, rights)
    assert set(log.values()) == {1}


def expected_denials(kind, rights):
    """Cheaper ways that are tried once, and the question whether two masters are one server."""
    if rights == "+set +delifeq":
        return {"info", "time", "eval", ""}  # the last is the name on which DELIFEQ is tried
    words = set(rights.split())
    asked = {"+info", "+time", "+eval"} | ({"+delifeq"} if kind is ServerKind.VALKEY91 else set())
    return {word[1:] for word in (asked | {"+evalsha"}) - words}


@pytest.mark.every_kind
def test_the_documented_rights_suffice_for_leases(masters, kind, said):
    """To wait and be woken, to extend, to look; only Valkey's own way of releasing, a cheaper one, is refused."""
    (rights,) = re.findall(r"ACL SETUSER leaser on >password ~lock:\* (.*)", DOCUMENT)
    (server,) = masters(1)
    dlm = rights_user(server, rights)
    lease = dlm.acquire("lock:a", TTL)
    with ThreadPoolExecutor(1) as waiting:
        other = waiting.submit(dlm.acquire, "lock:a", TTL, timeout=PROMPT)
        wait_until(lambda: server.info("tracking_total_keys") > 0)
        lease.extend()
        assert dlm.locked("lock:a")
        lease.release()
        other.result().release()
    assert said() == ""
    Redlock([url_of(server)], 1, restart_guard=True, clock_guard=True).lock("lock:b", TTL)
    assert set(denied(server)) <= ({"delifeq"} if kind is ServerKind.VALKEY91 else set())


@pytest.mark.every_kind
@pytest.mark.parametrize("rights", ["+set +get", "+set +get +del", "+set +get +del +evalsha", "+set"])
def test_who_could_not_release_may_not_lock(masters, said, rights):
    """Found out on connecting: not one SET is granted that would hold its lock until it expires."""
    (server,) = masters(1)
    dlm = rights_user(server, rights)
    for _ in range(3):
        assert dlm.lock("lock:a", TTL) is False
    assert server.admin.info("commandstats").get("cmdstat_set", {"calls": 0})["calls"] == 0
    assert server.keys() == set()
    assert "could never be released" in said()


def test_a_database_needs_select(masters, said):
    (server,) = masters(1)
    for extra, works in (("", False), (" +select", True)):
        rights_user(server, "+set +get +del +eval" + extra)
        dlm = Redlock([f"{url_of(server)}/5"], 1)
        assert bool(dlm.lock("lock:a", TTL)) is works
    assert "select" in said()


@pytest.mark.every_kind
def test_another_pattern_is_refused_in_the_servers_words(masters, said):
    (server,) = masters(1)
    dlm = rights_user(server, "+set +get +del +eval")
    assert dlm.lock("other", TTL) is False
    assert "no permissions" in said().lower()
    assert PASSWORD not in said()


# Commands that providers take away: a server as it is told to start, and whether it can be locked.
FORBIDDEN = {
    "EVAL": [ServerKind.VALKEY91],
    "EVALSHA": list(ServerKind),
    "EVAL EVALSHA": [ServerKind.VALKEY91],
    "INFO": list(ServerKind),
    "CLIENT": list(ServerKind),
    "DELIFEQ": [ServerKind.VALKEY91],
    "DELIFEQ EVAL": [],
}


@pytest.mark.every_kind
@pytest.mark.parametrize("names", FORBIDDEN)
def test_commands_that_a_server_does_not_have(spawn, kind, said, names):
    """Either a lock is taken and released, or none is taken and the log says why."""
    if "DELIFEQ" in names and kind is not ServerKind.VALKEY91:
        pytest.skip(f"{kind.label} has no DELIFEQ to take away")
    server = spawn(*(word for name in names.split() for word in ("--rename-command", name, "")))
    dlm = Redlock([server.url], 1)
    lock = dlm.lock("lock:a", TTL)
    assert bool(lock) is (kind in FORBIDDEN[names])
    if lock:
        dlm.unlock(lock)
        assert lock.key.decode() not in said()
    else:
        assert "could never be released" in said()
    nothing_left([server])


# -- what is said to a server ------------------------------------------------------------------------------------------


def spoken(server, talk):
    """The commands a server got while ``talk`` went on, without those of its scripts."""
    with server.client().monitor() as monitor:
        talk()
        server.admin.echo("end")
        commands = []
        while (heard := monitor.next_command())["command"] != "ECHO end":
            if heard["client_type"] != "lua":
                commands.append(heard["command"])
    return commands


@pytest.mark.every_kind
def test_all_that_is_said_to_a_server_is_documented(masters, kind):
    (server,) = masters(1)
    dlm = Redlock([server.url], 1)

    def talk():
        for _ in range(2):
            dlm.unlock(dlm.lock("lock:a", TTL))

    names = [command.split()[0] for command in spoken(server, talk)]
    by_script = ["EVAL"], ["EVALSHA"]  # the first release of a connection brings the script
    release = (["DELIFEQ"], ["DELIFEQ"]) if kind is ServerKind.VALKEY91 else by_script
    assert names == ["HELLO", "HELLO", "EVAL", "INFO", "TIME", "SET", *release[0], "SET", *release[1]]
    for name in names:
        assert f"`{name}" in DOCUMENT


@pytest.mark.every_kind
def test_a_login_is_redacted_where_the_server_redacts(masters):
    """AUTH goes with HELLO, which every server since 6.2 keeps out of MONITOR and SLOWLOG."""
    (server,) = masters(1)
    restrict(server)
    dlm = Redlock([url_of(server)], 1)
    commands = spoken(server, lambda: dlm.lock("lock:a", TTL))
    assert commands[0].startswith("HELLO 3 AUTH")
    assert_secret(*commands)


# -- anything as a master ----------------------------------------------------------------------------------------------

QUICK = settings(
    max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
NAMES = [
    "host", "port", "db", "username", "password", "path", "unix_socket_path", "client_name", "protocol",
    "socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "ssl",
    "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_min_version",
    "ssl_check_hostname", "encoding", "encoding_errors", "decode_responses", "retry", "retry_on_timeout",
    "health_check_interval", "max_connections", "connection_pool", "credential_provider", "cat",
]  # fmt: skip
SCHEMES = ["redis", "rediss", "unix", "redis+unix", "REDIS", "http", "", "redis+sentinel"]
PIECES = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "localhost",
        "::1",
        "[::1]",
        "[",
        "0",
        "6379",
        "99999",
        "-1",
        "1e3",
        "nan",
        "inf",
        "%00",
        "%zz",
        "/",
        "@",
        "#",
        "?",
    ]
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), PIECES, st.binary(max_size=8),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.integers(0, 9), st.integers(), max_size=2),
)  # fmt: skip


@st.composite
def urls(draw):
    """Almost, and not always, a URL; with a login in it."""
    query = "&".join(f"{draw(st.sampled_from(NAMES))}={draw(PIECES)}" for _ in range(draw(st.integers(0, 3))))
    login = draw(st.sampled_from([f"{USER}:{PASSWORD}", f":{PASSWORD}", f"{USER}:{PASSWORD}:{PASSWORD}"]))
    place = "".join(draw(st.lists(PIECES, max_size=4)))
    return f"{draw(st.sampled_from(SCHEMES))}://{login}@{place}" + (f"?{query}" if query else "")


def refused_politely(item):
    """A manager, or a Warning or TypeError that says nothing of the login."""
    try:
        Redlock([item])
    except (Warning, TypeError) as error:
        assert_secret(str(error), repr(error), repr(error.__context__), repr(error.__cause__))


@QUICK
@given(urls() | st.text(max_size=40) | st.binary(max_size=40))
def test_any_text_is_a_master_or_a_warning(item):
    refused_politely(item)


@QUICK
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), VALUES, max_size=5))
def test_any_mapping_is_a_master_or_a_warning(item):
    refused_politely({"host": "h", **item, "username": USER, "password": PASSWORD})


@QUICK
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3), VALUES, VALUES)
def test_any_login_is_a_master_or_a_warning(item, username, password):
    refused_politely({"host": "h", **item, "username": username, "password": password})
