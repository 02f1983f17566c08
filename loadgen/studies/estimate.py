"""A workload's energy from measurements of its bins, as Fernandez et al. 2025 sum it.

    E = sum over bins of N(I, O) / B(I, O) x E_batch(I, O)

(section 4.1): N requests of a bin, and the energy of a batch of B requests of one
length, from a closed loop that keeps B in flight. The paper measures each bin at its
upper ends; measured at the mean lengths of the requests in it (the default) the same
sum does not pay for tokens that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from loadgen.analysis.bins import BinTable, Lengths
from loadgen.errors import UsageError
from loadgen.simulator.core.aggregate import StepCost, Workload, run_aggregate
from loadgen.traces.trace import Session, Turn

LENGTHS = ("mean", "edge")
"""Where in its bin a batch is measured."""


@dataclass(frozen=True, slots=True)
class BinPlan:
    """One bin, and the batch that is measured for it."""

    name: str
    input_tokens: int
    output_tokens: int
    requests: int
    batch: int


class BinEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One term of the sum."""

    input_tokens: int
    """Lengths that were measured."""
    output_tokens: int
    requests: int
    batch: int
    batch_joules: float | None
    """Of one batch; None: it could not be measured."""
    joules: float | None
    """Of all requests of the bin."""
    fraction: float | None = None
    """Of the whole estimate."""
    reason: str | None = None


class EstimateReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer of `loadgen estimate`."""

    trace: str
    engine: str
    simulated: bool
    boundary: str | None
    edge_set: str
    lengths: str
    batch: int | None
    """Asked for; None: the largest that fits each bin."""
    requests: int
    """In the bins."""
    beyond: int
    unknown: int
    joules: float | None
    joules_per_request: float | None
    measured_joules: float | None = None
    """Of a replay of the same requests, all in one queue; None: not asked for."""
    error_fraction: float | None = None
    """Estimate over that measurement, less one."""
    edge_joules: float | None = None
    """The same sum with every bin at its upper ends, where that was played too."""
    edge_error_fraction: float | None = None
    bins: tuple[BinEstimate, ...] = ()
    notes: tuple[str, ...] = ()


def plans_of(
    table: BinTable,
    lengths: str,
    *,
    batch: int | None,
    capacity_tokens: int | None = None,
    max_num_seqs: int = 256,
) -> list[BinPlan]:
    """The batches to measure. Raises UsageError where no batch size can be had.

    Without a `batch` it is the largest that the engine's KV cache holds.
    """
    if batch is None and capacity_tokens is None:
        raise UsageError(
            "the largest batch of a server is not known: give --batch N, such as 32"
        )
    found = []
    for each in table.bins:
        given, written = each.input_tokens, each.output_tokens
        if lengths == "mean":
            given = max(round(each.mean_input_tokens), 1)
            written = max(round(each.mean_output_tokens), 1)
        size = max_num_seqs if batch is None else batch
        if capacity_tokens is not None:
            size = max(min(size, capacity_tokens // (given + written)), 1)
        found.append(
            BinPlan(
                f"in={each.input_tokens},out={each.output_tokens}",
                given,
                written,
                each.requests,
                size,
            )
        )
    return found


def sessions_of_batches(plan: BinPlan, waves: int) -> list[Session]:
    """Requests of one length, so many for each place in the batch."""
    turn = Turn(input_tokens=plan.input_tokens, output_tokens=plan.output_tokens)
    return [Session(f"s{n}", (turn,)) for n in range(plan.batch * waves)]


def sessions_inside(lengths: Lengths, table: BinTable) -> list[Session]:
    """The requests of the bins, in the order of the trace, one a session."""
    return [
        Session(f"s{n}", (Turn(input_tokens=given, output_tokens=written),))
        for n, (given, written) in enumerate(
            zip(lengths.input_tokens, lengths.output_tokens, strict=True)
        )
        if given <= table.input_edges[-1] and written <= table.output_edges[-1]
    ]


def summed(
    plans: Sequence[BinPlan], batch_joules: Mapping[str, float | str]
) -> list[BinEstimate]:
    """The terms of the sum; a text instead of joules says why there are none."""
    found = []
    for plan in plans:
        each = batch_joules[plan.name]
        known = None if isinstance(each, str) else each
        found.append(
            BinEstimate(
                input_tokens=plan.input_tokens,
                output_tokens=plan.output_tokens,
                requests=plan.requests,
                batch=plan.batch,
                batch_joules=known,
                joules=None if known is None else plan.requests / plan.batch * known,
                reason=each if isinstance(each, str) else None,
            )
        )
    total = total_joules(found)
    if not total:
        return found
    return [
        msgspec.structs.replace(
            each, fraction=None if each.joules is None else each.joules / total
        )
        for each in found
    ]


def total_joules(bins: Sequence[BinEstimate]) -> float | None:
    """The sum; None where a term of it is not known."""
    terms = [each.joules for each in bins]
    return None if None in terms else float(sum(t for t in terms if t is not None))


# -- in virtual time ---------------------------------------------------------------


def played_batch(plan: BinPlan, waves: int, cost: StepCost) -> float | str:
    """Joules of one batch on a simulated engine, or why it cannot be."""
    count = plan.batch * waves
    lengths = np.ones(count, np.int64)
    return _played(
        lengths * plan.input_tokens, lengths * plan.output_tokens, plan.batch, cost,
        lambda joules: joules / waves,
    )  # fmt: skip


def played_replay(
    sessions: Sequence[Session], batch: int | None, cost: StepCost
) -> float | str:
    """Joules of all requests in one queue, or why they cannot be."""
    turns = [session.turns[0] for session in sessions]
    return _played(
        np.array([turn.input_tokens for turn in turns], np.int64),
        np.array([turn.output_tokens for turn in turns], np.int64),
        batch or cost.max_num_seqs, cost, lambda joules: joules,
    )  # fmt: skip


def _played(
    prompts: np.ndarray[tuple[int], np.dtype[np.int64]],
    outputs: np.ndarray[tuple[int], np.dtype[np.int64]],
    batch: int,
    cost: StepCost,
    of: Callable[[float], float],
) -> float | str:
    limited = replace(cost, max_num_seqs=min(batch, cost.max_num_seqs))
    none = np.zeros(len(prompts), np.int64)
    work = Workload(none.astype(np.float64), prompts, none, outputs)
    outcome = run_aggregate(work, limited)
    if outcome.unfit:
        longest = int((prompts + outputs).max())
        return (
            f"{longest:,} tokens do not fit the engine's {cost.capacity_tokens:,} of "
            "KV cache"
        )
    return of(outcome.joules(cost))
