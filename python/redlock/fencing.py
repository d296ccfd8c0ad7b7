"""Where a fencing token counts: at the resource that a lock protects.

A lock with a time limit can be lost without its holder's noticing: the process is paused, and goes on when another
already holds the lock. A resource that remembers the greatest token it has seen can turn such a writer away.
``docs/fencing.md`` has the same in SQL, for object stores and for Redis.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

__all__ = ["FencedResource", "StaleToken"]

_Value = TypeVar("_Value")


class StaleToken(Exception):  # noqa: N818 - what it is, not that it is one
    """A writer came whose lock had been lost to another that wrote already.

    Attributes:
        token: the writer's.
        greatest: the one seen before.
    """

    def __init__(self, token: int, greatest: int) -> None:
        super().__init__(token, greatest)
        self.token: int = token
        self.greatest: int = greatest

    def __str__(self) -> str:
        """Both tokens."""
        return f"token {self.token} is stale: {self.greatest} was seen before"


class FencedResource(Generic[_Value]):
    """A value in memory that only the latest holder of a lock can write: for tests, and to show the rule.

    A write is accepted iff its token is at least the greatest seen, and both are decided in one step. Several writes
    under one token are one holder's.

    Args:
        value: what it holds at first.
    """

    def __init__(self, value: _Value) -> None:
        self._mutex: threading.Lock = threading.Lock()
        self._value: _Value = value
        self._greatest: int = 0

    @property
    def value(self) -> _Value:
        """What was written last."""
        return self._value

    @property
    def greatest(self) -> int:
        """The greatest token seen; 0 before the first."""
        return self._greatest

    def write(self, value: _Value, token: int) -> None:
        """Write ``value`` in the name of the holder of ``token``.

        Raises:
            StaleToken: a later holder has been here; nothing was written.
        """
        with self._mutex:
            if token < self._greatest:
                raise StaleToken(token, self._greatest)
            self._value, self._greatest = value, token
