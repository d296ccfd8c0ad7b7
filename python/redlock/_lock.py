"""What a caller holds and what a caller catches: :class:`Lock` and the exceptions."""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False  # `typing` itself would cost a fifth of this package's import time
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, NamedTuple

    from redlock._types import NotObtained, Reason

    class Lock(NamedTuple):
        """A lock that was acquired; see the class of the same name below."""

        validity: int
        resource: Any
        key: Any

else:
    # A plain namedtuple, in redlock-py's module: locks that either library pickled can be loaded by the other.
    Lock = namedtuple("Lock", ("validity", "resource", "key"), module="redlock")  # noqa: PYI024
    Lock.__doc__ = """A lock that was acquired. A named tuple, as in redlock-py.

    Attributes:
        validity: milliseconds it may be relied on, counted from the return of ``lock``: ttl - elapsed - drift.
        resource: the resource, the very object that was passed.
        key: the proof of ownership, 22 random letters and digits (bytes): the value of the resource's key in Redis.
    """


class CannotObtainLock(Exception):  # noqa: N818 - redlock-py's name
    """No lease was granted, or no masters were given.

    Attributes:
        resource: what was asked for, the very object that was passed; ``None`` if no masters were given.
        reason: ``"contended"`` (others hold it), ``"timeout"`` (they still did when the timeout was over) or
            ``"unavailable"`` (no quorum of masters answered).
        masters: each master and what it said in the last round: ``"granted"``, ``"refused"``, ``"not asked"``,
            ``"no answer"`` or the text of its error.
        failed: those of them that gave no vote, and why.
    """

    def __init__(
        self,
        *args: object,
        resource: Any = None,
        reason: NotObtained | None = None,
        masters: Sequence[tuple[str, str]] = (),
        failed: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(*args)  # the message alone: pickle makes the copy of `args` and adds the attributes
        self.resource = resource
        self.reason: NotObtained | None = reason
        self.masters = masters
        self.failed = failed


class LockContended(CannotObtainLock):
    """Others hold it. ``reason`` is ``"timeout"`` if a timeout was waited out, else ``"contended"``."""


class QuorumUnavailable(CannotObtainLock):
    """Too few masters answered to tell, or to grant it: ``reason`` is ``"unavailable"``."""


class FencingUnavailable(CannotObtainLock):
    """No quorum of masters runs the scripts of a fencing token, or lets us: ``reason`` is ``"unavailable"``.

    No lock was taken instead.
    """


class LockLost(Exception):  # noqa: N818 - as those above
    """A lease is no more, or cannot be relied on.

    Attributes:
        resource: the lease's.
        reason: ``"expired"`` (its time is over, or the masters no longer have it), ``"taken over"`` (somebody else
            holds it), ``"unavailable"`` (no quorum of masters answered in time to extend it), ``"forked"`` (it is the
            parent process's) or ``"released"``.
    """

    def __init__(self, *args: object, resource: Any = None, reason: Reason = "expired") -> None:
        super().__init__(*args)
        self.resource = resource
        self.reason: Reason = reason


class MultipleRedlockException(Exception):  # noqa: N818 - redlock-py's name
    """Several masters failed.

    Attributes:
        errors: what each of them raised, :class:`redis.exceptions.RedisError`.
    """

    def __init__(self, errors: Iterable[BaseException], *args: object) -> None:
        # redlock-py kept the errors out of `args`, from which pickle builds the copy.
        super().__init__(errors, *args)
        self.errors = errors

    def __str__(self) -> str:
        """All errors' texts, joined."""
        return " :: ".join(map(str, self.errors))

    __repr__ = __str__
