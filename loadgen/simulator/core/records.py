"""The truth of one client request, as `/simulator/truth` gives it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from loadgen.simulator.core.truth import RequestTruth


class TruthRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON line; several sequences (`n`) are one request, summed."""

    simulated: bool = True
    request_id: str
    outcome: str
    """`ok`, `aborted` (the client left) or `failed` (injected)."""
    prompt_tokens: int
    cached_tokens: int
    prefilled_tokens: int
    output_tokens: int
    preemptions: int
    prefill_joules: float
    decode_joules: float
    idle_share_joules: float
    energy_joules: float
    arrived_unix_seconds: float
    scheduled_unix_seconds: float | None
    first_token_unix_seconds: float | None
    last_token_unix_seconds: float | None


def truth_record(
    request_id: str,
    outcome: str,
    truths: Sequence[RequestTruth],
    unix_offset_seconds: float,
) -> TruthRecord:
    """The sequences of one request together; `unix_offset_seconds` is unix less engine.

    Prompt and cached tokens are the first sequence's: they share one prompt.
    """

    def unix(instants: Iterable[float | None], *, last: bool = False) -> float | None:
        known = [instant for instant in instants if instant is not None]
        if not known:
            return None
        return (max if last else min)(known) + unix_offset_seconds

    return TruthRecord(
        request_id=request_id,
        outcome=outcome,
        prompt_tokens=truths[0].prompt_tokens,
        cached_tokens=truths[0].cached_tokens,
        prefilled_tokens=sum(truth.prefilled_tokens for truth in truths),
        output_tokens=sum(truth.output_tokens for truth in truths),
        preemptions=sum(truth.preemptions for truth in truths),
        prefill_joules=sum(truth.prefill_joules for truth in truths),
        decode_joules=sum(truth.decode_joules for truth in truths),
        idle_share_joules=sum(truth.idle_share_joules for truth in truths),
        energy_joules=sum(truth.energy_joules for truth in truths),
        arrived_unix_seconds=truths[0].arrived_seconds + unix_offset_seconds,
        scheduled_unix_seconds=unix(truth.scheduled_seconds for truth in truths),
        first_token_unix_seconds=unix(truth.first_token_seconds for truth in truths),
        last_token_unix_seconds=unix(
            (truth.last_token_seconds for truth in truths), last=True
        ),
    )
