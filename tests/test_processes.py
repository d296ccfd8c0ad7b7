"""Threads, forks, signals, exits and memory: one manager in the ways that programs use it.

Programs run in processes of their own, so that pytest neither forks nor is interrupted. H11 ... are numbers of hazards.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from redlock import Lock
from redlock._redlock import close_unused
from support.locks import TTL, is_held, manager, nothing_left
from support.programs import PRELUDE, Program, run
from support.servers import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

LIVELY = 20.0  # seconds: what takes longer hangs


def urls(places):
    return [place.url for place in places]


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
@pytest.mark.parametrize("workers", [16, 64])
def test_h16_threads_share_a_manager_and_exclude_each_other(masters, workers):
    """H16: a counter that is read, and written a little later, loses nothing."""
    servers = masters(3)
    dlm = manager(servers, retry_count=100_000, retry_delay=0.005)
    counter = [0]
    rounds = 160 // workers

    def work():
        for _ in range(rounds):
            lock = dlm.lock("r", TTL)
            value = counter[0]
            time.sleep(0.0005)
            counter[0] = value + 1
            dlm.unlock(lock)

    join(threading.Thread(target=work) for _ in range(workers))
    assert counter == [rounds * workers]
    nothing_left(servers)


def test_h16_threads_with_resources_of_their_own_do_not_mix_them_up(masters):
    """H16: every thread gets its own lock, never another's answer."""
    servers = masters(3)
    dlm = manager(servers, retry_count=1)
    wrong = []

    def work(name):
        for turn in range(50):
            lock = dlm.lock(name, TTL)
            if not lock or lock.resource != name or servers_say(servers, name) != lock.key:
                wrong.append((name, turn, lock))
            dlm.unlock(lock)

    join(threading.Thread(target=work, args=(f"r{number}",)) for number in range(16))
    assert wrong == []
    nothing_left(servers)


def servers_say(servers, name):
    """The value that a majority of servers holds."""
    clients = [server.client() for server in servers]
    try:
        values = [client.get(name) for client in clients]
    finally:
        for client in clients:
            client.close()
    return max(values, key=lambda value: (values.count(value), value is not None))


def test_connections_are_as_many_as_calls_at_once(masters):
    """Sixteen threads, one after another, need one connection; threads at once, no more than one each."""
    (server,) = masters(1)
    dlm = manager([server])

    def work():
        dlm.unlock(dlm.lock(threading.current_thread().name, TTL))

    for _ in range(16):
        join([threading.Thread(target=work)])
    assert len(server.connections()) == 1
    for _ in range(5):
        join(threading.Thread(target=work) for _ in range(16))
    assert len(server.connections()) <= 16


def test_a_waiting_thread_does_not_hold_up_another(masters):
    """Neither the interpreter's lock nor a pool is held during the wait: the releaser gets through."""
    servers = masters(1)
    dlm = manager(servers, retry_count=1000, retry_delay=0.01)
    lock = dlm.lock("r", TTL)
    taken = []
    waiters = [threading.Thread(target=lambda: taken.append(dlm.lock("r", 200))) for _ in range(8)]
    for waiter in waiters:
        waiter.start()
    time.sleep(0.1)
    dlm.unlock(lock)
    for waiter in waiters:
        waiter.join(LIVELY)
    assert len(taken) == 8
    assert all(taken)


def join(threads):
    """Run threads to their end; a hang is a failure and not a hang of the suite."""
    everyone = list(threads)
    for thread in everyone:
        thread.daemon = True
        thread.start()
    end = time.monotonic() + 60
    for thread in everyone:
        thread.join(max(0.0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in everyone)


# -- fork --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
def test_h17_a_child_of_a_fork_sends_nothing_on_the_parents_connections(masters, through, fronts, authority, encrypted):
    """H17: the replies would go to the wrong process. Not even a goodbye (QUIT, a TLS alert, a shutdown) is allowed."""
    servers = masters(3)
    proxies = [through(fronts(server, authority.server) if encrypted else server) for server in servers]
    places = urls(proxies)
    if encrypted:
        places = [f"{url.replace('redis:', 'rediss:')}?ssl_ca_certs={authority.ca}" for url in places]
    source = """
    dlm = Redlock(sys.argv[1:], 1)
    for turn in range(10):
        dlm.unlock(dlm.lock("parent", 20000))
    say("used")
    hear()
    pid = fork()
    if pid == 0:
        for turn in range(20):
            lock = dlm.lock("child", 20000)
            dlm.unlock(lock)
            if not lock:
                os._exit(1)
        del dlm
        os._exit(0)
    say(os.waitpid(pid, 0)[1])
    hear()
    for turn in range(20):
        lock = dlm.lock("parent", 20000)
        dlm.unlock(lock)
        if not lock:
            sys.exit("the parent's lock failed")
    """
    with Program(source, *places) as program:
        assert program.hear() == "used"
        wait_until(lambda: all(len(proxy.links) == 1 for proxy in proxies))
        quiet = [bytes(proxy.links[0].sent) for proxy in proxies]
        program.say()
        assert program.hear() == "0"
        assert [bytes(proxy.links[0].sent) for proxy in proxies] == quiet
        assert all(proxy.links[0].open for proxy in proxies)
        program.say()
        assert program.finish() == (0, "", "")
    assert all(len(proxy.links) == 2 for proxy in proxies), "the parent's connection was not used again"
    assert encrypted or all(b"parent" not in proxy.links[1].sent for proxy in proxies)
    nothing_left(servers)


@pytest.mark.every_kind
def test_h17_parent_and_children_lock_at_once(masters):
    """H17: four generations of processes, the same manager, one file that two holders would corrupt."""
    servers = masters(3)
    source = """
    import tempfile
    dlm = Redlock(sys.argv[1:], 100_000, 0.005)
    dlm.unlock(dlm.lock("r", 20000))
    counter = tempfile.NamedTemporaryFile("w+")
    counter.write("0")
    counter.flush()

    def work():
        for turn in range(25):
            lock = dlm.lock("r", 20000)
            value = int(open(counter.name).read())
            time.sleep(0.0005)
            with open(counter.name, "w") as file:
                file.write(str(value + 1))
            dlm.unlock(lock)

    children = []
    for number in range(3):
        pid = fork()
        if pid == 0:
            if number == 2 and os.fork() == 0:
                work()
                os._exit(0)
            work()
            if number == 2:
                os.wait()
            os._exit(0)
        children.append(pid)
    work()
    for pid in children:
        os.waitpid(pid, 0)
    say(open(counter.name).read())
    """
    assert run(source, *urls(servers)).strip() == "125"
    nothing_left(servers)


def test_h17_fork_while_threads_are_locking(masters):
    """H17: whatever other threads held at the fork, a mutex or a session, the child must not wait for it."""
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[1:], 1000, 0.002)
    stop = threading.Event()
    wrong = []

    def work(name):
        while not stop.is_set():
            lock = dlm.lock(name, 20000)
            dlm.unlock(lock)
            if not lock:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    codes = []
    for turn in range(40):
        pid = os.fork()
        if pid == 0:
            signal.alarm(10)
            lock = dlm.lock("child", 20000)
            dlm.unlock(lock)
            os._exit(0 if lock else 1)
        codes.append(os.waitpid(pid, 0)[1])
    stop.set()
    for thread in threads:
        thread.join()
    say(set(codes), wrong)
    """
    with Program(source, *urls(servers)) as program:
        code, out, _ = program.finish()  # Python itself warns of such forks from 3.12 on
    assert (code, out.strip()) == (0, "{0} []")
    nothing_left(servers)


def test_h17_calls_import_nothing(masters):
    """H17: whatever a thread of the parent was importing at the fork, the child would wait for, for ever."""
    source = """
    from redlock import CannotObtainLock
    dlm = Redlock(sys.argv[1:], 1)
    before = set(sys.modules)
    lock = dlm.lock("r", 20000)
    dlm.lock("r", 20000), dlm.locked("r"), dlm.extend(lock, 20000)
    try:
        dlm.acquire("r", 20000, timeout=0)
    except CannotObtainLock:
        dlm.unlock(lock)
    with dlm.acquire("r", 20000, auto_extend=True, fencing=True) as lease:
        lease.extend()
    dlm.stats()
    say(set(sys.modules) - before)
    """
    assert run(source, *urls(masters(3))).strip() == "set()"


def test_h18_a_child_neither_has_nor_ends_its_parents_lock(masters):
    """H18: forked while a lock is held. The child is refused, and its end changes nothing."""
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[1:], 1)
    lock = dlm.lock("r", 20000)
    pid = fork()
    if pid == 0:
        refused = dlm.lock("r", 20000) is False
        del dlm, lock
        sys.exit(0 if refused else 1)
    code = os.waitpid(pid, 0)[1]
    say(code, lock.key.decode())
    hear()
    dlm.unlock(lock)
    """
    with Program(source, *urls(servers)) as program:
        code, key = program.hear().split()
        assert code == "0"
        assert is_held(servers, Lock(0, "r", key.encode()))
        program.say()
        assert program.finish() == (0, "", "")
    nothing_left(servers)


def test_a_child_may_release_what_its_parent_took(masters):
    """The lock is a name and a key; whoever has them may unlock."""
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[1:], 1)
    lock = dlm.lock("r", 20000)
    pid = fork()
    if pid == 0:
        dlm.unlock(lock)
        os._exit(0)
    os.waitpid(pid, 0)
    say(bool(dlm.lock("r", 20000)))
    """
    assert run(source, *urls(servers)).strip() == "True"


# A daemon is forked twice, and closes all descriptors that it does not know: their numbers become its own files'.
DAEMON = """
    import asyncio, gc, socket, tempfile
    from redlock import AsyncRedlock

    def daemonize():
        if os.fork():
            os._exit(os.wait()[1] != 0)
        os.setsid()
        if os.fork():
            os._exit(os.wait()[1] != 0)
        os.closerange(3, 64)
        if KIND == "files":
            mine = [tempfile.TemporaryFile() for _ in range(50)]
        else:
            mine = [end for _ in range(25) for end in socket.socketpair()]
        return [(each, os.fstat(each.fileno())) for each in mine]

    def all_open(mine):
        try:
            return all(os.path.samestat(os.fstat(each.fileno()), stat) for each, stat in mine)
        except OSError as error:
            return error

    KIND, *urls = sys.argv[1:]
"""
USES = {
    "idle connections": """
    dlm = Redlock(urls, 1)
    dlm.unlock(dlm.lock("r", 20000))
    mine = daemonize()
    dlm.unlock(dlm.lock("r", 20000))
    say(all_open(mine))
    """,
    "a manager that is collected": """
    dlm = Redlock(urls, 1)
    dlm.unlock(dlm.lock("r", 20000))
    mine = daemonize()
    del dlm
    gc.collect()
    say(all_open(mine))
    """,
    "a grandchild of a child that used it": """
    dlm = Redlock(urls, 1)
    dlm.unlock(dlm.lock("r", 20000))
    if fork():
        os._exit(os.wait()[1] != 0)
    dlm.unlock(dlm.lock("r", 20000))
    mine = daemonize()
    dlm.unlock(dlm.lock("r", 20000))
    del dlm
    gc.collect()
    say(all_open(mine))
    """,
    "sessions of other threads": """
    dlm = Redlock(urls, 1000, 0.01)
    lock = dlm.lock("r", 20000)
    for _ in range(4):
        threading.Thread(target=dlm.lock, args=("r", 20000), daemon=True).start()
    time.sleep(0.2)
    mine = daemonize()
    dlm.unlock(dlm.lock("other", 20000))
    dlm.unlock(lock)
    del dlm
    gc.collect()
    say(all_open(mine))
    """,
    "an event loop": """
    adlm = AsyncRedlock(urls, 1)

    async def pair():
        await adlm.unlock(await adlm.lock("r", 20000))

    class Loop(asyncio.SelectorEventLoop):
        def __del__(self):
            '(asyncio closes its own, whosever they are.)'

    loop = Loop()
    loop.run_until_complete(pair())
    kept = loop._ssock, loop._csock, loop._selector._selector
    mine = daemonize()
    del loop
    gc.collect()
    asyncio.run(pair())
    del adlm
    gc.collect()
    say(all_open(mine))
    """,
}


@pytest.mark.parametrize("kind_of_file", ["files", "sockets"])
@pytest.mark.parametrize("use", USES)
def test_a_daemon_keeps_its_files_whose_numbers_were_the_parents_connections(masters, use, kind_of_file):
    """Whatever the numbers have become, what came with the fork does not close it."""
    servers = masters(3)
    source = DAEMON + USES[use]
    with Program(source, kind_of_file, *urls(servers)) as program:
        code, out, _ = program.finish()  # Python itself warns of forks beside threads
    assert (code, out) == (0, "True\n")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(masters, tmp_path, method):
    """Workers of a pool, each with a manager made from the same URLs; under fork also the inherited one."""
    servers = masters(3)
    script = tmp_path / "program.py"
    script.write_text(
        PRELUDE
        + """
import multiprocessing

dlm = Redlock(sys.argv[2:], 1000, 0.005)
dlm.unlock(dlm.lock("r", 20000))

def work(number):
    lock = dlm.lock("r", 20000)
    dlm.unlock(lock)
    return bool(lock)

if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
        say(all(pool.map(work, range(30))))
        pool.close()
        pool.join()
"""
    )
    # A script and not `-c`: spawned workers import the main module from its file.
    start = f"os.execv(sys.executable, [sys.executable, {str(script)!r}, *sys.argv[1:]])"
    assert run(start, method, *urls(servers)) == "True\n"
    nothing_left(servers)


@pytest.mark.parametrize("ends", ["handler returns", "handler exits"])
def test_a_handler_that_forks_leaves_the_call_to_the_parent(masters, through, ends):
    """The child neither sends a byte on its parent's connections nor releases what its parent takes."""
    servers = masters(3)
    lock = manager(servers).lock("r", TTL)
    proxies = [through(server) for server in servers]
    source = """
    def fork(*_):
        global child
        child = os.fork()
        if child == 0 and sys.argv[1] == "handler exits":
            raise SystemExit
    parent = os.getpid()
    signal.signal(signal.SIGUSR1, fork)
    dlm = Redlock(sys.argv[2:], 1000, 600)
    say("waiting")
    try:
        lock = dlm.lock("r", 20000)
    except (RuntimeError, SystemExit):
        os._exit(os.getpid() == parent)
    say(os.waitpid(child, 0)[1], bool(lock), lock.key.decode())
    """
    with Program(source, ends, *urls(proxies)) as program:
        assert program.hear() == "waiting"
        wait_until(lambda: all(len(proxy.links) == 1 and b"PTTL" in proxy.links[0].sent for proxy in proxies))
        time.sleep(0.2)
        quiet = [bytes(proxy.links[0].sent) for proxy in proxies]
        program.interrupt(signal.SIGUSR1)
        time.sleep(0.5)
        assert [bytes(proxy.links[0].sent) for proxy in proxies] == quiet
        manager(servers).unlock(lock)
        code, locked, key = program.hear().split()
        assert (code, locked) == ("0", "True")
        assert is_held(servers, Lock(0, "r", key.encode()))
        assert program.finish() == (0, "", "")
    assert all(len(proxy.links) == 1 for proxy in proxies)


# -- signals -----------------------------------------------------------------------------------------------------------


def test_h11_ctrl_c_while_waiting_for_a_holder(masters):
    """H11: KeyboardInterrupt at once, in the middle of a pause, and only the holder's key remains."""
    servers = masters(3)
    holder = manager(servers)
    lock = holder.lock("r", TTL)
    source = """
    dlm = Redlock(sys.argv[1:], 1000, 30)
    say("waiting")
    try:
        dlm.lock("r", 20000)
    except KeyboardInterrupt:
        say("interrupted")
    """
    with Program(source, *urls(servers)) as program:
        assert program.hear() == "waiting"
        time.sleep(0.3)
        sent = time.monotonic()
        program.interrupt()
        assert program.hear() == "interrupted"
        assert time.monotonic() - sent < 2
        assert program.finish() == (0, "", "")
    assert is_held(servers, lock)


@pytest.mark.parametrize("warm", [True, False])
def test_h11_ctrl_c_in_the_middle_of_a_round(masters, warm):
    """H11: two of three masters hang, the third has granted; it is free again, and so are the two when they wake."""
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[2:], 1000, 0.001)
    if sys.argv[1] == "True":
        dlm.unlock(dlm.lock("r", 20000))
    say("ready")
    hear()
    try:
        dlm.lock("r", 20000)
    except KeyboardInterrupt:
        say("interrupted")
    """
    with Program(source, str(warm), *urls(servers)) as program:
        assert program.hear() == "ready"
        for server in servers[:2]:
            server.freeze()
        program.say()
        wait_until(lambda: servers[2].get("r"), what="a grant by the master that is left")
        program.interrupt()
        assert program.hear() == "interrupted"
        nothing_left(servers[2:])
        assert program.finish() == (0, "", "")
    for server in servers[:2]:
        server.thaw()
    nothing_left(servers)


def test_h11_ctrl_c_at_any_moment_leaves_nothing(masters):
    """H11: interrupts at random moments of a loop that locks and unlocks; a lock that was returned is unlocked."""
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[1:], 3, 0.001)
    interrupted = 0
    say("ready")
    while interrupted < 40:
        lock = None
        try:
            for turn in range(1_000_000):
                lock = dlm.lock(f"r{interrupted}-{turn}", 60000)
                dlm.unlock(lock)
                lock = None
        except KeyboardInterrupt:
            interrupted += 1
            if lock:
                dlm.unlock(lock)
            say(interrupted)
    """
    with Program(source, *urls(servers)) as program:
        assert program.hear() == "ready"
        for count in range(1, 41):
            time.sleep(0.003 + (count * 7919 % 13) / 1000)
            program.interrupt()
            assert program.hear() == str(count)
        assert program.finish() == (0, "", "")
    # A KeyboardInterrupt that CPython raises in the few bytecodes between the engine's return and the assignment loses
    # that lock, which no library can prevent. All others leave nothing.
    wait_until(lambda: len(set().union(*(server.keys() for server in servers))) <= 4, 2)


def test_a_signal_whose_handler_returns_does_not_end_the_wait(masters):
    """PEP 475: the call goes on, and handlers run during it, whether it waits or works when the signal comes."""
    servers = masters(3)
    holder = manager(servers)
    lock = holder.lock("r", TTL)
    source = """
    signal.signal(signal.SIGUSR1, lambda *_: say("handled"))
    dlm = Redlock(sys.argv[1:], 100_000, 0.001)
    say("waiting")
    say(bool(dlm.lock("r", 20000)))
    """
    with Program(source, *urls(servers)) as program:
        assert program.hear() == "waiting"
        for turn in range(50):
            time.sleep(0.005 + turn % 7 / 1000)
            program.interrupt(signal.SIGUSR1)
            assert program.hear() == "handled"
        holder.unlock(lock)
        assert program.hear() == "True"
        assert program.finish() == (0, "", "")


def test_a_handler_that_raises_its_own_exception(masters):
    """Whatever a handler raises comes out of `lock`, here in the midst of hung masters."""
    servers = masters(1)
    servers[0].freeze()
    source = """
    class Enough(Exception):
        pass

    def enough(*_):
        raise Enough

    signal.signal(signal.SIGALRM, enough)
    dlm = Redlock(sys.argv[1:], 1000, 30)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        dlm.lock("r", 20000)
    except Enough:
        say("enough")
    """
    assert run(source, *urls(servers)).strip() == "enough"


def test_a_handler_that_locks(masters):
    """A handler runs inside the waiting call; it may use the manager itself."""
    servers = masters(3)
    holder = manager(servers)
    lock = holder.lock("r", TTL)
    source = """
    dlm = Redlock(sys.argv[1:], 100_000, 0.05)

    def handler(*_):
        own = dlm.lock("handler", 20000)
        dlm.unlock(own)
        say("handled", bool(own))

    signal.signal(signal.SIGUSR1, handler)
    say("waiting")
    say(bool(dlm.lock("r", 20000)))
    """
    with Program(source, *urls(servers)) as program:
        assert program.hear() == "waiting"
        time.sleep(0.1)
        program.interrupt(signal.SIGUSR1)
        assert program.hear() == "handled True"
        holder.unlock(lock)
        assert program.hear() == "True"
        assert program.finish() == (0, "", "")


# -- exceptions for a thread -------------------------------------------------------------------------------------------

RAISE = """
    import ctypes

    class TimeLimit(BaseException):
        pass

    def set_in(thread):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(TimeLimit))
"""


@pytest.mark.parametrize("thread", ["main", "another"])
@pytest.mark.parametrize("call", ["lock", "acquire"])
def test_an_exception_set_into_a_waiting_thread_ends_the_wait(masters, thread, call):
    """As job queues do it that limit the time of a job: raised while others hold the lock, and nothing is taken."""
    servers = masters(3)
    lock = manager(servers).lock("r", TTL)
    source = (
        RAISE
        + """
    dlm = Redlock(sys.argv[3:], 1000, 600)
    calls = {"lock": lambda: dlm.lock("r", 20000), "acquire": lambda: dlm.acquire("r", 20000, timeout=1000)}

    def work():
        say("waiting")
        try:
            calls[sys.argv[2]]()
        except TimeLimit:
            say("raised")

    if sys.argv[1] == "main":
        threading.Timer(0.5, set_in, [threading.main_thread()]).start()
        work()
    else:
        worker = threading.Thread(target=work)
        worker.start()
        time.sleep(0.5)
        set_in(worker)
        worker.join()
    hear()
    """
    )
    with Program(source, thread, call, *urls(servers), timeout=LIVELY) as program:
        assert program.hear() == "waiting"
        assert program.hear() == "raised"
        assert is_held(servers, lock)
        manager(servers).unlock(lock)
        nothing_left(servers)
        program.say()
        assert program.finish() == (0, "", "")


def test_an_exception_set_into_a_thread_at_any_moment_of_a_wait_leaves_nothing(masters):
    """Just when the lock is had, as well: it is given back then."""
    servers = masters(3)
    source = (
        RAISE
        + """
    dlm = Redlock(sys.argv[1:], 3, 0.001)
    go = threading.Event()

    def limit(thread):
        for _ in range(100):
            go.wait()
            go.clear()
            time.sleep(0.002 + random.random() / 100)
            set_in(thread)

    threading.Thread(target=limit, args=[threading.main_thread()]).start()
    for number in range(100):
        lock = None
        go.set()
        try:
            for turn in range(1_000_000):
                lock = dlm.lock(f"r{number}-{turn}", 60000)
                dlm.unlock(lock)
                lock = None
        except TimeLimit:
            if lock:
                dlm.unlock(lock)
    """
    )
    with Program(source, *urls(servers)) as program:
        assert program.finish() == (0, "", "")
    # What is raised in the few bytecodes outside the engine loses that lock, which no library can prevent.
    wait_until(lambda: len(set().union(*(server.keys() for server in servers))) <= 10, 2)


# -- exit --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["return", "sys.exit", "exception"])
def test_exit_while_daemon_threads_lock_and_wait(masters, way):
    """Finalization of the interpreter while calls are in flight: no crash, no message, no hang."""
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[2:], 100_000, 0.05)
    held = dlm.lock("held", 20000)

    def work(name):
        while True:
            dlm.unlock(dlm.lock(name, 20000))

    for name in ("a", "b", "held", "held"):
        threading.Thread(target=work, args=(name,), daemon=True).start()
    time.sleep(0.3)
    if sys.argv[1] == "sys.exit":
        sys.exit(0)
    if sys.argv[1] == "exception":
        raise SystemExit
    """
    for _ in range(5):
        assert run(source, way, *urls(servers), timeout=LIVELY) == ""
        for server in servers:
            server.admin.flushall()


def test_exit_waits_for_threads_that_are_not_daemons(masters):
    servers = masters(3)
    source = """
    dlm = Redlock(sys.argv[1:], 100_000, 0.01)

    def work():
        for turn in range(20):
            dlm.unlock(dlm.lock("r", 20000))
        say("done")

    for number in range(4):
        threading.Thread(target=work).start()
    """
    assert run(source, *urls(servers), timeout=LIVELY).split() == ["done"] * 4
    nothing_left(servers)


def test_use_at_exit(masters):
    """`atexit` functions and finalizers of the module's globals are where programs unlock."""
    servers = masters(3)
    source = """
    import atexit
    dlm = Redlock(sys.argv[1:], 3)
    lock = dlm.lock("r", 20000)
    atexit.register(lambda: dlm.unlock(lock))
    """
    assert run(source, *urls(servers)) == ""
    nothing_left(servers)


def test_connections_are_closed_that_no_manager_uses(masters):
    servers = masters(3)
    dlm = manager(servers)
    dlm.unlock(dlm.lock("r", TTL))
    assert all(server.connections() for server in servers)
    del dlm
    assert all(server.connections() for server in servers), "kept for the next one"
    close_unused()
    wait_until(lambda: not any(server.connections() for server in servers), 5)


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_over_100_000_pairs(masters):
    source = """
    def rss():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def pairs(count):
        for turn in range(count):
            dlm.unlock(dlm.lock("r", 20000))

    dlm = Redlock(sys.argv[1:], 3)
    pairs(10_000)
    before = rss()
    pairs(100_000)
    say(rss() - before)
    """
    grown = int(run(source, *urls(masters(1)), timeout=600))
    assert grown < 1_000_000  # ten bytes a pair


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_neither_descriptors_nor_memory_grow_while_masters_fail(masters):
    """One of three dead and one hung: every call reconnects, or waits to, and fails."""
    servers = masters(3)
    source = """
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    dlm = Redlock([url + "?socket_timeout=0.01&socket_connect_timeout=0.01" for url in sys.argv[1:]], 1, 0.001)
    dlm.unlock(dlm.lock("r", 20000))
    say("ready")
    hear()
    counts = []
    for turn in range(200):
        assert dlm.lock("r", 20000) is False
        counts.append(descriptors())
    say(max(counts) < 30)
    """
    with Program(source, *urls(servers)) as program:
        assert program.hear() == "ready"
        servers[0].kill()
        servers[1].freeze()
        program.say()
        code, out, err = program.finish()
    assert (code, out, err) == (0, "True\n", "")
    nothing_left(servers[2:])
