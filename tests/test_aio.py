"""The asyncio manager: many tasks on one connection to each master, whatever becomes of tasks and loops.

The loops are asyncio's own and uvloop's. H11, H16, H17 are numbers of hazards.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import socket
import sys
import threading
import time
from unittest import mock

import anyio
import pytest
import redis
import redis.asyncio

import redlock
from redlock import AsyncRedlock, CannotObtainLock, Lock, LockContended, _loop
from support.locks import PROMPT, TTL, amanager, awarm, held, is_held, manager, nothing_left
from support.loops import KINDS, Turns, new_loop, run
from support.programs import Program
from support.programs import run as run_program
from support.proxy import Mode
from support.scripted import OK, Act
from support.servers import wait_until


@pytest.fixture(params=KINDS)
def loop(request):
    """An event loop that is not running; `run` closes it."""
    made = new_loop(request.param)
    yield made
    made.close()


async def lock_and_unlock(adlm, resource="r"):
    lock = await adlm.lock(resource, TTL)
    await adlm.unlock(lock)
    return lock


# -- lock and unlock ---------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
@pytest.mark.parametrize("count", [1, 3, 5])
def test_lock_sets_the_key_on_every_master_and_unlock_removes_it(masters, loop, count):
    servers = masters(count)
    adlm = amanager(servers)

    async def main():
        await awarm(adlm, servers)
        lock = await adlm.lock("r", TTL)
        assert isinstance(lock, Lock)
        assert (lock.resource, 0 < lock.validity < TTL) == ("r", True)
        await asyncio.sleep(0.05)  # returned at quorum, the rest follows
        assert held(servers) == [lock.key] * count
        assert await adlm.unlock(lock) is None

    run(main(), loop)
    nothing_left(servers)


def test_both_managers_exclude_each_other(masters, loop):
    servers = masters(3)
    dlm, adlm = manager(servers, retry_count=1), amanager(servers, retry_count=2)

    async def main():
        theirs = dlm.lock("r", TTL)
        assert await adlm.lock("r", TTL) is False
        await adlm.unlock(theirs)
        ours = await adlm.lock("r", TTL)
        assert dlm.lock("r", TTL) is False
        dlm.unlock(ours)

    run(main(), loop)
    nothing_left(servers)


def test_h16_tasks_exclude_each_other(masters, loop):
    """H16: a counter that is read, and written a little later, loses nothing."""
    servers = masters(3)
    adlm = amanager(servers, retry_count=100_000, retry_delay=0.005)
    counter = [0]

    async def work():
        lock = await adlm.lock("r", TTL)
        value = counter[0]
        await asyncio.sleep(0.0005)
        counter[0] = value + 1
        await adlm.unlock(lock)

    async def main():
        await asyncio.gather(*(work() for _ in range(50)))

    run(main(), loop)
    assert counter == [50]
    nothing_left(servers)


def test_any_number_of_tasks_has_one_connection_to_each_master_and_no_thread(masters, loop):
    servers = masters(3)
    adlm = amanager(servers)
    threads = threading.active_count()

    async def main():
        locks = await asyncio.gather(*(adlm.lock(f"r{number}", TTL) for number in range(300)))
        assert all(locks)
        assert len({lock.key for lock in locks}) == 300
        assert threading.active_count() == threads
        assert [len(server.connections()) for server in servers] == [1, 1, 1]
        await asyncio.gather(*map(adlm.unlock, locks))

    run(main(), loop)
    nothing_left(servers)


def test_a_waiting_task_does_not_hold_up_another(masters, loop):
    servers = masters(3)
    adlm = amanager(servers, retry_count=1000, retry_delay=0.01)

    async def main():
        lock = await adlm.lock("r", TTL)
        waiters = [asyncio.ensure_future(adlm.lock("r", 100)) for _ in range(8)]
        await asyncio.sleep(0.05)
        await lock_and_unlock(adlm, "other")
        assert not any(waiter.done() for waiter in waiters)
        await adlm.unlock(lock)
        assert all(await asyncio.gather(*waiters))

    run(main(), loop)


def test_a_minority_of_dead_or_hung_masters_costs_nothing_but_a_line_in_the_log(masters, loop, caplog):
    servers = masters(5)
    adlm = amanager(servers)

    async def main():
        await awarm(adlm, servers)
        servers[0].kill()
        servers[1].freeze()
        end = time.monotonic() + 10
        # Neither a lock nor a release waits for the frozen one, so it takes a while until that is known.
        while len(complaints()) < 2 and time.monotonic() < end:
            lock = await adlm.lock("r", TTL)
            assert lock
            await adlm.unlock(lock)

    def complaints():
        return [record.message for record in caplog.records if "no vote" in record.message]

    with caplog.at_level(logging.WARNING, "redlock"):
        run(main(), loop)
    said = complaints()
    assert sorted(str(servers[n].port) in "".join(said) for n in range(5)) == [False, False, False, True, True]
    nothing_left(servers[2:])


def test_connections_that_servers_close_are_replaced(masters, loop):
    """Their numbers go to other files at once: those are watched for nobody but their owners."""
    servers = masters(3)
    adlm = amanager(servers)

    async def main():
        for _ in range(5):
            assert await lock_and_unlock(adlm)
            for server in servers:
                server.admin.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.02)
            pairs = [socket.socketpair() for _ in range(8)]
            for near, far in pairs:
                near.setblocking(False)
                far.sendall(b"x")
                assert await asyncio.get_running_loop().sock_recv(near, 1) == b"x"
            for end in itertools.chain(*pairs):
                end.close()

    run(main(), loop)
    nothing_left(servers)


def test_an_end_that_comes_with_the_last_answer_is_noticed_while_the_loop_idles(scripted, loop):
    """The loop is told of both at once, and of neither again."""
    server = scripted()
    adlm = amanager([server])

    async def main():
        assert await lock_and_unlock(adlm)
        server.script = lambda command: [OK, Act.END] if command.name == "SET" else None
        before = len(server.named("SET"))
        task = asyncio.ensure_future(adlm.lock("r", TTL))
        await asyncio.sleep(0)
        wait_until(lambda: len(server.named("SET")) > before)
        time.sleep(0.2)  # noqa: ASYNC251 - until both are there
        assert await task
        await asyncio.get_running_loop().run_in_executor(None, wait_until, lambda: server.open_connections == 0)

    run(main(), loop)


@pytest.mark.parametrize("connected", [False, True])
def test_a_loop_that_was_busy_past_every_deadline_takes_the_answers_that_are_there(masters, loop, caplog, connected):
    """One turn for each of them; a connection takes several, and is no slower for it than its master."""
    servers = masters(3)
    adlm = amanager(servers, retry_count=1 if connected else 100)

    async def main():
        if connected:
            await awarm(adlm, servers)
        task = asyncio.ensure_future(adlm.lock("r", TTL))
        while not task.done():
            await asyncio.sleep(0)
            time.sleep(0.6)  # noqa: ASYNC251 - more than any master is given
        assert await task
        await adlm.unlock(task.result())

    run(main(), loop)
    assert caplog.text == ""
    nothing_left(servers)


def test_invalid_arguments_are_refused_before_anything_is_sent(scripted, loop):
    server = scripted()
    adlm = amanager([server])

    async def main():
        for resource, ttl, error in [(None, TTL, TypeError), ("r", 1.5, ValueError), ("\ud800", TTL, ValueError)]:
            with pytest.raises(error):
                await adlm.lock(resource, ttl)
        for lock, error in [(False, AttributeError), (Lock(0, "r", None), TypeError)]:
            with pytest.raises(error):
                await adlm.unlock(lock)
        assert await adlm.lock("r", 2) is False

    run(main(), loop)
    assert server.commands == []


def test_a_failed_release_is_logged(masters, loop, caplog):
    (server,) = masters(1)
    adlm = amanager([server])

    async def main():
        lock = await adlm.lock("r", TTL)
        server.admin.delete("r")
        server.admin.lpush("r", "not a lock")
        await adlm.unlock(lock)

    run(main(), loop)
    assert "Error unlocking resource r in server" in caplog.text


def test_one_that_could_not_be_made_is_shown_all_the_same():
    """Debuggers and error trackers show what a constructor that raised has left."""
    for made in (AsyncRedlock.__new__(AsyncRedlock), redlock.Redlock.__new__(redlock.Redlock)):
        assert repr(made) == f"<{type(made).__name__} over 0 masters, quorum None>"


# -- masters -----------------------------------------------------------------------------------------------------------


def test_masters_are_urls_mappings_and_clients_of_both_kinds(masters, loop):
    servers = masters(4)
    clients = redis.asyncio.Redis(port=servers[2].port), redis.Redis(port=servers[3].port)
    adlm = AsyncRedlock([servers[0].url, {"host": "127.0.0.1", "port": servers[1].port}, *clients])

    async def main():
        await awarm(adlm, servers)

    run(main(), loop)
    nothing_left(servers)


def test_settings_of_an_asyncio_client_are_honoured(spawn, loop):
    server = spawn(password="secret")
    client = redis.asyncio.Redis(unix_socket_path=str(server.socket_path), db=3, password="secret", client_name="me")

    async def main():
        adlm = AsyncRedlock([client])
        lock = await adlm.lock("r", TTL)
        (connection,) = server.connections()
        assert (connection["name"], connection["db"]) == ("me", "3")
        await adlm.unlock(lock)

    run(main(), loop)


def test_tls_settings_of_an_asyncio_client_are_honoured(masters, fronts, authority, loop):
    (server,) = masters(1)
    front = fronts(server, authority.server)
    good = f"rediss://{front.host}:{front.port}?ssl_ca_certs={authority.ca}"
    bad = f"rediss://{front.host}:{front.port}"

    async def main():
        assert await lock_and_unlock(AsyncRedlock([redis.asyncio.Redis.from_url(good)]))
        assert await AsyncRedlock([redis.asyncio.Redis.from_url(bad)], 1).lock("r", TTL) is False

    run(main(), loop)


class OwnSync(redis.Redis):
    """A client that may do anything."""


@pytest.mark.parametrize(
    "item",
    [
        OwnSync(),
        redis.Redis(redis_connect_func=print),
        mock.MagicMock(),
        7,
        "http://a",
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_the_engine_cannot_stand_in_for_is_a_warning(item):
    with pytest.raises(Warning):
        AsyncRedlock([item])


def test_masters_can_be_guarded(masters, loop):
    servers = masters(3)
    adlm = AsyncRedlock([server.url for server in servers], 1, restart_guard=600_000)

    async def main():
        assert await adlm.lock("r", TTL) is False  # all three were started less than ten minutes ago

    run(main(), loop)
    assert manager(servers).lock("r", TTL)
    with pytest.raises(TypeError, match="clock_guard"):
        AsyncRedlock(["redis://a"], clock_guard=1)


def test_the_constructor_is_as_strict_as_the_other_managers():
    with pytest.raises(CannotObtainLock):
        AsyncRedlock([])
    with pytest.raises(Warning, match="listed twice"):
        AsyncRedlock(["redis://a", redis.asyncio.Redis(host="a")])
    with pytest.raises(Warning) as caught:
        AsyncRedlock(["redis://:canary@a:port"])
    assert "canary" not in str(caught.value)
    assert repr(AsyncRedlock(["redis://a", "redis://b"])) == "<AsyncRedlock over 2 masters, quorum 2>"


def test_importing_the_package_does_not_import_asyncio():
    said = run_program(
        "import redlock; before = 'asyncio' in sys.modules; redlock.AsyncRedlock; say(before, 'asyncio' in sys.modules)"
    )
    assert said == "False True\n"
    assert "AsyncRedlock" in redlock.__all__
    assert AsyncRedlock.__module__ == "redlock"


# -- cancellation ------------------------------------------------------------------------------------------------------


async def everything(adlm):
    """A caller that holds a lock and takes care of it."""
    lock = await adlm.lock("r", TTL)
    if lock:
        try:
            await asyncio.sleep(0)
        finally:
            await adlm.unlock(lock)


@pytest.mark.parametrize("scene", ["new", "connected", "contended"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_h11_cancelled_at_every_suspension_point_nothing_is_left(masters, loop, scene, after):
    """H11: whatever the task was waiting for, the masters are free when it has ended."""
    servers = masters(3)

    async def main(turns):
        for turn in itertools.count(1):
            adlm = amanager(servers, retry_count=100)
            if scene != "new":
                await awarm(adlm, servers)
            if scene == "contended":
                for server in servers:
                    server.admin.set("r", "other", px=30)
            reached = await turns.cancel_at(turn, everything(adlm), after=after)
            await free_of_ours(servers)
            if not reached:
                return turn - 1
            if scene == "contended":
                await asyncio.sleep(0.03)
        return None

    with Turns() as turns:
        assert run(main(turns), loop) >= 4
    nothing_left(servers)


async def free_of_ours(servers):
    """At once, but for a master that a decided round had not waited for."""
    for _ in range(20):
        left = set(held(servers)) - {None, b"other"}
        if not left:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(left)


def test_h11_a_timeout_ends_the_wait_and_leaves_the_holder_alone(masters, loop):
    servers = masters(3)
    adlm = amanager(servers, retry_count=1000)

    async def main():
        lock = await adlm.lock("r", TTL)
        start = time.monotonic()
        for _ in range(20):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(adlm.lock("r", TTL), 0.01)
        assert time.monotonic() - start < PROMPT  # it waits for its release, and not for the lock
        assert is_held(servers, lock)
        await adlm.unlock(lock)

    run(main(), loop)
    nothing_left(servers)


def test_h11_cancelled_while_masters_hang_nothing_is_left_when_they_wake(masters, loop):
    servers = masters(3)
    adlm = amanager(servers)

    async def main():
        await awarm(adlm, servers)
        for server in servers:
            server.freeze()
        task = asyncio.ensure_future(adlm.lock("r", TTL))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(1)  # what is behind the caller's back has its deadline, too
        for server in servers:
            server.thaw()

    run(main(), loop)
    nothing_left(servers)


def test_h11_cancelled_twice_a_task_leaves_at_once_and_still_nothing_is_left(masters, through, loop):
    servers = masters(3)
    proxies = [through(server) for server in servers]
    adlm = amanager(proxies)

    async def main():
        await awarm(adlm, servers)
        for proxy in proxies:
            proxy.delay = 0.3
        task = asyncio.ensure_future(adlm.unlock(await adlm.lock("r", TTL)))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
        task.cancel()
        await asyncio.sleep(0.02)
        assert task.cancelled()
        await asyncio.sleep(0.5)

    run(main(), loop)
    nothing_left(servers)


def test_h11_cancelled_by_the_hundred(masters, loop):
    """Each at another moment, all on the same connections, and those that are not cancelled get what they ask for."""
    servers = masters(3)
    adlm = amanager(servers, retry_count=1000)

    async def main():
        tasks = [asyncio.ensure_future(lock_and_unlock(adlm, f"r{number % 50}")) for number in range(400)]
        for number, task in enumerate(tasks):
            if number % 2:
                task.cancel()
            await asyncio.sleep(0.0002)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, (Lock, asyncio.CancelledError)) for each in ended)
        assert all(ended[::2])

    run(main(), loop)
    nothing_left(servers)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs asyncio.timeout")
def test_h11_a_cancellation_is_the_callers_own_affair(masters, loop):
    """Cleaning up swallows no cancellation and counts none twice: `asyncio.timeout` is a TimeoutError."""
    servers = masters(3)
    adlm = amanager(servers, retry_count=1000)

    async def main():
        lock = await adlm.lock("r", TTL)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await adlm.lock("r", TTL)
        assert asyncio.current_task().cancelling() == 0
        await adlm.unlock(lock)

    run(main(), loop)
    nothing_left(servers)


def test_anyio_cancels_as_it_likes(masters, through):
    """anyio cancels a task again and again until it is gone."""
    servers = masters(3)
    proxies = [through(server) for server in servers]
    adlm = amanager(proxies, retry_count=1000)

    async def main():
        lock = await adlm.lock("r", TTL)
        with anyio.move_on_after(0.05) as scope:
            await adlm.lock("r", TTL)
        assert scope.cancelled_caught
        await adlm.unlock(lock)
        for proxy in proxies:
            proxy.delay = 0.3
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(take, number)
            await anyio.sleep(0.03)
            assert all(server.keys() for server in servers)
            group.cancel_scope.cancel()
        await anyio.sleep(0.5)
        for lock in taken:  # on a machine so slow that there was time for it
            await adlm.unlock(lock)

    taken = []

    async def take(number):
        taken.append(await adlm.lock(f"r{number}", TTL))

    anyio.run(main)
    assert len(taken) < 100
    nothing_left(servers)


# -- loops -------------------------------------------------------------------------------------------------------------


def test_one_manager_in_one_loop_after_another(masters):
    servers = masters(3)
    adlm = amanager(servers)
    for kind in KINDS * 3:
        assert run(lock_and_unlock(adlm), new_loop(kind))
    assert asyncio.run(lock_and_unlock(adlm))
    nothing_left(servers)


def test_a_closed_loop_leaves_no_connection(masters, loop):
    servers = masters(3)
    adlm = amanager(servers)
    assert run(lock_and_unlock(adlm), loop)
    wait_until(lambda: [server.connections() for server in servers] == [[], [], []])


@pytest.mark.parametrize("loop_kind", [*KINDS, "deaf"])
def test_connections_end_a_while_after_their_last_manager(masters, loop_kind, monkeypatch):
    """A manager for each request makes one connection to each master in all. They last while a lease needs them."""
    servers = masters(3)
    monkeypatch.setattr(_loop, "LONGEST_UNUSED", 1.0)

    def connections():
        return [[each["id"] for each in server.connections()] for server in servers]

    def until_none():
        return asyncio.get_running_loop().run_in_executor(None, wait_until, lambda: connections() == [[], [], []])

    async def main():
        lease = await amanager(servers).acquire("r", TTL)
        await asyncio.sleep(2)
        assert [len(each) for each in connections()] == [1, 1, 1]
        await lease.release()
        del lease
        await until_none()
        assert await lock_and_unlock(amanager(servers))
        first = connections()
        assert [len(each) for each in first] == [1, 1, 1]
        for _ in range(20):
            assert await lock_and_unlock(amanager(servers))
        assert connections() == first
        await until_none()

    run(main(), Deaf() if loop_kind == "deaf" else new_loop(loop_kind))
    nothing_left(servers)


def test_a_loop_closed_with_operations_pending_leaves_nothing(masters, through, loop):
    servers = masters(3)
    proxies = [through(server) for server in servers]
    adlm = amanager(proxies, retry_count=1000)

    async def main():
        await awarm(adlm, servers)
        for proxy in proxies:
            proxy.delay = 0.4
        tasks = [asyncio.ensure_future(adlm.lock(f"r{number}", TTL)) for number in range(10)]
        await asyncio.sleep(0.05)
        assert all(server.keys() for server in servers)
        return tasks

    tasks = loop.run_until_complete(main())
    assert not any(task.done() for task in tasks)
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending!"
    loop.close()
    del tasks
    gc.collect()
    nothing_left(servers)


def test_two_loops_in_two_threads_share_a_manager(masters):
    servers = masters(3)
    adlm = amanager(servers, retry_count=100_000, retry_delay=0.005)
    counter = [0]

    async def work():
        for _ in range(40):
            lock = await adlm.lock("r", TTL)
            value = counter[0]
            await asyncio.sleep(0.0005)
            counter[0] = value + 1
            await adlm.unlock(lock)

    async def main():
        await asyncio.gather(work(), work())

    threads = [threading.Thread(target=run, args=(main(), new_loop(kind)), daemon=True) for kind in (KINDS * 2)[:2]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counter == [160]
    nothing_left(servers)


def test_two_loops_in_one_thread_take_turns(masters):
    servers = masters(3)
    adlm = amanager(servers)
    loops = [new_loop(kind) for kind in (KINDS * 2)[:2]]
    for _ in range(5):
        for each in loops:
            assert each.run_until_complete(lock_and_unlock(adlm))
    assert [len(server.connections()) for server in servers] == [2, 2, 2]
    for each in loops:
        each.close()


class Counting(asyncio.SelectorEventLoop):
    """A loop that knows what it was asked to watch; its own descriptors are none of this."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def add_reader(self, fd, callback, *args):
        self.asked.append(("read", fd))
        super().add_reader(fd, callback, *args)

    def add_writer(self, fd, callback, *args):
        self.asked.append(("write", fd))
        super().add_writer(fd, callback, *args)

    def remove_reader(self, fd):
        self.asked.append(("no longer", fd))
        return super().remove_reader(fd)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_loop_watches_one_descriptor_however_many_masters_there_are(masters, count):
    """Once for all: it is not told of connections that come and go."""
    servers = masters(count)
    adlm = amanager(servers, retry_count=1000)
    loop = Counting()

    async def main():
        await awarm(adlm, servers)
        for server in servers:
            server.admin.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.05)
        await awarm(adlm, servers)
        assert [kind for kind, _ in loop.asked] == ["read"]

    run(main(), loop)


class Deaf(asyncio.SelectorEventLoop):
    """A loop that watches nobody's descriptors, as Windows' default one does not; its own are none of this."""

    def add_reader(self, fd, callback, *args):
        raise NotImplementedError

    add_writer = add_reader

    def remove_reader(self, fd):
        raise NotImplementedError

    remove_writer = remove_reader


def test_a_loop_that_cannot_watch_descriptors_has_a_thread_do_it(masters):
    servers = masters(3)
    adlm = amanager(servers, retry_count=1000)
    threads = threading.active_count()

    async def main():
        locks = await asyncio.gather(*(adlm.lock(f"r{number}", TTL) for number in range(100)))
        assert all(locks)
        assert threading.active_count() == threads + 1
        assert [len(server.connections()) for server in servers] == [1, 1, 1]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(adlm.lock("r0", TTL), 0.05)
        idle = [server.connections()[0]["id"] for server in servers]
        await asyncio.sleep(0.7)  # until no timer of ours is left
        gc.collect()
        assert await lock_and_unlock(adlm, "other")
        assert [server.connections()[0]["id"] for server in servers] == idle
        for server in servers:
            server.admin.client_kill_filter(_type="normal", skipme=True)
        await asyncio.gather(*map(adlm.unlock, locks))

    for _ in range(2):
        run(main(), Deaf())
        nothing_left(servers)
        gc.collect()
        wait_until(lambda: threading.active_count() == threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_h17_a_child_forked_inside_a_loop_has_connections_of_its_own(masters, through):
    """H17: it runs a loop of its own, and sends nothing on its parent's connections, not even at its end."""
    servers = masters(3)
    proxies = [through(server) for server in servers]
    source = """
    import asyncio
    from redlock import AsyncRedlock
    adlm = AsyncRedlock(sys.argv[1:])

    async def once():
        lock = await adlm.lock("r", 20000)
        await adlm.unlock(lock)
        return lock

    async def child():
        for turn in range(20):
            if not await once():
                sys.exit(1)

    async def main():
        global adlm
        for turn in range(10):
            await once()
        pending = asyncio.ensure_future(adlm.lock("pending", 20000))
        await asyncio.sleep(0)
        pid = os.fork()
        if pid == 0:
            asyncio.run(child())
            del adlm, pending
            sys.exit(0)
        say(os.waitpid(pid, 0)[1])
        hear()
        await adlm.unlock(await pending)
        for turn in range(20):
            if not await once():
                sys.exit("the parent's lock failed")

    asyncio.run(main())
    """
    with Program(source, *(proxy.url for proxy in proxies)) as program:
        assert program.hear() == "0"
        assert all(proxy.links[0].open for proxy in proxies)
        program.say()
        code, out, _ = program.finish()  # Python itself warns of such forks from 3.12 on
        assert (code, out) == (0, "")
    assert [len(proxy.links) for proxy in proxies] == [2, 2, 2]
    nothing_left(servers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_h17_a_child_that_runs_its_parents_loop_takes_none_of_its_answers(masters, through):
    """H17: they are still there for the parent, though the child has closed all descriptors, as a daemon does."""
    servers = masters(3)
    proxies = [through(server) for server in servers]
    source = """
    import asyncio
    from redlock import AsyncRedlock
    adlm = AsyncRedlock(sys.argv[1:])

    loop = asyncio.new_event_loop()

    async def once():
        lock = await adlm.lock("r", 20000)
        await adlm.unlock(lock)
        return bool(lock)

    async def begin():
        pending = asyncio.ensure_future(once())
        await asyncio.sleep(0)
        return pending

    def sockets():
        fds = [fd for fd in range(3, 64) if os.path.lexists(f"/proc/self/fd/{fd}")]
        return {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in fds}

    loop.run_until_complete(once())
    pending = loop.run_until_complete(begin())
    before = sockets()
    pid = os.fork()
    if pid == 0:
        loop.run_until_complete(asyncio.sleep(0.2))  # while the answers come
        os.closerange(3, 64)
        os._exit(0)
    os.waitpid(pid, 0)
    say(loop.run_until_complete(pending))
    for turn in range(10):
        say(loop.run_until_complete(once()))
    say(sockets() == before)  # it has made no new connection
    loop.close()
    """
    said = run_program(source, *(proxy.url for proxy in proxies))
    assert said.split() == ["True"] * 12
    # The child may go on with its copy of the call, over connections of its own.
    assert all(len(proxy.links) <= 2 for proxy in proxies)
    nothing_left(servers)


def test_a_loop_without_descriptors_to_spare_goes_on_when_there_are_some(masters):
    """What cannot be connected to has no vote; nothing but that is raised."""
    servers = masters(3)
    source = """
    import asyncio, resource
    from redlock import AsyncRedlock
    adlm = AsyncRedlock(sys.argv[1:], 1)

    async def main():
        await asyncio.get_running_loop().run_in_executor(None, int)  # what else needs descriptors
        most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most[1]))
        say(await adlm.lock("r", 20000))
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
        lock = await adlm.lock("r", 20000)
        say(bool(lock))
        await adlm.unlock(lock)

    asyncio.run(main())
    """
    assert run_program(source, *(server.url for server in servers)).split() == ["False", "True"]
    nothing_left(servers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_h17_a_child_may_run_a_loop_that_its_parent_made(masters):
    """H17: made and used before the fork, as by a server that loads its application first. Its connections are new."""
    servers = masters(3)
    source = """
    import asyncio
    from redlock import AsyncRedlock
    adlm = AsyncRedlock(sys.argv[1:])
    loop = asyncio.new_event_loop()

    async def once():
        lock = await adlm.lock("r", 20000)
        await adlm.unlock(lock)
        return bool(lock)

    loop.run_until_complete(once())
    pid = os.fork()
    if pid == 0:
        os._exit(0 if loop.run_until_complete(asyncio.wait_for(once(), 10)) else 1)
    say(os.waitpid(pid, 0)[1], loop.run_until_complete(once()))
    loop.close()
    """
    assert run_program(source, *(server.url for server in servers)).split() == ["0", "True"]
    nothing_left(servers)


def test_ten_thousand_tasks_wait_for_a_hundred_locks(masters):
    """In bounded memory, on one connection to each master, and nobody is forgotten."""
    import resource  # noqa: PLC0415 - not on every system

    servers = masters(3)
    adlm = amanager(servers, retry_count=1_000_000, retry_delay=1.0)
    inside = [0] * 100
    done = [0] * 100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def work(number):
        lock = await adlm.lock(f"r{number}", TTL)
        inside[number] += 1
        assert inside[number] == 1
        await asyncio.sleep(0)
        inside[number] -= 1
        done[number] += 1
        await adlm.unlock(lock)

    async def main():
        tasks = [asyncio.ensure_future(work(number % 100)) for number in range(10_000)]
        await asyncio.sleep(0.5)
        assert [len(server.connections()) for server in servers] == [1, 1, 1]
        await asyncio.gather(*tasks)

    run(main())
    assert done == [100] * 100
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, f"{grown:.0f} MiB for 10,000 tasks"
    nothing_left(servers)


def test_a_deadline_that_comes_before_the_others_is_kept(masters, loop):
    """The loop has one timer, set for the first of all deadlines: twenty short ones take less than twenty long ones."""
    servers = masters(3)
    adlm = amanager(servers, retry_delay=2.0)

    async def main():
        async with adlm.acquire("r", TTL):
            waiting = asyncio.ensure_future(adlm.acquire("r", TTL).__aenter__())
            start = time.monotonic()
            for _ in range(20):
                with pytest.raises(LockContended):
                    await adlm.acquire("r", TTL, timeout=0.05)
            assert time.monotonic() - start < PROMPT
        await (await waiting).release()

    run(main(), loop)


def test_the_loop_of_a_server_that_hangs_goes_on(masters, through, loop):
    """Nothing blocks the loop: another task ticks on while every master is silent."""
    servers = masters(3)
    proxies = [through(server) for server in servers]
    adlm = amanager(proxies, retry_count=2)
    ticks = [0]

    async def tick():
        while True:
            await asyncio.sleep(0.005)
            ticks[0] += 1

    async def main():
        ticking = asyncio.ensure_future(tick())
        await awarm(adlm, servers)
        for proxy in proxies:
            proxy.mode = Mode.SWALLOW
        ticks[0] = 0
        assert await adlm.lock("r", TTL) is False
        ticking.cancel()
        assert ticks[0] > 20

    run(main(), loop)
