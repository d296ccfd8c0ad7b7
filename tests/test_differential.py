"""redlock-py 1.0.8 beside this: the same calls have the same outcomes, and a fleet may run both.

redlock-py stands in an environment of its own (both are the package ``redlock``): that of ``make
.venvs/redlock-py/.installed``, or of the interpreter named in ``REDLOCK_PY_PYTHON``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from redlock import Lock
from support.locks import TTL, held, manager, nothing_left

pytestmark = pytest.mark.once

HERE = Path(__file__).parent
DEFAULT = HERE.parent / ".venvs" / "redlock-py" / "bin" / "python"


@pytest.fixture(scope="module")
def redlock_py():
    """An interpreter that has redlock-py."""
    python = os.environ.get("REDLOCK_PY_PYTHON", str(DEFAULT))
    if not Path(python).exists():
        message = f"no redlock-py to compare with: {python} is missing; make .venvs/redlock-py/.installed"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    version = "import importlib.metadata as m; print(m.version('redlock-py'))"
    assert subprocess.check_output([python, "-c", version], text=True) == "1.0.8\n"
    return python


def outcomes(python, servers):
    """What the calls of differential.py come to under an interpreter."""
    command = [python, "-W", "ignore", HERE / "differential.py", *(server.url for server in servers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for server in servers:
        server.admin.flushall()
    return json.loads(done.stdout)


def test_the_same_calls_have_the_same_outcomes(redlock_py, masters):
    servers = masters(3)
    theirs, ours = outcomes(redlock_py, servers), outcomes(sys.executable, servers)
    assert len(ours) > 80
    differ = {name: (theirs[name], ours[name]) for name in ours if theirs[name] != ours[name]}
    assert differ == {}


THEIR_PROGRAM = """
import json, sys
from redlock import Lock, Redlock
dlm = Redlock(sys.argv[2:], retry_count=1, retry_delay=0.01)
if sys.argv[1] == "lock":
    lock = dlm.lock("r", 20000)
    print(json.dumps(lock and [lock.resource, lock.key.decode()]))
else:
    dlm.unlock(Lock(0, "r", sys.argv[1]))
"""


@pytest.fixture
def theirs(redlock_py):
    """Runs redlock-py: ``lock`` returns what it got, anything else is a key to unlock with."""

    def run(what, servers):
        command = [redlock_py, "-c", THEIR_PROGRAM, what, *(server.url for server in servers)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(done.stdout or "null")

    return run


def test_a_fleet_with_both_a_lock_of_one_blocks_the_other(masters, theirs):
    servers = masters(3)
    ours = manager(servers)
    mine = ours.lock("r", TTL)
    assert theirs("lock", servers) is False
    assert held(servers).count(mine.key) >= 2
    ours.unlock(mine)
    resource, key = theirs("lock", servers)
    assert (resource, held(servers)) == ("r", [key.encode()] * 3)
    assert ours.lock("r", TTL) is False
    assert held(servers) == [key.encode()] * 3


def test_a_fleet_with_both_either_unlocks_the_others(masters, theirs):
    servers = masters(3)
    ours = manager(servers)
    mine = ours.lock("r", TTL)
    theirs(mine.key.decode(), servers)
    nothing_left(servers)
    resource, key = theirs("lock", servers)
    ours.unlock(Lock(0, resource, key))
    nothing_left(servers)


def test_a_fleet_with_both_neither_unlocks_what_it_has_no_key_of(masters, theirs):
    servers = masters(3)
    ours = manager(servers)
    mine = ours.lock("r", TTL)
    theirs("wrong", servers)
    assert held(servers).count(mine.key) >= 2
