"""How long a step takes and what it draws, bent in ways that the meter does not know.

Nothing here is a fixed part plus sums. Matrix units fill up with the batch, compute
and memory overlap as a p-norm, decode steps run as CUDA graphs of padded size while
mixed steps are launched kernel by kernel, experts are read as tokens ask for them, the
power of the board saturates with utilisation, and a power cap lowers the clock of the
matrix units alone.

The truth of a step is the Shapley value of this function over the requests in it. It is
sampled: shifts of random orders, so that each member comes early and late alike often.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

GRAPH_TOKENS = np.array([1, 2, 4, *range(8, 513, 8)], np.float64)
"""Sizes that vLLM captures CUDA graphs for; a decode step is padded to the next."""

SHIFTS = 12
"""Places in each random order that a member is put in."""


@dataclass(frozen=True, slots=True)
class Board:
    """A model on a group of equal boards; made-up constants, of the size of H100's."""

    gpus: int = 1
    dense_bytes: float = 16.1e9
    expert_bytes: float = 0.0
    expert_fraction: float = 0.0
    """Experts that one token asks for, of all."""
    flops_per_token: float = 16.1e9
    flops_per_pair: float = 5.2e5
    kv_bytes_per_token: float = 131_072.0
    matrix_flops_per_second: float = 620e12
    attention_flops_per_second: float = 260e12
    half_full_tokens: float = 60.0
    """Tokens at which the matrix units are 1 - 1/e full."""
    bytes_per_second: float = 2.75e12
    page_waste: float = 0.22
    """Bytes read in vain beside a page of the KV cache, of those wanted."""
    overlap: float = 3.5
    """Exponent of the norm that joins compute and memory time."""
    graph_seconds: float = 0.0005
    eager_seconds: float = 0.0019
    member_seconds: float = 6e-6
    """Sampling and scheduling, for each request."""
    sync_seconds: float = 0.0
    token_sync_seconds: float = 0.0
    draft_tokens: int = 0
    """Drafted by a small model in front of each decode step, then verified."""
    acceptance: float = 0.0
    """Chance that a drafted token is right, where those before it were."""
    draft_bytes: float = 0.0
    rest_watts: float = 95.0
    """Each board, weights resident, long after the last step."""
    working_watts: float = 95.0
    """Each, at working clocks, for some seconds after a step."""
    rest_after_seconds: float = 8.0
    kernel_watts: float = 70.0
    span_watts: float = 512.0
    compute_bend: float = 1.2
    memory_bend: float = 0.5
    cap_watts: float = 700.0
    clock_power: float = 2.4
    """Dynamic power rises so with the clock."""

    @property
    def decode_tokens(self) -> int:
        """Tokens that a request puts into a decode step."""
        return 1 + self.draft_tokens


@dataclass(frozen=True, slots=True)
class Work:
    """What a set of requests does in one step; every field of the same shape."""

    members: FloatArray
    decodes: FloatArray
    tokens: FloatArray
    prefill_tokens: FloatArray
    pairs: FloatArray
    read_tokens: FloatArray
    """Of the KV cache."""


def work_of(tokens: FloatArray, contexts: FloatArray, decodes: int) -> FloatArray:
    """Columns of `Work`, one per request, shape (6, requests); decodes come first."""
    is_decode = np.arange(len(tokens)) < decodes
    return np.stack(
        [
            np.ones(len(tokens)),
            is_decode.astype(np.float64),
            tokens,
            np.where(is_decode, 0.0, tokens),
            tokens * (contexts + (tokens + 1) / 2),
            contexts,
        ]
    )


def cost(board: Board, work: Work) -> tuple[FloatArray, FloatArray]:
    """Seconds and joules of a step, elementwise; of nobody it is not defined."""
    is_mixed = work.prefill_tokens > 0
    at = np.minimum(
        np.searchsorted(GRAPH_TOKENS, work.tokens - 1e-9), len(GRAPH_TOKENS) - 1
    )
    padded = np.where(is_mixed, work.tokens, np.maximum(GRAPH_TOKENS[at], work.tokens))
    fill = -np.expm1(-padded / board.half_full_tokens)
    group = board.gpus
    matrix = board.flops_per_token * padded / (board.matrix_flops_per_second * fill)
    attention = board.flops_per_pair * work.pairs / board.attention_flops_per_second
    compute = (matrix + attention) / group
    touched = -np.expm1(work.tokens * np.log1p(-board.expert_fraction))
    moved = (
        board.dense_bytes
        + board.expert_bytes * touched
        + board.kv_bytes_per_token
        * (work.read_tokens * (1 + board.page_waste) + 2 * work.tokens)
    )
    memory = moved / board.bytes_per_second / group
    idle_part = (
        np.where(is_mixed, board.eager_seconds, board.graph_seconds)
        + board.member_seconds * work.members
        + board.sync_seconds
        + board.token_sync_seconds * work.tokens
    )
    busy = _joined(board, compute, memory)
    watts, dynamic = _power(board, compute, memory, busy, idle_part)
    room = np.maximum(board.cap_watts - (watts - dynamic), 1.0)
    clock = np.clip((room / dynamic) ** (1 / board.clock_power), 0.35, 1.0)
    busy = _joined(board, compute / clock, memory)
    seconds = busy + idle_part
    joules = np.minimum(watts, board.cap_watts) * seconds
    if board.draft_tokens:
        drafting = np.where(
            work.decodes > 0,
            board.draft_tokens * (board.draft_bytes / board.bytes_per_second + 2e-4),
            0.0,
        )
        seconds = seconds + drafting
        joules = joules + drafting * (board.working_watts + board.kernel_watts + 160.0)
    return seconds, joules * group


def _joined(board: Board, compute: FloatArray, memory: FloatArray) -> FloatArray:
    norm = compute**board.overlap + memory**board.overlap
    return np.asarray(norm ** (1 / board.overlap), np.float64)


def _power(
    board: Board,
    compute: FloatArray,
    memory: FloatArray,
    busy: FloatArray,
    idle_part: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Watts of a board, and the part of them that follows the clock."""
    seconds = busy + idle_part
    drive = (board.compute_bend * compute + board.memory_bend * memory) / seconds
    dynamic = board.span_watts * np.expm1(-drive) / np.expm1(-board.compute_bend)
    kernels = board.kernel_watts * busy / seconds
    return board.working_watts + kernels + dynamic, dynamic


@dataclass(frozen=True, slots=True)
class StepShares:
    """One step, whole and by request; joules with idle watts in them."""

    seconds: float
    joules: float
    shapley_seconds: FloatArray
    shapley_joules: FloatArray
    alone_joules: FloatArray
    """What each would have cost by itself; these do not add up."""
    last_joules: FloatArray
    """What each adds to all the others; these do not add up."""


def divided(board: Board, columns: FloatArray, rng: np.random.Generator) -> StepShares:
    """A step of the requests in `columns`, see `work_of`, and what is whose."""
    members = columns.shape[1]
    orders = _orders(members, rng)
    whole = columns.sum(axis=1, keepdims=True)
    without = np.maximum(whole - columns, 0.0)
    climbing = columns[:, orders].cumsum(axis=2).reshape(len(columns), -1)
    found = cost(board, Work(*np.hstack([whole, columns, without, climbing])))
    seconds, joules = (
        _shapley(values[2 * members + 1 :].reshape(orders.shape), orders)
        for values in found
    )
    whole_seconds, whole_joules = (float(values[0]) for values in found)
    last = whole_joules - found[1][members + 1 : 2 * members + 1]
    if members == 1:  # nobody else: a step of nobody is none
        last = found[1][:1]
    alone = found[1][1 : members + 1]
    return StepShares(whole_seconds, whole_joules, seconds, joules, alone, last)


def _shapley(climbing: FloatArray, orders: NDArray[np.int64]) -> FloatArray:
    """Mean of what each member added; `climbing` grows along every order."""
    marginal = np.diff(climbing, axis=1, prepend=0.0)
    # What the first one causes is mostly what anyone would have caused: to have it
    # drawn by lot would be noise.
    jump = float(climbing[:, 0].min())
    marginal[:, 0] -= jump
    members = orders.shape[1]
    total = np.bincount(orders.ravel(), marginal.ravel(), members)
    return np.asarray(total / len(orders) + jump / members, np.float64)


def _orders(members: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Orders of arrival: one by chance, shifted; and each the other way round."""
    shifts = np.unique(np.linspace(0, members, SHIFTS, endpoint=False).astype(int))
    places = (np.arange(members) + shifts[:, np.newaxis]) % members
    shifted = rng.permutation(members)[places]
    return np.concatenate([shifted, shifted[:, ::-1]])


DENSE = Board()
BOARDS: dict[str, Board] = {
    "dense": DENSE,
    # 72 W with nothing to do for long, 118 W between two bursts
    "resting": replace(DENSE, rest_watts=72.0, working_watts=118.0),
    "capped": replace(DENSE, cap_watts=300.0),
    # 30B parameters in 128 experts of which a token asks for 8, 3B active
    "moe": replace(
        DENSE,
        dense_bytes=3.4e9,
        expert_bytes=57.0e9,
        expert_fraction=8 / 128,
        flops_per_token=6.6e9,
        flops_per_pair=3.9e5,
        kv_bytes_per_token=98_304.0,
        half_full_tokens=230.0,
    ),
    "speculative": replace(DENSE, draft_tokens=3, acceptance=0.72, draft_bytes=0.9e9),
    "tp4": replace(
        DENSE,
        gpus=4,
        dense_bytes=141e9,
        flops_per_token=141e9,
        flops_per_pair=2.6e6,
        kv_bytes_per_token=327_680.0,
        sync_seconds=0.0016,
        token_sync_seconds=1.4e-6,
    ),
}
