"""What the doctor finds out about each master, by redis-py's client and by a lock of its own. Judged in `checks`."""

from __future__ import annotations

import ipaddress
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import redis
from redis.connection import SSLConnection

from redlock import Redlock, _connections, _sentinel
from redlock._cli import masters

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from redlock import Attempt

    T = TypeVar("T")

TIMEOUT = 2.0  # seconds for each question
CLOCK_SAMPLES = 5
RELEASING = ("delifeq", "delex", "eval")  # ways to release a lock, the best first

# What locks need, as one would call it: `{name}` is the lock's. By what each is for.
NEEDED = {
    "set": ("SET", "{name}", "doctor", "NX", "PX", "1000"),
    "get": ("GET", "{name}"),
    "del": ("DEL", "{name}"),
    "eval": ("EVAL", "return 1", "1", "{name}"),
    "evalsha": ("EVALSHA", "0" * 40, "1", "{name}"),
    "pexpire": ("PEXPIRE", "{name}", "1000"),
    "pttl": ("PTTL", "{name}"),
    "client|tracking": ("CLIENT", "TRACKING", "ON"),
    "delifeq": ("DELIFEQ", "{name}", "doctor"),
    "delex": ("DELEX", "{name}", "IFEQ", "doctor"),
}


@dataclass
class Facts:
    """One master, as far as it could be asked; ``None`` and nothing where it could not.

    Attributes:
        name: its address.
        host: of the URL; ``None`` for a Unix domain socket, and behind sentinels.
        tls: ``None`` if plain, else whether its certificate is verified.
        login: whether the URL has a password.
        error: why it cannot be asked anything.
        info: INFO, by field.
        config: CONFIG GET, by name.
        offset_ms: how much its clock is ahead of ours, give or take ``offset_error_ms``.
        round_trips_ms: round trips, sorted.
        commands: which of :data:`NEEDED` it has.
        denied: which of them the user may not call.
        sentinels: how many sentinels watch it.
        trial: what went wrong with a lock of our own, by step; ``None`` if none was tried.
    """

    name: str
    host: str | None = None
    tls: bool | None = None
    login: bool = False
    by_sentinels: bool = False
    error: str | None = None
    info: dict[str, Any] | None = None
    config: dict[str, str] | None = None
    offset_ms: float | None = None
    offset_error_ms: float = 0.0
    round_trips_ms: list[float] = field(default_factory=list)
    commands: set[str] | None = None
    denied: set[str] | None = None
    sentinels: int | None = None
    trial: dict[str, str] | None = None

    @property
    def is_remote(self) -> bool:
        """Whether a network lies between."""
        if self.host is None or self.host == "localhost":
            return self.by_sentinels
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return True

    @property
    def server(self) -> tuple[str, str] | None:
        """Which server it is, and its version."""
        if self.info is None:
            return None
        if "valkey_version" in self.info:
            return "Valkey", str(self.info["valkey_version"])
        return "Redis", str(self.info.get("redis_version", "?"))


def gather(options: argparse.Namespace) -> list[Facts]:
    """Ask all masters: at once, but for the round trips, which are to be measured alone."""
    clients = masters.probes(options, TIMEOUT)
    name = f"{options.name}-{secrets.token_hex(4)}"
    with ThreadPoolExecutor(len(clients)) as pool:
        found = list(pool.map(lambda client: _ask(client, name), clients))
    for facts, client, url in zip(found, clients, masters.urls(options), strict=True):
        if facts.error is None:
            _time(facts, client, name, options.samples)
            if not options.read_only:
                facts.trial = _try_lock(url, name, options.ttl)
        client.close()
    return found


def _ask(client: Any, name: str) -> Facts:
    facts = _settings(client)
    try:
        client.get(name)
    except redis.exceptions.NoPermissionError:
        pass  # it answers
    except (redis.RedisError, OSError) as error:
        facts.error = str(error)[:200]
        return facts
    facts.info = _allowed(client.info)
    facts.config = _allowed(lambda: {_text(name): _text(value) for name, value in client.config_get("*").items()})
    facts.commands = _allowed(lambda: _existing(client))
    facts.denied = _allowed(lambda: _denied(client, name, facts.commands))
    # Sentinels talk to each other by way of the masters they watch.
    facts.sentinels = _allowed(lambda: sum(dict(client.pubsub_numsub("__sentinel__:hello")).values()))
    return facts


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _allowed(question: Callable[[], T]) -> T | None:
    """The answer; ``None`` where the user, the provider or the version does not let us have it."""
    try:
        return question()
    except Exception:  # noqa: BLE001 - nor must an odd answer, on which redis-py's parsers fail, end the rest
        return None


def _settings(client: Any) -> Facts:
    pool = client.connection_pool
    connection = pool.connection_class(**pool.connection_kwargs)  # never connected
    by_sentinels = isinstance(pool, _sentinel.Pool)
    verified = None
    if isinstance(connection, SSLConnection):
        made: Any = connection
        verified = made.cert_reqs == 2 and bool(made.check_hostname)  # noqa: PLR2004 - ssl.CERT_REQUIRED
    host = None if by_sentinels else getattr(connection, "host", None)
    login = bool(pool.connection_kwargs.get("password"))
    return Facts(_connections.name(client), host, verified, login, by_sentinels)


def _existing(client: Any) -> set[str]:
    names = [name for name in NEEDED if "|" not in name]  # subcommands have no entry before Redis 7
    found = client.execute_command("COMMAND INFO", *names)
    return {name for name, entry in zip(names, found, strict=True) if entry} | {"client|tracking"}


def _denied(client: Any, name: str, existing: set[str] | None) -> set[str]:
    user = client.acl_whoami()
    denied = set()
    for command in existing or NEEDED:
        words = [word.format(name=name) for word in NEEDED[command]]
        if client.execute_command("ACL DRYRUN", user, *words) not in ("OK", b"OK", True):
            denied.add(command)
    return denied


def _time(facts: Facts, client: Any, name: str, samples: int) -> None:
    # Not PING, which a user that may only lock is not allowed.
    times = (_timed(lambda: client.get(name) or True)[0] for _ in range(samples))
    facts.round_trips_ms = sorted(taken for taken in times if taken is not None)
    best = None
    for _ in range(CLOCK_SAMPLES):
        before = time.time() * 1000
        taken, answer = _timed(client.time)
        if taken is not None and answer is not None and (best is None or taken < best):
            best = taken
            theirs = int(answer[0]) * 1000 + int(answer[1]) / 1000
            facts.offset_ms, facts.offset_error_ms = theirs - (before + taken / 2), taken / 2


def _timed(question: Callable[[], T]) -> tuple[float | None, T | None]:
    start = time.perf_counter()
    answer = _allowed(question)
    return (None if answer is None else (time.perf_counter() - start) * 1000), answer


def _try_lock(url: str, name: str, ttl: int) -> dict[str, str]:
    """Acquire, extend and release a lock on one master.

    Returns:
        What it said at each step that failed.
    """
    manager = Redlock([url])
    locked = manager.try_lock(name, ttl)
    if not locked.lock:
        return {"lock": _said(locked)}
    extended = manager.try_extend(locked.lock, ttl)
    seen = manager.inspect(name)[0]
    released = manager.try_unlock(locked.lock)
    said = {
        "extend": None if extended else _said(extended),
        "inspect": seen.error,
        "release": None if released else _said(released),
    }
    return {step: error for step, error in said.items() if error is not None}


def _said(attempt: Attempt) -> str:
    return attempt.masters[0][1]


def percentile(sorted_sample: Sequence[float], percent: float) -> float | None:
    """By nearest rank; ``None`` of nothing."""
    if not sorted_sample:
        return None
    return sorted_sample[min(len(sorted_sample) - 1, int(len(sorted_sample) * percent / 100))]
