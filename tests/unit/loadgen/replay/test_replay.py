"""When requests are sent: a virtual clock, a client that needs no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loadgen.client.backends import RequestOptions, Target
from loadgen.errors import LoadgenError, PlanError
from loadgen.plan.plan import PlannedSession, PlannedTurn
from loadgen.replay.replay import PREPARED_SESSIONS, RunStats, replay
from loadgen.results.progress import RELATIVE_ERROR, Progress
from loadgen.results.recorder import Recorder, read_results
from loadgen.results.results import Result
from tests.support.virtual_server import Server, single, turn
from tests.support.virtual_time import VirtualClock, run_virtually


def starts(*start_seconds: float) -> list[PlannedSession]:
    return [single(number, start) for number, start in enumerate(start_seconds)]


@dataclass
class Outcome:
    stats: RunStats
    results: dict[str, Result]
    progress: Progress

    @property
    def sent(self) -> list[float | None]:
        """When each request was sent, in order of its name."""
        return [self.results[name].sent_seconds for name in sorted(self.results)]


def replayed(
    path: Path,
    server: Server,
    sessions: list[PlannedSession] | Iterator[PlannedSession],
    *,
    stop_after_seconds: float | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Outcome:
    progress = progress or Progress()

    async def main() -> RunStats:
        with Recorder(path / "requests.jsonl") as recorder:
            running = asyncio.ensure_future(
                replay(
                    iter(sessions),
                    target=Target("http://test", "vllm"),
                    options=RequestOptions(),
                    recorder=recorder,
                    progress=progress,
                    clock=VirtualClock(),
                    connect=lambda *_: server,
                    **options,
                )
            )
            if stop_after_seconds is not None:
                await asyncio.sleep(0)
                assert progress.zero_seconds is not None
                now = asyncio.get_running_loop().time()
                await asyncio.sleep(progress.zero_seconds + stop_after_seconds - now)
                running.cancel()
            return await running

    stats = run_virtually(main())
    results = {r.request_id: r for r in read_results(path / "requests.jsonl")}
    return Outcome(stats, results, progress)


def test_a_slow_server_does_not_slow_the_arrivals(tmp_path: Path) -> None:
    server = Server(seconds=lambda _: 60.0)
    outcome = replayed(tmp_path, server, starts(0, 1, 2))
    assert outcome.sent == [0, 1, 2]
    assert server.peak == 3


def test_arrivals_are_never_anchored_anew(tmp_path: Path) -> None:
    times = [n * 0.37 for n in range(500)]
    outcome = replayed(tmp_path, Server(seconds=lambda n: n % 7), starts(*times))
    for number, start in enumerate(times):
        sent = outcome.results[f"r{number}"].sent_seconds
        assert sent == pytest.approx(start, abs=2e-6)


def test_latency_can_be_told_from_the_send_and_from_the_schedule(
    tmp_path: Path,
) -> None:
    server = Server(seconds=lambda _: 2.0)
    outcome = replayed(tmp_path, server, starts(0, 0.5), max_concurrency=1)
    late = outcome.results["r1"]
    assert late.planned_seconds == 0.5
    assert late.sent_seconds == pytest.approx(2.0)
    assert late.first_token_seconds == pytest.approx(4.0)


def test_the_cap_holds_and_first_come_is_first_served(tmp_path: Path) -> None:
    server = Server(seconds=lambda _: 1.0)
    outcome = replayed(tmp_path, server, starts(0, 0.1, 0.2, 0.3), max_concurrency=2)
    assert outcome.sent == pytest.approx([0, 0.1, 1.0, 1.1])
    assert server.peak == 2
    ranks = (0, 1 / 3, 2 / 3, 1)
    lags = [outcome.progress.lag_seconds.quantile(rank) for rank in ranks]
    assert lags == pytest.approx([0, 0, 0.8, 0.8], rel=RELATIVE_ERROR, abs=1e-5)


def test_a_later_turn_waits_for_the_reply_and_the_think_time(tmp_path: Path) -> None:
    session = PlannedSession(
        session_id="s",
        start_seconds=1.0,
        turns=[turn("r0"), turn("r1", think_seconds=5.0), turn("r2")],
    )
    outcome = replayed(tmp_path, Server(seconds=lambda _: 2.0), [session])
    assert outcome.sent == pytest.approx([1, 8, 10], abs=1e-5)
    planned = [outcome.results[f"r{n}"].planned_seconds for n in range(3)]
    assert planned == pytest.approx([1, 8, 10], abs=1e-5)


@pytest.mark.parametrize(("at_seconds", "sent"), [(9.0, 9.0), (0.5, 2.25)])
def test_a_later_turn_keeps_its_instant_unless_the_reply_is_late(
    tmp_path: Path, at_seconds: float, sent: float
) -> None:
    turns = [turn("r0"), turn("r1", at_seconds=at_seconds, think_seconds=0.25)]
    session = PlannedSession(session_id="s", start_seconds=0.0, turns=turns)
    outcome = replayed(tmp_path, Server(seconds=lambda _: 2.0), [session])
    assert outcome.sent == pytest.approx([0, sent], abs=1e-5)
    assert outcome.results["r1"].planned_seconds == pytest.approx(sent)


def test_a_conversation_carries_the_real_replies(tmp_path: Path) -> None:
    turns = [turn(f"r{n}", history="append") for n in range(3)]
    session = PlannedSession(session_id="s", start_seconds=0.0, turns=turns)
    server = Server()
    replayed(tmp_path, server, [session])
    said = [m["content"] for m in server.bodies[2]["messages"]]
    assert said == ["r0", "reply 0", "r1", "reply 1", "r2"]
    assert [m["role"] for m in server.bodies[1]["messages"]] == [
        "user",
        "assistant",
        "user",
    ]


def test_a_conversation_stops_at_its_first_failure(tmp_path: Path) -> None:
    turns = [turn(f"r{n}", think_seconds=1.0) for n in range(4)]
    session = PlannedSession(session_id="s", start_seconds=0.0, turns=turns)
    server = Server(fails=lambda number: number == 1)
    outcome = replayed(tmp_path, server, [session])
    assert [outcome.results[f"r{n}"].outcome for n in range(4)] == [
        "ok",
        "error",
        "dropped",
        "dropped",
    ]
    assert outcome.results["r2"].error == "the previous turn failed"
    assert outcome.results["r2"].sent_seconds is None
    assert len(server.bodies) == 2
    assert outcome.stats.dropped == 2


def test_a_request_that_takes_too_long_is_a_timeout(tmp_path: Path) -> None:
    server = Server(seconds=lambda number: 100.0 if number == 0 else 0.1)
    outcome = replayed(tmp_path, server, starts(0, 1), timeout_seconds=30.0)
    late = outcome.results["r0"]
    assert (late.outcome, late.error) == ("timeout", "no whole reply within 30 s")
    assert late.finished_seconds == pytest.approx(30.0)
    assert late.first_token_seconds is None
    assert outcome.results["r1"].outcome == "ok"


def test_a_timeout_does_not_count_the_wait_for_a_place(tmp_path: Path) -> None:
    server = Server(seconds=lambda _: 20.0)
    outcome = replayed(
        tmp_path, server, starts(0, 0, 0), max_concurrency=1, timeout_seconds=30.0
    )
    assert {r.outcome for r in outcome.results.values()} == {"ok"}


def test_stopping_keeps_what_was_and_says_so(tmp_path: Path) -> None:
    server = Server(seconds=lambda number: 0.5 if number == 0 else 100.0)
    outcome = replayed(
        tmp_path,
        server,
        starts(0, 1, 2, 50),
        max_concurrency=2,
        stop_after_seconds=10.0,
    )
    assert outcome.stats.interrupted
    assert server.is_closed
    assert {name: r.outcome for name, r in outcome.results.items()} == {
        "r0": "ok",
        "r1": "aborted",
        "r2": "aborted",
    }
    assert outcome.results["r1"].finished_seconds == pytest.approx(10.0)
    assert outcome.progress.in_flight == 0


def test_stopping_tells_those_who_waited_in_vain_from_those_not_due(
    tmp_path: Path,
) -> None:
    server = Server(seconds=lambda _: 100.0)
    outcome = replayed(
        tmp_path,
        server,
        starts(0, 1, 10.3),
        max_concurrency=1,
        stop_after_seconds=10.0,
    )
    assert outcome.results["r1"].outcome == "dropped"
    assert "r2" not in outcome.results


def test_a_plan_is_read_as_it_falls_due(tmp_path: Path) -> None:
    drawn: list[float] = []

    def sessions() -> Iterator[PlannedSession]:
        for number in range(100):
            drawn.append(asyncio.get_running_loop().time())
            yield single(number, 10.0 * number)

    outcome = replayed(tmp_path, Server(), sessions())
    zero = outcome.stats.zero_monotonic_seconds
    assert drawn[50] - zero == pytest.approx(490, abs=11)


def test_a_flood_is_prepared_in_portions(tmp_path: Path) -> None:
    taken = 0

    def sessions() -> Iterator[PlannedSession]:
        nonlocal taken
        for number in range(5 * PREPARED_SESSIONS):
            taken += 1
            yield single(number, 0.0)

    ahead: list[int] = []

    def seconds(number: int) -> float:
        ahead.append(taken - number)
        return 0.01

    outcome = replayed(tmp_path, Server(seconds=seconds), sessions(), max_concurrency=8)
    assert len(outcome.results) == 5 * PREPARED_SESSIONS
    assert max(ahead) <= PREPARED_SESSIONS + 8 + 1


def test_connections_are_made_ready_before_the_requests(tmp_path: Path) -> None:
    server = Server()
    replayed(tmp_path, server, starts(0, 1, 2))
    assert server.reserved == 3


def test_with_a_cap_connections_are_handed_on_instead(tmp_path: Path) -> None:
    server = Server()
    replayed(tmp_path, server, starts(0, 1, 2), max_concurrency=1)
    assert server.reserved == 0


def test_progress_counts_what_happened(tmp_path: Path) -> None:
    server = Server(fails=lambda number: number == 1)
    progress = replayed(tmp_path, server, starts(0, 1, 2)).progress
    assert (progress.sent, progress.ok, progress.failed) == (3, 2, 1)
    assert progress.in_flight == 0
    assert list(progress.errors.values()) == [1]
    ttft = [progress.ttft_seconds.quantile(rank) for rank in (0, 1)]
    assert ttft == pytest.approx([0.1, 0.1], rel=RELATIVE_ERROR)


def test_watchers_are_told_of_every_record_the_never_sent_too(tmp_path: Path) -> None:
    told: list[str] = []
    turns = [turn("r0"), turn("r1")]
    session = PlannedSession(session_id="s", start_seconds=0.0, turns=turns)
    progress = Progress(watchers=[lambda result: told.append(result.outcome)])
    replayed(tmp_path, Server(fails=lambda _: True), [session], progress=progress)
    assert told == ["error", "dropped"]


def test_the_zero_is_anchored_to_wall_time_once(tmp_path: Path) -> None:
    stats = replayed(tmp_path, Server(), starts(0)).stats
    assert stats.zero_unix_seconds - stats.zero_monotonic_seconds == pytest.approx(1e9)


def test_a_turn_that_cannot_be_sent_stops_the_run_with_its_own_error(
    tmp_path: Path,
) -> None:
    bad = PlannedSession(
        session_id="s", start_seconds=0.0, turns=[PlannedTurn(request_id="r")]
    )
    server = Server()
    with pytest.raises(PlanError, match="request r"):
        replayed(tmp_path, server, [bad])
    assert server.is_closed


def test_a_full_disk_stops_the_run_with_its_own_error(tmp_path: Path) -> None:
    class FullDisk(Recorder):
        def record(self, result: Result) -> None:
            raise LoadgenError("cannot append")

    async def main() -> None:
        with FullDisk(tmp_path / "requests.jsonl") as recorder:
            await replay(
                iter(starts(0, 1)),
                target=Target("http://test", "vllm"),
                options=RequestOptions(),
                recorder=recorder,
                progress=Progress(),
                clock=VirtualClock(),
                connect=lambda *_: Server(),
            )

    with pytest.raises(LoadgenError, match="cannot append"):
        run_virtually(main())


def test_a_run_ends_itself_once_too_many_requests_have_failed(tmp_path: Path) -> None:
    server = Server(fails=lambda number: number >= 5)
    sessions = starts(*[float(n) for n in range(50)])
    done = replayed(tmp_path, server, sessions, max_errors=3)
    assert done.stats.failure == "3 requests failed (--max-errors 3)"
    assert not done.stats.interrupted
    assert len(server.bodies) == 8
    outcomes = [found.outcome for found in done.results.values()]
    assert (outcomes.count("ok"), outcomes.count("error")) == (5, 3)
    assert done.progress.watchers == []
