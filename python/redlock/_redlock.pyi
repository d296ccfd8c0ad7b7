"""The Rust engine: one session per caller, decided at quorum, no threads.

Private: the public names are in :mod:`redlock`. Times are milliseconds where the name says ``_ms``, seconds elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, final

from redlock._types import Sighting

__all__ = ["Endpoint", "Engine", "Held", "LoopSession", "Operation", "Vote", "__version__", "now"]

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

__version__: str

@final
class Endpoint:
    """Where one Redis master is and how to log in to it; immutable, its repr never shows a secret.

    A ``path`` (Unix domain socket) excludes ``host``/``port``. So does a ``service`` with its ``sentinels``, host and
    port each: they are asked where its master is whenever a connection is made; ``tls`` is for them, too.

    ``socket_timeout`` is how many seconds to wait for an answer, 0.5 by default; a longer one lengthens the rounds as
    well. ``socket_connect_timeout`` is how many a connection may take, 5 by default; calls that end before that go on
    with it later.
    ``tls`` holds the settings below, as redis-py means its ``ssl_*`` arguments; ``None`` is a plain connection.

    ``credentials`` is asked for username and password instead, for each connection: called in a thread of its own with
    a function, which it calls with user, password and ``None``, or with the reason why there are none in their place.

    ``tls`` keys: ``cert_reqs`` ("required", "optional" or "none"), ``check_hostname`` (bool), ``ca_certs`` (file),
    ``ca_path`` (directory), ``ca_data`` (PEM str), ``certfile``, ``keyfile`` (files), ``min_version`` ("1.2" or "1.3").
    All are optional.

    Raises:
        ValueError: a value that cannot be used, named in the message (never a password).
    """

    def __new__(
        cls,
        *,
        host: str = "localhost",
        port: int = 6379,
        path: str | None = None,
        db: int = 0,
        username: str | None = None,
        password: str | None = None,
        credentials: Callable[[Callable[[str | None, str | None, str | None], None]], object] | None = None,
        client_name: str | None = None,
        protocol: int | None = None,
        socket_timeout: float | None = None,
        socket_connect_timeout: float | None = None,
        socket_keepalive: bool = False,
        socket_keepalive_options: Mapping[int, int] | None = None,
        tls: Mapping[str, object] | None = None,
        service: str | None = None,
        sentinels: Sequence[tuple[str, int]] | None = None,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
    ) -> Endpoint: ...
    @property
    def address(self) -> str:
        """``host:port/db``, ``path/db`` or ``sentinel(service)@host:port,.../db``, as in logs; tells masters apart."""

@final
class Engine:
    """Sessions to N masters, and the operations over them, for blocking callers.

    Safe to share between threads and across ``fork``.

    Args:
        endpoints: one per master, at least one.
        log: called with ``(level, message)``, ``level`` as in :mod:`logging`, when a master's state changes: always in
            the thread of the call that noticed.
        restart_guard_ms: a master that may have forgotten gives no vote for so long, or for the longest TTL asked for
            if that is longer; ``None``: it does.
        clock_guard: neither does one whose clock moves against ours.
    """

    def __new__(
        cls,
        endpoints: Sequence[Endpoint],
        log: Callable[[int, str], None],
        restart_guard_ms: int | None = None,
        clock_guard: bool = False,
    ) -> Engine: ...
    def run(self, operation: Operation[_T]) -> _T:
        """Do it in this thread, other Python threads going on meanwhile; log what was noticed on the way.

        What is held when this returns is good for at least a millisecond more: a lock of which less is left is given
        back, and the call has failed.

        Raises:
            BaseException: whatever a signal handler raised (``KeyboardInterrupt``), another thread set to be raised in
                this one, or ``log`` raised that is no ``Exception``; what was acquired is released first.
            RuntimeError: in a child that was forked meanwhile; the call goes on in its parent.
        """

    def health(self) -> list[tuple[str | None, int, int]]:
        """What has become of each master's commands since the engine was made, or the process forked.

        Returns:
            Per master what it last failed with (``None`` if it has mended since, or never failed), how often it
            answered with an error or could not be reached, and how often it kept silent.
        """

    def loop_session(self) -> LoopSession:
        """A session for one event loop. It lives as long as the object; see there."""

    def write_log(self) -> None:
        """Log what was noticed of the masters since the last call.

        Raises:
            BaseException: what ``log`` raised that is no ``Exception``.
        """

@final
class LoopSession:
    """One connection to each master and any number of operations on them, for a caller that must not block.

    Nothing goes on but in :meth:`turn`, which the caller has to call after :meth:`start` and :meth:`cancel`, when a
    descriptor is ready, and when the time is over. In one thread at a time.

    When the object ends, operations that have not ended are given up: releases of what they took are sent, though not
    waited for.
    """

    def start(self, operation: Operation[Any]) -> int:
        """Begin an operation; returns the number it is known by from now on."""

    def turn(self) -> tuple[list[tuple[int, Any]], list[tuple[int, bool, bool]], float | None, bool]:
        """Go on with all that can go on.

        Returns:
            The operations that have ended, with their outcomes; ``(fd, read, write)`` for each descriptor that is to be
            watched differently from now on, for neither if not at all, in this order; the seconds until the next turn
            is due, if one is; whether there is something to log.
        """

    def write_log(self) -> None:
        """As :meth:`Engine.write_log`."""

    def cancel(self, operation: int) -> None:
        """Give up an operation, if it can be given up and has not ended yet.

        It ends once what it took is given back, or with what it took: then it was too late.
        """

@final
class Operation(Generic[_T_co]):
    """Something to do at the masters, anew each time it is run.

    Masters are listed in the order of the endpoints. Bad values raise ``ValueError``, ones that do not fit
    ``OverflowError``.
    """

    @staticmethod
    def acquire(
        resources: Sequence[bytes],
        ttl_ms: int,
        quorum: int,
        drift_ms: int,
        tries: int,
        retry_delay: float,
        timeout: float | None = None,
        unlock_script: str | None = None,
        key: bytes | None = None,
        fencing: bool = False,
    ) -> Operation[Held | list[Vote]]:
        """Take all resources, with one key for all; or none.

        Args:
            resources: at least one.
            ttl_ms: how long the masters keep them.
            quorum: how many masters must grant.
            drift_ms: how far apart the clocks may run in that time.
            tries: rounds, at least one is run.
            retry_delay: the longest pause between two, jittered, in seconds.
            timeout: seconds for all rounds and pauses together; ``None``: no bound.
            unlock_script: replaces the release script.
            key: replaces the engine's random key, of which each round has a fresh one.
            fencing: have a fencing token with it, for which masters must run scripts.

        Returns:
            What is held; else what each master said in the last round: granted, refused, not asked, not awaited
            (decided without it), or how it failed.
        """

    @staticmethod
    def release(resources: Sequence[bytes], key: bytes, unlock_script: str | None = None) -> Operation[list[Vote]]:
        """Release on every master; waits for the healthy ones.

        Returns:
            Per master released, absent (not held with this key), or how it failed: "no answer" also where it was not
            waited for, since it is known to be down.
        """

    @staticmethod
    def extend(
        resources: Sequence[bytes],
        key: bytes,
        ttl_ms: int,
        quorum: int,
        drift_ms: int,
        valid_until: float | None = None,
    ) -> Operation[Held | list[Vote]]:
        """Set the TTL anew where the key is still there; never set a key that is gone.

        Args:
            resources: as acquired.
            key: the proof of ownership.
            ttl_ms: how long the masters are to keep them from now on.
            quorum: how many masters must still have them.
            drift_ms: how far apart the clocks may run in that time.
            valid_until: on :func:`now`; until then, masters that have forgotten the lock are given it again. An
                extension that is not granted by then fails.

        Returns:
            What is held; else per master extended, taken (by another), absent, not awaited, or how it failed: the lock
            then ends when it would have, or when it would with this ttl, whichever is earlier.
        """

    @staticmethod
    def inspect(resource: bytes) -> Operation[list[Sighting]]:
        """Ask every master who holds ``resource``.

        Returns:
            Per master ``(key, ttl_ms, error)``: key and error are ``None`` where it is free, ttl_ms also where it never
            expires.
        """

    @property
    def rounds(self) -> int:
        """How often the masters were asked for the lock, in all its runs so far; 0 for what is no acquire."""

@final
class Vote:
    """What one master said: a vote, an answer to a release or an extension, or how it failed.

    A failure is never equal to anything else, whatever its text.
    """

    GRANTED: ClassVar[Vote]
    REFUSED: ClassVar[Vote]
    NOT_ASKED: ClassVar[Vote]
    NOT_AWAITED: ClassVar[Vote]
    RELEASED: ClassVar[Vote]
    ABSENT: ClassVar[Vote]
    EXTENDED: ClassVar[Vote]
    TAKEN: ClassVar[Vote]

    @staticmethod
    def failure(text: str) -> Vote:
        """A failure with this text."""

    @staticmethod
    def unfenced(text: str) -> Vote:
        """A master on which no fencing script can be run, because of this."""

    @property
    def is_failure(self) -> bool:
        """Whether the master gave no vote, although it was asked for one."""

    @property
    def is_unfenced(self) -> bool:
        """Whether it runs no fencing scripts."""

    def __hash__(self) -> int: ...

@final
class Held:
    """A lock that was acquired or extended."""

    @property
    def validity_ms(self) -> int:
        """How long it is safe to use from now on; 0 when that is over."""

    @property
    def expires_at(self) -> float:
        """When that ends, on :func:`now`: ttl - drift after before the first byte was sent."""

    @property
    def key(self) -> bytes:
        """The proof of ownership."""

    @property
    def token(self) -> int | None:
        """The fencing token, if one was asked for: greater than any that earlier holders of these resources had."""

    @property
    def token_at_once(self) -> bool:
        """Whether the masters accepted the first token proposed, so that it took no second round."""

    @property
    def votes(self) -> list[Vote]:
        """What each master had said when a quorum was reached."""

def now() -> float:
    """Seconds on a clock that nobody can set and that goes on while the machine is suspended."""
