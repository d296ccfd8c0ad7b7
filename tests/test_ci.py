"""`.ci/pytest` and `.ci/summary.py`: failed tests are run once more, and the closing line is true of both runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

CI = Path(__file__).parents[1] / ".ci"
# Flaky tests fail when they are run first.
SUITE = """
import pathlib, pytest

def once(name):
    path = pathlib.Path(__file__).with_name(name)
    if not path.exists():
        path.touch()
        pytest.fail("the first time")

@pytest.fixture
def flaky_teardown():
    yield
    once("teardown")

def test_good(): pass
"""
FLAKY = "@pytest.mark.parametrize('number', range({}))\ndef test_flaky(number): once(f'flaky{{number}}')\n"
FLAKY_TEARDOWN = "def test_flaky_teardown(flaky_teardown): pass\n"
BAD = "def test_bad(): assert False\n"
SKIPPED_LATER = "def test_skipped_later():\n    once('skipped')\n    pytest.skip('no longer')\n"


def ci(directory, suite, other_status=0):
    """What `.ci/run` does with one session of pytest: the exit status, and the printed summary."""
    test = directory / "test_it.py"
    test.write_text(SUITE + suite)
    results = directory / "results"
    results.mkdir()
    env = {**os.environ, "RESULTS": str(results), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}

    def run(*command):
        return subprocess.run(command, env=env, cwd=directory, capture_output=True, check=False).returncode

    status = run(CI / "pytest", "session", sys.executable, test) or other_status
    again = results / "session.again"
    if again.exists():
        status = run("bash", again) or status
    done = subprocess.run(
        [sys.executable, CI / "summary.py", results, str(status)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "suite, other_status, status, closing",
    [
        ("", 0, 0, " 1 passed in "),
        (FLAKY.format(3), 0, 0, " 4 passed, 3 rerun in "),
        (FLAKY.format(4), 0, 1, " 4 failed, 1 passed in "),
        (FLAKY_TEARDOWN, 0, 0, " 2 passed, 1 rerun in "),
        (FLAKY.format(1) + BAD, 0, 1, " 1 failed, 2 passed, 1 rerun in "),
        (SKIPPED_LATER, 0, 1, " 1 failed, 1 passed in "),
        ("", 2, 1, " 1 passed, 1 error in "),
        ("import no_such_module", 0, 1, " 1 error in "),
    ],
    ids=["good", "flaky", "too-many-flaky", "teardown", "bad", "skipped-later", "a-lint", "not-collected"],
)
def test_the_closing_line_counts_each_test_once(suite, other_status, status, closing, tmp_path):
    found, printed = ci(tmp_path, suite, other_status)
    assert (found, closing in printed.splitlines()[-1]) == (status, True), printed


def test_flaky_tests_are_listed(tmp_path):
    _, printed = ci(tmp_path, FLAKY.format(2) + BAD)
    assert [line.strip() for line in printed.splitlines() if line.startswith("  ")] == [
        "session: test_it::test_flaky[0]",
        "session: test_it::test_flaky[1]",
    ]
