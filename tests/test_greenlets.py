"""gevent and eventlet: while one greenlet waits, the others go on; whatever ends the wait, nothing stays locked.

Programs run in processes of their own: monkey-patching cannot be undone.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest

from support.locks import TTL, manager, nothing_left
from support.programs import run

LIBRARIES = {
    "gevent": """
from gevent import monkey; monkey.patch_all()
import gevent
from gevent import Timeout, sleep, spawn
def join(*all):
    gevent.joinall(all, raise_error=True)
""",
    "eventlet": """
import warnings; warnings.simplefilter("ignore")  # it says at once that it is deprecated
import eventlet; eventlet.monkey_patch()
from eventlet import Timeout, sleep, spawn
def join(*all):
    for one in all:
        one.wait()
""",
}

TOOLS = """
class Ticking:
    '''A greenlet that counts for as long as the others let it.'''
    def __enter__(self):
        self.count, self._greenlet = 0, spawn(self._tick)
        return self
    def _tick(self):
        while True:
            sleep(0.005)
            self.count += 1
    def __exit__(self, *error):
        self._greenlet.kill()

urls = sys.argv[1:]
dlm = Redlock(urls, 1000, 0.02)
"""


@pytest.fixture(params=LIBRARIES)
def program(request):
    """Runs a program with everything monkey-patched; returns what it said."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed: it has no wheel for Python {sys.version_info[:2]}")
    return lambda source, servers: run(
        LIBRARIES[request.param] + TOOLS + source, *(server.url for server in servers)
    ).split()


def test_others_go_on_while_one_waits_for_a_lock(program, masters):
    servers = masters(3)
    said = program(
        """
held = dlm.lock("r", 20_000)
waiter = spawn(dlm.lock, "r", 20_000)
with Ticking() as ticking:
    sleep(0.5)
    while_held = ticking.count
    dlm.unlock(held)
    join(waiter)
say(while_held)
""",
        servers,
    )
    assert int(said[0]) > 10  # of 100, on a slow machine
    assert len({server.get("r") for server in servers} - {None}) == 1


def test_a_call_leaves_nothing_behind_that_ends_the_next_wait(program, masters):
    """eventlet's `select` switches once for each ready descriptor: the second switch hits whatever comes next."""
    said = program(
        """
short = 0
for _ in range(20):
    lock = dlm.lock("r", 20_000)
    start = time.monotonic()
    sleep(0.05)
    short += time.monotonic() - start < 0.045
    dlm.unlock(lock)
    start = time.monotonic()
    sleep(0.05)
    short += time.monotonic() - start < 0.045
say(short)
""",
        masters(5),
    )
    assert said == ["0"]


@pytest.mark.parametrize("hung", [1, 2, 3])
def test_others_go_on_while_one_waits_for_hung_masters(program, masters, hung):
    servers = masters(3)
    for server in servers[:hung]:
        server.freeze()
    said = program(
        """
dlm.retry_count = 3
with Ticking() as ticking:
    lock = dlm.lock("r", 20_000)
    if lock:
        dlm.unlock(lock)
    say(bool(lock), ticking.count)
""",
        servers,
    )
    assert said[0] == str(hung == 1)
    assert hung == 1 or int(said[1]) > 10  # of 200 to 300
    nothing_left(servers[hung:])


def test_others_go_on_while_one_connects_to_a_name(program, masters):
    """The name is looked up in a thread of the engine's own, which no patch knows of."""
    (server,) = masters(1)
    said = program(
        """
dlm = Redlock([urls[0].replace("127.0.0.1", "localhost")])
with Ticking():
    lock = dlm.lock("r", 20_000)
    dlm.unlock(lock)
say(bool(lock))
""",
        [server],
    )
    assert said == ["True"]
    nothing_left([server])


def test_greenlets_exclude_each_other(program, masters):
    """Twenty on one manager read a counter, and write it a little later."""
    servers = masters(3)
    said = program(
        """
counter = 0
def work():
    global counter
    for _ in range(5):
        lock = dlm.lock("r", 20_000)
        value = counter
        sleep(0.002)
        counter = value + 1
        dlm.unlock(lock)
join(*[spawn(work) for _ in range(20)])
say(counter)
""",
        servers,
    )
    assert said == ["100"]
    nothing_left(servers)


def test_a_timeout_while_waiting_for_a_holder(program, masters):
    servers = masters(3)
    held = manager(servers).lock("r", TTL)
    said = program(
        """
with Ticking() as ticking:
    try:
        with Timeout(0.5):
            dlm.lock("r", 20_000)
    except Timeout:
        say("timeout", ticking.count > 10)
dlm.retry_count = 1
say(dlm.lock("r", 20_000), bool(dlm.lock("s", 20_000)))
""",
        servers,
    )
    assert said == ["timeout", "True", "False", "True"]
    assert [server.get("r") for server in servers].count(held.key) >= 2


MIDDLE = {
    "timeout": """
try:
    with Timeout(0.2):
        dlm.lock("r", 20_000)
except Timeout:
    say("raised")
""",
    "kill": """
victim = spawn(dlm.lock, "r", 20_000)
sleep(0.2)
victim.kill()
while not victim.dead:
    sleep(0.01)
say("raised")
""",
    "exception": """
def lock():
    try:
        dlm.lock("r", 20_000)
    except KeyError:
        say("raised")
victim = spawn(lock)
sleep(0.2)
victim.kill(KeyError)
while not victim.dead:
    sleep(0.01)
""",
}


@pytest.mark.parametrize("end", MIDDLE)
def test_what_ends_the_wait_in_the_middle_of_a_round_is_raised_when_all_is_released(program, masters, end):
    """One master has granted and two are hung; the key is gone from the one by the time the caller knows."""
    servers = masters(3)
    for server in servers[1:]:
        server.freeze()
    said = program(
        MIDDLE[end]
        + """
import redis
left = redis.Redis.from_url(urls[0]).keys()
say(left)
""",
        servers,
    )
    assert said == ["raised", "[]"]
    for server in servers[1:]:
        server.thaw()
    nothing_left(servers)


def test_a_patched_program_that_forks(program, masters):
    """gunicorn's gevent workers: patched in the parent, forked, then used in both."""
    servers = masters(3)
    said = program(
        """
def pairs(name):
    for _ in range(20):
        lock = dlm.lock(name, 20_000)
        sleep(0.001)
        dlm.unlock(lock)
    return bool(lock)
pairs("before")
child = os.fork()
if child == 0:
    ok = pairs("child")
    os._exit(0 if ok else 1)
say(pairs("parent"))
say(os.waitpid(child, 0)[1])
""",
        servers,
    )
    assert said == ["True", "0"]
    nothing_left(servers)


def test_a_lease_is_kept_while_greenlets_run(program, masters):
    """By a keeper that is a greenlet itself; and whoever waits for the loss lets the others go on."""
    servers = masters(3)
    count, lost, in_time, told = program(
        """
with Ticking() as ticking, dlm.acquire("r", 600, auto_extend=True) as lease:
    sleep(1.5)
    lease.ensure()
    lost = lease.lost.wait(0.1)
say(ticking.count, lost, lease.released_in_time)
short = dlm.acquire("s", 300)
say(short.lost.wait())
""",
        servers,
    )
    assert int(count) > 20  # of 300, on a slow machine
    assert (lost, in_time, told) == ("False", "True", "True")
    nothing_left(servers)
