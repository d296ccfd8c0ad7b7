"""The Rust engine: one session per caller, decided at quorum, no threads.

Private: the public names are in :mod:`redlock`. Times are milliseconds where the name says ``_ms``, seconds elsewhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import final

__all__ = ["Endpoint", "Engine", "__version__"]

__version__: str

@final
class Endpoint:
    """Where one Redis master is and how to log in to it; immutable, its repr never shows a secret.

    A ``path`` (Unix domain socket) excludes ``host``/``port``. So does a ``service`` with its ``sentinels``, host and
    port each: they are asked where its master is whenever a connection is made; ``tls`` is for them, too.

    ``socket_timeout`` and ``socket_connect_timeout`` are seconds; they can only shorten the round's own deadline.
    ``tls`` holds the settings below, as redis-py means its ``ssl_*`` arguments; ``None`` is a plain connection.

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
    """

    def __new__(cls, endpoints: Sequence[Endpoint], log: Callable[[int, str], None]) -> Engine: ...
    def lock(
        self,
        resource: bytes,
        ttl_ms: int,
        quorum: int,
        drift_ms: int,
        tries: int,
        retry_delay: float,
        unlock_script: str | None = None,
        key: bytes | None = None,
    ) -> tuple[int, bytes] | list[str]:
        """Try ``tries`` times, at most ``retry_delay`` seconds (jittered) apart.

        Never blocks past that and the rounds' own deadlines.

        ``key`` replaces the engine's random key (then a retry reuses it); ``unlock_script`` replaces the release
        script.

        Returns:
            ``(validity_ms, key)`` when acquired; else what each master said in the last round, in the order of
            the endpoints: ``"granted"``, ``"refused"``, ``"not asked"`` (decided without it), ``"no answer"`` or the
            text of its error.

        Raises:
            BaseException: whatever a signal handler raised (``KeyboardInterrupt``); what was acquired is released
                first.
        """

    def unlock(self, resource: bytes, key: bytes, unlock_script: str | None = None) -> list[str]:
        """Release on every master; waits for the healthy ones.

        Returns:
            Per master, in the order of the endpoints: ``"released"``, ``"absent"`` (not held with this key),
            ``"no answer"`` (or not waited for, as it is known to be down), or the text of its error.
        """
