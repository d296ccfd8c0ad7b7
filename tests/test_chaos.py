"""A little of `make chaos`: faults at random on real servers, with a fixed seed, for a few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaos import Chaos

if TYPE_CHECKING:
    import pytest


def test_no_update_under_the_lock_is_lost(_rig: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Holders stopped past their time aside, which only fencing can hold back."""
    report = Chaos(seed=7).run(seconds=12)
    with capsys.disabled():
        print(f"\n{report}")
    assert report.updates > 20
    assert sum(report.faults.values()) > 10
    assert report.lost == 0
