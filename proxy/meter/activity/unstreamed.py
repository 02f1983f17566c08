"""Where tokens may have been that nobody saw come: replies in one piece, run-ons."""

from __future__ import annotations

import numpy as np

from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.meter.activity.steps import StepBook

STEP_SECONDS = 0.02
"""A decode step of an 8B model with some context; only splits unseen time."""

MAX_READS = 4096
"""A longer whole reply is spread with several tokens at each stamp."""


def spread_unstreamed(
    timeline: RequestTimeline,
    steps: StepBook,
    log: TokenLog,
    *,
    prompt_token_seconds: float,
    settled_seconds: float,
) -> None:
    """Put the tokens of a reply that came in one piece where they may have been.

    Where the engine told no phase times, or only their sum (TGI), the time is split
    as if every output token had taken a step, and stamps are moved onto steps that
    were seen.
    """
    closed, output = timeline.closed_seconds, timeline.output_tokens
    if closed is None or not output:
        return
    arrived = timeline.arrived_seconds
    decode = timeline.decode_seconds
    if decode is None:
        prompt = (timeline.prompt_tokens or 0) * prompt_token_seconds
        whole = prompt + output / timeline.sequences * STEP_SECONDS
        together = timeline.inference_seconds
        decode = (closed - arrived if together is None else together) * (
            1 - prompt / whole
        )
        if together is not None:
            timeline.prefill_seconds = together - decode
    first = max(closed - decode, arrived)
    reads = min(max(output // timeline.sequences, 1), MAX_READS)
    stamps = steps.snap(np.linspace(first, closed, reads), not_before=first)
    floor = np.nextafter(settled_seconds, np.inf)
    timeline.spread_unstreamed(np.maximum(stamps, floor).tolist(), log)


def spread_orphan(timeline: RequestTimeline, steps: StepBook, log: TokenLog) -> None:
    """A token at every step that a request got after its client had left.

    They are not counted as output: nobody received them.
    """
    closed, until = timeline.closed_seconds, timeline.ran_on_seconds
    if closed is None or until is None or timeline.first_token_seconds is None:
        return
    count = max(int((until - closed) / STEP_SECONDS), 1)
    stamps = steps.snap(
        np.linspace(closed, until, count + 1)[1:],
        not_before=np.nextafter(closed, until),
    )
    before = timeline.counted_tokens
    for stamp in np.unique(stamps).tolist():
        log.add(stamp, timeline.key, float(timeline.sequences), before)
        before += timeline.sequences
