"""What the simulated stack would take for a plan, in virtual time: a dry run's cost.

The simulator's own engine, fed with the plan's lengths: seconds of computing for an
hour of load. Prefix caches are left out, so conversations may cost less.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import msgspec

from loadgen.plan.plan import PlannedSession
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import EngineSimulator
from loadgen.simulator.core.scheduler import SimRequest

MAX_REQUESTS = 5_000
"""A few seconds of computing; a longer plan is not forecast."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """Simulated duration and energy of a plan."""

    simulated: bool = True
    run_seconds: float
    """From the first start to the last token."""
    joules: float
    """Of the GPUs in that time, idle power included."""


class _Pending(msgspec.Struct, order=True):
    """A turn that is due, the earliest first."""

    at_seconds: float
    number: int
    session: int
    turn: int
    history: int


def forecast(
    sessions: Iterable[PlannedSession],
    config: EngineConfig,
    *,
    output_tokens: int | None = None,
    max_concurrency: int | None = None,
) -> Forecast | None:
    """None where a length is not known, or does not fit, or the plan is too long."""
    planned = []
    requests = 0
    for session in sessions:
        planned.append(session)
        requests += len(session.turns)
        if requests > MAX_REQUESTS:
            return None
    due = [
        _Pending(session.start_seconds, number, number, 0, 0)
        for number, session in enumerate(planned)
    ]
    heapq.heapify(due)
    engine = EngineSimulator(config)
    running: dict[str, _Pending] = {}
    busy_joules = busy_seconds = last = 0.0
    number = len(due)
    while due or running:
        while due and (not running or due[0].at_seconds <= engine.clock_seconds):
            if max_concurrency is not None and len(running) >= max_concurrency:
                break
            one = heapq.heappop(due)
            turn = planned[one.session].turns[one.turn]
            reply = output_tokens or turn.output_tokens
            if turn.input_tokens is None or reply is None:
                return None
            before = one.history if turn.history == "append" else 0
            # what waited for a slot arrives when it is free
            is_held = max_concurrency is not None
            last = max(last, one.at_seconds, engine.clock_seconds if is_held else 0.0)
            name = f"{one.session}/{one.turn}"
            try:
                prompt = before + turn.input_tokens
                engine.submit(SimRequest(name, last, prompt, reply))
            except ValueError:
                return None
            running[name] = msgspec.structs.replace(one, history=prompt + reply)
        step = engine.step()
        if step is None:
            return None
        busy_joules += step.joules
        busy_seconds += step.end_seconds - step.start_seconds
        for name in step.finished:
            done = running.pop(name)
            turns = planned[done.session].turns
            if done.turn + 1 < len(turns):
                following = turns[done.turn + 1]
                at = max(
                    following.at_seconds or 0.0,
                    step.end_seconds + following.think_seconds,
                )
                number += 1
                heapq.heappush(
                    due,
                    _Pending(at, number, done.session, done.turn + 1, done.history),
                )
    end = engine.clock_seconds
    idle_joules = (end - busy_seconds) * config.idle_watts
    return Forecast(run_seconds=end, joules=busy_joules + idle_joules)
