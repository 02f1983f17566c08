"""A run is done again from its own files: options there and back, secrets not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadgen.analysis.schema import RunRecord
from loadgen.errors import UsageError
from loadgen.run.config import ReplayConfig, parse_stages
from loadgen.run.record import (
    SETTINGS,
    command_line,
    from_file,
    from_run,
    options_of,
    run_record,
)
from proxy.process.options import configured

FULL = ReplayConfig(
    trace=Path("synthetic"), rate=float("inf"), goodput=("ttft:200", "tpot:50"),
    headers=(("authorization", "Bearer s3cret"),), extra_body={"top_k": 3},
    metadata=(("a", "1,5"), ("b", "x=y")), ignore_eos=False, top_p=0.9, input_len=64,
    power="dcgm,rapl", api_key="s3cret", out=Path("runs/x"), duration=5.0,
)  # fmt: skip


def record(config: ReplayConfig) -> RunRecord:
    return run_record(config, "http://127.0.0.1:1", "m", {"version": "1.2"})


def again(record: RunRecord, folder: Path, given: set[str]) -> ReplayConfig:
    return configured(ReplayConfig, from_run(folder, record, given))


def test_options_come_back_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "plan.jsonl").write_text("")
    found = again(record(replace(FULL, headers=())), tmp_path, set())
    assert found == replace(
        FULL, headers=(), api_key=None, out=None, plan=tmp_path / "plan.jsonl"
    )


def test_every_option_is_recorded_unless_it_has_no_value() -> None:
    options = options_of(FULL)
    unset = {s.key for s in SETTINGS if getattr(FULL, s.field) in (None, ())}
    assert set(options) == {s.key for s in SETTINGS} - unset - {"out", "quiet"}
    assert options["rate"] == "inf"


def test_no_secret_is_recorded() -> None:
    line = command_line(
        "loadgen", ["replay", "--header", "k=s3cret", "--header=a=s3cret"]
    )
    assert line == "loadgen replay --header 'k=***' '--header=a=***'"
    assert "s3cret" not in f"{record(replace(FULL, command=line))}"


def test_a_header_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "plan.jsonl").write_text("")
    with pytest.raises(UsageError, match="--header authorization, whose value is not"):
        from_run(tmp_path, record(FULL), set())
    assert from_run(tmp_path, record(FULL), {"header"})["trace"] == Path("synthetic")


def test_another_load_is_planned_anew_from_the_same_trace_only(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("x")
    config = ReplayConfig(trace=trace, rate=2.0)
    kept = record(config)
    assert again(kept, tmp_path, {"rate"}).plan is None
    trace.write_text("y")
    with pytest.raises(UsageError, match=r"--rate makes another plan, and .* is not"):
        from_run(tmp_path, kept, {"rate"})


def test_a_plan_or_options_that_are_gone_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plan\.jsonl is gone"):
        from_run(tmp_path, record(replace(FULL, headers=())), set())
    with pytest.raises(UsageError, match="from a version before"):
        from_run(tmp_path, None, set())


def test_a_file_has_options_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        'trace = "t.jsonl"\nrate = inf\ngoodput = ["ttft:200", "tpot:50"]\n'
        "metadata = {a = 1}\nextra-body = {top_k = 3}\nignore_eos = false\n"
    )
    found = configured(ReplayConfig, from_file(str(path)))
    assert found == ReplayConfig(
        trace=Path("t.jsonl"), rate=float("inf"), goodput=("ttft:200", "tpot:50"),
        metadata=(("a", "1"),), extra_body={"top_k": 3}, ignore_eos=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raet = 3", "unknown key 'raet'; known: trace, "),
        ("rate = 0", "rate is 0: 0 is not above 0"),
        ("trace = 3", "trace is 3, expected a path"),
        ("rate = {a = 1}", "rate is"),
        ("rate", "is not TOML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        from_file(str(path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("60s@2,120s@8", ((60.0, 2.0), (120.0, 8.0))),
        ("2m@0.5, 1h@1,3@0", ((120.0, 0.5), (3600.0, 1.0), (3.0, 0.0))),
    ],
)
def test_stages_are_durations_at_rates(text: str, stages: Any) -> None:
    assert parse_stages(text) == stages


@pytest.mark.parametrize(
    "text", ["", "60", "60s", "@2", "0s@2", "-1s@2", "60s@inf", "5s@0", "6d@1", "1s@٣"]
)
def test_what_is_no_stage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"stage|DURATION|lasts"):
        parse_stages(text)
