"""Which engine answers, and in which version: asked from the engine itself.

vLLM tells at `/version`, TGI at `/info`; others do not tell, and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from loadgen.client.backends import Target
from loadgen.errors import StackError
from proxy.process.http_get import GetError, Getter

PAGES = {"vllm": "/version", "tgi": "/info"}
SECONDS = 5.0
TOLD = (
    "version", "model_id", "model_sha", "model_dtype", "model_device_type", "sha",
    "docker_label", "max_concurrent_requests", "max_total_tokens", "max_input_tokens",
    "max_batch_total_tokens", "max_waiting_tokens",
)  # fmt: skip
"""What is kept of the page, where it is there: TGI's has more."""
_LONGEST = 200


def engine_facts(target: Target) -> dict[str, str]:
    """What the engine tells of itself: its version above all; empty where nothing.

    Raises StackError where nobody answers at all.
    """
    page = PAGES.get(target.backend, "/health")
    base = target.url.rstrip("/").removesuffix("/v1")
    headers = dict(target.headers)
    if target.api_key:
        headers["authorization"] = f"Bearer {target.api_key}"
    try:
        with Getter(headers=headers, total_seconds=SECONDS) as getter:
            reply = getter.get(base + page)
    except GetError as error:
        if error.is_unreachable:
            raise StackError(
                f"nobody answers at --url {target.url}: {_plain(error)}"
            ) from None
        return {}
    if reply.status != 200 or target.backend not in PAGES:
        return {}
    try:
        told: Any = msgspec.json.decode(reply.body)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, Mapping):
        return {}
    return {
        name: str(told[name])[:_LONGEST]
        for name in TOLD
        if isinstance(told.get(name), str | int | float)
    }


def _plain(error: GetError) -> str:
    """Without the number that the operating system gives it."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)).lower()
