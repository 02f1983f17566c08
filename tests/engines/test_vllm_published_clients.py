"""The clients of `docs/clients.md`, unchanged, against a real vLLM: the same words with
the proxy and without, one record for each call, and counts that client, ledger and
engine agree on."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engines.vllm_server import MODEL, Metered, metered, metric_of, running_vllm
from tests.support.children import get, post, record_of, wait_for
from tests.support.client_calls import CALLS, calls_of, tokens_of
from tests.support.paths import ROOT

pytestmark = [pytest.mark.vllm, pytest.mark.clients]

KINDS = ("generate", "embed")
NAMES = [name for kind in KINDS for name in calls_of(kind)]
COUNTERS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "output_tokens": "vllm:generation_tokens_total",
}
CALLS_SECONDS = 600
"""Takes half a minute, most of it for imports; a busy machine gets more."""


@dataclass(frozen=True)
class Asked:
    """What a client told directly and through the proxy, and the record."""

    direct: dict[str, Any]
    proxied: dict[str, Any]
    record: dict[str, Any]


@dataclass(frozen=True)
class Served:
    """Every call, by name, and what the engines counted of both ways together."""

    calls: dict[str, Asked]
    counted: dict[str, float]


@pytest.fixture(scope="module")
def embedding(
    engines: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Metered]:
    """A vLLM that answers with vectors, metered."""
    folder = tmp_path_factory.mktemp("embedding")
    flags = ("--runner", "pooling", "--convert", "embed")
    with (
        running_vllm(engines, tiny_model, folder, *flags) as vllm,
        metered(vllm, folder) as served,
    ):
        yield served


@pytest.fixture(scope="module")
def served(talkative: Metered, embedding: Metered, clients: Path) -> Served:
    places = dict(zip(KINDS, (talkative, embedding), strict=True))
    first_stream(talkative)
    earlier = {kind: ids_of(place) for kind, place in places.items()}
    before = counters_of(places)
    done = subprocess.run(
        [
            clients / "bin/python", "-m", "tests.support.client_calls", MODEL,
            *(f"{kind}={at.vllm.url},{at.url}" for kind, at in places.items()),
        ],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=CALLS_SECONDS,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    heard = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["call"] for one in heard] == NAMES
    records: list[dict[str, Any]] = []
    for kind, place in places.items():
        new = new_records(place, earlier[kind], len(calls_of(kind)))
        assert len(new) == len(calls_of(kind))
        records += new
    after = counters_of(places)
    return Served(
        {
            one["call"]: Asked(one["heard"][0], one["heard"][1], record)
            for one, record in zip(heard, records, strict=True)
        },
        {name: after[name] - before[name] for name in COUNTERS},
    )


def first_stream(place: Metered) -> None:
    """The one by which the proxy learns that this engine sends no usage unasked."""
    body = {"model": MODEL, "prompt": "a", "max_tokens": 1, "stream": True}
    headers = {"x-request-id": "first-stream"}
    reply = post(f"{place.url}/v1/completions", json=body, headers=headers)
    assert reply.status_code == 200
    record_of(place.admin, "first-stream")


def records_of(place: Metered) -> list[dict[str, Any]]:
    """In the order in which the requests came."""
    lines = get(f"{place.admin}/requests?limit=10000").text.splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return sorted(records, key=lambda record: record["arrived_unix_seconds"])


def new_records(place: Metered, earlier: set[str], count: int) -> list[dict[str, Any]]:
    """Those that came since, when there are as many."""
    wait_for(lambda: len(ids_of(place)) >= len(earlier) + count)
    return [r for r in records_of(place) if r["request_id"] not in earlier]


def ids_of(place: Metered) -> set[str]:
    return {record["request_id"] for record in records_of(place)}


def counters_of(places: dict[str, Metered]) -> dict[str, float]:
    return {
        name: sum(metric_of(place.vllm.url, counter) for place in places.values())
        for name, counter in COUNTERS.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_client_is_told_the_same_through_the_proxy(served: Served, name: str) -> None:
    asked = served.calls[name]
    assert "failure" not in asked.proxied, asked.proxied["failure"]
    assert asked.proxied == asked.direct
    assert asked.proxied["text"]


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_counts_what_the_client_was_told(served: Served, name: str) -> None:
    told, record = served.calls[name].proxied, served.calls[name].record
    assert (record["route"], record["outcome"]) == (CALLS[name].route, "ok")
    asked_for = 0 if CALLS[name].engine == "embed" else tokens_of(name)
    prompts = 2 if name == "openai-completion-stream" else 1
    assert record["output_tokens"] == asked_for * prompts
    assert told["prompt_tokens"] in (None, record["prompt_tokens"])
    assert told["output_tokens"] in (None, record["output_tokens"])
    assert record["energy"]["energy_joules"] > 0


@pytest.mark.parametrize("count", COUNTERS)
def test_the_engine_counted_as_much_for_both_ways(served: Served, count: str) -> None:
    recorded = sum(asked.record[count] for asked in served.calls.values())
    assert served.counted[count] == 2 * recorded
