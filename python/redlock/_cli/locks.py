"""``lock``, ``unlock``, ``extend`` and ``status``: a lock by its name and key."""

from __future__ import annotations

import math

from redlock import Lock
from redlock._cli import masters
from redlock._cli.durations import shown
from redlock._cli.output import DONE, NO_MAJORITY, NOT_DONE, OUTAGE, Output, is_colourful, painted, table, votes
from redlock._cli.process import ended_late

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from redlock import Attempt, Sighting


def lock(options: argparse.Namespace) -> int:
    """``redlock lock``."""
    out = Output(options)
    tries = math.inf if options.retry_count < 0 else options.retry_count + 1
    manager = masters.for_one_call(masters.manager(options, retry_delay=options.retry_delay / 1000))
    with ended_late():
        attempt = None
        try:
            attempt = manager.try_lock(options.name, options.validity, timeout=None, retry_count=tries)
            if attempt.lock:
                key = attempt.lock.key.decode()
                out.result({"name": options.name, "key": key, "validity_ms": attempt.lock.validity}, key)
        except BaseException:  # without its key, the lock is of no use to the caller
            if attempt and attempt.lock:
                manager.unlock(attempt.lock)
            raise
    if attempt:
        out.say("ok")
        return DONE
    if attempt.reason == "unavailable":
        return outage(out, options.name, attempt)
    return _conflict(out, {"name": options.name, "error": "not acquired", "masters": votes(attempt.masters)})


def unlock(options: argparse.Namespace) -> int:
    """``redlock unlock``."""
    out = Output(options)
    attempt = masters.manager(options).try_unlock(Lock(0, options.name, options.key))
    if attempt.reason == "unavailable":
        return outage(out, options.name, attempt)
    said = votes(attempt.masters)
    if not attempt:
        facts = {"name": options.name, "error": "not held", "masters": said}
        return _lost(out, "no master held this lock with this key", facts)
    out.say("ok")
    out.result({"name": options.name, "released": True, "masters": said})
    return DONE


def extend(options: argparse.Namespace) -> int:
    """``redlock extend``."""
    out = Output(options)
    attempt = masters.for_one_call(masters.manager(options)).try_extend(Lock(0, options.name, options.key), options.ttl)
    if attempt.lock:
        out.say("ok")
        out.result({"name": options.name, "validity_ms": attempt.lock.validity})
        return DONE
    if attempt.reason == "unavailable":
        return outage(out, options.name, attempt)
    facts = {"name": options.name, "error": attempt.reason, "masters": votes(attempt.masters)}
    is_taken = attempt.reason == "taken over"
    return _lost(out, "others hold it" if is_taken else "it is not held any more", facts)


def _conflict(out: Output, facts: dict[str, object]) -> int:
    out.say("failed")
    out.result(facts)
    return NOT_DONE


def _lost(out: Output, text: str, facts: dict[str, object]) -> int:
    out.warn(f"failed: {text}")
    out.result(facts)
    return NOT_DONE


def outage(out: Output, name: str, attempt: Attempt) -> int:
    """Say that no majority answered, and what each master said."""
    out.error(NO_MAJORITY, name=name, masters=votes(attempt.masters))
    for master, said in attempt.masters:
        out.warn(f"  {master}: {said}")
    return OUTAGE


# -- status ------------------------------------------------------------------------------------------------------------


def status(options: argparse.Namespace) -> int:
    """``redlock status``."""
    out = Output(options)
    manager = masters.manager(options)
    seen = manager.inspect(options.name)
    holder, left = majority(seen, manager.quorum)
    answered = sum(each.error is None for each in seen)
    facts = {
        "name": options.name,
        "held": holder is not None if answered >= manager.quorum else None,
        "holder": holder,
        "ttl_ms": left,
        "quorum": manager.quorum,
        "masters": [each._asdict() for each in seen],
    }
    out.result(facts, _shown(options.name, seen, manager.quorum))
    if answered < manager.quorum:
        return OUTAGE
    return NOT_DONE if holder is None else DONE


def majority(seen: Sequence[Sighting], quorum: int) -> tuple[str | None, int | None]:
    """Who holds a lock on a quorum, and for how many milliseconds still: until one master too many has expired it.

    Returns:
        The holder, ``None`` if nobody does; and the time, ``None`` if nobody does, or for ever.
    """
    holders = [each.holder for each in seen if each.holder is not None]
    for holder in set(holders):
        if holders.count(holder) >= quorum:
            lefts = [math.inf if each.ttl_ms is None else each.ttl_ms for each in seen if each.holder == holder]
            left = sorted(lefts, reverse=True)[quorum - 1]
            return holder, None if left == math.inf else int(left)
    return None, None


def _shown(name: str, seen: Sequence[Sighting], quorum: int) -> str:
    colour = is_colourful()
    holder, left = majority(seen, quorum)
    answered = sum(each.error is None for each in seen)
    if answered < quorum:
        verdict = painted(f"unknown: {answered} of {len(seen)} masters answered", "red", on=colour)
    elif holder is None:
        verdict = painted("free", "green", on=colour)
    else:
        verdict = painted(f"held by {holder}", "yellow", on=colour)
        verdict += "" if left is None else f", {shown(left)} left"
    rows = [(each.master, each.error or each.holder or "free", _left(each)) for each in seen]
    return f"{name}: {verdict}\n\n{table(('MASTER', 'HOLDER', '>LEFT'), rows, colour=colour)}"


def _left(each: Sighting) -> str:
    return shown(each.ttl_ms) or ("no end" if each.holder else "")
