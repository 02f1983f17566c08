"""Where a window may end: not right after somebody began on an idle engine.

An edge of the counter is off by half a polling interval and by what the sensor is
late. Work that lies within that of the window's end may have its energy behind
it; a prefill of a few milliseconds would then be charged nothing, or twice.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.meter.activity.request import RequestTimeline

EDGE_SECONDS = 0.05
"""A 20 ms poll is off by 10 ms, reading a remote sensor may take some more."""


def too_late_to_cut(
    end_seconds: float, timelines: Iterable[RequestTimeline]
) -> float | None:
    """When the engine went to work so shortly before an end that it has to move.

    None where the end is a good one. `timelines` are those that ran before it.
    """
    since_seconds = end_seconds - EDGE_SECONDS
    busy_until_seconds = -float("inf")
    late: list[tuple[float, float]] = []
    for timeline in timelines:
        began, ended = timeline.arrived_seconds, timeline.end_seconds
        if timeline.is_refused or began >= end_seconds:
            continue
        if began > since_seconds:
            late.append((began, ended))
        else:
            busy_until_seconds = max(busy_until_seconds, ended)
    for began, ended in sorted(late):
        if began > busy_until_seconds:
            return began
        busy_until_seconds = max(busy_until_seconds, ended)
    return None
