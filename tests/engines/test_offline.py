"""Offline batches of the real engines on a CPU: in process, and their memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.cpu_power import power_of
from tests.engines.vllm_server import OFFLINE
from tests.support.runs import loadgen


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def power() -> Iterator[str]:
    with power_of(os.getpid()) as found:
        yield found


def report(
    engines: Path, model: Path, folder: Path, power: str, *more: str
) -> dict[str, Any]:
    done = loadgen(
        "offline", "--python", engines / "python", "--model", model, "--device", "cpu",
        "--input-len", "64", "--output-len", "8", "--seconds", "1", "--power", power,
        "--folder", folder / "out", "--format", "json", *more, cwd=folder,
        seconds=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["simulated"]
    for row in found["rows"]:
        assert row["joules_per_output_token"] > 0, row
        assert row["output_tokens_per_second"] > 0
    return found


@pytest.mark.transformers
@pytest.mark.parametrize(
    "more", [[], ["--compile"], ["--beam", "2"]], ids=["plain", "compiled", "beams"]
)
def test_plain_transformers_generates_batches(
    engines: Path, tiny_model: Path, tmp_path: Path, power: str, more: list[str]
) -> None:
    found = report(
        engines, tiny_model, tmp_path, power, "--engine", "transformers",
        "--batch", "1,4", "--rounds", "1", *more,
    )  # fmt: skip
    one, four = found["rows"]
    assert found["version"].startswith("transformers ")
    assert four["joules_per_request"] < one["joules_per_request"]


@pytest.mark.vllm
def test_vllm_runs_the_largest_batch_that_its_cache_holds(
    engines: Path, tiny_model: Path, tmp_path: Path, power: str
) -> None:
    cache = {"kv_cache_memory_bytes": 1 << 20, "max_model_len": 512}
    found = report(
        engines, tiny_model, tmp_path, power, "--engine", "vllm", "--eager",
        "--dtype", "bfloat16", "--batch", "1,largest", "--most", "64",
        "--engine-args", json.dumps(cache),
    )  # fmt: skip
    one, largest = found["rows"]
    assert (largest["batch"], largest["is_largest"]) == (16, True)
    assert "the KV cache holds 2,048 tokens" in largest["next_fails"]
    assert largest["joules_per_request"] < one["joules_per_request"]
