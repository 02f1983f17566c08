"""The scripts of the examples, run: on CPU, on free ports, with a SIMULATED sensor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm_server import free_port
from tests.support.children import simulating
from tests.support.paths import ROOT
from tests.support.runs import records, summary_of, write_trace

TRACE: list[dict[str, Any]] = [
    {"loadtrace": "loadtrace/1", "name": "few", "kind": "conversation"},
    *({"input_length": 20 + n, "output_length": 8 + n} for n in range(8)),
]
CPU = {
    "vllm-one-gpu": (
        "--max-model-len 8192",
        "--max-model-len 8192 --enforce-eager --kv-cache-memory-bytes 67108864 "
        "--no-enable-chunked-prefill --max-num-batched-tokens 8192",
    ),
    "transformers": ("--device cuda:0", "--device cpu"),
}
BATCHING = (
    "--continuous-batching --cb-block-size 128 --cb-num-blocks 512 "
    "--cb-max-batch-tokens 2048"
)


def on_this_host(name: str, folder: Path, power: str) -> Path:
    """A copy of an example's script that needs no GPU and no fixed port."""
    text = (ROOT / "examples" / name / "run.sh").read_text()
    ports = {port: str(free_port()) for port in ("8000", "8080", "9464")}
    text = re.sub(r"\b(8000|8080|9464)\b", lambda found: ports[found[1]], text)
    addresses = f"--listen :{ports['8080']} --admin :{ports['9464']} --store none"
    changes = {
        CPU[name][0]: CPU[name][1],
        "--power nvml": f"--power {power}",
        "metering-proxy serve ": f"metering-proxy serve {addresses} ",
        "loadgen replay ": f"loadgen replay --out {folder / 'run'} ",
    }
    for before, after in changes.items():
        assert before in text, before
        text = text.replace(before, after)
    place = folder / "examples" / name
    place.mkdir(parents=True)
    (folder / "traces").mkdir()
    write_trace(folder / "traces", TRACE).rename(folder / "traces/sharegpt.jsonl")
    script = place / "run.sh"
    script.write_text(text)
    return script


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vllm-one-gpu", marks=pytest.mark.vllm),
        pytest.param("transformers", marks=pytest.mark.transformers),
    ],
)
def test_an_example_runs_from_start_to_end(
    name: str, engines: Path, tiny_model: Path, tmp_path: Path
) -> None:
    path = f"{Path(sys.executable).parent}:{engines}:{os.environ['PATH']}"
    hub = tmp_path / "hub"
    hub.mkdir()
    own = {
        "PATH": path, "PYTHONPATH": str(ROOT), "MODEL": str(tiny_model), "RATE": "4",
        "BATCHING": BATCHING, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(hub), "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    with simulating(tmp_path) as gpu:
        script = on_this_host(name, tmp_path, f"dcgm={gpu['power_url']}")
        log = tmp_path / "log"
        with log.open("wb") as out:
            done = subprocess.run(
                ["bash", script],
                env=os.environ | own, stdin=subprocess.DEVNULL, stdout=out,
                stderr=out, timeout=300, check=False,
            )  # fmt: skip
    said = log.read_text(errors="replace")[-3000:]
    assert done.returncode in (0, 3), said  # 3: this host is slow
    summary, rows = summary_of(tmp_path / "run"), records(tmp_path / "run")
    assert [row["outcome"] for row in rows] == ["ok"] * 8, json.dumps(rows[0])
    assert all(row["energy"]["energy_joules"] > 0 for row in rows)
    assert summary["output_lengths"]["exact_fraction"] == 1
    assert summary["backend"] == ("vllm" if "vllm" in name else "transformers")
