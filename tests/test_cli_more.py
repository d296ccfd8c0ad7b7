"""`redlock extend`, `status`, `watch`, `bench`, `completion`; JSON, where URLs come from, and what is not printed."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from redlock import Redlock
from redlock._cli import durations, output, parser
from redlock._cli.checks import CHECKS
from redlock.cli import main
from support.command import WORDS, command, environment, redlock_, urls
from support.locks import held, nothing_left

pytestmark = pytest.mark.once

TTL = "20s"


@pytest.fixture
def run(capsys):
    """The command in this process: exit code, standard output, standard error."""

    def call(*words):
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        said = capsys.readouterr()
        return caught.value.code, said.out, said.err

    return call


@pytest.fixture
def decoded(run):
    """The same with --json: exit code, and the object that it printed."""

    def call(*words):
        code, out, err = run("--json", *words)
        assert err == ""
        return code, json.loads(out)

    return call


def place(server):
    return f"127.0.0.1:{server.port}/0"


@pytest.mark.parametrize("ttl", ["0", "-5", "1", "2ms"])
@pytest.mark.parametrize(
    "words", [["lock", "r"], ["extend", "r", "key"], ["run", "r", "--ttl"]], ids=lambda words: words[0]
)
def test_a_ttl_that_leaves_no_validity_is_a_usage_error(run, words, ttl):
    code, out, err = run("--redis", "redis://h", *words, ttl, *(["--", "true"] if words[0] == "run" else []))
    assert (code, out) == (2, "")
    assert f": {ttl}: expected at least 3ms" in err


def redirected(redirection, *words):
    """The command with redirections as a shell makes them: exit code, standard output, standard error."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *WORDS, *words],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("target, why", [("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")])
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_key_that_cannot_be_written_gives_the_lock_back(masters, words, target, why):
    servers = masters(1)
    said = redirected(f">{target}", *words, *urls(servers), "lock", "r", TTL)
    assert said == (1, "", f"error: cannot write to standard output: {why}\n")
    nothing_left(servers)


def test_what_is_said_to_a_closed_stderr_goes_nowhere(masters):
    servers = masters(1)
    code, key, _ = redirected("2>&-", *urls(servers), "lock", "r", TTL)
    assert (code, held(servers)) == (0, [key.strip().encode()])
    assert redirected("2>&-", *urls(servers), "lock", "r", TTL, "--retry-count=0") == (1, "", "")
    assert redirected("2>&-", *urls(servers), "unlock", "r", "wrong") == (1, "", "")


def test_a_closed_stream_is_not_the_number_of_a_socket(masters):
    script = "readlink /proc/$PPID/fd/0 /proc/$PPID/fd/2"
    words = [*urls(masters(3)), "run", "r", "--", "sh", "-c", script]
    assert redirected("<&- 2>&-", *words) == (0, "/dev/null\n/dev/null\n", "")


def test_urls_from_a_closed_stdin_are_a_usage_error():
    assert redirected("<&-", "--urls-file=-", "lock", "r", TTL) == (2, "", "error: --urls-file: no URL in -\n")


@pytest.mark.parametrize(
    "words, text",
    [
        (["run", "r", "--ttl", "30", "--", "true"], "argument --ttl: 30: expected a duration, 30s?"),
        (["run", "r", "--wait", "1.5", "--", "true"], "argument -w/--wait: 1.5: expected a duration, 1.5s?"),
        (["lock", "r", "1s", "extra"], "unrecognized arguments: extra"),
    ],
)
def test_a_usage_error_shows_the_subcommands_usage(run, words, text):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"usage: redlock {words[0]} ")
    assert err.endswith(f"redlock {words[0]}: error: {text}\n")


@pytest.mark.parametrize("options", [["-n"], ["-w", "100ms"]])
def test_run_has_short_names_as_flock(masters, run, options):
    servers = masters(1)
    run(*urls(servers), "lock", "r", TTL)
    assert redlock_(*urls(servers), "--quiet", "run", *options, "r", "--", "echo", "no") == (75, "", "")


def test_the_doctors_examples_name_checks_that_there_are(run):
    _, out, _ = run("doctor", "--help")
    named = re.findall(r"redlock doctor .*--ignore (\S+)", out)
    assert named
    assert set(named) <= set(CHECKS)


# -- extend ------------------------------------------------------------------------------------------------------------


def test_extend_makes_it_last_longer(masters, run):
    servers = masters(3)
    _, key, _ = run(*urls(servers), "lock", "r", "5s")
    key = key.strip()
    assert run(*urls(servers), "extend", "r", key, "1h") == (0, "", "ok\n")
    assert sum(server.admin.pttl("r") > 3_000_000 for server in servers) >= 2
    run(*urls(servers), "unlock", "r", key)
    assert run(*urls(servers), "extend", "r", key, "1h") == (1, "", "failed: it is not held any more\n")


def test_extend_of_anothers_lock_is_1(masters, run):
    servers = masters(1)
    run(*urls(servers), "lock", "r", TTL)
    assert run(*urls(servers), "extend", "r", "wrong", "1h") == (1, "", "failed: others hold it\n")


def test_extend_in_an_outage_is_3(masters, run):
    servers = masters(3)
    _, key, _ = run(*urls(servers), "lock", "r", TTL)
    for server in servers[:2]:
        server.kill()
    code, out, err = run(*urls(servers), "extend", "r", key.strip(), "1h")
    assert (code, out) == (3, "")
    assert err.startswith("error: no majority of the masters answered\n")


# -- status ------------------------------------------------------------------------------------------------------------


def test_status_tells_who_and_how_long(masters, run, decoded):
    servers = masters(3)
    with Redlock([server.url for server in servers]).acquire("r", 20_000) as lease:
        code, facts = decoded(*urls(servers), "status", "r")
        assert (code, facts["name"], facts["held"], facts["holder"], facts["quorum"]) == (0, "r", True, lease.holder, 2)
        assert 0 < facts["ttl_ms"] <= 20_000
        assert [each["master"] for each in facts["masters"]] == [place(server) for server in servers]
        code, out, err = run(*urls(servers), "status", "r")
        assert (code, err) == (0, "")
        assert re.match(rf"r: held by {lease.holder}, \d+\.\ds left\n\nMASTER +HOLDER +LEFT\n", out)
        assert lease.key.decode() not in out
    nothing_left(servers)
    assert decoded(*urls(servers), "status", "r")[0] == 1
    assert run(*urls(servers), "status", "r")[1].startswith("r: free\n")


def test_status_needs_a_majority_for_one_holder(masters, decoded):
    servers = masters(3)
    for server, key in zip(servers, ("one", "two", "three"), strict=True):
        server.admin.set("r", key, px=20_000)
    code, facts = decoded(*urls(servers), "status", "r")
    assert (code, facts["held"], facts["holder"], facts["ttl_ms"]) == (1, False, None, None)


def test_status_lasts_as_long_as_a_majority_has_it(masters, decoded):
    servers = masters(3)
    for server, ttl in zip(servers, (10_000, 20_000, 30_000), strict=True):
        server.admin.set("r", "key", px=ttl)
    assert 15_000 < decoded(*urls(servers), "status", "r")[1]["ttl_ms"] <= 20_000
    servers[1].admin.persist("r")
    assert 20_000 < decoded(*urls(servers), "status", "r")[1]["ttl_ms"] <= 30_000


def test_status_in_an_outage_is_3(masters, run, decoded):
    servers = masters(3)
    for server in servers[:2]:
        server.kill()
    code, facts = decoded(*urls(servers), "status", "r")
    assert (code, facts["held"]) == (3, None)
    assert [each["error"] is None for each in facts["masters"]] == [False, False, True]
    assert run(*urls(servers), "status", "r")[1].startswith("r: unknown: 1 of 3 masters answered\n")


# -- watch and bench ---------------------------------------------------------------------------------------------------


def test_watch_shows_masters_and_locks(masters, run, decoded):
    servers = masters(3)
    with Redlock([server.url for server in servers]).acquire("lock:one", 20_000, fencing=True) as lease:
        servers[0].admin.set("lock:rest", "left behind", px=20_000)
        servers[0].admin.set("lock:no end", "not a lock")
        servers[0].admin.rpush("lock:list", "not a lock")
        servers[0].admin.set("other", "not asked for", px=20_000)
        code, facts = decoded(*urls(servers), "watch", "lock:*", "--count=1")
        assert code == 0
        assert [each["master"] for each in facts["masters"]] == [place(server) for server in servers]
        assert [each["error"] for each in facts["masters"]] == [None] * 3
        one, rest = facts["locks"]
        assert (one["name"], one["holder"]) == ("lock:one", lease.holder)
        assert one["masters"] >= 2
        assert 0 < one["ttl_ms"] <= 20_000
        assert (rest["name"], rest["holder"], rest["masters"]) == ("lock:rest", None, 1)
        _, out, _ = run(*urls(servers), "watch", "--count=2", "--interval=10ms")
        assert out.count("lock:one") == 2
        assert lease.key.decode() not in out


def test_watch_goes_on_without_a_master(masters, decoded):
    servers = masters(3)
    servers[1].kill()
    code, facts = decoded(*urls(servers), "watch", "--count=1")
    assert code == 0
    assert [each["error"] is None for each in facts["masters"]] == [True, False, True]


def test_watch_without_a_majority_is_3(masters, run):
    servers = masters(1)
    servers[0].kill()
    assert run(*urls(servers), "watch", "--count=1")[0] == 3


@pytest.mark.parametrize("count", ["0", "-1"])
def test_watch_looks_at_least_once(run, count):
    code, out, err = run("--redis", "redis://127.0.0.1:1", "watch", f"--count={count}", "--interval=1ms")
    assert (code, out) == (2, "")
    assert f"argument --count: {count}: expected a number from 1" in err


def test_watch_does_not_let_names_control_the_terminal(masters, run):
    (server,) = masters(1)
    server.admin.set("\x1b[2J\nname", "key", px=20_000)
    _, out, _ = run(*urls([server]), "watch", "--count=1")
    assert "\x1b" not in out
    assert "\\x1b[2J\\nname" in out


def test_watch_limits_what_it_reads(masters, run):
    (server,) = masters(1)
    for number in range(30):
        server.admin.set(f"lock:{number:02}", "key", px=20_000)
    _, out, _ = run(*urls([server]), "watch", "--count=1", "--limit=10")
    assert len(re.findall(r"^lock:\d\d ", out, re.MULTILINE)) == 10
    assert "... and " in out


def test_bench_measures_and_leaves_nothing(masters, run, decoded):
    servers = masters(3)
    code, facts = decoded(*urls(servers), "bench", "--time=200ms")
    assert (code, facts["failed"]) == (0, 0)
    assert facts["rounds"] > 0
    for step in ("lock", "extend", "unlock", "lock + unlock"):
        figures = facts["ms"][step]
        assert 0 < figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["p100"]
    nothing_left(servers)
    assert "lock + unlock" in run(*urls(servers), "bench", "--time=100ms")[1]


def test_bench_in_an_outage_is_3(masters, run):
    servers = masters(3)
    for server in servers[:2]:
        server.kill()
    code, out, err = run(*urls(servers), "bench", "--time=100ms")
    assert (code, out) == (3, "")
    assert err.startswith("error: no majority of the masters answered\n  127.0.0.1:")


# -- JSON, files, options in any place ---------------------------------------------------------------------------------


def test_json_of_lock_and_unlock(masters, decoded):
    servers = masters(3)
    code, facts = decoded(*urls(servers), "lock", "r", TTL)
    assert code == 0
    assert (facts["name"], len(facts["key"])) == ("r", 22)
    assert 19_000 < facts["validity_ms"] < 20_000
    code, refused = decoded(*urls(servers), "lock", "r", TTL, "--retry-count=0")
    assert (code, refused["error"]) == (1, "not acquired")
    assert {each["said"] for each in refused["masters"]} <= {"granted", "refused", "not asked", "not awaited"}
    assert decoded(*urls(servers), "unlock", "r", "wrong")[1]["error"] == "not held"
    code, released = decoded(*urls(servers), "unlock", "r", facts["key"])
    assert (code, released["released"]) == (0, True)


def test_json_of_an_outage_and_of_a_bad_url(masters, decoded):
    servers = masters(3)
    for server in servers:
        server.kill()
    code, facts = decoded(*urls(servers), "lock", "r", TTL, "--retry-count=0")
    assert (code, facts["error"]) == (3, "no majority of the masters answered")
    assert [each["master"] for each in facts["masters"]] == [place(server) for server in servers]
    code, facts = decoded("--redis", "http://h", "status", "r")
    assert code == 2
    assert facts["error"].startswith("master 1 of 1: its scheme is none of")


def test_urls_from_a_file(masters, tmp_path, decoded):
    servers = masters(3)
    path = tmp_path / "urls"
    path.write_text("# the masters\n" + "\n".join(server.url for server in servers))
    for words in (["--urls-file", str(path), "lock", "r", TTL], ["status", "r", "--urls-file", str(path)]):
        code, facts = decoded(*words)
        assert code == 0
    assert len(facts["masters"]) == 3


def test_urls_from_standard_input(masters):
    servers = masters(3)
    done = subprocess.run(
        [*WORDS, "--urls-file=-", "lock", "r", TTL],
        input=" ".join(server.url for server in servers),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert held(servers).count(done.stdout.strip().encode()) >= 2


@pytest.mark.parametrize("text", [None, "", "# nothing\n"])
def test_a_file_without_urls_is_a_usage_error(tmp_path, run, text):
    path = tmp_path / "urls"
    if text is not None:
        path.write_text(text)
    code, _, err = run("--urls-file", str(path), "status", "r")
    assert code == 2
    assert err.startswith("error: --urls-file: ")


def test_masters_before_and_after_the_subcommand_count_together(masters, decoded):
    servers = masters(3)
    code, facts = decoded(*urls(servers[:1]), "status", "r", *urls(servers[1:]))
    assert (code, len(facts["masters"])) == (1, 3)


def test_options_may_follow_the_subcommand(masters):
    servers = masters(1)
    code, out, err = redlock_("lock", *urls(servers), "--quiet", "r", TTL)
    assert (code, len(out), err) == (0, 23, "")


def test_a_reader_that_has_seen_enough_is_no_traceback(masters):
    with command(*urls(masters(1)), "watch", "--interval=10ms") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, ms",
    [
        ("500ms", 500),
        ("10s", 10_000),
        ("1.5s", 1_500),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("1d", 86_400_000),
        ("0", 0),
    ],
)
def test_durations(text, ms):
    assert durations.milliseconds(text) == ms
    assert durations.seconds(text) == ms / 1000


@pytest.mark.parametrize("text", ["10", "s", "-1s", "1 s", "1e3s", "ten", "", "infs", "nan"])
def test_what_is_no_duration(text):
    with pytest.raises(parser.argparse.ArgumentTypeError, match=r"invalid duration|expected a duration"):
        durations.milliseconds(text)


@pytest.mark.parametrize(
    "ms, text",
    [
        (None, ""),
        (0.123, "0.12ms"),
        (7.25, "7.25ms"),
        (999, "999ms"),
        (1_500, "1.5s"),
        (61_000, "1m01s"),
        (3_660_000, "1h01m"),
    ],
)
def test_durations_to_read(ms, text):
    assert durations.shown(ms) == text


@pytest.mark.parametrize("env, colourful", [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colours_only_where_they_are_wanted(monkeypatch, env, colourful):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    controller, terminal = os.openpty()
    with open(terminal, "w") as stream:  # noqa: PTH123 - a descriptor
        assert output.is_colourful(stream) is colourful
    os.close(controller)


def test_every_subcommand_has_a_manual(run):
    commands = parser.subcommands(parser.build())
    assert set(commands) == {
        "run",
        "lock",
        "unlock",
        "extend",
        "status",
        "watch",
        "doctor",
        "bench",
        "demo",
        "completion",
    }
    for name in commands:
        code, out, err = run(name, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: redlock {name} ")
    for name in ("run", "status", "doctor"):
        assert "\nexit codes:\n" in run(name, "--help")[1]


# -- completion --------------------------------------------------------------------------------------------------------

COMPLETE = """
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
_redlock
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words):
    script = redlock_("completion", "bash")[1]
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", *words],
        env={**os.environ, "SCRIPT": script},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_bash_completes(masters):
    assert completed("redlock", "st") == ["status"]
    assert completed("redlock", "--redis", "u", "run", "--w") == ["--wait"]
    assert completed("redlock", "completion", "f") == ["fish"]
    assert "env" in completed("redlock", "run", "r", "--", "en")


@pytest.mark.parametrize("shell, text", [("zsh", "#compdef redlock\n"), ("fish", "# fish completion of redlock\n")])
def test_other_shells_get_a_script(run, shell, text):
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    assert out.startswith(text)
    for word in ("doctor", "max-hold"):
        assert word in out


# -- secrets -----------------------------------------------------------------------------------------------------------

CANARY = "canary-7b1e"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "r", "--wait=0", "--", "true"],
        ["extend", "r", "key", "1s"],
        ["status", "r"],
        ["watch", "--count=1"],
        ["doctor"],
        ["bench", "--time=1ms"],
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("state", ["right", "wrong", "down", "bad"])
def test_no_password_from_any_subcommand(spawn, words, state):
    server = spawn(password=CANARY if state == "right" else "another")
    if state == "down":
        server.kill()
    port = "port" if state == "bad" else server.port
    url = f"redis://default:{CANARY}@127.0.0.1:{port}"
    code, out, err = redlock_(*words, env={"REDLOCK_URLS": url})
    assert (code == 2) == (state == "bad" or (words == ["doctor"] and state != "right"))
    assert "Traceback" not in err
    assert CANARY not in out + err


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{CANARY} tail@h",
        f"redis://user:{CANARY},tail@h",
        f"redis://user:{CANARY}/tail@h",
        "redis://user:12/7b1e@h",
        f"redis://user:{CANARY}@h:port",
        f"redis://user:{CANARY}@h:99999",
        f"redis://user:{CANARY}@[::1",
        f"{CANARY}://user:{CANARY}@h",
        f"user:{CANARY}@h",
        f"redis://user:{CANARY}@h?unknown={CANARY}",
        f"redis+sentinel://user:{CANARY}@h:port/service",
        f"redis+sentinel://user:{CANARY}@h",
    ],
)
@pytest.mark.parametrize("words", [["lock", "r", TTL], ["watch", "--count=1"]], ids=lambda words: words[0])
def test_no_password_from_a_bad_url(url, words):
    """Each item that cannot be used is told by its place in the list, and nothing of it is quoted."""
    code, out, err = redlock_(*words, env={"REDLOCK_URLS": f"redis://127.0.0.1:1 {url}"})
    assert (code, out) == (2, "")
    assert re.match(r"error: master 2 of [23]: ", err)
    for piece in (CANARY, "7b1e", "tail", "user:", "Error", "__init__"):
        assert piece not in err
