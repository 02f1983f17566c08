"""Loads on a real vLLM: its own benchmark, and conversations with a live history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm_server import MODEL, OFFLINE, Metered
from tests.support.children import get, wait_for
from tests.support.paths import ROOT

pytestmark = pytest.mark.vllm

LOAD_SECONDS = 300
TOKENS = 24
EQUAL = (
    "completed", "failed", "num_prompts", "total_input_tokens", "total_output_tokens",
    "input_lens", "output_lens", "errors",
)  # fmt: skip
SESSIONS, TURNS, WORDS = 4, 4, 1500
"""Conversations of 1,500, 3,000, 4,500 and 6,000 tokens of prompt."""
SEEDS = count(11)
"""One for each try: an engine still has the prompts of the one before."""


def records_of(admin: str) -> list[dict[str, Any]]:
    lines = get(f"{admin}/requests?limit=10000").text.splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("backend", ["vllm", "openai-chat"])
def test_vllm_bench_serve_sees_no_difference(
    talkative: Metered, engines: Path, tiny_model: Path, tmp_path: Path, backend: str
) -> None:
    before = {record["request_id"] for record in records_of(talkative.admin)}
    route = "/v1/chat/completions" if "chat" in backend else "/v1/completions"
    results = {}
    for name, url in (("direct", talkative.vllm.url), ("metered", talkative.url)):
        subprocess.run(
            [
                engines / "vllm", "bench", "serve", "--backend", backend,
                "--base-url", url, "--endpoint", route, "--model", MODEL,
                "--tokenizer", tiny_model, "--dataset-name", "random", "--seed", "5",
                "--random-input-len", "60", "--random-output-len", str(TOKENS),
                "--num-prompts", "30", "--max-concurrency", "8", "--ignore-eos",
                "--temperature", "0", "--disable-tqdm", "--save-result",
                "--save-detailed", "--result-filename", f"{name}.json",
            ],
            cwd=tmp_path, env=os.environ | OFFLINE, timeout=LOAD_SECONDS, check=True,
            capture_output=True,
        )  # fmt: skip
        results[name] = json.loads((tmp_path / f"{name}.json").read_text())
    direct, through = results["direct"], results["metered"]
    assert direct["completed"] == 30
    assert {key: through[key] for key in EQUAL} == {key: direct[key] for key in EQUAL}
    wait_for(lambda: len(records_of(talkative.admin)) >= len(before) + 30)
    records = [r for r in records_of(talkative.admin) if r["request_id"] not in before]
    # its first request is a trial that its result leaves out
    assert 30 <= len(records) <= 31
    assert {record["outcome"] for record in records} == {"ok"}
    assert {record["output_tokens"] for record in records} == {TOKENS}
    assert all(record["energy"]["energy_joules"] > 0 for record in records)
    prompts = sorted(record["prompt_tokens"] for record in records)
    assert set(prompts) >= set(direct["input_lens"]) or "chat" in backend


def conversations(folder: Path) -> Path:
    """A trace of turns that carry the replies they really got."""
    head = {"loadtrace": "loadtrace/1", "name": "talks", "kind": "conversation"}
    turns = [
        {
            "session_id": f"talk-{session}",
            "turn": turn + 1,
            "input_length": WORDS,
            "output_length": 16,
            "history": "append" if turn else "total",
            "delay": 50,
        }
        for session in range(SESSIONS)
        for turn in range(TURNS)
    ]
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *turns)))
    return path


def replay(served: Metered, folder: Path, seed: int) -> list[dict[str, Any]]:
    """`requests.jsonl` of a replay with a metering proxy of its own, by turn."""
    folder.mkdir()
    done = subprocess.run(
        [
            sys.executable, "-m", "loadgen", "replay", conversations(folder),
            "--url", served.vllm.url, "--power", served.power, "--out", folder / "run",
            "--max-concurrency", "1", "--rate", "4", "--seed", str(seed),
        ],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=LOAD_SECONDS,
        capture_output=True, text=True,
    )  # fmt: skip
    assert (folder / "run/requests.jsonl").exists(), done.stderr
    lines = (folder / "run/requests.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["outcome"] for row in rows} == {"ok"}, done.stdout
    return sorted(rows, key=lambda row: (row["turn"], row["session_id"]))


def prefill_joules(rows: list[dict[str, Any]]) -> float:
    joules: float = sum(row["energy"]["prefill_joules"] for row in rows)
    return joules


def test_a_cached_history_costs_less_prefill(
    talkative: Metered, terse: Metered, tmp_path: Path
) -> None:
    seed = next(SEEDS)
    cached = replay(talkative, tmp_path / "cached", seed=seed)
    anew = replay(terse, tmp_path / "anew", seed=seed)
    assert len(cached) == len(anew) == SESSIONS * TURNS
    for row, other in zip(cached, anew, strict=True):
        assert row["output_tokens"] == other["output_tokens"] == 16
        history = row["turn"] * WORDS
        assert row["prompt_tokens"] > history + WORDS
        # what the turn before had sent, in whole blocks of 128; its own words not
        assert history - 128 < row["cached_tokens"] < history + 128
        assert other["prompt_tokens"] > history + WORDS
        assert other["cached_tokens"] is None
    # three and four times as many tokens to compute, in steps that the machine's other
    # work makes longer by half or more: 0.5 to 0.7 of the joules in five runs
    later = [row for row in cached if row["turn"] >= 2]
    later_anew = [row for row in anew if row["turn"] >= 2]
    assert 0 < prefill_joules(later) < prefill_joules(later_anew)
