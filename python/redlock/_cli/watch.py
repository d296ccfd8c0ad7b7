"""``redlock watch``: the masters and what they hold, again and again."""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import redis

from redlock import Sighting, _connections
from redlock._cli import masters
from redlock._cli.durations import shown
from redlock._cli.locks import majority
from redlock._cli.output import DONE, OUTAGE, Output, is_colourful, painted, printable, table
from redlock._outcomes import digest

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

TIMEOUT = 1.0  # seconds for each question
BATCH = 1_000  # keys per SCAN
MAX_KEY = 1_024  # bytes of a value that are read: a lock's key is 22
FENCE = b"::rlfence"  # the end of the names under which fencing tokens are remembered
CLEAR = "\x1b[H\x1b[2J"


@dataclass
class Look:
    """What one master showed."""

    master: str
    error: str | None = None
    ping_ms: float | None = None
    keys: int | None = None
    locks: dict[str, tuple[str, int]] = field(default_factory=dict)
    """By name: the holder's digest, and milliseconds left."""


@dataclass
class Held:
    """One name, over all masters."""

    name: str
    holder: str | None
    ttl_ms: int | None
    masters: int
    """How many have it, for whomever."""


def watch(options: argparse.Namespace) -> int:
    """``redlock watch``."""
    out = Output(options)
    clients = masters.probes(options, TIMEOUT)
    quorum = len(clients) // 2 + 1
    alive = is_colourful() and not out.json and options.count != 1
    for number, looks in enumerate(_looks(clients, options)):
        held = locks(looks, quorum)
        facts = {"masters": [_facts(each) for each in looks], "locks": [vars(each) for each in held]}
        out.result(facts, (CLEAR if alive else "\n" * bool(number)) + _shown(looks, held, options.limit))
    return DONE if sum(each.error is None for each in looks) >= quorum else OUTAGE


def _looks(clients: Sequence[Any], options: argparse.Namespace) -> Iterator[list[Look]]:
    with ThreadPoolExecutor(len(clients)) as pool:
        number = 0
        while True:
            yield list(pool.map(lambda client: _look(client, options.pattern, options.limit), clients))
            number += 1
            if number == options.count:
                return
            time.sleep(options.interval)


def _look(client: Any, pattern: str, limit: int) -> Look:
    look = Look(_connections.name(client))
    try:
        start = time.perf_counter()
        client.ping()
        look.ping_ms = (time.perf_counter() - start) * 1000
        look.locks = _locks(client, pattern, limit)
        look.keys = client.dbsize()
    except (redis.RedisError, OSError) as error:
        look.error = str(error)[:200]
    return look


def _locks(client: Any, pattern: str, limit: int) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    cursor = None
    while cursor != 0 and len(found) < limit:
        cursor, names = client.scan(cursor or 0, pattern, BATCH, "string")
        pipeline = client.pipeline(transaction=False)
        for name in names:
            pipeline.getrange(name, 0, MAX_KEY - 1).pttl(name)
        answers = pipeline.execute(raise_on_error=False) if names else []
        for name, key, left in zip(names, answers[::2], answers[1::2], strict=True):
            # Without an end it is no lock; and it may have gone, or become something else, since it was found.
            if name.endswith(FENCE):
                continue
            if isinstance(key, bytes) and key and isinstance(left, int) and left > 0:
                found[name.decode(errors="backslashreplace")] = digest(key), left
    return found


def locks(looks: Sequence[Look], quorum: int) -> list[Held]:
    """What is held, by name."""
    by_name: dict[str, list[Sighting]] = defaultdict(list)
    for look in looks:
        for name, (holder, left) in look.locks.items():
            by_name[name].append(Sighting(look.master, holder, left, None))
    return [Held(name, *majority(seen, quorum), len(seen)) for name, seen in sorted(by_name.items())]


def _facts(look: Look) -> dict[str, Any]:
    return {name: value for name, value in vars(look).items() if name != "locks"}


def _shown(looks: Sequence[Look], held: Sequence[Held], limit: int) -> str:
    colour = is_colourful()
    states = [
        (each.master, _state(each), shown(each.ping_ms), "" if each.keys is None else str(each.keys)) for each in looks
    ]
    rows = [
        (printable(each.name)[:60], each.holder or "nobody", shown(each.ttl_ms), f"{each.masters}/{len(looks)}")
        for each in held[:limit]
    ]
    more = f"\n... and {len(held) - limit} more" if len(held) > limit else ""
    heading = painted(time.strftime("%H:%M:%S"), "dim", on=colour)
    tables = [table(("MASTER", "STATE", ">PING", ">KEYS"), states, colour=colour)]
    tables.append(table(("LOCK", "HOLDER", ">LEFT", ">MASTERS"), rows, colour=colour) + more if rows else "no locks")
    return "\n\n".join([heading, *tables])


def _state(look: Look) -> str:
    return "up" if look.error is None else printable(look.error)[:60]
