"""A simulated server's metrics page, written by prometheus_client as vLLM's own is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

HELP = "SIMULATED"

Samples = Iterable[tuple[Mapping[str, str], float]]

disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs


class Page(Collector):
    """One page: histograms that are counted on, other figures given at each scrape."""

    def __init__(self, labels: Mapping[str, str] | None = None) -> None:
        """`labels` stand on every sample."""
        self._labels = dict(labels or {})
        self._histograms: list[Histogram] = []
        self._families: Iterable[Metric] = ()

    def histogram(self, name: str, bounds: Sequence[float]) -> Histogram:
        """A new histogram; `bounds` are upper bounds, infinity is implied."""
        found = Histogram(
            name, HELP, tuple(self._labels), registry=None, buckets=bounds
        )
        self._histograms.append(found)
        return found.labels(**self._labels) if self._labels else found

    def family(self, name: str, kind: str, samples: Samples | float) -> Metric:
        """A `gauge` or `counter`: one value, or one for each set of labels."""
        metric = Metric(name, HELP, kind)
        if isinstance(samples, float | int):
            samples = [({}, samples)]
        for labels, value in samples:
            metric.add_sample(name, {**self._labels, **labels}, value)
        return metric

    def collect(self) -> Iterator[Metric]:
        """All families of the page, histograms last."""
        yield from self._families
        for histogram in self._histograms:
            yield from histogram.collect()

    def text(self, families: Iterable[Metric]) -> str:
        """The page with these figures of the moment."""
        self._families = list(families)
        text = generate_latest(self).decode()
        # the library ends a counter's name in `_total`, which TGI and DCGM do not, and
        # which the names of vLLM have already
        for family in self._families:
            text = text.replace(f" {family.name}_total ", f" {family.name} ")
        return text
