"""Timelines of requests, made without a meter, and what their reads bring."""

from __future__ import annotations

from proxy.meter.activity.request import RequestTimeline
from proxy.wire.facts import RequestFacts, Update, Usage


def streamed(
    key: int = 1, at: float = 0.0, *, running_usage: bool = True, sequences: int = 1
) -> RequestTimeline:
    """One stream that was forwarded and has had no read yet."""
    facts = RequestFacts(
        "chat",
        is_stream=True,
        has_running_usage=running_usage,
        sequences=sequences,
    )
    return RequestTimeline(key, at, facts)


def token(count: int | None = None, prompt: int = 10) -> Update:
    """An event with a token, and with running usage where a `count` is given."""
    usage = None if count is None else Usage(prompt, count)
    return Update(carries_token=True, usage=usage)
