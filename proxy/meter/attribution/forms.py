"""Forms of the cost model of a step: which features it may cost something for.

Rule: a form is a matrix from its own constants, none below 0, to joules per feature.
`plain` is what `phase` has. The others bend:

- `overlapped`: computing hides the reading of weights, the more the more tokens a step
  has, and that of keys and values beside a prompt;
- `experts`: a fixed part that grows with the tokens in a step, ever more slowly;
- `drafted`: a sequence is computed once per step, however many tokens come out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

import numpy as np

from proxy.meter.activity.shares import EXPERT_TOKENS, OVERLAP_TOKENS, REACH
from proxy.meter.attribution.policies import FEATURES, CostModel, FloatArray

CONSTANTS = tuple(field.name for field in fields(CostModel))
"""Names of the constants of `plain`."""

_DEFAULTS = dict(
    zip(CONSTANTS, (getattr(CostModel(), n) for n in CONSTANTS), strict=True)
)
_STEP, _PREFILL, _CONTEXT, _DECODE, _KV = CONSTANTS
PRIOR = np.array(
    [
        *_DEFAULTS.values(),
        _DEFAULTS[_KV],
        *(_DEFAULTS[_STEP] for _ in REACH),
        *(_DEFAULTS[name] for name in (_DECODE, _KV)),
    ]
)
"""What `phase` uses, by feature; work is counted in what it costs by these, so that the
fit's variables are near 1."""

HIDDEN_PART = 0.75
"""Of the fixed part, what computing a long prompt is expected to hide: reading weights
takes no time of its own then, but still its own energy, an eighth to a third of all."""

Column = tuple[str, str, Mapping[str, float], float]
"""A constant: its name, its unit, the features that it costs for, and its default by
that of `phase`."""


@dataclass(frozen=True, slots=True)
class Form:
    """One form of the cost model."""

    name: str
    constants: tuple[str, ...]
    units: tuple[str, ...]
    matrix: FloatArray
    """Shape (features, constants): features that a constant stands for, 1 or -1."""
    usual: FloatArray
    """Shape (constants,): what is expected of each, by the level of `phase`."""
    scale: FloatArray
    """Shape (constants,): joules of each, by the fit's variable."""


def _form(name: str, *columns: Column) -> Form:
    matrix = np.zeros((len(FEATURES), len(columns)))
    for number, (*_, where, _) in enumerate(columns):
        for feature, factor in where.items():
            matrix[FEATURES.index(feature), number] = factor
    scale = np.array([PRIOR[np.flatnonzero(column)[0]] for column in matrix.T])
    return Form(
        name,
        tuple(column[0] for column in columns),
        tuple(column[1] for column in columns),
        matrix,
        np.array([column[3] for column in columns]),
        scale,
    )


_F: Column = (_STEP, "J per step", {"step": 1.0}, 1.0)
_PROMPT: tuple[Column, ...] = (
    (_PREFILL, "J per prefill token", {"prefill_token": 1.0}, 1.0),
    (
        _CONTEXT,
        "J per prefill token and context token",
        {"prefill_context": 1.0},
        1.0,
    ),
)
_TOKENS: tuple[Column, ...] = (
    (_DECODE, "J per decode token", {"decode_token": 1.0}, 1.0),
    (_KV, "J per KV token read", {"kv_token": 1.0}, 1.0),
)
_SPLIT_KV: tuple[Column, ...] = (
    (
        _KV,
        "J per KV token read without a prompt beside it",
        {"kv_token": 1.0, "mixed_kv_tokens": -1.0},
        1.0,
    ),
    (
        "mixed_kv_token_joules",
        "J per KV token read with a prompt beside it",
        {"mixed_kv_tokens": 1.0},
        1.0,
    ),
)
_EXPERTS: tuple[Column, ...] = tuple(
    (
        f"experts_{tokens:.0f}_joules",
        f"J per step, 63 % of it from {tokens:.0f} tokens on",
        {f"reach_{tokens:.0f}": 1.0},
        0.0,
    )
    for tokens in EXPERT_TOKENS
)
_OVERLAP: tuple[Column, ...] = (
    ("step_joules", "J per step", {"step": 1.0}, 1.0 - HIDDEN_PART),
    *(
        (
            f"hidden_{tokens:.0f}_joules",
            f"J per step, 37 % of it at {tokens:.0f} tokens",
            {"step": 1.0, f"reach_{tokens:.0f}": -1.0},
            HIDDEN_PART,
        )
        for tokens in OVERLAP_TOKENS
    ),
)
_DRAFTED: tuple[Column, ...] = (
    ("sequence_step_joules", "J per sequence and step", {"decode_rows": 1.0}, 1.0),
    ("sequence_kv_joules", "J per KV token, sequence and step", {"kv_rows": 1.0}, 1.0),
)

PLAIN = "plain"
USUAL = "overlapped"
"""Used until another predicts better: memory and matrix units work at once."""
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        form.name: form
        for form in (
            _form(PLAIN, _F, *_PROMPT, *_TOKENS),
            _form(USUAL, *_OVERLAP, *_PROMPT, _TOKENS[0], *_SPLIT_KV),
            _form("drafted", *_OVERLAP, *_PROMPT, *_DRAFTED),
            _form("experts", _F, *_PROMPT, *_TOKENS, *_EXPERTS),
            _form(
                "experts_overlapped",
                *_OVERLAP,
                *_PROMPT,
                _TOKENS[0],
                *_SPLIT_KV,
                *_EXPERTS,
            ),
            _form("experts_drafted", _F, *_PROMPT, *_DRAFTED, *_EXPERTS),
        )
    }
)
"""In the order in which they are tried: a later one has to predict better still."""

APPROXIMATE = frozenset(name for name in FORMS if name.startswith("experts"))
"""Forms that stand for a curve that nobody knows: how many experts so many tokens ask
for. What it does to single requests the sum of a window does not show."""
