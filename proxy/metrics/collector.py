"""The Prometheus registry: the table over one snapshot, and the histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics
from prometheus_client import generate_latest as generate_text
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import (
    generate_latest as generate_openmetrics,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.meter.ledger import RequestRecord
from proxy.metrics.histograms import ClassBound, LengthBins
from proxy.metrics.samples import MetricSpec, Snapshot, TallyMetric
from proxy.metrics.table import METRICS, REQUEST_METRICS
from proxy.process.tally import Tally

# a `_created` series beside every histogram would nearly double the page's series
disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs


class Metrics(Collector):
    """The registry: a table over the latest snapshot, plus per-request histograms."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._snapshot: Snapshot | None = None
        self._classes = ClassBound()
        self._histograms = {
            name: Histogram(
                name, spec.help, spec.labels,
                buckets=spec.edges, registry=self.registry,
            )
            for name, spec in REQUEST_METRICS.items()
        }  # fmt: skip
        self.bins = LengthBins()
        self.records_without_energy: Counter[str] = Counter()
        """Count by engine."""
        self.registry.register(self)

    def observe(self, records: Iterable[RequestRecord]) -> None:
        """Count settled requests; each leaves its id as an exemplar."""
        for record in records:
            own = (record.engine, record.model, record.kind, record.tenant)
            labels = (*self._classes.bounded(own), record.outcome)
            exemplar = {"request_id": record.request_id[:100]}
            self.bins.add(record)
            for name, spec in REQUEST_METRICS.items():
                value = spec.value(record)
                if value is not None:
                    self._histograms[name].labels(*labels).observe(value, exemplar)
            if record.energy.energy_joules is None:
                self.records_without_energy[record.engine] += 1

    def show(self, snapshot: Snapshot) -> None:
        """Use this snapshot for the next scrapes."""
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """The table as metric families; nothing before the first snapshot."""
        snapshot = self._snapshot
        if snapshot is None:
            return
        for name, spec in METRICS.items():
            if isinstance(spec, MetricSpec):
                yield _family(name, spec, snapshot)
            elif isinstance(spec, TallyMetric):
                histogram = HistogramMetricFamily(name, spec.help, labels=spec.labels)
                for labels, tally in spec.tallies(snapshot):
                    histogram.add_metric(list(labels), *_cumulative(tally))
                yield histogram

    def render(self, openmetrics: bool) -> bytes:
        """Exposition text; OpenMetrics carries the exemplars."""
        if openmetrics:
            text: bytes = generate_openmetrics(  # type: ignore[no-untyped-call]  # theirs
                self.registry
            )
            return text
        return generate_text(self.registry)


def _family(name: str, spec: MetricSpec, snapshot: Snapshot) -> Metric:
    family: CounterMetricFamily | GaugeMetricFamily
    if spec.kind == "counter":
        family = CounterMetricFamily(
            name.removesuffix("_total"), spec.help, labels=spec.labels
        )
    else:
        family = GaugeMetricFamily(name, spec.help, labels=spec.labels)
    for labels, value in spec.samples(snapshot):
        family.add_metric(list(labels), value)
    return family


def _cumulative(tally: Tally) -> tuple[list[tuple[str, float]], float]:
    """Buckets as Prometheus has them, and the sum; the loop may go on counting."""
    total, counts = tally.total, list(tally.counts)
    edges = (*map(floatToGoString, tally.edges), "+Inf")
    return list(zip(edges, map(float, accumulate(counts)), strict=True)), total
