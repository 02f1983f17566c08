"""`--dry-run`: what a plan comes to before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from loadgen.plan.plan import PlanHeader, PlannedSession


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would send, and how long at least."""

    trace: str
    target: str
    """Where it would go."""
    plan_sha256: str
    arrival: str
    requests: int
    sessions: int
    span_seconds: float
    """From the first start to that of the last session."""
    prompt_tokens: int
    """Of requests whose length is known; histories count each time they are sent."""
    output_tokens: int
    requests_of_unknown_length: int
    """Prompts that are text: the engine counts them."""
    output_length_rule: str
    """`forced`, or `cap`: then the tokens are the most there can be."""
    largest_context_tokens: int | None
    simulated_seconds: float | None = None
    """What the simulated stack would take; null for other targets and long plans."""
    simulated_joules: float | None = None


def dry_run_of(
    header: PlanHeader,
    sessions: Iterable[PlannedSession],
    *,
    plan_sha256: str,
    output_tokens: int | None,
    copies: int,
    length_rule: str,
    target: str,
) -> DryRun:
    """One pass over a plan; `output_tokens` overrides its lengths."""
    prompts = outputs = unknown = 0
    largest: int | None = None
    for session in sessions:
        history: int | None = 0
        for turn in session.turns:
            reply = output_tokens or turn.output_tokens
            before = history if turn.history == "append" else 0
            if turn.input_tokens is None or before is None:
                unknown += 1
                history = None
            else:
                prompt = before + turn.input_tokens
                prompts += prompt
                history = None if reply is None else prompt + reply
                largest = max(largest or 0, prompt + (reply or 0))
            outputs += (reply or 0) * copies
    return DryRun(
        trace=header.trace,
        target=target,
        plan_sha256=plan_sha256,
        arrival=header.arrival,
        requests=header.requests,
        sessions=header.sessions,
        span_seconds=header.span_seconds,
        prompt_tokens=prompts,
        output_tokens=outputs,
        requests_of_unknown_length=unknown,
        output_length_rule=length_rule,
        largest_context_tokens=largest,
    )
