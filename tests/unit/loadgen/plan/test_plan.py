"""The plan: which requests, when, under which ids; written whole, read as it goes."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadgen.errors import PlanError, TraceError, UsageError
from loadgen.plan.load import Load
from loadgen.plan.plan import PlanHeader, PlannedSession, is_plan, make_plan, read_plan
from tests.support.trace_files import SAMPLES, real_trace


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def planned(
    trace: Path, load: Load, tmp_path: Path
) -> tuple[PlanHeader, list[PlannedSession]]:
    out = tmp_path / "plan.jsonl"
    made, digest = make_plan(trace, load, out)
    header, sessions = read_plan(out)
    assert header == made
    assert digest == hashlib.sha256(out.read_bytes()).hexdigest()
    return header, list(sessions)


def conversation(session: str, turns: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"session_id": session, "turn": k, "input_length": 10, "output_length": 20}
        | {"history": "append"}
        | ({"delay": 4000} if k > 1 else {})
        | more
        for k in range(1, turns + 1)
    ]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Forty conversations of four turns, without timestamps."""
    rows = itertools.chain(*(conversation(f"s{k}", 4) for k in range(40)))
    return written(tmp_path / "chats.jsonl", list(rows))


@pytest.fixture
def timed(tmp_path: Path) -> Path:
    """Eleven requests one second apart, then one ten seconds later."""
    at = [*range(5_000, 16_000, 1_000), 25_000]
    rows = [{"timestamp": t, "input_length": 9, "output_length": 3} for t in at]
    return written(tmp_path / "timed.jsonl", rows)


def starts(sessions: list[PlannedSession]) -> list[float]:
    return [session.start_seconds for session in sessions]


def test_a_rate_is_of_requests_so_sessions_start_at_a_part_of_it(
    chats: Path, tmp_path: Path
) -> None:
    load = Load(rate_per_second=8, arrival="constant")
    header, sessions = planned(chats, load, tmp_path)
    assert starts(sessions)[:3] == [0, 0.5, 1.0]  # 8 / 4 turns = 2 sessions a second
    assert (header.sessions, header.requests) == (40, 160)
    assert header.span_seconds == 19.5
    assert header.rate_per_second == 8
    by_session = Load(session_rate_per_second=2, arrival="constant")
    same, again = planned(chats, by_session, tmp_path)
    assert again == sessions
    assert same.rate_per_second == 8


def test_without_timestamps_auto_is_poisson_and_needs_a_rate(
    chats: Path, tmp_path: Path
) -> None:
    header, sessions = planned(chats, Load(rate_per_second=8, seed=3), tmp_path)
    assert header.arrival == "poisson"
    assert len(set(np.diff(starts(sessions)).round(6))) > 30
    with pytest.raises(PlanError, match="no timestamps: give --rate R"):
        make_plan(chats, Load(), tmp_path / "p")
    with pytest.raises(PlanError, match="which --speed needs: give --rate R instead"):
        make_plan(chats, Load(speed=2), tmp_path / "p")
    load = Load(arrival="trace", rate_per_second=1)
    with pytest.raises(PlanError, match="which --arrival trace needs"):
        make_plan(chats, load, tmp_path / "p")


def test_with_timestamps_auto_keeps_the_traces_own_timing(
    timed: Path, tmp_path: Path
) -> None:
    header, sessions = planned(timed, Load(), tmp_path)
    assert starts(sessions) == [*range(11), 20]
    assert (header.arrival, header.rate_per_second) == ("trace", None)


def test_a_rate_stretches_the_traces_own_gaps_and_keeps_their_shape(
    timed: Path, tmp_path: Path
) -> None:
    own = starts(planned(timed, Load(), tmp_path)[1])
    header, sessions = planned(timed, Load(rate_per_second=5), tmp_path)
    assert header.arrival == "trace"
    found = starts(sessions)
    assert 11 / found[-1] == pytest.approx(5)  # gaps over span
    assert np.array(found) / found[-1] == pytest.approx(np.array(own) / own[-1])


def test_speed_two_is_twice_as_fast_for_think_times_too(tmp_path: Path) -> None:
    rows = conversation("a", 2, timestamp=1000)
    rows[1]["timestamp"] = 7000
    trace = written(
        tmp_path / "t.jsonl", [*rows, *conversation("b", 1, timestamp=9000)]
    )
    header, sessions = planned(trace, Load(speed=2), tmp_path)
    assert header.speed == 2
    assert starts(sessions) == [0, 4]
    second = sessions[0].turns[1]
    assert (second.at_seconds, second.think_seconds) == (3.0, 2.0)


def test_a_rate_moves_later_turns_with_their_session(tmp_path: Path) -> None:
    rows = conversation("a", 2, timestamp=0)
    rows[1]["timestamp"] = 6000
    trace = written(
        tmp_path / "t.jsonl", [*rows, *conversation("b", 2, timestamp=8000)]
    )
    # two sessions 8 s apart are 0.125 a second and 0.25 requests a second
    _, sessions = planned(trace, Load(rate_per_second=0.5), tmp_path)
    assert starts(sessions) == [0, 4]
    assert sessions[0].turns[1].at_seconds == 3.0
    assert sessions[0].turns[1].think_seconds == 4.0  # a person is not faster
    redrawn = Load(rate_per_second=0.5, arrival="constant")
    _, sessions = planned(trace, redrawn, tmp_path)
    assert sessions[0].turns[1].at_seconds == 6.0


def test_other_processes_on_a_timed_trace_keep_its_rate_unless_told(
    timed: Path, tmp_path: Path
) -> None:
    header, sessions = planned(timed, Load(arrival="constant"), tmp_path)
    assert starts(sessions)[1] == pytest.approx(20 / 11, abs=1e-6)
    assert header.rate_per_second == pytest.approx(11 / 20)


def test_a_rate_of_inf_sends_everything_at_once(timed: Path, tmp_path: Path) -> None:
    header, sessions = planned(timed, Load(rate_per_second=math.inf), tmp_path)
    assert set(starts(sessions)) == {0.0}
    assert (header.arrival, header.rate_per_second) == ("inf", None)


def test_burstiness_is_told_only_where_it_matters(chats: Path, tmp_path: Path) -> None:
    load = Load(rate_per_second=4, arrival="gamma", burstiness=0.25)
    assert planned(chats, load, tmp_path)[0].burstiness == 0.25
    load = Load(rate_per_second=4, burstiness=0.25)
    assert planned(chats, load, tmp_path)[0].burstiness is None


def test_num_prompts_takes_the_first_requests_and_cuts_the_last_session(
    chats: Path, tmp_path: Path
) -> None:
    load = Load(rate_per_second=4, num_prompts=10)
    header, sessions = planned(chats, load, tmp_path)
    assert [len(session.turns) for session in sessions] == [4, 4, 2]
    assert header.requests == 10
    load = Load(rate_per_second=4, num_prompts=1000)
    header, _ = planned(chats, load, tmp_path)
    assert header.requests == 160
    assert "the trace has 160 requests, 1000 were asked for" in header.notes


def test_the_rate_is_that_of_the_requests_taken(timed: Path, tmp_path: Path) -> None:
    load = Load(rate_per_second=2, num_prompts=11)  # all but the long gap
    _, sessions = planned(timed, load, tmp_path)
    assert starts(sessions) == [k / 2 for k in range(11)]


def test_a_duration_cuts_by_the_start_of_the_session(
    chats: Path, tmp_path: Path
) -> None:
    load = Load(rate_per_second=8, arrival="constant", duration_seconds=2)
    header, sessions = planned(chats, load, tmp_path)
    assert starts(sessions) == [0, 0.5, 1.0, 1.5]
    assert header.requests == 16
    assert header.span_seconds == 1.5


def test_an_output_length_replaces_the_traces(chats: Path, tmp_path: Path) -> None:
    load = Load(rate_per_second=8, output_tokens=7)
    _, sessions = planned(chats, load, tmp_path)
    assert {t.output_tokens for s in sessions for t in s.turns} == {7}


def test_what_is_too_long_is_dropped_and_counted(chats: Path, tmp_path: Path) -> None:
    # turns end at 30, 60, 90 and 120 tokens of history
    load = Load(rate_per_second=8, max_model_len=89)
    header, sessions = planned(chats, load, tmp_path)
    assert {len(session.turns) for session in sessions} == {2}
    assert header.dropped == {"over_length": 80}
    with pytest.raises(PlanError, match="no request fits --max-model-len 29"):
        make_plan(chats, Load(rate_per_second=8, max_model_len=29), tmp_path / "p")


def test_a_drop_keeps_the_rest_of_a_session_without_history(tmp_path: Path) -> None:
    rows = conversation("a", 3, history="total")
    rows[1]["input_length"] = 500
    trace = written(tmp_path / "t.jsonl", rows)
    load = Load(rate_per_second=8, max_model_len=100)
    header, sessions = planned(trace, load, tmp_path)
    assert len(sessions[0].turns) == 2
    assert header.dropped == {"over_length": 1}


def test_truncation_shortens_prompts_and_says_so(tmp_path: Path) -> None:
    rows = [{"input_length": n, "output_length": 40} for n in (50, 61, 500)]
    rows.append({"input_length": 5, "output_length": 100})
    trace = written(tmp_path / "t.jsonl", rows)
    load = Load(rate_per_second=8, max_model_len=100, over_length="truncate")
    header, sessions = planned(trace, load, tmp_path)
    assert [s.turns[0].input_tokens for s in sessions] == [50, 60, 60]
    assert header.dropped == {"over_length": 1}  # no prompt is short enough for it
    assert "2 prompts cut to --max-model-len 100" in header.notes


def test_fail_names_the_session_and_what_it_needs(chats: Path, tmp_path: Path) -> None:
    load = Load(rate_per_second=8, max_model_len=100, over_length="fail")
    with pytest.raises(PlanError, match="session s0: a turn needs 120 tokens"):
        make_plan(chats, load, tmp_path / "p")


def test_ids_come_from_the_trace_or_its_name_and_are_unique(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "HumanEval/0", "input_length": 1},
        {"id": "same", "input_length": 1},
        {"id": "same", "input_length": 1},
        {"id": "a\nb: c", "input_length": 1},
        {"id": "→", "input_length": 1},
        {"input_length": 1},
    ]
    trace = written(tmp_path / "my trace.jsonl", rows)
    header, sessions = planned(trace, Load(rate_per_second=1), tmp_path)
    ids = [session.turns[0].request_id for session in sessions]
    assert ids == [
        "HumanEval-0", "same", "same-3", "a-b-c", "my-trace-5", "my-trace-6"
    ]  # fmt: skip
    assert "1 request ids were taken and got a suffix" in header.notes


def test_the_same_inputs_give_the_same_bytes(chats: Path, tmp_path: Path) -> None:
    load = Load(rate_per_second=4, seed=9)
    one = make_plan(chats, load, tmp_path / "one")[1]
    two = make_plan(chats, load, tmp_path / "two")[1]
    other = make_plan(chats, Load(rate_per_second=4, seed=8), tmp_path / "other")[1]
    assert one == two != other


def test_a_grid_is_spread_and_the_header_says_so(tmp_path: Path) -> None:
    rows = [{"timestamp": t, "input_length": 1} for t in range(0, 30_000, 3_000)] * 4
    rows.sort(key=lambda row: row["timestamp"])
    trace = written(tmp_path / "t.jsonl", rows)
    header, sessions = planned(trace, Load(), tmp_path)
    assert header.dejittered_grid_seconds == 3.0
    assert any("grid of 3 s" in note for note in header.notes)
    assert len(set(starts(sessions))) == 40
    kept, sessions = planned(trace, Load(dejitter=False), tmp_path)
    assert kept.dejittered_grid_seconds is None
    assert len(set(starts(sessions))) == 10


@pytest.mark.parametrize("name", sorted(p.name for p in SAMPLES.glob("*.*l")))
def test_every_field_of_a_turn_reaches_the_plan(name: str, tmp_path: Path) -> None:
    header, sessions = planned(SAMPLES / name, Load(rate_per_second=1), tmp_path)
    assert header.requests == sum(len(session.turns) for session in sessions)
    if name == "loadtrace.jsonl":
        turn = sessions[0].turns[0]
        assert turn.hash_ids == [0, 1, 2]
        assert turn.tenant == "north"
        assert header.hash_block_size == 16
        assert sessions[2].turns[0].messages == [{"role": "user", "content": "hi"}]
        assert sessions[1].turns[0].prompt == "def f():"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate_per_second": -1.0}, "rate_per_second is -1.0, expected a number above"),
        ({"rate_per_second": math.nan}, "rate_per_second is nan"),
        ({"num_prompts": 0}, "num_prompts is 0"),
        ({"burstiness": 0.0}, "burstiness is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"arrival": "weibull"}, "unknown arrival 'weibull'; known: auto, poisson"),
        ({"over_length": "clamp"}, "unknown over-length rule 'clamp'; known: drop"),
        ({"rate_per_second": 1.0, "speed": 2.0}, "rate_per_second and speed both"),
    ],
)
def test_a_load_nobody_could_make_is_refused(
    wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Load(**wrong)
    assert message in str(caught.value)


def test_speed_and_a_drawn_process_contradict_each_other(
    timed: Path, tmp_path: Path
) -> None:
    load = Load(speed=2, arrival="poisson")
    with pytest.raises(UsageError, match="--arrival poisson draws new ones"):
        make_plan(timed, load, tmp_path / "p")


def test_a_broken_trace_leaves_no_plan(tmp_path: Path) -> None:
    trace = written(tmp_path / "t.jsonl", [{"input_length": 4}] * 6)
    with trace.open("a") as file:
        file.write("oops\n")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(TraceError, match="line 7: not valid JSON"):
        make_plan(trace, Load(rate_per_second=1), out / "plan.jsonl")
    assert list(out.iterdir()) == []


def test_a_plan_that_cannot_be_written_is_one_clear_line(
    chats: Path, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match="cannot be written: No such file"):
        make_plan(chats, Load(rate_per_second=1), tmp_path / "missing" / "plan.jsonl")


def test_a_plan_is_known_from_a_trace(chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.jsonl"
    make_plan(chats, Load(rate_per_second=1), out)
    assert is_plan(out)
    assert not is_plan(chats)
    assert not is_plan(tmp_path / "missing")


def test_a_broken_plan_is_named_by_line(chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.jsonl"
    make_plan(chats, Load(rate_per_second=1, arrival="constant"), out)
    lines = out.read_text().splitlines()

    def reading(*changed: str) -> list[PlannedSession]:
        out.write_text("\n".join(changed))
        return list(read_plan(out)[1])

    with pytest.raises(PlanError, match=r"line 3: .*\$.start_seconds"):
        reading(
            *lines[:2], lines[2].replace('"start_seconds":4.0', '"start_seconds":"x"')
        )
    with pytest.raises(
        PlanError, match=r"line 4: start_seconds is 4\.0, expected >= 8\.0"
    ):
        reading(lines[0], lines[1], lines[3], lines[2])
    with pytest.raises(PlanError, match="39 sessions, the header says 40: file cut"):
        reading(*lines[:-1])
    with pytest.raises(PlanError, match="line 1: not a plan's header"):
        reading("{}")
    with pytest.raises(PlanError, match="line 1: plan is 'plan/2', expected 'plan/1'"):
        reading(lines[0].replace("plan/1", "plan/2"))
    with pytest.raises(PlanError, match="cannot be read: No such file"):
        read_plan(tmp_path / "missing")


def long_trace(path: Path, rows: int) -> Path:
    def text() -> Iterator[bytes]:
        for number in range(rows):
            row = {"timestamp": number, "input_length": 50, "output_length": 5}
            yield json.dumps(row).encode() + b"\n"

    with gzip.open(path, "wb", compresslevel=1) as file:
        file.writelines(text())
    return path


def peak_bytes(trace: Path, out: Path) -> int:
    tracemalloc.start()
    make_plan(trace, Load(rate_per_second=1000), out)
    for _ in read_plan(out)[1]:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_planning_needs_no_more_memory_for_a_longer_trace(tmp_path: Path) -> None:
    short = peak_bytes(long_trace(tmp_path / "a.jsonl.gz", 500), tmp_path / "plan")
    long = peak_bytes(long_trace(tmp_path / "b.jsonl.gz", 3_500), tmp_path / "plan")
    # bytes that come and go with buffers; 3,000 rows of 300 bytes would be 900 kB
    assert long - short < 300_000


@pytest.mark.data
def test_a_real_trace_is_planned_at_another_rate(tmp_path: Path) -> None:
    trace = real_trace("azure_llm_2023_conv.csv.gz")
    load = Load(rate_per_second=20, num_prompts=200)
    header, sessions = planned(trace, load, tmp_path)
    assert (header.requests, header.arrival) == (200, "trace")
    assert 199 / header.span_seconds == pytest.approx(20)
    assert sessions[1].turns[0].input_tokens == 396


@pytest.mark.data
def test_mooncakes_grid_of_three_seconds_is_seen(tmp_path: Path) -> None:
    trace = real_trace("mooncake_fast25_conversation.jsonl.gz")
    header, sessions = planned(trace, Load(), tmp_path)
    assert header.dejittered_grid_seconds == pytest.approx(3.0)
    gaps = np.diff(starts(sessions))
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)
