"""A trace as arrays that an engine in virtual time can run.

Lengths come from the plan; a later turn of a live conversation has the whole history
in its prompt, of which the engine may have kept the keys and values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from loadgen.errors import PlanError
from loadgen.plan.load import Load
from loadgen.plan.plan import (
    PlanHeader,
    PlannedSession,
    is_plan,
    make_plan,
    read_plan,
)
from loadgen.simulator.core.aggregate import Workload
from loadgen.simulator.core.config import BLOCK_TOKENS


def planned_workload(
    trace: Path,
    load: Load,
    format: str | None = None,
    *,
    reuse_fraction: float = 1.0,
    prompt_factor: float = 1.0,
    output_factor: float = 1.0,
) -> tuple[PlanHeader, Workload]:
    """The requests of a trace, or of a plan, as a replay would send them.

    The factors make asked lengths served ones. Raises TraceError, PlanError and
    UsageError.
    """
    with tempfile.TemporaryDirectory() as folder:
        plan = trace
        if not is_plan(trace):
            plan = Path(folder) / "plan.jsonl"
            make_plan(trace, load, plan, format)
        header, sessions = read_plan(plan)
        work = workload_of(
            str(trace), sessions, reuse_fraction, prompt_factor, output_factor
        )
    return header, work


def workload_of(
    name: str,
    sessions: Iterable[PlannedSession],
    reuse_fraction: float = 1.0,
    prompt_factor: float = 1.0,
    output_factor: float = 1.0,
) -> Workload:
    """The arrays. Raises PlanError for a request whose lengths are not known.

    `reuse_fraction` is the part of a conversation's history that the engine has kept,
    in whole blocks.
    """
    starts: list[float] = []
    thinks: list[float] = []
    prompts: list[int] = []
    cached: list[int] = []
    outputs: list[int] = []
    follows: list[int] = []
    later: list[bool] = []
    for session in sessions:
        history = 0
        for place, turn in enumerate(session.turns):
            given, written = turn.input_tokens, turn.output_tokens
            if given is None or written is None:
                lacking = "prompt" if given is None else "output"
                raise PlanError(
                    f"{name}: request {turn.request_id} has no {lacking} length, only "
                    "text: replay the trace once and give the run's plan with lengths, "
                    "or a trace with input_length and output_length"
                )
            prompt = max(round(given * prompt_factor), 1)
            kept = 0
            if turn.history == "append":
                prompt += history
                blocks = int(history * reuse_fraction) // BLOCK_TOKENS
                kept = min(blocks * BLOCK_TOKENS, prompt - 1)
            output = max(round(written * output_factor), 1)
            history = prompt + output
            if place:
                follows[-1] = len(starts)
            later.append(place > 0)
            starts.append(turn.at_seconds or 0.0 if place else session.start_seconds)
            thinks.append(turn.think_seconds)
            prompts.append(prompt)
            cached.append(kept)
            outputs.append(output)
            follows.append(-1)
    if not starts:
        raise PlanError(f"{name}: no request")
    is_later = np.array(later)
    has_turns = bool(is_later.any())
    return Workload(
        np.array(starts),
        np.array(prompts, np.int64),
        np.array(cached, np.int64),
        np.array(outputs, np.int64),
        np.array(follows, np.int64) if has_turns else None,
        np.array(thinks) if has_turns else None,
        is_later if has_turns else None,
    )
