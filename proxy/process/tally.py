"""Edges of buckets, and a count of values by them: a distribution that costs little.

Neighbouring fine edges are at most 23.6 % apart. A quantile that Prometheus draws
between two edges of values that are all the same lies in the middle of their bucket,
and so within 11.8 % of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

_DECADE = (1.0, 1.23, 1.52, 1.87, 2.31, 2.85, 3.51, 4.33, 5.34, 6.58, 8.11)
"""Powers of the eleventh root of ten, to three digits: ten a decade are too few for
12 %, and no reader wants `le="1.2067926406393286"`."""


def fine_edges(
    first_decade: int,
    decades: int,
    below: Iterable[float] = (),
    above: Iterable[float] = (),
) -> tuple[float, ...]:
    """Edges from 10**first_decade on for so many decades, both ends included.

    `below` and `above` are coarser ones around them, for values that should be rare.
    """
    powers = range(first_decade, first_decade + decades)
    fine = [float(f"{step}e{power}") for power in powers for step in _DECADE]
    return (*below, *fine, float(f"1e{first_decade + decades}"), *above)


def coarse_edges(first_decade: int, decades: int) -> tuple[float, ...]:
    """Three edges a decade: 1, 2, 5; for figures that are watched for their tails."""
    powers = range(first_decade, first_decade + decades)
    steps = [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
    return (*steps, float(f"1e{first_decade + decades}"))


class Tally:
    """Values counted by bucket; `add` costs a quarter of a microsecond.

    One thread adds, and any may read: a reader copies `counts` first.
    """

    __slots__ = ("counts", "edges", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        """`edges` are upper ends that belong to their bucket, rising."""
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        """Values in each bucket; the last is beyond all edges."""
        self.total = 0.0
        """Sum of the values."""

    def add(self, value: float, times: int = 1) -> int:
        """Count a value, which is no NaN, so many times; which bucket it is in."""
        bucket = bisect_left(self.edges, value)
        self.counts[bucket] += times
        self.total += value * times
        return bucket

    def add_difference(
        self,
        before: tuple[list[int], float] | None,
        counts: list[int],
        total: float,
    ) -> None:
        """Add what another tally with these edges counted since `before`."""
        earlier, earlier_total = before or ([0] * len(counts), 0.0)
        for bucket, (old, new) in enumerate(zip(earlier, counts, strict=True)):
            self.counts[bucket] += new - old
        self.total += total - earlier_total
