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
from typing import TYPE_CHECKING

from redis.exceptions import RedisClusterException, RedisError

from redlock._arguments import check_type
from redlock._connections import logger, name
from redlock._lock import Lock, MultipleRedlockException

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redlock._manager import Redlock
    from redlock._types import Encodable, SupportsSetEval

# What redis-py raises when a master fails; its cluster client has a family of its own.
_FAILURES = (RedisError, RedisClusterException)

# Redis's TTLs run on while a machine is suspended. Linux's monotonic clock stops then; that of macOS does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def attempts(tries: int, delay: float) -> Iterator[int]:
    """Count the tries, with a pause before each but the first: random, lest contenders keep in step.

    Args:
        tries: how many.
        delay: the longest pause in seconds; the shortest is half of it.
    """
    for attempt in range(tries):
        if attempt:
            time.sleep(delay * (0.5 + int.from_bytes(os.urandom(4), "big") / 2**33))
        yield attempt


def acquire(manager: Redlock, resource: Encodable, terms: tuple[int, int], pace: tuple[int, float]) -> Lock | list[str]:
    """Try until a quorum grants.

    Args:
        manager: whose servers and hooks.
        resource: what to lock.
        terms: ttl and drift in milliseconds.
        pace: how many tries, and seconds of pause between them.

    Returns:
        The lock; else what each master said in the last round: ``"granted"``, ``"refused"`` or its error's text.

    Raises:
        BaseException: what a hook or a client raised, if no redis-py error; the masters are released first.
    """
    if not manager._overrides("lock_instance"):  # noqa: SLF001 - the caller's hook may take other resources
        check_type("resource", resource)
    said: list[str] = []
    for _ in attempts(*pace):
        lock, said = _round(manager, resource, terms)
        if lock:
            return lock
    return said


def _round(manager: Redlock, resource: Encodable, terms: tuple[int, int]) -> tuple[Lock | None, list[str]]:
    ttl, drift = terms
    key = manager.get_unique_id()
    validity = 0
    start = time.clock_gettime(_CLOCK)
    try:
        said = [_ask(manager, server, resource, key, ttl) for server in manager.servers]
        elapsed = (time.clock_gettime(_CLOCK) - start) * 1000
        if said.count("granted") >= manager.quorum:
            validity = math.floor(ttl - elapsed - drift)
    finally:
        if validity <= 0:
            _abandon(manager, resource, key)
    return Lock(validity, resource, key) if validity > 0 else None, said


def _ask(manager: Redlock, server: SupportsSetEval, resource: Encodable, key: Encodable, ttl: int) -> str:
    try:
        granted = manager.lock_instance(server, resource, key, ttl)
    except _FAILURES as error:
        _note(manager, server, error)
        return _text(error)
    _note(manager, server, None)
    return "granted" if granted else "refused"


def _note(manager: Redlock, server: SupportsSetEval, error: Exception | None) -> None:
    """Log a server's change of state, not each of its errors: an outage would drown the log."""
    failing = manager._masters.failing if manager._masters else set()  # noqa: SLF001
    if error and id(server) not in failing:
        failing.add(id(server))
        logger.warning("master %s gives no vote: %s", name(server), _text(error))
    elif not error and id(server) in failing:
        failing.discard(id(server))
        logger.info("master %s answers again", name(server))


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _abandon(manager: Redlock, resource: Encodable, key: Encodable) -> None:
    for server in manager.servers:
        try:
            manager.unlock_instance(server, resource, key)
        except Exception as error:  # noqa: BLE001 - the other masters are to be released all the same
            _log_unlock_error(resource, server, error)


def _log_unlock_error(resource: Encodable, server: SupportsSetEval, error: Exception) -> None:
    # redis-py's errors say it all; where any other comes from is worth a traceback.
    trace = None if isinstance(error, _FAILURES) else error
    logger.error("Error unlocking resource %s in server %s: %s", resource, name(server), _text(error), exc_info=trace)


def release(manager: Redlock, resource: Encodable, key: Encodable) -> list[str]:
    """Release on every master.

    Returns:
        What each said: ``"released"``, ``"absent"`` or its error's text; a hook of the caller's tells no more than
        that it returned.

    Raises:
        MultipleRedlockException: ``unlock_instance`` is the caller's, and raised redis-py errors.
    """
    if not manager._overrides("unlock_instance"):  # noqa: SLF001 - the caller's hook may take other resources and keys
        check_type("resource", resource)
        check_type("key", key)
        return [release_one(manager, server, resource, key) for server in manager.servers]
    errors = []
    for server in manager.servers:
        try:
            manager.unlock_instance(server, resource, key)
        except RedisError as error:
            errors.append(error)
    if errors:
        raise MultipleRedlockException(errors)
    return ["released"] * len(manager.servers)


def release_one(manager: Redlock, server: SupportsSetEval, resource: Encodable, key: Encodable) -> str:
    """Release on one master by its client's ``eval``; errors are logged as redlock-py logged them.

    Returns:
        ``"released"``, ``"absent"`` or the error's text.
    """
    try:
        deleted = server.eval(manager.unlock_script, 1, resource, key)
    except Exception as error:  # noqa: BLE001 - redlock-py's contract: an unlock does not raise
        _log_unlock_error(resource, server, error)
        return _text(error)
    return "released" if deleted else "absent"
