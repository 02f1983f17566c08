"""How far another host's monotonic clock is from ours, from round trips to it.

As NTP does: the other clock was read somewhere between the question and the answer, so
the quickest trip says most, and half of its time bounds the error, however unlike the
ways there and back are.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class RoundTrip(msgspec.Struct, frozen=True, kw_only=True):
    """One question and its answer."""

    asked_seconds: float
    """On our clock."""
    told_seconds: float
    """On the other, read between the two."""
    heard_seconds: float
    """On our clock."""

    @property
    def seconds(self) -> float:
        """Time that the trip took."""
        return self.heard_seconds - self.asked_seconds


class ClockOffset(msgspec.Struct, frozen=True, kw_only=True):
    """The other clock less ours."""

    offset_seconds: float
    error_seconds: float
    """The true one is no further away than this."""


def offset_of(trips: Sequence[RoundTrip]) -> ClockOffset:
    """By the quickest of at least one trip."""
    best = min(trips, key=lambda trip: trip.seconds)
    middle = best.asked_seconds + best.seconds / 2
    return ClockOffset(
        offset_seconds=best.told_seconds - middle, error_seconds=best.seconds / 2
    )


def disagreement_seconds(begin: ClockOffset, end: ClockOffset) -> float:
    """How far the clocks drifted apart for certain, beyond both errors; never below 0.

    It is what stamps of the end are wrong by, since a run has one zero.
    """
    apart = abs(end.offset_seconds - begin.offset_seconds)
    return max(apart - begin.error_seconds - end.error_seconds, 0.0)
