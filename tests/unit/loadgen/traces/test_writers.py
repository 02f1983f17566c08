"""Traces written for other tools, and what a format cannot hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.traces.convert import convert_trace
from loadgen.traces.readers.open import open_trace
from loadgen.traces.trace import Session, Turn
from loadgen.traces.writers import WRITERS
from tests.support.trace_files import SAMPLES, read_all, real_trace, turns_of

ALL = sorted(
    p
    for p in SAMPLES.iterdir()
    if p.is_file() and p.suffix != ".md" and p.name[0] != "."
)


def in_microseconds(sessions: list[Session]) -> list[Turn]:
    """Turns with instants as whole microseconds: a file has milliseconds."""
    return [
        replace(turn, at_seconds=round((turn.at_seconds or 0.0) * 1e6))
        for turn in turns_of(sessions)
    ]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_loadtrace_loses_nothing_of_any_format(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    before, _ = convert_trace(path, out, "loadtrace")
    expected = read_all(path)[1]
    info, found = read_all(out)
    assert (info.format, info.name) == ("loadtrace", before.name)
    assert info.hash_block_size == before.hash_block_size
    assert in_microseconds(found) == in_microseconds(expected)
    assert [len(s.turns) for s in found] == [len(s.turns) for s in expected]
    assert info.header["source"]["path"] == path.name or info.header["synthetic"]
    assert info.header["count"] == len(turns_of(expected))
    assert info.header["dropped"] == before.dropped


def test_mooncake_keeps_blocks_and_puts_the_header_beside(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    convert_trace(SAMPLES / "mooncake-20.jsonl", out, "mooncake")
    assert out.read_bytes().count(b"\n") == 20
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    source = (SAMPLES / "mooncake-20.jsonl").read_text().splitlines()
    assert rows == [json.loads(line) for line in source]
    header = json.loads((tmp_path / "out.jsonl.meta.json").read_text())
    assert header["hash_block_size"] == 512
    assert turns_of(read_all(out, "mooncake")[1]) == turns_of(
        read_all(SAMPLES / "mooncake-20.jsonl", "mooncake")[1]
    )


def test_requests_without_blocks_get_blocks_nobody_shares(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    convert_trace(SAMPLES / "azure-conv-50.csv", out, "mooncake")
    _, found = read_all(out, "mooncake")
    ids = [block for turn in turns_of(found) for block in turn.hash_ids]
    assert len(set(ids)) == len(ids)


def test_azure_csv_is_read_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    convert_trace(SAMPLES / "azure-code-50.csv", out, "azure-csv")
    info, found = read_all(out)
    expected = turns_of(read_all(SAMPLES / "azure-code-50.csv")[1])
    assert info.format == "azure"
    for one, other in zip(turns_of(found), expected, strict=True):
        assert one.at_seconds == pytest.approx(other.at_seconds, abs=1e-7)
        assert (one.input_tokens, one.output_tokens) == (
            other.input_tokens,
            other.output_tokens,
        )


def test_vllm_gets_seconds_for_lengths_and_prompts_for_text(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    convert_trace(SAMPLES / "azure-conv-50.csv", out, "vllm")
    second = json.loads(out.read_text().splitlines()[1])
    assert second["timestamp"] == 4.314579
    assert (second["input_length"], second["output_length"]) == (396, 109)
    assert len(second["hash_ids"]) == 1
    info, count = convert_trace(SAMPLES / "sharegpt.json", out, "vllm")
    assert json.loads(out.read_text().splitlines()[0]) == {
        "prompt": "What is a joule?",
        "output_tokens": 5,
    }
    assert count == 2
    assert any("messages are joined" in warning for warning in info.warnings)
    assert "vllm's data set has no conversations: first turns only" in info.warnings


def test_a_flat_format_gets_whole_prompts_of_a_conversation(tmp_path: Path) -> None:
    trace, out = tmp_path / "t.jsonl", tmp_path / "out.csv"
    rows = [
        {"session_id": "a", "turn": k, "timestamp": 1000 * k, "history": "append"}
        | {"input_length": 10, "output_length": 5}
        for k in (1, 2, 3)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    info, _ = convert_trace(trace, out, "azure-csv")
    assert [t.input_tokens for t in turns_of(read_all(out)[1])] == [10, 25, 40]
    assert any("whole history as prompt" in warning for warning in info.warnings)


@pytest.mark.parametrize("target", sorted(set(WRITERS) - {"loadtrace"}))
def test_a_format_refuses_what_it_cannot_hold(target: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="requests without timestamps"):
        convert_trace(SAMPLES / "sharegpt-lengths.csv", out, target)
    assert list(tmp_path.iterdir()) == []


def test_text_without_counts_is_refused_where_lengths_are_needed(
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match="text without token counts"):
        convert_trace(SAMPLES / "mt-bench-2.jsonl", tmp_path / "out", "mooncake")


@pytest.mark.data
def test_the_source_of_a_published_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    convert_trace(real_trace("azure_llm_2023_code.csv.gz"), out, "loadtrace")
    source = open_trace(out)[0].header["source"]
    assert source["repo"] == "Azure/AzurePublicDataset"
    assert source["licence"] == "CC-BY-4.0"
    assert "Splitwise" in source["citation"]
