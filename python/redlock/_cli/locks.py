"""``lock``, ``unlock``, ``extend`` and ``status``: a lock by its name and key."""

from __future__ import annotations

import math

from redlock._cli import masters
from redlock._cli.durations import shown
from redlock._cli.output import DONE, NO_MAJORITY, NOT_DONE, OUTAGE, Output, is_colourful, painted, table, votes
from redlock._leasing import Operations
from redlock._lock import Lock
from redlock._outcomes import in_words, why_not_extended
from redlock._redlock import Vote

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from redlock import Redlock
    from redlock._outcomes import Sighting


def lock(options: argparse.Namespace) -> int:
    """``redlock lock``."""
    out = Output(options)
    tries = math.inf if options.retry_count < 0 else options.retry_count + 1
    manager = masters.manager(options, retry_count=tries, retry_delay=options.retry_delay / 1000)
    outcome = manager._acquire(options.name, options.validity)  # noqa: SLF001 - `lock` does not tell an outage
    if isinstance(outcome, Lock):
        out.say("ok")
        key = outcome.key.decode()
        out.result({"name": options.name, "key": key, "validity_ms": outcome.validity}, key)
        return DONE
    if outcome and not masters.has_quorum(manager, outcome):
        return _outage(out, manager, options.name, outcome)
    return _refused(out, "failed", {"name": options.name, "error": "not acquired", "masters": _said(manager, outcome)})


def unlock(options: argparse.Namespace) -> int:
    """``redlock unlock``."""
    out = Output(options)
    manager = masters.manager(options)
    outcome = manager._release(Lock(0, options.name, options.key))  # noqa: SLF001 - `unlock` does not tell
    if not masters.has_quorum(manager, outcome):
        return _outage(out, manager, options.name, outcome)
    said = _said(manager, outcome)
    if Vote.RELEASED not in outcome:
        facts = {"name": options.name, "error": "not held", "masters": said}
        return _refused(out, "failed: no master held this lock with this key", facts)
    out.say("ok")
    out.result({"name": options.name, "released": True, "masters": said})
    return DONE


def extend(options: argparse.Namespace) -> int:
    """``redlock extend``."""
    out = Output(options)
    manager = masters.manager(options)
    operations = Operations(manager, (options.name,))
    outcome = operations.extend(options.key, operations.checked(options.ttl), None)
    if not isinstance(outcome, list):
        out.say("ok")
        out.result({"name": options.name, "validity_ms": outcome.validity_ms})
        return DONE
    reason = why_not_extended(outcome, manager.quorum)
    if reason == "unavailable":
        return _outage(out, manager, options.name, outcome)
    facts = {"name": options.name, "error": reason, "masters": _said(manager, outcome)}
    return _refused(out, f"failed: {'others hold it' if reason == 'taken over' else 'it is not held any more'}", facts)


def _refused(out: Output, text: str, facts: dict[str, object]) -> int:
    out.say(text)
    out.result(facts)
    return NOT_DONE


def _outage(out: Output, manager: Redlock, name: str, outcome: Sequence[Vote]) -> int:
    said = _said(manager, outcome)
    out.error(NO_MAJORITY, name=name, masters=said)
    for each in said:
        out.say(f"  {each['master']}: {each['said']}")
    return OUTAGE


def _said(manager: Redlock, outcome: Sequence[Vote]) -> list[dict[str, str]]:
    return votes(in_words(zip(masters.names(manager), outcome, strict=False)))


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
