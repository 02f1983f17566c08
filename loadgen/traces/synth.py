"""New traces with the statistics of an old one: lengths, turns and arrivals.

`Statistics` is what is kept of a trace: a few kilobytes, no text. `synthesized` draws
sessions from it, the same ones for the same seed.

Lengths are kept as percentile bins (`pct8`: minimum, p5, p25, p50, p75, p90, p95, p99,
maximum), each with the mean of its values, so that draws keep both the percentiles and
the mean. Eight logarithmic bins do not: they miss the mean of the Azure conversation
trace by 11 %, percentile bins with means by 0.2 %.

Arrivals are kept as one of two shapes, which cover the public traces. `Modulated`: a
Poisson process whose rate drifts (Azure conversation). `OnOff`: bursts and pauses
(Azure code, where 95 pauses hold three quarters of the hour and no gamma or Weibull
fits the gaps).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from loadgen.errors import UsageError
from loadgen.traces.statistics import PERCENTILES
from loadgen.traces.trace import Session, Turn
from proxy.wire.facts import KINDS

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class BinAxis(msgspec.Struct, frozen=True):
    """Bins of one quantity: bin k is [edges[k], edges[k + 1])."""

    edges: list[float]
    counts: list[int]
    means: list[float]

    def __post_init__(self) -> None:
        """Raise ValueError for bins that nothing can be drawn from."""
        _check_bins(self.edges, self.means)
        if len(self.counts) != len(self.means):
            raise ValueError(f"{len(self.counts)} counts for {len(self.means)} bins")
        _check_counts(np.array(self.counts))


class JointBins(msgspec.Struct, frozen=True):
    """Bins of prompt and output tokens together, in the layout of length_bins/1."""

    in_edges: list[float]
    out_edges: list[float]
    counts: list[list[int]]
    """counts[i][j]: requests in input bin i and output bin j."""
    in_bin_mean: list[float]
    out_bin_mean: list[float]

    def __post_init__(self) -> None:
        """Raise ValueError for shapes that do not fit each other."""
        table = np.array(self.counts)
        shape = (len(self.in_edges) - 1, len(self.out_edges) - 1)
        if table.shape != shape:
            raise ValueError(f"counts have shape {table.shape}, expected {shape}")
        _check_counts(table)
        _check_bins(self.in_edges, self.in_bin_mean, least=1)
        _check_bins(self.out_edges, self.out_bin_mean, least=1)


_MAX_EDGE = 2.0**60
"""Microseconds of any pause, tokens of any length: an integer all the same."""


def _check_bins(edges: list[float], means: list[float], least: float = 0) -> None:
    if len(edges) != len(means) + 1 or not means:
        raise ValueError(f"bin means do not fit: {len(means)} for {len(edges)} edges")
    if not all(np.diff(edges) > 0) or not least <= edges[0] <= edges[-1] <= _MAX_EDGE:
        raise ValueError(f"edges are {edges}, expected to rise from {least}")
    if not all(0 <= mean <= _MAX_EDGE for mean in means):
        raise ValueError(f"bin means are {means}, expected finite and >= 0")


def _check_counts(counts: NDArray[Any]) -> None:
    if counts.dtype.kind != "i" or counts.min() < 0 or not 0 < counts.sum() < 2**53:
        raise ValueError("counts are not all whole numbers >= 0, some above 0")


def pct8(values: ArrayLike) -> BinAxis:
    """Percentile bins of whole numbers with their means.

    An inner edge is the (inverted-CDF) percentile plus 1, so that a value many
    requests share stays below its edge. Equal edges are merged.
    """
    numbers = np.asarray(values, dtype=np.int64)
    inner = np.percentile(numbers, PERCENTILES, method="inverted_cdf") + 1
    edges = np.unique([numbers.min(), *inner, numbers.max() + 1])
    return _axis(numbers, edges)


def joint_pct8(inputs: ArrayLike, outputs: ArrayLike) -> JointBins:
    """Percentile bins of prompt and output tokens, counted together."""
    across, down = pct8(inputs), pct8(outputs)
    counts, _, _ = np.histogram2d(
        np.asarray(inputs),
        np.asarray(outputs),
        (np.array(across.edges), np.array(down.edges)),
    )
    return JointBins(
        in_edges=across.edges,
        out_edges=down.edges,
        counts=counts.astype(int).tolist(),
        in_bin_mean=across.means,
        out_bin_mean=down.means,
    )


def draw(axis: BinAxis, size: int, generator: np.random.Generator) -> IntArray:
    """`size` whole numbers of one quantity, as evenly over its bins as they divide."""
    bins = _cells(np.array(axis.counts), size, generator)
    return _inside(bins, axis.edges, axis.means, generator)


def draw_lengths(
    bins: JointBins, size: int, generator: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Prompt and output tokens of `size` requests, from the joint bins."""
    table = np.array(bins.counts)
    cells = _cells(table.ravel(), size, generator)
    across, down = np.divmod(cells, table.shape[1])
    return (
        _inside(across, bins.in_edges, bins.in_bin_mean, generator),
        _inside(down, bins.out_edges, bins.out_bin_mean, generator),
    )


def apportioned(counts: ArrayLike, size: int) -> IntArray:
    """`size` divided over cells by largest remainder, so short runs keep the mix."""
    shares = np.asarray(counts, dtype=np.float64)
    shares = shares / shares.sum() * size
    whole = np.floor(shares).astype(np.int64)
    missing = size - int(whole.sum())
    by_remainder = np.argsort(whole - shares, kind="stable")
    whole[by_remainder[:missing]] += 1
    return np.asarray(whole, dtype=np.int64)


def _axis(numbers: IntArray, edges: FloatArray) -> BinAxis:
    counts, _ = np.histogram(numbers, edges)
    sums, _ = np.histogram(numbers, edges, weights=numbers)
    middles = (edges[:-1] + edges[1:] - 1) / 2
    means = np.where(counts > 0, sums / np.maximum(counts, 1), middles)
    return BinAxis(edges.tolist(), counts.tolist(), np.round(means, 3).tolist())


def _cells(counts: IntArray, size: int, generator: np.random.Generator) -> IntArray:
    cells = np.repeat(np.arange(len(counts)), apportioned(counts, size))
    return np.asarray(generator.permutation(cells), dtype=np.int64)


def _inside(
    bins: IntArray,
    edges: list[float],
    means: list[float],
    generator: np.random.Generator,
) -> IntArray:
    """A whole number inside each bin whose expectation is the bin's mean.

    With probability (last - mean) / (last - first) even on [first, mean], else
    even on [mean, last]; then rounded up or down at random, which keeps the mean.
    """
    first = np.array(edges[:-1])[bins]
    last = np.array(edges[1:])[bins] - 1
    mean = np.array(means)[bins]
    width = np.maximum(last - first, 1)
    is_low = generator.random(len(bins)) < (last - mean) / width
    low, high = np.where(is_low, first, mean), np.where(is_low, mean, last)
    drawn = low + generator.random(len(bins)) * (high - low)
    whole = np.floor(drawn + generator.random(len(bins)))
    return np.asarray(np.clip(whole, first, last), dtype=np.int64)


WINDOW_SECONDS = 300.0
_MAX_WINDOWS = 100_000
"""A year of drift; windows of a longer trace are longer."""
OFF_SECONDS = 2.0
"""A gap longer than this is a pause between bursts."""
BURSTY_CV = 3.0
"""Gaps that vary more than this are taken as bursts: no drift makes them."""

_MICROSECONDS = 1e6


class Modulated(msgspec.Struct, frozen=True, tag="modulated", tag_field="shape"):
    """A Poisson process of drifting rate."""

    rate_per_second: float
    relative_rates: list[float]
    """Rate of each of equally long windows over the trace's mean rate."""

    def __post_init__(self) -> None:
        """Raise ValueError for rates that no instant can be drawn from."""
        _check_rate(self.rate_per_second)
        rates = self.relative_rates
        if not rates or not all(0 <= r < 1e9 for r in rates) or not sum(rates) > 0:
            raise ValueError("relative_rates are not all numbers >= 0, some above 0")


class OnOff(msgspec.Struct, frozen=True, tag="on_off", tag_field="shape"):
    """Bursts of requests with pauses between them."""

    rate_per_second: float
    burst_requests: BinAxis
    gap_microseconds: BinAxis
    """Gaps inside bursts."""
    pause_microseconds: BinAxis

    def __post_init__(self) -> None:
        """Raise ValueError for bursts that never add up to a trace."""
        _check_rate(self.rate_per_second)
        if not self.burst_requests.edges[0] >= 1:
            raise ValueError("burst_requests has empty bursts")


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1e9:
        raise ValueError(f"rate_per_second is {rate}, expected a number above 0")


Shape = Modulated | OnOff


def shape_of(at_seconds: ArrayLike) -> Shape:
    """The shape of arrivals at these instants, in order; at least three of them."""
    stamps = np.asarray(at_seconds, dtype=np.float64)
    gaps = np.diff(stamps)
    span = float(stamps[-1] - stamps[0])
    rate = (len(stamps) - 1) / span
    has_both = bool((gaps > OFF_SECONDS).any() and (gaps <= OFF_SECONDS).any())
    if has_both and gaps.std() / gaps.mean() > BURSTY_CV:
        return _on_off(gaps, rate)
    windows = min(max(1, round(span / WINDOW_SECONDS)), _MAX_WINDOWS)
    counts, _ = np.histogram(stamps, windows)
    relative = counts / counts.mean()
    return Modulated(round(rate, 6) or rate, np.round(relative, 4).tolist())


def drawn_seconds(
    shape: Shape, size: int, generator: np.random.Generator
) -> FloatArray:
    """`size` new instants of that shape, the first at zero, at its own mean rate."""
    if isinstance(shape, Modulated):
        return _modulated_seconds(shape, size, generator)
    return _on_off_seconds(shape, size, generator)


def _on_off(gaps: FloatArray, rate: float) -> OnOff:
    is_pause = gaps > OFF_SECONDS
    edges = np.concatenate([[-1], np.flatnonzero(is_pause), [len(gaps)]])
    microseconds = np.rint(gaps * _MICROSECONDS).astype(np.int64)
    return OnOff(
        rate_per_second=round(rate, 6) or rate,
        burst_requests=pct8(np.diff(edges)),
        gap_microseconds=pct8(microseconds[~is_pause]),
        pause_microseconds=pct8(microseconds[is_pause]),
    )


def _modulated_seconds(
    shape: Modulated, size: int, generator: np.random.Generator
) -> FloatArray:
    """A unit Poisson process read through the inverse of its summed rate.

    The whole drift is squeezed into the new trace's span, size / rate.
    """
    rates = np.array(shape.relative_rates) * shape.rate_per_second
    width = size / shape.rate_per_second / len(rates)
    expected = np.concatenate([[0.0], np.cumsum(rates * width)])
    edges = np.arange(len(rates) + 1) * width
    unit = np.concatenate([[0.0], np.cumsum(generator.standard_exponential(size - 1))])
    inside = np.interp(unit, expected, edges)
    beyond = np.maximum(unit - expected[-1], 0) / shape.rate_per_second
    return np.asarray(inside + beyond, dtype=np.float64)


def _on_off_seconds(
    shape: OnOff, size: int, generator: np.random.Generator
) -> FloatArray:
    """Bursts and pauses in turn until there are enough requests."""
    burst = shape.burst_requests
    mean = float(np.dot(burst.counts, burst.means) / np.sum(burst.counts))
    bursts: list[int] = []
    while sum(bursts) < size:
        bursts += draw(burst, max(1, round(size / mean)), generator).tolist()
    gaps = draw(shape.gap_microseconds, size, generator)
    last = np.cumsum(bursts)
    pauses = draw(shape.pause_microseconds, len(bursts), generator)
    for place, end in enumerate(last.tolist()):
        if end < size:
            gaps[end] = pauses[place]
    stamps = np.concatenate([[0], np.cumsum(gaps[1:])])
    return np.asarray(stamps / _MICROSECONDS, dtype=np.float64)


VERSION = "tracestats/1"


class Conversations(msgspec.Struct, frozen=True):
    """Turns of conversations, and lengths of each new text and reply."""

    turns: dict[int, int]
    """Conversations by their number of turns."""
    first: JointBins
    later: JointBins
    """New text of a turn, without the history it carries, and its reply."""
    longest_tokens: int
    """No conversation of the source grew beyond this."""

    def __post_init__(self) -> None:
        """Raise ValueError for counts that no conversation can be drawn from."""
        if not self.turns or not 1 <= min(self.turns) <= max(self.turns) <= 100_000:
            raise ValueError(f"turns are {self.turns}, expected counts by turns >= 1")
        _check_counts(np.array(list(self.turns.values())))
        shortest = self.first.in_bin_mean[0] + self.first.out_bin_mean[0]
        if self.longest_tokens < shortest:
            raise ValueError(
                f"longest_tokens is {self.longest_tokens}, expected >= {shortest}"
            )


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """The statistics that are kept of a trace."""

    statistics: str = VERSION
    name: str
    kind: str
    requests: int
    source: dict[str, Any] = {}
    lengths: JointBins
    """Whole prompt and reply of each request."""
    conversations: Conversations | None = None
    arrivals: Shape | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for a kind that no trace has."""
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, expected {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthOptions:
    """The new trace: its size, seed and session length."""

    requests: int = 1000
    seed: int = 0
    max_turns: int | None = None
    """Longer conversations become several sessions, each carrying its history."""
    think_seconds: float = 4.0
    """Mean of exponential pauses; no source has them, so they are invented."""
    with_arrivals: bool = True


def chained(sessions: Iterable[Session]) -> Iterator[Session]:
    """Conversations rebuilt from rows that are one turn each, history and all.

    A row goes on from the one before when its prompt is at least as long as that
    row's prompt and reply together. Two conversations that fit by chance become
    one, and a turn the source left out counts as new text of the next.
    """
    held: list[Turn] = []
    for session in sessions:
        if len(session.turns) > 1:
            raise UsageError(
                "--rebuild-conversations chains rows of one turn each, "
                f"session {session.session_id!r} has {len(session.turns)} turns"
            )
        turn = session.turns[0]
        if held and _needs(turn)[0] >= sum(_needs(held[-1])):
            held.append(turn)
            continue
        if held:
            yield _chain(held)
        held = [turn]
    if held:
        yield _chain(held)


def statistics_of(
    sessions: Iterable[Session], *, name: str, source: dict[str, Any]
) -> Statistics:
    """The statistics of a trace, every turn of which states its lengths."""
    totals: list[tuple[int, int]] = []
    first: list[tuple[int, int]] = []
    later: list[tuple[int, int]] = []
    turns: dict[int, int] = {}
    stamps: list[float] = []
    kinds: dict[str, int] = {}
    for session in sessions:
        turns[len(session.turns)] = turns.get(len(session.turns), 0) + 1
        if session.turns[0].at_seconds is not None:
            stamps.append(session.turns[0].at_seconds)
        history = 0
        for place, turn in enumerate(session.turns):
            fresh, reply = _needs(turn)
            prompt = fresh + history if turn.history == "append" else fresh
            totals.append((prompt, reply))
            (later if place else first).append((max(1, prompt - history), reply))
            history = prompt + reply
            kinds[turn.kind] = kinds.get(turn.kind, 0) + 1
    conversations = None
    if later:
        longest = max(prompt + reply for prompt, reply in totals)
        conversations = Conversations(
            dict(sorted(turns.items())), _joint(first), _joint(later), longest
        )
    has_shape = len(stamps) == sum(turns.values()) > 2 and stamps[-1] > stamps[0]
    return Statistics(
        name=name,
        kind=max(kinds, key=lambda kind: kinds[kind]),
        requests=len(totals),
        source=source,
        lengths=_joint(totals),
        conversations=conversations,
        arrivals=shape_of(stamps) if has_shape else None,
    )


def synthesized(statistics: Statistics, options: SynthOptions) -> list[Session]:
    """Sessions of a new trace, `options.requests` requests in all."""
    generator = np.random.default_rng(options.seed)
    if statistics.conversations is None:
        sessions = _single_turns(statistics, options, generator)
    else:
        sessions = _conversations(
            statistics.conversations, statistics.kind, options, generator
        )
    if statistics.arrivals is not None and options.with_arrivals:
        at_seconds = drawn_seconds(statistics.arrivals, len(sessions), generator)
        sessions = [
            _starting(session, round(at, 6))
            for session, at in zip(sessions, at_seconds.tolist(), strict=True)
        ]
    return sessions


def digest(statistics: Statistics) -> str:
    """The sha256 that names these statistics in a trace's header."""
    return hashlib.sha256(msgspec.json.encode(statistics)).hexdigest()


def _needs(turn: Turn) -> tuple[int, int]:
    if turn.input_tokens is None or turn.output_tokens is None:
        raise UsageError(
            "the trace has text without token counts: statistics need lengths, so "
            "tokenize it first or take a trace of lengths"
        )
    return turn.input_tokens, turn.output_tokens


def _chain(rows: list[Turn]) -> Session:
    turns = [replace(rows[0], history="append")]
    for before, row in itertools.pairwise(rows):
        fresh = max(1, _needs(row)[0] - sum(_needs(before)))
        turns.append(replace(row, history="append", input_tokens=fresh))
    return Session("chained", tuple(turns))


def _joint(pairs: list[tuple[int, int]]) -> JointBins:
    table = np.array(pairs)
    return joint_pct8(table[:, 0], table[:, 1])


def _single_turns(
    statistics: Statistics, options: SynthOptions, generator: np.random.Generator
) -> list[Session]:
    pairs = _lengths(statistics.lengths, options.requests, generator)
    return [
        Session(str(n), (Turn(statistics.kind, None, 0.0, tokens, reply),))
        for n, (tokens, reply) in enumerate(pairs, 1)
    ]


def _conversations(
    source: Conversations,
    kind: str,
    options: SynthOptions,
    generator: np.random.Generator,
) -> list[Session]:
    """Whole conversations first, then cut into stretches, shuffled and counted."""
    counts = np.array(list(source.turns.values()))
    mean = float(np.dot(counts, list(source.turns)) / counts.sum())
    stretches: list[list[Turn]] = []
    fruitless = 0
    while (made := sum(map(len, stretches))) < options.requests:
        # A tenth more than needed: those that reach the longest length end early.
        wanted = max(1, round(1.1 * options.requests / mean))
        numbers = np.repeat(list(source.turns), apportioned(counts, wanted))
        first = iter(_lengths(source.first, len(numbers), generator))
        later = iter(_lengths(source.later, int(numbers.sum()), generator))
        for number in generator.permutation(numbers).tolist():
            pairs = [next(first), *(next(later) for _ in range(number - 1))]
            stretches += _stretches(pairs, source.longest_tokens, options, generator)
        fruitless += sum(map(len, stretches)) == made
        if fruitless > _MAX_FRUITLESS:
            raise UsageError(
                "no conversation of these statistics stays within longest_tokens, "
                f"{source.longest_tokens}"
            )
    return _numbered(stretches, kind, options, generator)


_MAX_FRUITLESS = 100
"""Rounds without a turn that fits; by chance alone there are a few."""


def _lengths(
    bins: JointBins, size: int, generator: np.random.Generator
) -> list[tuple[int, int]]:
    inputs, outputs = draw_lengths(bins, size, generator)
    return list(zip(inputs.tolist(), outputs.tolist(), strict=True))


def _stretches(
    pairs: list[tuple[int, int]],
    longest_tokens: int,
    options: SynthOptions,
    generator: np.random.Generator,
) -> list[list[Turn]]:
    """One conversation as sessions of at most `max_turns`, up to its longest length."""
    stretches: list[list[Turn]] = [[]]
    history = 0
    for fresh, reply in pairs:
        if history + fresh + reply > longest_tokens:
            break
        if options.max_turns is not None and len(stretches[-1]) == options.max_turns:
            stretches.append([])
        is_first = not stretches[-1]
        think = 0.0 if is_first else generator.exponential(options.think_seconds)
        tokens = history + fresh if is_first else fresh
        stretches[-1].append(Turn("", None, round(think, 3), tokens, reply))
        history += fresh + reply
    return [stretch for stretch in stretches if stretch]


def _numbered(
    stretches: list[list[Turn]],
    kind: str,
    options: SynthOptions,
    generator: np.random.Generator,
) -> list[Session]:
    """The stretches in random order, cut where the requests are enough."""
    sessions: list[Session] = []
    left = options.requests
    for place in generator.permutation(len(stretches)).tolist():
        if left <= 0:
            break
        turns = tuple(
            replace(turn, kind=kind, history="append")
            for turn in stretches[place][:left]
        )
        left -= len(turns)
        sessions.append(Session(f"s{len(sessions) + 1}", turns))
    return sessions


def _starting(session: Session, at_seconds: float) -> Session:
    first = replace(session.turns[0], at_seconds=at_seconds)
    return Session(session.session_id, (first, *session.turns[1:]))
