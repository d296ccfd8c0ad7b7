"""Calls that both libraries answer alike: run by each in its own environment, compared by test_differential.py.

Usage: ``python differential.py URL...`` with the URLs of at least three empty masters. Prints one JSON object: from the
name of a call to its outcome. Needs nothing but ``redlock`` and ``redis``.
"""

from __future__ import annotations

import itertools
import json
import logging
import pickle
import re
import sys
from decimal import Decimal
from fractions import Fraction
from unittest import mock
from urllib.parse import urlsplit

import redis

import redlock
from redlock import CannotObtainLock, Lock, MultipleRedlockException, Redlock

logging.disable()
URLS = sys.argv[1:]
TTL = 20_000
CALLS = {}
_COUNTER = itertools.count()


def call(function):
    """Have ``function`` be one of the calls."""
    CALLS[function.__name__] = function
    return function


def each(**cases):
    """Have a function be one call per case, which is its argument."""

    def add(function):
        for name, case in cases.items():
            CALLS[f"{function.__name__}:{name}"] = lambda case=case: function(case)
        return function

    return add


def shown(value):
    """A value as JSON; what is random or measured as its kind."""
    if isinstance(value, Lock):
        kind = type(value)
        about = [kind.__module__, kind.__name__, list(value._fields)]
        return {
            "lock": about,
            "valid": 0 < value.validity <= TTL,
            "resource": shown(value.resource),
            "key": shown(value.key),
        }
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(shown, value)]
    if isinstance(value, bytes) and re.fullmatch(rb"[A-Za-z0-9]{22}", value):
        return "22 letters and digits"
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return f"{type(value).__name__} {value!r}" if isinstance(value, (bytes, float)) else type(value).__name__


def outcome(function):
    """What a call returns or raises; the texts of errors where the contract has them."""
    try:
        return {"returns": shown(function())}
    except (AttributeError, ValueError, CannotObtainLock, MultipleRedlockException) as error:
        # Only what is said up to a colon: what may stand behind it differs (the reason why text cannot be encoded).
        return {"raises": type(error).__name__, "says": str(error).split(": ")[0]}
    except Exception as error:  # noqa: BLE001 - comparing them is the point
        return {"raises": type(error).__name__}


def manager(count=3, retry_count=1, **options):
    """A manager of the first masters."""
    return Redlock(URLS[:count], retry_count, 0.01, **options)


def name():
    """A resource that no other call has."""
    return f"resource{next(_COUNTER)}"


def values(resource):
    """What each master holds."""
    return [redis.StrictRedis.from_url(url).get(resource) for url in URLS[:3]]


# -- lock and unlock ---------------------------------------------------------------------------------------------------


@each(one=1, two=2, three=3)
def lock(count):
    return manager(count).lock(name(), TTL)


@each(one=1, three=3)
def lock_twice(count):
    dlm, resource = manager(count, 2), name()
    return [dlm.lock(resource, TTL), dlm.lock(resource, TTL), manager(count).lock(resource, TTL)]


@call
def lock_unlock_lock():
    dlm, resource = manager(), name()
    first = dlm.lock(resource, TTL)
    after = [dlm.unlock(first), values(resource)]
    return [first, *after, dlm.lock(resource, TTL)]


@call
def lock_expires():
    dlm, resource = Redlock(URLS[:3], 100, 0.01), name()
    return [bool(dlm.lock(resource, 100)), bool(dlm.lock(resource, 100))]


@each(
    text="r", empty="", unicode="ключ", data=b"\xffdata", view=memoryview(b"view"), integer=5, negative=-5, real=1.5,
    infinite=float("inf"), nul="a\0b", surrogate="\ud800",
)  # fmt: skip
def resource(value):
    dlm = manager(1)
    taken = dlm.lock(value, TTL)
    keys = sorted(repr(key) for key in redis.StrictRedis.from_url(URLS[0]).keys("*"))
    dlm.unlock(taken)
    kept = taken.resource is value
    return [
        kept,
        [key for key in keys if "resource" not in key],
        bool(dlm.lock(value, TTL)),
        dlm.unlock(Lock(0, value, b"")),
    ]


@each(
    whole=100.0, part=0.5, fraction=Fraction(100), none=None, text="100", decimal=Decimal(100), listed=[1],
    zero=0, negative=-1, true=True, false=False, one=1, two=2,
)  # fmt: skip
def ttl(value):
    return manager(1).lock(name(), value)


@each(
    false=False, none=None, text="name", plain=(1, "r", b"key"), number=5, wrong=Lock(0, "nobody has it", b"key"),
    as_text=Lock(0, "nobody has it", "key"),
)  # fmt: skip
def unlock(value):
    return manager().unlock(value)


@call
def unlock_twice():
    dlm, resource = manager(), name()
    taken = dlm.lock(resource, TTL)
    return [dlm.unlock(taken), dlm.unlock(taken), values(resource)]


@call
def unlock_by_keyword():
    return manager().unlock(lock=Lock(1, "r", b"key"))


@call
def unlock_with_the_wrong_key():
    dlm, resource = manager(1), name()
    taken = dlm.lock(resource, TTL)
    dlm.unlock(Lock(0, resource, b"wrong"))
    return values(resource)[0] == taken.key


@call
def unlock_by_another_manager_with_a_key_of_text():
    resource = name()
    taken = manager().lock(resource, TTL)
    manager().unlock(Lock(validity=0, resource=resource, key=taken.key.decode()))
    return values(resource)


@call
def a_foreign_value_is_not_unlocked():
    resource = name()
    redis.StrictRedis.from_url(URLS[0]).lpush(resource, "x")
    dlm = manager(1)
    return [dlm.lock(resource, TTL), dlm.unlock(Lock(0, resource, b"key"))]


@call
def the_key_is_the_value():
    dlm, resource = manager(1), name()
    return dlm.lock(resource, TTL).key == dlm.servers[0].get(resource)


# -- retries -----------------------------------------------------------------------------------------------------------


class Refusing:
    """A server that holds everything already."""

    def __init__(self):
        self.asked = 0

    def set(self, *_args, **_options):
        self.asked += 1

    def eval(self, *_args):
        return 0


@each(
    one=1, three=3, default=None, zero=0, real=2.5, negative=-1, fraction=Fraction(5, 2), decimal=Decimal("1.5"),
    text="3", yes=True, no=False, nan=float("nan"),
)  # fmt: skip
def retry_count(value):
    server = Refusing()
    dlm = Redlock([server], value, 0.001)
    return [dlm.retry_count, dlm.lock("r", TTL), server.asked]


@each(default=None, zero=0, one=1, real=0.5)
def retry_delay(value):
    return Redlock(URLS[:1], retry_delay=value).retry_delay


# -- making one --------------------------------------------------------------------------------------------------------


@call
def attributes():
    dlm = Redlock(URLS[:3])
    about = [dlm.quorum, dlm.retry_count, dlm.retry_delay, len(dlm.servers), type(dlm.servers).__name__]
    return [*about, dlm.default_retry_count, dlm.default_retry_delay, dlm.clock_drift_factor, dlm.unlock_script]


@each(
    unknown={"cat": "hog"}, scheme="http://h", bare="localhost:6379", port="redis://h:port", option="redis://h?db=x&cat=1&socket_timeout=soon",
)  # fmt: skip
def bad_item(item):
    try:
        return Redlock([item])
    except Warning as error:
        return [type(error).__name__, str(error)]


@each(nothing=[], none=None, number=3, mapping={"host": "h"}, text="redis://h")
def bad_list(items):
    return Redlock(items)


@each(
    bare="redis://", tls="rediss://h", socket="unix:///s", options="redis://h?socket_timeout=1&db=2", empty={},
    strings={"host": "h", "port": "7000", "db": None, "password": None}, client=redis.StrictRedis(host="h"),
)  # fmt: skip
def item(value):
    (server,) = Redlock([value]).servers
    kwargs = server.connection_pool.connection_kwargs
    place = {key: kwargs[key] for key in ("host", "port", "db", "path", "password", "socket_timeout") if key in kwargs}
    return [type(server).__name__, json.dumps(place), server is value]


@call
def a_mix_of_items():
    one, two, three = URLS[:3]
    place = urlsplit(two)
    items = [one, {"host": place.hostname, "port": str(place.port)}, redis.StrictRedis.from_url(three)]
    dlm = Redlock(items)
    resource = name()
    return [dlm.lock(resource, TTL), dlm.lock(resource, TTL), dlm.servers[2] is items[2]]


# -- hooks and doubles -------------------------------------------------------------------------------------------------


@call
def hooks_overridden():
    seen = []

    class Own(Redlock):
        def lock_instance(self, server, resource, val, ttl):
            seen.append(["lock", resource, val, ttl])
            return super().lock_instance(server, resource, val, ttl)

        def unlock_instance(self, server, resource, val):
            seen.append(["unlock", resource, val])
            return super().unlock_instance(server, resource, val)

        def get_unique_id(self):
            return b"own key"

    dlm, resource = Own(URLS[:3], 1), "hooked"
    taken = dlm.lock(resource, TTL)
    dlm.unlock(taken)
    return [taken, seen]


@call
def hooks_called():
    dlm, resource = manager(1), name()
    server = dlm.servers[0]
    first = [dlm.lock_instance(server, resource, b"k", TTL), dlm.lock_instance(server, resource, b"l", TTL)]
    return [*first, dlm.unlock_instance(server, resource, b"k"), values(resource)[0], dlm.get_unique_id()]


@call
def test_double():
    class Fake(Refusing):
        calls = []  # noqa: RUF012 - one for all

        @classmethod
        def from_url(cls, url):
            cls.calls.append(url)
            return cls()

        def set(self, *args, **options):
            self.calls.append(["set", args, sorted(options.items())])
            return True

        def eval(self, *args):
            self.calls.append(["eval", args])

    with mock.patch("redis.StrictRedis", Fake):
        dlm = Redlock(["redis://h"])
    dlm.unlock(dlm.lock("r", TTL))
    return Fake.calls


# -- types -------------------------------------------------------------------------------------------------------------


@call
def the_lock_class():
    made = Lock(99, "r", b"key")
    changed = made._replace(validity=1)
    again = pickle.loads(pickle.dumps(made))
    facts = [
        repr(made),
        made == (99, "r", b"key"),
        hash(made) == hash(tuple(made)),
        bool(Lock(0, "", b"")),
        again == made,
    ]
    return [*facts, sorted(made._asdict()), changed.validity, Lock.__bases__[0].__name__, pickle.dumps(made, 2).hex()]


@call
def the_exception_class():
    error = MultipleRedlockException([redis.ConnectionError("a"), redis.TimeoutError("b")])
    return [str(error), repr(error), [type(each).__name__ for each in error.errors], isinstance(error, Exception)]


@call
def names():
    return [
        hasattr(redlock, wanted)
        for wanted in ("Redlock", "Lock", "MultipleRedlockException", "CannotObtainLock", "redis")
    ]


if __name__ == "__main__":
    print(json.dumps({name: outcome(function) for name, function in CALLS.items()}))  # noqa: T201 - its result
