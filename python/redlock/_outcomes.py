"""What masters said, and what it means: shared by both managers, whoever waits."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from redlock._lock import CannotObtainLock, FencingUnavailable, LockContended, LockLost, QuorumUnavailable
from redlock._redlock import Vote, why_not_granted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redlock._types import Encodable, NotObtained, Reason

# What one of a client's masters says to fencing scripts: they cannot be sent through its methods.
OWN_METHODS = Vote.unfenced("its client's own methods are called")

_LOSSES: dict[Reason, str] = {
    "expired": "its time is over, or the masters no longer have it",
    "taken over": "somebody else holds it",
    "unavailable": "no quorum of masters extended it in time",
    "forked": "it belongs to the parent process",
    "released": "it has been released",
}


class Sighting(NamedTuple):
    """What one master has under a name.

    Attributes:
        master: which.
        holder: a digest of the key it is held with, as :attr:`Lease.holder` has it; ``None`` if it is free there. Not
            the key itself: whoever knows that can release the lock.
        ttl_ms: milliseconds until it expires there; ``None`` if it is free, or was stored without an end.
        error: why the master could not tell; then the others are ``None``, too.
    """

    master: str
    holder: str | None
    ttl_ms: int | None
    error: str | None


def sightings(names: Iterable[str], found: Iterable[tuple[bytes | None, int | None, str | None]]) -> list[Sighting]:
    """The engine's findings, with the masters' names, and without the keys."""
    return [
        Sighting(name, None if key is None else digest(key), ttl_ms, error)
        for name, (key, ttl_ms, error) in zip(names, found, strict=False)
    ]


def is_locked(resource: Encodable, seen: Sequence[Sighting], quorum: int) -> bool:
    """Whether a quorum holds it for one holder.

    Raises:
        QuorumUnavailable: too few masters answered to tell.
    """
    failed = [(each.master, each.error) for each in seen if each.error is not None]
    if len(seen) - len(failed) < quorum:
        message = f"no quorum for {resource!r:.80}: {_listed(failed)}"
        raise QuorumUnavailable(message, resource=resource, reason="unavailable", masters=failed, failed=failed)
    holders = [each.holder for each in seen if each.holder is not None]
    return any(holders.count(holder) >= quorum for holder in set(holders))


def digest(key: bytes) -> str:
    """What may be shown of a key: 16 hexadecimal digits that tell holders apart."""
    return sha256(key).hexdigest()[:16]


def is_outage(said: Sequence[Vote], quorum: int) -> bool:
    """Whether it was for want of masters that no quorum granted, and not because others hold it."""
    return why_not_granted(said, quorum) != "contended"


def refusal(resource: Any, masters: Sequence[tuple[str, Vote]], quorum: int, *, waited_out: bool) -> CannotObtainLock:
    """The exception of an acquire that failed.

    Args:
        resource: as the caller passed it.
        masters: each one's name and its vote in the last round.
        quorum: how many had to grant.
        waited_out: whether a timeout above zero is over.
    """
    said, failed = in_words(masters), in_words((name, vote) for name, vote in masters if vote.is_failure)
    kind: type[CannotObtainLock]
    reason: NotObtained = "unavailable"
    why = why_not_granted([vote for _, vote in masters], quorum)
    if why == "unfenced":
        kind, what = FencingUnavailable, f"no fencing token for {resource!r:.80}"
    elif why == "contended":
        kind, what = LockContended, f"{resource!r:.80} is held by others"
        reason = "timeout" if waited_out else "contended"
    else:
        kind, what = QuorumUnavailable, f"no quorum for {resource!r:.80}"
    return kind(f"{what}: {_listed(said)}", resource=resource, reason=reason, masters=said, failed=failed)


def in_words(masters: Iterable[tuple[str, Vote]]) -> list[tuple[str, str]]:
    """What masters said, as callers see it."""
    return [(name, str(vote)) for name, vote in masters]


def _listed(masters: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {vote}" for name, vote in masters)


def loss(resource: Any, reason: Reason) -> LockLost:
    """The exception of a lease that cannot be relied on."""
    return LockLost(f"{resource!r:.80} is not held: {_LOSSES[reason]}", resource=resource, reason=reason)
