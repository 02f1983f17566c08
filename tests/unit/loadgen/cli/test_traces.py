"""`loadgen traces` as a person runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from loadgen.cli.traces import traces
from loadgen.errors import LoadgenError, TraceError, UsageError
from loadgen.traces.readers.open import open_trace
from loadgen.traces.statistics import trace_statistics
from loadgen.traces.statistics_file import load_statistics
from loadgen.traces.synth import digest
from tests.support.paths import ROOT
from tests.support.trace_files import SAMPLES, read_all, turns_of

SHIPPED = ROOT / "traces"


def run(*words: Any, obj: Any = None) -> Result:
    result = CliRunner().invoke(traces, [str(word) for word in words], obj=obj)
    if isinstance(result.exception, LoadgenError):
        raise result.exception
    return result


@pytest.mark.parametrize("name", traces.commands)
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "Example:" in result.output
    assert f"loadgen traces {name} " in result.output


def test_stats_shows_lengths_arrivals_and_losses() -> None:
    result = run("stats", SAMPLES / "burstgpt-v1.csv")
    assert "3 requests in 3 sessions (3 conversation)" in result.output
    assert re.search(r"p50 +472 +230", result.output)
    assert "cv of gaps" in result.output
    assert "dropped 2: failed" in result.output
    result = run("stats", SAMPLES / "mt-bench-2.jsonl")
    assert "prompts are text" in result.output
    assert "no timestamps: replay it with --rate" in result.output


def test_stats_speaks_json() -> None:
    result = run("stats", SAMPLES / "azure-conv-50.csv", "--json")
    found = json.loads(result.output)
    assert found["requests"] == 50
    assert found["input_tokens"]["n"] == 50
    assert found["arrivals"]["ties"] == 0
    assert found["format"] == "azure"


def test_synthetic_traces_say_so() -> None:
    assert "SYNTHETIC" in run("stats", SHIPPED / "sharegpt.jsonl").output
    assert "SYNTHETIC" not in run("stats", SAMPLES / "azure-conv-50.csv").output


def test_convert_writes_a_trace_that_is_read_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = run("convert", SAMPLES / "burstgpt-v1.csv", "-o", out, "--to", "loadtrace")
    assert f"{out}: 3 requests, loadtrace" in result.output
    assert "dropped 2: failed" in result.output
    info, sessions = read_all(out)
    assert len(sessions) == 3
    assert info.warnings == [
        "2 rows were dropped when the trace was made: failed",
        "1 rows were dropped when the trace was made: zero_input",
    ]


@pytest.mark.parametrize(
    "command", [("stats",), ("convert", "-o", "x", "--to", "vllm")]
)
def test_a_trace_that_is_not_there_is_one_clear_line(command: tuple[str, ...]) -> None:
    with pytest.raises(TraceError, match=r"missing\.csv: no such file"):
        run(*command, "missing.csv")


def test_an_unknown_format_lists_the_known() -> None:
    result = run("stats", SAMPLES / "mooncake-20.jsonl", "--format", "x")
    assert result.exit_code == 2
    assert "'azure', 'burstgpt'" in result.output


def test_synth_takes_any_trace_with_lengths(tmp_path: Path) -> None:
    out = tmp_path / "made.jsonl"
    trace = SAMPLES / "azure-code-50.csv"
    result = run("synth", "--from", trace, "--n", 70, "--seed", 5, "-o", out)
    assert "70 synthetic requests" in result.output
    info, sessions = read_all(out)
    assert (len(sessions), info.name, info.kind) == (70, "made", "code")
    assert info.synthetic
    assert info.header["synthetic"]["seed"] == 5
    assert sessions[-1].turns[0].at_seconds is not None
    run("synth", "--from", trace, "--n", 70, "--no-arrivals", "-o", out)
    assert read_all(out)[1][-1].turns[0].at_seconds is None


def test_statistics_are_kept_and_taken_again(tmp_path: Path) -> None:
    kept, one, two = (tmp_path / name for name in ("k.json", "one.jsonl", "two.jsonl"))
    source = ("--from", SAMPLES / "sharegpt-lengths.csv")
    run("synth", *source, "--save-statistics", kept, "-o", one, "--n", 20)
    run("synth", "--from", kept, "-o", two, "--n", 20)
    assert turns_of(read_all(one)[1]) == turns_of(read_all(two)[1])


def test_synth_without_anything_to_write_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to write"):
        run("synth", "--from", SAMPLES / "azure-code-50.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"statistics": "tracestats/1"}', "not tracestats/1: Object missing required"),
        ('{"format": "length_bins/1", "datasets": {"a": {}}}', "a: not length_bins/1"),
    ],
)
def test_broken_statistics_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=message):
        run("synth", "--from", path, "-o", tmp_path / "out", "--dataset", "a")


def test_an_output_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    out = tmp_path / "missing" / "out.jsonl"
    with pytest.raises(UsageError, match="cannot be written"):
        run("synth", "--from", SAMPLES / "azure-code-50.csv", "-o", out)


COMMANDS = re.findall(
    r"^loadgen (traces synth --from traces/statistics.*)$",
    (SHIPPED / "README.md").read_text().replace("\\\n", " "),
    re.MULTILINE,
)


@pytest.mark.parametrize("command", COMMANDS)
def test_shipped_traces_are_made_by_the_documented_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = command.split()[1:]
    shipped = Path(words[-1])
    run(*words[:-1], tmp_path / shipped.name)
    assert (tmp_path / shipped.name).read_bytes() == shipped.read_bytes()


def test_there_is_a_documented_command_for_every_shipped_trace() -> None:
    made = {command.split()[-1] for command in COMMANDS}
    assert made == {f"traces/{path.name}" for path in SHIPPED.glob("*.jsonl")}


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.jsonl")), ids=lambda p: p.name)
def test_a_shipped_trace_names_source_licence_and_statistics(path: Path) -> None:
    info, sessions = open_trace(path)
    count = sum(len(session.turns) for session in sessions)
    header = info.header
    assert header["count"] == info.kept == count
    assert header["source"]["licence"] in {"CC-BY-4.0", "Apache-2.0"}
    assert len(header["source"]["citation"]) > 20
    statistics = load_statistics(SHIPPED / "statistics" / f"{path.stem}.json")
    assert header["synthetic"]["bins_sha256"] == digest(statistics)


def test_the_shipped_conversations_fit_a_run_of_a_hundred_seconds() -> None:
    info, sessions = read_all(SHIPPED / "sharegpt.jsonl")
    assert 330 <= info.kept <= 400
    assert max(len(session.turns) for session in sessions) > 1
    assert {turn.history for turn in turns_of(sessions)} == {"append"}


def test_fetch_lists_what_there_is() -> None:
    output = run("fetch", "--list").output
    assert "azure-2023-conv" in output
    assert "CC-BY-4.0" in output


def test_fetch_without_a_name_lists_the_names() -> None:
    with pytest.raises(UsageError, match="name an original: azure-2023-conv, "):
        run("fetch")


def test_the_group_is_a_click_group() -> None:
    assert isinstance(traces, click.Group)
    assert set(traces.commands) == {"stats", "convert", "synth", "fetch"}


ROWS = re.findall(
    r"^\| `([a-z-]+\.jsonl)` \| ([\d,]+) \| ([\d,]+)[^|]* "
    r"\| ([\d,. ]+) \| ([\d,. ]+) \|",
    (SHIPPED / "README.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row[0]))
def test_the_readmes_figures_are_those_of_the_shipped_trace(
    row: tuple[str, ...],
) -> None:
    name, *printed = row
    found = trace_statistics(open_trace(SHIPPED / name)[1])
    assert found.input_tokens is not None
    assert found.output_tokens is not None
    figures = [f"{found.requests:,}", f"{found.sessions:,}"]
    for spread in (found.input_tokens, found.output_tokens):
        parts = (spread.mean, spread.percentiles["p50"], spread.percentiles["p95"])
        figures.append(", ".join(f"{part:,.0f}" for part in parts))
    assert [text.replace("27.6", "28") for text in printed] == figures


def test_the_readme_has_a_row_for_every_shipped_trace() -> None:
    assert {row[0] for row in ROWS} == {path.name for path in SHIPPED.glob("*.jsonl")}
