"""COMPAT: what `lock` and `unlock` take, return and raise, and what is changed on purpose."""

from __future__ import annotations

import enum
import itertools
import json
import logging
import math
import pickle
import random
import re
import string
import subprocess
import sys
import time
from collections import namedtuple
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace

import pydantic
import pytest
import redis

from redlock import Lock, MultipleRedlockException, Redlock
from redlock._failures import log_failures
from redlock._redlock import Vote
from support.locks import PROMPT, TTL, held, manager, nothing_left
from support.scripted import NIL
from support.servers import wait_until

LETTERS = set((string.ascii_letters + string.digits).encode())


class Latin(redis.Redis):
    """A client whose own methods are called."""


@pytest.fixture(params=["engine", "objects"])
def manage(request):
    """Makes a manager of servers, one way or the other: most promises hold on both."""

    def make(servers, retry_count=3, retry_delay=0.02):
        if request.param == "engine":
            dlm = manager(servers, retry_count, retry_delay)
            assert dlm._masters.engine is not None
            return dlm
        clients = [server.client() for server in servers]
        for client in clients:
            client.__class__ = Latin
        dlm = Redlock(clients, retry_count, retry_delay)
        assert dlm._masters.engine is None
        return dlm

    return make


# -- lock --------------------------------------------------------------------------------------------------------------


def test_lock_is_a_lock_or_false(masters, manage):
    servers = masters(3)
    dlm = manage(servers)
    lock = dlm.lock("r", TTL)
    assert type(lock) is Lock
    assert dlm.lock("r", TTL) is False
    dlm.unlock(lock)
    assert dlm.lock(resource="r", ttl=TTL)


def test_an_outage_is_false_and_logged(masters, manage, caplog):
    servers = masters(3)
    dlm = manage(servers)
    for server in servers[:2]:
        server.kill()
    with caplog.at_level(logging.WARNING, "redlock"):
        assert dlm.lock("r", TTL) is False
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for server in servers[:2]:
        assert any(str(server.port) in text and "gives no vote" in text for text in said)
    assert held(servers[2:]) == [None]


def test_an_outage_is_logged_once_and_so_is_its_end(masters, manage, caplog):
    (server,) = masters(1)
    dlm = manage([server])
    with caplog.at_level(logging.INFO, "redlock"):
        server.kill()
        for _ in range(3):
            assert dlm.lock("r", TTL) is False
        server.restart()
        wait_until(lambda: dlm.lock("r", TTL))
        dlm.lock("r", TTL)
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "gives no vote" in text]) == 1
    assert len([text for text in said if "answers again" in text]) == 1


def test_the_key_in_redis_is_the_resource_and_its_value_the_key(masters, manage):
    servers = masters(3)
    dlm = manage(servers)
    dlm.unlock(Lock(0, "r", b"nobody's"))  # a master that is not yet connected when the others decide is not asked
    lock = dlm.lock("r", TTL)
    wait_until(lambda: held(servers) == [lock.key] * 3)
    assert [server.keys() for server in servers] == [{b"r"}] * 3
    assert all(0 < server.admin.pttl("r") <= TTL for server in servers)


def test_the_lock(masters, manage):
    resource = Name("resource")
    lock = manage(masters(1)).lock(resource, TTL)
    assert type(lock.validity) is int
    assert 0 < lock.validity <= TTL - int(TTL * 0.01) - 2
    assert lock.resource is resource
    assert type(lock.key) is bytes
    assert len(lock.key) == 22
    assert set(lock.key) <= LETTERS


class Color(enum.IntEnum):
    RED = 7


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "resource",
    [
        "r",
        "",
        "ключ 🔑",
        b"bytes \xff\x00",
        memoryview(b"view"),
        5,
        -5,
        1.5,
        float("inf"),
        Color.RED,
        Name("name"),
        "nul\0",
    ],
)
def test_a_resource_is_encoded_as_redis_py_encodes_it(masters, manage, resource):
    (server,) = masters(1)
    dlm = manage([server])
    lock = dlm.lock(resource, TTL)
    assert lock.resource is resource
    assert server.keys() == {server.admin.get_encoder().encode(resource)}
    assert server.get(resource) == lock.key
    assert dlm.lock(resource, TTL) is False
    dlm.unlock(lock)
    assert server.keys() == set()


@pytest.mark.parametrize("ttl", [100.0, 0.5, float("nan"), Fraction(100)])
def test_a_ttl_that_is_no_int_is_a_value_error(scripted, ttl):
    server = scripted()
    with pytest.raises(ValueError, match=f"^ttl {re.escape(str(ttl))} is not an integer$"):
        Redlock([server.url]).lock("r", ttl)
    assert server.commands == []


@pytest.mark.parametrize("ttl", [None, "100", Decimal(100), [100], b"1"])
def test_a_ttl_that_is_no_number_is_a_type_error(scripted, ttl):
    server = scripted()
    with pytest.raises(TypeError, match="ttl must be an int"):
        Redlock([server.url]).lock("r", ttl)
    assert server.commands == []


@pytest.mark.parametrize("ttl", [10**20, 2**63, 2**62 + 1])
def test_changed_a_ttl_that_no_server_can_hold_is_a_value_error(scripted, ttl):
    server = scripted()
    with pytest.raises(ValueError, match=f"ttl must be at most {2**62} ms, not {ttl}"):
        Redlock([server.url]).lock("r", ttl)
    assert server.commands == []


@pytest.mark.every_kind
def test_the_longest_ttl(masters):
    (server,) = masters(1)
    lock = Redlock([server.url]).lock("r", 2**62)
    assert lock.validity > 2**61
    assert server.get("r") == lock.key


@pytest.mark.parametrize("ttl", [0, -1, -(10**20), True, False, 1, 2])
def test_a_ttl_that_leaves_no_validity_is_false(scripted, ttl):
    server = scripted()
    assert Redlock([server.url], 2, 0.01).lock("r", ttl) is False
    assert server.commands == []


@pytest.mark.parametrize("resource", [None, True, False, (), ("a", "b"), [], {}, object(), bytearray(b"r")])
def test_changed_a_resource_that_cannot_be_sent_is_a_type_error_at_once(scripted, resource):
    server = scripted()
    with pytest.raises(TypeError, match="resource must be str, bytes, memoryview, int or float, not"):
        Redlock([server.url]).lock(resource, TTL)
    for client in (redis.Redis(port=server.port, encoding="latin-1"), Latin(port=server.port)):
        with pytest.raises(TypeError, match="resource must be"):
            Redlock([client]).lock(resource, TTL)
    assert server.commands == []


def test_a_lone_surrogate_is_a_value_error(scripted):
    server = scripted()
    with pytest.raises(ValueError, match="resource must be text that utf-8 can hold"):
        Redlock([server.url]).lock("\ud800", TTL)
    with pytest.raises(ValueError, match="key must be text that utf-8 can hold"):
        Redlock([server.url]).unlock(Lock(0, "r", "\ud800"))
    assert server.commands == []


def test_a_resource_of_a_megabyte_is_fine_and_of_65_is_refused(masters):
    (server,) = masters(1)
    dlm = Redlock([server.url])
    lock = dlm.lock("r" * 2**20, TTL)
    dlm.unlock(lock)
    assert lock
    with pytest.raises(ValueError, match="resource must not be longer than 67108864 bytes, this one is 68157440"):
        dlm.lock("r" * (65 * 2**20), TTL)
    assert server.keys() == set()


# -- Lock --------------------------------------------------------------------------------------------------------------

LOCK = Lock(99, "r", b"key")


def test_lock_is_a_plain_named_tuple():
    reference = namedtuple("Lock", ("validity", "resource", "key"))  # noqa: PYI024 - as redlock-py makes it
    assert (Lock.__module__, Lock.__name__, Lock.__bases__) == ("redlock", "Lock", (tuple,))
    assert Lock._fields == reference._fields
    assert Lock(validity=99, resource="r", key=b"key") == LOCK == (99, "r", b"key")
    assert repr(LOCK) == repr(reference(*LOCK))
    assert LOCK._asdict() == {"validity": 99, "resource": "r", "key": b"key"}
    assert LOCK._replace(validity=1) == (1, "r", b"key")
    assert Lock._make([99, "r", b"key"]) == LOCK
    validity, resource, key = LOCK
    assert (validity, resource, key) == LOCK
    assert hash(LOCK) == hash((99, "r", b"key"))
    assert Lock(0, "", b"")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_lock_pickles(protocol):
    copy = pickle.loads(pickle.dumps(LOCK, protocol))
    assert copy == LOCK
    assert type(copy) is Lock


def test_lock_is_a_pydantic_field_and_goes_through_json(masters, manage):
    (server,) = masters(1)
    dlm = manage([server])

    class Job(pydantic.BaseModel):
        lock: Lock

    lock = dlm.lock("r", TTL)
    job = Job(lock=lock)
    assert job.lock == lock
    again = Job.model_validate_json(job.model_dump_json())
    assert again.lock == (lock.validity, "r", lock.key.decode())
    dlm.unlock(again.lock)
    assert server.keys() == set()


def test_lock_through_the_standard_librarys_json(masters, manage):
    (server,) = masters(1)
    dlm = manage([server])
    lock = dlm.lock("r", TTL)
    text = json.dumps({**lock._asdict(), "key": lock.key.decode()})
    dlm.unlock(Lock(**json.loads(text)))
    assert server.keys() == set()


# -- unlock ------------------------------------------------------------------------------------------------------------


def test_unlock_returns_none_whatever_became_of_the_lock(masters, manage):
    servers = masters(3)
    dlm = manage(servers)
    lock = dlm.lock("r", TTL)
    assert dlm.unlock(lock=lock) is None
    nothing_left(servers)
    assert dlm.unlock(lock) is None  # twice
    other = dlm.lock("r", TTL)
    assert dlm.unlock(lock) is None  # another's
    assert dlm.unlock(Lock(0, "r", b"wrong")) is None
    assert held(servers).count(other.key) >= 2


@pytest.mark.parametrize("as_text", [False, True])
def test_unlock_takes_anything_with_a_resource_and_a_key(masters, manage, as_text):
    (server,) = masters(1)
    dlm = manage([server])
    lock = dlm.lock("r", TTL)
    dlm.unlock(SimpleNamespace(resource="r", key=lock.key.decode() if as_text else lock.key))
    assert server.keys() == set()


@pytest.mark.parametrize("nothing", [False, None, "name", (1, "r", b"key"), 5])
def test_unlock_of_no_lock_is_an_attribute_error(manage, masters, nothing):
    with pytest.raises(AttributeError, match=f"'{type(nothing).__name__}' object has no attribute 'resource'"):
        manage(masters(1)).unlock(nothing)


@pytest.mark.parametrize(
    "lock, name", [(Lock(0, None, b"key"), "resource"), (Lock(0, "r", None), "key"), (Lock(0, "r", key=True), "key")]
)
def test_unlock_of_what_cannot_be_sent_is_a_type_error(manage, masters, lock, name):
    with pytest.raises(TypeError, match=f"{name} must be str, bytes"):
        manage(masters(1)).unlock(lock)


def test_unlock_logs_errors_and_raises_none(masters, manage, caplog):
    servers = masters(3)
    dlm = manage(servers)
    lock = dlm.lock("r", TTL)
    wait_until(lambda: held(servers) == [lock.key] * 3)  # a release leaves out a master that was never sent the lock
    for server in servers:
        server.kill()
    with caplog.at_level(logging.ERROR, "redlock"):
        assert dlm.unlock(lock) is None
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 3
    for server in servers:
        assert any(f"Error unlocking resource r in server 127.0.0.1:{server.port}/0: " in text for text in said)


STRICT = """
import logging, sys
from redlock import Lock, Redlock
for lock in (Lock(0, b"r", b"key"), Lock(0, memoryview(b"r"), "key")):
    Redlock(["redis://127.0.0.1:1"], 1).unlock(lock)
"""


def test_a_name_of_bytes_is_unlocked_by_an_interpreter_that_lets_no_bytes_be_text():
    done = subprocess.run(
        [sys.executable, "-bb", "-c", STRICT], capture_output=True, text=True, timeout=PROMPT + 30, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "Error unlocking resource b'r' in server 127.0.0.1:1/0" in done.stderr


def test_a_release_that_fails_is_logged_once_until_it_works_again(masters, manage, caplog):
    servers = masters(3)
    dlm = manage(servers)
    for outage in (1, 2):
        lock = dlm.lock("r", TTL)
        wait_until(lambda lock=lock: held(servers) == [lock.key] * 3)  # it is no error for one that never had it
        servers[0].kill()
        with caplog.at_level(logging.ERROR, "redlock"):
            dlm.unlock(lock)
            for _ in range(2):
                dlm.unlock(dlm.lock("r", TTL))
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == outage
        assert errors[-1].startswith(f"Error unlocking resource r in server 127.0.0.1:{servers[0].port}/0: ")
        servers[0].start()
        wait_until(lambda: _released_everywhere(dlm), what="a release on all three")


def _released_everywhere(dlm):
    dlm.unlock(dlm.lock("r", TTL))
    return not dlm.stats().masters[0].failure and not dlm._count().failing_releases


@pytest.mark.parametrize(
    "said, logged", [(Vote.RELEASED, 2), (Vote.ABSENT, 2), (Vote.NOT_ASKED, 1), (Vote.NOT_AWAITED, 1)], ids=str
)
def test_only_an_answer_to_a_release_ends_its_failure(said, logged, caplog):
    failing = set()
    for vote in (Vote.failure("no answer"), said, Vote.failure("no answer")):
        log_failures(failing, ["r"], ["a:6379/0"], [vote])
    assert len(caplog.records) == logged


def test_unlock_of_a_value_of_another_type_is_logged(masters, manage, caplog):
    (server,) = masters(1)
    server.admin.lpush("r", "x")
    assert manage([server]).unlock(Lock(0, "r", b"key")) is None
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "WRONGTYPE" in record.getMessage()
    assert server.keys() == {b"r"}


# -- MultipleRedlockException ------------------------------------------------------------------------------------------


def test_multiple_redlock_exception():
    errors = [redis.ConnectionError("refused"), redis.TimeoutError("late")]
    error = MultipleRedlockException(errors)
    assert error.errors is errors
    assert str(error) == repr(error) == "refused :: late"
    assert isinstance(error, Exception)
    assert str(MultipleRedlockException(errors, "more")) == "refused :: late"


def test_changed_multiple_redlock_exception_pickles():
    copy = pickle.loads(pickle.dumps(MultipleRedlockException([redis.ConnectionError("refused"), ValueError("v")])))
    assert type(copy) is MultipleRedlockException
    assert [type(error) for error in copy.errors] == [redis.ConnectionError, ValueError]
    assert str(copy) == "refused :: v"


# -- changed on purpose ------------------------------------------------------------------------------------------------


def test_changed_errors_of_a_minority_are_a_lock_and_no_keys_are_left(masters, manage, caplog):
    servers = masters(3)
    servers[0].kill()
    dlm = manage(servers)
    with caplog.at_level(logging.WARNING, "redlock"):
        lock = dlm.lock("r", TTL)
    assert lock
    assert any(f":{servers[0].port}" in record.getMessage() for record in caplog.records)
    dlm.unlock(lock)
    nothing_left(servers[1:])


def test_changed_a_hung_master_is_not_waited_for(masters):
    servers = masters(3)
    dlm = manager(servers)
    servers[0].freeze()
    start = time.monotonic()
    for _ in range(3):
        lock = dlm.lock("r", TTL)
        assert lock
        dlm.unlock(lock)
    assert time.monotonic() - start < PROMPT


def test_changed_two_of_three_down_is_false_after_the_tries_asked_for(masters):
    servers = masters(3)
    for server in servers[:2]:
        server.kill()
    start = time.monotonic()
    assert manager(servers, 3, 0.1).lock("r", TTL) is False
    assert time.monotonic() - start < PROMPT
    nothing_left(servers[2:])


def test_changed_a_step_of_the_wall_clock_does_not_lengthen_validity(masters, manage, monkeypatch):
    clock = iter(range(1_700_000_000, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    lock = manage(masters(3)).lock("r", 1000)
    assert lock.validity <= 1000 - 12


def test_changed_pauses_are_jittered_and_none_is_after_the_last_try(monkeypatch):
    held_by_another = SimpleNamespace(set=lambda *_, **__: None, eval=lambda *_: 0)
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert Redlock([held_by_another], 20, 10).lock("r", TTL) is False
    assert len(pauses) == 19
    assert all(5 <= pause <= 10 for pause in pauses)
    assert len(set(pauses)) > 15


def test_changed_the_engines_pauses_are_jittered_and_none_is_after_the_last_try(scripted):
    server = scripted(lambda command: NIL if command.name == "SET" else None)
    assert Redlock([server.url], 4, 0.2).lock("r", TTL) is False
    at = [command.at for command in server.named("SET")]
    gaps = [after - before for before, after in itertools.pairwise(at)]
    assert len(gaps) == 3
    assert all(gap > 0.09 for gap in gaps)
    start = time.monotonic()
    assert Redlock([server.url], 1, 30).lock("r", TTL) is False
    assert time.monotonic() - start < PROMPT


def test_changed_keys_cannot_be_predicted(masters, manage):
    dlm = manage(masters(1))
    keys = set()
    for _ in range(3):
        random.seed(42)
        lock = dlm.lock("r", TTL)
        dlm.unlock(lock)
        keys.add(lock.key)
        random.seed(42)
        keys.add(dlm.get_unique_id())
    assert len(keys) == 6


def test_keys_use_every_letter_equally():
    dlm = Redlock(["redis://h"])
    letters = b"".join(dlm.get_unique_id() for _ in range(2000))
    counts = [letters.count(letter) for letter in LETTERS]
    mean = len(letters) / 62
    assert set(letters) == LETTERS
    assert max(abs(count - mean) for count in counts) < 6 * math.sqrt(mean)


def test_changed_release_is_by_evalsha_and_by_eval_where_the_server_does_not_know_the_script(masters):
    (server,) = masters(1)
    dlm = Redlock([server.url])
    commands = ("eval", "evalsha")

    def calls():
        stats = server.admin.info("commandstats")
        return [stats.get(f"cmdstat_{command}", {"calls": 0})["calls"] for command in commands]

    start = calls()
    dlm.unlock(dlm.lock("r", TTL))
    before = calls()
    assert before[1] == start[1]  # the first release of a connection brings the script
    for _ in range(3):
        dlm.unlock(dlm.lock("r", TTL))
    assert calls() == [before[0], before[1] + 3]
    server.admin.script_flush()
    dlm.unlock(dlm.lock("r", TTL))
    assert calls() == [before[0] + 1, before[1] + 4]
    assert server.keys() == set()
