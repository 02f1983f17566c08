"""Which window of a boundary is final, and where it ends.

Rule: windows come strictly in order, each once the facts of everybody in it are known,
or after a bounded wait, and then those who were still unknown are marked (`is_forced`).

No window ends right after somebody began on an idle engine. An edge of the counter is
off by half a polling interval and by what the sensor is late; work that lies within
that of the window's end may have its energy behind it, and a prefill of a few
milliseconds would then be charged nothing, or twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.timeline import EngineTimeline
from proxy.meter.curve import GroupCurve, Window
from proxy.meter.waits import Waits

EDGE_SECONDS = 0.05
"""A 20 ms poll is off by 10 ms, reading a remote sensor may take some more."""

WindowOf = tuple[Window, list[RequestTimeline]]
"""A window, and who was there."""


class FinalWindows:
    """The windows of a boundary, as they become final."""

    def __init__(
        self, curve: GroupCurve, timeline: EngineTimeline, waits: Waits
    ) -> None:
        self._curve, self._timeline, self._waits = curve, timeline, waits
        self._blocked: tuple[RequestTimeline, Window] | None = None

    def next_after(self, start_seconds: float, now_seconds: float) -> WindowOf | None:
        """The next window to close and who was there; None: not yet."""
        timeline = self._timeline
        found = self._next_window(start_seconds, self._width_seconds(start_seconds))
        if found is None:
            return None
        window, among = found
        start, end = window.start_seconds, window.end_seconds
        if timeline.count.awaits(end, now_seconds, self._waits.asked.wait_seconds):
            return None
        unknown = timeline.awaited.unknown(among, start, end)
        if unknown and now_seconds < end + self._waits.asked.wait_seconds:
            self._blocked = unknown[0], window
            return None
        if not timeline.seen.is_cut_seen(end, among, now_seconds):
            return None
        for each in unknown:
            each.is_forced = True
        return window, among

    def is_still_blocked(self, now_seconds: float) -> bool:
        """Whether the request that the next window waited for is still unknown.

        It then holds back a wider window as well, so nobody else needs a look.
        """
        if self._blocked is None:
            return False
        timeline, window = self._blocked
        end_seconds = window.end_seconds
        is_in_time = now_seconds < end_seconds + self._waits.asked.wait_seconds
        if is_in_time and not self._timeline.awaited.is_known(
            timeline, window.start_seconds, end_seconds
        ):
            return True
        self._blocked = None
        return False

    def _width_seconds(self, start_seconds: float) -> float:
        """How wide the next window is to be; a last one may be as narrow as it is."""
        width_seconds = self._waits.current.window_seconds
        newest = self._curve.end_seconds
        if not self._waits.is_stopped or newest is None:
            return width_seconds
        ends = (timeline.end_seconds for timeline in self._timeline.requests.in_order())
        if newest < max(ends, default=-math.inf):
            return width_seconds
        return min(width_seconds, newest - start_seconds)

    def _next_window(
        self, start_seconds: float, width_seconds: float
    ) -> WindowOf | None:
        """The next window, wider where its end would cut badly, and who was there.

        None while it is not measured, or stragglers may still come.
        """
        window = self._curve.next_window(start_seconds, width_seconds)
        if window is None or window.end_seconds > self._timeline.seen.until_seconds:
            return None
        among = self._timeline.requests.among(start_seconds, window.end_seconds)
        began_seconds = too_late_to_cut(window.end_seconds, among)
        if began_seconds is None:
            return window, among
        wider_seconds = began_seconds + EDGE_SECONDS - start_seconds
        is_gap_ahead = wider_seconds <= width_seconds
        if is_gap_ahead or wider_seconds > self._waits.current.widest_seconds:
            return window, among
        return self._next_window(start_seconds, wider_seconds)


def too_late_to_cut(
    end_seconds: float, timelines: Sequence[RequestTimeline]
) -> float | None:
    """When the engine went to work so shortly before an end that it has to move.

    None where the end is a good one. `timelines` are those that ran before it.
    """
    since_seconds = end_seconds - EDGE_SECONDS
    late = [
        (timeline.arrived_seconds, timeline.end_seconds)
        for timeline in timelines
        if since_seconds < timeline.arrived_seconds < end_seconds
        and not timeline.is_refused
    ]
    if not late:
        return None
    busy_until_seconds = -math.inf
    for timeline in timelines:
        if timeline.arrived_seconds <= since_seconds and not timeline.is_refused:
            busy_until_seconds = max(busy_until_seconds, timeline.end_seconds)
            if busy_until_seconds == math.inf:
                return None
    for began, ended in sorted(late):
        if began > busy_until_seconds:
            return began
        busy_until_seconds = max(busy_until_seconds, ended)
    return None
