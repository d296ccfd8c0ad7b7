"""What :meth:`Redlock.try_lock`, :meth:`Redlock.try_unlock` and :meth:`Redlock.try_extend` return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from redlock._lease import LeaseBase
from redlock._lock import Lock
from redlock._outcomes import in_words
from redlock._redlock import Vote, why_not_extended, why_not_granted, why_not_released

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redlock._terms import Terms
    from redlock._types import Encodable, HeldLike, NotDone, SupportsUnlock


@dataclass(frozen=True)
class Attempt:
    """What became of one :meth:`Redlock.try_lock`, :meth:`Redlock.try_unlock` or :meth:`Redlock.try_extend`.

    True if it did what was asked. One class for all three: a caller that branches on ``reason`` or logs ``masters``
    needs no second way to do so.

    Attributes:
        lock: the lock that is held now; ``None`` after a failure, and after ``try_unlock``.
        reason: ``None`` if it succeeded, else why not: ``"contended"`` (others hold it: ``try_lock``), ``"taken over"``
            (the same: ``try_extend``), ``"expired"`` (its time is over, or the masters do not have it with this key) or
            ``"unavailable"`` (no quorum of masters answered in time; some of them may have obeyed).
        masters: each master and what it said, last: ``"granted"``, ``"refused"``, ``"released"``, ``"extended"``,
            ``"absent"``, ``"taken"``, ``"not asked"``, ``"not awaited"``, ``"no answer"`` or the text of its error.
        failed: those of them that gave no vote, and why.
    """

    lock: Lock | None = field(repr=False)  # with its key, any caller can release it
    reason: NotDone | None
    masters: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]

    def __bool__(self) -> bool:
        return self.reason is None


def to_lock(operations: Terms[Any], resource: Encodable, outcome: HeldLike | list[Vote]) -> Attempt:
    """Of an acquire; counts it."""
    if isinstance(outcome, list):
        # No fencing token was asked for.
        reason = cast("NotDone", why_not_granted(outcome, operations.backend.quorum))
        operations.counters.refused(contended=reason == "contended")
        return _attempt(operations, outcome, reason)
    operations.counters.acquired += 1
    return _attempt(operations, outcome.votes, None, Lock(outcome.validity_ms, resource, outcome.key))


def to_unlock(operations: Terms[Any], said: Sequence[Vote]) -> Attempt:
    """Of a release; counts it."""
    operations.counters.released += Vote.RELEASED in said
    return _attempt(operations, said, why_not_released(said, operations.backend.quorum))


def to_extend(operations: Terms[Any], lock: SupportsUnlock, outcome: HeldLike | list[Vote]) -> Attempt:
    """Of an extension."""
    if isinstance(outcome, list):
        return _attempt(operations, outcome, why_not_extended(outcome, operations.backend.quorum))
    return _attempt(operations, outcome.votes, None, Lock(outcome.validity_ms, lock.resource, lock.key))


def _attempt(
    operations: Terms[Any], votes: Sequence[Vote], reason: NotDone | None, lock: Lock | None = None
) -> Attempt:
    named = operations.named(votes)
    failed = in_words((name, vote) for name, vote in named if vote.is_failure)
    return Attempt(lock, reason, tuple(in_words(named)), tuple(failed))


def check_no_lease(lock: SupportsUnlock) -> None:
    """Refuse a lease: released or extended past it, it would take itself for lost or held.

    Raises:
        TypeError: it is one.
    """
    if isinstance(lock, LeaseBase):
        message = f"expected a lock, not {lock!r}: call its own release() and extend()"
        raise TypeError(message)
