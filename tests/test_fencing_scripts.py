"""The fencing scripts, on every server they are sent to."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import redis

if TYPE_CHECKING:
    from conftest import Masters, Spawn
    from support.servers import Server

pytestmark = [pytest.mark.once, pytest.mark.every_kind]

SOURCES = Path(__file__).parents[1] / "src" / "fence"
COMMON, ACQUIRE, BUMP = ((SOURCES / f"{name}.lua").read_text() for name in ("common", "acquire", "bump"))
DAY = 24 * 3600 * 1000  # milliseconds
FENCE = "r::rlfence"
MINUTE = 60 * 10**6  # microseconds


class Reply(NamedTuple):
    granted: int
    accepted: int
    fence: int


class Fenced:
    """The two scripts over one server."""

    def __init__(self, server: Server) -> None:
        self.client = server.client()

    def acquire(self, key: str, proposal: int, ttl: int = 20_000) -> Reply:
        return self._run(ACQUIRE, key, ttl, proposal, DAY)

    def bump(self, key: str, token: int) -> Reply:
        return self._run(BUMP, key, token, DAY)

    def _run(self, script: str, *arguments: object) -> Reply:
        granted, accepted, fence = self.client.eval(COMMON + script, 2, "r", FENCE, *arguments)
        assert isinstance(fence, bytes), fence
        return Reply(granted, accepted, int(fence))

    def clock(self) -> int:
        """The server's, in microseconds."""
        seconds, micros = self.client.time()
        return seconds * 10**6 + micros


@pytest.fixture
def server(masters: Masters) -> Server:
    return masters(1)[0]


@pytest.fixture
def fenced(server: Server) -> Fenced:
    return Fenced(server)


def now() -> int:
    return time.time_ns() // 1000


def test_the_first_proposal_is_accepted(fenced: Fenced) -> None:
    token = now()
    assert fenced.acquire("a", token) == (1, 1, token)
    assert fenced.client.get("r") == b"a"
    assert fenced.client.get(FENCE) == b"%d" % token
    assert 0 < fenced.client.pttl("r") <= 20_000
    assert DAY - 20_000 < fenced.client.pttl(FENCE) <= DAY


def test_a_lock_that_is_held_is_refused_and_its_fence_told(fenced: Fenced) -> None:
    token = now()
    fenced.acquire("a", token)
    assert fenced.acquire("b", token + 5) == (0, 0, token)
    assert fenced.client.get("r") == b"a"
    assert fenced.client.get(FENCE) == b"%d" % token


def test_a_lock_held_without_a_fence_is_refused(fenced: Fenced) -> None:
    fenced.client.set("r", "redlock-py's", nx=True, px=20_000)
    reply = fenced.acquire("b", now())
    assert reply[:2] == (0, 0)
    assert not fenced.client.exists(FENCE)


@pytest.mark.parametrize("less", [0, 1, 10**6])
def test_what_is_not_greater_is_not_accepted_though_the_lock_is_granted(fenced: Fenced, less: int) -> None:
    token = now()
    fenced.client.set(FENCE, token, px=1000)
    assert fenced.acquire("a", token - less) == (1, 0, token)
    assert fenced.client.get("r") == b"a"
    assert fenced.client.pttl(FENCE) > 20_000  # used, so kept


def test_a_repeated_call_grants_again_and_accepts_nothing_new(fenced: Fenced) -> None:
    token = now()
    fenced.acquire("a", token)
    assert fenced.acquire("a", token) == (1, 0, token)


def test_a_repeated_call_does_not_shorten_what_was_extended(fenced: Fenced) -> None:
    fenced.acquire("a", now())
    fenced.client.pexpire("r", 60_000)
    assert fenced.acquire("a", now(), 10_000).granted
    assert fenced.client.pttl("r") > 20_000
    fenced.acquire("a", now(), 90_000)
    assert fenced.client.pttl("r") > 60_000


@pytest.mark.parametrize("fence, proposal", [(999_999, 1_000_000), (2**53, 2**53 + 1), (10**17, 10**17 + 1)])
def test_numbers_are_compared_to_the_last_digit(fenced: Fenced, fence: int, proposal: int) -> None:
    fenced.client.set(FENCE, fence)
    fenced.client.set("r", "a")
    assert fenced.bump("a", fence) == (1, 0, fence)
    assert fenced.bump("a", proposal) == (1, 1, proposal)
    assert fenced.client.get(FENCE) == b"%d" % proposal


def test_a_second_round_asks_for_the_lock(fenced: Fenced) -> None:
    token = now()
    assert fenced.bump("a", token)[:2] == (0, 0)
    fenced.acquire("a", token)
    assert fenced.bump("b", token + 2) == (0, 0, token)
    assert fenced.bump("a", token + 1) == (1, 1, token + 1)
    assert 0 < fenced.client.pttl("r") <= 20_000  # the lock's time runs on


def test_the_clock_stands_in_for_a_fence_that_is_gone(fenced: Fenced) -> None:
    clock = fenced.clock()
    granted, accepted, fence = fenced.acquire("a", clock - 2 * MINUTE)
    assert (granted, accepted) == (1, 0)
    assert clock <= fence <= fenced.clock()
    assert fenced.bump("a", clock - 2 * MINUTE)[:2] == (1, 0)
    assert fenced.bump("a", fence + 1) == (1, 1, fence + 1)  # though time has passed since


def test_a_clock_far_ahead_does_not_take_the_fence_along(fenced: Fenced) -> None:
    granted, accepted, fence = fenced.acquire("a", fenced.clock() + 2 * MINUTE)
    assert (granted, accepted) == (1, 0)
    assert fence <= fenced.clock()
    assert not fenced.client.exists(FENCE)


def test_a_fence_that_is_ahead_already_can_be_counted_on_from(fenced: Fenced) -> None:
    ahead = fenced.clock() + 60 * MINUTE
    fenced.client.set(FENCE, ahead)
    assert fenced.acquire("a", ahead + 1) == (1, 1, ahead + 1)


@pytest.mark.parametrize("foreign", ["", "-1", "1e9", "007", "none"])
def test_a_fence_that_is_no_token_is_an_error_and_leaves_no_lock(fenced: Fenced, foreign: str) -> None:
    fenced.client.set(FENCE, foreign)
    for call in (fenced.acquire, fenced.bump):
        with pytest.raises(redis.ResponseError, match="no token"):
            call("a", now())
    assert not fenced.client.exists("r")


def test_a_key_of_another_type_is_an_error_and_leaves_no_lock(fenced: Fenced) -> None:
    fenced.client.lpush(FENCE, "1")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        fenced.acquire("a", now())
    assert not fenced.client.exists("r")


def test_without_memory_there_is_neither_fence_nor_lock(fenced: Fenced) -> None:
    fenced.client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.ResponseError, match="maxmemory"):
            fenced.acquire("a", now())
    finally:
        fenced.client.config_set("maxmemory", 0)
    assert not fenced.client.exists("r", FENCE)


def test_the_rights_of_a_lock_and_two_more_are_enough(spawn: Spawn) -> None:
    server = spawn()
    rights = "on >pw resetkeys ~r* -@all +eval +evalsha +get +set +pexpire +time"
    server.admin.execute_command("ACL", "SETUSER", "fenced", *rights.split())
    fenced, token = Fenced(server), now()
    fenced.client = server.client(username="fenced", password="pw")
    assert fenced.acquire("a", token) == (1, 1, token)
    assert fenced.bump("a", token + 1) == (1, 1, token + 1)
    assert fenced.acquire("a", token + 2) == (1, 1, token + 2)  # what is left of the lock may not be asked for
