"""Managers of the same masters share their sessions, also one after another; others share nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import signal
import threading
import time
from unittest import mock

import fakeredis
import pytest
import redis

from redlock import AsyncRedlock, Redlock, _connections
from redlock._redlock import close_unused
from support.locks import TTL, held, manager, warm
from support.servers import wait_until


def ids(servers):
    """The connections to each server."""
    return [[each["id"] for each in server.connections()] for server in servers]


def pair(dlm, resource="r"):
    lock = dlm.lock(resource, TTL)
    assert lock
    dlm.unlock(lock)


@pytest.fixture
def three(masters):
    """Servers, and the connections that a manager had which is gone."""
    servers = masters(3)
    warm(manager(servers), servers)
    first = ids(servers)
    assert [len(each) for each in first] == [1, 1, 1]
    return servers, first


def test_a_manager_for_each_call_connects_once(three):
    servers, first = three
    for _ in range(20):
        pair(manager(servers))
    assert ids(servers) == first


@pytest.mark.parametrize(
    "make",
    [
        lambda urls: Redlock([redis.Redis.from_url(url) for url in urls]),
        lambda urls: Redlock([dict(zip(("host", "port"), url[8:].split(":"), strict=True)) for url in urls]),
        lambda urls: Redlock([url.encode() for url in urls]),
    ],
    ids=["clients", "mappings", "bytes"],
)
def test_the_same_masters_may_be_written_in_several_ways(three, make):
    servers, first = three
    pair(make([server.url for server in servers]))
    assert ids(servers) == first


def test_an_outage_is_logged_once_for_all_managers(masters, caplog):
    servers = masters(1)
    servers[0].kill()
    assert [manager(servers, 1).lock("r", TTL) for _ in range(3)] == [False] * 3
    assert caplog.text.count("gives no vote") == 1


@pytest.mark.parametrize("options", ["client_name=other", "socket_timeout=3", "db=1", "protocol=2"])
def test_managers_with_other_settings_have_connections_of_their_own(three, options):
    servers, first = three
    other = Redlock([f"{server.url}?{options}" for server in servers])
    warm(other, servers) if options != "db=1" else pair(other)
    wait_until(lambda: all(len(each) == 2 for each in ids(servers)))
    assert all(set(one) < set(both) for one, both in zip(first, ids(servers), strict=True))


def test_another_users_connections_are_not_shared(three):
    servers, first = three
    for server in servers:
        server.admin.acl_setuser(
            "other", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"], channels="*"
        )
    urls = [f"redis://other:secret@{server.host}:{server.port}" for server in servers]
    warm(Redlock(urls), servers)
    assert all(len(each) == 2 for each in ids(servers))
    wrong = Redlock([url.replace("secret", "guessed") for url in urls], 1)
    assert wrong.lock("r", TTL) is False
    assert first == [each[:1] for each in ids(servers)]


def test_what_one_has_found_out_of_a_master_the_others_know(masters):
    servers = masters(3)
    one, other = manager(servers), manager(servers)
    warm(one, servers)
    servers[0].kill()
    pair(one)
    wait_until(lambda: one.stats().masters[0].failure)
    failure = one.stats().masters[0].failure
    assert [dlm.stats().masters[0].failure for dlm in (other, manager(servers))] == [failure, failure]
    assert manager(servers).stats().masters[0].errors == 0, "it counts from its beginning on"


def test_what_no_manager_uses_is_closed(three):
    servers, _ = three
    kept = Redlock([f"{server.url}?client_name=kept" for server in servers])
    warm(kept, servers)
    close_unused()
    wait_until(lambda: [[each["name"] for each in server.connections()] for server in servers] == [["kept"]] * 3)
    pair(kept)


def test_few_sessions_are_kept_for_a_crowd_that_is_gone(masters):
    servers = masters(1)
    all_at_once = threading.Barrier(20)

    def work(number):
        dlm = manager(servers)
        lock = dlm.lock(f"r{number}", TTL)
        all_at_once.wait()
        dlm.unlock(lock)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    wait_until(lambda: len(servers[0].connections()) <= 4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads: those of the tests
def test_a_forked_child_keeps_no_connection_open_that_no_manager_uses(three):
    servers, first = three
    reads, writes = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(writes)
        os.read(reads, 1)
        os._exit(0)
    try:
        os.close(reads)
        wait_until(lambda: ids(servers) == [[], [], []])
        pair(manager(servers))
    finally:
        os.close(writes)
        os.waitpid(pid, 0)
    assert all(not set(one) & set(now) for one, now in zip(first, ids(servers), strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads: those of the tests
def test_a_forked_child_that_drops_a_manager_keeps_no_connection_of_its_own(three):
    servers, _ = three
    dlm = manager(servers)
    pair(dlm)
    (hears, tells), (heard, told) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        pair(dlm)
        os.write(told, b"used")
        os.read(hears, 1)
        del dlm
        time.sleep(60)  # it is killed
        os._exit(0)
    try:
        os.read(heard, 4)
        assert any(len(each) > 1 for each in ids(servers))
        os.write(tells, b"!")
        wait_until(lambda: all(len(each) == 1 for each in ids(servers)))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for end in (hears, tells, heard, told):
            os.close(end)


# -- the clients of a manager ------------------------------------------------------------------------------------------


def test_clients_are_made_when_they_are_looked_at(three):
    servers, _ = three
    dlm = manager(servers)
    pair(dlm)
    assert "servers" not in vars(dlm)
    with mock.patch.object(_connections, "Engine", side_effect=AssertionError("the masters are the same")):
        assert [type(client) for client in dlm.servers] == [redis.Redis] * 3
        assert dlm.servers is dlm.servers
        pair(dlm)
    assert dlm.servers[0].get("r") is None
    for client in dlm.servers:
        client.close()


def test_a_method_that_is_patched_in_a_client_is_called(three):
    servers, _ = three
    dlm = manager(servers)
    dlm.servers[1].set = mock.Mock(return_value=True)
    assert dlm.lock("r", TTL)
    dlm.servers[1].set.assert_called_once()
    for client in dlm.servers:
        client.close()


def test_a_class_in_the_place_of_redis_pys_is_used_although_the_url_is_known(three):
    servers, _ = three
    with mock.patch("redis.StrictRedis") as fake:
        dlm = manager(servers)
    assert dlm.servers == [fake.from_url.return_value] * 3
    with mock.patch.object(redis.Redis, "from_url", return_value=fake):
        dlm = manager(servers)
    assert dlm.lock("r", TTL)
    assert (dlm.servers, fake.set.called) == ([fake] * 3, True)


def test_a_lock_is_found_by_whichever_manager_releases_it(three):
    servers, _ = three
    lock = manager(servers).lock("r", TTL)
    manager(servers).unlock(lock)
    wait_until(lambda: held(servers) == [None] * 3)


def test_servers_that_a_test_puts_in_their_place_are_gone_after_it(three):
    servers, _ = three
    dlm, fakes = manager(servers), [mock.Mock(), mock.Mock(), mock.Mock()]
    with mock.patch.object(dlm, "servers", fakes):
        assert dlm.lock("r", TTL)
    assert fakes[0].set.called
    pair(dlm)
    dlm.servers = fakes
    assert dlm.lock("r", TTL)
    del dlm.servers
    lock = dlm.lock("r", TTL)
    wait_until(lambda: held(servers) == [lock.key] * 3)
    dlm.unlock(lock)


def test_clients_are_what_they_would_have_been_when_the_manager_was_made(three):
    servers, _ = three
    options = [{"host": server.host, "port": server.port} for server in servers]
    manager(servers), Redlock(options)  # so that they are known
    by_url, by_mapping = manager(servers), Redlock(options)
    for each in options:
        each["db"] = 1
    with mock.patch("redis.StrictRedis"), mock.patch.object(redis.Redis, "from_url"):
        found = [*by_url.servers, *by_mapping.servers]
    assert [type(client) for client in found] == [redis.Redis] * 6
    assert [client.connection_pool.connection_kwargs.get("db", 0) for client in found] == [0] * 6


def test_a_manager_that_is_made_again_has_its_new_masters(three, spawn):
    servers, _ = three
    dlm = manager(servers)
    assert len(dlm.servers) == 3
    dlm.__init__([spawn().url])
    assert (len(dlm.servers), dlm.quorum) == (1, 1)
    lock = dlm.lock("r", TTL)
    assert (held(servers), dlm.servers[0].get("r")) == ([None] * 3, lock.key)
    dlm.servers[0].close()


class Before(Redlock):
    def __init__(self, urls):
        self.servers = []
        super().__init__(urls)


class InClass(Redlock):
    servers = ()


class ByProperty(Redlock):
    @property
    def servers(self):
        return self._own_servers

    @servers.setter
    def servers(self, servers):
        self._own_servers = servers


@pytest.mark.parametrize("subclass", [Before, InClass, ByProperty])
def test_a_subclass_may_have_servers_of_its_own(three, subclass):
    servers, _ = three
    urls = [server.url for server in servers]
    for _ in range(2):
        dlm = subclass(urls)
        assert len(dlm.servers) == 3
        pair(dlm)
        for client in dlm.servers:
            client.close()


@dataclasses.dataclass(frozen=True)
class Login(redis.CredentialProvider):
    """Two are equal whose passwords differ."""

    name: str
    password: str = dataclasses.field(compare=False)

    def get_credentials(self):
        return self.name, self.password


def test_a_login_is_not_shared_with_another_that_is_equal(masters):
    (server,) = masters(1)
    server.admin.acl_setuser("someone", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all"])

    def login(password):
        return Redlock(
            [{"host": server.host, "port": server.port, "credential_provider": Login("someone", password)}], 1
        )

    right = login("right")
    wait_until(lambda: right.lock("r", TTL))
    assert login("wrong").lock("other", TTL) is False


def test_a_master_among_others_clients_keeps_its_log_to_itself(masters, caplog):
    servers = masters(2)
    mixed = Redlock([servers[0].url, fakeredis.FakeRedis()], 1)
    alone = manager(servers[:1])
    pair(mixed)
    servers[0].kill()
    mixed.lock("r", TTL)
    caplog.clear()
    assert alone.lock("r", TTL) is False
    assert "gives no vote" in caplog.text


def test_a_loop_keeps_few_connections_that_no_manager_uses(masters):
    (server,) = masters(1)

    async def main():
        for number in range(30):
            adlm = AsyncRedlock([f"{server.url}?client_name=tenant{number}"])
            assert await adlm.unlock(await adlm.lock("r", TTL)) is None
            del adlm
        await asyncio.get_running_loop().run_in_executor(None, wait_until, lambda: len(server.connections()) <= 9)

    asyncio.run(main())


@pytest.mark.once
def test_a_manager_may_go_while_a_login_takes_long(masters, through):
    """The driver looks for answers meanwhile, and would wait for the interpreter."""
    servers = masters(3)
    proxies = [through(server) for server in servers]

    class Slow(redis.CredentialProvider):
        def get_credentials(self):
            time.sleep(0.05)
            return ("default", "")

    for _ in range(10):
        close_unused()
        dlm = Redlock([{"host": each.host, "port": each.port, "credential_provider": Slow()} for each in proxies], 1)
        proxies[0].delay = 0.2
        for number in range(3):
            if lock := dlm.lock(f"r{number}", TTL):
                dlm.unlock(lock)
        del dlm, lock
        proxies[0].delay = 0.0
