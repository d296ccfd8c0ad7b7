"""The other path: redlock-py's own algorithm over the clients' own ``set`` and ``eval``, one master after another.

For what the engine cannot speak to itself (Sentinel and cluster clients, subclasses, fakes, any object) and for
managers whose ``lock_instance`` or ``unlock_instance`` is the caller's. What redlock-py did wrong is put right here,
too: elapsed time is not the wall clock's, errors of a minority lose no lock, and whatever ends a try, the masters are
released.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import RedisClusterException, RedisError

from redlock._arguments import check_type
from redlock._connections import logger, name
from redlock._failures import log_failure
from redlock._lock import Lock, MultipleRedlockException
from redlock._native import Native
from redlock._redlock import Vote, now

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from redlock._manager import Redlock
    from redlock._types import Encodable, Sighting, SupportsSetEval

# What redis-py raises when a master fails; its cluster client has a family of its own.
FAILURES = (RedisError, RedisClusterException)

# Sets a TTL, and never a key: what has expired or was taken over stays so.
# KEYS[1]: the resource. ARGV[1]: the key. ARGV[2]: the ttl in milliseconds.
# Returns 1: extended. 0: there is no such lock. -1: it is somebody else's.
EXTEND_SCRIPT = """
    local held = redis.call("get",KEYS[1])
    if held == ARGV[1] then
        return redis.call("pexpire",KEYS[1],ARGV[2])
    else
        return held and -1 or 0
    end"""
EXTENSIONS = {1: Vote.EXTENDED, 0: Vote.ABSENT, -1: Vote.TAKEN}


class Held(NamedTuple):
    """As the engine's :class:`~redlock._redlock.Held`."""

    validity_ms: int
    expires_at: float
    key: Encodable
    votes: list[Vote]


def _masters(manager: Redlock) -> Collection[Any]:
    """The servers, the engine in the place of each that it can stand in for, unless a hook wants the client."""
    masters = manager._masters  # noqa: SLF001
    if masters is None or manager._overrides("lock_instance") or manager._overrides("unlock_instance"):  # noqa: SLF001
        return manager.servers
    return masters.mixture()


def attempts(tries: int, delay: float, timeout: float | None = None) -> Iterator[int]:
    """Count the tries, with a pause before each but the first: random, lest contenders keep in step.

    Args:
        tries: how many.
        delay: the longest pause in seconds; the shortest is half of it.
        timeout: seconds after which there is no further try; ``None``: no bound.
    """
    end = math.inf if timeout is None else now() + timeout
    for attempt in range(tries):
        if attempt and not _pause(delay, end):
            return
        yield attempt


def _pause(delay: float, end: float) -> bool:
    """Sleep, and say whether there is time for another try."""
    pause, left = jittered(delay), end - now()
    time.sleep(max(0.0, min(pause, left)))
    return pause < left


def jittered(delay: float) -> float:
    """A pause of at most so long, and of at least half of it."""
    return delay * (0.5 + int.from_bytes(os.urandom(4), "big") / 2**33)


def acquire(
    manager: Redlock, resource: Encodable, terms: tuple[int, int], pace: tuple[int, float]
) -> Lock | list[Vote]:
    """Try until a quorum grants.

    Args:
        manager: whose servers and hooks.
        resource: what to lock.
        terms: ttl and drift in milliseconds.
        pace: how many tries, and seconds of pause between them.

    Returns:
        The lock; else what each master said in the last round: granted, refused or its failure.

    Raises:
        BaseException: what a hook or a client raised, if no redis-py error; the masters are released first.
    """
    outcome = obtain(manager, (resource,), terms, (*pace, None))
    return Lock(outcome.validity_ms, resource, outcome.key) if isinstance(outcome, Held) else outcome


def obtain(
    manager: Redlock,
    resources: Sequence[Encodable],
    terms: tuple[int, int],
    pace: tuple[int, float, float | None],
) -> Held | list[Vote]:
    """As :func:`acquire`, but for several resources together, with one key, and with a timeout in ``pace``."""
    if not manager._overrides("lock_instance"):  # noqa: SLF001 - the caller's hook may take other resources
        for resource in resources:
            check_type("resource", resource)
    said: list[Vote] = []
    for _ in attempts(*pace):
        held, said = _round(manager, resources, terms)
        if held:
            return held
    return said


def _round(manager: Redlock, resources: Sequence[Encodable], terms: tuple[int, int]) -> tuple[Held | None, list[Vote]]:
    key = manager.get_unique_id()
    held: Held | None = None
    start = now()
    try:
        said = [_ask_for_all(manager, server, resources, key, terms[0]) for server in _masters(manager)]
        if said.count(Vote.GRANTED) >= manager.quorum:
            held = in_time(start, terms, key, said)
    finally:
        if held is None:
            for resource in resources:
                _abandon(manager, resource, key)
    return held, said


def in_time(start: float, terms: tuple[int, int], key: Encodable, said: list[Vote]) -> Held | None:
    """What a quorum granted, unless it took so long that nothing is left of it.

    Args:
        start: when the first master was asked.
        terms: ttl and drift in milliseconds.
        key: of what is held.
        said: what each master said.
    """
    ttl, drift = terms
    validity = math.floor(ttl - (now() - start) * 1000 - drift)
    return Held(validity, start + (ttl - drift) / 1000, key, said) if validity > 0 else None


def _ask_for_all(
    manager: Redlock, server: SupportsSetEval, resources: Sequence[Encodable], key: Encodable, ttl: int
) -> Vote:
    """Ask until something is not granted."""
    said = Vote.REFUSED
    for resource in resources:
        said = _ask(manager, server, resource, key, ttl)
        if said != Vote.GRANTED:
            break
    return said


def _ask(manager: Redlock, server: SupportsSetEval, resource: Encodable, key: Encodable, ttl: int) -> Vote:
    try:
        granted = manager.lock_instance(server, resource, key, ttl)
    except FAILURES as error:
        _note(manager, server, error)
        return Vote.failure(text_of(error))
    _note(manager, server, None)
    return Vote.GRANTED if granted else Vote.REFUSED


def _note(manager: Redlock, server: SupportsSetEval, error: Exception | None) -> None:
    note(manager._masters.failing if manager._masters else {}, server, error)  # noqa: SLF001


def note(failing: dict[int, tuple[str | None, int]], server: Any, error: Exception | None) -> None:
    """Log a server's change of state, not each of its errors: an outage would drown the log."""
    failed, errors = failing.get(id(server), (None, 0))
    if error:
        failing[id(server)] = text_of(error), errors + 1
        if not failed:
            logger.warning("master %s gives no vote: %s", name(server), text_of(error))
    elif failed:
        failing[id(server)] = None, errors
        logger.info("master %s answers again", name(server))


def health(manager: Redlock) -> list[tuple[str | None, int, int]]:
    """As the engine's; here a client that waits in vain raises an error like any other."""
    return health_of(manager._masters.failing if manager._masters else {}, _masters(manager))  # noqa: SLF001


def health_of(
    failing: dict[int, tuple[str | None, int]], servers: Iterable[object]
) -> list[tuple[str | None, int, int]]:
    """The same, of these servers."""
    return [(*failing.get(id(server), (None, 0)), 0) for server in servers]


def text_of(error: Exception) -> str:
    """What it says, or its name if it says nothing."""
    return str(error) or type(error).__name__


def _abandon(manager: Redlock, resource: Encodable, key: Encodable) -> None:
    for server in _masters(manager):
        try:
            manager.unlock_instance(server, resource, key)
        except Exception as error:  # noqa: BLE001 - the other masters are to be released all the same
            _log_unlock_error(manager, resource, server, error)


def _log_unlock_error(manager: Redlock, resource: Encodable, server: SupportsSetEval, error: Exception) -> None:
    # redis-py's errors say it all; where any other comes from is worth a traceback.
    trace = None if isinstance(error, FAILURES) else error
    failing = manager._count().failing_releases  # noqa: SLF001
    log_failure(failing, id(server), ((resource,), name(server), text_of(error)), trace)


def release(manager: Redlock, resource: Encodable, key: Encodable) -> list[Vote]:
    """Release on every master.

    Returns:
        What each said: released, absent or its failure; a hook of the caller's tells no more than
        that it returned.

    Raises:
        MultipleRedlockException: ``unlock_instance`` is the caller's, and raised redis-py errors.
    """
    if not manager._overrides("unlock_instance"):  # noqa: SLF001 - the caller's hook may take other resources and keys
        check_type("resource", resource)
        check_type("key", key)
        return [release_one(manager, server, resource, key) for server in _masters(manager)]
    errors = []
    for server in manager.servers:
        try:
            manager.unlock_instance(server, resource, key)
        except RedisError as error:
            errors.append(error)
    if errors:
        raise MultipleRedlockException(errors)
    return [Vote.RELEASED] * len(manager.servers)


def release_one(manager: Redlock, server: SupportsSetEval, resource: Encodable, key: Encodable) -> Vote:
    """Release on one master by its client's ``eval``; errors are logged as redlock-py logged them.

    Returns:
        Released, absent or the failure.
    """
    try:
        if isinstance(server, Native):
            deleted: object = server.release(resource, key, manager._script())  # noqa: SLF001
        else:
            deleted = server.eval(manager.unlock_script, 1, resource, key)
    except Exception as error:  # noqa: BLE001 - redlock-py's contract: an unlock does not raise
        _log_unlock_error(manager, resource, server, error)
        return Vote.failure(text_of(error))
    manager._count().failing_releases.discard(id(server))  # noqa: SLF001
    return Vote.RELEASED if deleted else Vote.ABSENT


def release_together(manager: Redlock, resources: Sequence[Encodable], key: Encodable) -> list[Vote]:
    """As :func:`release`, for several resources: released where all were."""
    said = zip(*(release(manager, resource, key) for resource in resources), strict=True)
    return [next((each for each in of_one if each != Vote.RELEASED), Vote.RELEASED) for of_one in said]


def check_own_names(manager: Redlock, what: str) -> None:
    """Refuse what cannot be done where ``lock_instance`` is the caller's: only that knows where the key is.

    Args:
        manager: whose hooks.
        what: is to be done, as the error says it.

    Raises:
        NotImplementedError: the hook is overridden.
    """
    if manager._overrides("lock_instance"):  # noqa: SLF001
        message = f"cannot {what}: lock_instance of {type(manager).__name__} is overridden, and only that knows how"
        raise NotImplementedError(message)


def extend(
    manager: Redlock, resources: Sequence[Encodable], key: Encodable, terms: tuple[int, int]
) -> Held | list[Vote]:
    """Set the TTL anew where the key is still there, by each client's ``eval``.

    Args:
        manager: whose servers.
        resources: as acquired.
        key: the proof of ownership.
        terms: ttl and drift in milliseconds.

    Returns:
        What is held; else what each master said: extended, taken, absent or its failure.

    Raises:
        NotImplementedError: ``lock_instance`` is overridden.
    """
    check_own_names(manager, "extend")
    start = now()
    said = [_extend_all(server, resources, key, terms[0]) for server in _masters(manager)]
    held = in_time(start, terms, key, said) if said.count(Vote.EXTENDED) >= manager.quorum else None
    return held or said


def _extend_all(server: SupportsSetEval, resources: Sequence[Encodable], key: Encodable, ttl: int) -> Vote:
    said = Vote.ABSENT
    for resource in resources:
        try:
            if isinstance(server, Native):
                said = server.extend(resource, key, ttl)
            else:
                reply = server.eval(EXTEND_SCRIPT, 1, resource, key, ttl)
                said = EXTENSIONS.get(reply) or Vote.failure(f"unexpected reply: {reply!r:.80}")
        except FAILURES as error:
            said = Vote.failure(text_of(error))
        if said != Vote.EXTENDED:
            break
    return said


def look(manager: Redlock, resource: Encodable) -> list[Sighting]:
    """Ask every master who holds ``resource``, by each client's ``get`` and ``pttl``.

    Raises:
        NotImplementedError: a client has no such methods, or ``lock_instance`` is overridden.
    """
    check_own_names(manager, "inspect")
    for server in _masters(manager):
        if not isinstance(server, Native) and not (
            callable(getattr(server, "get", None)) and callable(getattr(server, "pttl", None))
        ):
            message = f"cannot inspect: a {type(server).__qualname__} has no get and pttl"
            raise NotImplementedError(message)
    return [_look_at(server, resource) for server in _masters(manager)]


def _look_at(server: Any, resource: Encodable) -> Sighting:
    if isinstance(server, Native):
        return server.look(resource)
    try:
        return seen(server.get(resource), server.pttl(resource))
    except FAILURES as error:
        return None, None, text_of(error)


def seen(key: Any, ttl: int) -> Sighting:
    """What a client's ``get`` and ``pttl`` returned."""
    if key is None or ttl == -2:  # noqa: PLR2004 - Redis's word for no such key: gone before the second question
        return None, None, None
    return key if isinstance(key, bytes) else str(key).encode(), ttl if ttl >= 0 else None, None
