"""The command `redlock`, as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

import redlock
from redlock.cli import main
from support.command import WORDS, Command, command, environment, redlock_, urls
from support.locks import PROMPT, held, nothing_left
from support.scripted import NIL
from support.servers import wait_until

pytestmark = pytest.mark.once

TTL = "20000"


def test_lock_prints_the_key_and_unlock_takes_it(masters):
    servers = masters(3)
    code, out, err = redlock_(*urls(servers), "lock", "r", TTL)
    assert (code, err) == (0, "ok\n")
    assert re.fullmatch(r"[A-Za-z0-9]{22}\n", out)
    key = out.strip()
    assert held(servers).count(key.encode()) >= 2
    assert redlock_(*urls(servers), "unlock", "r", key) == (0, "", "ok\n")
    nothing_left(servers)


def test_quiet_hides_conflicts_and_nothing_worse(masters):
    servers = masters(3)
    code, out, err = redlock_(*urls(servers), "--quiet", "lock", "r", TTL)
    assert (code, len(out), err) == (0, 23, "")
    assert redlock_(*urls(servers), "--quiet", "lock", "r", TTL, "--retry-count=0") == (1, "", "")
    assert redlock_(*urls(servers), "--quiet", "run", "r", "--", "echo", "no") == (75, "", "")
    lost = "failed: no master held this lock with this key\n"
    assert redlock_(*urls(servers), "--quiet", "unlock", "r", "wrong") == (1, "", lost)
    servers[0].kill()
    servers[1].kill()
    for words in (
        ["lock", "r", TTL, "--retry-count=0"],
        ["run", "r", "--", "echo", "no"],
        ["unlock", "r", out.strip()],
    ):
        code, out, err = redlock_(*urls(servers), "--quiet", *words)
        assert (code, out) == (3, "")
        assert err.startswith("error: no majority of the masters answered\n  127.0.0.1:")
    code, out, err = redlock_("--quiet", "--redis", "http://h", "lock", "r", TTL)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")


def test_lock_held_by_another_is_1(masters):
    servers = masters(3)
    assert redlock_(*urls(servers), "lock", "r", TTL)[0] == 0
    assert redlock_(*urls(servers), "lock", "r", TTL, "--retry-count=1", "--retry-delay=10") == (1, "", "failed\n")


@pytest.mark.parametrize("words", [["lock", "r", TTL, "--retry-count=0"], ["unlock", "r", "key"]])
def test_an_outage_is_3_and_tells_each_master(masters, words):
    servers = masters(3)
    for server in servers[:2]:
        server.kill()
    code, out, err = redlock_(*urls(servers), *words)
    assert (code, out) == (3, "")
    lines = err.splitlines()
    assert lines[0] == "error: no majority of the masters answered"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [f"127.0.0.1:{server.port}/0" for server in servers]
    assert len(lines) == 4
    nothing_left(servers[2:])


def test_a_minority_down_is_no_failure(masters):
    servers = masters(3)
    servers[0].kill()
    code, out, err = redlock_(*urls(servers), "lock", "r", TTL)
    assert (code, err) == (0, "ok\n")
    assert redlock_(*urls(servers), "unlock", "r", out.strip()) == (0, "", "ok\n")
    nothing_left(servers[1:])


@pytest.mark.parametrize("key", ["wrong", "b'wrong'"])
def test_unlock_of_what_no_master_holds_is_1(masters, key):
    servers = masters(3)
    _, out, _ = redlock_(*urls(servers), "lock", "r", TTL)
    assert redlock_(*urls(servers), "unlock", "r", key) == (1, "", "failed: no master held this lock with this key\n")
    assert held(servers).count(out.strip().encode()) >= 2


@pytest.mark.parametrize("separator", [" ", ",", "\n", ", \n"])
def test_masters_from_the_environment(masters, separator):
    servers = masters(3)
    env = {"REDLOCK_URLS": separator.join(server.url for server in servers)}
    code, out, _ = redlock_("lock", "r", TTL, env=env)
    assert code == 0
    assert held(servers).count(out.strip().encode()) >= 2
    assert redlock_("unlock", "r", out.strip(), env=env)[0] == 0
    nothing_left(servers)


def test_redis_options_win_over_the_environment(masters):
    servers = masters(2)
    assert redlock_(*urls(servers[:1]), "lock", "r", TTL, env={"REDLOCK_URLS": servers[1].url})[0] == 0
    assert [server.keys() for server in servers] == [{b"r"}, set()]


@pytest.mark.parametrize("words", [["lock", "r", TTL], ["run", "r", "--", "echo", "no"], ["doctor"]])
def test_no_masters_is_a_usage_error(words):
    """A cron job without its environment would otherwise run on each machine, under a lock of its own localhost."""
    code, out, err = redlock_(*words)
    assert (code, out) == (2, "")
    assert err == "error: no masters: set REDLOCK_URLS, or give --redis URL for each of them, or --urls-file FILE\n"


@pytest.mark.parametrize("empty", ["", "  ", " , "])
def test_empty_redlock_urls_is_a_usage_error(empty):
    code, out, err = redlock_("lock", "r", TTL, env={"REDLOCK_URLS": empty})
    assert (code, out) == (2, "")
    assert err == "error: REDLOCK_URLS is set, but names no master\n"


@pytest.mark.parametrize("retries, tries", [("0", 1), ("2", 3)])
def test_retries_come_after_the_first_try(scripted, retries, tries):
    server = scripted(lambda command: NIL if command.name == "SET" else None)
    words = ["lock", "r", TTL, f"--retry-count={retries}", "--retry-delay=1"]
    assert redlock_("--redis", server.url, *words)[0] == 1
    assert len(server.named("SET")) == tries


def test_retry_count_of_minus_1_waits_for_ever(masters):
    servers = masters(3)
    _, out, _ = redlock_(*urls(servers), "lock", "r", TTL)
    with command(*urls(servers), "lock", "r", TTL, "--retry-count=-1", "--retry-delay=10") as waiting:
        time.sleep(1)
        assert waiting.poll() is None
        redlock_(*urls(servers), "unlock", "r", out.strip())
        key, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, err) == (0, "ok\n")
    assert held(servers).count(key.strip().encode()) >= 2


def test_waiting_for_ever_outlasts_an_outage(masters):
    (server,) = masters(1)
    server.kill()
    with command(*urls([server]), "lock", "r", TTL, "--retry-count", "-1", "--retry-delay=10") as waiting:
        time.sleep(1)
        assert waiting.poll() is None
        server.start()
        key, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, err) == (0, "ok\n")
    assert held([server]) == [key.strip().encode()]


def test_ctrl_c_while_waiting_is_130(scripted):
    server = scripted(lambda command: NIL if command.name == "SET" else None)
    with command("--redis", server.url, "lock", "r", TTL, "--retry-count=-1", "--retry-delay=60000") as waiting:
        wait_until(lambda: server.named("SET"))
        start = time.monotonic()
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=60) == ("", "")
    assert waiting.returncode == 130
    assert time.monotonic() - start < PROMPT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_waiting_leaves_no_key(masters, number):
    servers = masters(3)
    for server in servers[:2]:
        server.freeze()
    with command(*urls(servers), "lock", "r", "60s", "--retry-count=-1", "--retry-delay=10") as waiting:
        wait_until(lambda: servers[2].get("r"))
        waiting.send_signal(number)
        assert waiting.communicate(timeout=60) == ("", "")
    assert waiting.returncode == -number
    for server in servers[:2]:
        server.thaw()
    nothing_left(servers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_key_is_read_gives_the_lock_back(masters, number):
    servers = masters(3)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))  # until it is full
    os.set_blocking(writer, True)
    with Command([*WORDS, *urls(servers), "lock", "r", "60s"], env=environment(), stdout=writer) as process:
        wait_until(lambda: held(servers).count(None) <= 1)
        time.sleep(0.2)
        process.send_signal(number)
        assert process.wait(timeout=60) == -number
    nothing_left(servers)
    os.close(reader)
    os.close(writer)


def test_a_signal_that_is_ignored_ends_no_wait(masters):
    servers = masters(1)
    _, out, _ = redlock_(*urls(servers), "lock", "r", "60s")
    words = [*WORDS, *urls(servers), "lock", "r", "60s", "--retry-count=-1", "--retry-delay=10"]
    with Command(["nohup", *words], env=environment(), stdout=subprocess.PIPE, text=True) as waiting:
        wait_until(servers[0].connections)
        time.sleep(0.2)
        waiting.send_signal(signal.SIGHUP)
        redlock_(*urls(servers), "unlock", "r", out.strip())
        key, _ = waiting.communicate(timeout=60)
    assert (waiting.returncode, held(servers)) == (0, [key.strip().encode()])


def test_another_thread_may_call_it(masters):
    """One that gets no signals, and may set no handlers."""
    servers = masters(1)
    code = f"""
import sys, threading
from redlock.cli import main

def call():
    try:
        main(["--redis", {servers[0].url!r}, "lock", "r", "{TTL}"])
    except SystemExit as end:
        codes.append(end.code)

codes = []
thread = threading.Thread(target=call)
thread.start()
thread.join()
sys.exit(codes[0])
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, check=False, env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, held(servers)) == (0, [done.stdout.strip().encode()])


@pytest.mark.parametrize(
    "words, text",
    [
        ([], "COMMAND"),
        (["steal"], "invalid choice: 'steal'"),
        (["lock", "r"], "VALIDITY"),
        (["lock", "r", "soon"], "invalid duration: 'soon'"),
        (["lock", "r", "1s", "extra"], "unrecognized arguments: extra"),
        (["unlock", "r"], "KEY"),
        (["unlock", "r", "key", "--force"], "unrecognized arguments: --force"),
        (
            ["--redis", "redis://h", "--redis", "http://h", "lock", "r", "1s"],
            "error: master 2 of 2: its scheme is none of",
        ),
        (
            ["--redis", "redis://h:port", "lock", "r", "1000"],
            "error: master 1 of 1: its login, host or port cannot be read",
        ),
        (["--redis", "redis://h", "--redis", "redis://h", "lock", "r", "1000"], "listed twice"),
        (["--redis", "redis://h", "lock", "r", str(10**20)], "error: ttl must be at most"),
        (
            ["--redis", "redis://h", "lock", "r", "1000", "--retry-delay=-5"],
            "error: retry_delay must be seconds from 0",
        ),
    ],
)
def test_usage_errors_are_2(words, text):
    code, out, err = redlock_(*words)
    assert (code, out) == (2, "")
    assert text in err
    assert "Traceback" not in err


def test_version():
    assert redlock_("--version") == (0, f"redlock-rs {redlock.__version__}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["lock", "--help"], ["unlock", "--help"]])
def test_help(words):
    code, out, err = redlock_(*words)
    assert (code, err) == (0, "")
    assert out.startswith("usage: redlock ")


def test_help_tells_the_exit_codes_and_the_environment():
    _, out, _ = redlock_("--help")
    assert "3 if no majority of the masters answered" in out
    assert "REDLOCK_URLS" in out


def test_demo_reads_its_own_arguments():
    code, out, _ = redlock_("demo", "--help")
    assert code == 0
    assert "redlock demo" in out


def test_main_takes_arguments_and_always_exits(masters, capsys):
    (server,) = masters(1)
    with pytest.raises(SystemExit) as caught:
        main(["--redis", server.url, "lock", "r", TTL])
    assert caught.value.code == 0
    assert held([server]) == [capsys.readouterr().out.strip().encode()]
