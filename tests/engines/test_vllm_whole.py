"""Whole replies that the proxy makes from a real vLLM's streams are vLLM's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines.vllm_server import MODEL, Metered, metered
from tests.support.children import record_of

pytestmark = pytest.mark.vllm

Json = dict[str, Any]
OF_THE_MOMENT = re.compile(
    rb'"created":\d+|"metrics":(?:null|\{[^}]*\})|"chatcmpl-tool-[0-9a-f]+"'
)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CHAT: Json = {"messages": [{"role": "user", "content": "tell me a story"}]}
SAMPLED: Json = {"temperature": 1.0, "seed": 5}
ASKED: dict[str, tuple[str, Json]] = {
    "chat": ("chat/completions", CHAT),
    "chat, sampled": ("chat/completions", CHAT | SAMPLED),
    "chat, log probabilities": (
        "chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2},
    ),
    "chat, three choices": ("chat/completions", CHAT | SAMPLED | {"n": 3}),
    "chat, a tool that is left": ("chat/completions", CHAT | {"tools": [TOOL]}),
    "chat, token ids": ("chat/completions", CHAT | {"return_token_ids": True}),
    "completions": ("completions", {"prompt": "tell me"}),
    "completions, log probabilities": ("completions", {"prompt": "a", "logprobs": 2}),
    "completions, several prompts": (
        "completions", {"prompt": ["a", "b c"], "n": 2} | SAMPLED,
    ),
    "completions, a stop": ("completions", {"prompt": "tell me", "stop": ["e"]}),
    "too long": ("completions", {"prompt": "a", "max_tokens": 10**6}),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(
    talkative: Metered, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Metered]:
    folder: Path = tmp_path_factory.mktemp("whole")
    with metered(talkative.vllm, folder, "--stream-upstream") as served:
        yield served


@pytest.mark.parametrize("name", ASKED)
def test_a_whole_reply_is_the_engines_own(whole: Metered, name: str) -> None:
    route, asked = ASKED[name]
    body = {"model": MODEL, "max_tokens": 12, "temperature": 0} | asked
    number = list(ASKED).index(name)

    def ask(url: str, request_id: str) -> tuple[int, bytes]:
        with httpx.Client(trust_env=False, timeout=60) as client:
            headers = {"x-request-id": request_id}
            reply = client.post(f"{url}/v1/{route}", json=body, headers=headers)
        content = OF_THE_MOMENT.sub(b"", reply.content)
        return reply.status_code, content.replace(request_id.encode(), b"")

    direct = ask(whole.vllm.url, f"direct-{number}")
    assert ask(whole.url, f"learnt-{number}") == direct
    assert ask(whole.url, f"made-{number}") == direct
    if direct[0] == 200:
        record = record_of(whole.admin, f"made-{number}")
        assert record["outcome"] == "ok"
        assert record["output_tokens"] > 0
