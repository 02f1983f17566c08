"""How far a remote clock is from ours, from stamps seen inside a request.

As in NTP, the remote stamp was taken between the start and the end of the
request, so each exchange bounds the offset; bounds of many exchanges are
intersected, which also makes whole-second stamps (HTTP's `Date`) useful. While
an offset of zero fits all bounds the clocks are taken as synchronised.
"""

from __future__ import annotations

import math


class RemoteClock:
    """Offset of a remote Unix clock; `unix_origin_seconds` is Unix minus monotonic."""

    def __init__(self, unix_origin_seconds: float) -> None:
        self._origin = unix_origin_seconds
        self._low = -math.inf
        self._high = math.inf

    def observe(
        self,
        begin_seconds: float,
        end_seconds: float,
        remote_unix_seconds: float,
        resolution_seconds: float,
    ) -> None:
        """A stamp, cut down to its resolution, from between two local instants."""
        low = remote_unix_seconds - self._origin - end_seconds
        high = remote_unix_seconds + resolution_seconds - self._origin - begin_seconds
        if low > self._high or high < self._low:  # a clock was set, or has drifted
            self._low, self._high = low, high
        else:
            self._low, self._high = max(low, self._low), min(high, self._high)

    @property
    def offset_seconds(self) -> float | None:
        """Remote minus local, above 0 when it is ahead; None before any exchange."""
        if math.isinf(self._low) or math.isinf(self._high):
            return None
        return 0.0 if self._low <= 0 <= self._high else (self._low + self._high) / 2

    def local_seconds(self, remote_unix_seconds: float) -> float:
        """A remote stamp on our monotonic clock."""
        return remote_unix_seconds - (self.offset_seconds or 0.0) - self._origin
