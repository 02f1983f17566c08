"""Routes beside chat and completions are metered: counts, and joules by phase."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.both_ways import MODEL, Ways, both_ways
from tests.support.children import post, record_of

TALK: list[dict[str, Any]] = [{"role": "user", "content": "word " * 200}]
WRITING: dict[str, tuple[str, dict[str, Any]]] = {
    "responses": ("/v1/responses", {"input": "word " * 200, "max_output_tokens": 9}),
    "messages": ("/v1/messages", {"messages": TALK, "max_tokens": 9}),
    "chat_batch": (
        "/v1/chat/completions/batch", {"messages": [TALK, TALK], "max_tokens": 9},
    ),
    "invocations": ("/invocations", {"prompt": "word " * 200, "max_tokens": 9}),
}  # fmt: skip
READING: dict[str, tuple[str, dict[str, Any]]] = {
    "embeddings": ("/v1/embeddings", {"input": ["word " * 200] * 4}),
    "rerank": ("/v1/rerank", {"query": "q", "documents": ["word " * 200] * 4}),
    "score": ("/v1/score", {"text_1": "q", "text_2": ["word " * 200] * 4}),
}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    folder: Path = tmp_path_factory.mktemp("routes")
    with both_ways(folder, "vllm") as found:
        yield found


def recorded(ways: Ways, name: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"x-request-id": name}
    asked = {"model": MODEL, "ignore_eos": True} | body
    assert post(f"{ways.proxied}{path}", json=asked, headers=headers).status_code == 200
    return record_of(ways.admin, name)


@pytest.mark.parametrize("name", WRITING)
def test_a_route_that_writes_has_joules_of_both_phases(ways: Ways, name: str) -> None:
    record = recorded(ways, name, *WRITING[name])
    assert (record["route"], record["outcome"]) == (name, "ok")
    assert record["output_tokens"] == (18 if name == "chat_batch" else 9)
    energy = record["energy"]
    assert energy["prefill_joules"] > 0
    assert energy["decode_joules"] > 0


@pytest.mark.parametrize("name", READING)
def test_a_route_that_only_reads_has_joules_of_prefill_alone(
    ways: Ways, name: str
) -> None:
    record = recorded(ways, name, *READING[name])
    assert (record["route"], record["outcome"]) == (name, "ok")
    assert record["output_tokens"] == 0
    assert record["prompt_tokens"] >= 800
    energy = record["energy"]
    assert energy["prefill_joules"] > 0
    assert energy["decode_joules"] == 0
