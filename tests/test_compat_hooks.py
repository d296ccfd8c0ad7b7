"""COMPAT: what callers override, patch, exchange and bring along is what is called."""

from __future__ import annotations

import functools
import logging
import time
from types import SimpleNamespace
from unittest import mock

import fakeredis
import pytest
import redis
import redis.commands.core
import redis.connection
import redis.sentinel

import redlock
from redlock import Lock, MultipleRedlockException, Redlock, _objects
from support.locks import TTL, held, manager, nothing_left
from support.servers import wait_until


class Fake:
    """A client that is no redis-py client, as tests in the wild have them."""

    def __init__(self, *args, answer=True, deleted=1, **options):
        self.args, self.options = args, options
        self.answer, self.deleted = answer, deleted
        self.calls = []

    @classmethod
    def from_url(cls, url, **options):
        return cls(url, **options)

    def set(self, *args, **options):
        self.calls.append(("set", args, options))
        return self._say(self.answer)

    def eval(self, *args, **options):
        self.calls.append(("eval", args, options))
        return self._say(self.deleted)

    def _say(self, answer):
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def names(self):
        return [name for name, _, _ in self.calls]


# -- hooks, called by the caller ---------------------------------------------------------------------------------------


def test_the_hooks_work_when_called(masters):
    (server,) = masters(1)
    dlm = Redlock([server.url])
    client = dlm.servers[0]
    key = dlm.get_unique_id()
    assert dlm.lock_instance(client, "r", key, TTL)
    assert server.get("r") == key
    assert not dlm.lock_instance(client, "r", b"other", TTL)
    assert dlm.unlock_instance(client, "r", b"other") is None
    assert server.get("r") == key
    assert dlm.unlock_instance(client, "r", key) is None
    assert server.get("r") is None
    client.close()


def test_lock_instance_raises_what_redlock_pys_raises(masters):
    (server,) = masters(1)
    dlm = Redlock([server.url])
    with pytest.raises(ValueError, match=r"ttl 100\.0 is not an integer"):
        dlm.lock_instance(dlm.servers[0], "r", b"key", 100.0)
    with pytest.raises(redis.ConnectionError):
        dlm.lock_instance(Fake(answer=redis.ConnectionError("refused")), "r", b"key", 100)


def test_unlock_instance_logs_and_does_not_raise(caplog):
    dlm = Redlock(["redis://h"])
    assert dlm.unlock_instance(Fake(deleted=redis.ConnectionError("refused")), "r", b"key") is None
    assert dlm.unlock_instance(Fake(deleted=OSError("odd")), "r", b"key") is None
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert caplog.records[0].getMessage() == "Error unlocking resource r in server Fake: refused"
    assert caplog.records[1].exc_info  # what is not redis-py's comes with its traceback


# -- hooks, overridden -------------------------------------------------------------------------------------------------


def put(how, name, function, monkeypatch, items):
    """A manager one of whose methods is ``function``: of a subclass, of this instance, or patched into the class."""
    if how == "subclass":
        return type("Own", (Redlock,), {name: function})(items)
    dlm = Redlock(items)
    if how == "instance":
        setattr(dlm, name, function.__get__(dlm))
    else:
        monkeypatch.setattr(Redlock, name, function)
    return dlm


HOW = pytest.mark.parametrize("how", ["subclass", "instance", "patched class"])


@HOW
def test_lock_instance_overridden_is_called(masters, monkeypatch, how):
    servers = masters(3)
    seen = []

    def lock_instance(self, server, resource, val, ttl):
        seen.append((server, resource, val, ttl))
        return server.set(f"prefix:{resource}", val, nx=True, px=ttl)

    dlm = put(how, "lock_instance", lock_instance, monkeypatch, [server.url for server in servers])
    lock = dlm.lock("r", TTL)
    assert seen == [(client, "r", lock.key, TTL) for client in dlm.servers]
    assert [server.keys() for server in servers] == [{b"prefix:r"}] * 3
    for client in dlm.servers:
        client.close()


@HOW
def test_unlock_instance_overridden_is_called(masters, monkeypatch, how):
    servers = masters(3)
    seen = []

    def unlock_instance(self, server, resource, val):
        seen.append((server, resource, val))

    dlm = put(how, "unlock_instance", unlock_instance, monkeypatch, [server.url for server in servers])
    lock = dlm.lock("r", TTL)
    assert dlm.unlock(lock) is None
    assert seen == [(client, "r", lock.key) for client in dlm.servers]
    assert held(servers) == [lock.key] * 3
    for client in dlm.servers:
        client.close()


@HOW
@pytest.mark.parametrize("as_text", [False, True])
def test_get_unique_id_overridden_is_called_for_each_try(masters, monkeypatch, how, as_text):
    servers = masters(3)
    keys = []

    def get_unique_id(self):
        keys.append(f"key{len(keys)}" if as_text else b"key%d" % len(keys))
        return keys[-1]

    dlm = put(how, "get_unique_id", get_unique_id, monkeypatch, [server.url for server in servers])
    dlm.retry_count, dlm.retry_delay = 3, 0.001
    assert dlm._backend().engine is not None
    lock = dlm.lock("r", TTL)
    assert lock.key is keys[0]
    assert dlm.lock("r", TTL) is False
    assert len(keys) == 4
    dlm.unlock(lock)
    nothing_left(servers)


def test_an_override_that_calls_super(masters):
    class Counting(Redlock):
        count = 0

        def lock_instance(self, *args):
            self.count += 1
            return super().lock_instance(*args)

        def unlock_instance(self, *args):
            self.count += 10
            return super().unlock_instance(*args)

    servers = masters(3)
    dlm = Counting([server.url for server in servers])
    lock = dlm.lock("r", TTL)
    assert held(servers) == [lock.key] * 3
    dlm.unlock(lock)
    assert held(servers) == [None] * 3
    assert dlm.count == 33
    for client in dlm.servers:
        client.close()


def test_mocked_hooks_end_with_the_mock(masters):
    (server,) = masters(1)
    dlm = Redlock([server.url])
    with mock.patch.object(Redlock, "lock_instance", return_value=True) as hook:
        assert dlm.lock("r", TTL)
        hook.assert_called_once_with(dlm.servers[0], "r", mock.ANY, TTL)
    assert server.keys() == set()
    assert dlm.lock("r", TTL)
    assert server.keys() == {b"r"}
    dlm.servers[0].close()


def test_unlock_instance_overridden_and_raising_is_a_multiple_redlock_exception():
    class Raising(Redlock):
        def unlock_instance(self, server, resource, val):
            if server.answer:
                raise redis.ConnectionError(f"refused {resource}")

    fakes = [Fake(), Fake(answer=False), Fake()]
    with pytest.raises(MultipleRedlockException, match=r"^refused r :: refused r$") as caught:
        Raising(fakes).unlock(Lock(0, "r", b"key"))
    assert [type(error) for error in caught.value.errors] == [redis.ConnectionError] * 2


def test_a_subclass_that_makes_its_own_servers(masters):
    class Own(Redlock):
        def __init__(self, servers):
            self.servers = servers
            self.quorum = 2
            self.retry_count, self.retry_delay = 1, 0.1

    servers = masters(3)
    dlm = Own([server.client() for server in servers])
    lock = dlm.lock("r", TTL)
    assert held(servers).count(lock.key) >= 2
    assert dlm._masters.engine is not None
    assert repr(dlm) == "<Own over 3 masters, quorum 2>"


# -- test doubles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["redis.StrictRedis", "redlock.redis.StrictRedis"])
def test_a_patched_strict_redis_is_what_is_used(target):
    with mock.patch(target, Fake):
        dlm = Redlock(["redis://h", {"host": "i"}])
    url, options = dlm.servers
    assert (url.args, options.options) == (("redis://h",), {"host": "i"})
    lock = dlm.lock("r", 1000)
    dlm.unlock(lock)
    for fake in dlm.servers:
        assert fake.calls == [
            ("set", ("r", lock.key), {"nx": True, "px": 1000}),
            ("eval", (Redlock.unlock_script, 1, "r", lock.key), {}),
        ]


def test_a_mocked_strict_redis_is_one_object_many_times():
    with mock.patch("redis.StrictRedis") as strict_redis:
        dlm = Redlock(["redis://a", "redis://b", "redis://c"])
    assert dlm.servers == [strict_redis.from_url.return_value] * 3
    assert dlm.lock("r", 1000)


def test_fakeredis_in_its_place():
    with mock.patch("redis.StrictRedis", fakeredis.FakeStrictRedis):
        dlm = Redlock([{"host": host} for host in "abc"], 1)
    lock = dlm.lock("r", TTL)
    assert [client.get("r") for client in dlm.servers] == [lock.key] * 3
    assert dlm.lock("r", TTL) is False
    assert [client.get("r") for client in dlm.servers] == [lock.key] * 3


def test_fakeredis_clients():
    clients = [fakeredis.FakeRedis(server=fakeredis.FakeServer()) for _ in range(3)]
    dlm = Redlock(clients)
    assert dlm.lock("r", TTL)
    assert dlm.servers == clients


def test_a_redis_module_put_into_ours_is_what_is_used():
    """As tests of redlock-py's callers do: it imports the module under this name."""
    with mock.patch("redlock.redis") as stand_in:
        stand_in.StrictRedis.from_url = Fake.from_url
        dlm = Redlock(["redis://h", {"host": "i"}])
    (fake, made) = dlm.servers
    assert isinstance(fake, Fake)
    assert made is stand_in.StrictRedis.return_value
    assert dlm.lock("r", 1000)
    assert fake.names() == ["set"]
    assert type(Redlock(["redis://h"]).servers[0]) is redis.Redis
    assert redlock.redis is redis


@pytest.mark.parametrize("name", ["time", "random", "string", "logging", "RedisError", "cli.lock", "cli.unlock"])
def test_a_patch_that_would_change_nothing_is_an_error(name):
    with pytest.raises(AttributeError, match="does not have the attribute"), mock.patch(f"redlock.{name}"):
        pass


PATCHED = [
    (redis.Redis, "execute_command"),
    (redis.commands.core.CoreCommands, "set"),
    (redis.commands.core.BasicKeyCommands, "set"),
    (redis.commands.core.ScriptCommands, "eval"),
    (redis.Connection, "connect"),
    (redis.connection.AbstractConnection, "connect"),
]


@pytest.mark.parametrize("spec", [{}, {"autospec": True}], ids=["plain", "autospec"])
@pytest.mark.parametrize("owner, method", PATCHED, ids=lambda each: getattr(each, "__name__", each))
def test_whatever_of_redis_py_is_mocked_is_called(masters, owner, method, spec):
    (server,) = masters(1)
    dlm = Redlock([server.url], 1)
    dlm.unlock(dlm.lock("r", TTL))
    with mock.patch.object(owner, method, side_effect=DOWN, **spec) as patched:
        lock = dlm.lock("r", TTL)
        dlm.unlock(lock or Lock(0, "r", b"key"))
        assert patched.called
    assert dlm._backend().engine is not None
    dlm.servers[0].close()


def test_an_execute_command_of_one_client_is_called(masters):
    servers = masters(3)
    dlm = Redlock([server.url for server in servers])
    dlm.servers[1].execute_command = mock.Mock(return_value=True)
    assert dlm.lock("r", TTL)
    assert dlm.servers[1].execute_command.call_args.args[:2] == ("SET", "r")
    for client in dlm.servers:
        client.close()


def _traced(method):
    """What tracing libraries make of a method."""

    def wrapper(*args, **kwargs):
        return method(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("how", [_traced, lambda method: functools.wraps(method)(_traced(method))])
def test_a_wrapper_that_calls_redis_pys_own_method_does_not_turn_the_engine_off(monkeypatch, how):
    """Such are put there for good, in production: they change nothing that the masters see."""
    monkeypatch.setattr(redis.Redis, "execute_command", how(how(redis.Redis.execute_command)))
    dlm = Redlock(["redis://h"])
    assert dlm._backend().engine is not None
    monkeypatch.setattr(redis.Redis, "execute_command", lambda *_, **__: True)
    assert dlm._backend().engine is None
    assert dlm.lock("r", TTL)


@pytest.mark.parametrize("method", ["set", "eval"])
@pytest.mark.parametrize("where", ["client", "class"])
def test_a_method_patched_later_is_called_until_it_is_taken_away(masters, method, where):
    (server,) = masters(1)
    dlm = Redlock([server.url])
    target = dlm.servers[0] if where == "client" else redis.Redis
    with mock.patch.object(target, method, return_value=1) as patched:
        lock = dlm.lock("r", TTL)
        dlm.unlock(lock)
        assert patched.call_count == 1
    server.admin.flushall()
    assert dlm._backend().engine is not None
    lock = dlm.lock("r", TTL)
    assert held([server]) == [lock.key]
    dlm.servers[0].close()


# -- servers, exchanged ------------------------------------------------------------------------------------------------


def test_servers_exchanged_in_place_count(masters):
    servers = masters(3)
    dlm = manager(servers[:1])
    lock = dlm.lock("r", TTL)
    assert held(servers) == [lock.key, None, None]
    dlm.servers[0] = servers[1].client()
    lock = dlm.lock("r", TTL)
    assert held(servers[1:2]) == [lock.key]
    fake = Fake()
    dlm.servers[:] = [fake]
    assert dlm.lock("r", TTL)
    assert fake.names() == ["set"]


@pytest.mark.parametrize("sequence", [list, tuple])
def test_servers_replaced_count(masters, sequence):
    servers = masters(3)
    dlm = manager(servers[:1])
    dlm.servers = sequence(server.client() for server in servers)
    dlm.quorum = 2
    lock = dlm.lock("r", TTL)
    assert held(servers).count(lock.key) >= 2
    engine = dlm._masters.engine
    dlm.unlock(lock)
    assert dlm._masters.engine is engine  # not made anew for each call
    nothing_left(servers)


def test_the_connections_of_servers_that_are_gone_are_closed(masters):
    servers = masters(2)
    dlm = manager(servers[:1])
    dlm.lock("r", TTL)
    assert servers[0].connections()
    dlm.servers = [servers[1].client()]
    dlm.lock("r", TTL)
    wait_until(lambda: not servers[0].connections())


# -- client objects ----------------------------------------------------------------------------------------------------


def test_a_plain_client_is_read_and_not_called(masters):
    servers = masters(3)
    clients = [server.client(decode_responses=True) for server in servers]
    dlm = Redlock(clients)
    for client in clients:
        client.connection_pool.make_connection = mock.Mock(side_effect=AssertionError)
    dlm.unlock(dlm.lock("r", TTL))
    assert dlm._masters.engine is not None
    assert all(client.connection_pool.make_connection.call_count == 0 for client in clients)


class Counted(redis.Redis):
    """Any subclass: its methods may do anything."""

    count = 0

    def execute_command(self, *args, **options):
        self.count += 1
        return super().execute_command(*args, **options)


@pytest.mark.every_kind
def test_a_subclass_is_called(masters):
    servers = masters(3)
    clients = [Counted(server.host, server.port) for server in servers]
    dlm = Redlock(clients)
    lock = dlm.lock("r", TTL)
    assert held(servers) == [lock.key] * 3
    dlm.unlock(lock)
    assert held(servers) == [None] * 3
    assert [client.count for client in clients] == [2, 2, 2]
    for client in clients:
        client.close()


def test_a_client_of_sentinel_asks_it_where_the_master_is(masters):
    (server,) = masters(1)
    sentinel = redis.sentinel.Sentinel([("sentinel", 26379)])
    sentinel.discover_master = mock.Mock(return_value=(server.host, server.port))
    client = sentinel.master_for("mymaster")
    dlm = Redlock([client])
    lock = dlm.lock("r", TTL)
    assert held([server]) == [lock.key]
    assert sentinel.discover_master.called
    dlm.unlock(lock)
    assert held([server]) == [None]
    client.close()


# -- the algorithm over objects ----------------------------------------------------------------------------------------

DOWN = redis.ConnectionError("refused")


@pytest.mark.parametrize(
    "answers, is_acquired",
    [
        ((True, True, True), True),
        ((True, b"OK", DOWN), True),
        ((True, DOWN, DOWN), False),
        ((True, None, None), False),
        ((True, None, DOWN), False),
        ((DOWN, DOWN, DOWN), False),
    ],
)
def test_a_quorum_decides_and_else_all_are_released(answers, is_acquired):
    fakes = [Fake(answer=answer) for answer in answers]
    lock = Redlock(fakes, 1).lock("r", 1000)
    assert bool(lock) is is_acquired
    after = ["set"] if is_acquired else ["set", "eval"]
    assert [fake.names() for fake in fakes] == [after] * 3


def test_each_try_has_a_key_of_its_own_which_it_releases():
    fake = Fake(answer=None)
    assert Redlock([fake], 3, 0.001).lock("r", 1000) is False
    assert fake.names() == ["set", "eval"] * 3
    keys = [args[-1] for _, args, _ in fake.calls]
    assert keys[::2] == keys[1::2]
    assert len(set(keys)) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("odd"), SystemExit(1)])
def test_whatever_else_a_client_raises_is_raised_after_all_are_released(error):
    fakes = [Fake(), Fake(answer=error), Fake()]
    with pytest.raises(type(error)):
        Redlock(fakes).lock("r", 1000)
    assert [fake.names() for fake in fakes] == [["set", "eval"], ["set", "eval"], ["eval"]]


def test_a_release_that_raises_does_not_keep_the_others_from_theirs(caplog):
    fakes = [Fake(answer=None, deleted=OSError("odd")), Fake(answer=None, deleted=DOWN), Fake(answer=None)]
    assert Redlock(fakes, 1).lock("r", 1000) is False
    assert [fake.names() for fake in fakes] == [["set", "eval"]] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "Error unlocking resource r in server Fake: odd",
        "Error unlocking resource r in server Fake: refused",
    ]


def test_a_grant_that_took_too_long_is_no_lock(monkeypatch):
    instants = iter([0.0, 0.5, 0.5, 1.0, 1.985])  # of a try, a pause and another try
    monkeypatch.setattr(_objects, "now", lambda: next(instants))
    dlm = Redlock([Fake()], 2, 0.001)
    assert dlm.lock("r", 500) is False
    monkeypatch.setattr(_objects, "now", lambda: 0.0)
    assert dlm.lock("r", 500).validity == 500 - 5 - 2


def test_the_clock_runs_on_while_the_machine_is_suspended():
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    assert time.clock_gettime(clock) <= _objects.now() <= time.clock_gettime(clock)


def test_an_error_without_a_text_is_shown_by_its_name(caplog):
    assert Redlock([Fake(answer=redis.TimeoutError())], 1).lock("r", 1000) is False
    assert caplog.records[0].getMessage() == "master Fake gives no vote: TimeoutError"


def test_a_server_is_named_by_where_it_is(caplog):
    client = SimpleNamespace(
        set=Fake(answer=DOWN).set,
        eval=Fake(deleted=DOWN).eval,
        connection_pool=SimpleNamespace(connection_kwargs={"host": "h", "port": 7000, "db": 3, "password": "canary"}),
    )
    assert Redlock([client], 1).lock("r", 1000) is False
    assert [record.getMessage() for record in caplog.records] == [
        "master h:7000/3 gives no vote: refused",
        "Error unlocking resource r in server h:7000/3: refused",
    ]
