"""Asked against served lengths of a whole run, conversations played live included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import loadgen, records, summary_of, write_trace

TURNS = 3
TRACE: list[dict[str, Any]] = [
    {"loadtrace": "loadtrace/1", "name": "talks", "kind": "conversation"},
    *(
        {
            "session_id": f"s{session}", "turn": turn + 1, "history": "append",
            "input_length": 20 + 10 * session + turn, "output_length": 400,
            "delay": 1,
        }
        for session in range(3)
        for turn in range(TURNS)
    ),
]  # fmt: skip


def replayed(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    done = loadgen(
        "replay", write_trace(folder, TRACE), "--rate", "inf", "--power", "none",
        "--out", folder / "run", *options, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return summary_of(folder / "run"), " ".join(done.stdout.split())


def test_a_forced_conversation_is_served_exactly_as_the_trace_has_it(
    tmp_path: Path,
) -> None:
    summary, printed = replayed(tmp_path, "--output-len", "9")
    rows = records(tmp_path / "run")
    for row in rows:
        own, turn = row["requested_input_tokens"], row["turn"]
        before = sum(own - turn + k for k in range(turn)) + 9 * turn
        assert row["requested_prompt_tokens"] == own + before == row["prompt_tokens"]
        assert row["requested_output_tokens"] == 9 == row["output_tokens"]
    assert summary["input_lengths"]["exact_fraction"] == 1
    assert summary["input_lengths"]["live_requests"] == 3 * (TURNS - 1)
    assert summary["output_lengths"]["served_tokens"] == 9 * len(rows)
    assert printed.count("exact in every request") == 2
    assert "ended early" not in printed


def test_replies_that_end_by_themselves_shorten_the_prompts_after_them(
    tmp_path: Path,
) -> None:
    summary, printed = replayed(tmp_path, "--backend", "tgi")
    rows = records(tmp_path / "run")
    prompts, replies = summary["input_lengths"], summary["output_lengths"]
    for side, asked, served in (
        (prompts, "requested_prompt_tokens", "prompt_tokens"),
        (replies, "requested_output_tokens", "output_tokens"),
    ):
        assert side["asked_tokens"] == sum(row[asked] for row in rows)
        assert side["served_tokens"] == sum(row[served] for row in rows)
        assert side["requests"] == len(rows) == 3 * TURNS
    early = sum(row["output_tokens"] < 400 for row in rows)
    assert early == replies["shorter_requests"] > 0
    assert f"{early} of 9 replies ended early, the engine stopped by itself" in printed
    assert prompts["shorter_requests"] > 0
    assert prompts["served_over_asked"] == pytest.approx(
        prompts["served_tokens"] / prompts["asked_tokens"]
    )
    assert "6 carry the replies really given; asked counts those of" in printed
    assert prompts["ratio_p50_without_live"] == 1
    assert "tokenizer" not in printed
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{early} of 9 replies ended early" in page
    assert "6 carry the replies really given" in page
