"""The arguments of a call as the engine takes them, each checked before anything is sent."""

from __future__ import annotations

import math
from math import inf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from redlock._types import Encodable

    Guards: TypeAlias = tuple[int | None, bool]

NO_GUARDS: Guards = (None, False)

# Redis itself takes half a gigabyte and then drops the connection; a name this long is a mistake long before that.
MAX_BYTES = 64 * 1024 * 1024
# What `now + ttl` of any server can hold, with room.
MAX_TTL_MS = 2**62
# 31 years between two tries: more is a mistake, and overflows the clocks' types.
MAX_DELAY = 1e9
# A call with this many tries never ends; infinity is taken for it.
MAX_TRIES = 2**31 - 1


def check_type(name: str, value: object) -> None:
    """Refuse what redis-py's encoder refuses: everything but text, bytes and numbers.

    Raises:
        TypeError: it is of another type; a bool is no number here.
    """
    if isinstance(value, bool) or not isinstance(value, (str, bytes, memoryview, int, float)):
        message = f"{name} must be str, bytes, memoryview, int or float, not {type(value).__name__}: {value!r:.80}"
        raise TypeError(message)


def encode(name: str, value: Encodable) -> bytes:
    """The bytes redis-py sends for ``value``: text as utf-8, numbers as their repr.

    Args:
        name: of the argument, for the error's text.
        value: a resource or a key.

    Raises:
        TypeError: redis-py does not encode this type.
        ValueError: text with a lone surrogate, or more than 64 MiB.
    """
    try:
        encoded = value if type(value) is bytes else value.encode() if isinstance(value, str) else _encoded(name, value)
    except UnicodeEncodeError as error:
        reason = f"{error.reason}: {name} must be text that utf-8 can hold"
        raise UnicodeEncodeError(error.encoding, error.object, error.start, error.end, reason) from None
    if len(encoded) > MAX_BYTES:
        message = f"{name} must not be longer than {MAX_BYTES} bytes, this one is {len(encoded)}"
        raise ValueError(message)
    return encoded


def _encoded(name: str, value: Encodable) -> bytes:
    check_type(name, value)
    return bytes(value) if isinstance(value, (bytes, memoryview)) else repr(value).encode()


def check_ttl(ttl: float) -> None:
    """Refuse a time to live that is no whole number of milliseconds.

    Zero and less are not refused: code in the wild probes with them, and is told ``False``.

    Raises:
        ValueError: a number that is not an int (the text is redlock-py's), or more than any server can hold.
        TypeError: not a number.
    """
    if not isinstance(ttl, int):
        try:
            ttl * 1.0
        except TypeError:
            message = f"ttl must be an int, in milliseconds, not {type(ttl).__name__}: {ttl!r:.80}"
            raise TypeError(message) from None
        message = f"ttl {ttl} is not an integer"
        raise ValueError(message)  # noqa: TRY004 - redlock-py's
    if ttl > MAX_TTL_MS:
        message = f"ttl must be at most {MAX_TTL_MS} ms, not {ttl}"
        raise ValueError(message)


def ttl_and_drift(ttl: float, factor: float) -> tuple[int, int]:
    """A time to live, and milliseconds of it by which the clocks may have drifted apart, as redlock-py computes them.

    Two are added: Redis expires with a precision of one, and one is the least drift of a small ttl.

    Raises:
        ValueError: the factor is negative or not finite: a lock would outlive its key. Or as :func:`check_ttl`.
        TypeError: as there.
    """
    if type(ttl) is not int or ttl > MAX_TTL_MS:
        check_ttl(ttl)
    if not 0 <= factor < inf:
        message = f"clock_drift_factor must be a fraction of the ttl, not {factor!r}"
        raise ValueError(message)
    return int(ttl), int(ttl * factor) + 2


def whole_tries(retry_count: float) -> int:
    """How often to try, not at all if it is less than 1: redlock-py counts up while below ``retry_count``.

    Raises:
        TypeError: not a number.
    """
    if type(retry_count) is int and retry_count < MAX_TRIES:
        return retry_count
    count = _number("retry_count", retry_count)
    return math.ceil(min(count, MAX_TRIES)) if count > 0 else 0


def seconds(value: float, name: str = "retry_delay") -> float:
    """A time to wait.

    Raises:
        TypeError: not a number.
        ValueError: negative, NaN, or more than 31 years.
    """
    number = value if type(value) is float else _number(name, value)
    if not 0 <= number <= MAX_DELAY:
        message = f"{name} must be seconds from 0 to {MAX_DELAY:.0f}, not {value!r}"
        raise ValueError(message)
    return number


def _number(name: str, value: float) -> float:
    """Any real number as a float: counts and delays come out of configurations as Decimals and numpy scalars, too."""
    try:
        return math.copysign(math.fabs(value), value)  # unlike `float`, takes no text
    except TypeError:
        message = f"{name} must be a number, not {type(value).__name__}: {value!r:.80}"
        raise TypeError(message) from None


def guards(restart_guard: object, clock_guard: object) -> Guards:
    """What the engine guards masters against: the longest TTL in use in ms (0: what is asked for here) or ``None``.

    Raises:
        TypeError: a guard that is neither bool nor, for ``restart_guard``, int.
        ValueError: a TTL that is not positive.
    """
    if not isinstance(restart_guard, int):
        message = f"restart_guard: expected a bool or a TTL in milliseconds, not {type(restart_guard).__qualname__}"
        raise TypeError(message)
    if not isinstance(clock_guard, bool):
        message = f"clock_guard: expected a bool, not {type(clock_guard).__qualname__}"
        raise TypeError(message)
    if not isinstance(restart_guard, bool):
        check_ttl(restart_guard)
        return restart_guard, clock_guard
    return 0 if restart_guard else None, clock_guard
