"""A workload of one prompt length and one reply length, made without a file."""

from __future__ import annotations

from collections.abc import Iterator

from loadgen.traces.trace import Session, TraceInfo, Turn

NAME = "synthetic"
"""What stands for it where a trace is named."""


def fixed_lengths(
    requests: int, input_tokens: int, output_tokens: int
) -> tuple[TraceInfo, Iterator[Session]]:
    """Single requests, all alike in length; no two prompts share a beginning."""
    name = f"{NAME}-{input_tokens}x{output_tokens}"
    info = TraceInfo(name=name, format="fixed", path=NAME, synthetic=True)
    info.kept = requests
    turn = Turn(input_tokens=input_tokens, output_tokens=output_tokens)
    return info, (Session(f"{name}-{n}", (turn,)) for n in range(requests))
