"""Who ran when, through real processes: what engines tell, and who comes past us."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import get, metering, post, record_of, simulating, wait_for

MODEL = "simulated-llama-3.1-8b"
NEAR_SECONDS = 0.25  # between two processes, on a machine as busy as it likes
SAME_SECONDS = 0.002  # what the engine measured itself


@dataclass(frozen=True)
class Stack:
    """One simulated engine behind one proxy."""

    engine: str
    proxy: str
    admin: str

    def post(self, path: str, body: dict[str, Any], request_id: str) -> httpx.Response:
        """One request through the proxy, to its end."""
        headers = {"x-request-id": request_id}
        url = f"{self.proxy}{path}"
        reply = post(url, json=body, headers=headers, timeout=60)
        assert reply.status_code == 200, reply.text
        return reply

    def books(self) -> dict[str, Any]:
        """All that is settled."""
        books: dict[str, Any] = get(f"{self.admin}/books").json()
        return books

    def truth(self, request_id: str) -> dict[str, Any]:
        """What the simulator knows of one request."""
        lines = get(f"{self.engine}/simulator/truth").text.splitlines()
        rows = [json.loads(line) for line in lines]
        (row,) = [row for row in rows if row["request_id"] == request_id]
        found: dict[str, Any] = row
        return found


@contextlib.contextmanager
def stack(dialect: str, folder: Path) -> Iterator[Stack]:
    metered = ("--engine", dialect, "--idle-watts", "105")
    with (
        simulating(folder, "--dialect", dialect) as engine,
        metering(folder, engine, *metered) as proxy,
    ):
        yield Stack(engine["url"], proxy["url"], proxy["admin_url"])


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack("vllm", tmp_path_factory.mktemp("vllm")) as running:
        yield running


@pytest.fixture(scope="module")
def tgi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with stack("tgi", tmp_path_factory.mktemp("tgi")) as running:
        yield running


def chat(words: int, tokens: int, **more: Any) -> dict[str, Any]:
    prompt = " ".join(f"w{number}" for number in range(words))
    return {
        "model": MODEL, "max_tokens": tokens, "ignore_eos": True,
        "messages": [{"role": "user", "content": prompt}],
    } | more  # fmt: skip


def assert_as_the_engine_says(record: dict[str, Any], truth: dict[str, Any]) -> None:
    names = ("scheduled_unix_seconds", "first_token_unix_seconds")
    for name in names:
        assert record[name] == pytest.approx(truth[name], abs=NEAR_SECONDS)
    prefill, known = (side[names[1]] - side[names[0]] for side in (record, truth))
    assert prefill == pytest.approx(known, abs=SAME_SECONDS)


def test_a_plain_stream_is_exact_by_the_usage_event_the_relay_asked_for(
    vllm: Stack,
) -> None:
    # the first stream teaches the meter that phase times come at the end
    for number in range(2):
        body = chat(400 + number, 25, stream=True)
        reply = vllm.post("/v1/chat/completions", body, f"plain-{number}")
        assert "usage" not in reply.text
        record = record_of(vllm.admin, f"plain-{number}")
    assert record["energy"]["quality"] == "exact"
    assert record["output_tokens"] == 25
    assert_as_the_engine_says(record, vllm.truth("plain-1"))


def test_a_whole_reply_is_exact_by_its_metrics(vllm: Stack) -> None:
    vllm.post("/v1/chat/completions", chat(300, 20), "whole")
    record = record_of(vllm.admin, "whole")
    assert record["energy"]["quality"] == "exact"
    assert record["energy"]["prefill_joules"] > 1.0
    assert_as_the_engine_says(record, vllm.truth("whole"))


def test_cached_prompt_tokens_are_not_computed_again(vllm: Stack) -> None:
    for number in range(2):
        vllm.post("/v1/chat/completions", chat(2000, 5), f"repeat-{number}")
    first, again = (record_of(vllm.admin, f"repeat-{number}") for number in range(2))
    assert again["cached_tokens"] > 1900
    spent = [record["energy"]["prefill_joules"] for record in (first, again)]
    assert spent[1] < 0.5 * spent[0]


def test_parallel_sequences_decode_each_and_prefill_once(vllm: Stack) -> None:
    """vLLM tells no phase times for n > 1: estimated."""
    vllm.post("/v1/chat/completions", chat(802, 60, n=4, temperature=1), "four")
    record, truth = record_of(vllm.admin, "four"), vllm.truth("four")
    assert record["output_tokens"] == 240
    energy = record["energy"]
    assert energy["quality"] == "estimated"
    assert energy["decode_joules"] == pytest.approx(truth["decode_joules"], rel=0.3)


def test_traffic_past_the_proxy_is_nobodys_here(vllm: Stack) -> None:
    before = vllm.books()["unattributed_joules"].get("external", 0.0)
    url = f"{vllm.engine}/v1/chat/completions"
    past = threading.Thread(
        target=httpx.post, args=(url,),
        kwargs={"json": chat(50, 900), "timeout": 60},
    )  # fmt: skip
    past.start()
    # several scrapes long: what comes before the first is not known to be shared
    vllm.post("/v1/chat/completions", chat(60, 750, stream=True), "beside")
    past.join()
    record = record_of(vllm.admin, "beside")
    truth = vllm.truth("beside")
    assert record["energy"]["energy_joules"] > 0
    external = wait_for(
        lambda: vllm.books()["unattributed_joules"].get("external", 0.0) - before
    )
    assert external > 50.0
    assert abs(vllm.books()["residual_joules"]) < 1e-3
    # half of the engine was somebody else's
    ran = record["last_token_unix_seconds"] - record["scheduled_unix_seconds"]
    assert record["energy"]["energy_joules"] < truth["energy_joules"] * 1.5
    assert ran > 1.0


def test_the_gauges_are_scraped_and_shown(vllm: Stack) -> None:
    text = get(f"{vllm.admin}/metrics").text
    assert 'servewatt_engine_gauges_up{engine="vllm"} 1.0' in text


def test_tgis_headers_place_a_whole_reply(tgi: Stack) -> None:
    body = {
        "inputs": " ".join(f"w{number}" for number in range(500)),
        "parameters": {"max_new_tokens": 30, "details": True},
    }
    tgi.post("/generate", body, "headers")
    record = record_of(tgi.admin, "headers")
    assert record["energy"]["quality"] == "exact"
    assert record["prompt_tokens"] == 500
    truth = tgi.truth("headers")
    assert record["scheduled_unix_seconds"] == pytest.approx(
        truth["scheduled_unix_seconds"], abs=NEAR_SECONDS
    )


def test_tgis_streams_tell_no_times_and_are_estimated(tgi: Stack) -> None:
    body = {"inputs": "one two three", "parameters": {"max_new_tokens": 20}}
    tgi.post("/generate_stream", body, "stream")
    assert record_of(tgi.admin, "stream")["energy"]["quality"] == "estimated"
