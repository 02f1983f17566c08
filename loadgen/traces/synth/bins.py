"""Binned lengths and gaps: what a trace's numbers look like, small enough to ship.

The bins are percentiles (`pct8`: minimum, p5, p25, p50, p75, p90, p95, p99, maximum)
and each keeps the mean of what fell in it, so that drawing from them keeps the mean
and the percentiles both. Eight logarithmic bins do not: they miss the mean of the
Azure conversation trace by 11 %, percentile bins with means by 0.2 %.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

PERCENTILES = (5, 25, 50, 75, 90, 95, 99)


class BinAxis(msgspec.Struct, frozen=True):
    """Bins of one quantity: bin k is [edges[k], edges[k + 1])."""

    edges: list[float]
    counts: list[int]
    means: list[float]


class JointBins(msgspec.Struct, frozen=True):
    """Bins of prompt and output tokens together, in the layout of length_bins/1."""

    in_edges: list[float]
    out_edges: list[float]
    counts: list[list[int]]
    """counts[i][j]: requests in input bin i and output bin j."""
    in_bin_mean: list[float]
    out_bin_mean: list[float]

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit each other."""
        table = np.array(self.counts)
        shape = (len(self.in_edges) - 1, len(self.out_edges) - 1)
        if table.shape != shape or not table.sum() > 0 or table.min() < 0:
            raise ValueError(f"counts have shape {table.shape}, expected {shape}")
        if shape != (len(self.in_bin_mean), len(self.out_bin_mean)):
            raise ValueError(f"bin means do not fit {shape} bins")


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
