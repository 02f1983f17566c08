"""A workload's energy from closed-loop runs of its bins, on the simulated stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import loadgen, write_trace

LINES: list[dict[str, Any]] = [
    {"loadtrace": "loadtrace/1", "name": "small"},
    *({"input_length": 200, "output_length": 14} for _ in range(16)),
]


def test_bins_are_measured_once_and_the_sum_is_near_a_replay(tmp_path: Path) -> None:
    write_trace(tmp_path, LINES)
    asked = [
        "estimate", "small.jsonl", "--real-time", "--batch", "4", "--validate",
        "--folder", "bins", "--format", "json",
    ]  # fmt: skip
    first = loadgen(*asked, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["simulated"]
    assert told["boundary"] == "gpu"
    assert told["requests"] == 16
    # the same requests at the same concurrency: what differs is noise and the ends
    assert told["error_fraction"] == pytest.approx(0, abs=0.3)
    again = loadgen(*asked, cwd=tmp_path)
    assert again.stderr.count("kept, finished before") == 2
    assert json.loads(again.stdout) == told
