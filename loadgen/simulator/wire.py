"""Types that both dialects share: a request for the engine, its refusal, its events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loadgen.simulator.core.engine import Step
from loadgen.simulator.core.truth import RequestTruth


class EngineRefusal(Exception):
    """A request the server does not take: status, and the body in its dialect, which
    is plain text where it is a string."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Limits:
    """Facts of the engine by which a dialect accepts or refuses a request."""

    model: str
    """The served id; it contains the word simulated."""
    max_model_tokens: int
    seed: int
    role: str | None = None
    """`prefill` or `decode`: its half of requests that two engines serve; None: it
    serves whole requests, whatever they ask."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One accepted request."""

    request_id: str
    prompt_words: Sequence[str]
    output_tokens: int
    finish_reason: str
    """The reason, in the dialect's spelling."""
    is_stream: bool
    sequences: int = 1
    more_prompts: Sequence[Sequence[str]] = ()
    """Those after the first; the sequences are shared evenly among all of them."""
    text_key: str = ""
    """What the replies' words follow; empty: the request's id."""
    end_token: str | None = None
    """The special token that ends each reply: counted, and no part of its text."""
    skips_cache: bool = False
    """Its prompt is computed whole, whatever the prefix cache holds."""
    is_pooled: bool = False
    """The prompt is read and nothing is written; in the engine, one step's token."""
    parts: Sequence[int] = ()
    """Tokens that are computed at a time, each part queued and prefilled anew with all
    that is before it; empty: all at once."""
    remote_tokens: int = 0
    """Prompt tokens whose KV blocks another engine has and sends."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; an empty one is one: the beginning of the text."""
        prompts = (self.prompt_words, *self.more_prompts)
        return sum(max(1, len(words)) for words in prompts)

    def reply_of(self, words: Sequence[str]) -> str:
        """The text of a reply of these tokens."""
        return " ".join(words if self.end_token is None else words[:-1])

    def words_of(self, index: int) -> Sequence[str]:
        """The prompt of one sequence."""
        prompts = (self.prompt_words, *self.more_prompts)
        return prompts[index * len(prompts) // self.sequences]


class TokenEvents(Protocol):
    """The stream events of one sequence, prepared so that a token costs little."""

    def opening(self) -> bytes:
        """Events before the first token's; nothing in most dialects."""
        return b""

    def token(self, word: bytes, count: int, is_last: bool) -> bytes:
        """The event of token number `count`, from 1; nothing where it shows in none."""


def text_key(
    request_id: str, seed: object, prompts: Sequence[Sequence[str]], sampling: object
) -> str:
    """What the words of a reply follow.

    With a seed of its own a request has the same reply whenever it is asked in the
    same way, and another one if any of `sampling` (JSON) is changed on its way.
    """
    if type(seed) is not int:
        return request_id
    told = json.dumps([seed, list(map(list, prompts)), sampling], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def compact(value: object) -> bytes:
    """JSON as the engines write it: no spaces, text as it is."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + compact(value) + b"\n\n"


WORD = "\ue000word"
NUMBERS = ("\ue000total", "\ue000count")
"""Places in a prepared event; U+E000 cannot come from a request id or a model."""


def template(value: object) -> bytes:
    """An event made once, to be filled with `%` for each token.

    Takes the word and, where the event has them, the two numbers, in this order.
    """
    prepared = event(value).replace(b"%", b"%%").replace(WORD.encode(), b"%b")
    for place in NUMBERS:
        prepared = prepared.replace(b'"' + place.encode() + b'"', b"%d")
    return prepared


@dataclass(frozen=True, slots=True)
class Gauges:
    """The engine right now."""

    running: int
    waiting: int
    kv_used_fraction: float
    decoding: int = 0
    """Of those that run: with a token already."""


class EngineMetrics(Protocol):
    """Counters of a dialect and their page, `/metrics`."""

    def scheduled(self, truth: RequestTruth) -> None:
        """A sequence was looked up in the prefix cache and is computed from now on."""

    def prefilled(self, truth: RequestTruth) -> None:
        """A sequence got its first token."""

    def stepped(self, step: Step, generated_tokens: int) -> None:
        """A step ended, in which so many tokens were written."""

    def finished(self, generation: Generation, truths: Sequence[RequestTruth]) -> None:
        """A request got all its tokens."""

    def failed(self, reason: str) -> None:
        """A request was `overloaded`, `dropped` by its client, or broke
        in `generation`."""

    def page(self, gauges: Gauges) -> str:
        """The text of `GET /metrics`."""
