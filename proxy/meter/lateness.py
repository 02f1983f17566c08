"""When the proxy's loop stood still: what came meanwhile is stamped late.

Rule: a beat that comes late tells that nothing was read since it was due. How late a
stamp of that time is lies anywhere between nothing and all of it. Pure: instants are
monotonic seconds.
"""

from __future__ import annotations

import math
from collections import deque

WORTH_SECONDS = 0.002
"""Less is how a loop works; steps are told apart by as much."""
REMEMBERED_SECONDS = 60.0
MAX_STALLS = 4096
UNTIMED_SECONDS = 0.03
"""What came in a stall of so long is not known to have come when it was stamped."""


class Lateness:
    """The newest stalls of the loop that reads tokens."""

    def __init__(self) -> None:
        self._stalls: deque[tuple[float, float]] = deque(maxlen=MAX_STALLS)
        """When each ended, and how long it was; in order."""

    def beat(self, now_seconds: float, late_seconds: float) -> None:
        """A beat came, so long after it was due."""
        stalls = self._stalls
        while stalls and stalls[0][0] < now_seconds - REMEMBERED_SECONDS:
            stalls.popleft()
        if late_seconds >= WORTH_SECONDS:
            stalls.append((now_seconds, late_seconds))

    def square_between(self, start_seconds: float, end_seconds: float) -> float:
        """Mean square of how late a stamp in between is, s^2.

        Of a stretch of T seconds in which the loop stood still for L, a stamp is that
        late with a chance of L / T, and then by anything up to L.
        """
        found = 0.0
        for ended, late in reversed(self._stalls):
            if ended <= start_seconds:
                break
            inside = min(ended, end_seconds) - max(ended - late, start_seconds)
            if inside > 0:
                found += inside * late**2 / 3
        return found / (end_seconds - start_seconds) if found else 0.0

    def may_be_late(self, at_seconds: float) -> bool:
        """Whether what was stamped at an instant had come well before."""
        for ended, late in reversed(self._stalls):
            if ended < at_seconds - UNTIMED_SECONDS:
                return False
            began = ended - late
            if late >= UNTIMED_SECONDS and began <= at_seconds <= ended + WORTH_SECONDS:
                return True
        return False

    def stalled_until(self, at_seconds: float) -> float:
        """End of the stall that an instant lies in; -inf where the loop ran."""
        for ended, late in reversed(self._stalls):
            if ended <= at_seconds:
                break
            if late >= UNTIMED_SECONDS and ended - late <= at_seconds:
                return ended
        return -math.inf
