"""The Shapley value of a cost that is the largest of several straight lines.

Such is the duration of an engine's step: v(S) = max over k of (offset_k + sum of
slope_ki for i in S), and v(nobody) = 0. The part that even an infinitely small
member would cause, max(offset), belongs to all in equal parts; the rest is a
game without a jump at the first member. Where one line is on top for every
possible subset, or few members are present, the value is exact; otherwise it is
the mean marginal cost over seeded permutations, each with its reverse.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

EXACT_MEMBERS = 4
"""Up to this many, all orders are enumerated (24)."""


def shapley_of_max(
    offsets: FloatArray,
    slopes: FloatArray,
    rng: np.random.Generator,
    orders: int = 16,
) -> FloatArray:
    """Each member's share, shape (members,), summing to v(everybody).

    `offsets` has shape (lines,), `slopes` (lines, members), both >= 0. `orders`
    is the even number of permutations sampled where no exact form exists.
    """
    members = slopes.shape[1]
    jump = float(offsets.max())
    heights = offsets + slopes.sum(axis=1)
    total = float(heights.max())
    if members == 1:
        return np.array([total])
    top = int(heights.argmax())
    if _is_always_on_top(top, offsets, slopes):
        return np.asarray(slopes[top] + jump / members, dtype=np.float64)
    sequence = _sequences(members, orders, rng)
    climbing = slopes[:, sequence].cumsum(axis=2) + offsets[:, None, None]
    marginal = np.diff(climbing.max(axis=0), axis=1, prepend=jump)
    per_member = np.empty_like(marginal)
    np.put_along_axis(per_member, sequence, marginal, axis=1)
    shares = per_member.mean(axis=0) + jump / members
    return np.asarray(shares * (total / shares.sum()), dtype=np.float64)


def _is_always_on_top(top: int, offsets: FloatArray, slopes: FloatArray) -> bool:
    """Whether a line exceeds all others for every subset, the empty one included."""
    lead = offsets[top] - offsets
    worst = lead + np.minimum(slopes[top] - slopes, 0.0).sum(axis=1)
    return bool((worst >= 0).all())


def _sequences(members: int, orders: int, rng: np.random.Generator) -> IntArray:
    """Orders of arrival, shape (orders, members)."""
    if members <= EXACT_MEMBERS:
        return _all_sequences(members)
    forward = np.broadcast_to(np.arange(members), (orders // 2, members))
    forward = rng.permuted(forward, axis=1)
    return np.concatenate([forward, forward[:, ::-1]])


@cache
def _all_sequences(members: int) -> IntArray:
    return np.array(list(permutations(range(members))), dtype=np.int64)
