"""Requests binned by input and output length, as Fernandez et al. 2025 bin workloads.

Section 4.1 of the paper rounds each request up to (I*, O*), the next edge of either
length, and sums N(I*, O*) / B(I*, O*) x E_batch(I*, O*) over the bins. It prints the
input edges 32, 128, 256, ..., 8192, while its set-builder (2^m, 4 <= m <= 13) has 16
and 64 too: `paper` is the printed list, `powers` the set-builder. Requests beyond
the last edge are left out by the paper; here they are counted apart.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadgen.errors import UsageError
from loadgen.results import measures
from loadgen.results.results import Result
from loadgen.traces.trace import Session

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PERCENTS = (10, 25, 50, 75, 90, 99, 100)
"""Percentiles of a workload's own lengths that `percentile` takes for edges."""
MAX_EDGES = 64
_OUTPUT_EDGES = tuple(2**power for power in range(3, 10))
PUBLISHED = {
    "paper": ((32, *(2**power for power in range(7, 14))), _OUTPUT_EDGES),
    "powers": (tuple(2**power for power in range(4, 14)), _OUTPUT_EDGES),
}
"""Input and output edges by name."""
EDGE_SETS = (*PUBLISHED, "percentile")


class Edges(NamedTuple):
    """Upper ends of the bins, rising, in tokens; each belongs to its bin."""

    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]


@dataclass(slots=True)
class Lengths:
    """Lengths of requests, and of a run's answered ones what each took.

    The lists of measures stay empty for a trace. NaN stands for a missing value.
    """

    input_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))
    joules: array[float] = field(default_factory=lambda: array("d"))
    ttft_seconds: array[float] = field(default_factory=lambda: array("d"))
    e2el_seconds: array[float] = field(default_factory=lambda: array("d"))
    unknown: int = 0
    """Requests without both lengths: failed ones, prompts that are text."""

    def __len__(self) -> int:
        return len(self.input_tokens)

    def add(self, given: int | None, produced: int | None) -> bool:
        """The lengths of one request; False where one of them is not known."""
        if given is None or produced is None:
            self.unknown += 1
            return False
        self.input_tokens.append(given)
        self.output_tokens.append(produced)
        return True

    def add_result(self, result: Result) -> None:
        """Tokens that the engine counted, joules and latencies of an answered one."""
        is_ok = measures.is_ok(result)
        if self.add(
            result.prompt_tokens if is_ok else None,
            result.output_tokens if is_ok else None,
        ):
            self.joules.append(_number(measures.energy_joules(result)))
            self.ttft_seconds.append(_number(measures.ttft_seconds(result)))
            self.e2el_seconds.append(_number(measures.e2el_seconds(result)))


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one bin: more than the lower lengths, up to the upper ones."""

    above_input_tokens: int
    input_tokens: int
    above_output_tokens: int
    output_tokens: int
    requests: int
    fraction: float
    """Of all requests with known lengths."""
    mean_input_tokens: float
    mean_output_tokens: float
    metered: int | None = None
    """Requests whose energy is known; None for a trace, as all that follows."""
    mean_joules: float | None = None
    p50_joules: float | None = None
    joules_per_output_token: float | None = None
    """Joules of the bin over its tokens: not the mean of the requests' ratios."""
    p50_ttft_seconds: float | None = None
    p50_e2el_seconds: float | None = None


class BinTable(msgspec.Struct, frozen=True, kw_only=True):
    """The bins that hold a request, by input and then output length."""

    edge_set: str
    input_edges: tuple[int, ...]
    output_edges: tuple[int, ...]
    requests: int
    """Requests with known lengths, those beyond the edges among them."""
    beyond: int
    """Longer than the last edge on either side: in no bin."""
    unknown: int
    bins: tuple[Bin, ...]
    is_run: bool = False


def lengths_of_trace(sessions: Iterable[Session]) -> Lengths:
    """Full prompts (a turn's history is part of it) and asked outputs of a trace."""
    found = Lengths()
    for session in sessions:
        history: int | None = 0
        for turn in session.turns:
            given = turn.input_tokens
            if given is not None and turn.history == "append":
                given = given + history if history is not None else None
            found.add(given, turn.output_tokens)
            history = None if given is None else given + (turn.output_tokens or 0)
    return found


def lengths_of_run(results: Iterable[Result]) -> Lengths:
    """Tokens that the engine counted, joules and latencies of answered requests."""
    found = Lengths()
    for result in results:
        found.add_result(result)
    return found


def edges_of(name: str, lengths: Lengths) -> Edges:
    """The edges of one of `EDGE_SETS`; `percentile` takes them from the lengths."""
    if name in PUBLISHED:
        return Edges(*PUBLISHED[name])
    return Edges(
        _percentile_edges(lengths.input_tokens),
        _percentile_edges(lengths.output_tokens),
    )


def parse_edges(option: str, text: str) -> tuple[int, ...]:
    """Edges such as `32,128,512`. Raises UsageError unless whole, positive, rising."""
    try:
        edges = tuple(int(word) for word in text.split(","))
    except ValueError:
        edges = ()
    rising = all(low < high for low, high in pairwise(edges))
    if not edges or not rising or edges[0] <= 0 or edges[-1] > 2**31:
        raise UsageError(
            f"{option} {text}: expected rising numbers of tokens, such as 32,128,512"
        )
    if len(edges) > MAX_EDGES:
        raise UsageError(f"{option}: {len(edges)} edges, at most {MAX_EDGES}")
    return edges


def place(edges: Sequence[int], tokens: IntArray) -> IntArray:
    """Index of the smallest edge that is not below each count; len(edges) is beyond."""
    return np.searchsorted(np.asarray(edges), tokens, side="left").astype(np.int64)


def bin_table(edge_set: str, edges: Edges, lengths: Lengths) -> BinTable:
    """All bins that hold a request, with what a run's requests took in each."""
    given = np.asarray(lengths.input_tokens, np.int64)
    produced = np.asarray(lengths.output_tokens, np.int64)
    rows = place(edges.input_tokens, given)
    columns = place(edges.output_tokens, produced)
    width = len(edges.output_tokens)
    inside = (rows < len(edges.input_tokens)) & (columns < width)
    cells = np.where(inside, rows * width + columns, -1)
    order = np.argsort(cells, kind="stable")
    numbers, starts = np.unique(cells[order], return_index=True)
    found = []
    for number, members in zip(
        numbers.tolist(), np.split(order, starts[1:]), strict=True
    ):
        if number >= 0:
            row, column = divmod(number, width)
            found.append(_bin(edges, row, column, members, lengths, given, produced))
    return BinTable(
        edge_set=edge_set,
        input_edges=edges.input_tokens,
        output_edges=edges.output_tokens,
        requests=len(lengths),
        beyond=int((~inside).sum()),
        unknown=lengths.unknown,
        bins=tuple(found),
        is_run=len(lengths.joules) > 0,
    )


def _bin(
    edges: Edges,
    row: int,
    column: int,
    members: IntArray,
    lengths: Lengths,
    given: IntArray,
    produced: IntArray,
) -> Bin:
    table = Bin(
        above_input_tokens=edges.input_tokens[row - 1] if row else 0,
        input_tokens=edges.input_tokens[row],
        above_output_tokens=edges.output_tokens[column - 1] if column else 0,
        output_tokens=edges.output_tokens[column],
        requests=len(members),
        fraction=len(members) / len(lengths),
        mean_input_tokens=float(given[members].mean()),
        mean_output_tokens=float(produced[members].mean()),
    )
    if not len(lengths.joules):
        return table
    joules = np.asarray(lengths.joules)[members]
    known = np.isfinite(joules)
    tokens = int(produced[members][known].sum())
    joules = joules[known]
    return msgspec.structs.replace(
        table,
        metered=len(joules),
        mean_joules=float(joules.mean()) if len(joules) else None,
        p50_joules=_median(joules),
        joules_per_output_token=float(joules.sum()) / tokens if tokens else None,
        p50_ttft_seconds=_median(np.asarray(lengths.ttft_seconds)[members]),
        p50_e2el_seconds=_median(np.asarray(lengths.e2el_seconds)[members]),
    )


def _median(values: FloatArray) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else None


def _percentile_edges(tokens: array[int]) -> tuple[int, ...]:
    """Rising whole edges; a workload of one length has a single one."""
    if not len(tokens):
        return (1,)
    points = np.ceil(np.percentile(np.asarray(tokens), PERCENTS)).astype(np.int64)
    return tuple(np.unique(np.maximum(points, 1)).tolist())


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
