"""The rig works: each kind of server starts and can be harmed, the bad network is bad as told, scripts answer."""

from __future__ import annotations

import socket
import ssl
import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.loop import BUS, free_port
from support.proxy import Mode, syn_black_hole
from support.scripted import NIL, Act, Late
from support.servers import ServerKind

VERSIONS = {ServerKind.REDIS62: "6.2.", ServerKind.REDIS82: "8.2.", ServerKind.VALKEY91: "9.1."}


def client_of(place, **options) -> redis.Redis:
    """A redis-py client of a server, proxy or script, that gives up after 0.2 s and never tries again."""
    settings = {"protocol": 2, "driver_info": None, "retry": Retry(NoBackoff(), 0), "socket_timeout": 0.2}
    return redis.Redis(host=place.host, port=place.port, **settings, **options)


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_each_kind_starts_with_its_version(masters, kind):
    (server,) = masters(1)
    field = "valkey_version" if kind is ServerKind.VALKEY91 else "redis_version"
    assert server.info(field).startswith(VERSIONS[kind])
    assert server.url == f"redis://127.0.0.1:{server.port}"


def test_masters_are_separate_servers(masters):
    servers = masters(3)
    servers[0].admin.set("k", "v")
    assert [server.keys() for server in servers] == [{b"k"}, set(), set()]


@pytest.mark.every_kind
def test_a_server_comes_back_from_the_pool_as_good_as_new(masters):
    (server,) = masters(1)
    server.admin.set("k", "v")
    server.admin.config_set("maxmemory", "1mb")
    server.admin.config_set("min-replicas-to-write", "3")
    server.admin.execute_command("ACL", "SETUSER", "someone", "on", "nopass", "~*", "+get")
    server.admin.config_set("requirepass", "secret")
    (again,) = masters(1)
    assert again is server
    assert again.keys() == set()
    assert again.admin.acl_users() == ["default"]
    assert again.admin.config_get("maxmemory") == {"maxmemory": "0"}
    assert client_of(again).set("k", "v")


@pytest.mark.parametrize("harm", ["kill", "freeze"])
def test_a_harmed_server_is_mended_for_the_next_test(masters, harm):
    (server,) = masters(1)
    getattr(server, harm)()
    (again,) = masters(1)
    assert again is server
    assert client_of(again).ping()


def test_a_frozen_server_accepts_and_answers_once_thawed(masters):
    (server,) = masters(1)
    client = client_of(server)
    server.freeze()
    with pytest.raises(redis.TimeoutError):
        client.set("k", "v")
    server.thaw()
    assert client_of(server).ping()


def test_a_killed_server_refuses_and_comes_back_empty_on_its_port(masters):
    (server,) = masters(1)
    server.admin.set("k", "v")
    port = server.port
    server.kill()
    with pytest.raises(redis.ConnectionError):
        client_of(server).ping()
    server.restart()
    assert server.port == port
    assert server.keys() == set()


def test_with_aof_a_killed_server_keeps_its_keys(spawn):
    server = spawn(aof=True)
    server.admin.set("k", "v")
    server.restart()
    assert server.get("k") == b"v"


def test_password_unix_socket_and_ipv6(spawn):
    server = spawn(host="::1", password="secret")
    assert server.url == f"redis://:secret@[::1]:{server.port}"
    with pytest.raises(redis.AuthenticationError):
        client_of(server).ping()
    assert server.admin.ping()
    assert redis.Redis(unix_socket_path=str(server.socket_path), password="secret").ping()


def test_connections_are_those_of_others(masters):
    (server,) = masters(1)
    assert server.connections() == []
    client = client_of(server, client_name="other")
    client.ping()
    assert [other["name"] for other in server.connections()] == ["other"]


# -- proxy -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(masters, through):
    (server,) = masters(1)
    proxy = through(server)
    client = client_of(proxy)
    assert client.ping()
    return server, proxy, client


def test_proxy_passes_and_counts(proxied):
    server, proxy, client = proxied
    before = proxy.sent
    client.set("k", "v" * 100_000)
    assert server.get("k") == b"v" * 100_000
    assert 100_000 < proxy.sent - before < 100_100
    assert proxy.links[0].received == len(b"+PONG\r\n+OK\r\n")


@pytest.mark.parametrize("attribute", ["delay", "delay_requests", "jitter"])
def test_proxy_holds_back(proxied, attribute):
    _, proxy, client = proxied
    setattr(proxy, attribute, 0.1)
    start = time.monotonic()
    for _ in range(3):
        client.ping()
    assert time.monotonic() - start > 0.05  # the seeded jitter's least sum is more, too


def test_proxy_swallows_both_ways(proxied):
    server, proxy, client = proxied
    proxy.mode = Mode.SWALLOW
    with pytest.raises(redis.TimeoutError):
        client.set("k", "v")
    assert server.keys() == set()


def test_proxy_swallows_replies_of_commands_that_are_obeyed(proxied):
    server, proxy, client = proxied
    proxy.mode = Mode.SWALLOW_REPLIES
    with pytest.raises(redis.TimeoutError):
        client.set("k", "v")
    assert server.get("k") == b"v"


def test_proxy_drips(proxied):
    _, proxy, client = proxied
    proxy.mode, proxy.drip = Mode.DRIP, 0.01
    start = time.monotonic()
    assert client.ping()
    assert time.monotonic() - start > 0.1


def test_proxy_half_open_tells_the_client_nothing(proxied):
    server, proxy, client = proxied
    proxy.mode = Mode.HALF_OPEN
    with pytest.raises(redis.TimeoutError):
        client.ping()
    assert server.connections() == []


@pytest.mark.parametrize("end", ["reset", "close"])
def test_proxy_ends_connections(proxied, end):
    _, proxy, _ = proxied
    raw = socket.create_connection((proxy.host, proxy.port))
    raw.settimeout(5)
    raw.sendall(b"PING\r\n")
    assert raw.recv(100) == b"+PONG\r\n"
    getattr(proxy, end)()
    with raw:
        if end == "close":
            assert raw.recv(100) == b""
        else:
            with pytest.raises(ConnectionResetError):
                raw.recv(100)
    assert client_of(proxy).ping()


def test_proxy_refuses_and_accepts_again(proxied):
    _, proxy, _ = proxied
    proxy.refuse()
    with pytest.raises(redis.ConnectionError, match="refused"):
        client_of(proxy).ping()
    proxy.accept()
    assert client_of(proxy).ping()


def test_proxy_of_a_dead_server_cuts_the_connection(proxied):
    server, proxy, _ = proxied
    server.kill()
    with pytest.raises(redis.ConnectionError):
        client_of(proxy).ping()


def test_syn_black_hole_neither_accepts_nor_refuses():
    with syn_black_hole() as port, pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", port), timeout=0.3)


# -- scripts -----------------------------------------------------------------------------------------------------------


def test_script_answers_as_a_small_redis(scripted):
    server = scripted()
    client = client_of(server)
    assert client.set("k", "v", nx=True, px=10_000)
    assert not client.set("k", "w", nx=True, px=10_000)
    assert server.keys == {b"k": b"v"}
    assert client.eval("", 1, "k", "w") == 0
    assert client.eval("", 1, "k", "v") == 1
    assert client_of(server).get("k") is None
    assert [command.name for command in server.commands] == ["SET", "SET", "EVAL", "EVAL", "GET"]
    assert set(server.commands[0].words) == {b"SET", b"k", b"v", b"PX", b"10000", b"NX"}


def test_script_says_what_the_test_wants(scripted):
    answers = iter([b"-LOADING wait\r\n", NIL, Act.SILENCE, Late(0.5, b"+OK\r\n")])
    server = scripted(lambda command: next(answers) if command.name == "SET" else None)
    with pytest.raises(redis.exceptions.BusyLoadingError):
        client_of(server).set("k", "v")
    assert client_of(server).set("k", "v") is None
    for _ in range(2):
        with pytest.raises(redis.TimeoutError):
            client_of(server).set("k", "v")
    assert client_of(server).ping()


@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET])
def test_script_ends_the_connection(scripted, act):
    server = scripted(lambda _: act)
    with pytest.raises(redis.ConnectionError):
        client_of(server).ping()


def test_script_greets(scripted):
    server = scripted(greeting=b"-ERR max number of clients reached\r\n")
    with socket.create_connection((server.host, server.port), timeout=5) as raw:
        assert raw.recv(100) == b"-ERR max number of clients reached\r\n"


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def front(masters, fronts):
    """TLS in front of the one server of a test."""
    return lambda *arguments, **options: fronts(masters(1)[0], *arguments, **options)


def test_tls_front_serves_its_certificate(front, authority, other_authority):
    tls = front(authority.server)
    assert client_of(tls, ssl=True, ssl_ca_certs=str(authority.ca)).ping()
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        client_of(tls, ssl=True, ssl_ca_certs=str(other_authority.ca)).ping()


def test_tls_front_asks_for_the_clients_certificate(front, authority):
    tls = front(authority.server, authority.ca)
    trust = {"ssl": True, "ssl_ca_certs": str(authority.ca)}
    own = {"ssl_certfile": str(authority.client), "ssl_keyfile": str(authority.client_key)}
    assert client_of(tls, **trust, **own).ping()
    with pytest.raises((redis.ConnectionError, ssl.SSLError)):
        client_of(tls, **trust).ping()


# -- ports -------------------------------------------------------------------------------------------------------------


def test_a_free_port_is_free_for_the_bus_of_a_cluster_node_too():
    port = free_port()
    assert port + BUS < 32_768  # where the kernel's own begin
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1 + BUS))
        assert free_port() != port + 1
