"""COMPAT: how a manager is made: of what, with which attributes, and what is refused."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import socket
import ssl
import subprocess
import sys
from collections import OrderedDict
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from unittest import mock

import fakeredis
import pytest
import redis
import redis.asyncio
import redis.sentinel

import redlock
import redlock.cli
from redlock import CannotObtainLock, Lock, MultipleRedlockException, Redlock, _connections
from support.locks import TTL, held, manager
from support.scripted import NIL
from support.servers import wait_until

# The text in redlock-py 1.0.8.
UNLOCK_SCRIPT = """
    if redis.call("get",KEYS[1]) == ARGV[1] then
        return redis.call("del",KEYS[1])
    else
        return 0
    end"""

MARK_SCRIPT = 'redis.call("set", "mark", ARGV[1]) return redis.call("del", KEYS[1])'


# -- import ------------------------------------------------------------------------------------------------------------


def test_the_names_that_callers_import():
    assert issubclass(Redlock, object)
    assert issubclass(CannotObtainLock, Exception)
    assert issubclass(MultipleRedlockException, Exception)
    assert {each.__module__ for each in (Redlock, Lock, CannotObtainLock, MultipleRedlockException)} == {"redlock"}
    assert set(redlock.__all__) >= {"Redlock", "Lock", "CannotObtainLock", "MultipleRedlockException"}


def test_the_console_script():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="redlock")
    assert script.load() is redlock.cli.main


def test_importing_does_not_import_redis():
    costly = ("redis", "logging", "typing", "threading", "dataclasses", "asyncio")
    program = f"import sys, redlock; print([name for name in {costly} if name in sys.modules])"
    # -S: what other packages have the interpreter import when it starts is not this package's.
    path = f"import sys; sys.path += {sys.path!r}; "
    assert subprocess.check_output([sys.executable, "-S", "-c", path + program], text=True) == "[]\n"


def test_the_module_has_redis_as_redlock_py_had():
    assert redlock.redis is redis
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        redlock.nothing  # noqa: B018 - asking is the test


# -- arguments and attributes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [
    lambda: Redlock([{"host": "h"}], 5, 0.5),
    lambda: Redlock([{"host": "h"}], retry_count=5, retry_delay=0.5),
    lambda: Redlock(connection_list=[{"host": "h"}], retry_count=5, retry_delay=0.5),
])  # fmt: skip
def test_arguments_by_position_or_name(call):
    dlm = call()
    assert (len(dlm.servers), dlm.quorum, dlm.retry_count, dlm.retry_delay) == (1, 1, 5, 0.5)


def test_class_attributes():
    assert (Redlock.default_retry_count, Redlock.default_retry_delay, Redlock.clock_drift_factor) == (3, 0.2, 0.01)
    assert Redlock.unlock_script == UNLOCK_SCRIPT


@pytest.mark.parametrize("count, quorum", [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_quorum(count, quorum):
    assert Redlock([{"host": f"h{n}"} for n in range(count)]).quorum == quorum


def test_making_a_manager_does_not_connect(scripted):
    server = scripted()
    dlm = Redlock([server.url])
    repr(dlm)
    assert server.connections == 0
    assert dlm.lock("r", TTL)
    assert server.connections > 0


def test_repr_is_short():
    assert repr(Redlock(["redis://a", "redis://b", "redis://c"])) == "<Redlock over 3 masters, quorum 2>"


@pytest.mark.parametrize("falsy", [0, None, 0.0, False])
def test_falsy_retries_are_the_defaults(falsy):
    dlm = Redlock([{"host": "h"}], falsy, falsy)
    assert (dlm.retry_count, dlm.retry_delay) == (3, 0.2)


def test_defaults_of_a_subclass():
    class Patient(Redlock):
        default_retry_count = 30
        default_retry_delay = 2.0

    dlm = Patient([{"host": "h"}])
    assert (dlm.retry_count, dlm.retry_delay) == (30, 2.0)


def test_defaults_changed_on_the_class(monkeypatch):
    monkeypatch.setattr(Redlock, "default_retry_count", 7)
    monkeypatch.setattr(Redlock, "default_retry_delay", 0.7)
    dlm = Redlock([{"host": "h"}])
    assert (dlm.retry_count, dlm.retry_delay) == (7, 0.7)


@pytest.mark.parametrize(
    "retry_count, tries",
    [(1, 1), (3, 3), (2.5, 3), (0.5, 1), (True, 1), (Decimal("1.5"), 2), (Fraction(7, 2), 4), (-1, 0), (-0.5, 0)],
)
def test_how_often_it_tries(scripted, retry_count, tries):
    server = scripted(lambda command: NIL if command.name == "SET" else None)
    assert Redlock([server.url], retry_count, 0.001).lock("r", TTL) is False
    assert len(server.named("SET")) == tries


@pytest.mark.parametrize("retry_count", [1200.0, 10**20, float("inf")])
def test_a_huge_retry_count_is_fine(masters, retry_count):
    assert Redlock([masters(1)[0].url], retry_count).lock("r", TTL)


def test_a_retry_count_that_is_not_a_number_is_a_negative_one(scripted):
    server = scripted()
    assert Redlock([server.url], float("nan")).lock("r", TTL) is False
    assert server.commands == []


@pytest.mark.parametrize("name", ["retry_count", "retry_delay"])
def test_retries_as_text_are_a_type_error(scripted, name):
    server = scripted()
    dlm = Redlock([server.url], **{name: "3"})
    with pytest.raises(TypeError, match=f"{name} must be a number, not str: '3'"):
        dlm.lock("r", TTL)
    assert server.commands == []


@pytest.mark.parametrize("delay", [-1, -0.1, float("nan"), float("inf"), 1e10])
def test_a_delay_that_is_no_duration_is_a_value_error(scripted, delay):
    server = scripted()
    with pytest.raises(ValueError, match="retry_delay must be seconds from 0 to"):
        Redlock([server.url], 3, delay).lock("r", TTL)
    assert server.commands == []


def test_retries_changed_later_count(scripted):
    server = scripted(lambda command: NIL if command.name == "SET" else None)
    dlm = Redlock([server.url])
    dlm.retry_count, dlm.retry_delay = 2, 0.001
    assert dlm.lock("r", TTL) is False
    assert len(server.named("SET")) == 2


def test_quorum_changed_later_counts(masters):
    servers = masters(3)
    servers[0].kill()
    dlm = manager(servers)
    dlm.quorum = 3
    assert dlm.lock("r", TTL) is False
    dlm.quorum = 2
    assert dlm.lock("r", TTL)


@pytest.mark.parametrize("where", ["subclass", "class", "instance"])
def test_drift_factor_changed_counts(masters, monkeypatch, where):
    kind = type("Careful", (Redlock,), {"clock_drift_factor": 0.5}) if where == "subclass" else Redlock
    dlm = kind([masters(1)[0].url])
    if where != "subclass":
        monkeypatch.setattr(Redlock if where == "class" else dlm, "clock_drift_factor", 0.5)
    assert dlm.lock("r", TTL).validity <= TTL // 2 - 2


@pytest.mark.parametrize("factor", [-0.01, float("nan"), float("inf")])
def test_a_drift_factor_that_would_outlive_the_key_is_refused(factor):
    dlm = Redlock([{"host": "h"}])
    dlm.clock_drift_factor = factor
    with pytest.raises(ValueError, match="clock_drift_factor must be a fraction"):
        dlm.lock("r", TTL)


@pytest.mark.parametrize("where", ["subclass", "class", "instance"])
@pytest.mark.every_kind
def test_unlock_script_changed_is_what_runs(masters, monkeypatch, where):
    (server,) = masters(1)
    kind = type("Marking", (Redlock,), {"unlock_script": MARK_SCRIPT}) if where == "subclass" else Redlock
    dlm = kind([server.url])
    if where != "subclass":
        monkeypatch.setattr(Redlock if where == "class" else dlm, "unlock_script", MARK_SCRIPT)
    lock = dlm.lock("r", TTL)
    dlm.unlock(lock)
    assert server.keys() == {b"mark"}
    assert server.get("mark") == lock.key


# -- items -------------------------------------------------------------------------------------------------------------


def names(*items):
    """What the masters of a manager are called, which is where the engine finds them."""
    masters = Redlock(items)._masters
    assert masters.engine is not None
    return masters.names


@pytest.mark.parametrize(
    "item, name",
    [
        ("redis://", "localhost:6379/0"),
        ("redis://h", "h:6379/0"),
        ("redis://h:7000/2", "h:7000/2"),
        ("redis://h/?db=3", "h:6379/3"),
        ("redis://user:pass%40@h:1", "h:1/0"),
        ("redis://[::1]:7000", "[::1]:7000/0"),
        (
            "redis://h?socket_timeout=0.5&socket_connect_timeout=1&socket_keepalive=yes&client_name=me&protocol=3",
            "h:6379/0",
        ),
        ("redis://h?retry_on_timeout=1&health_check_interval=5&max_connections=9&decode_responses=True", "h:6379/0"),
        ("rediss://h?ssl_cert_reqs=none", "h:6379/0"),
        ("rediss://h:7000/1?ssl_check_hostname=false", "h:7000/1"),
        ("unix:///run/redis.sock", "/run/redis.sock/0"),
        ("unix://user:pass@/run/redis.sock?db=2", "/run/redis.sock/2"),
        ("redis+unix:///run/redis.sock", "/run/redis.sock/0"),
        (b"redis://h:7000/2", "h:7000/2"),
        ({}, "localhost:6379/0"),
        ({"host": "h", "port": 7000, "db": 1}, "h:7000/1"),
        ({"host": "h", "port": "7000", "db": "1", "password": None}, "h:7000/1"),
        ({"host": "h", "db": None, "username": "", "password": ""}, "h:6379/0"),
        ({"host": "h", "password": 1234, "client_name": b"me"}, "h:6379/0"),
        ({"host": "::1"}, "[::1]:6379/0"),
        ({"host": None}, "localhost:6379/0"),
        ({"unix_socket_path": "/run/redis.sock", "db": 4}, "/run/redis.sock/4"),
        ({"host": "h", "ssl": True}, "h:6379/0"),
        ({"host": "h", "decode_responses": True, "socket_timeout": 0.5, "max_connections": 3}, "h:6379/0"),
        (OrderedDict(host="h", port=7000), "h:7000/0"),
        (MappingProxyType({"host": "h"}), "h:6379/0"),
    ],
)
def test_items_that_the_engine_speaks_to(item, name):
    assert names(item) == [name]


def connect_all(dlm):
    """A master that is not yet connected when the others decide is not asked; a release goes to all."""
    dlm.unlock(Lock(0, "r", b"nobody's"))


def test_items_of_all_sorts_together(masters):
    servers = masters(5)
    urls = [server.url for server in servers]
    items = [
        urls[0],
        urls[1].encode(),
        {"host": servers[2].host, "port": str(servers[2].port), "password": None},
        f"unix://{servers[3].socket_path}",
        redis.Redis(host=servers[4].host, port=servers[4].port),
    ]
    dlm = Redlock(items)
    connect_all(dlm)
    lock = dlm.lock("r", TTL)
    wait_until(lambda: held(servers) == [lock.key] * 5)
    dlm.unlock(lock)
    assert held(servers) == [None] * 5
    items[4].close()


def test_any_iterable_of_items_will_do():
    assert Redlock(("redis://a", "redis://b")).quorum == 2
    assert Redlock(f"redis://{host}" for host in "abc").quorum == 2


def test_a_client_is_kept_as_it_is():
    client = redis.StrictRedis(host="h")
    assert Redlock([client]).servers[0] is client


@pytest.mark.parametrize(
    "item, text",
    [
        ({"cat": "hog"}, "unexpected keyword argument 'cat'"),
        ("http://h", "Redis URL must specify one of the following schemes"),
        ("localhost:6379", "Redis URL must specify one of the following schemes"),
        ("redis://h:port", "Port could not be cast to integer"),
        ("redis://h?cat=hog", "unexpected keyword argument 'cat'"),
        ("redis://h?socket_timeout=soon", "socket_timeout"),
        ({"host": "h", "port": "abc"}, "invalid literal for int"),
        ({"host": "h", "db": -1}, "db"),
        ({"host": "h", "ssl": True, "ssl_cert_reqs": "perhaps"}, "perhaps"),
        (b"\xff", "can't decode"),
        (None, "a master is a URL, a dict or a client with set and eval, not NoneType"),
        (6379, "a master is a URL, a dict or a client with set and eval, not int"),
        (["redis://h"], "not list"),
        (object(), "not object"),
    ],
)
def test_items_that_cannot_be_used_are_warnings(item, text):
    with pytest.raises(Warning, match=r".") as caught:
        Redlock([item])
    assert type(caught.value) is Warning
    assert text in str(caught.value)


@pytest.mark.parametrize("instead", [{"host": "h"}, "redis://h", b"redis://h"])
def test_an_item_instead_of_the_list_is_a_warning(instead):
    with pytest.raises(Warning) as caught:
        Redlock(instead)
    assert type(caught.value) is Warning


def test_no_items():
    with pytest.raises(CannotObtainLock, match=r"^Failed to connect to the majority of redis servers$"):
        Redlock([])


@pytest.mark.parametrize("instead", [None, 3])
def test_no_list_is_a_type_error(instead):
    with pytest.raises(TypeError):
        Redlock(instead)


@pytest.mark.parametrize("make", [redis.asyncio.Redis, lambda: redis.asyncio.from_url("redis://h")])
def test_asyncio_clients_are_refused_with_a_hint(make):
    client = make()
    with pytest.raises(Warning, match="AsyncRedlock"):
        Redlock([client])


# -- the same master twice ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items",
    [
        ["redis://h", "redis://h:6379/0"],
        ["redis://a", {"host": "b", "port": 1, "db": 2}, "redis://b:1/2"],
        [{"unix_socket_path": "/s"}, "unix:///s"],
        [{"host": "h"}, redis.Redis("h")],
    ],
)
def test_a_master_listed_twice_is_a_warning(items):
    with pytest.raises(Warning, match="listed twice: ") as caught:
        Redlock(items)
    assert type(caught.value) is Warning


def test_databases_of_one_server_are_accepted_and_logged(masters, caplog):
    (server,) = masters(1)
    items = [{"host": server.host, "port": server.port, "db": db} for db in range(3)]
    with caplog.at_level(logging.WARNING, "redlock"):
        dlm = Redlock(items)
    (record,) = caplog.records
    assert f"{server.host}:{server.port} is listed with several databases" in record.getMessage()
    connect_all(dlm)
    lock = dlm.lock("r", TTL)
    clients = [server.client(db=db) for db in range(3)]
    wait_until(lambda: [client.get("r") for client in clients] == [lock.key] * 3)


def test_one_server_under_two_names_is_logged_once(masters, caplog):
    (server,) = masters(1)
    dlm = Redlock([f"redis://127.0.0.1:{server.port}", f"unix://{server.socket_path}"])
    for _ in range(3):
        dlm.lock("r", 100)
    assert len([record for record in caplog.records if "are one server" in record.getMessage()]) == 1


# -- servers -----------------------------------------------------------------------------------------------------------


def test_servers_are_redis_py_clients(masters):
    (server,) = masters(1)
    for item in (server.url, {"host": server.host, "port": server.port}):
        dlm = Redlock([item])
        (client,) = dlm.servers
        assert type(client) is redis.StrictRedis
        lock = dlm.lock("r", TTL)
        assert client.get("r") == lock.key
        assert client.lpush("list", "a", "b") == 2
        assert b"redlock" not in client.execute_command("CLIENT", "LIST", "TYPE", "normal")
        assert client.eval("return redis.call('get', KEYS[1])", 1, "r") == lock.key
        client.flushdb()
        client.close()


# -- what the engine is told -------------------------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """What the engine is told of a client; nothing if it is told nothing."""

    def ask(client):
        seen = []
        endpoint = _connections.Endpoint
        with mock.patch.object(
            _connections, "Endpoint", lambda **settings: seen.append(settings) or endpoint(**settings)
        ):
            _connections.endpoint(client)
        return seen[0] if seen else None

    return ask


STRICT, PARTIAL_CHAIN = ssl.VerifyFlags.VERIFY_X509_STRICT, ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
FLAGS = ssl.create_default_context().verify_flags
TLS = {
    "cert_reqs": "required",
    "check_hostname": True,
    "strict": STRICT in FLAGS,
    "partial_chain": PARTIAL_CHAIN in FLAGS,
}
PLAIN = {
    "host": "localhost",
    "port": 6379,
    "db": 0,
    "username": None,
    "password": None,
    "client_name": None,
    "tls": None,
}


@pytest.mark.parametrize(
    "options, settings",
    [
        ({}, PLAIN),
        ({"username": "u", "password": "p"}, {"username": "u", "password": "p"}),
        ({"username": "u"}, {"username": "u", "password": ""}),
        ({"password": b"p"}, {"username": None, "password": "p"}),
        ({"password": 12.5}, {"password": "12.5"}),
        ({"socket_timeout": 0.5}, {"socket_timeout": 0.5}),
        ({"socket_timeout": 0.5, "socket_connect_timeout": None}, {"socket_connect_timeout": 0.5}),
        ({"socket_connect_timeout": 0.1}, {"socket_connect_timeout": 0.1}),
        ({"protocol": 2}, {"protocol": 2}),
        ({"protocol": "3"}, {"protocol": 3}),
        ({"client_name": "me"}, {"client_name": "me"}),
        ({"socket_keepalive": False}, {"socket_keepalive": False, "socket_keepalive_options": None}),
        (
            {"socket_keepalive": True, "socket_keepalive_options": {socket.TCP_KEEPINTVL: 9}},
            {"socket_keepalive": True, "socket_keepalive_options": {socket.TCP_KEEPINTVL: 9}},
        ),
        (
            {"socket_timeout": 0, "socket_connect_timeout": 0.0},
            {"socket_timeout": None, "socket_connect_timeout": None},
        ),
        ({"health_check_interval": 30}, PLAIN),
        ({"encoding_errors": "surrogateescape"}, PLAIN),
        ({"connection_pool": redis.BlockingConnectionPool(host="h", timeout=1, db=2)}, {"host": "h", "db": 2}),
        ({"unix_socket_path": "/s", "db": 1}, {"path": "/s", "db": 1, "tls": None}),
        ({"ssl": True}, {"tls": TLS}),
        ({"ssl": True, "ssl_cert_reqs": ssl.CERT_OPTIONAL}, {"tls": {**TLS, "cert_reqs": "optional"}}),
        ({"ssl": True, "ssl_cert_reqs": None}, {"tls": {**TLS, "cert_reqs": "none", "check_hostname": False}}),
        (
            {"ssl": True, "ssl_check_hostname": False, "ssl_min_version": ssl.TLSVersion.TLSv1_3},
            {"tls": {**TLS, "check_hostname": False, "min_version": "1.3"}},
        ),
        (
            {"ssl": True, "ssl_include_verify_flags": [STRICT], "ssl_exclude_verify_flags": [PARTIAL_CHAIN]},
            {"tls": {**TLS, "strict": True, "partial_chain": False}},
        ),
        (
            {"ssl": True, "ssl_include_verify_flags": [PARTIAL_CHAIN], "ssl_exclude_verify_flags": [STRICT]},
            {"tls": {**TLS, "strict": False, "partial_chain": True}},
        ),
    ],
)
def test_settings_of_a_client_reach_the_engine(told, options, settings):
    seen = told(redis.Redis(**options))
    assert {name: seen[name] for name in settings} == settings


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such option")
def test_options_of_tcp_reach_the_socket(masters):
    """As the kernel shows them."""
    (server,) = masters(1)
    options = {socket.TCP_USER_TIMEOUT: 9000, socket.TCP_KEEPIDLE: 7, socket.TCP_KEEPINTVL: 8, socket.TCP_KEEPCNT: 9}
    dlm = Redlock([{"port": server.port, "socket_keepalive": True, "socket_keepalive_options": options}])
    assert dlm._masters.engine is not None
    assert dlm.lock("r", TTL)
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.fromfd(int(link.name), socket.AF_INET, socket.SOCK_STREAM) as ours:
            found += [[ours.getsockopt(socket.IPPROTO_TCP, option) for option in options]]
    assert list(options.values()) in found


def test_certificates_of_a_client_reach_the_engine(told, authority):
    files = {
        "ca_certs": str(authority.ca),
        "certfile": str(authority.client),
        "keyfile": str(authority.client_key),
        "ca_data": authority.ca.read_text(),
    }
    client = redis.Redis(ssl=True, **{f"ssl_{name}": value for name, value in files.items()})
    assert told(client)["tls"].items() >= files.items()


class Derived(redis.Redis):
    pass


class DerivedPool(redis.ConnectionPool):
    pass


class DerivedConnection(redis.Connection):
    pass


@pytest.mark.parametrize(
    "client",
    [
        Derived(),
        redis.Redis(connection_pool=DerivedPool()),
        redis.Redis(connection_pool=redis.ConnectionPool(connection_class=DerivedConnection)),
        redis.sentinel.Sentinel([("h", 26379)]).master_for("master"),
        redis.Redis(encoding="latin-1"),
        redis.Redis(redis_connect_func=print),
        redis.Redis(password=["p"]),
        redis.Redis(connection_pool=redis.ConnectionPool(socket_type=socket.AF_INET)),
        redis.Redis(socket_keepalive=True, socket_keepalive_options={socket.TCP_KEEPINTVL: b"9"}),
        redis.Redis(socket_keepalive=True, socket_keepalive_options={socket.TCP_NODELAY: 1}),
        redis.Redis(ssl=True, ssl_password="p"),
        redis.Redis(ssl=True, ssl_ciphers="ALL"),
        redis.Redis(ssl=True, ssl_min_version=ssl.TLSVersion.MINIMUM_SUPPORTED),
        redis.Redis(ssl=True, ssl_validate_ocsp=True),
        redis.Redis(ssl=True, ssl_include_verify_flags=[ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF]),
        mock.MagicMock(),
    ],
)
def test_what_the_engine_cannot_honour_is_left_to_the_client(told, client):
    assert told(client) is None
    assert Redlock([client])._masters.engine is None


def test_one_server_that_the_engine_cannot_honour_and_all_are_called_themselves(caplog):
    """It is said once which, and why."""
    dlm = Redlock(["redis://a", redis.Redis("b", encoding="latin-1", password="canary"), "redis://c"])
    for _ in range(3):
        assert dlm._backend().engine is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("the engine cannot stand in for b:6379/0, which")
    assert record.getMessage().endswith(": its setting encoding")


def test_flags_that_the_engine_cannot_honour_are_named(caplog):
    flags = [ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF]
    assert Redlock([redis.Redis(ssl=True, ssl_include_verify_flags=flags)])._backend().engine is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith(": its setting ssl_include_verify_flags")


def test_clients_for_which_there_is_no_other_way_are_no_warning(caplog):
    assert Redlock([fakeredis.FakeRedis()])._backend().engine is None
    assert caplog.text == ""


def test_reading_a_client_warns_of_nothing(recwarn):
    """The tests make each warning an error; redis-py warns of what its own client was made with."""
    assert Redlock(["redis://h?retry_on_timeout=1&lib_name=me"])._backend().engine is not None
    assert [str(warning.message) for warning in recwarn] == []
