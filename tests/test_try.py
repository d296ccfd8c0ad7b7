"""`try_lock`, `try_unlock` and `try_extend`: what became of it, and why not, by both managers on real servers."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from redlock import AsyncRedlock, Attempt, Lock, Redlock
from support.locks import TTL, held, nothing_left
from support.loops import new_loop, run
from support.scripted import Late
from support.servers import wait_until


class Own(redis.Redis):
    """A subclass may do anything, so it is called."""


class AsyncOwn(redis.asyncio.Redis):
    """The same for asyncio."""


class Driver:
    """One way to call a manager, so that each test is about all of them."""

    def __init__(self, kind):
        self.is_async = kind.startswith("async")
        self._calls_clients = kind.endswith("clients")

    def manager(self, places):
        return (AsyncRedlock if self.is_async else Redlock)([self._item(place) for place in places], 3, 0.02)

    def _item(self, place):
        if not self._calls_clients:
            return place.url
        # By default redis-py tries for many seconds.
        if self.is_async:
            return AsyncOwn.from_url(place.url, retry=AsyncRetry(NoBackoff(), 0))
        return Own.from_url(place.url, retry=Retry(NoBackoff(), 0))

    def __call__(self, places, calls):
        """Make a manager, and have ``calls`` use it: a generator of calls, which is sent what each returned."""
        dlm = self.manager(places)
        if self.is_async:
            run(self._await_all(dlm, calls(dlm)), new_loop("asyncio"))
            return
        generator, result = calls(dlm), None
        try:
            while True:
                result = generator.send(result)
        except StopIteration:
            pass

    async def _await_all(self, dlm, generator):
        result, error = None, None
        try:
            while True:
                call = generator.throw(error) if error else generator.send(result)
                error = None
                try:
                    result = await call
                except Exception as raised:  # noqa: BLE001 - the generator is to have it
                    error = raised
        except StopIteration:
            pass
        finally:
            for client in dlm._clients.clients if dlm._clients else ():
                await client.aclose()


@pytest.fixture(params=["engine", "clients", "async engine", "async clients"])
def driver(request):
    return Driver(request.param)


@pytest.fixture
def servers(masters):
    return masters(3)


def occupy(servers, name="r"):
    for server in servers:
        server.admin.set(name, "another", px=TTL)


def names(servers):
    return [f"127.0.0.1:{server.port}/0" for server in servers]


def said(attempt):
    return [word for _, word in attempt.masters]


def test_what_is_granted_comes_with_its_lock(driver, servers):
    def calls(dlm):
        attempt = yield dlm.try_lock("r", TTL)
        assert attempt
        assert (attempt.reason, attempt.failed) == (None, ())
        assert isinstance(attempt.lock, Lock)
        assert attempt.lock.resource == "r"
        assert 0 < attempt.lock.validity < TTL
        assert [master for master, _ in attempt.masters] == names(servers)
        assert said(attempt).count("granted") >= 2
        assert held(servers).count(attempt.lock.key) >= 2
        yield dlm.unlock(attempt.lock)
        nothing_left(servers)
        assert (dlm.stats().acquired, dlm.stats().released) == (1, 1)

    driver(servers, calls)


def test_what_others_hold_is_contended(driver, servers):
    occupy(servers)

    def calls(dlm):
        attempt = yield dlm.try_lock("r", TTL)
        assert not attempt
        assert (attempt.lock, attempt.reason, attempt.failed) == (None, "contended", ())
        assert said(attempt).count("refused") >= 2
        assert (dlm.stats().contended, dlm.stats().unavailable) == (1, 0)

    driver(servers, calls)


def test_it_waits_if_it_is_told_to(driver, servers):
    occupy(servers)

    def calls(dlm):
        assert not (yield dlm.try_lock("r", TTL, timeout=None, retry_count=2, retry_delay=0.001))
        for server in servers:
            server.admin.pexpire("r", 200)
        assert (yield dlm.try_lock("r", TTL, timeout=None, retry_count=math.inf, retry_delay=0.01))

    driver(servers, calls)


def test_an_outage_is_unavailable_and_tells_who_failed(driver, servers):
    lock = Lock(0, "r", b"key")
    for server in servers[:2]:
        server.kill()

    def calls(dlm):
        for attempt in (
            (yield dlm.try_lock("r", TTL)),
            (yield dlm.try_unlock(lock)),
            (yield dlm.try_extend(lock, TTL)),
        ):
            assert not attempt
            assert (attempt.lock, attempt.reason) == (None, "unavailable")
            assert [master for master, _ in attempt.masters] == names(servers)
            assert [master for master, _ in attempt.failed] == names(servers)[:2]
            assert all(attempt.failed)
            assert set(attempt.failed) < set(attempt.masters)
        assert dlm.stats().unavailable == 1

    driver(servers, calls)
    nothing_left(servers[2:])


def test_a_minority_that_is_down_is_told_of_and_fails_nothing(driver, servers):
    servers[0].kill()

    def calls(dlm):
        attempt = yield dlm.try_lock("r", TTL)
        assert attempt.lock
        wait_until(lambda: held(servers[1:]) == [attempt.lock.key] * 2)
        assert (yield dlm.try_extend(attempt.lock, TTL))
        attempt = yield dlm.try_unlock(attempt.lock)
        assert attempt
        # It was never sent the lock, which only the engine knows.
        said = dict(attempt.masters)[names(servers)[0]]
        assert said == "not asked" or attempt.failed == ((names(servers)[0], said),)

    driver(servers, calls)


@pytest.mark.parametrize("driver", ["clients", "async clients"], indirect=True)  # the engine waits for no such answer
def test_a_quorum_that_grants_too_late_is_neither_contended_nor_an_outage(driver, scripted):
    server = scripted(lambda command: Late(0.2, b"+OK\r\n") if command.name == "SET" else None)

    def calls(dlm):
        attempt = yield dlm.try_lock("r", 100)
        assert (attempt.lock, attempt.reason) == (None, "expired")

    driver([server], calls)


def test_a_release_tells_whether_it_was_held(driver, servers):
    def calls(dlm):
        yield dlm.inspect("r")  # connects to all
        lock = (yield dlm.try_lock("r", TTL)).lock
        wait_until(lambda: held(servers) == [lock.key] * 3)
        assert not (yield dlm.try_unlock(lock._replace(key=b"wrong")))
        assert held(servers) == [lock.key] * 3
        attempt = yield dlm.try_unlock(lock)
        assert attempt
        assert (attempt.lock, attempt.reason, attempt.failed) == (None, None, ())
        assert said(attempt).count("released") >= 2
        nothing_left(servers)
        attempt = yield dlm.try_unlock(lock)
        assert not attempt
        assert (attempt.reason, said(attempt).count("absent") >= 2) == ("expired", True)
        assert dlm.stats().released == 1

    driver(servers, calls)


def test_a_lock_that_a_minority_still_had_was_released(driver, servers):
    servers[0].admin.set("r", "key", px=TTL)
    servers[2].kill()  # so that a quorum is these two, and the release waits for both

    def calls(dlm):
        attempt = yield dlm.try_unlock(Lock(0, "r", "key"))
        assert attempt
        assert said(attempt)[:2] == ["released", "absent"]

    driver(servers, calls)
    nothing_left(servers[:2])


def test_an_extension_returns_the_lock_with_its_new_validity(driver, servers):
    def calls(dlm):
        lock = (yield dlm.try_lock("r", TTL)).lock
        attempt = yield dlm.try_extend(lock, 2 * TTL)
        assert attempt
        assert TTL < attempt.lock.validity < 2 * TTL
        assert (attempt.lock.resource, attempt.lock.key) == ("r", lock.key)
        assert said(attempt).count("extended") >= 2
        wait_until(lambda: sum(server.admin.pttl("r") > TTL for server in servers) >= 2)

    driver(servers, calls)


def test_an_extension_tells_who_took_it_and_that_it_has_expired(driver, servers):
    def calls(dlm):
        attempt = yield dlm.try_extend(Lock(0, "r", b"key"), TTL)
        assert not attempt
        assert (attempt.lock, attempt.reason, attempt.failed) == (None, "expired", ())
        assert said(attempt).count("absent") >= 2
        occupy(servers)
        attempt = yield dlm.try_extend(Lock(0, "r", b"key"), TTL)
        assert (attempt.lock, attempt.reason, attempt.failed) == (None, "taken over", ())
        assert said(attempt).count("taken") >= 2

    driver(servers, calls)
    assert held(servers) == [b"another"] * 3


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda dlm, lease: dlm.try_lock(None, TTL), TypeError, "resource must be"),
        (lambda dlm, lease: dlm.try_lock(["a", "b"], TTL), TypeError, "resource must be"),
        (lambda dlm, lease: dlm.try_lock("r", 100.0), ValueError, "not an integer"),
        (lambda dlm, lease: dlm.try_lock("r", "1"), TypeError, "ttl must be"),
        (lambda dlm, lease: dlm.try_lock("r", 2), ValueError, "validity"),
        (lambda dlm, lease: dlm.try_lock("r", TTL, timeout=-1), ValueError, "timeout must be"),
        (lambda dlm, lease: dlm.try_lock("r", TTL, retry_count=0), ValueError, "retry_count must be"),
        (lambda dlm, lease: dlm.try_unlock(False), AttributeError, "resource"),
        (lambda dlm, lease: dlm.try_unlock(Lock(0, "r", None)), TypeError, "key must be"),
        (lambda dlm, lease: dlm.try_unlock(lease), TypeError, r"release\(\)"),
        (lambda dlm, lease: dlm.try_extend(False, TTL), AttributeError, "resource"),
        (lambda dlm, lease: dlm.try_extend(Lock(0, "r", b"key"), 2), ValueError, "validity"),
        (lambda dlm, lease: dlm.try_extend(lease, TTL), TypeError, r"extend\(\)"),
    ],
)
def test_bad_input_raises_and_sends_nothing(driver, masters, call, error, text):
    servers = masters(1)

    def calls(dlm):
        lease = yield dlm.acquire("lease", TTL)
        with pytest.raises(error, match=text):
            yield call(dlm, lease)
        assert servers[0].keys() == {b"lease"}
        lease.ensure(TTL / 2)
        yield lease.release()

    driver(servers, calls)


def test_keys_of_the_callers_own_are_used(servers):
    class Keyed(Redlock):
        def get_unique_id(self):
            return "own"

    dlm = Keyed([server.url for server in servers])
    attempt = dlm.try_lock("r", TTL)
    assert held(servers).count(b"own") >= 2
    assert dlm.try_unlock(attempt.lock)


def test_an_attempt_is_a_value_that_shows_no_key(servers):
    dlm = Redlock([server.url for server in servers])
    attempt = dlm.try_lock("r", TTL)
    assert pickle.loads(pickle.dumps(attempt)) == attempt
    assert hash(attempt) == hash(dataclasses.replace(attempt))
    with pytest.raises(dataclasses.FrozenInstanceError):
        attempt.reason = None
    assert attempt.lock.key.decode() not in repr(attempt)
    assert isinstance(attempt, Attempt)
    dlm.unlock(attempt.lock)
