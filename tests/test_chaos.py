"""A little of `make chaos`: faults at random on real servers, with a fixed seed, for a few seconds."""

from __future__ import annotations

import pytest

from chaos import Chaos


@pytest.mark.once
@pytest.mark.usefixtures("_rig")
def test_no_update_under_the_lock_is_lost(record_property):
    """Holders stopped past their time aside, which only fencing can hold back."""
    report = Chaos(seed=7).run(seconds=12)
    record_property("report", str(report))
    assert report.updates > 20
    assert sum(report.faults.values()) > 10
    assert report.lost == 0
