"""redlock-py 1.0.8's own test file, unmodified (tests/vendor/redlock_py), run against this package.

It wants a Redis at localhost:6379, which is started here, and ``assertEquals``, which Python 3.12 took away: it is put
back, as the alias it was, in the process that runs the file.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from support.servers import wait_until

SUITE = Path(__file__).parent / "vendor" / "redlock_py"
PORT = 6379

RUN = """
import unittest
unittest.TestCase.assertEquals = unittest.TestCase.assertEqual
unittest.main("test_redlock", argv=["redlock-py's tests", "--verbose"])
"""


def listens():
    """Whether anybody does at localhost:6379."""
    try:
        socket.create_connection(("localhost", PORT), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def redis_at_localhost(spawn):
    """A server of this test's own at the port that redlock-py's tests have written in them."""
    if listens():
        message = f"port {PORT}, which redlock-py's own tests need, is taken: stop what listens there"
        # A developer may have a Redis of his own; where nobody looks on, a test that did not run must not pass.
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    server = spawn("--port", str(PORT), wait=False)
    wait_until(lambda: listens() or not server.alive, what="a server at localhost:6379")
    assert server.alive


@pytest.mark.usefixtures("redis_at_localhost")
def test_redlock_pys_own_tests_pass():
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=SUITE, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^Ran 6 tests in .*\n\nOK$", done.stderr, re.MULTILINE), done.stderr
