"""The wheels as they are uploaded, where some were built: `.ci/matrix` builds one before it runs the tests on it."""

from __future__ import annotations

import re
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest

import redlock

WHEELS = sorted((Path(__file__).parents[1] / "target" / "wheels").glob("*.whl"))
MOST = 2_500_000  # bytes; docs/operating.md says so

pytestmark = [
    pytest.mark.skipif(not WHEELS, reason="no wheel was built"),
    pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name),
]


def test_a_wheel_is_small(wheel):
    assert wheel.stat().st_size <= MOST


def test_a_wheel_has_all_that_is_needed_and_nothing_else(wheel):
    names = set(ZipFile(wheel).namelist())
    assert {"redlock/__init__.py", "redlock/py.typed", "redlock/_redlock.pyi"} <= names
    assert len([name for name in names if re.fullmatch(r"redlock/_redlock\.(abi3|cpython-\w+-[\w-]+)\.so", name)]) == 1
    assert len([name for name in names if name.endswith(".dist-info/licenses/LICENSE")]) == 1
    assert {name.split("/")[0].rpartition(".")[2] for name in names} == {"redlock", "dist-info"}
    assert not [name for name in names if "__pycache__" in name]


def test_a_wheel_says_what_it_is(wheel):
    with ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        told = Parser().parsestr(opened.read(name).decode())
    assert (told["Name"], told["Version"]) == ("redlock-rs", redlock.__version__)
    assert told["Requires-Python"] == ">=3.10"
    assert "redis>=5.0" in told.get_all("Requires-Dist")
    assert told["License-Expression"] == "MIT"
