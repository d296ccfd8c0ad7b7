"""The interpreter's own life: its end while calls are under way, collected managers, other interpreters in the process.

`test_processes.py` has exits while healthy masters answer, and fork.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading

import pytest

import redlock
from redlock._redlock import close_unused
from support.locks import TTL, held, manager, nothing_left
from support.programs import Program, run
from support.servers import wait_until

LIVELY = 20.0  # seconds: what takes longer hangs

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")  # noqa: PTH112


def urls(servers):
    return [server.url for server in servers]


# -- exit --------------------------------------------------------------------------------------------------------------

WAITS = {
    "for a holder": """
    dlm.lock("r", 20_000)
    wait = lambda: dlm.lock("r", 20_000)
    """,
    "for hung masters": """
    wait = lambda: dlm.lock("r", 20_000)
    """,
    "to release on hung masters": """
    wait = lambda: dlm.unlock(Lock(0, "r", b"key"))
    """,
    "in a client's own methods": """
    dlm = Redlock([url + "?encoding=latin-1" for url in urls], 100_000, 0.05)
    wait = lambda: dlm.lock("r", 20_000)
    """,
}
ENDS = {
    "return": "",
    "sys.exit": "sys.exit(0)",
    "_exit": "os._exit(0)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("wait", WAITS)
def test_exit_while_daemon_threads_wait(masters, wait, end):
    """Without a crash, a message or a hang: a thread that comes back from its wait finds no interpreter any more."""
    servers = masters(3)
    if "hung" in wait:
        for server in servers:
            server.freeze()
    source = f"""
    urls = sys.argv[1:]
    dlm = Redlock(urls, 100_000, 0.05)
    {WAITS[wait].strip()}
    def work():
        while True:
            wait()
    for _ in range(8):
        threading.Thread(target=work, daemon=True).start()
    time.sleep(0.3)
    {ENDS[end]}
    """
    with Program(source, *urls(servers), timeout=LIVELY) as program:
        code, out, err = program.finish()
    assert (code, out, err) == (-15 if end == "SIGTERM" else 0, "", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs on_exit of glibc")
def test_threads_that_outlive_the_interpreter_are_quiet(masters):
    """One comes back from a long wait, and there is no interpreter: the C library sleeps after its end."""
    servers = masters(3)
    source = """
    import ctypes
    dlm = Redlock(sys.argv[1:], 100_000, 600)
    dlm.lock("r", 20_000)
    for _ in range(8):
        threading.Thread(target=dlm.lock, args=("r", 20_000), daemon=True).start()
    time.sleep(0.5)
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "on_exit"):
        os._exit(3)
    libc.on_exit(libc.sleep, None)  # for as many seconds as the exit code says
    sys.exit(3)
    """
    with Program(source, *urls(servers), timeout=LIVELY) as program:
        assert program.finish() == (3, "", "")


def test_lock_and_unlock_at_exit(masters):
    """When modules are already going: by `atexit`, by a finalizer, and by `__del__` of a global."""
    servers = masters(3)
    source = """
    import atexit, weakref
    dlm = Redlock(sys.argv[1:], 3)

    def pair(name):
        lock = dlm.lock(name, 20_000)
        dlm.unlock(lock)
        say(name, bool(lock))

    class Last:
        def __del__(self, pair=pair):
            pair("del")

    keep = Last()
    weakref.finalize(keep, print, end="")
    atexit.register(pair, "atexit")
    """
    assert run(source, *urls(servers)).splitlines() == ["atexit True", "del True"]
    nothing_left(servers)


def test_a_thread_that_locks_while_the_main_thread_has_ended(masters):
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[1:], 100, 0.05)

    def work():
        time.sleep(0.2)  # until the main thread waits in threading._shutdown
        lock = dlm.lock("r", 20_000)
        dlm.unlock(lock)
        say(bool(lock))

    threading.Thread(target=work).start()
    """
    assert run(source, *urls(servers)) == "True\n"
    nothing_left(servers)


# -- collected managers ------------------------------------------------------------------------------------------------


def descriptors():
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@needs_proc
@pytest.mark.parametrize("hung", [0, 1, 3])
def test_collected_managers_leave_no_descriptors(masters, hung):
    """Idle sessions of 16 threads each, and connections that were being made."""
    servers = masters(3)
    lock_and_collect(servers)  # redis-py, hashlib and the like open files of their own
    close_unused()
    for server in servers[:hung]:
        server.freeze()
    before = descriptors()
    for _ in range(3):
        lock_and_collect(servers)
    close_unused()  # some would be kept for another manager
    wait_until(lambda: descriptors() <= before, 5, "as many descriptors as before")
    nothing_left(servers[hung:])


def lock_and_collect(servers):
    dlm = manager(servers, retry_count=1)

    def work(name):
        lock = dlm.lock(name, TTL)
        if lock:
            dlm.unlock(lock)

    threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@needs_proc
def test_a_manager_collected_in_the_middle_of_a_call_of_another_thread(masters):
    """The call has the engine; the last name of the manager goes away under it."""
    servers = masters(3)
    before = descriptors()
    holder = manager(servers)
    lock = holder.lock("r", TTL)
    results = []
    dlm = manager(servers, retry_count=1000, retry_delay=0.02)
    thread = threading.Thread(target=lambda acquire: results.append(acquire("r", TTL)), args=(dlm.lock,))
    thread.start()
    del dlm
    holder.unlock(lock)
    thread.join(LIVELY)
    assert results[0]
    assert held(servers).count(results[0].key) >= 2
    del thread, holder
    close_unused()
    wait_until(lambda: descriptors() <= before, 5, "as many descriptors as before")


# -- other interpreters in the process ---------------------------------------------------------------------------------

SUBINTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

code = '''
import sys
try:
    import redlock
    dlm = redlock.Redlock(URLS, 3)
    lock = dlm.lock("r", 20_000)
    dlm.unlock(lock)
    print("works" if lock else "fails", flush=True)
except ImportError as error:
    print("ImportError", flush=True)
'''
{first}
for _ in range(3):
    other = interpreters.create()
    failed = interpreters.run_string(other, code.replace("URLS", repr(sys.argv[1:])))
    if failed:
        say(failed)
    interpreters.destroy(other)
{last}
"""

PAIR = """
dlm = Redlock(sys.argv[1:], 3)
lock = dlm.lock("r", 20_000)
dlm.unlock(lock)
say("main", bool(lock))
"""


@pytest.mark.skipif(sys.version_info < (3, 12), reason="interpreters share everything before Python 3.12")
@pytest.mark.parametrize("used", ["before", "after"])
def test_a_sub_interpreter_works_or_is_refused(masters, used):
    """By an ImportError, not by a crash; and the main interpreter goes on using its own."""
    servers = masters(3)
    source = SUBINTERPRETER.format(first=PAIR if used == "before" else "", last=PAIR)
    said = run(source, *urls(servers)).splitlines()
    assert set(said) - {"main True"} in ({"works"}, {"ImportError"})
    assert said[-1] == "main True"
    nothing_left(servers)


# -- without the GIL ---------------------------------------------------------------------------------------------------


def test_the_engine_does_not_bring_the_gil_back(masters):
    """The module says that it can do without; on a build that has one, there is nothing to see but that it works."""
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[1:], 100_000, 0.005)
    counter = [0]

    def work():
        for _ in range(20):
            lock = dlm.lock("r", 20_000)
            value = counter[0]
            time.sleep(0.0005)
            counter[0] = value + 1
            dlm.unlock(lock)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(counter[0], getattr(sys, "_is_gil_enabled", lambda: True)())
    """
    counter, gil = run(source, *urls(servers)).split()
    assert counter == "160"
    assert gil == str(not sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert redlock.Redlock.__module__ == "redlock"
    nothing_left(servers)
