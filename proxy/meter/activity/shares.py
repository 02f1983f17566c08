"""Shapley shares in the parts of a step that do not simply add up.

A step computes some sequences that decode and some prompts. What it costs beyond
sums over them is a game among those present, and each is divided by its own Shapley
value, so that any model made of them is divided fairly too:

- `mixed_kv_tokens`: reading keys and values costs something else beside a prompt.
  v(S) = sum of what those in S read if S has one of the P prompts: with probability
  P / (P + 1) a prompt came before i, so i has that part of its own, and the prompts
  share the rest equally.
- `reach_c`: what more tokens reach ever more slowly, as experts of a mixture do.
  v(S) = 1 - exp(-tokens of S / c): with q_i = exp(-tokens_i / c) the share of i is the
  integral over t in 0..1 of (1 - q_i) times the product over all others j of
  1 - t (1 - q_j) (Owen's multilinear extension).

Each sequence that decodes is a player with one token, each prompt one with all of its
tokens in that step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

EXPERT_TOKENS = (4.0, 16.0, 64.0)
"""Tokens after which 63 % of the experts are read: 3.5 for 2 experts of 8, 15.5 for
8 of 128, 31.5 for 8 of 256, less steep where routing is uneven."""

OVERLAP_TOKENS = (256.0,)
"""Tokens after which computing hides 63 % of what reading the weights takes: the two
take equally long at 225 tokens (bf16, 620 TFLOPS, 2.75 TB/s)."""

REACH_TOKENS = (*EXPERT_TOKENS, *OVERLAP_TOKENS)

MIXED = "mixed_kv_tokens"
REACH = tuple(f"reach_{tokens:.0f}" for tokens in REACH_TOKENS)

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
# t = u^3: with many players nearly all of the integral lies close to 0
_AT = ((_NODES + 1) / 2) ** 3
_WEIGHT = 1.5 * ((_NODES + 1) / 2) ** 2 * _WEIGHTS


@dataclass(frozen=True, slots=True)
class StepPlayers:
    """Who was in each of a range of steps."""

    often: FloatArray
    """Shape (steps,): how many steps this cluster is: several that ran together, or a
    part of one whose reads were late."""
    sequences: FloatArray
    """Shape (steps,): sequences that decoded, added up over the cluster."""
    row_step: IntArray
    """Shape (rows,): the step of each prompt."""
    row_tokens: FloatArray
    """Shape (rows,): tokens of the prompt computed in it."""

    @property
    def prompts(self) -> FloatArray:
        """Shape (steps,): prompts in each step."""
        count = len(self.often)
        return np.bincount(self.row_step, minlength=count).astype(np.float64)


def beside_prompts(players: StepPlayers) -> tuple[FloatArray, FloatArray]:
    """What a decode keeps of its work that a prompt makes different, by step.

    And what part of all that work each prompt in the step takes over.
    """
    prompts = players.prompts
    kept = prompts / (prompts + 1)
    taken = (1 - kept) / np.maximum(prompts, 1.0)
    return kept, np.where(prompts > 0, taken, 0.0)


def reach_shares(players: StepPlayers) -> tuple[FloatArray, FloatArray]:
    """Shares of one sequence in each step, of each prompt in its step.

    Shapes (steps, len(REACH_TOKENS)) and (rows, len(REACH_TOKENS)). A step that is
    `often` ones counts as so many of equal size.
    """
    each = players.sequences / players.often
    sequence = np.zeros((len(each), len(REACH_TOKENS)))
    prompt = np.zeros((len(players.row_step), len(REACH_TOKENS)))
    for column, tokens in enumerate(REACH_TOKENS):
        sequence[:, column], prompt[:, column] = _reach_shares(players, each, tokens)
    return sequence, prompt


def _reach_shares(
    players: StepPlayers, each: FloatArray, constant: float
) -> tuple[FloatArray, FloatArray]:
    one = -np.expm1(-1.0 / constant)
    row = -np.expm1(-players.row_tokens / constant)
    step = players.row_step
    absent = np.log1p(-_AT * one)  # nobody of one decoding sequence, at each node
    row_absent = np.log1p(-_AT * row[:, np.newaxis])
    nobody = each[:, np.newaxis] * absent
    np.add.at(nobody, step, row_absent)
    weights = np.exp(nobody) * _WEIGHT
    sequence = (weights * one / (1 - _AT * one)).sum(axis=1)
    prompt = row * (weights[step] / np.exp(row_absent)).sum(axis=1)
    tokens = each + np.bincount(step, players.row_tokens, len(each))
    reached = -np.expm1(-tokens / constant)
    found = each * sequence + np.bincount(step, prompt, len(each))
    scale = reached / np.where(found > 0, found, 1.0)
    return sequence * scale, prompt * (scale * players.often)[step]
