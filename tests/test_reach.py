"""Masters that are more than one server: found through sentinels, or spread over a cluster. On real servers.

The numbers (H38 ...) name the hazard that a test reproduces.
"""

from __future__ import annotations

import logging
import threading
import time

import pytest
import redis
from redis.sentinel import Sentinel as RedisPySentinel

from redlock import Lock, QuorumUnavailable, Redlock
from redlock._redlock import close_unused
from support.locks import PROMPT, TTL, held, manager, nothing_left
from support.scripted import NIL, OK, Act, Late
from support.servers import Server, wait_until
from support.tls import TlsFront
from support.topology import SERVICE, Cluster, Sentinel, Watched

pytestmark = pytest.mark.once

PATIENT = {"retry_count": 400, "retry_delay": 0.05}  # outlasts a failover, some seconds; bounded all the same


@pytest.fixture(scope="module")
def watched_by_kind():
    groups = {}
    yield groups
    for group in groups.values():
        group.stop()


@pytest.fixture
def watched(watched_by_kind, kind):
    """A master, a replica and three sentinels, in peace; kept for the next test, so leave all of them running."""
    group = watched_by_kind.get(kind) or watched_by_kind.setdefault(kind, Watched(kind))
    group.wait_for_calm()
    group.master.admin.flushall()
    return group


@pytest.fixture(scope="module")
def clusters_by_kind():
    clusters = {}
    yield clusters
    for cluster in clusters.values():
        cluster.stop()


@pytest.fixture
def cluster(clusters_by_kind, kind):
    """Three shards; kept for the next test, so leave all of them running."""
    cluster = clusters_by_kind.get(kind) or clusters_by_kind.setdefault(kind, Cluster(kind))
    for node in cluster.nodes:
        node.admin.flushall()
    return cluster


def address_of(*server):
    """What a sentinel answers that names this server; nothing names none."""
    words = [part.encode() for each in server for part in (each.host, str(each.port))]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words) if words else NIL


@pytest.fixture
def encrypted(authority):
    """Puts TLS in front of a server."""
    fronts = []

    def put(server):
        fronts.append(TlsFront(server, authority.server))
        return fronts[-1]

    yield put
    for front in fronts:
        front.stop()


@pytest.fixture
def naming(scripted):
    """A sentinel that names this server, as a sentinel that knows no better would."""

    def start(*server):
        return scripted(lambda command: address_of(*server) if command.name == "SENTINEL" else None)

    return start


def sentinel_url(*sentinels, service=SERVICE, query=""):
    return f"redis+sentinel://{','.join(f'{each.host}:{each.port}' for each in sentinels)}/{service}{query}"


# -- sentinels: where the master is ------------------------------------------------------------------------------------


def test_a_lock_is_on_the_master_that_the_sentinels_name(watched):
    dlm = manager([watched])
    lock = dlm.lock("r", TTL)
    assert watched.master.get("r") == lock.key
    assert manager([watched]).lock("r", TTL) is False
    dlm.unlock(lock)
    assert watched.master.get("r") is None


def test_nobody_is_asked_before_the_first_lock(naming, masters):
    (server,) = masters(1)
    sentinel = naming(server)
    dlm = Redlock([sentinel_url(sentinel)])
    assert isinstance(dlm.servers[0], redis.Redis)
    assert sentinel.connections == 0
    assert dlm.lock("r", TTL)


def test_the_item_in_servers_is_redis_pys_client_of_the_service(watched):
    dlm = manager([watched])
    lock = dlm.lock("r", TTL)
    assert dlm.servers[0].get("r") == lock.key


def test_the_sentinels_are_asked_for_each_connection_and_not_for_each_lock(naming, masters):
    (server,) = masters(1)
    sentinel = naming(server)
    dlm = Redlock([sentinel_url(sentinel)])
    question = (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", SERVICE.encode())
    for number in range(3):
        assert dlm.lock(f"r{number}", TTL)
    assert [command.words for command in sentinel.named("SENTINEL")] == [question]
    server.restart()
    assert dlm.lock("r", TTL)
    assert [command.words for command in sentinel.named("SENTINEL")] == [question] * 2


def test_a_sentinel_that_names_a_replica_is_not_believed(naming, watched):
    """H38, H39: it missed the failover, or the master was demoted behind its back."""
    behind, right = naming(watched.replica), naming(watched.master)
    lock = Redlock([sentinel_url(behind, right)], 1).lock("r", TTL)
    assert watched.master.get("r") == lock.key
    assert behind.named("SENTINEL")


def test_a_service_of_which_all_sentinels_name_a_replica_has_no_vote(naming, watched, caplog):
    assert Redlock([sentinel_url(naming(watched.replica))], 1).lock("r", TTL) is False
    assert "is a replica, not a master" in caplog.text


@pytest.mark.parametrize("fault", [Act.SILENCE, Act.CLOSE, NIL, b"-ERR no\r\n", b"*1\r\n$1\r\nx\r\n", b"*0\r\n"])
def test_the_next_sentinel_is_asked_when_one_does_not_help(scripted, naming, masters, fault):
    (server,) = masters(1)
    bad = scripted(lambda _: fault)
    dlm = Redlock([sentinel_url(bad, naming(server))], 3, 0.02)
    assert dlm.lock("r", TTL)
    assert bad.named("SENTINEL")


def test_the_next_sentinel_is_asked_when_one_is_dead(spawn, naming, masters):
    (server,) = masters(1)
    dead = spawn()
    dead.kill()
    assert Redlock([sentinel_url(dead, naming(server))], 1).lock("r", TTL)


def test_hung_sentinels_cost_a_moment_each_and_no_more(masters, watched):
    """All sentinels hang: the deadline is one for all of them, and other masters decide without."""
    servers = masters(2)
    for sentinel in watched.sentinels:
        sentinel.freeze()
    try:
        start = time.monotonic()
        lock = manager([watched, *servers]).lock("r", TTL)
        alone = manager([watched], retry_count=1).lock("r", TTL)
        assert time.monotonic() - start < PROMPT
    finally:
        for sentinel in watched.sentinels:
            sentinel.thaw()
    assert isinstance(lock, Lock)
    assert alone is False


@pytest.mark.parametrize(
    "answer, text",
    [(NIL, f'knows no master called "{SERVICE}"'), (None, "does not name a master"), (OK, "names no address")],
)
def test_what_is_wrong_with_a_sentinel_is_logged_with_its_address(scripted, caplog, answer, text):
    sentinel = scripted(lambda command: answer if command.name == "SENTINEL" else None)
    assert Redlock([sentinel_url(sentinel)], 1).lock("r", TTL) is False
    assert f"sentinel {sentinel.host}:{sentinel.port} {text}" in caplog.text


def test_a_plain_url_to_a_sentinel_is_still_no_master(watched, caplog):
    assert manager(watched.sentinels[:1], retry_count=1).lock("r", TTL) is False
    assert "is a sentinel, not a Redis master" in caplog.text


# -- sentinels: the login ----------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(kind):
    """A master with one password, and its sentinel with another."""
    master = Server(kind, password="canary-master")
    sentinel = None
    try:
        sentinel = Sentinel(kind, master, 1, "canary-sentinel")
        yield master, sentinel
    finally:
        master.stop()
        if sentinel:
            sentinel.stop()


@pytest.mark.every_kind
def test_master_and_sentinels_have_logins_of_their_own(guarded):
    master, sentinel = guarded
    place = f"{sentinel.host}:{sentinel.port}/{SERVICE}"
    dlm = Redlock([f"redis+sentinel://:canary-master@{place}?sentinel_password=canary-sentinel"], 1)
    lock = dlm.lock("r", TTL)
    assert master.get("r") == lock.key
    wait_until(lambda: not sentinel.connections())  # nobody lingers there
    assert dlm.servers[0].get("r") == lock.key  # redis-py's client has them, too


@pytest.mark.parametrize(
    "password, sentinel_password",
    [("canary-master", "canary-wrong"), ("canary-wrong", "canary-sentinel"), ("canary-master", "")],
)
def test_a_wrong_login_is_said_without_the_password(guarded, caplog, password, sentinel_password):
    _, sentinel = guarded
    place = f"{sentinel.host}:{sentinel.port}/{SERVICE}"
    dlm = Redlock([f"redis+sentinel://:{password}@{place}?sentinel_password={sentinel_password}"], 1)
    assert dlm.lock("r", TTL) is False
    assert [record.levelno for record in caplog.records][:1] == [logging.ERROR]
    assert "canary" not in caplog.text + repr(dlm.servers) + repr(dlm.__dict__)


def test_the_masters_login_is_not_shown_to_the_sentinels(naming, masters):
    (server,) = masters(1)
    sentinel = naming(server)
    place = f"{sentinel.host}:{sentinel.port}/{SERVICE}"
    Redlock([f"redis+sentinel://user:canary-master@{place}"], 1).lock("r", TTL)
    assert sentinel.named("SENTINEL")
    assert not any(b"canary-master" in word for command in sentinel.commands for word in command.words)


# -- sentinels: the URL ------------------------------------------------------------------------------------------------


def test_the_options_are_redis_pys(naming, spawn):
    server = spawn(password="secret")
    sentinel = naming(server)
    query = "?client_name=locks&protocol=2&socket_timeout=0.4&socket_connect_timeout=0.4&socket_keepalive=yes"
    url = f"redis+sentinel://default:secret@{sentinel.host}:{sentinel.port}/{SERVICE}/3{query}"
    dlm = Redlock([url])
    lock = dlm.lock("r", TTL)
    assert server.client(db=3).get("r") == lock.key
    ours = [client for client in server.connections() if client["name"] == "locks"]
    assert [(client["db"], client.get("resp", "2")) for client in ours] == [("3", "2")]


def test_tls_is_to_the_master_and_to_the_sentinels(naming, masters, encrypted, authority):
    (server,) = masters(1)
    master = encrypted(server)
    sentinel = encrypted(naming(master))
    url = f"rediss+sentinel://{sentinel.host}:{sentinel.port}/{SERVICE}"
    lock = Redlock([f"{url}?ssl_ca_certs={authority.ca}"]).lock("r", TTL)
    assert server.get("r") == lock.key
    assert Redlock([url], 1).lock("other", TTL) is False  # nobody trusts the authority


def test_a_service_is_named_by_its_sentinels_in_the_log(caplog, naming, spawn):
    server = spawn()
    sentinel = naming(server)
    server.kill()
    assert Redlock([sentinel_url(sentinel, query="/2")], 1).lock("r", TTL) is False
    assert f"master sentinel({SERVICE})@{sentinel.host}:{sentinel.port}/2 gives no vote" in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://",
        "redis+sentinel:///main",
        "redis+sentinel://host:1",
        "redis+sentinel://host:1/",
        "redis+sentinel://host:1,/main",
        "redis+sentinel://:1/main",
        "redis+sentinel://host:port/main",
        "redis+sentinel://host:99999/main",
        "redis+sentinel://host:0/main/x",
        "redis+sentinel://host:1/main/one",
        "redis+sentinel://host:1/main/-1",
        "redis+sentinel://host:1/main?no_such_option=1",
        "redis+sentinel://host:1/main?ssl_cert_reqs=none",
    ],
)
def test_a_url_that_makes_no_sense_is_a_warning(url):
    with pytest.raises(Warning):
        Redlock([url])


@pytest.mark.parametrize(
    "url",
    [
        "rediss+sentinel://:canary@host:1/main?ssl_cert_reqs=canary",
        "redis+sentinel://user:canary@host:1/main/x",
    ],
)
def test_no_password_of_a_url_is_in_the_warning(url):
    with pytest.raises(Warning) as caught:
        Redlock([url])
    assert "canary" not in repr(caught.value)


def test_the_same_service_twice_is_a_warning():
    url = "redis+sentinel://a:1,b:2/main"
    with pytest.raises(Warning, match="listed twice"):
        Redlock([url, url, "redis://localhost:1"])
    Redlock([url, "redis+sentinel://a:1,b:2/other"])


# -- sentinels: failover -----------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_a_failover_is_followed(watched):
    """H38. Whoever connects anew asks again; whoever has a connection goes on until the old master is demoted."""
    old, dlm = watched.master, manager([watched])
    theirs = Redlock([RedisPySentinel(watched.places).master_for(SERVICE)])
    before = dlm.lock("before", TTL)
    assert old.get("before") == before.key
    watched.failover()
    close_unused(used_too=True)
    fresh = manager([watched], retry_count=1).lock("fresh", TTL)
    assert watched.master is not old
    assert watched.master.get("fresh") == fresh.key
    watched.demote()
    for name, each in [("ours", dlm), ("theirs", theirs)]:
        lock = each.lock(name, TTL)
        assert watched.master.get(name) == lock.key
        each.unlock(lock)
        assert watched.master.get(name) is None


def test_a_failover_after_the_masters_death_is_followed(kind):
    watched = Watched(kind)
    try:
        old, dlm = watched.master, Redlock([watched.url], **PATIENT)
        theirs = Redlock([RedisPySentinel(watched.places).master_for(SERVICE)], **PATIENT)
        for each in (dlm, theirs):
            assert each.lock(f"before-{id(each)}", TTL)
        old.kill()
        lock = dlm.lock("r", TTL)
        watched.wait_for_master(next(server for server in watched.servers if server is not old))
        assert watched.master.get("r") == lock.key
        dlm.unlock(lock)
        assert watched.master.get("r") is None
        lock = theirs.lock("r", TTL)
        assert watched.master.get("r") == lock.key
    finally:
        watched.stop()


def test_h38_a_failover_can_lose_the_key_and_other_masters_make_up_for_it(watched, masters):
    """H38: replication is asynchronous, so a promoted replica may lack the key. Provoked here by taking it away."""
    servers = masters(2)
    alone, amid = manager([watched]), manager([watched, *servers])
    assert alone.lock("alone", TTL)
    amid.unlock(amid.lock("amid", TTL))  # now it is connected to all three, and so will ask all three
    assert amid.lock("amid", TTL)
    wait_until(lambda: all(server.get("amid") for server in (*servers, watched.replica)))
    watched.failover()
    watched.master.admin.delete("alone", "amid")
    close_unused(used_too=True)  # what others have is connected to the old one
    assert manager([watched], retry_count=1).lock("alone", TTL)  # a second holder
    assert manager([watched, *servers], retry_count=1).lock("amid", TTL) is False


# -- a cluster ---------------------------------------------------------------------------------------------------------


def moved(server):
    """How many questions this node has sent elsewhere."""
    return server.admin.info("errorstats").get("errorstat_MOVED", {"count": 0})["count"]


@pytest.mark.every_kind
def test_a_lock_in_a_cluster_is_on_the_node_that_has_the_key(cluster):
    dlm, other = manager([cluster]), manager(cluster.nodes[2:])
    for node in cluster.nodes:
        key = cluster.key_at(node)
        lock = dlm.lock(key, TTL)
        assert node.get(key) == lock.key
        assert other.lock(key, TTL) is False
        dlm.unlock(lock)
        taken = other.lock(key, TTL)
        assert node.get(key) == taken.key
        other.unlock(taken)
    nothing_left(cluster.nodes)


@pytest.mark.every_kind
def test_a_fence_in_a_cluster_is_in_the_slot_of_its_lock(cluster):
    dlm, other = manager([cluster]), manager(cluster.nodes[2:])
    tokens = []
    for node in cluster.nodes:
        plain = cluster.key_at(node)
        for key, fence in [(plain, f"{{{plain}}}::rlfence"), (f"{{{plain}}}.x", f"{{{plain}}}.x::rlfence")]:
            for each in (dlm, other):
                with each.acquire(key, TTL, fencing=True) as lease:
                    assert node.get(key) == lease.key
                    assert int(node.get(fence) or 0) == lease.token
                    tokens.append(lease.token)
        node.admin.flushall()
    assert tokens == sorted(set(tokens))


def test_a_name_whose_slot_no_fence_can_share_has_no_token(cluster):
    with pytest.raises(QuorumUnavailable, match="CROSSSLOT"):
        manager([cluster]).acquire("a{b", TTL, timeout=0, fencing=True)
    nothing_left(cluster.nodes)


def test_the_node_of_a_key_is_remembered(cluster):
    """Also for keys with a hash tag, which share one slot."""
    seed, node = cluster.nodes[:2]
    key, dlm, before = cluster.key_at(node), manager([cluster]), moved(seed)
    for name in (key, key, f"{{{key}}}.a", f"{{{key}}}.b"):
        lock = dlm.lock(name, TTL)
        assert node.get(name) == lock.key
        dlm.unlock(lock)
    assert moved(seed) == before + 1


def test_there_is_one_connection_to_each_node(cluster):
    """H9: a release cannot overtake its SET."""
    dlm = manager([cluster])
    others = [{client["id"] for client in node.connections()} for node in cluster.nodes]
    for number in range(30):
        dlm.unlock(dlm.lock(f"r{number}", TTL))
    now = [{client["id"] for client in node.connections()} for node in cluster.nodes]
    assert [len(ours - before) for ours, before in zip(now, others, strict=True)] == [1, 1, 1]
    nothing_left(cluster.nodes)


def test_the_nodes_of_a_cluster_are_one_master(cluster):
    """H26: listed apart, they have one vote between them, and a quorum is never reached."""
    assert manager(cluster.nodes, retry_count=1).lock("r", TTL) is False
    nothing_left(cluster.nodes)


def test_idle_connections_that_nodes_have_closed_are_replaced(cluster):
    dlm, key = manager([cluster], retry_count=1), cluster.key_at(cluster.nodes[1])
    assert dlm.lock(key, 50)
    for node in cluster.nodes:
        node.admin.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: cluster.get(key) is None)
    assert dlm.lock(key, TTL)


def test_h41_a_slot_that_moves_between_calls_is_followed(cluster):
    """The lock stays one lock: it goes along with its slot, is found by its release, and refused to others."""
    first, second, third = cluster.nodes
    dlm, key = manager([cluster]), cluster.key_at(second)
    lock = dlm.lock(key, TTL)
    for target in (third, first, second):
        cluster.migrate(key, target)
        assert target.get(key) == lock.key
        assert manager([cluster], retry_count=1).lock(key, TTL) is False
        dlm.unlock(lock)
        assert target.get(key) is None
        lock = dlm.lock(key, TTL)
        assert target.get(key) == lock.key


def test_h41_while_a_slot_moves_there_is_no_vote_for_a_new_lock_but_a_release(cluster, caplog):
    """-ASK: where a release would look for the key is not decided yet."""
    first, second, _ = cluster.nodes
    key = cluster.key_at(second)
    dlm = manager([cluster], retry_count=1)
    lock, name = dlm.lock(key, TTL), f"{{{key}}}.new"
    cluster.begin_migration(key, first)
    assert dlm.lock(name, TTL) is False
    assert "ASK" in caplog.text
    dlm.unlock(lock)
    cluster.migrate(key, first)
    nothing_left(cluster.nodes)
    assert dlm.lock(name, TTL)


def test_h41_a_cluster_that_is_down_has_no_vote(kind, masters, caplog):
    cluster, servers = Cluster(kind), masters(2)
    try:
        alone, amid = manager([cluster], retry_count=1), manager([cluster, *servers])
        key = cluster.key_at(cluster.nodes[0])
        cluster.nodes[1].kill()
        wait_until(lambda: cluster.nodes[0].admin.cluster("INFO")["cluster_state"] == "fail")
        assert alone.lock(key, TTL) is False
        assert "CLUSTERDOWN" in caplog.text
        assert amid.lock(key, TTL)
    finally:
        cluster.stop()


def test_a_replica_that_takes_over_a_dead_node_is_found_through_the_seed(kind):
    """With a password, which the redirected connections need, too. The second manager's seed is the heir itself."""
    cluster = Cluster(kind, replicas=1, password="secret")
    try:
        dead, seed, _, heir = cluster.nodes
        key, dlm = cluster.key_at(dead), Redlock([seed.url], **PATIENT)
        through_heir = manager([heir], retry_count=1)
        lock = dlm.lock(key, TTL)
        assert through_heir.lock(key, TTL) is False
        assert through_heir.lock(cluster.key_at(seed), TTL)  # a replica knows whose a key is, too
        wait_until(lambda: heir.admin.dbsize() == 1)
        dead.kill()
        assert dlm.lock(f"{{{key}}}.after", TTL)
        dlm.unlock(lock)
        assert heir.keys() == {f"{{{key}}}.after".encode()}
        assert through_heir.lock(key, TTL)
    finally:
        cluster.stop()


# -- redirections, as no real cluster gives them on demand ------------------------------------------------------------


def redirecting(scripted, reply):
    """A node that answers every SET with ``reply``, or with what ``reply`` makes of the command."""

    def answer(command):
        if command.name != "SET":
            return None
        return reply(command) if callable(reply) else reply

    return scripted(answer)


def moved_to(host, port):
    return f"-MOVED 1 {host}:{port}\r\n".encode()


def test_a_redirection_without_a_host_means_the_same_host(scripted):
    target = scripted()
    seed = redirecting(scripted, moved_to("", target.port))
    lock = manager([seed], retry_count=1).lock("r", TTL)
    assert target.keys == {b"r": lock.key}


def test_a_redirection_is_followed_with_tls(scripted, encrypted, authority):
    target = scripted()
    seed = encrypted(redirecting(scripted, moved_to("127.0.0.1", encrypted(target).port)))
    lock = Redlock([f"{seed.url}?ssl_ca_certs={authority.ca}"], 1).lock("r", TTL)
    assert target.keys == {b"r": lock.key}


def test_nodes_that_send_us_in_circles_are_left_after_a_few_steps(scripted, caplog):
    first, second = scripted(), scripted()
    for one, other in [(first, second), (second, first)]:
        one.script = lambda command, port=other.port: moved_to("127.0.0.1", port) if command.name == "SET" else None
    assert manager([first], retry_count=1).lock("r", TTL) is False
    assert len(first.named("SET") + second.named("SET")) == 5
    assert "MOVED" in caplog.text


@pytest.mark.parametrize("code", ["ASK 1 {}", "TRYAGAIN Multiple keys", "CLUSTERDOWN Hash slot not served", "MOVED 1"])
def test_other_answers_of_a_cluster_are_no_vote_and_not_followed(scripted, code):
    target = scripted()
    text = code.format(f"127.0.0.1:{target.port}")
    seed = redirecting(scripted, f"-{text}\r\n".encode())
    assert manager([seed], retry_count=1).lock("r", TTL) is False
    assert target.connections == 0


def test_a_redirection_to_a_dead_node_is_no_vote(scripted, spawn, caplog):
    dead = spawn()
    dead.kill()
    seed = redirecting(scripted, moved_to(dead.host, dead.port))
    assert manager([seed], retry_count=2).lock("r", TTL) is False
    assert "cannot connect" in caplog.text
    assert len(seed.named("SET")) == 2


def test_a_redirection_after_the_decision_is_not_followed(scripted, masters):
    """H9: the round is over, so nothing may be set any more."""
    servers, target = masters(2), scripted()
    seed = redirecting(scripted, Late(0.2, moved_to("127.0.0.1", target.port)))
    dlm = manager([seed, *servers])
    while not seed.named("SET"):  # it is not connected to in time for the first
        dlm.unlock(dlm.lock("warm", TTL))
    lock = dlm.lock("r", TTL)
    assert held(servers) == [lock.key] * 2
    wait_until(lambda: any(command.words[1] == b"r" for command in seed.named("SET")))
    time.sleep(0.3)
    dlm.unlock(dlm.lock("other", TTL))  # lets the session look at what came in meanwhile
    assert not [command for command in target.named("SET") if command.words[1] == b"r"]


def test_a_redirected_set_of_a_failed_round_is_released_where_it_was_set(scripted):
    """H9: after it, and on the same connection."""
    target, held_late = scripted(), redirecting(scripted, Late(0.3, NIL))
    seed = scripted(lambda command: moved_to("127.0.0.1", target.port) if b"r" in command.words else None)
    assert manager([seed, held_late], retry_count=1).lock("r", TTL) is False
    about = [command for command in target.commands if b"r" in command.words]
    assert [command.name for command in about] == ["SET", "EVAL"]
    assert len({command.connection for command in about}) == 1
    assert not target.keys


def test_the_seed_is_asked_again_when_a_remembered_node_hangs(scripted):
    target = scripted()
    seed = redirecting(scripted, moved_to("127.0.0.1", target.port))
    dlm = Redlock([seed.url], 20, 0.1)
    dlm.unlock(dlm.lock("r", TTL))
    target.script = lambda command: Act.SILENCE if command.name == "SET" else None
    seed.script = lambda _: None
    lock = dlm.lock("r", TTL)
    assert seed.keys == {b"r": lock.key}


def test_the_seed_is_asked_at_once_when_a_remembered_node_is_gone(scripted):
    target = scripted()
    seed = redirecting(scripted, moved_to("127.0.0.1", target.port))
    dlm = Redlock([seed.url], 1)
    dlm.unlock(dlm.lock("r", TTL))
    target.stop()
    seed.script = lambda command: OK if command.name == "SET" else None
    assert dlm.lock("r", TTL)


# -- clients of redis-py's own -----------------------------------------------------------------------------------------


def test_redis_pys_sentinel_and_cluster_clients_are_called_as_they_are(watched, cluster, masters):
    (server,) = masters(1)
    clients = [
        RedisPySentinel(watched.places).master_for(SERVICE),
        redis.RedisCluster(host=cluster.nodes[0].host, port=cluster.nodes[0].port),
        server.client(),
    ]
    try:
        dlm = Redlock(clients)
        assert all(mine is theirs for mine, theirs in zip(dlm.servers, clients, strict=True))
        assert not any(Redlock([client])._backend().engine for client in clients[:2])
        for node in cluster.nodes:
            key = cluster.key_at(node)
            lock = dlm.lock(key, TTL)
            assert [each.get(key) for each in (watched.master, cluster, server)] == [lock.key] * 3
            assert manager([watched, cluster, server]).lock(key, TTL) is False
            dlm.unlock(lock)
            assert manager([watched, cluster, server]).lock(key, TTL)
    finally:
        clients[1].close()


def test_a_cluster_client_follows_a_slot(cluster):
    client = redis.RedisCluster(host=cluster.nodes[0].host, port=cluster.nodes[0].port)
    try:
        dlm, key = Redlock([client]), cluster.key_at(cluster.nodes[1])
        lock = dlm.lock(key, TTL)
        cluster.migrate(key, cluster.nodes[2])
        dlm.unlock(lock)
        assert cluster.get(key) is None
        lock = dlm.lock(key, TTL)
        assert cluster.nodes[2].get(key) == lock.key
    finally:
        client.close()


def test_a_cluster_client_of_a_dead_cluster_is_one_lost_vote(kind, masters):
    cluster, servers = Cluster(kind), masters(2)
    client = None
    try:
        client = redis.RedisCluster(host=cluster.nodes[0].host, port=cluster.nodes[0].port, socket_timeout=0.2)
        dlm = Redlock([client, *[server.client() for server in servers]])
        for node in cluster.nodes:
            node.kill()
        lock = dlm.lock("r", TTL)
        assert held(servers) == [lock.key] * 2
        dlm.unlock(lock)
        assert held(servers) == [None] * 2
    finally:
        if client:
            client.close()
        cluster.stop()


# -- all together ------------------------------------------------------------------------------------------------------


@pytest.mark.every_kind
def test_two_managers_exclude_each_other_over_a_cluster_a_service_and_a_plain_master(cluster, watched, masters):
    """Each takes turns in the same section, while the lock's slot wanders through the cluster."""
    (server,) = masters(1)
    sections, inside, overlaps, entered = 25, set(), [], []
    managers = [Redlock([cluster.url, server.url, watched.url], 1000, 0.01) for _ in range(2)]

    def work(me):
        for _ in range(sections):
            lock = managers[me].lock("r", TTL)
            if not lock:
                return
            inside.add(me)
            overlaps.extend(inside - {me})
            time.sleep(0.002)
            overlaps.extend(inside - {me})
            inside.discard(me)
            entered.append(me)
            managers[me].unlock(lock)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(2)]
    for thread in threads:
        thread.start()
    moves = 0
    while any(thread.is_alive() for thread in threads) and moves < 60:
        cluster.migrate("r", cluster.nodes[moves % 3])
        moves += 1
        time.sleep(0.02)
    for thread in threads:
        thread.join(60)
    assert sorted(entered) == [0] * sections + [1] * sections
    assert overlaps == []
    assert moves > 2
    nothing_left([server, watched.master])  # a release that meets a slot on its way leaves the cluster's key to its ttl
