"""Runs a list of requests through the engine in virtual time, for studies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import EngineSimulator, Step
from loadgen.simulator.core.power import PowerCurve
from loadgen.simulator.core.scheduler import SimRequest
from loadgen.simulator.core.truth import RequestTruth

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trace:
    """Everything that happened: what a proxy could see, and what it could not."""

    steps: tuple[Step, ...]
    token_seconds: Mapping[str, FloatArray]
    """Instant of every output token, by request."""
    truth: Mapping[str, RequestTruth]
    power: PowerCurve

    @property
    def end_seconds(self) -> float:
        """End of the last step."""
        return self.power.end_seconds

    @property
    def total_joules(self) -> float:
        """Energy of the GPU group from 0 to the end of the last step."""
        return self.power.joules_at(self.end_seconds)

    @property
    def idle_joules(self) -> float:
        """Energy while nothing ran."""
        return self.total_joules - sum(step.joules for step in self.steps)


def simulate(requests: Iterable[SimRequest], config: EngineConfig) -> Trace:
    """All requests, from the first arrival to the last token, starting at 0 s.

    Raises ValueError for a request that can never run in this configuration.
    """
    engine = EngineSimulator(config)
    for request in sorted(requests, key=lambda request: request.arrived_seconds):
        engine.submit(request)
    power = PowerCurve(config.idle_watts)
    steps: list[Step] = []
    stamps: dict[str, list[float]] = {request_id: [] for request_id in engine.truth}
    while (step := engine.step()) is not None:
        steps.append(step)
        power.extend(step.start_seconds, step.end_seconds, step.joules)
        for request_id in step.emitted:
            stamps[request_id].append(step.end_seconds)
    return Trace(
        steps=tuple(steps),
        token_seconds={name: np.array(times) for name, times in stamps.items()},
        truth=engine.truth,
        power=power,
    )
