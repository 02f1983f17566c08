"""The sessions of a plan, dealt to those who send it together.

Every session is sent whole by one of them: in order of start, each goes to whoever has
the least to send so far, so that at any time of a run all have their part of the load.
The deal follows from the plan and the weights alone, so everybody can make it anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a plan."""

    number: int
    """Whose part, from 0."""
    weights: tuple[int, ...]
    """Share of the load of each, one number per part."""


class Deal:
    """Says whose each session is, one after the other."""

    def __init__(self, weights: Sequence[int]) -> None:
        self.requests = [0] * len(weights)
        """Dealt to each so far."""
        whole = math.lcm(*weights)
        self._steps = [whole // weight for weight in weights]  # exact, no quotients
        self._loads = [0] * len(weights)

    def owner(self, requests: int) -> int:
        """Whose the next session is, which has so many requests.

        Loads over weights never differ by more than one session's requests do.
        """
        owner = min(range(len(self._loads)), key=self._loads.__getitem__)
        self._loads[owner] += requests * self._steps[owner]
        self.requests[owner] += requests
        return owner


def split(total: int, parts: int) -> tuple[int, ...]:
    """A number in so many parts, as equal as whole ones can be, the larger first."""
    least, more = divmod(total, parts)
    return tuple(least + (number < more) for number in range(parts))


def weights_of(count: int, slots: int | None, sessions: int) -> tuple[int, ...]:
    """The share of each of so many: its slots where they are limited, else all alike.

    No more than there are sessions.
    """
    count = max(min(count, sessions), 1)
    return (1,) * count if slots is None else split(slots, count)
