"""The largest batch that fits: doubling until one does not, then bisecting. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FINE_PARTS = 16
"""Bisecting ends within a sixteenth of what fits: a batch of one more or less of
hundreds is no other batch."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The answer to one size."""

    batch: int
    fits: bool
    reason: str | None = None
    """Why it does not."""
    is_final: bool = False
    """No batch of this length will ever fit, so nothing smaller is tried."""


def largest_batch(
    probe: Callable[[int], Probe], most: int
) -> tuple[int | None, list[Probe]]:
    """The largest size up to `most` that fits, and every answer on the way.

    None where not even one request fits. What fits at one size is taken to fit below.
    """
    tried: list[Probe] = []

    def ask(batch: int) -> Probe:
        found = probe(batch)
        tried.append(found)
        return found

    low, high = 0, 1
    while True:
        found = ask(high)
        if not found.fits:
            break
        low = high
        if high == most:
            return most, tried
        high = min(2 * high, most)
    if low == 0 or found.is_final:
        return low or None, tried
    while high - low > max(1, low // FINE_PARTS):
        middle = (low + high) // 2
        if ask(middle).fits:
            low = middle
        else:
            high = middle
    return low, tried
