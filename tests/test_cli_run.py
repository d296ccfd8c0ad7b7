"""`redlock run`: a command that has the lock for as long as it runs, and not a moment longer."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.command import WORDS, command, environment, redlock_, urls
from support.locks import PROMPT, TTL, held, manager, nothing_left
from support.servers import wait_until

pytestmark = pytest.mark.once

KEPT = 600  # ms: a TTL that is extended several times within a test


class Run:
    """A `redlock run` whose command is a shell script, which is talked to by lines."""

    def __init__(self, servers, script, *options, name="r", prefix=()):
        self.process = subprocess.Popen(
            [*prefix, *WORDS, *urls(servers), "run", *options, name, "--", "sh", "-c", script],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def hear(self):
        return self.process.stdout.readline().strip()

    def say(self, line=""):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def send(self, number):
        self.process.send_signal(number)

    def finish(self):
        self.process.wait(timeout=60)  # before its standard input is closed: a script may be reading it
        out, err = self.process.communicate()
        return self.process.returncode, out, err


def state(pid):
    """As `ps` shows it; nothing if there is no such process."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def is_gone(pid):
    """Whether a process has ended: whoever adopted it may be slow to reap it."""
    return state(pid) in ("", "Z")


# -- what it passes on -------------------------------------------------------------------------------------------------


def test_input_output_environment_and_exit_code_are_the_commands(masters):
    servers = masters(3)
    script = 'echo "$REDLOCK_NAME $REDLOCK_KEY ${REDLOCK_TOKEN-none}"; echo oops >&2; read line; echo $line; exit 7'
    with Run(servers, script, name="my lock") as run:
        name, key, token = run.hear().rsplit(" ", 2)
        assert (name, token) == ("my lock", "none")
        assert held(servers, "my lock").count(key.encode()) >= 2
        run.say("hello")
        assert run.finish() == (7, "hello\n", "oops\n")
    nothing_left(servers)


def test_the_lock_is_kept_while_the_command_runs(masters):
    servers = masters(3)
    with Run(servers, "echo $REDLOCK_KEY; read line", f"--ttl={KEPT}ms") as run:
        key = run.hear().encode()
        time.sleep(KEPT * 3 / 1000)
        assert held(servers).count(key) >= 2
        run.say()
        assert run.finish() == (0, "", "")
    nothing_left(servers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH])
def test_signals_reach_the_command(masters, number):
    servers = masters(1)
    script = f"trap 'echo got it; exit 5' {number.name[3:]}; echo ready; read line"
    with Run(servers, script) as run:
        assert run.hear() == "ready"
        run.send(number)
        assert run.finish() == (5, "got it\n", "")
    nothing_left(servers)


def test_signals_reach_all_of_its_processes(masters):
    servers = masters(1)
    with Run(servers, "sleep 60 & echo $!; wait") as run:
        pid = int(run.hear())
        run.send(signal.SIGTERM)
        assert run.finish()[0] == 128 + signal.SIGTERM
        wait_until(lambda: is_gone(pid))
    nothing_left(servers)


def test_what_is_ignored_stays_ignored(masters):
    servers = masters(1)
    with Run(servers, "echo ready; read line", prefix=("nohup",)) as run:
        assert run.hear() == "ready"
        run.send(signal.SIGHUP)
        run.say()
        assert run.finish()[0] == 0


def test_a_stopped_run_stops_its_command(masters):
    servers = masters(1)
    with Run(servers, "echo $$; read line") as run:
        pid = int(run.hear())
        run.send(signal.SIGTSTP)
        wait_until(lambda: state(pid) == state(run.process.pid) == "T")
        run.send(signal.SIGCONT)
        wait_until(lambda: state(pid) == "S")
        run.say()
        assert run.finish()[0] == 0


@pytest.mark.parametrize("program, code", [("/nonexistent", 127), ("/etc/passwd", 126)])
def test_a_command_that_cannot_run_leaves_no_lock(masters, program, code):
    servers = masters(1)
    found, out, err = redlock_(*urls(servers), "run", "r", "--", program)
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {program}: ")
    nothing_left(servers)


def test_fencing_tokens_rise(masters):
    servers = masters(3)
    words = [*urls(servers), "run", "--fencing", "r", "--", "sh", "-c", "echo $REDLOCK_TOKEN"]
    (_, first, _), (_, second, _) = redlock_(*words), redlock_(*words)
    assert 0 < int(first) < int(second)


def test_the_token_of_another_lock_is_not_this_ones(masters):
    servers = masters(1)
    words = [*urls(servers), "run", "r", "--", "sh", "-c", "echo ${REDLOCK_TOKEN-none}"]
    assert redlock_(*words, env={"REDLOCK_TOKEN": "5"}) == (0, "none\n", "")


def test_no_command_without_the_token_that_was_asked_for(spawn):
    server = spawn(password="pw")
    server.admin.acl_setuser("u", enabled=True, passwords=["+pw"], keys=["*"], categories=["+@all"], commands=["-time"])
    url = f"redis://u:pw@127.0.0.1:{server.port}"
    code, out, err = redlock_("--redis", url, "run", "--fencing", "--wait=0", "r", "--", "echo", "no")
    assert (code, out) == (3, "")
    assert err.startswith("error: no fencing tokens at a majority of the masters\n")


# -- when it does not get the lock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, code", [([], 75), (["-E", "9"], 9), (["--wait", "100ms"], 75), (["--wait=0"], 75)])
def test_a_lock_that_others_hold_is_75(masters, options, code):
    servers = masters(3)
    redlock_(*urls(servers), "lock", "r", "60s")
    assert redlock_(*urls(servers), "run", *options, "r", "--", "echo", "no") == (code, "", "r: others hold it\n")


@pytest.mark.parametrize("wait", ["30s", "forever"])
def test_it_waits_for_its_turn(masters, wait):
    servers = masters(3)
    with Run(servers, "echo first; read line") as first, Run(servers, "echo second", "--wait", wait) as second:
        assert first.hear() == "first"
        first.say()
        assert second.hear() == "second"
        assert (first.finish()[0], second.finish()[0]) == (0, 0)
    nothing_left(servers)


def test_an_outage_is_3_and_tells_each_master(masters):
    servers = masters(3)
    for server in servers[:2]:
        server.kill()
    code, out, err = redlock_(*urls(servers), "run", "--wait=0", "r", "--", "echo", "no")
    assert (code, out) == (3, "")
    assert err.startswith("error: no majority of the masters answered\n")
    assert len(err.splitlines()) == 4
    nothing_left(servers[2:])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_wait(masters, number):
    servers = masters(3)
    _, key, _ = redlock_(*urls(servers), "lock", "r", "60s")
    with Run(servers, "echo no", "--wait=forever") as run:
        wait_until(servers[0].connections)
        time.sleep(0.2)
        run.send(number)
        assert run.finish() == (128 + number, "", "")
    assert set(held(servers)) <= {key.strip().encode(), None}


GROUP = "import os, sys; os.setpgid(0, 0); os.execv(sys.argv[1], sys.argv[1:])"  # as a shell with job control


def test_a_stop_while_it_waits_stops_it_at_once_and_not_the_command(masters):
    servers = masters(3)
    _, key, _ = redlock_(*urls(servers), "lock", "r", "60s")
    with Run(servers, "echo $$; read line", "--wait=forever", prefix=(sys.executable, "-c", GROUP)) as run:
        wait_until(servers[0].connections)
        time.sleep(0.2)
        run.send(signal.SIGTSTP)
        wait_until(lambda: state(run.process.pid) == "T")
        run.send(signal.SIGCONT)
        wait_until(lambda: state(run.process.pid) != "T")
        redlock_(*urls(servers), "unlock", "r", key.strip())
        pid = int(run.hear())
        time.sleep(0.2)
        assert "T" not in (state(run.process.pid), state(pid))
        run.say()
        assert run.finish() == (0, "", "")
    nothing_left(servers)


# -- when it loses the lock --------------------------------------------------------------------------------------------


def lose_by_deletion(servers):
    for server in servers:
        server.admin.delete("r")
        server.admin.set("r", "another")


def lose_by_outage(servers):
    for server in servers[:2]:
        server.kill()


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
@pytest.mark.parametrize("lose, reason", [(lose_by_deletion, "taken over"), (lose_by_outage, "unavailable")])
def test_a_lost_lock_ends_the_command_and_is_76(masters, lose, reason, quiet):
    servers = masters(3)
    with Run(servers, "trap 'echo told; exit 4' TERM; echo ready; read line", f"--ttl={KEPT}ms", *quiet) as run:
        assert run.hear() == "ready"
        lose(servers)
        code, out, err = run.finish()
    assert (code, out) == (76, "told\n")
    assert err == f"error: r: the lock was lost ({reason}); the command ended with 4\n"


def test_a_lost_lock_kills_all_who_will_not_end(masters):
    servers = masters(1)
    script = """
        sh -c 'trap "" TERM; echo $$; while :; do sleep 0.05; done' &
        trap "exit 4" TERM; wait; wait
    """
    with Run(servers, script, f"--ttl={KEPT}ms", "--kill-after=300ms") as run:
        pid = int(run.hear())
        lose_by_deletion(servers)
        assert run.finish()[0] == 76
        wait_until(lambda: is_gone(pid))


def test_a_lost_lock_ends_a_stopped_command(masters):
    servers = masters(1)
    with Run(
        servers, "trap 'exit 4' TERM; echo $$; kill -STOP $$; read line", f"--ttl={KEPT}ms", "--kill-after=1h"
    ) as run:
        pid = int(run.hear())
        wait_until(lambda: state(pid) == "T")
        lose_by_deletion(servers)
        assert run.finish()[0] == 76
        assert is_gone(pid)


def test_a_loss_needs_no_further_thread(masters):
    """Under a limit of processes, which counts threads; here, one of memory, in which no further stack has room."""
    servers = masters(3)
    with Run(servers, "echo ready; read line", f"--ttl={KEPT}ms") as run:
        assert run.hear() == "ready"
        time.sleep(KEPT / 2000)  # until it has extended
        size = int(Path(f"/proc/{run.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(run.process.pid, resource.RLIMIT_AS, (size + (4 << 20), resource.RLIM_INFINITY))
        lose_by_deletion(servers)
        assert run.finish()[0] == 76


WRITER = 'echo $$; while :; do echo x >> "$OUT"; done'  # a file, beside the next holder if it has lost the lock


def test_a_command_that_was_stopped_for_too_long_is_ended_before_it_goes_on(masters, tmp_path, monkeypatch):
    servers, out = masters(3), tmp_path / "out"
    monkeypatch.setenv("OUT", str(out))
    with Run(servers, WRITER, f"--ttl={KEPT}ms") as run:
        pid = int(run.hear())
        wait_until(out.exists)
        run.send(signal.SIGTSTP)
        wait_until(lambda: state(pid) == state(run.process.pid) == "T")
        time.sleep(KEPT * 2 / 1000)
        assert state(pid) == "T"
        assert manager(servers).lock("r", TTL)
        size = out.stat().st_size
        run.send(signal.SIGCONT)
        code, _, err = run.finish()
    assert code == 76
    assert "the lock was lost (expired); the command ended with 143" in err
    assert out.stat().st_size == size


def test_a_command_goes_on_after_a_stop_that_was_short(masters, tmp_path, monkeypatch):
    servers, out = masters(3), tmp_path / "out"
    monkeypatch.setenv("OUT", str(out))
    with Run(servers, WRITER, "--ttl=20s") as run:
        pid = int(run.hear())
        wait_until(out.exists)
        run.send(signal.SIGTSTP)
        wait_until(lambda: state(pid) == state(run.process.pid) == "T")
        size = out.stat().st_size
        run.send(signal.SIGCONT)
        wait_until(lambda: out.stat().st_size > size)
        run.send(signal.SIGTERM)
        assert run.finish()[0] == 128 + signal.SIGTERM
    nothing_left(servers)


def test_a_run_that_is_stopped_alone_does_not_leave_the_command_without_a_lock(masters, tmp_path, monkeypatch):
    servers, out = masters(3), tmp_path / "out"
    monkeypatch.setenv("OUT", str(out))
    with Run(servers, WRITER, f"--ttl={KEPT}ms") as run:
        pid = int(run.hear())
        time.sleep(KEPT * 2 / 1000)
        assert state(pid) in ("R", "S", "D")
        run.send(signal.SIGSTOP)
        wait_until(lambda: is_gone(pid))
        size = out.stat().st_size
        # The guard knows the end of the lease as it was some moments ago: it was extended since.
        wait_until(lambda: not any(server.keys() for server in servers))
        run.send(signal.SIGCONT)
        assert run.finish()[0] == 76
    assert out.stat().st_size == size


def test_a_run_that_is_stopped_alone_has_the_command_killed_if_it_will_not_end(masters):
    servers = masters(1)
    with Run(
        servers, "trap '' TERM; echo $$; while :; do sleep 0.05; done", f"--ttl={KEPT}ms", "--kill-after=300ms"
    ) as run:
        pid = int(run.hear())
        time.sleep(KEPT / 1000)  # it may just have started the command, and not have told the guard of it yet
        run.send(signal.SIGSTOP)
        wait_until(lambda: is_gone(pid))
        run.send(signal.SIGCONT)
        assert run.finish()[0] == 76


def test_max_hold_ends_the_command(masters):
    servers = masters(1)
    with Run(servers, "sleep 60", f"--ttl={KEPT}ms", "--max-hold=100ms") as run:
        assert run.finish() == (76, "", "error: r: the lock was lost (expired); the command ended with 143\n")
    nothing_left(servers)


def test_a_lock_that_was_gone_at_the_end_is_76(masters):
    servers = masters(1)
    with Run(servers, "echo ready; read line; exit 3") as run:
        assert run.hear() == "ready"
        lose_by_deletion(servers)
        run.say()
        code, _, err = run.finish()
    assert code == 76
    assert "the command ended with 3" in err


def test_whoever_kills_it_ends_the_command(masters):
    servers = masters(1)
    # A little later: what is killed while it starts the command has told nobody of it yet.
    with Run(servers, "sleep 60 & sleep 0.5; echo $$ $!; wait", "--kill-after=100ms") as run:
        pids = list(map(int, run.hear().split()))
        run.send(signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, pids)))


# -- where it runs -----------------------------------------------------------------------------------------------------

SUBREAPER = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_orphans_are_reaped_as_by_init(masters):
    servers = masters(1)
    with Run(servers, "(sleep 0.1 & echo $!); read line", prefix=(sys.executable, "-c", SUBREAPER)) as run:
        orphan = int(run.hear())
        wait_until(lambda: state(orphan) == "")
        run.say()
        assert run.finish()[0] == 0
    nothing_left(servers)


@contextlib.contextmanager
def at_a_terminal(servers, script):
    """`redlock run` as a shell with job control would start it; what it writes is read from the descriptor."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(WORDS[0], [*WORDS, *urls(servers), "run", "r", "--", "sh", "-c", script], environment())
    try:
        yield pid, terminal
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(terminal)


def read_until(terminal, text):
    seen = b""
    while text not in seen:
        assert select.select([terminal], [], [], 30)[0], seen
        seen += os.read(terminal, 1024)


def test_the_command_can_ask_at_the_terminal(masters):
    servers = masters(1)
    with at_a_terminal(servers, "printf 'password: ' > /dev/tty; read word < /dev/tty; echo got $word") as (
        pid,
        terminal,
    ):
        read_until(terminal, b"password: ")
        os.write(terminal, b"secret\n")
        read_until(terminal, b"got secret")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    nothing_left(servers)


def test_ctrl_c_at_the_terminal_ends_the_command_and_frees_the_lock(masters):
    servers = masters(1)
    with at_a_terminal(servers, "trap 'exit 8' INT; echo ready; while :; do sleep 0.05; done") as (pid, terminal):
        read_until(terminal, b"ready")
        start = time.monotonic()
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 8
        assert time.monotonic() - start < PROMPT
    nothing_left(servers)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, text",
    [
        (["r"], "expected a command after --"),
        (["r", "--"], "expected a command after --"),
        (["--", "true"], "NAME"),
        (["r", "--ttl", "10", "--", "true"], "10: expected a duration, 10s?"),
        (["r", "--wait", "soon", "--", "true"], "invalid duration: 'soon'"),
        (["r", "--redis=redis://h", "--ttl=1ms", "--", "true"], "1ms: expected at least 3ms"),
        (["r", "--urls-file=-", "--", "true"], "both want standard input"),
        (["r", "s", "--", "true"], "unrecognized arguments: s"),
    ],
)
def test_usage_errors_are_2(words, text):
    code, out, err = redlock_("run", *words)
    assert (code, out) == (2, "")
    assert text in err
    assert "Traceback" not in err


def test_what_follows_the_dashes_is_the_commands(masters):
    servers = masters(1)
    words = ["run", "r", "--ttl=20s", "--", "printf", "%s,", "--help", "--", "--ttl"]
    assert redlock_(*urls(servers), *words) == (0, "--help,--,--ttl,", "")


def test_json_is_on_stderr(masters):
    servers = masters(1)
    code, out, err = redlock_("--json", *urls(servers), "run", "r", "--", "echo", "out")
    assert (code, out) == (0, "out\n")
    assert json.loads(err) == {"name": "r", "exit_code": 0, "lost": None}
    redlock_(*urls(servers), "lock", "r", "60s")
    _, _, err = redlock_("--json", *urls(servers), "run", "r", "--", "true")
    facts = json.loads(err)
    assert (facts["error"], facts["name"]) == ("contended", "r")
    assert [each["said"] for each in facts["masters"]] == ["refused"]


def test_a_stdin_that_is_closed_is_no_failure(masters):
    servers = masters(1)
    with command(*urls(servers), "run", "r", "--", "cat") as process:
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
