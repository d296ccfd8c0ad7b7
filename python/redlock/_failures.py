"""The releases that fail, in the log: once per change, or an outage would drown it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redlock._connections import logger
from redlock._redlock import Vote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redlock._types import Encodable


def log_failures(
    failing: set[object], resources: Iterable[Encodable], names: Iterable[str], said: Iterable[Vote]
) -> None:
    """Log the masters on which a release failed, in redlock-py's words.

    Args:
        failing: the manager's masters on which the last one failed; brought up to date.
        resources: what was released.
        names: of the masters.
        said: by each of them.
    """
    for name, outcome in zip(names, said, strict=False):
        if outcome.is_failure:
            log_failure(failing, name, (resources, name, str(outcome)))
        elif outcome in (Vote.RELEASED, Vote.ABSENT):  # else it was not sent, or its answer not awaited
            failing.discard(name)


def log_failure(
    failing: set[object], master: object, message: tuple[Iterable[Encodable], str, str], trace: Exception | None = None
) -> None:
    """Log that a release failed on one master, unless the last one did, too.

    Args:
        failing: as above.
        master: what stands for it in there.
        message: what was to be released, the name of the master, and why it failed.
        trace: the error, if its traceback is worth a look.
    """
    if master not in failing:
        failing.add(master)
        resources, name, why = message
        logger.error(
            "Error unlocking resource %s in server %s: %s", ", ".join(map(_shown, resources)), name, why, exc_info=trace
        )


def _shown(resource: Encodable) -> str:
    """A resource as texts show it. `str` of bytes is an error under ``python -bb``."""
    return resource if isinstance(resource, str) else repr(resource)
