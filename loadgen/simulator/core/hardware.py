"""How the simulated board works beside its power: clocks, heat, limit, throttling.

Assumed, because no data sheet has it: the chip is at 30 C in its air and 50 K warmer
at its TDP, and gets there with a time constant of 10 s; its clock falls as its steps
take longer. Nothing of it acts back on time or energy of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from loadgen.simulator.core.presets import Gpu
from loadgen.simulator.core.sensor import PowerCurve

AIR_CELSIUS = 30.0
RISE_KELVIN = 50.0
HEAT_SECONDS = 10.0
GRID_SECONDS = 0.5
MOST_SECONDS = 50.0
"""The curve is kept for a little longer; by then the past is forgotten."""

GPU_IDLE, SW_POWER_CAP = 0x1, 0x4
"""Bits as NVML and DCGM count them."""
SLOWED_FRACTION = 0.9
"""A step slower than this is shown as capped: at its TDP a board is always a little."""


@dataclass(frozen=True, slots=True)
class BoardReading:
    """A GPU's answers besides its power."""

    sm_clock_hertz: float
    memory_clock_hertz: float
    temperature_celsius: float
    reason_bits: int
    power_limit_watts: float


class Board:
    """One GPU of a group of equal ones, read in order of time."""

    def __init__(
        self, gpu: Gpu, curve: PowerCurve, *, cap_watts: float, n_gpus: int
    ) -> None:
        self._gpu = gpu
        self._curve = curve
        self._cap_watts = cap_watts
        self._n_gpus = n_gpus
        self._at_seconds = curve.end_seconds
        self._watts = gpu.idle_watts
        """Mean power of late, as heat weighs it."""
        self._shown: BoardReading | None = None

    def read(self, at_seconds: float, speed_fraction: float | None) -> BoardReading:
        """Its state while a step of this speed runs; None: while nothing does.

        Shown anew twice a second, as an exporter does that updates seldom.
        """
        if self._shown is None or at_seconds >= self._at_seconds + GRID_SECONDS:
            self._shown = self._reading(at_seconds, speed_fraction)
        return self._shown

    def _reading(self, at_seconds: float, speed_fraction: float | None) -> BoardReading:
        self._advance(at_seconds)
        gpu, speed = self._gpu, 1.0 if speed_fraction is None else speed_fraction
        bits = GPU_IDLE if speed_fraction is None else 0
        bits |= SW_POWER_CAP if speed < SLOWED_FRACTION else 0
        return BoardReading(
            sm_clock_hertz=gpu.sm_clock_hertz * speed,
            memory_clock_hertz=gpu.memory_clock_hertz,
            temperature_celsius=AIR_CELSIUS + RISE_KELVIN * self._watts / gpu.tdp_watts,
            reason_bits=bits,
            power_limit_watts=self._cap_watts,
        )

    def _advance(self, at_seconds: float) -> None:
        """Let the chip warm or cool up to an instant."""
        begin = max(self._at_seconds, at_seconds - MOST_SECONDS)
        while begin < at_seconds:
            end = min(begin + GRID_SECONDS, at_seconds)
            joules = self._curve.joules_at(end) - self._curve.joules_at(begin)
            watts = joules / (end - begin) / self._n_gpus
            kept = math.exp((begin - end) / HEAT_SECONDS)
            self._watts = kept * self._watts + (1 - kept) * watts
            begin = end
        self._at_seconds = max(self._at_seconds, at_seconds)
