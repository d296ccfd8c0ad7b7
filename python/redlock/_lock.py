"""What a caller holds and what a caller catches: :class:`Lock` and the exceptions."""

from __future__ import annotations

from collections import namedtuple

TYPE_CHECKING = False  # `typing` itself would cost a fifth of this package's import time
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NamedTuple

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
    """No masters were given."""


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
