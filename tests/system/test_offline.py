"""Offline batches as a user asks for them: a simulated server, and stand-in engines.

The stand-in is a `vllm` package of a few lines, found by the interpreter of `--python`:
the meter, the worker and what happens when it is killed are the real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import simulating
from tests.support.runs import loadgen

STAND_IN = """
import os, signal, time, types
__version__ = "0.0 (stand-in)"
platforms = types.SimpleNamespace(
    current_platform=types.SimpleNamespace(is_cpu=lambda: True))
class SamplingParams:
    def __init__(self, **given): self.tokens = given["max_tokens"]
class LLM:
    def __init__(self, **given):
        print("loading, on standard output")
        if given["model"] == "missing": raise OSError("no such model\\nmore lines")
        space = types.SimpleNamespace(
            num_gpu_blocks=given.get("blocks"), block_size=16)
        self.llm_engine = types.SimpleNamespace(
            model_config=types.SimpleNamespace(max_model_len=1024),
            vllm_config=types.SimpleNamespace(cache_config=space))
        self.kill = given.get("kill_from", 1 << 30)
        self.oom = given.get("oom_from", 1 << 30)
        self.breaks = given.get("breaks_from", 1 << 30)
    def get_tokenizer(self): return types.SimpleNamespace(vocab_size=5000)
    def generate(self, prompts, params, use_tqdm):
        if len(prompts) >= self.kill: os.kill(os.getpid(), signal.SIGKILL)
        if len(prompts) >= self.oom: raise RuntimeError("CUDA out of memory. Tried")
        if len(prompts) >= self.breaks: raise ValueError("broken kernel")
        time.sleep(0.05)
        one = types.SimpleNamespace(token_ids=[1] * params.tokens)
        return [types.SimpleNamespace(outputs=[one]) for _ in prompts]
"""


@pytest.fixture(scope="module")
def power(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with simulating(tmp_path_factory.mktemp("gpu")) as gpu:
        yield f"dcgm={gpu['power_url']}"


def run(
    folder: Path, power: str, *more: str, engine_args: dict[str, int] | None = None
) -> subprocess.CompletedProcess[str]:
    (folder / "vllm.py").write_text(STAND_IN)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o700)
    return loadgen(
        "offline", "--engine", "vllm", "--model", "m", "--python", python,
        "--input-len", "64", "--output-len", "16", "--most", "16", "--seconds", "0.6",
        "--power", power, "--engine-args", json.dumps(engine_args or {}),
        "--folder", folder / "out", "--format", "json", *more, cwd=folder,
    )  # fmt: skip


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    return found


def test_batches_are_metered_without_what_came_before(
    tmp_path: Path, power: str
) -> None:
    done = run(tmp_path, power, "--batch", "2,largest", engine_args={"blocks": 30})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["simulated"]
    assert report["version"] == "vllm 0.0 (stand-in)"
    two, largest = report["rows"]
    assert (largest["batch"], largest["is_largest"]) == (6, True)
    assert "the KV cache holds 480 tokens: 6 of these" in largest["next_fails"]
    for row in (two, largest):
        watts = row["joules_per_batch"] / row["seconds_per_batch"]
        assert watts == pytest.approx(110, rel=0.25)  # an idle board
        assert row["joules_per_request"] * row["batch"] == pytest.approx(
            row["joules_per_batch"]
        )
        assert row["uncertainty_joules"] > 0


@pytest.mark.parametrize(
    ("how", "said"),
    [("oom_from", "CUDA out of memory"), ("kill_from", "killed by SIGKILL")],
)
def test_memory_that_is_out_is_an_answer(
    tmp_path: Path, power: str, how: str, said: str
) -> None:
    done = run(tmp_path, power, engine_args={how: 6})
    assert done.returncode == 0, done.stderr
    (row,) = rows(done)
    assert (row["batch"], row["status"]) == (5, "measured")
    assert said in row["next_fails"]
    assert row["joules_per_batch"] > 0


def test_a_batch_that_breaks_is_told_and_costs_its_length_only(
    tmp_path: Path, power: str
) -> None:
    done = run(tmp_path, power, "--batch", "1,8", engine_args={"breaks_from": 8})
    measured, broken = rows(done)
    assert measured["status"] == "measured"
    assert (broken["status"], broken["reason"]) == (
        "failed", "ValueError: broken kernel",
    )  # fmt: skip


def test_a_length_beyond_the_context_is_too_large(tmp_path: Path, power: str) -> None:
    done = run(tmp_path, power, "--input-len", "2000")
    (row,) = rows(done)
    assert row["status"] == "too large"
    assert row["reason"] == "longer than the model's context of 1024 tokens"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model", "missing"], "vllm did not load missing: OSError: no such model"),
        (["--engine", "transformers", "--model", "m"], "No module named"),
        (["--python", "/nowhere/python"], "did not load m: ended with code 127"),
        (["--engine-args", "["], "--engine-args: not JSON"),
        (["--batch", "0"], "--batch 0: '0' is neither a size from 1 nor largest"),
        (["--compile"], "--compile is for transformers"),
        (["--url", "http://127.0.0.1:1"], "--url is for --engine http"),
    ],
)
def test_what_cannot_work_is_one_line(
    tmp_path: Path, power: str, more: list[str], said: str
) -> None:
    done = run(tmp_path, power, *more)
    assert done.returncode in (1, 2)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("loadgen: ")
    assert said in last
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_simulated_server_is_asked_for_whole_batches(tmp_path: Path) -> None:
    asked: list[str | Path] = [
        "offline", "--input-len", "32", "--output-len", "24", "--batch", "1,4",
        "--rounds", "2", "--folder", tmp_path / "out",
    ]  # fmt: skip
    done = loadgen(*asked, "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    header, one, four = done.stdout.splitlines()
    found = [
        dict(zip(header.split(","), line.split(","), strict=True))
        for line in (one, four)
    ]
    joules = [float(row["joules_per_request"]) for row in found]
    assert joules[1] < 0.6 * joules[0]
    assert found[1]["peak_running"] == "4"
    again = loadgen(*asked, cwd=tmp_path)
    assert again.stderr.count("kept, finished before") == 2
    assert "SIMULATED" in again.stdout
    assert os.listdir(tmp_path) == ["out"]
