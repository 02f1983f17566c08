"""A real `transformers serve` through the proxy, with and without batching.

Its model ends a reply at every second token it may choose, so a length that comes out
as asked was forced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loadgen.plan.prompts import prompt_text
from tests.engines.transformers_server import BATCHING, Serving, curt_model, serving
from tests.support.children import record_of, wait_for
from tests.support.runs import loadgen, records, summary_of, write_trace

pytestmark = pytest.mark.transformers

Json = dict[str, Any]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ROUTES = (CHAT, COMPLETIONS)
CREATED = re.compile(rb'"created":\d+')
FORCED = {"generation_config": '{"eos_token_id": -1, "do_sample": false}'}
TEMPLATE_TOKENS = {CHAT: 3, COMPLETIONS: 0}
FLAGS: dict[str, tuple[str, ...]] = {"plain": (), "batching": BATCHING}


@pytest.fixture(scope="module", params=FLAGS)
def served(
    request: pytest.FixtureRequest,
    engines: Path,
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Serving]:
    """A server of each kind, metered."""
    folder = tmp_path_factory.mktemp(f"transformers-{request.param}")
    model = curt_model(tiny_model, folder)
    with serving(engines, model, folder, *FLAGS[request.param]) as server:
        yield server


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=120, trust_env=False) as client:
        yield client


def body_for(served: Serving, route: str, prompt: str, **fields: Any) -> Json:
    """A greedy request of exactly 12 tokens, unless told otherwise."""
    asked = (
        {"messages": [{"role": "user", "content": prompt}]}
        if route == CHAT
        else {"prompt": prompt}
    )
    return {"model": served.model, "max_tokens": 12} | FORCED | asked | fields


def events_of(reply: httpx.Response) -> list[Json]:
    """The JSON events of a stream, which has nothing else: no `[DONE]`."""
    parts = [part for part in reply.text.split("\n\n") if part]
    return [json.loads(part.removeprefix("data: ")) for part in parts]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", ROUTES)
def test_a_client_gets_the_bytes_and_the_record_the_exact_counts(
    served: Serving, client: httpx.Client, route: str, stream: bool
) -> None:
    words = 40 + stream
    prompt = prompt_text(1, f"{route}{stream}", words)
    body = body_for(served, route, prompt, stream=stream)
    request_id = f"counts-{ROUTES.index(route)}-{stream}"
    headers = {"x-request-id": request_id, "accept-encoding": "identity"}
    direct, metered = (
        client.post(f"{url}{route}", json=body, headers=headers)
        for url in (served.direct, served.url)
    )
    assert metered.status_code == direct.status_code == 200
    assert metered.headers["content-type"] == direct.headers["content-type"]
    assert metered.headers["x-request-id"] == request_id
    if stream:  # how many tokens one event holds is the moment's
        assert text_of(events_of(metered)) == text_of(events_of(direct))
        last = events_of(metered)[-1]
    else:
        assert CREATED.sub(b"", metered.content) == CREATED.sub(b"", direct.content)
        last = metered.json()
    record = record_of(served.admin, request_id)
    assert record["outcome"] == "ok"
    assert record["prompt_tokens"] == words + TEMPLATE_TOKENS[route]
    assert record["output_tokens"] == 12
    assert last["usage"]["prompt_tokens"] == record["prompt_tokens"]
    assert last["usage"]["completion_tokens"] == 12
    assert last["choices"][0]["finish_reason"] == "length"
    assert record["energy"]["energy_joules"] > 0


def text_of(events: list[Json]) -> str:
    parts = [event["choices"][0] for event in events]
    return "".join(
        p.get("text") or p.get("delta", {}).get("content", "") for p in parts
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("tokens", [1, 2, 63])
def test_any_length_can_be_forced(
    served: Serving, client: httpx.Client, tokens: int, stream: bool
) -> None:
    """One token may be no text at all: then no event has it, only the usage."""
    body = body_for(served, CHAT, "on and on", max_tokens=tokens, stream=stream)
    request_id = f"forced-{tokens}-{stream}"
    client.post(served.url + CHAT, json=body, headers={"x-request-id": request_id})
    record = record_of(served.admin, request_id)
    assert (record["outcome"], record["output_tokens"]) == ("ok", tokens)


def test_a_length_that_is_not_forced_is_a_cap(
    served: Serving, client: httpx.Client
) -> None:
    body = body_for(served, CHAT, "say it shortly", max_tokens=200)
    del body["generation_config"]
    headers = {"x-request-id": "capped"}
    reply = client.post(served.url + CHAT, json=body, headers=headers).json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    tokens = record_of(served.admin, "capped")["output_tokens"]
    assert tokens == reply["usage"]["completion_tokens"] < 200


def test_n_is_ignored_and_counted_once(served: Serving, client: httpx.Client) -> None:
    body = body_for(served, CHAT, "both of you", n=2)
    headers = {"x-request-id": "two"}
    reply = client.post(served.url + CHAT, json=body, headers=headers).json()
    assert len(reply["choices"]) == 1
    assert record_of(served.admin, "two")["output_tokens"] == 12


REFUSED: dict[str, tuple[int, Json, str]] = {
    "ignore_eos": (422, {"ignore_eos": True}, "Unexpected fields in the request"),
    "an unknown model": (400, {"model": "of-nobody"}, "Server is pinned to"),
    "several prompts": (400, {"prompt": ["a", "b"]}, "prompt must be a string"),
    "a number for a prompt": (400, {"prompt": 5}, "prompt must be a string"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_passes_unchanged_and_is_recorded(
    served: Serving, client: httpx.Client, case: str
) -> None:
    status, fields, said = REFUSED[case]
    body = body_for(served, COMPLETIONS, "no") | fields
    headers = {"x-request-id": f"refused-{list(REFUSED).index(case)}"}
    direct, metered = (
        client.post(url + COMPLETIONS, json=body, headers=headers)
        for url in (served.direct, served.url)
    )
    assert metered.status_code == direct.status_code == status
    assert metered.content == direct.content
    record = record_of(served.admin, headers["x-request-id"])
    assert (record["outcome"], record["status"]) == ("error", status)
    assert said in record["error"]
    assert not record["output_tokens"]


def test_broken_json_is_an_error_of_the_client_and_told(
    served: Serving, client: httpx.Client
) -> None:
    headers = {"content-type": "application/json", "x-request-id": "broken"}
    reply = client.post(served.url + CHAT, content=b'{"messages": ', headers=headers)
    assert reply.status_code == 422
    record = record_of(served.admin, "broken")
    assert (record["outcome"], record["error"]) == ("error", "JSON decode error")


def test_a_crash_in_the_server_is_an_error_with_its_text(
    served: Serving, client: httpx.Client
) -> None:
    headers = {"x-request-id": "crash"}
    reply = client.post(served.url + CHAT, json={"max_tokens": 2}, headers=headers)
    assert reply.status_code == 500
    record = record_of(served.admin, "crash")
    assert (record["outcome"], record["error"]) == ("error", "Internal Server Error")


def test_it_has_no_gauges_and_none_are_asked_for(
    served: Serving, client: httpx.Client
) -> None:
    assert client.get(f"{served.direct}/metrics").status_code == 404
    page = client.get(f"{served.admin}/metrics").text
    assert not re.search(r"^servewatt_engine_\S*scrape\S* [1-9]", page, re.MULTILINE)
    for path in ("/health", "/v1/models"):
        direct, metered = (
            client.get(f"{url}{path}") for url in (served.direct, served.url)
        )
        assert metered.status_code == 200
        assert metered.content == direct.content


def test_a_client_that_leaves_a_stream_stops_the_work(
    served: Serving, client: httpx.Client
) -> None:
    body = body_for(served, CHAT, "for ever", max_tokens=100_000, stream=True)
    headers = {"x-request-id": "left"}
    with client.stream("POST", served.url + CHAT, json=body, headers=headers) as reply:
        lines = (line for line in reply.iter_lines() if line)
        for _ in range(5):
            next(lines)
    used: list[float] = []

    def is_quiet() -> bool:
        """For half a second; 100,000 tokens would keep it busy for minutes."""
        used.append(served.cpu_seconds())
        return len(used) > 25 and used[-1] - used[-26] < 0.01

    wait_for(is_quiet)
    record = record_of(served.admin, "left")
    assert record["outcome"] == "aborted"
    # usage comes last: the tokens that came are the least that were made
    assert record["is_output_lower_bound"]
    assert 0 < record["output_tokens"] < 100_000
    assert record["energy"]["energy_joules"] > 0
    books = client.get(f"{served.admin}/books").json()
    assert abs(books["residual_joules"]) < 1e-3


# -- replayed ------------------------------------------------------------------


@pytest.mark.parametrize("forced", [True, False], ids=["forced", "caps"])
def test_a_trace_is_replayed_and_its_lengths_are_told(
    served: Serving, tmp_path: Path, forced: bool
) -> None:
    rows: list[Json] = [
        {"loadtrace": "loadtrace/1", "name": "real", "kind": "conversation"},
        *({"input_length": 20 + n, "output_length": 8 + n} for n in range(12)),
    ]
    done = loadgen(
        "replay", write_trace(tmp_path, rows), "--rate", "20",
        "--url", served.direct, "--backend", "transformers", "--power", served.power,
        *([] if forced else ["--no-ignore-eos"]), "--out", tmp_path / "run",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stdout + done.stderr  # 3: this host is slow
    printed = " ".join(done.stdout.split())
    found, summary = records(tmp_path / "run"), summary_of(tmp_path / "run")
    assert [row["outcome"] for row in found] == ["ok"] * 12
    assert all(row["energy"]["energy_joules"] > 0 for row in found)
    assert summary["input_lengths"]["served_tokens"] == (
        summary["input_lengths"]["asked_tokens"] + 3 * 12
    )
    for row in found:
        assert sum(row["chunk_tokens"]) == row["output_tokens"]
    early = [r for r in found if r["output_tokens"] < r["requested_output_tokens"]]
    assert summary["output_lengths"]["shorter_requests"] == len(early)
    if forced:
        assert not early
        assert summary["output_length_rule"] == "forced"
        assert "exact in every request" in printed
    else:
        assert early
        assert "output lengths are caps, as was asked for" in printed
        assert f"{len(early)} of 12 replies ended early" in printed


def test_a_server_killed_within_a_stream_is_an_error(
    engines: Path, tiny_model: Path, tmp_path: Path, client: httpx.Client
) -> None:
    with serving(engines, tiny_model, tmp_path) as served:
        body = body_for(served, CHAT, "to the end", max_tokens=50_000, stream=True)
        headers = {"x-request-id": "killed"}
        with client.stream("POST", served.url + CHAT, json=body, headers=headers) as on:
            lines = on.iter_lines()
            assert next(lines)
            served.process.kill()
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        record = record_of(served.admin, "killed")
        assert record["outcome"] == "upstream_error"
        assert record["energy"]["energy_joules"] > 0
