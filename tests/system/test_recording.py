"""A recording and its replay through real processes, and one that a kill ended.

What is compared are lengths, sessions, shared beginnings and planned times, all of
which are exact; when a busy machine then sends or ends anything is not.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadgen.plan.plan import read_plan
from loadgen.traces.readers.open import open_trace
from tests.support.children import (
    PATIENCE_SECONDS,
    get,
    metering,
    post,
    simulating,
    wait_for,
)
from tests.support.paths import ROOT
from tests.support.runs import loadgen, records, write_trace

SHARED = [[1, 2, 3], [1, 2, 4], [1, 2, 3], [1, 5], [6]]
LENGTHS = [40, 45, 48, 30, 7]
"""Of single requests: prefix blocks of 16 tokens, the last one partial or whole."""


def trace() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"loadtrace": "loadtrace/1", "name": "made", "hash_block_size": 16}
    ]
    at = 0.0
    for number, (ids, tokens) in enumerate(zip(SHARED, LENGTHS, strict=True)):
        at += 40.0625
        rows.append(
            {
                "id": f"single-{number}", "timestamp": at, "input_length": tokens,
                "output_length": 3 + number, "hash_ids": ids, "kind": "code",
            }
        )  # fmt: skip
    for session in ("a", "b"):
        at += 35.5
        for turn in (1, 2, 3):
            rows.append(
                {
                    "session_id": session, "turn": turn, "input_length": 20 + 3 * turn,
                    "output_length": 5 + turn, "history": "append", "delay": 60,
                }
                | ({"timestamp": at} if turn == 1 else {})
            )  # fmt: skip
    return rows


def recorded(path: Path) -> list[dict[str, Any]]:
    """Lines of requests that ended, in order of arrival."""
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    ended = [line for line in lines if line["x"]["outcome"] != "open"]
    return sorted(ended, key=lambda line: line["timestamp"])


def replay_and_record(folder: Path, trace: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.jsonl"
    with (
        simulating(folder) as engine,
        metering(folder, engine, "--record", str(path)) as proxy,
    ):
        done = loadgen(
            "replay", trace, "--url", proxy["url"], "--out", folder / name, cwd=folder
        )
        assert done.returncode in (0, 3), done.stdout + done.stderr
    return recorded(path)


def shape(lines: list[dict[str, Any]]) -> list[Any]:
    """Lengths and place of each request, sessions by the order of their beginnings."""
    order: dict[str, int] = {}
    return [
        (
            order.setdefault(line["session_id"], len(order)), line["turn"],
            line["input_length"], line["output_length"], line.get("history"),
            line.get("kind"), line["x"]["outcome"],
        )
        for line in lines
    ]  # fmt: skip


def common(one: list[int], other: list[int]) -> int:
    """How many both begin with."""
    pairs = zip(one, other, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def sharing(lines: list[dict[str, Any]]) -> list[int]:
    """Blocks that each two prompts begin with in common."""
    chains = [line["hash_ids"] for line in lines if line["turn"] == 1]
    return [common(*both) for both in itertools.combinations(chains, 2)]


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """A trace replayed and recorded, and the recording replayed and recorded."""
    folder = tmp_path_factory.mktemp("recording")
    first = replay_and_record(folder, write_trace(folder, trace()), "first")
    again = replay_and_record(folder, folder / "first.jsonl", "again")
    return folder, first, again


def by_plan(folder: Path, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The recorded lines in the order of the plan that they were sent by."""
    _, sessions = read_plan(folder / "plan.jsonl")
    by_id = {line["x"]["request_id"]: line for line in lines}
    return [by_id[turn.request_id] for each in sessions for turn in each.turns]


Runs = tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]


def test_lengths_and_sessions_are_those_of_the_trace(runs: Runs) -> None:
    folder, first, _ = runs
    rows = [row for row in trace() if "loadtrace" not in row]
    lengths = [
        (line["input_length"], line["output_length"])
        for line in by_plan(folder / "first", first)
    ]
    assert lengths == [(row["input_length"], row["output_length"]) for row in rows]
    assert [line["turn"] for line in by_plan(folder / "first", first)] == [
        1, 1, 1, 1, 1, 1, 2, 3, 1, 2, 3,
    ]  # fmt: skip


def test_a_replay_of_the_recording_is_planned_at_the_recorded_times(runs: Runs) -> None:
    folder, first, _ = runs
    _, sessions = read_plan(folder / "again" / "plan.jsonl")
    planned = [
        each.start_seconds if turn.at_seconds is None else turn.at_seconds
        for each in sessions
        for turn in each.turns
    ]
    zero = first[0]["timestamp"]
    arrived = [round((line["timestamp"] - zero) / 1000, 6) for line in first]
    assert sorted(planned) == arrived


def test_a_replay_of_the_recording_has_its_lengths_and_sessions(runs: Runs) -> None:
    folder, first, again = runs
    original = by_plan(folder / "first", first)
    assert shape(by_plan(folder / "again", again)) == shape(original)
    assert all(row["outcome"] == "ok" for row in records(folder / "again"))


def test_a_replay_of_the_recording_shares_the_same_beginnings(runs: Runs) -> None:
    folder, first, again = runs
    singles = [line for line in by_plan(folder / "first", first) if "kind" in line]
    pairs = itertools.combinations(zip(SHARED, LENGTHS, strict=True), 2)
    wanted = [
        min(common(one, other), tokens // 16, other_tokens // 16)
        for (one, tokens), (other, other_tokens) in pairs
    ]
    assert sharing(singles) == wanted
    original = sharing(by_plan(folder / "first", first))
    assert sharing(by_plan(folder / "again", again)) == original


def test_no_word_of_a_prompt_is_in_the_recording(runs: Runs) -> None:
    folder, _, _ = runs
    text = (folder / "first.jsonl").read_text()
    for word in ("carefully", "understand", "equation", "government", "system"):
        assert word not in text


def test_a_kill_leaves_whole_lines_of_all_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with simulating(tmp_path) as engine:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "proxy", "serve", "--upstream", engine["url"],
                "--power", "none", "--store", "none", "--listen", "127.0.0.1:0",
                "--admin", "127.0.0.1:0", "--announce", "--record", str(path),
            ],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            announced = json.loads(process.stdout.readline())
            url = f"{announced['url']}/v1/chat/completions"
            for number in range(20):
                post(url, json=body(f"question {number}", 2))

            def is_counted() -> bool:
                page = get(f"{announced['admin_url']}/metrics").text
                return "servewatt_recorded_requests_total 20.0" in page

            wait_for(is_counted)
            long = threading.Thread(target=cut_off, args=(url,))
            long.start()
            wait_for(lambda: '"outcome":"open"' in last_line(path))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        long.join(PATIENCE_SECONDS)
    lines = path.read_text().splitlines(keepends=True)
    assert all(line.endswith("}\n") for line in lines)
    info, sessions = open_trace(path)
    assert len(list(sessions)) == 21
    assert any("1 requests were in flight" in each for each in info.warnings)


def last_line(path: Path) -> str:
    return path.read_text().splitlines()[-1]


def body(prompt: str, tokens: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {
        "model": "simulated-llama-3.1-8b", "messages": messages,
        "max_tokens": tokens, "ignore_eos": True, "min_tokens": tokens,
    }  # fmt: skip


def cut_off(url: str) -> None:
    """A request whose reply never comes, since the proxy is killed."""
    with suppress(httpx.HTTPError):
        post(url, json=body("a long story", 8000))
