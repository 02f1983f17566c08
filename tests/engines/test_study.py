"""A study over the real engines on a CPU, started by its presets."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.engines.cpu_power import power_of
from tests.engines.vllm_server import OFFLINE
from tests.support.runs import loadgen

STUDY = """\
study: engines
model: {model}
baseline: {{servers: transformers, decoding: greedy}}
servers:
  transformers:
    preset: transformers
    arguments: [--device, cpu]
  vllm:
    preset: vllm-eager
    dtype: bfloat16
    max_model_len: 2048
    max_num_seqs: 4
    prefix_caching: false
    arguments: [--kv-cache-memory-bytes, "16777216"]
decoding:
  greedy: {{temperature: 0}}
  beam: {{beam: 2}}
skip: [{{servers: transformers, decoding: beam}}]
workloads:
  short: {{input: 24, output: 6, requests: 10}}
loads:
  four: {{concurrency: 4}}
"""


@pytest.mark.vllm
@pytest.mark.transformers
def test_frameworks_and_decoding_are_compared(
    engines: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{engines}:{os.environ['PATH']}")
    (tmp_path / "study.yaml").write_text(STUDY.format(model=tiny_model))
    with power_of(os.getpid()) as power:
        done = loadgen(
            "study", "study.yaml", "--power", power, "--out", "out",
            cwd=tmp_path, seconds=1200,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    by_name = {tuple(row["names"].values())[:2]: row for row in rows}
    assert {row["completed"] for row in rows} == {10}
    base = by_name["transformers", "greedy"]
    served = by_name["vllm", "greedy"]
    assert base["is_baseline"]
    assert served["figures"]["joules_per_request"]["value"] > 0
    assert served["changes"][0]["change"] is not None
    assert by_name["vllm", "beam"]["output_throughput"] > 0
