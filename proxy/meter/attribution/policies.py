"""Divides joules among requests: policies rank, `attribute` divides.

Rule: `attribute` is the only place where joules are divided, so no policy can
lose or invent any. A policy sees an `Activity` and returns weights of shape
(requests, 2), columns prefill and decode; a weight that is negative or not a
number counts as 0.

`phase` is the Shapley value of the cost model of a step, `F + sum of additive
parts`: the additive part belongs to its request, F to all present equally. What
`calibrated` adds to it is divided by its own Shapley value (`activity/shares`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from proxy.meter.activity.work import SHARED, Activity

FloatArray = NDArray[np.float64]
Policy = Callable[[Activity], FloatArray]


@dataclass(frozen=True, slots=True)
class CostModel:
    """Joules of one engine step, by what it does; only their ratios matter.

    The measured energy sets the level. The defaults are for an 8B-class dense
    bf16 transformer (8.03e9 parameters, 32 layers, hidden size 4096, 8 KV heads
    of 128: Llama-3.1-8B's config.json), from two figures per hardware class:

    - 1.5 pJ per FLOP: board power less 15 % idle, over 55 % of the dense bf16
      peak; data sheets of A100 (400 W, 312 TFLOPS) and H100 SXM (700 W, 989
      TFLOPS) give 2.0 and 1.1, geometric mean 1.5;
    - 120 pJ per byte: 63 % of board power in memory-bound decode (180 to 200 of
      300 W reported for V100, 1CatAI/1Cat-vLLM issue 535) less 15 % idle, over
      80 % of the bandwidth (2.04 and 3.35 TB/s): 118 and 125.
    """

    step_joules: float = 1.93
    """F: reading the weights once for all, 16.06e9 B x 120 pJ/B."""
    prefill_token_joules: float = 0.0241
    """alpha: 2 FLOP per parameter, 16.06e9 FLOP x 1.5 pJ/FLOP."""
    prefill_context_joules: float = 7.9e-7
    """Attention of one prompt token to one earlier one: 4 x 32 x 4096 FLOP."""
    decode_token_joules: float = 0.0241
    """beta: the same FLOPs as a prompt token."""
    kv_token_joules: float = 1.57e-5
    """gamma: reading keys and values of one token, 131,072 B x 120 pJ/B."""


def both(phases: FloatArray) -> FloatArray:
    """Prefill and decode together: the sum over a last axis of two.

    Which `sum` takes ten times as long for.
    """
    return np.asarray(phases[..., 0] + phases[..., 1], dtype=np.float64)


def by_running_time(activity: Activity) -> FloatArray:
    """Whoever runs pays, at every moment equally."""
    return np.stack((activity.prefill_seconds, activity.decode_seconds), axis=1)


def by_tokens(activity: Activity) -> FloatArray:
    """Requests pay for prompt tokens computed and tokens received, all alike."""
    return np.stack((activity.prefill_tokens, activity.output_tokens), axis=1)


def by_phase(activity: Activity, cost: CostModel | None = None) -> FloatArray:
    """Requests pay what the cost model says that their work costs."""
    cost = cost or CostModel()
    prefill = (
        cost.prefill_token_joules * activity.prefill_tokens
        + cost.prefill_context_joules * activity.prefill_context_tokens
        + cost.step_joules * activity.prefill_steps
    )
    decode = (
        cost.decode_token_joules * activity.decode_tokens
        + cost.kv_token_joules * activity.kv_tokens
        + cost.step_joules * activity.decode_steps
    )
    return np.stack((prefill, decode), axis=1)


FEATURES = (
    *(field.name.removesuffix("_joules") for field in fields(CostModel)),
    *SHARED,
)
"""What a step can cost something for: the five of `CostModel`, and what is shared."""


def features_of(activity: Activity) -> FloatArray:
    """What each request did, shape (requests, 2, len(FEATURES)): prefill and decode.

    Work that requests have together is there as the Shapley share of each, so the
    sum over requests is what the steps did, and any weights of the columns divide
    fairly. What is shared is 0 where it is not known.
    """
    found = np.zeros((len(activity.prefill_tokens), 2, len(FEATURES)))
    found[:, 0, 0] = activity.prefill_steps
    found[:, 1, 0] = activity.decode_steps
    found[:, 0, 1] = activity.prefill_tokens
    found[:, 0, 2] = activity.prefill_context_tokens
    found[:, 1, 3] = activity.decode_tokens
    found[:, 1, 4] = activity.kv_tokens
    if activity.shared is not None:
        found[:, :, -len(SHARED) :] = activity.shared
    return found


@dataclass(frozen=True, slots=True)
class FittedCost:
    """What was learnt about one engine: joules of each feature."""

    joules: FloatArray
    """Shape (len(FEATURES),); some forms have differences here, below 0."""
    plain: CostModel
    """The same rows, fitted with the five constants alone."""


def by_calibration(activity: Activity, cost: FittedCost | None = None) -> FloatArray:
    """Requests pay what the form of the cost model that was fitted says.

    The settlement gives it, as known before the window; None while it is not
    trusted, and then this is `phase`. Where only sums are known, the plain form.
    """
    if cost is None:
        return by_phase(activity)
    if activity.shared is None:
        return by_phase(activity, cost.plain)
    return np.asarray(features_of(activity) @ cost.joules, dtype=np.float64)


POLICIES: dict[str, Policy] = {
    "equal": by_running_time,
    "tokens": by_tokens,
    "phase": by_phase,
    "calibrated": by_calibration,
}


def attribute(joules: float, activity: Activity, policy: Policy) -> FloatArray:
    """Joules of each request, shape (requests, 2): prefill and decode.

    The sum is `joules`, whatever the policy says. Where it ranks nobody, those
    who ran share by time; where nobody ran either, nothing is given out and the
    caller keeps the joules. Raises ValueError for negative or unknown energy.
    """
    if not 0 <= joules < np.inf:
        raise ValueError(f"cannot divide {joules!r} J, expected 0 or more")
    weights = _sane(policy(activity))
    if not weights.any():
        weights = _sane(by_running_time(activity))
    largest = weights.max(initial=0.0)
    if largest <= 0:
        return np.zeros_like(weights)
    weights = weights / largest
    return np.asarray(joules * (weights / weights.sum()), dtype=np.float64)


def _sane(weights: FloatArray) -> FloatArray:
    """Weights as the rule at the top wants them."""
    usable = np.isfinite(weights) & (weights > 0)
    return np.asarray(np.where(usable, weights, 0.0), dtype=np.float64)
