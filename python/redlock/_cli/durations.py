"""Times as people write them: ``500ms``, ``10s``, ``2m``, ``1h``."""

from __future__ import annotations

import argparse
import re

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_LEAST_TTL_MS = 3  # less leaves no validity
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TEXT = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def milliseconds(text: str) -> int:
    """A duration in whole milliseconds.

    Args:
        text: a number and its unit; ``0`` needs none. Other bare numbers are refused: half of all readers would take
            them for seconds.

    Raises:
        argparse.ArgumentTypeError: not a duration.
    """
    found = _TEXT.fullmatch(text)
    if not found:
        if text == "0":
            return 0
        if _NUMBER.fullmatch(text):
            raise argparse.ArgumentTypeError(f"{text}: expected a duration, {text}s?")
        raise argparse.ArgumentTypeError(f"invalid duration: {text!r} (500ms, 10s, 2m, 1h)")
    return round(float(found[1]) * _UNITS_MS[found[2]])


def seconds(text: str) -> float:
    """A duration in seconds.

    Raises:
        argparse.ArgumentTypeError: not a duration.
    """
    return milliseconds(text) / 1000


def bare_milliseconds(text: str) -> int:
    """A duration, or a bare number of milliseconds, which is all that redlock-py's command took.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    return int(text) if re.fullmatch(r"-?\d+", text) else milliseconds(text)


def ttl(text: str) -> int:
    """How long a lock lasts, in milliseconds.

    Raises:
        argparse.ArgumentTypeError: no duration, or one that leaves no validity.
    """
    # A bare number is no duration here, but what is too short in any unit is told as such.
    short = bare_milliseconds(text) if re.fullmatch(r"-\d+|[012]", text) else milliseconds(text)
    return _lasting(text, short)


def bare_ttl(text: str) -> int:
    """The same, or a bare number of milliseconds.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    return _lasting(text, bare_milliseconds(text))


def _lasting(text: str, ms: int) -> int:
    if ms < _LEAST_TTL_MS:
        raise argparse.ArgumentTypeError(f"{text}: expected at least {_LEAST_TTL_MS}ms")
    return ms


def wait(text: str) -> float | None:
    """How long to wait, in seconds; ``None`` for ``forever``.

    Raises:
        argparse.ArgumentTypeError: neither a duration nor ``forever``.
    """
    return None if text == "forever" else seconds(text)


def shown(ms: float | None) -> str:
    """A duration to read, in the unit that fits; nothing for ``None``."""
    if ms is None:
        return ""
    if ms < 1:
        return f"{ms:.2f}ms"
    if ms < _UNITS_MS["s"]:
        return f"{ms:.3g}ms"
    if ms < _UNITS_MS["m"]:
        return f"{ms / 1_000:.1f}s"
    minutes, rest = divmod(round(ms / 1_000), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"  # noqa: PLR2004
