"""Energy over time, and the readings of it that a GPU's sensor shows.

The curve is exact: power is constant within a step and idle between steps. The sensor
shows a counter in steps, and delayed, averaged watts. Facts behind its defaults
(reference: NVML documentation and measurements by others): the energy counter counts
millijoules and changes every 20 to 100 ms; power is a one-second average on Ampere
and newer unless the instantaneous field is asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import floor
from typing import Annotated

from loadgen.errors import UsageError
from proxy.process.options import Option


class PowerCurve:
    """The cumulative energy of a GPU group, from `start_seconds` on.

    Between two breakpoints power is constant; after the last one it is idle, so
    the curve can be read at any later time, also while it is still growing.
    """

    def __init__(self, idle_watts: float, start_seconds: float = 0.0) -> None:
        self.idle_watts = idle_watts
        self._at_seconds = [start_seconds]
        self._joules = [0.0]

    @property
    def end_seconds(self) -> float:
        """The last breakpoint; everything later is idle so far."""
        return self._at_seconds[-1]

    def extend(self, start_seconds: float, end_seconds: float, joules: float) -> None:
        """Append a step; a gap before it is idle.

        Raises ValueError where the step overlaps the curve or runs backwards.
        """
        last_seconds = self._at_seconds[-1]
        if start_seconds < last_seconds or end_seconds <= start_seconds:
            raise ValueError(
                f"step from {start_seconds} to {end_seconds} s does not follow "
                f"{last_seconds} s"
            )
        total = self._joules[-1]
        if start_seconds > last_seconds:
            total += self.idle_watts * (start_seconds - last_seconds)
            self._at_seconds.append(start_seconds)
            self._joules.append(total)
        self._at_seconds.append(end_seconds)
        self._joules.append(total + joules)

    def joules_at(self, at_seconds: float) -> float:
        """Energy from the start to `at_seconds`; before the start it is 0."""
        after = bisect_right(self._at_seconds, at_seconds)
        if after == 0:
            return self._joules[0]
        since_seconds = at_seconds - self._at_seconds[after - 1]
        if after == len(self._at_seconds):
            return self._joules[-1] + self.idle_watts * since_seconds
        joules = self._joules[after] - self._joules[after - 1]
        span_seconds = self._at_seconds[after] - self._at_seconds[after - 1]
        return self._joules[after - 1] + joules / span_seconds * since_seconds

    def forget_before(self, at_seconds: float) -> None:
        """Drop breakpoints older than `at_seconds`; later readings stay the same."""
        first = bisect_right(self._at_seconds, at_seconds) - 1
        if first > 0:
            del self._at_seconds[:first]
            del self._joules[:first]


_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SensorConfig:
    """How one GPU's sensor behaves. Raises UsageError for impossible values."""

    period_seconds: Annotated[
        float,
        Option(
            "Seconds between updates of the GPU's energy counter.",
            "S",
            heading="Sensor",
            name="counter-period",
        ),
    ] = 0.1
    """Power is updated then too; readings in between repeat."""
    jitter_fraction: Annotated[
        float,
        Option(
            "Updates late by up to this part of a period.", "X", name="counter-jitter"
        ),
    ] = 0.0
    averaging_seconds: Annotated[
        float,
        Option(
            "Seconds that the power reading averages over; 0 is one period.",
            "S",
            name="power-averaging",
        ),
    ] = 0.0
    lag_seconds: Annotated[
        float, Option("Seconds that readings are old.", "S", name="power-lag")
    ] = 0.0
    dropped_fraction: Annotated[
        float, Option("Part of the updates left out.", "X", name="dropped-samples")
    ] = 0.0
    """The next update catches up."""
    initial_joules: float = 0.0
    """The counter at the curve's start: a driver has counted since it was loaded."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.period_seconds <= 0:
            period = self.period_seconds
            raise UsageError(f"counter period is {period:g} s, expected more than 0")
        for name in ("jitter_fraction", "dropped_fraction"):
            if not 0 <= getattr(self, name) < 1:
                value = getattr(self, name)
                raise UsageError(f"{name} is {value:g}, expected 0 or more, below 1")
        for name in ("averaging_seconds", "lag_seconds"):
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise UsageError(f"{name} is {value:g}, expected 0 or more")


@dataclass(frozen=True, slots=True)
class SensorReading:
    """A GPU's answer to one read."""

    joules: float
    """Cumulative, whole millijoules."""
    watts: float
    updated_seconds: float
    """Instant of the update; a real sensor does not give it."""


class GpuSensor:
    """One GPU of a group: shows an equal part of the group's curve.

    Any instant can be asked for, in any order, and always gives the same answer
    once the curve covers it: updates are numbered, and chance follows the number.
    """

    def __init__(
        self,
        curve: PowerCurve,
        config: SensorConfig,
        *,
        n_gpus: int = 1,
        index: int = 0,
    ) -> None:
        self._curve = curve
        self._config = config
        self._n_gpus = n_gpus
        self._index = index
        # GPUs of one host do not update at the same instant.
        self._phase_seconds = config.period_seconds * index / n_gpus
        self._start_seconds = curve.end_seconds

    def read(self, at_seconds: float) -> SensorReading:
        """The last update at or before `at_seconds`."""
        config = self._config
        since_seconds = at_seconds - self._start_seconds - self._phase_seconds
        number = floor(since_seconds / config.period_seconds)
        while number >= 0 and not self._happened(number, at_seconds):
            number -= 1
        updated_seconds = self._updated_seconds(number)
        seen_seconds = max(self._start_seconds, updated_seconds - config.lag_seconds)
        joules = self._curve.joules_at(seen_seconds)
        shown = config.initial_joules + joules / self._n_gpus
        return SensorReading(
            joules=floor(shown * 1000) / 1000,
            watts=self._mean_watts(seen_seconds, joules) / self._n_gpus,
            updated_seconds=updated_seconds,
        )

    def _mean_watts(self, seen_seconds: float, joules: float) -> float:
        """Over the averaging window, or what there is of it since the start."""
        window_seconds = self._config.averaging_seconds or self._config.period_seconds
        since_seconds = max(self._start_seconds, seen_seconds - window_seconds)
        if since_seconds >= seen_seconds:
            return self._curve.idle_watts
        before = self._curve.joules_at(since_seconds)
        return (joules - before) / (seen_seconds - since_seconds)

    def _updated_seconds(self, number: int) -> float:
        if number < 0:
            return self._start_seconds
        config = self._config
        late = config.jitter_fraction * self._chance(number, "late")
        return (
            self._start_seconds
            + self._phase_seconds
            + (number + late) * config.period_seconds
        )

    def _happened(self, number: int, at_seconds: float) -> bool:
        if self._updated_seconds(number) > at_seconds:
            return False
        dropped = self._config.dropped_fraction
        return not dropped or self._chance(number, "dropped") >= dropped

    def _chance(self, number: int, what: str) -> float:
        """Uniform in 0..1 from seed, GPU and update number (splitmix64's mixer)."""
        salt = 0x632BE59BD9B4E019 if what == "late" else 0x9E3779B97F4A7C15
        state = (number * 0x9E3779B97F4A7C15 + salt) & _MASK
        state ^= (self._config.seed << 20 | self._index) & _MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
        return ((state ^ state >> 31) >> 11) / (1 << 53)
