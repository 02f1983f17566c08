"""From a run folder and a proxy to summary.json: what is joined, and what if not."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from loadgen.analysis.schema import Summary
from loadgen.analysis.summary import RunInfo
from loadgen.cli.report import report
from loadgen.energy.join import Patience
from loadgen.errors import LoadgenError
from loadgen.plan.plan import PlannedSession, PlannedTurn
from loadgen.report.terminal import render
from loadgen.results.recorder import read_results
from loadgen.run.config import ReplayConfig
from loadgen.run.finish import begin_run, finish_run, load_run, plan_header
from loadgen.run.record import run_record
from loadgen.run.state import Place, State, write_state
from proxy.wire.api import (
    BoardSummary,
    EngineHardware,
    HardwareSeries,
    SpreadReply,
)
from tests.support.canned_run import (
    ZERO_UNIX,
    CannedProxy,
    cost_of,
    failed,
    made_results,
    serving,
    write_run,
)
from tests.support.shown import printed

INFO = RunInfo(zero_unix_seconds=ZERO_UNIX, metered=True, loop_lag_p99_seconds=0.001)


SOON = Patience(settle_seconds=10, poll_seconds=0)


def finished(folder: Path, proxy: CannedProxy, **changes: Any) -> Summary:
    info = msgspec.structs.replace(INFO, **changes)
    with serving(proxy) as url:
        return finish_run(folder, info, admin_url=url, patience=SOON)


def test_a_clean_run_closes_its_books_and_is_valid(tmp_path: Path) -> None:
    results = made_results(120)
    write_run(tmp_path, results)
    summary = finished(tmp_path, CannedProxy(results))
    energy = summary.energy
    assert summary.verdict.status == "valid", summary.verdict.reasons
    assert summary.simulated
    assert energy.measured_joules is not None
    assert energy.attributed_joules is not None
    assert energy.idle_share_joules is not None
    assert energy.idle_joules is not None
    assert energy.unattributed_joules is not None
    total = energy.attributed_joules.prefill + energy.attributed_joules.decode
    total += energy.idle_share_joules + energy.idle_joules
    total += sum(energy.unattributed_joules.values())
    assert total == pytest.approx(energy.measured_joules, abs=1e-3)
    assert energy.residual_joules == pytest.approx(0.0, abs=1e-3)


def test_every_record_gets_its_own_joules_by_id(tmp_path: Path) -> None:
    results = made_results(50)
    write_run(tmp_path, results)
    # the proxy settles in another order than the replies ended in
    finished(tmp_path, CannedProxy(results[::-1]))
    joined = list(read_results(tmp_path / "requests.jsonl"))
    assert [r.request_id for r in joined] == [r.request_id for r in results]
    for plain, with_energy in zip(results, joined, strict=True):
        assert with_energy.energy == cost_of(plain)
        assert msgspec.structs.replace(with_energy, energy=None) == plain


def test_figures_per_request_and_token_have_the_stated_denominators(
    tmp_path: Path,
) -> None:
    results = [*made_results(40), failed("bad", at=1.0)]
    write_run(tmp_path, results)
    energy = finished(tmp_path, CannedProxy(results)).energy
    costs = [cost_of(r).energy_joules or 0.0 for r in results[:-1]]
    tokens = sum(r.output_tokens or 0 for r in results)
    prompts = sum(r.prompt_tokens or 0 for r in results)
    assert energy.joules_per_request is not None
    assert energy.joules_per_request.n == 40
    assert energy.joules_per_request.mean == pytest.approx(sum(costs) / 40)
    assert energy.joules_per_output_token == pytest.approx(sum(costs) / tokens)
    assert energy.joules_per_total_token == pytest.approx(
        sum(costs) / (tokens + prompts)
    )
    assert energy.failed_request_joules == pytest.approx(
        cost_of(results[-1]).energy_joules
    )
    assert energy.policy_joules["equal"] == {
        kind: 20.0 * sum(r.kind == kind for r in results)
        for kind in ("code", "conversation")
    }


def test_requests_of_others_are_not_ours(tmp_path: Path) -> None:
    results = made_results(30)
    write_run(tmp_path, results)
    others = [msgspec.structs.replace(r, request_id=f"x-{r.request_id}")
              for r in results]  # fmt: skip
    summary = finished(tmp_path, CannedProxy(others + results))
    ours = sum(cost_of(r).energy_joules or 0.0 for r in results)
    assert summary.energy.requests_with_energy == 30
    assert summary.energy.joined_joules == pytest.approx(ours)


def test_records_from_before_the_run_are_not_asked_for(tmp_path: Path) -> None:
    results = made_results(20)
    write_run(tmp_path, results)
    proxy = CannedProxy(results)
    finished(tmp_path, proxy)
    # but for a minute, as the clocks of two hosts differ
    assert proxy.asked_from == [ZERO_UNIX - 60]


def test_it_waits_until_the_last_request_is_settled(tmp_path: Path) -> None:
    results = made_results(20)
    write_run(tmp_path, results)
    heard: list[tuple[int, int]] = []
    with serving(CannedProxy(results, unsettled_rounds=3)) as url:
        summary = finish_run(
            tmp_path, INFO, admin_url=url, patience=SOON,
            waiting=lambda settled, expected: heard.append((settled, expected)),
        )  # fmt: skip
    assert heard == [(19, 20)] * 3 + [(20, 20)]
    assert summary.energy.requests_without_energy == 0


def test_a_request_the_proxy_never_saw_is_not_waited_for(tmp_path: Path) -> None:
    results = made_results(20)
    write_run(tmp_path, results)
    summary = finished(tmp_path, CannedProxy(results[:-1]))
    assert summary.energy.requests_without_energy == 1
    assert summary.verdict.status == "degraded"
    assert "1 of 20 requests without joules" in (summary.energy.reason or "")


def test_refused_connections_are_not_expected_at_the_proxy(tmp_path: Path) -> None:
    results = made_results(20)
    lost = [failed(f"lost{n}", at=1.0 + n, outcome="timeout") for n in range(3)]
    write_run(tmp_path, results + lost)
    proxy = CannedProxy(results)
    summary = finished(tmp_path, proxy)
    assert proxy.asked.count("/requests") == 1
    assert summary.energy.reason is None


def test_a_proxy_that_settles_too_late_leaves_a_degraded_run(tmp_path: Path) -> None:
    results = made_results(20)
    write_run(tmp_path, results)
    proxy = CannedProxy(results, settled_seconds=0.5)
    with serving(proxy) as url:
        summary = finish_run(tmp_path, INFO, admin_url=url, patience=Patience(0, 0))
    assert summary.energy.settled is False
    assert summary.verdict.status == "degraded"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"status": 500}, "500"),
        ({"body": b"<html>"}, "not understood"),
        ({"body": b"{}"}, "not understood"),
    ],
)
def test_an_admin_api_that_fails_leaves_nulls_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    results = made_results(10)
    write_run(tmp_path, results)
    before = (tmp_path / "requests.jsonl").read_bytes()
    summary = finished(tmp_path, CannedProxy(results, **changes))
    energy = summary.energy
    assert energy.measured_joules is None
    assert energy.joules_per_request is None
    assert energy.failed_request_joules is None
    assert word in (energy.reason or "")
    assert summary.verdict.status == "degraded"
    assert summary.completed == 10
    assert (tmp_path / "requests.jsonl").read_bytes() == before


def test_no_proxy_behind_the_address_is_told_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, made_results(10))
    summary = finish_run(tmp_path, INFO, admin_url="http://127.0.0.1:9", patience=SOON)
    assert "127.0.0.1:9/books" in (summary.energy.reason or "")
    assert "\n" not in (summary.energy.reason or "")


def test_a_power_source_without_joules_is_unknown_and_not_zero(tmp_path: Path) -> None:
    results = made_results(10)
    write_run(tmp_path, results)
    energy = finished(tmp_path, CannedProxy(results, knows_joules=False)).energy
    assert energy.measured_joules is None
    assert "'none' gives no joules" in (energy.reason or "")


def test_a_run_without_a_proxy_is_valid_and_says_it_was_not_metered(
    tmp_path: Path,
) -> None:
    write_run(tmp_path, made_results(200))
    info = RunInfo(zero_unix_seconds=ZERO_UNIX)
    summary = finish_run(tmp_path, info)
    assert summary.verdict.status == "valid"
    assert "no metering proxy" in (summary.energy.reason or "")


def test_a_whole_run_holds_the_whole_of_its_requests_joules(tmp_path: Path) -> None:
    results = made_results(60)
    write_run(tmp_path, results)
    energy = finished(tmp_path, CannedProxy(results)).energy
    assert energy.attributed_joules is not None
    booked = energy.attributed_joules.prefill + energy.attributed_joules.decode
    booked += energy.idle_share_joules or 0.0
    assert booked == pytest.approx(energy.joined_joules)
    # half a second of attribution and two counter updates on either side
    span = max(r.finished_seconds for r in results)
    assert energy.window_seconds == pytest.approx(span + 2 * 0.7)


def test_warm_up_and_cool_down_cut_latency_and_energy_alike(tmp_path: Path) -> None:
    results = made_results(200)
    write_run(tmp_path, results)
    last = max(r.planned_seconds for r in results)
    summary = finished(
        tmp_path, CannedProxy(results), warmup_seconds=10.0, cooldown_seconds=5.0
    )
    inside = [r for r in results if 10.0 <= r.planned_seconds <= last - 5.0]
    assert summary.completed == len(inside) < 200
    assert summary.window.requests_outside == 200 - len(inside)
    assert summary.duration == pytest.approx(last - 15.0)
    assert summary.energy.window_seconds == pytest.approx(last - 15.0)
    expected = CannedProxy(results)
    start, end = expected.books(10.0), expected.books(last - 5.0)
    assert summary.energy.measured_joules == pytest.approx(
        end["measured_joules"] - start["measured_joules"]
    )


def test_the_folder_holds_the_four_files_and_nothing_half_written(
    tmp_path: Path,
) -> None:
    results = made_results(10)
    write_run(tmp_path, results)
    begin_run(tmp_path, INFO)
    finished(tmp_path, CannedProxy(results))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "plan.jsonl", "report.html", "requests.jsonl", "summary.json",
    ]  # fmt: skip


def test_summary_json_reads_back_as_it_was(tmp_path: Path) -> None:
    results = made_results(30)
    write_run(tmp_path, results)
    summary = finished(tmp_path, CannedProxy(results), metadata={"note": "x"})
    assert load_run(tmp_path) == summary


def test_a_killed_run_is_read_as_it_was_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path, made_results(60))
    begin_run(tmp_path, RunInfo(warmup_seconds=5.0, simulated=True))
    with (tmp_path / "requests.jsonl").open("ab") as records:
        records.write(b'{"request_id": "half')
    summary = load_run(tmp_path)
    assert summary.simulated
    assert summary.window.warmup_seconds == 5.0
    assert summary.verdict.status == "degraded"
    assert "interrupted" in summary.verdict.reasons[0]
    assert 0 < summary.completed < 60


def cut_off(folder: Path, sizes: Sequence[int], processes: int | None) -> Summary:
    """A run of 30 requests by several, the first ten of which are in the one file."""
    results = [failed(f"r{n:02}", at=float(n)) for n in range(30)]
    write_run(folder, results[:10])
    make_plan(folder, [f"r{n:02}" for n in range(30)])
    for number, size in enumerate(sizes):
        lines = [msgspec.json.encode(each) + b"\n" for each in results[number::3]]
        (folder / f"requests-{number + 1}.jsonl").write_bytes(b"".join(lines[:size]))
    config = ReplayConfig(trace=Path("t"), processes=processes or 1)
    record = run_record(config, "http://engine", "m", {})
    begin_run(folder, RunInfo(run=None if processes is None else record))
    return load_run(folder)


def make_plan(folder: Path, ids: Sequence[str]) -> None:
    """As it was dealt to them."""
    header = plan_header(folder / "plan.jsonl")
    assert header is not None
    header = msgspec.structs.replace(header, sessions=len(ids), requests=len(ids))
    sessions = [
        PlannedSession(
            session_id=each, start_seconds=float(n), turns=[PlannedTurn(
                request_id=each, input_tokens=1, output_tokens=1,
            )],
        )
        for n, each in enumerate(ids)
    ]  # fmt: skip
    lines = [msgspec.json.encode(each) + b"\n" for each in (header, *sessions)]
    (folder / "plan.jsonl").write_bytes(b"".join(lines))


def test_of_a_run_of_several_that_was_killed_nothing_written_is_lost(
    tmp_path: Path,
) -> None:
    summary = cut_off(tmp_path, [10, 7, 4], processes=3)
    assert summary.outcomes == {"error": 21}
    rows = summary.schedule.processes
    assert [(row.requests, row.lost_requests) for row in rows] == [
        (10, 0), (7, 3), (4, 6),
    ]  # fmt: skip
    assert summary.verdict.status == "invalid"
    assert summary.verdict.reasons[:2] == [
        "process 2 of 3 was cut off with the run: 3 of its requests are lost",
        "process 3 of 3 was cut off with the run: 6 of its requests are lost",
    ]


@pytest.mark.parametrize("processes", [None, 2], ids=["no note", "another number"])
def test_parts_that_nobody_can_tell_the_share_of_are_read_all_the_same(
    tmp_path: Path, processes: int | None
) -> None:
    summary = cut_off(tmp_path, [10, 7, 4], processes=processes)
    assert summary.outcomes == {"error": 21}
    assert summary.schedule.processes == []
    assert any("interrupted after 21" in each for each in summary.verdict.reasons)


def test_of_a_killed_run_by_workers_each_is_named_and_the_way_on_is_shown(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a run"
    cut_off(folder, [10, 7, 4], processes=1)
    state = State(
        run="0" * 16, bus="nats://bus:4222", weights=(1, 1, 1),
        workers=[Place(id=f"{n}" * 16, name=f"w{n}") for n in (1, 2, 3)],
    )  # fmt: skip
    write_state(folder, state)
    rows = load_run(folder).schedule.processes
    assert [(row.worker, row.lost_requests) for row in rows] == [
        ("w1", 0), ("w2", 3), ("w3", 6),
    ]  # fmt: skip
    done = CliRunner().invoke(report, [str(folder)])
    assert done.exit_code == 0, done.output
    assert f"go on with: loadgen replay --resume '{folder}'" in done.stderr
    assert (folder / "report.html").is_file()


def test_a_killed_run_whose_one_file_is_gone_is_read_from_its_parts(
    tmp_path: Path,
) -> None:
    cut_off(tmp_path, [10, 10, 10], processes=3)
    (tmp_path / "requests.jsonl").unlink()
    summary = load_run(tmp_path)
    assert summary.outcomes == {"error": 30}
    assert [row.death for row in summary.schedule.processes] == [None] * 3


def test_a_run_without_any_request_is_invalid_and_still_written(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    summary = finish_run(tmp_path, INFO, admin_url=None)
    assert summary.verdict.status == "invalid"
    assert (tmp_path / "report.html").is_file()


def test_what_is_no_run_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LoadgenError, match="is not a run folder"):
        load_run(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(LoadgenError, match=r"cannot read .*summary\.json"):
        load_run(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = made_results(5)
    write_run(tmp_path, results)

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)  # root may write everywhere
    with pytest.raises(LoadgenError, match="cannot write joules"):
        finished(tmp_path, CannedProxy(results))
    assert len(list(read_results(tmp_path / "requests.jsonl"))) == 5


def test_power_over_time_adds_up_to_what_was_measured(tmp_path: Path) -> None:
    results = made_results(60)
    write_run(tmp_path, results)
    proxy = CannedProxy(results)
    power = finished(tmp_path, proxy).energy.power
    assert power is not None
    widths = [b - a for a, b in zip(power.edges_seconds, power.edges_seconds[1:],
                                    strict=False)]  # fmt: skip
    columns = zip(
        power.prefill_watts, power.decode_watts, power.idle_share_watts,
        power.idle_watts, power.unattributed_watts, strict=True,
    )  # fmt: skip
    joules = sum(w * sum(column) for w, column in zip(widths, columns, strict=True))
    start, end = proxy.books(0.0), proxy.books(power.edges_seconds[-1])
    measured = end["measured_joules"] - start["measured_joules"]
    assert joules == pytest.approx(measured)


def test_how_the_gpu_worked_is_in_the_summary_the_verdict_and_the_report(
    tmp_path: Path,
) -> None:
    results = made_results(300)
    times = [float(second) for second in range(80)]
    board = BoardSummary(
        boundary="gpu", device="gpu0", seconds=80.0, throttled_seconds=20.0,
        throttled_seconds_by_reason={"sw_thermal_slowdown": 20.0},
        sm_clock_hertz=SpreadReply(min=1.2e9, median=1.7e9, max=1.98e9),
    )  # fmt: skip
    series = HardwareSeries(
        at_unix_seconds=[ZERO_UNIX + second for second in times],
        sm_clock_hertz=[1.98e9 if second > 9 else 1.2e9 for second in times],
        temperature_celsius=[None] * len(times),
    )
    engine = EngineHardware(simulated=True, window=[board], series=series)
    write_run(tmp_path, results)
    proxy = CannedProxy(results, hardware={"vllm": engine})
    summary = finished(tmp_path, proxy)
    assert summary.hardware.boards == [board]
    assert [each.signal for each in summary.hardware.warm_up] == ["sm_clock"]
    reasons = " ".join(summary.verdict.reasons)
    assert "gpu0 was throttled for 20 s of 80 s (sw_thermal_slowdown)" in reasons
    assert "the first 10 s were warm-up" in reasons
    page = (tmp_path / "report.html").read_text()
    assert "SM clock 1,700 (1,200 to 1,980) MHz" in page
    assert "SM clock 1,200 MHz in the first 10.0 s, then 1,980 MHz" in page
    shown = printed(render(summary))
    assert "throttled 25.0 % of the time (20.0 s sw_thermal_slowdown)" in " ".join(
        shown.split()
    )


def test_boards_of_several_engines_are_told_apart(tmp_path: Path) -> None:
    results = made_results(5)
    board = BoardSummary(boundary="gpu", device="gpu0", seconds=80.0)
    engines = {name: EngineHardware(window=[board]) for name in ("one", "two")}
    write_run(tmp_path, results)
    summary = finished(tmp_path, CannedProxy(results, hardware=engines))
    assert [each.device for each in summary.hardware.boards] == ["one/gpu0", "two/gpu0"]
