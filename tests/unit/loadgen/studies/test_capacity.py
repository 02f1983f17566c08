"""The smallest fleet that serves a load within its limits."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from loadgen.cli.capacity import capacity as command
from loadgen.errors import LoadgenError, PlanError, UsageError
from loadgen.simulator.core.aggregate import Workload, run_aggregate, step_cost
from loadgen.simulator.core.config import EngineConfig
from loadgen.studies import capacity
from loadgen.studies.capacity import (
    Demand,
    FleetRow,
    answer_of,
    own_gaps,
    play,
    search,
    share_of,
)

COST = step_cost(EngineConfig())
LIMITS = {"ttft": 0.5, "tpot": 0.05}


def pattern(count: int = 50, seed: int = 5) -> Workload:
    rng = np.random.default_rng(seed)
    return Workload(
        np.cumsum(rng.exponential(1.0, count)),
        np.clip(rng.lognormal(6.5, 0.8, count), 8, 6000).astype(np.int64),
        np.zeros(count, np.int64),
        np.clip(rng.lognormal(4.0, 0.8, count), 2, 400).astype(np.int64),
    )


def turns() -> Workload:
    """Two sessions, of two turns and of one."""
    return Workload(
        np.array([0.0, 0.0, 1.0]), np.array([100, 250, 40]), np.array([0, 96, 0]),
        np.array([20, 30, 10]), np.array([1, -1, -1]), np.array([0.0, 2.0, 0.0]),
        np.array([False, True, False]),
    )  # fmt: skip


def searched(demand: Demand, **more: Any) -> list[FleetRow]:
    asked: dict[str, Any] = {
        "wanted_fraction": 0.99, "gpus_per_engine": 1, "engines_max": 16,
        "processes": 1,
    }  # fmt: skip
    return search(demand, COST, LIMITS, **(asked | more))


def test_the_shares_of_a_fleet_are_the_whole_load() -> None:
    demand = Demand(pattern(), None, 300, 10.0)
    shares = [share_of(demand, 3, which) for which in range(3)]
    alone = share_of(demand, 1, 0)
    assert sum(len(share) for share in shares) == len(alone) == 300
    together = np.sort(np.concatenate([share.start_seconds for share in shares]))
    assert together == pytest.approx(alone.start_seconds)
    tokens = sum(int(share.output_tokens.sum()) for share in shares)
    assert tokens == int(alone.output_tokens.sum())


def test_turns_of_a_session_stay_together() -> None:
    demand = Demand(turns(), None, 30, 2.0)
    share = share_of(demand, 2, 0)  # the first session of each pair
    assert share.next_turn is not None
    assert share.prompt_tokens.tolist() == [100, 250] * 10
    assert share.next_turn.tolist()[:4] == [1, -1, 3, -1]
    found = run_aggregate(share, COST)
    gap = found.start_seconds[1::2] - found.last_token_seconds[::2]
    assert gap == pytest.approx(2.0)


def test_the_answer_is_enough_and_one_engine_less_is_not() -> None:
    demand = Demand(pattern(), None, 2_000, 45.0)
    rows = searched(demand)
    answer = answer_of(rows)
    assert answer is not None
    assert answer.met_fraction >= 0.99
    below = [row for row in rows if row.engines == answer.engines - 1]
    assert below
    assert not below[0].is_enough


def test_what_a_sample_promised_is_played_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capacity, "SAMPLE_REQUESTS", 100)
    rows = searched(Demand(pattern(), None, 3_000, 45.0))
    assert {row.basis for row in rows} == {"sample", "whole"}
    answer = answer_of(rows)
    assert answer is not None
    assert answer.requests == 3_000


def test_a_fleet_that_is_never_enough_has_no_answer() -> None:
    rows = searched(Demand(pattern(), None, 1_000, 200.0), engines_max=2)
    assert answer_of(rows) is None
    assert max(row.engines for row in rows) == 2


def test_more_engines_draw_more_and_their_joules_are_power_times_time() -> None:
    demand = Demand(pattern(), None, 600, 10.0)
    rows = [
        capacity.fleet_row(
            demand, COST, engines,
            [play(demand, COST, LIMITS, engines, which) for which in range(engines)],
            "whole", wanted_fraction=0.99, gpus_per_engine=1,
        )
        for engines in (1, 4)
    ]  # fmt: skip
    assert rows[1].watts > rows[0].watts
    seconds = rows[1].joules_per_request * 600 / rows[1].watts
    assert seconds == pytest.approx(60, rel=0.15)


def test_requests_that_no_engine_holds_are_missed() -> None:
    cost = step_cost(EngineConfig(kv_blocks=20))
    work = pattern()
    part = play(Demand(work, None, 50, 1.0), cost, {}, 1, 0)
    assert part.unfit == int((work.prompt_tokens + work.output_tokens > 320).sum())
    assert part.good == 50 - part.unfit


def test_the_traces_own_gaps_keep_their_shape() -> None:
    gaps = own_gaps(pattern())
    assert gaps is not None
    assert gaps.mean() == pytest.approx(1.0)
    still = Workload(*(np.zeros(3, np.int64),) * 4)  # type: ignore[arg-type]  # all at once
    assert own_gaps(still) is None


def trace(folder: Path) -> Path:
    path = folder / "t.jsonl"
    lines: list[dict[str, Any]] = [{"loadtrace": "loadtrace/1", "name": "t"}]
    lines += [{"input_length": 500 + n, "output_length": 40} for n in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_command_answers_in_every_form(tmp_path: Path) -> None:
    asked = [str(trace(tmp_path)), "--slo", "ttft:500,tpot:50", "--rate", "20"]
    asked += ["--requests", "500"]
    text = CliRunner().invoke(command, asked)
    assert text.exit_code == 0, text.output
    assert "1 GPUs (llama-3.1-8b on 1 x NVIDIA H100" in text.output
    assert "SIMULATED" in text.output
    told = json.loads(CliRunner().invoke(command, [*asked, "--format", "json"]).stdout)
    assert told["answer"]["gpus"] == 1
    rows = CliRunner().invoke(command, [*asked, "--format", "csv"]).stdout
    assert next(csv.DictReader(io.StringIO(rows)))["basis"] == "whole"


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        (["--slo", "ttft:500"], UsageError, "--rate R"),
        (["--slo", "ttft:500", "--rate", "1", "--requests-per-day", "5"], UsageError,
         "either"),
        (["--slo", "itl:50", "--rate", "1"], UsageError, "known here"),
        (["--slo", "fast", "--rate", "1"], UsageError, "fast"),
        (["--slo", "ttft:1", "--rate", "nan"], UsageError, "--rate nan"),
        (["--slo", "ttft:1", "--rate", "1", "--wanted", "nan"], UsageError, "--wanted"),
        (["--slo", "ttft:1", "--rate", "1", "--n-gpus", "8", "--gpus-max", "4"],
         UsageError, "--gpus-max 4"),
        (["--slo", "ttft:1", "--rate", "1", "--model", "llama-3.1-70b"], UsageError,
         "does not fit"),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list)
    else "",
)  # fmt: skip
def test_bad_input_is_one_line(
    tmp_path: Path, words: list[str], error: type[LoadgenError], text: str
) -> None:
    found = CliRunner().invoke(command, [str(trace(tmp_path)), *words]).exception
    assert isinstance(found, error)
    assert text in str(found)


def test_a_trace_of_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(
        '{"loadtrace": "loadtrace/1", "name": "t"}\n{"prompt": "a", "output_length": 3}'
        "\n"
    )
    asked = [str(path), "--slo", "ttft:500", "--rate", "1"]
    found = CliRunner().invoke(command, asked).exception
    assert isinstance(found, PlanError)
    assert "no prompt length" in str(found)
