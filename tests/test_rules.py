"""The engine's rules, as Python has them for the votes of clients' own methods."""

from __future__ import annotations

import math

import pytest

from redlock import Redlock
from redlock._redlock import (
    UNLOCK_SCRIPT,
    Vote,
    majority,
    pause,
    random_key,
    validity,
    why_not_extended,
    why_not_granted,
    why_not_released,
)

VOTES = {
    "granted": Vote.GRANTED,
    "refused": Vote.REFUSED,
    "released": Vote.RELEASED,
    "absent": Vote.ABSENT,
    "extended": Vote.EXTENDED,
    "taken": Vote.TAKEN,
    "unasked": Vote.NOT_ASKED,
    "unfenced": Vote.unfenced("no scripts"),
    "down": Vote.failure("down"),
}


def votes(words):
    return [VOTES[word] for word in words.split()]


@pytest.mark.parametrize("vote", [Vote.GRANTED, Vote.REFUSED, Vote.NOT_ASKED, Vote.NOT_AWAITED], ids=str)
def test_a_word_that_leases_keep_is_the_same_object_each_time(vote):
    first, second = str(vote), str(vote)
    assert first is second


def test_a_vote_is_told_from_a_failure_of_the_same_text():
    assert Vote.failure("granted") != Vote.GRANTED
    assert str(Vote.failure("granted")) == str(Vote.GRANTED) == "granted"
    assert [vote.is_failure for vote in (Vote.failure("granted"), Vote.GRANTED, Vote.NOT_ASKED)] == [True, False, False]
    assert len({Vote.GRANTED, Vote.failure("granted"), Vote.failure("granted")}) == 2
    assert repr(Vote.unfenced("no scripts")) == "<Vote: no fencing: no scripts>"


def test_keys_are_22_letters_and_digits_and_differ():
    keys = {random_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == 22 and key.isalnum() for key in keys)


def test_a_pause_is_random_and_no_longer_than_there_is_time():
    pauses = [pause(0.2, math.inf) for _ in range(100)]
    assert all(0.1 <= seconds <= 0.2 and is_time_left for seconds, is_time_left in pauses)
    assert len(set(pauses)) > 1
    assert pause(0.2, 0.05) == (0.05, False)
    assert pause(0.2, -1.0) == (0.0, False)
    assert pause(0.0, 1.0) == (0.0, True)
    with pytest.raises(ValueError, match="delay"):
        pause(-1.0, 1.0)


@pytest.mark.parametrize(
    "said, now, left",
    [
        ("granted granted refused", 10.5, (488, 10.988)),
        ("extended down extended", 10.5, (488, 10.988)),
        ("granted refused down", 10.5, None),
        ("released released released", 10.5, None),
        ("granted granted granted", 10.988, None),
        ("granted granted granted", 9.0, (988, 10.988)),  # a clock that goes back gives nothing
    ],
)
def test_what_a_quorum_gave_is_valid_for_what_is_left_of_the_ttl(said, now, left):
    assert validity(votes(said), 2, 1000, 12, 10.0, now) == (left and (left[0], pytest.approx(left[1])))


@pytest.mark.parametrize(
    "said, reason",
    [
        ("refused refused granted", "contended"),
        ("refused unasked unasked", "contended"),
        ("refused down down", "unavailable"),
        ("granted down down", "unavailable"),
        ("granted granted granted", "expired"),
        ("unfenced unfenced refused", "unfenced"),
        ("unfenced refused refused", "contended"),
    ],
)
def test_why_nothing_was_granted(said, reason):
    assert why_not_granted(votes(said), 2) == reason


@pytest.mark.parametrize(
    "said, reason",
    [
        ("released absent down", None),
        ("absent absent absent", "expired"),
        ("released down down", "unavailable"),
    ],
)
def test_why_nothing_was_released(said, reason):
    assert why_not_released(votes(said), 2) == reason


@pytest.mark.parametrize(
    "said, reason",
    [
        ("extended absent absent", "expired"),
        ("extended taken absent", "taken over"),
        ("extended taken down", "unavailable"),
        ("down down down", "unavailable"),
    ],
)
def test_why_nothing_was_extended(said, reason):
    assert why_not_extended(votes(said), 2) == reason


def test_a_majority():
    assert [majority(masters) for masters in range(1, 6)] == [1, 2, 2, 3, 3]


def test_the_script_is_that_of_managers():
    assert Redlock.unlock_script is UNLOCK_SCRIPT
