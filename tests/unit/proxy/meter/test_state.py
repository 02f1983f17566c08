"""What the metrics show of settled requests."""

from __future__ import annotations

import pytest

from proxy.meter.ledger import RequestEnergy, unknown_energy
from proxy.meter.state import RecordCounts


def test_settled_requests_are_counted_by_what_is_known_of_them() -> None:
    counts = RecordCounts()
    counts.add(unknown_energy("phase"))
    known = RequestEnergy(
        2.0, 2.0, 0.0, 4.0, "phase", "timed", low_joules=3.0, high_joules=5.0,
        grade="fair", grade_reasons=("cache_unknown",),
    )  # fmt: skip
    counts.add(known)
    assert counts.timing == {"timed": 1, "estimated": 0, "unknown": 1}
    assert sum(counts.grade.values()) == 2
    assert counts.half_width_fraction == pytest.approx(0.25)


def test_without_a_known_record_no_width_is_told() -> None:
    counts = RecordCounts()
    counts.add(unknown_energy("phase"))
    assert counts.half_width_fraction is None
