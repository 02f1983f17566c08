"""Prometheus' text format, as far as the simulated servers need it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: name, type, and a value for each set of labels."""

    name: str
    kind: str
    samples: Sequence[tuple[Labels, float]]


@dataclass(slots=True)
class Histogram:
    """Counts per bucket; `bounds` are upper bounds, infinity is implied."""

    name: str
    bounds: Sequence[float]
    total: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def text_of(metrics: Iterable[Family | Histogram], labels: Labels) -> str:
    """The page; `labels` are put before those of each sample."""
    lines: list[str] = []
    for metric in metrics:
        if isinstance(metric, Histogram):
            lines.extend(_histogram_lines(metric, labels))
            continue
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        lines.extend(
            f"{metric.name}{_braces({**labels, **own})} {_number(value)}"
            for own, value in metric.samples
        )
    return "\n".join(lines) + "\n"


def _histogram_lines(metric: Histogram, labels: Labels) -> list[str]:
    bounds = [*(_number(bound) for bound in metric.bounds), "+Inf"]
    cumulative = list(accumulate(metric.counts))
    buckets = [
        f"{metric.name}_bucket{_braces({**labels, 'le': bound})} {count}"
        for bound, count in zip(bounds, cumulative, strict=True)
    ]
    return [
        f"# TYPE {metric.name} histogram",
        *buckets,
        f"{metric.name}_count{_braces(labels)} {cumulative[-1]}",
        f"{metric.name}_sum{_braces(labels)} {metric.total!r}",
    ]


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _braces(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}"
