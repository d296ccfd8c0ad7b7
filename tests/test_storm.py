"""Exceptions at random moments of calls: by signal handlers, set into threads, by gevent's timeouts.

Whatever they break off, nothing is left at the masters, leases that are held are extended, and nothing spins.
`STORM_SECONDS=n` has each storm go on for so long, `SEED=n` strikes at other moments.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

from support.locks import nothing_left
from support.programs import Program

SECONDS = float(os.environ.get("STORM_SECONDS") or 2)
SEED = int(os.environ.get("SEED") or 1)  # `make` hands on an empty one

pytestmark = pytest.mark.once

SET_UP = """
seed, seconds, urls = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
rng = random.Random(seed)

class Limit(Exception):
    pass

dlm = Redlock(urls, 1000, 0.02)
kept = dlm.acquire("kept", 2500, auto_extend=True)  # held all the time, which is longer

def work(name, kind):
    '''What a job does. A lease that is not extended, and a lock, may be left for their TTLs, which are short.'''
    if kind < 6:
        with dlm.acquire(name, 20_000, auto_extend=True) as lease:
            lease.ensure()
            if kind == 1:
                lease.extend()
    elif kind == 6:
        with dlm.acquire(name, 300):
            pass
    elif lock := dlm.lock(name, 300):
        dlm.unlock(lock)

def usual():
    '''Seconds that it takes.'''
    took = []
    for turn in range(100):
        start = time.perf_counter()
        work("usual", turn % 8)
        took.append(time.perf_counter() - start)
    return sorted(took)[75]

usual = usual()
"""

AFTERWARDS = """
def wait_until(condition, what):
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            say("never:", what)
            sys.exit(1)
        time.sleep(0.01)

kept.ensure()
wait_until(lambda: dlm.stats().held == 1, "no lease held but one")
start = time.process_time()
time.sleep(1.5)
busy = time.process_time() - start
if busy > 0.75:
    say("busy:", busy)
kept.ensure()
with dlm.acquire("after", 1000, auto_extend=True) as lease:
    time.sleep(1.2)
    lease.ensure()
kept.release()
wait_until(lambda: threading.active_count() == 1, "no thread left")
say(struck)
hear()
"""

BY_SIGNALS = """
def strike(*_):
    raise Limit

signal.signal(signal.SIGALRM, strike)
struck, turn, end = 0, 0, time.monotonic() + seconds
while time.monotonic() < end:
    turn += 1
    kind, moment = rng.randrange(8), max(1e-6, rng.uniform(0, 1.2 * usual))
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, moment)
            work(f"r{turn}", kind)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Limit:
        struck += 1
"""

INTO_THREADS = """
import ctypes
from queue import SimpleQueue

def throw(thread):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Limit))

sys.setswitchinterval(1e-5)  # or it would only strike where a thread waits
begun, struck, turns, end = SimpleQueue(), 0, iter(range(1_000_000)), time.monotonic() + seconds

def worker():
    global struck
    kinds = random.Random(seed)
    while time.monotonic() < end:
        name, kind = f"r{next(turns)}", kinds.randrange(8)
        try:
            begun.put(threading.get_ident())
            work(name, kind)
            while True:  # until it is struck: never outside of this block
                time.sleep(0.0001)
        except Limit:
            struck += 1

threads = [threading.Thread(target=worker) for _ in range(3)]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    try:
        thread = begun.get(timeout=0.1)
    except Exception:
        continue
    time.sleep(rng.uniform(0, 0.7 * usual))  # most of them work then, and do not wait
    throw(thread)
"""

BY_TIMEOUTS = """
turns, struck, end = iter(range(1_000_000)), 0, time.monotonic() + seconds

def worker():
    global struck
    while time.monotonic() < end:
        turn = next(turns)
        try:
            with gevent.Timeout(rng.uniform(0, 4 * usual), Limit):
                work(f"r{turn}", rng.randrange(8))
        except Limit:
            struck += 1

gevent.joinall([gevent.spawn(worker) for _ in range(5)], raise_error=True)
"""


def storm(servers, source):
    """Run one; how often it struck."""
    words = [str(SEED), str(SECONDS), *(server.url for server in servers)]
    with Program(source, *words, timeout=120 + 2 * SECONDS) as program:
        said = program.hear()
        assert said.isdigit(), (said, *program.finish())
        nothing_left(servers)
        program.say()
        assert program.finish() == (0, "", "")
    return int(said)


def test_a_signal_handler_raises(masters):
    assert storm(masters(3), SET_UP + BY_SIGNALS + AFTERWARDS) > 10


def test_an_exception_is_set_into_threads(masters):
    assert storm(masters(3), SET_UP + INTO_THREADS + AFTERWARDS) > 10


@pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
def test_a_timeout_of_gevent_is_over(masters):
    patch = "from gevent import monkey; monkey.patch_all()\nimport gevent\n"
    assert storm(masters(3), patch + SET_UP + BY_TIMEOUTS + AFTERWARDS) > 10
