"""Clients that leave, an engine that is full, an engine that dies: all in the books."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from loadgen.plan.prompts import prompt_text
from tests.engines.cpu_power import family
from tests.engines.vllm_server import (
    MODEL,
    Metered,
    metered,
    metric_of,
    running_vllm,
)
from tests.support.children import get, record_of, wait_for

pytestmark = pytest.mark.vllm

Json = dict[str, Any]
ROUTE = "/v1/completions"
ENDLESS = 60_000
"""Tokens that nobody waits for: ten seconds of work or more."""
GENERATED = "vllm:generation_tokens_total"


def body_for(key: str, tokens: int, **fields: Any) -> Json:
    return {
        "model": MODEL, "prompt": prompt_text(9, key, 50), "max_tokens": tokens,
        "ignore_eos": True, "temperature": 0, **fields,
    }  # fmt: skip


def ask(url: str, request_id: str, body: Json) -> httpx.Response:
    headers = {"x-request-id": request_id}
    with httpx.Client(verify=False, trust_env=False, timeout=60) as client:
        return client.post(url + ROUTE, json=body, headers=headers)


@contextlib.contextmanager
def asking(url: str, request_id: str, body: Json) -> Iterator[socket.socket]:
    """A request on a bare connection, which is closed at the end."""
    parts = urlsplit(url)
    content = json.dumps(body).encode()
    head = (
        f"POST {ROUTE} HTTP/1.1\r\nhost: {parts.netloc}\r\nx-request-id: {request_id}"
        f"\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as peer:
        peer.sendall(head.encode() + content)
        yield peer


def read_until(peer: socket.socket, mark: bytes, times: int = 1) -> bytes:
    """What came until the mark came so often, wherever the reads are cut."""
    seen = b""
    while seen.count(mark) < times:
        data = peer.recv(1 << 20)
        assert data, seen
        seen += data
    return seen


def books_of(served: Metered) -> Json:
    books: Json = get(f"{served.admin}/books").json()
    return books


def open_requests(served: Metered) -> int:
    count: int = books_of(served)["open_requests"]
    return count


def running(served: Metered) -> float:
    return served.vllm.counter("vllm:num_requests_running")


def waiting(served: Metered) -> float:
    return served.vllm.counter("vllm:num_requests_waiting")


def assert_books_close(served: Metered) -> None:
    books = wait_for(lambda: settled_books(served))
    accounts = (
        sum(books["attributed_joules"].values())
        + books["idle_share_joules"]
        + books["idle_joules"]
        + sum(books["unattributed_joules"].values())
    )
    assert accounts == pytest.approx(books["measured_joules"], abs=0.001)


def settled_books(served: Metered) -> Json | None:
    books = books_of(served)
    return books if books["open_requests"] == 0 else None


def assert_work_ended(served: Metered, generated_before: float) -> None:
    """Nothing runs in the engine, and it did not write what it was asked for."""
    # one that ends well: the gauges of vLLM stand still after a mere abort
    assert ask(served.vllm.url, "after", body_for("after", 1)).status_code == 200
    wait_for(lambda: running(served) == 0)
    generated = served.vllm.counter(GENERATED)
    assert generated - generated_before < 2 * ENDLESS


LEAVING: dict[str, Json] = {
    "stream": {"stream": True},
    "counted stream": {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    },
    "whole": {},
}


@pytest.mark.parametrize("mode", LEAVING)
def test_a_client_that_leaves_ends_the_work_and_keeps_its_joules(
    talkative: Metered, mode: str
) -> None:
    request_id = f"leaves-{mode.replace(' ', '-')}"
    before = talkative.vllm.counter(GENERATED)
    body = body_for(mode, ENDLESS, **LEAVING[mode])
    with asking(talkative.url, request_id, body) as peer:
        if "stream" in mode:
            read_until(peer, b"data: ", times=5)
        else:
            wait_for(lambda: talkative.vllm.counter(GENERATED) > before + 5)
    record = record_of(talkative.admin, request_id)
    assert (record["outcome"], record["error"]) == ("aborted", "the client left")
    assert record["energy"]["energy_joules"] > 0
    assert (record["first_token_unix_seconds"] is not None) == ("stream" in mode)
    if mode == "counted stream":
        assert 4 <= record["output_tokens"] < ENDLESS
    assert_work_ended(talkative, before)
    assert_books_close(talkative)


@contextlib.contextmanager
def busy_with(url: str, served: Metered, *request_ids: str) -> Iterator[None]:
    """So many endless requests in the engine; whole ones, which cost no sending."""
    with contextlib.ExitStack() as stack:
        for request_id in request_ids:
            body = body_for(request_id, ENDLESS)
            stack.enter_context(asking(url, request_id, body))
        wait_for(lambda: running(served) + waiting(served) == len(request_ids))
        yield


@pytest.mark.parametrize("mode", ["stream", "whole"])
def test_a_client_that_leaves_the_queue_leaves_no_work(
    terse: Metered, mode: str
) -> None:
    before = terse.vllm.counter(GENERATED)
    busy = [f"busy-{mode}-{n}" for n in range(2)]
    with busy_with(terse.url, terse, *busy):
        body = body_for("queue", ENDLESS, stream=mode == "stream")
        with asking(terse.url, f"queued-{mode}", body) as peer:
            if mode == "stream":
                read_until(peer, b"\r\n\r\n")
            wait_for(lambda: waiting(terse) == 1)
        wait_for(lambda: open_requests(terse) == 2)
    for request_id in busy:
        record = record_of(terse.admin, request_id)
        assert record["outcome"] == "aborted"
        assert record["energy"]["energy_joules"] > 0
    record = record_of(terse.admin, f"queued-{mode}")
    assert record["outcome"] == "aborted"
    assert record["first_token_unix_seconds"] is None
    assert not record["output_tokens"]
    # the gauges are read once a second: who leaves before that may have prefilled
    assert not record["energy"]["decode_joules"]
    assert_work_ended(terse, before)
    assert_books_close(terse)


def test_a_full_engine_refuses_in_one_way_or_the_other(terse: Metered) -> None:
    rejected = "vllm:admission_rejections_total"
    before = terse.vllm.counter(rejected)
    waves = {
        # with room left at their arrival, some begin a stream and are refused in it
        "stream": [f"full-stream-{n}" for n in range(16)],
        "whole": [f"full-whole-{n}" for n in range(2)],
    }
    with contextlib.ExitStack() as full:
        for mode, request_ids in waves.items():
            for request_id in request_ids:
                body = body_for(request_id, ENDLESS, stream=mode == "stream")
                full.enter_context(asking(terse.url, request_id, body))
        wait_for(lambda: terse.vllm.counter(rejected) - before == 18 - 6)
        wait_for(lambda: open_requests(terse) == 6)
    records = [record_of(terse.admin, key) for wave in waves.values() for key in wave]
    refused = [record for record in records if record["outcome"] != "aborted"]
    assert len(refused) == 12
    for record in refused:
        assert record["outcome"] == "error"
        assert "currently busy" in record["error"]
        is_stream = "stream" in record["request_id"]
        assert record["status"] in ({200, 503} if is_stream else {503})
        assert not record["output_tokens"]
    assert_books_close(terse)


def test_forty_at_once_are_counted_as_vllm_counts_them(talkative: Metered) -> None:
    names = {
        "output_tokens": GENERATED,
        "prompt_tokens": "vllm:prompt_tokens_total",
        "cached_tokens": "vllm:prefix_cache_hits_total",
    }
    before = {field: talkative.vllm.counter(name) for field, name in names.items()}
    prompts = [prompt_text(7, f"crowd {n % 20}", 300) for n in range(40)]
    bodies = {
        f"crowd-{n}": body_for("", 10 + n, prompt=prompt, stream=n % 3 != 0)
        for n, prompt in enumerate(prompts)
    }
    with ThreadPoolExecutor(len(bodies)) as pool:
        list(pool.map(lambda item: ask(talkative.url, *item), bodies.items()))
    records = [record_of(talkative.admin, key) for key in bodies]
    assert [record["output_tokens"] for record in records] == list(range(10, 50))
    # the engine takes every core: a proxy that read late says so
    assert {record["energy"]["timing"] for record in records} <= {"timed", "estimated"}
    for field, name in names.items():
        counted = talkative.vllm.counter(name) - before[field]
        assert sum(record[field] for record in records) == counted, field
    assert all(record["energy"]["energy_joules"] > 0 for record in records)
    assert_books_close(talkative)


def test_the_proxy_reads_the_gauges_of_vllm(terse: Metered) -> None:
    wait_for(lambda: metric_of(terse.admin, "servewatt_engine_gauges_up") == 1)
    with busy_with(terse.vllm.url, terse, "around-0", "around-1"):  # past the proxy
        wait_for(lambda: metric_of(terse.admin, "servewatt_external_requests") == 2)


def test_an_engine_that_dies_in_mid_stream_ends_every_request(
    engines: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with (
        running_vllm(engines, tiny_model, tmp_path) as vllm,
        metered(vllm, tmp_path) as served,
        asking(served.url, "stream", body_for("a", ENDLESS, stream=True)) as stream,
        asking(served.url, "whole", body_for("b", ENDLESS)) as whole,
    ):
        read_until(stream, b"data: ", times=5)
        wait_for(lambda: open_requests(served) == 2)
        core = next(pid for pid in family(vllm.pid) if "EngineCor" in name_of(pid))
        os.kill(core, signal.SIGKILL)
        rest = read_until(stream, b"0\r\n\r\n")
        assert b'data: {"error": ' in rest
        assert rest.rstrip().endswith(b"data: [DONE]\n\n\r\n0")
        assert read_until(whole, b"\r\n\r\n").startswith(b"HTTP/1.1 500 ")
        for request_id, status in (("stream", 200), ("whole", 500)):
            record = record_of(served.admin, request_id)
            assert (record["outcome"], record["status"]) == ("error", status)
            assert record["energy"]["energy_joules"] > 0
        wait_for(lambda: ask(served.url, "late", body_for("c", 1)).status_code == 502)
        late = record_of(served.admin, "late")
        assert late["outcome"] == "upstream_error"
        ready = get(f"{served.admin}/readyz")
        assert ready.status_code == 503
        assert not ready.json()["upstream"]
        assert_books_close(served)


def name_of(pid: int) -> str:
    """Fifteen letters of it."""
    return Path(f"/proc/{pid}/comm").read_text()
