"""Costs learnt from a simulated run predict another load; what cannot teach is told."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from loadgen.analysis.schema import Summary
from loadgen.analysis.summary import RunInfo
from loadgen.cli.predict import predict as command
from loadgen.errors import LoadgenError, PlanError, RunError, UsageError
from loadgen.report.sheet import render
from loadgen.results.results import EnergyPart, Result
from loadgen.run.finish import finish_run
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import simulate
from loadgen.simulator.core.scheduler import SimRequest
from loadgen.studies import prediction_sheet as shown
from loadgen.studies.predict import (
    FittedEngine,
    PredictionReport,
    hold,
    learn,
)
from tests.support.canned_run import made_results, write_run
from tests.support.shown import printed

IDLE_WATTS = 110.0


def run(
    folder: Path, *, count: int = 240, rate: float = 6.0, median: float = 6.8,
    output: float = 4.0, seed: int = 1,
) -> Path:  # fmt: skip
    """A run folder whose engine is the simulator in virtual time, joules its truth."""
    rng = np.random.default_rng(seed)
    starts = np.round(np.cumsum(rng.exponential(1 / rate, count)), 6).tolist()
    prompts = np.clip(rng.lognormal(median, 0.9, count), 8, 8000).astype(int)
    outputs = np.clip(rng.lognormal(output, 0.8, count), 2, 500).astype(int)
    trace = simulate(
        [
            SimRequest(f"r{n}", starts[n], int(prompts[n]), int(outputs[n]))
            for n in range(count)
        ],
        EngineConfig(),
    )
    results, turns = [], []
    for n in range(count):
        truth, stamps = trace.truth[f"r{n}"], trace.token_seconds[f"r{n}"]
        results.append(
            Result(
                request_id=f"r{n}", session_id=f"s{n}", turn=0, kind="conversation",
                planned_seconds=starts[n], sent_seconds=starts[n],
                first_token_seconds=float(stamps[0]),
                last_token_seconds=float(stamps[-1]),
                finished_seconds=float(stamps[-1]), prompt_tokens=int(prompts[n]),
                cached_tokens=0, output_tokens=int(outputs[n]), outcome="ok",
                energy=EnergyPart(
                    prefill_joules=truth.prefill_joules,
                    decode_joules=truth.decode_joules,
                    idle_share_joules=truth.idle_share_joules,
                    energy_joules=truth.energy_joules, policy="phase",
                    quality="exact", policy_joules={},
                ),
            )
        )  # fmt: skip
        turns.append(
            {
                "session_id": f"s{n}", "start_seconds": starts[n],
                "turns": [
                    {
                        "request_id": f"r{n}", "input_tokens": int(prompts[n]),
                        "output_tokens": int(outputs[n]),
                    }
                ],
            }
        )  # fmt: skip
    write_run(folder, results)
    with (folder / "plan.jsonl").open("a") as plan:
        plan.writelines(json.dumps(turn) + "\n" for turn in turns)
    summary = finish_run(folder, RunInfo(simulated=True))
    energy = msgspec.structs.replace(
        summary.energy, boundary="gpu", measured_joules=trace.total_joules,
        window_seconds=trace.end_seconds, loaded_idle_watts=IDLE_WATTS,
    )  # fmt: skip
    rewrite(folder, msgspec.structs.replace(summary, energy=energy))
    return folder


def rewrite(folder: Path, summary: Summary) -> None:
    (folder / "summary.json").write_bytes(msgspec.json.encode(summary))


def changed(folder: Path, **energy: Any) -> None:
    summary = summary_of(folder)
    energies = msgspec.structs.replace(summary.energy, **energy)
    rewrite(folder, msgspec.structs.replace(summary, energy=energies))


def summary_of(folder: Path) -> Summary:
    return msgspec.json.decode((folder / "summary.json").read_bytes(), type=Summary)


def results_of(folder: Path) -> list[Result]:
    lines = (folder / "requests.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=Result) for line in lines]


def learnt(*folders: Path) -> FittedEngine:
    return learn(
        [folder.name for folder in folders],
        [(summary_of(folder), results_of(folder)) for folder in folders],
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "base")


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2}, {"rate": 3.0, "seed": 3}, {"rate": 10.0, "seed": 4},
        {"median": 7.4, "output": 3.2, "seed": 5, "rate": 4.0},
    ],
    ids=["same kind", "half the rate", "more", "long prompts, short replies"],
)  # fmt: skip
def test_another_load_is_predicted_within_five_percent(
    base: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    engine = learnt(base)
    held_out = run(tmp_path / "other", count=160, **other)
    made, held = hold(engine, "other", held_out / "plan.jsonl", summary_of(held_out))
    assert held.joules_error_fraction == pytest.approx(0, abs=0.05)
    assert held.watts_error_fraction == pytest.approx(0, abs=0.05)
    assert made.low_joules < made.joules < made.high_joules


def test_costs_have_units_and_intervals_and_are_never_negative(base: Path) -> None:
    engine = learnt(base)
    for each in (*engine.learnt.joules, *engine.learnt.seconds):
        if each.value is None:
            assert each.term == "cached_token"  # there were none in the run
            continue
        assert each.low is not None
        assert each.high is not None
        assert 0 <= each.low <= each.value <= each.high
        assert each.unit.startswith(("J per", "s per"))
    assert 0 <= engine.learnt.energy_error_fraction < 0.05
    assert engine.learnt.time_error_fraction < 0.05


def test_two_runs_teach_together(base: Path, tmp_path: Path) -> None:
    more = run(tmp_path / "more", rate=2.0, count=100, seed=9)
    engine = learnt(base, more)
    assert engine.learnt.requests == 340
    assert engine.learnt.runs == ("base", "more")
    assert 0.01 < learnt(more).learnt.joules[0].value < 5  # type: ignore[operator]  # known


def test_runs_that_cannot_teach_are_one_line(base: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "dark", made_results(60))
    finish_run(tmp_path / "dark", RunInfo())
    with pytest.raises(RunError, match="dark has no energy"):
        learnt(tmp_path / "dark")
    small = run(tmp_path / "small", count=20)
    with pytest.raises(RunError, match="a fit needs 40"):
        learnt(small)
    node = run(tmp_path / "node", count=60)
    changed(node, boundary="node")
    with pytest.raises(RunError, match="two boundaries"):
        learnt(base, node)
    with pytest.raises(RunError, match="never compared"):
        hold(learnt(base), "node", node / "plan.jsonl", summary_of(node))
    changed(node, boundary="gpu", loaded_idle_watts=None)
    with pytest.raises(RunError, match="--idle-watts"):
        learnt(node)


def test_a_load_beyond_what_was_fitted_to_is_named(tmp_path: Path) -> None:
    short = run(tmp_path / "short", output=2.0, count=60)
    far = run(tmp_path / "far", rate=10.0, count=60, output=5.8, seed=8)
    made, _ = hold(learnt(short), "far", far / "plan.jsonl", summary_of(far))
    assert any("in flight" in note for note in made.notes)
    assert any("outputs" in note for note in made.notes)


def test_the_command_predicts_a_trace_in_every_form(base: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines: list[dict[str, Any]] = [{"loadtrace": "loadtrace/1", "name": "t"}]
    lines += [{"input_length": 900, "output_length": 60}] * 50
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = [str(base), str(trace), "--rate", "4", "--holdout", str(base)]
    text = CliRunner().invoke(command, asked)
    assert text.exit_code == 0, text.output
    assert "predicted for trace.jsonl: 50 requests" in text.output
    assert "SIMULATED" in text.output
    told = json.loads(CliRunner().invoke(command, [*asked, "--format", "json"]).output)
    assert told["prediction"]["requests"] == 50
    assert told["held"][0]["joules_error_fraction"] == pytest.approx(0, abs=0.05)
    rows = CliRunner().invoke(command, [*asked, "--format", "csv"]).output
    parts = {row["part"] for row in csv.DictReader(io.StringIO(rows))}
    assert parts == {"coefficient", "prediction", "held"}


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ([], UsageError, "give a TRACE"),
        (["no.jsonl"], LoadgenError, "no.jsonl"),
        (["text.jsonl", "--rate", "1"], PlanError, "no prompt length"),
        (["text.jsonl", "--rate", "fast"], UsageError, "--rate fast"),
        (["--holdout", "no-run"], RunError, "no-run"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], error: type[LoadgenError], text: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    line = {"prompt": "hello", "output_length": 3}
    header = {"loadtrace": "loadtrace/1", "name": "t"}
    Path("text.jsonl").write_text(json.dumps(header) + "\n" + json.dumps(line) + "\n")
    found = CliRunner().invoke(command, [str(base), *words]).exception
    assert isinstance(found, error)
    assert text in str(found)
    assert "\n" not in str(found)


def test_the_tables_fit_a_terminal(base: Path) -> None:
    engine = learnt(base)
    made, held = hold(engine, "base", base / "plan.jsonl", summary_of(base))
    report = PredictionReport(learnt=engine.learnt, prediction=made, held=(held,))
    text = printed(render(shown.sheets(report)), width=80)
    assert max(map(len, text.splitlines())) <= 80
