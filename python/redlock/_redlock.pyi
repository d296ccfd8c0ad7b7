"""The Rust engine: one session per caller, decided at quorum; and one thread that renews leases, while there are any.

Private: the public names are in :mod:`redlock`. Times are milliseconds where the name says ``_ms``, seconds elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, final

from redlock._types import NotExtended, NotGranted, NotReleased, Reason, Sighting

__all__ = [
    "UNLOCK_SCRIPT",
    "Endpoint",
    "Engine",
    "Events",
    "Held",
    "LeaseState",
    "LoopSession",
    "Operation",
    "Vote",
    "__version__",
    "close_unused",
    "finish",
    "forget_parents",
    "majority",
    "now",
    "pause",
    "pause_driver",
    "random_key",
    "resume_driver",
    "validity",
    "why_not_extended",
    "why_not_granted",
    "why_not_released",
]

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

__version__: str

UNLOCK_SCRIPT: str
"""The script that releases: redlock-py's, letter for letter."""

@final
class Endpoint:
    """Where one Redis master is and how to log in to it; immutable, its repr never shows a secret.

    A ``path`` (Unix domain socket) excludes ``host``/``port``. So does a ``service`` with its ``sentinels``, host and
    port each: they are asked where its master is whenever a connection is made; ``tls`` is for them, too.

    ``socket_timeout`` is how many seconds to wait for an answer, 0.5 by default; a longer one lengthens the rounds as
    well. ``socket_connect_timeout`` is how many a connection may take, 5 by default; calls that end before that go on
    with it later.
    ``health_check_interval`` is after how many seconds without an answer a connection is asked ``PING`` before it is
    used.
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
        health_check_interval: float | None = None,
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

    Safe to share between threads and across ``fork``. Engines of one process with the same endpoints and guards have
    their sessions in common. When the last of these engines is dropped, some are kept: any call of any engine closes
    those that were not used for a minute.

    Args:
        endpoints: one per master, at least one.
        log: called with ``(level, message)``, ``level`` as in :mod:`logging`, when a master's state changes: always in
            the thread of the call that noticed.
        restart_guard_ms: a master that may have forgotten gives no vote for so long, or for the longest TTL asked for
            if that is longer; ``None``: it does.
        clock_guard: neither does one whose clock moves against ours.
        shares: whether it has sessions, and what there is to log, in common with others.
    """

    def __new__(
        cls,
        endpoints: Sequence[Endpoint],
        log: Callable[[int, str], None],
        restart_guard_ms: int | None = None,
        clock_guard: bool = False,
        *,
        shares: bool = True,
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

    def close_with_me(self) -> None:
        """Have the connections closed when this is dropped, unless another engine uses them."""

    def health(self) -> list[tuple[str | None, int, int]]:
        """What has become of each master's commands since the engine was made, or the process forked.

        Those of other engines count that have the same endpoints and guards: they share sessions.

        Returns:
            Per master what it last failed with (``None`` if it has answered since, or never failed), how often it
            answered with an error or could not be reached, and how often it did not answer.
        """

    def renewals(self) -> tuple[int, int, list[int], float]:
        """What became of this engine's leases.

        Returns:
            How often one was extended; how many were given back since nothing referred to them any more; in how many
            seconds the masters answered an extension: how often as long as each bucket of ``_counters.BOUNDS`` says,
            and in all.
        """

    def expect_last_call(self) -> None:
        """The process ends after its call, so from now on each call finishes what a quorum has decided.

        The masters that are slower have as long again as the quorum took: at least 10 ms, and at most 100 ms.
        """

    @property
    def home(self) -> int:
        """What engines that share sessions have in common in one process; another number in a forked child."""

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

    Nothing goes on but in :meth:`turn`, which the caller has to call after :meth:`start` and :meth:`cancel`, when its
    descriptor is readable, and when the time is over. In one thread at a time.

    When the object ends, operations that have not ended are given up: releases of what they took are sent, though not
    waited for.
    """

    @property
    def home(self) -> int:
        """As :attr:`Engine.home`."""

    def start(self, operation: Operation[Any]) -> int:
        """Begin an operation; returns the number it is known by from now on."""

    def turn(self) -> tuple[list[tuple[int, Any]], int | None, float | None, bool]:
        """Go on with all that can go on.

        Returns:
            The operations that have ended, with their outcomes; the descriptor that is readable when something can go
            on, the same for as long as the object lives, or ``None`` while there is nothing to watch; the seconds until
            the next turn is due, if one is; whether there is something to log.
        """

    def is_busy(self) -> bool:
        """Whether there is something to do or to hear that no operation waits for."""

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

    @staticmethod
    def release_lease(lease: LeaseState) -> Operation[list[Vote] | None]:
        """Release a lease on every master, once, after an extension that is under way.

        Returns:
            As :meth:`release`; ``None`` if it was released before.
        """

    @staticmethod
    def extend_lease(lease: LeaseState, ttl_ms: int, drift_ms: int) -> Operation[Reason | None]:
        """Extend a lease, when nothing else extends or releases it.

        Args:
            lease: which.
            ttl_ms: how long the masters are to keep it from now on.
            drift_ms: how far apart the clocks may run in that time.

        Returns:
            Why it was not extended, if it was not.
        """

@final
class LeaseState:
    """A lease: how long it can be relied on, and how it ended. It belongs to the process that made it.

    One that is renewed is released when this object ends.

    Args:
        engine: whose masters have it; ``None`` where clients' own methods are called.
        held: what was granted; ``None`` for the same.
        quorum: how many masters must agree.
        ttl_ms: how long the masters keep it.
        drift_ms: how far apart the clocks may run in that time.
        expires_at: on :func:`now`.
    """

    def __new__(
        cls,
        engine: Engine | None,
        held: Held | None,
        quorum: int,
        ttl_ms: int,
        drift_ms: int,
        expires_at: float,
    ) -> LeaseState: ...
    @property
    def remaining_ms(self) -> int:
        """How long it can still be relied on."""

    @property
    def why_not(self) -> Reason | None:
        """Why it cannot be relied on; ``None`` while it can."""

    @property
    def ttl_ms(self) -> int:
        """The TTL that was set last."""

    @property
    def validity_ms(self) -> int:
        """How long it could be relied on when it was granted or last extended."""

    @property
    def expires_at(self) -> float:
        """When that ends, on :func:`now`."""

    def is_at(self, master: int) -> bool:
        """Whether the master with this index has said last that it has it, of those that the engine asks."""

    @property
    def is_told(self) -> bool:
        """Whether it was found to be lost, and its holder is to be told."""

    @property
    def is_kept(self) -> bool:
        """Whether it is renewed."""

    @property
    def released_in_time(self) -> bool | None:
        """Whether it could still be relied on when it was released; ``None`` before."""

    def keep(self, events: Events, number: int, max_hold: float | None) -> None:
        """Renew it from now on, without the interpreter, in the one thread that does so for this process.

        Args:
            events: is told by this number what becomes of it.
            number: of the lease.
            max_hold: seconds after which it ends; ``None``: no bound.

        Raises:
            RuntimeError: the thread cannot be started.
        """

    def lose(self, reason: Reason) -> bool:
        """It is lost. Returns whether that is new."""

    def begin_extension(self, ttl_ms: int, drift_ms: int) -> Reason | None:
        """Clients' own methods are about to extend it. Returns why they must not."""

    def end_extension(
        self, ttl_ms: int, drift_ms: int, expires_at: float | None, reason: Reason | None
    ) -> Reason | None:
        """They have done so until ``expires_at``, or they have not for this reason. Returns why it was not extended."""

    def begin_release(self) -> bool:
        """Clients' own methods are about to release it. Returns whether that is to be done: once."""

    def end_release(self, was_held: bool) -> None:
        """They have done so: whether a quorum had it until then."""

    def release_later(self) -> None:
        """Have it released by the thread that renews leases, if it was not released yet."""

@final
class Events:
    """What becomes of leases that are renewed, for one thread of Python's."""

    def __new__(cls) -> Events: ...
    def wait(self, seconds: float) -> list[tuple[int, str, int]]:
        """Wait for news, other Python threads going on meanwhile.

        Args:
            seconds: to wait at most.

        Returns:
            The number of each lease; ``"lost"``, ``"renew"`` (by its clients' methods), ``"give back"`` (by the same)
            or ``"news"`` (there is something to log); and the TTL of a renewal in milliseconds.
        """

@final
class Vote:
    """What one master said: a vote, an answer to a release or an extension, or how it failed.

    A failure is never equal to an answer, whatever its text.
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

def finish(seconds: float) -> None:
    """Release the leases that are renewed, since the process ends; wait for that, but no longer than this."""

def close_unused(*, used_too: bool = False) -> None:
    """Close the connections to masters that no engine uses any more, of which some are kept otherwise.

    Args:
        used_too: later engines share nothing with those that are there: so tests are independent of each other.
    """

def forget_parents() -> None:
    """This is a child that was just forked: it shares no connections with its parent's engines."""

def pause_driver() -> None:
    """End the thread of the driver, since the process is about to fork."""

def resume_driver() -> None:
    """Go on after the fork with what the driver had in hand, in the parent."""

def now() -> float:
    """Seconds on a clock that nobody can set and that goes on while the machine is suspended."""

# The rules of the algorithm, for those who count the votes of clients' own methods and who tell callers of votes.

def majority(masters: int) -> int:
    """How many of so many masters must agree: ``masters // 2 + 1``."""

def random_key() -> bytes:
    """A fresh proof of ownership: 22 letters and digits (131 bits) from the operating system's generator.

    redlock-py draws from :mod:`random`: two workers that call ``random.seed(42)`` both hold the lock.
    """

def pause(delay: float, left: float) -> tuple[float, bool]:
    """How long to wait before the next try: a random time, so that contenders do not keep in step.

    Args:
        delay: the longest pause in seconds; the shortest is half of it.
        left: seconds until there is no further try; may be infinite.

    Returns:
        Seconds to wait, ``left`` at most, and whether there is time for another try after that.

    Raises:
        ValueError: a delay that is negative or too long.
    """

def validity(
    said: Sequence[Vote], quorum: int, ttl_ms: int, drift_ms: int, start: float, now: float
) -> tuple[int, float] | None:
    """What is left of what masters have granted or extended.

    Args:
        said: what each master said.
        quorum: how many must agree.
        ttl_ms: how long the masters keep it.
        drift_ms: how far apart the clocks may run in that time.
        start: when the first was asked, on :func:`now`.
        now: when the last had answered, on the same.

    Returns:
        Milliseconds it can be relied on, and when that ends; ``None`` without a quorum, or if nothing is left.
    """

def why_not_granted(said: Sequence[Vote], quorum: int) -> NotGranted:
    """What an acquire that failed has shown, by the votes of its last round.

    Returns:
        ``"contended"`` (others hold it), ``"expired"`` (a quorum granted when its validity was over),
        ``"unavailable"`` (no quorum gave a vote) or ``"unfenced"`` (none runs fencing scripts).
    """

def why_not_released(said: Sequence[Vote], quorum: int) -> NotReleased | None:
    """What a release has shown; ``None`` if some master still had the lock, and a quorum has it no more."""

def why_not_extended(said: Sequence[Vote], quorum: int) -> NotExtended:
    """What an extension that failed has shown.

    ``"taken over"`` and ``"expired"`` are final: fewer masters than a quorum still have the key. After
    ``"unavailable"`` they may have it.
    """
