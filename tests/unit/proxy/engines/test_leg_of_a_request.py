"""The leg of a request, as its body tells it or its engine's role."""

from __future__ import annotations

import json

import pytest

from proxy.engines import DIALECTS
from proxy.wire.facts import RequestFacts

PREFILL = {
    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
    "remote_block_ids": None, "remote_host": None, "remote_port": None,
}  # fmt: skip
DECODE = {
    "do_remote_decode": False, "do_remote_prefill": True,
    "remote_block_ids": [1, 2, 3], "remote_engine_id": "a",
    "remote_host": "127.0.0.1", "remote_port": 5600,
}  # fmt: skip


def facts(body: object) -> RequestFacts:
    found = DIALECTS["vllm"].read_request(
        "POST", "/v1/chat/completions", json.dumps(body).encode()
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("params", "leg"),
    [
        (PREFILL, "prefill"),
        (DECODE, "decode"),
        ({**DECODE, "do_remote_decode": True}, "prefill"),
        ({}, None),
        (None, None),
        ({"do_remote_decode": "yes"}, None),
        ({"do_remote_prefill": 1}, None),
        ([PREFILL], None),
        ("prefill", None),
        (7, None),
    ],
    ids=["prefill", "decode", "both", "empty", "null", "text", "number", "list",
         "string", "integer"],
)  # fmt: skip
def test_transfer_parameters_tell_which_half_is_asked_for(
    params: object, leg: str | None
) -> None:
    body = {"model": "m", "messages": [], "max_tokens": 5, "kv_transfer_params": params}
    found = facts(body)
    assert found.leg == leg
    assert (found.model, found.max_output_tokens) == ("m", 5)


def test_a_request_without_them_is_whole() -> None:
    assert facts({"messages": []}).leg is None
