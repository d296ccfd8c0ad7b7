"""Leases are renewed by a thread of the engine, which needs no interpreter."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from redlock import AsyncRedlock, LockLost, Redlock
from redlock._redlock import now
from support.locks import PROMPT, TTL, held, manager, nothing_left, warm
from support.programs import Program, run
from support.servers import wait_until

SHORT = 900  # ms


@pytest.fixture
def servers(masters):
    return masters(3)


def hold_the_interpreter(seconds):
    """Sleep without letting go of the GIL, as C code may do."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


def test_a_lease_is_kept_while_c_code_holds_the_interpreter(servers):
    with Redlock([server.url for server in servers]).acquire("r", SHORT, auto_extend=True) as lease:
        hold_the_interpreter(3 * SHORT / 1000)
        lease.ensure(SHORT / 4)
        assert held(servers) == [lease.key] * 3


def test_a_lease_is_kept_while_the_loop_is_blocked(servers):
    async def main():
        adlm = AsyncRedlock([server.url for server in servers])
        async with adlm.acquire("r", SHORT, auto_extend=True) as lease:
            time.sleep(3 * SHORT / 1000)  # noqa: ASYNC251 - as a careless handler does
            lease.ensure(SHORT / 4)
            await asyncio.sleep(0)
        assert lease.released_in_time

    asyncio.run(main())
    nothing_left(servers)


def test_many_leases_are_renewed_at_once(servers, through):
    """One after another, with 20 ms each, they would take three times their TTL."""
    proxies = [through(server) for server in servers]
    dlm = manager(proxies)
    warm(dlm, servers)
    leases = [dlm.acquire(f"r{number}", 3 * SHORT, auto_extend=True) for number in range(200)]
    for proxy in proxies:
        proxy.delay = 0.02
    end = now() + 2 * 3 * SHORT / 1000
    while now() < end:
        time.sleep(0.1)
        assert not [lease for lease in leases if lease.lost.is_set()]
    assert dlm.stats().extended >= 200
    assert dlm.stats().round_trip.count >= 200
    for lease in leases:
        lease.release()
    nothing_left(servers)


def test_a_silence_that_ends_in_time_loses_no_lease(servers):
    dlm = manager(servers)
    with dlm.acquire("r", 10 * SHORT, auto_extend=True) as lease:
        for server in servers[1:]:
            server.freeze()
        wait_until(lambda: lease.remaining < 5 * SHORT)
        for server in servers[1:]:
            server.thaw()
        wait_until(lambda: lease.remaining > 6 * SHORT)


def test_the_thread_is_there_only_while_it_is_needed(servers):
    def is_there():
        names = []
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has just ended
                names.append((task / "comm").read_text().strip())
        return "redlock-driver" in names

    if sys.platform != "linux":
        pytest.skip("threads are listed as Linux does")
    dlm = manager(servers)
    with dlm.acquire("r", TTL):
        pass
    wait_until(lambda: not is_there())
    with dlm.acquire("r", TTL, auto_extend=True):
        wait_until(is_there)
    wait_until(lambda: not is_there(), timeout=30)


def test_a_lease_that_is_dropped_is_released_and_not_counted(servers):
    dlm = manager(servers)
    lease = dlm.acquire("r", TTL, auto_extend=True)
    assert dlm.stats().held == 1
    with pytest.warns(ResourceWarning, match="dropped"):
        del lease
    nothing_left(servers)
    assert dlm.stats().held == 0
    wait_until(lambda: dlm.stats().released == 1)


def test_so_is_one_whose_manager_is_dropped_with_it(servers):
    with pytest.warns(ResourceWarning, match="dropped"):
        manager(servers).acquire("r", TTL, auto_extend=True)
    nothing_left(servers)


def test_a_process_that_was_stopped_for_long_knows_it_at_once(servers):
    with Program(
        """
        from redlock import LockLost
        dlm = Redlock(sys.argv[1:])
        lease = dlm.acquire("r", 600, auto_extend=True, on_lost=lambda lost: say("told", lost.lost.reason))
        say("held")
        hear()
        """,
        *(server.url for server in servers),
    ) as program:
        assert program.hear() == "held"
        os.kill(program.pid, signal.SIGSTOP)
        wait_until(lambda: held(servers) == [None] * 3)
        os.kill(program.pid, signal.SIGCONT)
        assert program.hear() == "told expired"
        program.say()
        assert program.finish()[0] == 0


def test_the_end_of_the_interpreter_releases_what_is_kept(servers):
    run(
        """
        dlm = Redlock(sys.argv[1:])
        leases = [dlm.acquire(f"r{number}", 60_000, auto_extend=True) for number in range(1000)]
        """,
        *(server.url for server in servers),
    )
    wait_until(lambda: [server.admin.dbsize() for server in servers] == [0] * 3)


def test_forks_while_leases_are_renewed_harm_neither_side(servers):
    said = run(
        """
        import warnings
        warnings.simplefilter("ignore")  # Python's own, of forks beside threads
        dlm = Redlock(sys.argv[1:])
        leases = [dlm.acquire(f"r{number}", 600, auto_extend=True) for number in range(50)]
        for turn in range(60):
            child = os.fork()
            if not child:
                ok = all(lease.lost.reason == "forked" for lease in leases)
                if turn % 10 == 0:
                    with dlm.acquire(f"child{turn}", 600, auto_extend=True) as own:
                        time.sleep(0.5)
                        ok = ok and own.remaining > 0
                os._exit(0 if ok else 1)
            time.sleep(0.02)
            assert os.waitpid(child, 0)[1] == 0
        say([lease.lost.reason for lease in leases if lease.lost.is_set()], dlm.stats().lost)
        for lease in leases:
            lease.release()
        """,
        *(server.url for server in servers),
    )
    assert said == "[] 0\n"
    nothing_left(servers)


def test_a_thread_may_extend_and_release_while_the_engine_renews(servers):
    """Whoever comes last: the release, which waits for its turn."""
    dlm = manager(servers)
    warm(dlm, servers)
    for turn in range(30):
        lease = dlm.acquire("r", 300, auto_extend=True)
        stop = threading.Event()

        def extend(lease=lease, stop=stop):
            while not stop.is_set():
                try:
                    lease.extend()
                except LockLost:
                    return

        threads = [threading.Thread(target=extend) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.1 + turn * 0.003)
        lease.release()
        assert lease.lost.is_set() is False
        stop.set()
        for thread in threads:
            thread.join(PROMPT)
            assert not thread.is_alive()
        nothing_left(servers)
