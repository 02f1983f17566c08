"""Every wait of the meter, derived from the sensor's period, the window and the wait.

Rule: `straggler < window < settle < give up`, from a counter that changes every 10 ms
to one that changes twice a minute; and for a meter that stops, `< stop`. So nobody is
given up whose energy can still come, and a meter that stops has given everybody up,
and so written a record of everybody, before its time is over. A property test holds
the order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

STRAGGLER_SECONDS = 0.05
"""Reads of a step may still be on their way through the event loop."""

SLOW_SECONDS = 0.9
"""A sensor said to update every second jitters about it."""

WIDE_PERIODS = 5.0
"""So few updates of a slow sensor make a window, or its jitter would be charged."""

MAX_WIDENING = 2.0
"""Times a window's width: short requests that come in step with the counter, each
just before an update, would put its end off for ever."""

GRACE_SECONDS = 5.0
"""A sensor answers late, a beat comes late: beyond all that is derived."""

BEAT_SECONDS = 1.0
"""Settlement runs more often than this, also on a host that is busy."""

JOIN_PERIODS = 3.0
JOIN_SECONDS = 2.0
MAX_JOIN_SECONDS = 20.0
"""A record waits no longer than this for the joules of slower boundaries."""

FORGET_SECONDS = 30.0
FORGET_PERIODS = 4.0
"""Longer than a record waits, so that steps outlive the requests in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """The waits of one boundary; all are seconds."""

    period_seconds: float = 0.0
    """How often its sensor has news; 0 where that is not known."""
    min_window_seconds: float
    """As asked for: windows are no narrower."""
    wait_seconds: float
    """How long a window waits for the facts of its requests."""
    is_steady: bool = False
    """Its news are of instants that are known, however late they come."""

    @property
    def straggler_seconds(self) -> float:
        """How long reads may still be on their way when their time is settled."""
        return min(STRAGGLER_SECONDS, self.min_window_seconds / 2)

    @property
    def window_seconds(self) -> float:
        """How wide windows are: as asked, and several updates of a slow sensor."""
        if self.is_steady or self.period_seconds < SLOW_SECONDS:
            return self.min_window_seconds
        return max(self.min_window_seconds, WIDE_PERIODS * self.period_seconds)

    @property
    def widest_seconds(self) -> float:
        """No window is put off beyond this width for a better place to end."""
        return MAX_WIDENING * self.window_seconds

    @property
    def settle_seconds(self) -> float:
        """From the end of a request until its energy is settled, at the latest."""
        edge_seconds = self.period_seconds + self.straggler_seconds
        return self.wait_seconds + self.widest_seconds + edge_seconds

    @property
    def give_up_seconds(self) -> float:
        """From the end of a request until its energy is not waited for any more."""
        return self.settle_seconds + self.period_seconds + GRACE_SECONDS

    @property
    def down_seconds(self) -> float:
        """How long a meter that stops waits for a sensor that does not answer."""
        return GRACE_SECONDS

    @property
    def forget_seconds(self) -> float:
        """For how long steps are kept that no window came for."""
        return (
            self.give_up_seconds + FORGET_SECONDS + FORGET_PERIODS * self.period_seconds
        )

    @property
    def join_seconds(self) -> float:
        """How long a record of the headline waits for this boundary's joules."""
        periods = JOIN_PERIODS * self.period_seconds
        return min(self.window_seconds + periods + JOIN_SECONDS, MAX_JOIN_SECONDS)

    @property
    def at_stop(self) -> Deadlines:
        """The same once no request will come: the last window ends at the next edge."""
        return replace(
            self,
            period_seconds=0.0,
            min_window_seconds=max(self.period_seconds, 2 * STRAGGLER_SECONDS),
        )

    @property
    def stop_seconds(self) -> float:
        """How long a meter that stops waits at most: by then all is given up."""
        return self.at_stop.give_up_seconds + BEAT_SECONDS
