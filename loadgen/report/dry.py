"""`--dry-run` in a terminal."""

from __future__ import annotations

from loadgen.analysis.dry_run import DryRun
from loadgen.report import format as fmt


def lines(found: DryRun) -> list[str]:
    """What would be sent, line by line."""
    shown = [
        f"would send {found.requests:,} requests in {found.sessions:,} sessions to "
        f"{found.target}",
        f"prompts    {fmt.count(found.prompt_tokens)} tokens"
        + _unknown(found.requests_of_unknown_length),
        f"replies    {fmt.count(found.output_tokens)} tokens"
        + (" at most" if found.output_length_rule == "cap" else ""),
        f"takes      {fmt.seconds(found.span_seconds)} to the last session's start, "
        "then its replies"
        if found.span_seconds
        else "takes      as long as the engine needs: all is sent at once, or as soon "
        "as a slot is free",
    ]
    if found.largest_context_tokens is not None:
        shown.append(f"context    {found.largest_context_tokens:,} tokens at most")
    if found.simulated_seconds is not None and found.simulated_joules is not None:
        shown.append(
            f"simulated  {fmt.seconds(found.simulated_seconds)} and "
            f"{fmt.joules(found.simulated_joules)}, without a prefix cache: SIMULATED"
        )
    shown.append(f"plan       sha256 {found.plan_sha256}")
    shown.append("nothing was sent, no folder was made")
    return shown


def _unknown(requests: int) -> str:
    return f", and {requests:,} prompts that the engine counts" if requests else ""
