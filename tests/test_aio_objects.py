"""Asyncio clients that the engine cannot stand in for: their own `set` and `eval` are called."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from unittest import mock

import fakeredis
import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from redlock import (
    AsyncRedlock,
    CannotObtainLock,
    FencingUnavailable,
    Lock,
    LockContended,
    LockLost,
    QuorumUnavailable,
)
from redlock._async_objects import _releases
from support.locks import TTL, amanager, held, nothing_left
from support.loops import run

DOWN = redis.ConnectionError("refused")


class Own(redis.asyncio.Redis):
    """A client that may do anything."""


@pytest.fixture
def fakes():
    """Three masters that are fakes, of one event loop."""
    return [fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) for _ in range(3)]


def clients_of(servers):
    return [Own(host=server.host, port=server.port, retry=Retry(NoBackoff(), 0)) for server in servers]


async def close_all(clients):
    for client in clients:
        await client.aclose()


def test_fakes_are_called(fakes):
    """They have no EVAL unless something else is installed as well."""

    async def main():
        adlm = AsyncRedlock(fakes, 1)
        lock = await adlm.lock("r", TTL)
        assert isinstance(lock, Lock)
        assert [await fake.get("r") for fake in fakes] == [lock.key] * 3
        assert await adlm.locked("r")

    run(main())


def test_everything_there_is(masters):
    servers = masters(3)
    clients = clients_of(servers)

    async def main():
        adlm = AsyncRedlock(clients, 1)
        lock = await adlm.lock("r", TTL)
        assert held(servers) == [lock.key] * 3
        assert await adlm.lock("r", TTL) is False
        assert await adlm.locked("r")
        assert 0 < (await adlm.inspect("r"))[0].ttl_ms <= TTL
        longer = await adlm.extend(lock, 2 * TTL)
        assert longer.validity > TTL
        assert servers[0].admin.pttl("r") > TTL
        await adlm.unlock(lock)
        nothing_left(servers)
        assert await adlm.extend(lock, TTL) is False
        stats = adlm.stats()
        assert (stats.acquired, stats.contended, stats.released, len(stats.masters)) == (1, 1, 1, 3)
        await close_all(clients)

    run(main())


def test_a_client_of_which_no_more_is_known_than_that_it_is_async():
    clients = [mock.AsyncMock(**{"set.return_value": True, "eval.return_value": 1}) for _ in range(3)]

    async def main():
        adlm = AsyncRedlock(clients)
        lock = await adlm.lock("r", TTL)
        await adlm.unlock(lock)
        for client in clients:
            client.set.assert_awaited_once_with("r", lock.key, nx=True, px=TTL)
            client.eval.assert_awaited_once_with(adlm.unlock_script, 1, "r", lock.key)

    run(main())


def test_leases_are_held_extended_and_lost(masters):
    servers = masters(3)
    clients = clients_of(servers)

    async def main():
        adlm = AsyncRedlock(clients, 3, 0.02)
        async with adlm.acquire(["a", "b"], 300, auto_extend=True) as lease:
            await asyncio.sleep(0.6)
            assert held(servers, "b") == [lease.key] * 3
            with pytest.raises(LockContended):
                await adlm.acquire("a", TTL, timeout=0)
        nothing_left(servers)
        with pytest.raises(LockLost):
            async with adlm.acquire("a", TTL) as lease:
                for server in servers:
                    server.admin.set("a", "another")
                await lease.extend()
        with pytest.raises(FencingUnavailable):
            await adlm.acquire("c", TTL, fencing=True)
        await close_all(clients)

    run(main())


def test_a_minority_that_fails_costs_nothing_but_a_line_in_the_log(masters, caplog):
    servers = masters(3)
    clients = clients_of(servers)
    servers[0].kill()

    async def main():
        adlm = AsyncRedlock(clients, 1)
        for _ in range(3):
            lock = await adlm.lock("r", TTL)
            assert lock
            await adlm.unlock(lock)
        servers[1].kill()
        assert await adlm.lock("r", TTL) is False
        with pytest.raises(QuorumUnavailable):
            await adlm.acquire("r", TTL, timeout=0)
        await close_all(clients)

    with caplog.at_level(logging.WARNING, "redlock"):
        run(main())
    assert [record.message.count("no vote") for record in caplog.records].count(1) == 2
    nothing_left(servers[2:])


def test_a_cancelled_caller_leaves_nothing(masters, through):
    servers = masters(3)
    slow = through(servers[0])
    slow.delay = 0.3
    clients = clients_of([slow, *servers[1:]])

    async def main():
        adlm = AsyncRedlock(clients)
        for pause in (0.0, 0.01, 0.1):
            task = asyncio.ensure_future(adlm.lock("r", TTL))
            await asyncio.sleep(pause)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await adlm.unlock(await task)  # on a machine so slow that it was had before
        slow.delay = 0.0
        while _releases:
            await asyncio.wait(_releases)
        await close_all(clients)

    run(main())
    nothing_left(servers)


def test_one_such_client_and_all_are_called(masters):
    """URLs and mappings by clients made for that; synchronous clients cannot be."""
    servers = masters(3)
    client = redis.asyncio.Redis(host=servers[1].host, port=servers[1].port)
    items = [servers[0].url, client, Own(host=servers[2].host, port=servers[2].port)]

    async def main():
        adlm = AsyncRedlock(items)
        lock = await adlm.lock("r", TTL)
        assert held(servers) == [lock.key] * 3
        await adlm.unlock(lock)
        await close_all([*items[1:], adlm._clients.clients[0]])

    run(main())
    with pytest.raises(Warning, match=r"this Redis: .* must be asyncio clients"):
        AsyncRedlock([redis.Redis(), Own()])
    with pytest.raises(Warning, match=r"this redis\+sentinel URL: "):
        AsyncRedlock(["redis+sentinel://a:26379/service", Own()])


@pytest.mark.parametrize("scheme", ["unix", "redis+unix"])
def test_a_socket_beside_them_may_be_named_in_either_way(scheme):
    client = AsyncRedlock([f"{scheme}:///nowhere", Own()])._clients.clients[0]
    assert client.connection_pool.connection_kwargs["path"] == "/nowhere"


@pytest.mark.parametrize(
    "client",
    [
        redis.asyncio.Redis(redis_connect_func=print),
        redis.asyncio.RedisCluster(host="127.0.0.1"),
        redis.asyncio.Sentinel([("127.0.0.1", 1)]).master_for("service"),
        Own(),
    ],
    ids=lambda client: type(client).__name__,
)
def test_whatever_asyncio_client_it_is(client):
    assert AsyncRedlock([client])._clients.clients == [client]


@pytest.mark.parametrize("method", ["execute_command", "set"])
def test_what_a_test_put_in_the_place_of_a_method_is_called(method):
    client = redis.asyncio.Redis()
    with mock.patch.object(redis.asyncio.Redis, method, mock.AsyncMock(return_value=True)) as patched:
        assert run(AsyncRedlock([client]).lock("r", TTL))
    assert patched.await_count == 1
    assert AsyncRedlock([client])._clients is None


def test_what_a_client_raises_that_is_no_error_of_redis_py_reaches_the_caller(masters):
    servers = masters(3)
    clients = clients_of(servers)

    async def main():
        with (
            mock.patch.object(clients[1], "set", mock.AsyncMock(side_effect=OSError("odd"))),
            pytest.raises(OSError, match="odd"),
        ):
            await AsyncRedlock(clients).lock("r", TTL)
        await close_all(clients)

    run(main())
    nothing_left(servers)


def test_arguments_are_as_strictly_checked_as_by_the_engine(fakes):
    async def main():
        adlm = AsyncRedlock(fakes)
        for resource, ttl, error in [(None, TTL, TypeError), ("r", 1.5, ValueError)]:
            with pytest.raises(error):
                await adlm.lock(resource, ttl)
        with pytest.raises(TypeError):
            await adlm.unlock(Lock(0, "r", None))

    run(main())


def test_it_excludes_and_is_excluded_by_the_engine(masters):
    servers = masters(3)
    clients = clients_of(servers)

    async def main():
        native, own = amanager(servers, 1), AsyncRedlock(clients, 1)
        for first, second in ((native, own), (own, native)):
            lock = await first.lock("r", TTL)
            assert await second.lock("r", TTL) is False
            await second.unlock(lock)
            nothing_left(servers)
        await close_all(clients)

    run(main())


def test_guards_are_the_engines(fakes):
    with pytest.raises(Warning, match="restart_guard"):
        AsyncRedlock(fakes, restart_guard=True)
    with pytest.raises(CannotObtainLock):
        AsyncRedlock([])
