"""Finished runs of made-up requests, cheaper or dearer than each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from loadgen.analysis.summary import RunInfo
from loadgen.results.results import Result
from loadgen.run.finish import finish_run
from tests.support.canned_run import cost_of, made_results, write_run


def metered(results: list[Result], factor: float = 1.0) -> list[Result]:
    found = []
    for result in results:
        energy = cost_of(result)
        assert energy.prefill_joules is not None
        assert energy.decode_joules is not None
        assert energy.idle_share_joules is not None
        assert energy.energy_joules is not None
        scaled = msgspec.structs.replace(
            energy,
            prefill_joules=factor * energy.prefill_joules,
            decode_joules=factor * energy.decode_joules,
            idle_share_joules=factor * energy.idle_share_joules,
            energy_joules=factor * energy.energy_joules,
        )
        found.append(msgspec.structs.replace(result, energy=scaled))
    return found


def run(folder: Path, factor: float = 1.0, count: int = 120, **info: Any) -> Path:
    write_run(folder, metered(made_results(count), factor))
    finish_run(folder, RunInfo(**info))
    return folder


def with_boundary(folder: Path, boundary: str) -> Path:
    """The run as if its joules had been measured inside another boundary."""
    summary = json.loads((folder / "summary.json").read_text())
    summary["energy"]["boundary"] = boundary
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
