"""Settlement under load: memory stays within bounds, the lag small, the books closed.

The full size (10,000 streams, an hour) is `python benchmarks/meter_load.py`.
"""

from __future__ import annotations

from benchmarks.meter_load import Load, hour, run

MEBIBYTE = 2**20


def test_two_thousand_streams_fit_in_little_memory() -> None:
    cost = run(Load(2000, 4.0, output_tokens=30), is_traced=True)
    assert cost.records > 1000
    assert cost.peak_bytes is not None
    assert cost.peak_bytes < 16 * MEBIBYTE  # 7 measured
    assert cost.lag_seconds < 1.0
    assert cost.residual_joules < 1e-6


def test_memory_does_not_grow_with_time() -> None:
    """Three times as long: only the history of the books grows, 80 bytes a window."""
    short, long = (run(hour(seconds), is_traced=True) for seconds in (40.0, 120.0))
    assert short.peak_bytes is not None
    assert long.peak_bytes is not None
    assert long.records > 2.8 * short.records
    assert long.peak_bytes - short.peak_bytes < 0.5 * MEBIBYTE
