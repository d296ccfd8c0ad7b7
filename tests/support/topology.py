"""What people put in the place of a single master: one that sentinels watch over, and a cluster."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import redis
from redis.crc import key_slot

from .servers import Server, ServerKind, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "main"
DOWN_AFTER_MS = 700  # a sentinel's patience: short, but longer than a busy machine lets a healthy server wait
GOSSIP = 30.0  # seconds within which sentinels or nodes have come to an agreement; they need two to five
SLOTS = 16_384


class Sentinel(Server):
    """One sentinel; it keeps what it learns in its configuration file."""

    def __init__(self, kind: ServerKind, master: Server, quorum: int, password: str | None) -> None:
        self._config_text = _sentinel_config(master, quorum, password)
        super().__init__(kind, password=password)

    def _command(self) -> list[str]:
        path = self.directory / "sentinel.conf"
        if not path.exists():
            path.write_text(f"port {self.port}\nbind {self.host}\n{self._config_text}")
        return [str(self.kind.binary()), str(path), "--sentinel"]

    def ask(self, *words: str) -> Any:
        """The answer to one SENTINEL command."""
        return _ask(self, "SENTINEL", *words)

    def sees_all(self) -> bool:
        """Whether it knows the other two and the replica, and takes the master for well."""
        state: Any = self.admin.sentinel_master(SERVICE)
        known = (state["num-slaves"], state["num-other-sentinels"])
        return known == (1, 2) and not (state["is_sdown"] or state["is_odown"])


def _sentinel_config(master: Server, quorum: int, password: str | None) -> str:
    lines = [
        f"sentinel monitor {SERVICE} {master.host} {master.port} {quorum}",
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
        f"sentinel failover-timeout {SERVICE} 5000",
        *([f"sentinel auth-pass {SERVICE} {master.password}"] if master.password else []),
        *([f"requirepass {password}"] if password else []),
    ]
    return "\n".join(lines) + "\n"


class Watched:
    """A master and a replica, and three sentinels that watch them.

    Args:
        kind: of all five servers.
        password: of master and replica.
        sentinel_password: of the sentinels.
    """

    def __init__(self, kind: ServerKind, password: str | None = None, sentinel_password: str | None = None) -> None:
        self._sentinel_password = sentinel_password
        self.servers: list[Server] = []
        self.sentinels: list[Sentinel] = []
        with _stopped_if_it_fails(self):
            self._start(kind, password)

    def _start(self, kind: ServerKind, password: str | None) -> None:
        auth = ("--masterauth", password) if password else ()
        for _ in range(2):
            self.servers.append(Server(kind, *auth, password=password))
        first, second = self.servers
        second.admin.replicaof(first.host, str(first.port))  # first, or sentinels take ten seconds to notice
        for _ in range(3):
            self.sentinels.append(Sentinel(kind, first, 2, self._sentinel_password))
        self.wait_for_calm()

    def demote(self) -> None:
        """Make the old master a replica now; sentinels do so ten seconds after a failover."""
        master, other = self.master, self.replica
        other.admin.replicaof(master.host, str(master.port))

    def wait_for_calm(self) -> None:
        """Wait until all sentinels know all there is, and the replica is in step: the time for a failover."""
        self.demote()
        wait_until(lambda: all(each.sees_all() for each in self.sentinels), GOSSIP, "sentinels know all there is")
        wait_until(lambda: self.replica.info("master_link_status") == "up", GOSSIP, "a replica in step")

    @property
    def url(self) -> str:
        """For `Redlock`."""
        password = self.servers[0].password
        login = f":{password}@" if password else ""
        query = f"?sentinel_password={self._sentinel_password}" if self._sentinel_password else ""
        hosts = ",".join(f"{sentinel.host}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{login}{hosts}/{SERVICE}{query}"

    @property
    def places(self) -> list[tuple[str, int]]:
        """For redis-py's `Sentinel`."""
        return [(sentinel.host, sentinel.port) for sentinel in self.sentinels]

    def named_by(self, sentinel: Sentinel) -> Server:
        """The server that a sentinel takes for the master."""
        port = int(sentinel.ask("GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        return next(server for server in self.servers if server.port == port)

    @property
    def master(self) -> Server:
        """The server that the first sentinel which runs takes for the master."""
        return self.named_by(next(sentinel for sentinel in self.sentinels if sentinel.alive and not sentinel.frozen))

    @property
    def replica(self) -> Server:
        """The other one."""
        return next(server for server in self.servers if server is not self.master)

    def failover(self) -> None:
        """Have the sentinels promote the replica, until all name it. The old master goes on as one until `demote`."""
        promoted = self.replica
        self.sentinels[0].ask("FAILOVER", SERVICE)
        self.wait_for_master(promoted)

    def wait_for_master(self, server: Server) -> None:
        """Wait until all sentinels name ``server``, and it takes writes."""
        wait_until(lambda: all(self.named_by(each) is server for each in self.sentinels), GOSSIP, f"{server} is named")
        wait_until(lambda: _is_master(server), GOSSIP, f"{server} is promoted")

    def stop(self) -> None:
        """End everything."""
        for server in (*self.sentinels, *self.servers):
            server.stop()


class Cluster:
    """Shards that divide the slots evenly among them, without replicas.

    Args:
        kind: of all servers.
        shards: how many.
        replicas: how many more nodes, each a replica of the first shard.
        password: of all nodes.
    """

    def __init__(self, kind: ServerKind, shards: int = 3, replicas: int = 0, password: str | None = None) -> None:
        self.nodes: list[Server] = []
        with _stopped_if_it_fails(self):
            for _ in range(shards + replicas):
                self.nodes.append(_node(kind, password))
            self._join(shards)

    def _join(self, shards: int) -> None:
        for number, node in enumerate(self.nodes):
            _run(node, "SET-CONFIG-EPOCH", number + 1)
        for number, node in enumerate(self.nodes[:shards]):
            _run(node, "ADDSLOTS", *range(SLOTS * number // shards, SLOTS * (number + 1) // shards))
        for node in self.nodes[1:]:
            _run(node, "MEET", self.nodes[0].host, self.nodes[0].port)
        wait_until(lambda: all(self._is_complete(node) for node in self.nodes), GOSSIP, "a complete cluster")
        replicas = self.nodes[shards:]
        for node in replicas:
            _run(node, "REPLICATE", self.identity(self.nodes[0]))
        wait_until(lambda: {each.info("master_link_status") for each in replicas} <= {"up"}, GOSSIP, "replicas in step")

    def _is_complete(self, node: Server) -> bool:
        info = _ask(node, "CLUSTER INFO")
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == len(self.nodes)

    def identity(self, node: Server) -> str:
        """What the nodes call each other."""
        return _text(_run(node, "MYID"))

    @property
    def url(self) -> str:
        """For `Redlock`: the first shard."""
        return self.nodes[0].url

    def owner(self, key: str) -> Server:
        """The node that has ``key``, by what the first node that runs knows."""
        alive = next(node for node in self.nodes if node.alive and not node.frozen)
        for first, last, (_, port, *_), *_ in _ask(alive, "CLUSTER SLOTS"):
            if first <= key_slot(key.encode()) <= last:
                return next(node for node in self.nodes if node.port == port)
        raise LookupError(key)

    def key_at(self, node: Server, prefix: str = "r") -> str:
        """A key that ``node`` has."""
        return next(key for key in (f"{prefix}{number}" for number in range(10_000)) if self.owner(key) is node)

    def get(self, key: str) -> bytes | None:
        """What the cluster holds under ``key``."""
        return self.owner(key).get(key)

    def begin_migration(self, key: str, target: Server) -> Server:
        """Open the slot of ``key`` for its way to ``target``; whose it is still."""
        source, slot = self.owner(key), key_slot(key.encode())
        _run(target, "SETSLOT", slot, "IMPORTING", self.identity(source))
        _run(source, "SETSLOT", slot, "MIGRATING", self.identity(target))
        return source

    def migrate(self, key: str, target: Server) -> None:
        """Move the slot of ``key``, and the keys in it, to ``target``."""
        source, slot = self.begin_migration(key, target), key_slot(key.encode())
        keys = _run(source, "GETKEYSINSLOT", slot, 100)
        if keys:
            auth = ["AUTH", target.password] if target.password else []
            _ask(source, "MIGRATE", target.host, target.port, "", 0, 5000, *auth, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            with contextlib.suppress(redis.ResponseError):  # a replica has no say
                _run(node, "SETSLOT", slot, "NODE", self.identity(target))

    def stop(self) -> None:
        """End everything."""
        for node in self.nodes:
            node.stop()


def _node(kind: ServerKind, password: str | None) -> Server:
    auth = ("--masterauth", password) if password else ()
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1500", "--cluster-replica-validity-factor", "0")
    return Server(kind, *options, *auth, password=password)


def _run(node: Server, *words: object) -> Any:
    return _ask(node, "CLUSTER", *words)


def _ask(server: Server, *words: object) -> Any:
    admin: Any = server.admin  # untyped in part
    return admin.execute_command(*words)


def _text(answer: bytes | str) -> str:
    return answer.decode() if isinstance(answer, bytes) else answer


def _is_master(server: Server) -> bool:
    try:
        return bool(server.info("role") == "master")
    except redis.ConnectionError:  # sentinels close all connections to a server whose role they change
        return False


@contextlib.contextmanager
def _stopped_if_it_fails(group: Watched | Cluster) -> Iterator[None]:
    try:
        yield
    except BaseException:
        group.stop()
        raise
