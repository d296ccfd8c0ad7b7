"""From the items of a connection list to redis-py clients, and from those to the engine's endpoints.

redis-py itself reads the URLs and dicts, so that its options, its checks and its test doubles are the caller's.
Whatever it made is read back into an :class:`~redlock._redlock.Endpoint`, if the engine can honour all of its settings.

This module imports redis-py. It is imported when the first manager is made, so that ``import redlock`` stays cheap.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import logging
import operator
import os
import re
import socket
import ssl
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast
from urllib.parse import unquote

import redis
import redis.connection
import redis.sentinel

from redlock import _sentinel
from redlock._arguments import NO_GUARDS
from redlock._masters import Client, Native
from redlock._redlock import Endpoint, Engine, close_unused, forget_parents

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from redlock._arguments import Guards
    from redlock._masters import Master
    from redlock._types import Item, SupportsSetEval

logger = logging.getLogger("redlock")

# A child would keep connections open that no manager uses.
os.register_at_fork(before=close_unused, after_in_child=forget_parents)

# What a redis-py connection can be told and an endpoint carries.
_HONOURED = frozenset({
    "host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "protocol",
    "socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options", "health_check_interval",
    "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_check_hostname",
    "ssl_min_version", "ssl_include_verify_flags", "ssl_exclude_verify_flags",
})  # fmt: skip
# What is about redis-py's own reading, retrying and reporting: it changes nothing that reaches a server. Text that
# utf-8 cannot hold is refused before it is sent anywhere.
REDIS_PYS_OWN = frozenset({
    "encoding_errors",
    "retry", "retry_on_timeout", "retry_on_error", "socket_read_size", "parser_class",
    "decode_responses", "legacy_responses", "lib_name", "lib_version", "driver_info", "event_dispatcher",
    "maint_notifications_config", "maint_notifications_pool_handler", "maintenance_state",
    "maintenance_notification_hash", "oss_cluster_maint_notifications_handler", "orig_host_address",
    "orig_socket_timeout", "orig_socket_connect_timeout", "himport_registry",
})  # fmt: skip
# What the engine does one way only.
_ONLY_AS = {"encoding": ("utf-8", "utf8", "UTF-8")}
_POOLS = (redis.connection.ConnectionPool, redis.connection.BlockingConnectionPool, _sentinel.Pool)
_TCP_OPTIONS = frozenset(
    getattr(socket, option)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    if hasattr(socket, option)
)

_REDIS_PYS_DEFAULTS = inspect.signature(redis.connection.AbstractConnection.__init__).parameters

_CONNECTIONS = (
    redis.connection.Connection,
    redis.connection.SSLConnection,
    redis.connection.UnixDomainSocketConnection,
    redis.sentinel.SentinelManagedConnection,
    redis.sentinel.SentinelManagedSSLConnection,
)
_CERT_REQS = {ssl.CERT_NONE: "none", ssl.CERT_OPTIONAL: "optional", ssl.CERT_REQUIRED: "required"}
# What `ssl.create_default_context`, which redis-py calls, sets; and what of it the engine knows.
_VERIFY_FLAGS = (
    ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN if sys.version_info >= (3, 13) else ssl.VerifyFlags(0)
)
_KNOWN_FLAGS = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
_TLS_VERSIONS = {ssl.TLSVersion.TLSv1_2: "1.2", ssl.TLSVersion.TLSv1_3: "1.3"}

_WITHOUT_TLS = (redis.connection.Connection, redis.connection.UnixDomainSocketConnection)

# What was read of items, and the class of their connections, by the item and by what read it.
_READ: dict[object, tuple[Endpoint, Any]] = {}
_MOST_READ = 100
_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})
_READERS = operator.attrgetter(
    "client.Redis.__init__",
    "client.Redis.from_url",
    "client.ConnectionPool",
    "connection.parse_url",
    "connection.ConnectionPool.__init__",
    "connection.ConnectionPool.from_url",
    "connection.Connection.__init__",
    "connection.UnixDomainSocketConnection.__init__",
)

S = TypeVar("S")
T = TypeVar("T")
Connection: TypeAlias = Any  # redis-py's attributes differ from version to version


class NotNativeError(Exception):
    """The engine cannot stand in for a client; the text says why, and shows no value of a setting."""


def connect(items: Iterable[S], make: Callable[[S], SupportsSetEval]) -> list[SupportsSetEval]:
    """One client per item; none of them connects.

    Args:
        items: URLs (str or bytes), mappings of ``redis.StrictRedis`` arguments, or clients, which stay the same
            objects.
        make: the client of one item.

    Raises:
        Warning: an item cannot be used. The text is redis-py's where redis-py refused, less any password.
        TypeError: ``items`` is not iterable.
    """
    return [_or_warning(make, item, _secrets(item)) for item in items]


def _or_warning(make: Callable[[S], T], source: S, secrets: set[str]) -> T:
    """``make(source)``, and every failure a Warning, as in redlock-py, but without secrets in its text."""
    try:
        return make(source)
    except NotNativeError:
        raise
    except Exception as error:  # noqa: BLE001 - redlock-py's contract
        text = _scrubbed(str(error), secrets)
    # Raised out here, so that the error, which may quote a password, is not even the Warning's context.
    raise Warning(text)


def _secrets(item: object) -> set[str]:
    """What of an item no text may quote: a URL's login, of which urllib quotes pieces, and passwords."""
    if isinstance(item, bytes):
        item = item.decode(errors="replace")
    if isinstance(item, str):
        login = item.partition("://")[2].rpartition("@")[0]
        pieces = re.split(r"[:/?#@\[\]]", login)
        return {piece for text in pieces for piece in (text, unquote(text)) if piece}
    if isinstance(item, Mapping):
        return {str(value) for name, value in item.items() if value and "password" in str(name)}
    return set()


def _scrubbed(text: str, secrets: set[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


def _redis() -> Any:
    """redis-py, or what a caller's test has put in its place as `redlock.redis`."""
    return vars(sys.modules["redlock"]).get("redis", redis)


def client(item: Item, kind: Any = None, from_url: Callable[[str], Any] | None = None) -> SupportsSetEval:
    """The client for one item.

    Args:
        item: of a connection list.
        kind: what makes a client of a mapping; ``None``: what redis-py has for it now.
        from_url: the same for URLs.

    Raises:
        Exception: whatever redis-py raises; a TypeError for what is none of the three.
    """
    if isinstance(item, bytes):
        item = item.decode()
    if isinstance(item, str):
        if _sentinel.is_url(item):
            return _sentinel.client(item)
        found: SupportsSetEval = (from_url or _redis().StrictRedis.from_url)(redis_pys(item))
        return found
    if isinstance(item, Mapping):
        made: SupportsSetEval = (kind or _redis().StrictRedis)(**item)
        return made
    own = type(item)
    if any(base.__module__.startswith("redis.asyncio") for base in own.__mro__):
        message = f"Redlock cannot use {own.__module__}.{own.__qualname__}: asyncio clients are for AsyncRedlock"
        raise TypeError(message)
    if not (callable(getattr(item, "set", None)) and callable(getattr(item, "eval", None))):
        message = f"a master is a URL, a dict or a client with set and eval, not {own.__qualname__}"
        raise TypeError(message)
    return item


def _for_later(items: Iterable[Any]) -> Callable[[], list[SupportsSetEval]]:
    """Makes the clients of URLs and mappings later, of what is in them now, and by what would make them now."""
    kind, from_url = redis.client.Redis, redis.client.Redis.from_url
    items = [dict(item) if isinstance(item, Mapping) else item for item in items]
    return lambda: connect(items, lambda item: client(item, kind, from_url))


def _keys(items: Iterable[object]) -> list[object]:
    """What stands for URLs and mappings in :data:`_READ`; ``None`` for each that is to be read again in any case."""
    is_redis_pys = _redis().StrictRedis is redis.client.Redis
    readers = _READERS(redis) if is_redis_pys else ()
    plain = [_plain(item) if is_redis_pys else None for item in items]
    return [None if each is None else (each, *readers) for each in plain]


def _plain(item: object) -> object:
    """A URL or a mapping as a key; ``None`` if it may change, or be equal to another that is not the same."""
    if not isinstance(item, Mapping):
        return item if type(item) in _PLAIN else None
    if not all(type(value) in _PLAIN for value in item.values()):
        return None
    return tuple((name, type(value), value) for name, value in item.items())


def redis_pys(url: str) -> str:
    """A URL as redis-py writes it, which knows only one of two names."""
    return re.sub("^redis[+]unix://", "unix://", url)


class Clients:
    """The clients of a connection list, which are made when they are looked at for the first time."""

    def __init__(self, make: Callable[[], list[SupportsSetEval]]) -> None:
        self._make = make

    def made(self) -> list[Any]:
        """The clients, always the same: another thread may look as well."""
        made: list[Any] = vars(self).get("_made") or vars(self).setdefault("_made", self._make())
        return made


class Masters:
    """The servers of a manager and the engine over them, for as long as the servers stay the same.

    Attributes:
        servers: what this was made of; ``None`` where all was known without, until :meth:`made` is called.
        clients: of a connection list.
        engine: ``None`` unless it can honour every server in full.
        names: what logs call the servers.
        is_patched: tells whether another method was put in the place of redis-py's: that is to be called then.
        failing: by the identity of those whose own methods are called, what they last failed with, unless they have
            answered since, and how often.

    Raises:
        Warning: settings that no server can be reached with.
    """

    _mixture: tuple[list[Master], _Patches] | None = None

    def __init__(
        self,
        found: Sequence[Endpoint | str],
        servers: Collection[SupportsSetEval] | None,
        guards: Guards,
        clients: Clients | None = None,
        kinds: Collection[Connection] = (),
    ) -> None:
        self.servers = servers
        self.clients = clients
        self.failing: dict[int, tuple[str | None, int]] = {}
        known = [each for each in found if not isinstance(each, str)]
        self._endpoints = known
        self.names = [
            name(server) if isinstance(each, str) else each.address
            for each, server in zip(found, servers or found, strict=True)
        ]
        self.engine = Engine(known, logger.log, *guards) if known and len(known) == len(found) else None
        self.is_patched = _Patches(servers or (), kinds).are_there if self.engine else _never
        if self.engine or servers is None:
            return
        if guards != NO_GUARDS:
            message = "restart_guard and clock_guard need masters given as URLs, dicts or plain redis-py clients"
            raise Warning(message)
        _say_why_not(self.names, found, are_some_plain=bool(known))
        if known:
            stand_ins: list[Master] = [
                Client(server) if isinstance(each, str) else Native(each)
                for server, each in zip(servers, found, strict=True)
            ]
            plain = [server for server, each in zip(servers, found, strict=True) if not isinstance(each, str)]
            self._mixture = stand_ins, _Patches(plain)

    @classmethod
    def of_servers(cls, servers: Collection[SupportsSetEval], guards: Guards = NO_GUARDS) -> Masters:
        """The masters of these clients.

        Args:
            servers: redis-py's clients, or those of the caller.
            guards: of :func:`~redlock._arguments.guards`.

        Raises:
            Warning: settings that no server can be reached with.
        """
        servers = copy.copy(servers)
        return cls([_or_reason(server) for server in servers], servers, guards)

    @classmethod
    def of_items(cls, items: Iterable[S], make: Callable[[S], SupportsSetEval], guards: Guards = NO_GUARDS) -> Masters:
        """The masters of a connection list. Clients are made of its items if those were not read before.

        Args:
            items: as in :func:`connect`.
            make: the same.
            guards: of :func:`~redlock._arguments.guards`.

        Raises:
            Warning: as :func:`connect`, and as :meth:`of_servers`.
            TypeError: ``items`` is not iterable.
        """
        items = list(items)
        keys = _keys(items)
        read = [_READ.get(key) for key in keys]
        if items and all(read):
            endpoints, kinds = zip(*filter(None, read), strict=True)
            return cls(endpoints, None, guards, Clients(_for_later(items)), kinds)
        servers = connect(items, make)
        masters = cls.of_servers(servers, guards)
        masters.clients = Clients(lambda: servers)
        if masters.engine:
            for key, endpoint, server in zip(keys, masters._endpoints, servers, strict=True):  # noqa: SLF001 - of this class
                kind = cast("Any", server).connection_pool.connection_class
                if key is not None and kind in _WITHOUT_TLS:  # for TLS, files and the environment are read each time
                    if len(_READ) >= _MOST_READ:
                        _READ.clear()
                    _READ[key] = endpoint, kind
        return masters

    def made(self) -> list[Any]:
        """The servers, which are made now if they were not looked at before; a list of the caller's own."""
        if self.servers is None and self.clients:
            servers = self.clients.made()
            self.is_patched = _Patches(servers).are_there
            self.servers = servers
        return list(self.servers or ())

    def close_connections(self) -> None:
        """Have them closed with this, unless another manager uses them: there are other servers from now on."""
        if self.engine:
            self.engine.close_with_me()

    def one_by_one(self) -> Sequence[Master]:
        """The masters where no engine asks all of them: plain clients have one each, unless any of those is patched."""
        if self._mixture:
            stand_ins, patches = self._mixture
            if not patches.are_there():
                return stand_ins
        return [Client(server) for server in self.made()]

    def check_distinct(self) -> None:
        """Refuse one database named twice: it would have two votes. Several databases of one server are logged.

        Raises:
            Warning: two servers have the same address and database.
        """
        known = [endpoint.address for endpoint in self._endpoints]
        twice = sorted({address for address in known if known.count(address) > 1})
        if twice:
            message = f"listed twice: {', '.join(twice)}; each master has one vote"
            raise Warning(message)
        hosts = [address.rpartition("/")[0] for address in known]
        for host in sorted({host for host in hosts if hosts.count(host) > 1}):
            logger.warning("%s is listed with several databases: those fail together", host)


def _never() -> bool:
    return False


# Those that may be put in the place of redis-py's own, in one client or in a class.
_METHODS = ("set", "eval", "execute_command")
_CLIENT_METHODS = operator.attrgetter(*_METHODS)
_CONNECT = operator.attrgetter("connect")


class _Patches:
    """What may have been put in the place of redis-py's own methods, in clients or in their classes."""

    def __init__(self, servers: Collection[SupportsSetEval], kinds: Collection[Connection] = ()) -> None:
        self._kinds = {*kinds, *(cast("Any", server).connection_pool.connection_class for server in servers)}
        # What was last found in the classes, and may be passed by.
        self._passed: list[Any] = []
        # The live ones. These methods are inherited: they stand in there only when they were patched in, and then there
        # is more in there than before.
        self._namespaces = [vars(server) for server in servers]
        self._size = 0

    def are_there(self) -> bool:
        """Whether there are any now. Each call passes here: few steps of the interpreter's."""
        found = [_CLIENT_METHODS(redis.client.Redis), *map(_CONNECT, self._kinds)]
        if found != self._passed:
            if not all(map(does_as_redis_py, (*found[0], *found[1:]))):
                return True
            self._passed = found
        size = sum(map(len, self._namespaces))
        if size != self._size:
            if any(map(_is_patched_in, self._namespaces)):
                return True
            if all(map(frozenset(_METHODS).isdisjoint, self._namespaces)):
                self._size = size
        return False


def _is_patched_in(names: dict[str, Any]) -> bool:
    if "set" in names or "eval" in names:
        return True
    return "execute_command" in names and not does_as_redis_py(names["execute_command"])


def does_as_redis_py(method: object, depth: int = 4) -> bool:
    """Whether it is redis-py's own, or a wrapper that leads to that, as tracing libraries put in its place.

    Those change nothing that the servers see, and are put there for good. A mock leads nowhere.
    """
    if str(getattr(method, "__globals__", {}).get("__name__", "")).startswith("redis."):
        return True
    inner = [getattr(method, "__wrapped__", None)]
    for cell in getattr(method, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # it is empty
            inner.append(cell.cell_contents)
    return depth > 0 and any(callable(each) and does_as_redis_py(each, depth - 1) for each in inner)


def endpoint(server: SupportsSetEval) -> Endpoint | None:
    """The settings of one redis-py client; ``None`` unless it is a plain one and the engine can honour every setting.

    Raises:
        Warning: settings that no server can be reached with.
    """
    found = _or_reason(server)
    return None if isinstance(found, str) else found


def _or_reason(server: SupportsSetEval) -> Endpoint | str:
    """As :func:`endpoint`, but why there is none."""
    try:
        return _endpoint(server)
    except NotNativeError as error:
        return str(error)


def _endpoint(server: SupportsSetEval) -> Endpoint:
    kind = type(server)
    pool: Any = getattr(server, "connection_pool", None)
    if kind is not redis.client.Redis:
        message = f"it is a {kind.__module__}.{kind.__qualname__}"
        raise NotNativeError(message)
    if type(pool) not in _POOLS or pool.connection_class not in _CONNECTIONS:
        message = f"its connections are of a {type(pool).__qualname__} or a class that is not redis-py's"
        raise NotNativeError(message)
    secrets = _secrets(pool.connection_kwargs)
    # A connection as the pool would make it knows the defaults of its version of redis-py; it is never connected. Some
    # of what is redis-py's own it warns of.
    settings = {option: value for option, value in pool.connection_kwargs.items() if option not in REDIS_PYS_OWN}
    connection = _or_warning(lambda kind: kind(**settings), pool.connection_class, secrets)
    for option, value in pool.connection_kwargs.items():
        if not (_is_honoured(option, value) or (option == "connection_pool" and type(pool) is _sentinel.Pool)):
            message = f"its setting {option}"
            raise NotNativeError(message)
    return _or_warning(_read, connection, secrets)


def _say_why_not(names: Iterable[str], found: Iterable[Endpoint | str], *, are_some_plain: bool) -> None:
    """Log, once per manager, which masters are asked by their clients' own methods, and why.

    A plain client's caller, or one who mixes, may not expect it; with other clients there is no other way.
    """
    for master, reason in zip(names, found, strict=True):
        if isinstance(reason, str):
            level = logging.WARNING if are_some_plain or reason.startswith("its ") else logging.INFO
            text = "the engine cannot stand in for %s, which is called with its own methods and timeouts: %s"
            logger.log(level, text, master, reason)


def _is_honoured(name: str, value: object) -> bool:
    if name in _ONLY_AS:
        return value in _ONLY_AS[name]
    return name in _HONOURED or name in REDIS_PYS_OWN or not value


def _read(connection: Connection) -> Endpoint:
    username, password = _text(connection.username), _text(connection.password)
    provider = getattr(connection, "credential_provider", None)
    return Endpoint(
        **_place(connection),
        db=int(connection.db or 0),
        username=username,
        password=password or ("" if username else None),  # redis-py logs in with an empty password then
        credentials=functools.partial(_ask_for_login, provider) if provider else None,
        client_name=_text(connection.client_name),
        protocol=connection.protocol,
        # With 0 redis-py does not wait in `recv`, but asks again: no time of its own, here as well.
        socket_timeout=_chosen("socket_timeout", connection) or None,
        socket_connect_timeout=_chosen("socket_connect_timeout", connection) or None,
        health_check_interval=connection.health_check_interval or None,
        tls=_tls(connection) if isinstance(connection, redis.connection.SSLConnection) else None,
    )


def _chosen(name: str, connection: Connection) -> float | None:
    """A timeout that the caller chose: redis-py 8 has five seconds where none was, and does not tell the two apart."""
    value: float | None = getattr(connection, name)
    return None if value == _REDIS_PYS_DEFAULTS[name].default else value


def _ask_for_login(provider: Any, tell: Callable[[str | None, str | None, str | None], None]) -> None:
    """Ask a credential provider, as redis-py does for each connection, and tell what it said.

    The texts of its errors may have secrets in them: their type must do.
    """
    try:
        username, password = _login_of(provider.get_credentials())
    except BaseException as error:  # noqa: BLE001 - this is all of a thread
        tell(None, None, f"the credential provider raised {type(error).__qualname__}")
    else:
        tell(username, password, None)


def _login_of(credentials: Sequence[object]) -> tuple[str | None, str | None]:
    username, password = (None, *credentials) if len(credentials) == 1 else credentials
    return _text(username), _text(password)


def _text(value: object) -> str | None:
    """A login's parts as redis-py sends them: numbers come out of configuration files, bytes out of secret stores."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = repr(value)
    if not isinstance(value, (str, type(None))):
        message = f"its login has a part that is a {type(value).__qualname__}"
        raise NotNativeError(message)
    return value or None


def _place(connection: Connection) -> dict[str, Any]:
    if isinstance(connection, redis.connection.UnixDomainSocketConnection):
        return {"path": connection.path}
    options = dict(connection.socket_keepalive_options) if connection.socket_keepalive else {}
    if not all(name in _TCP_OPTIONS and isinstance(value, int) for name, value in options.items()):
        message = "its setting socket_keepalive_options"
        raise NotNativeError(message)
    where = {"host": "localhost" if connection.host is None else connection.host, "port": connection.port}
    if isinstance(connection, redis.sentinel.SentinelManagedConnection):
        where = _sentinel.place(connection.connection_pool)
    return {
        **where,
        "socket_keepalive": bool(connection.socket_keepalive),
        "socket_keepalive_options": options or None,
    }


def _tls(connection: Connection) -> dict[str, object]:
    flags = _verify_flags(connection)
    files = {name: getattr(connection, name) for name in ("ca_certs", "ca_path", "certfile", "keyfile")}
    settings = {
        "cert_reqs": _CERT_REQS[connection.cert_reqs],
        "check_hostname": bool(connection.check_hostname),
        "ca_data": connection.ca_data,
        "partial_chain": ssl.VERIFY_X509_PARTIAL_CHAIN in flags,
        "strict": ssl.VERIFY_X509_STRICT in flags,
        "min_version": _min_version(getattr(connection, "ssl_min_version", None)),  # redis-py 5.0 has none
        **{name: os.fspath(path) for name, path in files.items() if path is not None},
    }
    return {name: value for name, value in settings.items() if value is not None}


def _verify_flags(connection: Connection) -> ssl.VerifyFlags:
    flags = _VERIFY_FLAGS
    for flag in getattr(connection, "ssl_include_verify_flags", None) or ():  # older versions of redis-py have none
        flags |= flag
    for flag in getattr(connection, "ssl_exclude_verify_flags", None) or ():
        flags &= ~flag
    if flags & ~_KNOWN_FLAGS:
        message = "its setting ssl_include_verify_flags"
        raise NotNativeError(message)
    return flags


def _min_version(version: int | None) -> str | None:
    if version is None:
        return None
    try:
        return _TLS_VERSIONS[ssl.TLSVersion(version)]
    except (KeyError, ValueError):
        message = "its setting ssl_min_version"
        raise NotNativeError(message) from None


def name(server: object) -> str:
    """What logs call a server: where it is, if it says so, and nothing else of it."""
    if isinstance(server, Native):
        return server.address
    pool = getattr(server, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    if not isinstance(settings, Mapping):
        return type(server).__qualname__
    if isinstance(pool, redis.sentinel.SentinelConnectionPool):
        return f"sentinel({pool.service_name})/{settings.get('db') or 0}"
    place = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
    return f"{place}/{settings.get('db') or 0}"
