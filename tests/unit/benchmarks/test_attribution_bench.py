"""The bench that judges the meter: its truth adds up, and it hides what it says."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.attribution.board import BOARDS, Board, Work, cost, divided, work_of
from benchmarks.attribution.load import EMBEDDING, load
from benchmarks.attribution.scenarios import BENT, Scenario
from benchmarks.attribution.sight import (
    PASSED,
    PAST,
    WHOLE,
    Lateness,
    events_of,
    gauges_at,
    ways_of,
)

SMALL = 15
MEMBERS = st.lists(
    st.tuples(st.booleans(), st.integers(1, 600), st.integers(0, 4000)),
    min_size=1,
    max_size=12,
)


def columns_of(members: list[tuple[bool, int, int]], board: Board) -> np.ndarray:
    decodes = [
        (board.decode_tokens, read) for is_decode, _, read in members if is_decode
    ]
    prefills = [(tokens, read) for is_decode, tokens, read in members if not is_decode]
    both = np.array(decodes + prefills, np.float64)
    return work_of(both[:, 0], both[:, 1], len(decodes))


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
@settings(max_examples=8, deadline=None)
@given(members=MEMBERS)
def test_shares_of_a_step_add_up_to_it(
    board: Board, members: list[tuple[bool, int, int]]
) -> None:
    step = divided(board, columns_of(members, board), np.random.default_rng(1))
    assert step.shapley_joules.sum() == pytest.approx(step.joules)
    assert step.shapley_seconds.sum() == pytest.approx(step.seconds)


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_sampled_shares_are_the_shapley_value(board: Board) -> None:
    columns = columns_of([(True, 1, 900), (True, 1, 60), (False, 500, 0)], board)
    exact = np.zeros(3)
    for order in permutations(range(3)):
        before = 0.0
        for place, member in enumerate(order):
            among = columns[:, list(order[: place + 1])].sum(axis=1)
            joules = float(cost(board, Work(*among))[1])
            exact[member] += (joules - before) / 6
            before = joules
    drawn = [
        divided(board, columns, np.random.default_rng(seed)).shapley_joules
        for seed in range(100)
    ]
    assert np.mean(drawn, axis=0) == pytest.approx(exact, rel=0.04)


@pytest.mark.parametrize("name", ["dense", "moe", "speculative", "tp4"])
def test_a_board_is_no_fixed_part_plus_sums(name: str) -> None:
    board = BOARDS[name]
    decodes = np.array([1.0, 2.0, 8.0, 9.0, 64.0])
    whole = work_of(
        np.array([float(board.decode_tokens)]), np.array([600.0]), 1
    ) * np.ones((1, 5))
    joules = cost(board, Work(*(whole * decodes)))[1]
    slopes = np.diff(joules) / np.diff(decodes)
    assert slopes.max() > 1.15 * slopes.min()


def test_a_power_cap_makes_steps_longer() -> None:
    prefill = Work(*work_of(np.array([2000.0]), np.array([0.0]), 0))
    free, capped = (cost(BOARDS[name], prefill) for name in ("dense", "capped"))
    assert capped[0] > free[0]
    assert (capped[1] / capped[0]).item() == pytest.approx(300.0)


@pytest.mark.parametrize("board", [None, "speculative", "moe"], ids=str)
def test_joules_of_all_requests_are_those_of_the_steps(board: str | None) -> None:
    made = load(Scenario("any", board=board), SMALL)
    truths = made.done.truth.values()
    stretches = made.done.pieces
    between = 0.0
    if board is not None:  # the board cools between its steps
        watts = BOARDS[board].working_watts
        busy = {end for end in made.done.tally.end_seconds}
        between = sum(
            watts * (end - start) for start, end, _ in stretches if end not in busy
        )
    steps = sum(joules for _, _, joules in stretches) - between
    assert sum(truth.energy_joules for truth in truths) == pytest.approx(steps)


def test_speculation_brings_several_tokens_of_a_request_at_once() -> None:
    made = load(Scenario("any", board="speculative"), SMALL)
    for request in made.requests:
        counts = made.done.token_counts[request.request_id]
        assert counts.sum() == request.output_tokens
    last = made.done.tally.at(1e9)
    assert 0 < last["accepted_tokens"] < last["draft_tokens"]
    assert last["draft_tokens"] == 3 * last["drafts"]


@pytest.mark.parametrize("board", [None, "dense"], ids=str)
def test_the_engine_counts_what_it_did(board: str | None) -> None:
    made = load(Scenario("any", board=board, repeat_fraction=0.5), SMALL)
    last = made.done.tally.at(1e9)
    prompts = sum(request.prompt_tokens for request in made.requests)
    assert last["prompt_tokens"] == last["prefix_queries"] == prompts
    assert last["prefix_hits"] == last["cached_tokens"] > 0
    assert last["output_tokens"] == sum(r.output_tokens for r in made.requests)
    assert last["step_tokens"] == last["prompt_tokens"] + last["output_tokens"]
    assert last["running"] == last["waiting"] == 0
    assert gauges_at(made.done.tally, 0.0).running == 0


def test_embeddings_have_no_token() -> None:
    made = load(Scenario("any", board="dense", embedding_fraction=0.5), SMALL)
    silent = [
        request.request_id
        for request, kind in zip(made.requests, made.kinds, strict=True)
        if kind == EMBEDDING
    ]
    assert silent
    assert not any(len(made.done.token_seconds[name]) for name in silent)
    assert all(made.done.truth[name].prefill_joules > 0 for name in silent)


def test_nothing_of_what_bypasses_the_proxy_is_told() -> None:
    scenario = Scenario("any", board="dense", bypass_fraction=0.5)
    made = load(scenario, SMALL)
    ways = ways_of(made, scenario)
    told = {event.key for event in events_of(made, scenario, 0.0)}
    assert not told & {key for key, way in enumerate(ways) if way == PAST}
    assert PAST in ways


def test_of_embeddings_that_pass_only_the_time_is_told() -> None:
    scenario = replace(
        Scenario("any", board="dense"), embedding_fraction=0.5, embeddings_pass=True
    )
    made = load(scenario, SMALL)
    ways = ways_of(made, scenario)
    whats = {
        event.what
        for event in events_of(made, scenario, 0.0)
        if event.key >= 0 and ways[event.key] == PASSED
    }
    assert whats == {"opened", "closed"}


def test_a_reply_in_one_piece_comes_at_its_end() -> None:
    scenario = Scenario("any", board="dense", whole_fraction=1.0)
    made = load(scenario, SMALL)
    assert set(ways_of(made, scenario)) == {WHOLE}
    received = [e for e in events_of(made, scenario, 0.0) if e.what == "received"]
    assert len(received) == SMALL


def test_hidden_caches_are_in_no_usage() -> None:
    scenario = Scenario("any", board="dense", repeat_fraction=0.5, hides_cache=True)
    events = events_of(load(scenario, SMALL), scenario, 0.0)
    usages = [update.usage for event in events for update in event.updates]
    assert usages
    assert all(usage is not None and usage.cached_tokens is None for usage in usages)


def test_what_comes_while_the_proxy_stands_still_is_seen_afterwards() -> None:
    scenario = Scenario("any", board="dense", stall_fraction=1.0)
    lateness = Lateness(load(scenario, SMALL), scenario)
    at = np.arange(5.0, 9.0, 0.001)
    seen = lateness.seen(at)
    assert (seen >= at).all()
    assert (np.diff(seen) >= 0).all()
    assert 0.1 < (seen - at).max() <= 0.3


@pytest.mark.parametrize("scenario", BENT, ids=lambda each: each.name)
def test_events_are_in_order_of_time(scenario: Scenario) -> None:
    made = load(scenario, 3)
    at = [event.at_seconds for event in events_of(made, scenario, 0.001)]
    assert at == sorted(at)


def test_the_same_load_is_computed_once() -> None:
    hidden = Scenario("a", board="dense", repeat_fraction=0.5, hides_cache=True)
    told = Scenario("b", board="dense", repeat_fraction=0.5, lag_seconds=0.3)
    assert load(hidden, SMALL) is load(told, SMALL)


def test_runs_are_kept_in_a_folder(tmp_path: Path) -> None:
    scenario = Scenario("any", board="dense", seed=5)
    made = load(scenario, 2, tmp_path)
    (kept,) = tmp_path.iterdir()
    assert pickle.loads(kept.read_bytes()).requests == made.requests
