"""The KV blocks of a request that two engines serve, as vLLM's NixlConnector has them.

The first engine is asked for one token, with `do_remote_decode`; it keeps the blocks of
the prompt and tells in `kv_transfer_params` of its reply where they are. Those go into
the request to the second one, which fetches the blocks and computes the last token of
the prompt alone. As in vLLM nothing is handed over unless the reply ended by its
length, and an engine that is told of no blocks computes the prompt itself.

Not simulated: the first engine keeps no blocks for the second one, which takes their
number on trust, and the transfer draws no power beyond idle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.simulator.core.config import BLOCK_TOKENS

SIDE_CHANNEL = ("127.0.0.1", 5600)
"""Where NIXL agents would meet, by vLLM's defaults; nobody listens there."""


@dataclass(frozen=True, slots=True)
class KvSource:
    """An engine whose KV blocks others can fetch."""

    engine_id: str
    n_gpus: int

    def params(self, reply_id: str, prompt_tokens: int) -> dict[str, object]:
        """Where the blocks of a prompt are, for the engine that goes on with it."""
        blocks = -(-prompt_tokens // BLOCK_TOKENS)
        host, port = SIDE_CHANNEL
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": list(range(1, blocks + 1)),
            "remote_engine_id": self.engine_id,
            "remote_request_id": reply_id,
            "remote_host": host,
            "remote_port": port,
            "tp_size": self.n_gpus,
        }


def wants_remote_decode(params: Mapping[str, Any]) -> bool:
    """Whether another engine is to write the reply."""
    return bool(params.get("do_remote_decode"))


def remote_tokens_of(params: Mapping[str, Any]) -> int:
    """Prompt tokens that another engine's blocks hold; 0 where none are told."""
    blocks = params.get("remote_block_ids")
    if not params.get("do_remote_prefill") or not isinstance(blocks, Sequence):
        return 0
    needed = ("remote_engine_id", "remote_host", "remote_port")
    if isinstance(blocks, str) or any(params.get(name) is None for name in needed):
        return 0
    return len(blocks) * BLOCK_TOKENS
