"""The waits of one boundary, as of its last beat, and what is left of them at a stop.

Rule: they follow the sensor as it is known by then; once no request comes any more
they are bounded, and a sensor that is down is not waited for.
"""

from __future__ import annotations

import math
from dataclasses import replace

from proxy.meter.attribution.lag import LagWatch
from proxy.meter.config import MeterConfig
from proxy.meter.curve import GroupCurve
from proxy.meter.deadlines import Deadlines


class Waits:
    """How long windows, records and a stop may wait."""

    def __init__(self, config: MeterConfig, curve: GroupCurve, lag: LagWatch) -> None:
        self._curve, self._lag = curve, lag
        self.asked = self.current = Deadlines(
            min_window_seconds=config.window_seconds, wait_seconds=config.wait_seconds
        )
        """As asked for; `current` is as of the last beat."""
        self._give_up_seconds = self.current.give_up_seconds
        """From the end of a request; asked for with every one that waits."""
        self._stopped_seconds = math.inf
        self.is_up = False
        """The sensor answered when it was last read."""

    def beat(self) -> None:
        """The waits until the next beat."""
        self.current = self.deadlines()
        self._give_up_seconds = self.current.give_up_seconds

    def deadlines(self) -> Deadlines:
        """Every wait, for the sensor as it is known now."""
        period_seconds = self._curve.likely_period_seconds
        lateness = self._lag.lateness
        if lateness is None:
            return replace(self.asked, period_seconds=period_seconds)
        late_seconds = lateness.averaging_seconds + lateness.delay_seconds
        width_seconds = max(self.asked.min_window_seconds, lateness.averaging_seconds)
        return replace(
            self.asked,
            period_seconds=(period_seconds or 0.0) + late_seconds,
            min_window_seconds=width_seconds,
            is_steady=True,
        )

    def stop(self, now_seconds: float) -> float:
        """No request will come any more; how long the last may take at most."""
        self._stopped_seconds = now_seconds
        return self.deadlines().stop_seconds

    def join_seconds(self, now_seconds: float) -> float:
        """How long a record of another boundary may wait for this one's joules."""
        if not self.is_up or self._is_stop_over(now_seconds):
            return 0.0
        return self.current.join_seconds

    @property
    def is_stopped(self) -> bool:
        """Whether no request will come any more."""
        return self._stopped_seconds < math.inf

    def is_given_up(self, closed_seconds: float, now_seconds: float) -> bool:
        """Whether nobody waits any more for the energy of one that has closed."""
        return now_seconds > closed_seconds + self._give_up_seconds or (
            now_seconds > self._stopped_seconds and self._is_stop_over(now_seconds)
        )

    def _is_stop_over(self, now_seconds: float) -> bool:
        """Whether nothing is waited for any more; a sensor that is down is not long."""
        if now_seconds <= self._stopped_seconds:
            return False
        at_stop = self.current.at_stop
        seconds = at_stop.give_up_seconds if self.is_up else at_stop.down_seconds
        return now_seconds > self._stopped_seconds + seconds
