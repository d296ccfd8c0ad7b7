"""Annotations can be evaluated, as containers that inject dependencies do; here in fresh processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import redlock

HINTS = """
import sys, typing, inspect
import redlock
for kind in sys.argv[1].split():
    kind = getattr(redlock, kind)
    names = sys.argv[2:] or [name for name in vars(kind) if not name.startswith("_")]
    for name in names:
        method = vars(kind)[name]
        method = getattr(method, "fget", method)
        if inspect.isfunction(method):
            hints = typing.get_type_hints(method)
            assert set(hints) == set(method.__annotations__), name
            assert not any(isinstance(hint, (str, typing.ForwardRef)) for hint in hints.values()), hints
    typing.get_type_hints(kind)
    typing.get_type_hints(kind.__init__)
print("evaluated")
"""

CLASSES = [name for name in redlock.__all__ if isinstance(getattr(redlock, name), type)]


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", *arguments], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", CLASSES)
def test_annotations_of_a_public_class_can_be_evaluated(name):
    assert run(HINTS, name) == "evaluated"


@pytest.mark.parametrize("names", [CLASSES, CLASSES[::-1]], ids=["forwards", "backwards"])
def test_those_of_all_one_after_another_can_be_evaluated(names):
    assert run(HINTS, " ".join(names)) == "evaluated"


@pytest.mark.parametrize("name", ["lock", "acquire", "inspect"])
def test_those_of_one_method_can_be_evaluated_first(name):
    assert run(HINTS, "Redlock", name) == "evaluated"


def test_what_they_name_is_what_is_returned():
    program = """
import typing, redlock
from redlock import Lease, Lock, Redlock
assert typing.get_type_hints(Redlock.lock)["return"] == Lock | typing.Literal[False]
assert typing.get_type_hints(Redlock.acquire)["return"] is Lease
assert typing.get_type_hints(redlock.AsyncRedlock.extend)["return"] == Lock | typing.Literal[False]
assert typing.get_type_hints(Redlock.__init__)["clock_guard"] is bool
print("the same")
"""
    assert run(program) == "the same"


def test_an_import_alone_evaluates_nothing():
    program = """
import sys
before = set(sys.modules)
import redlock
print({"typing", "ast", "inspect"} & set(sys.modules) - before)
"""
    assert run(program) == "set()"
