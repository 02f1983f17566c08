"""The page of metrics: the table over one snapshot, and what requests left behind."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import exposition as text_page
from prometheus_client.core import Exemplar, Metric
from prometheus_client.openmetrics import exposition as openmetrics_page
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from proxy.meter.ledger import RequestRecord
from proxy.metrics.histograms import ClassBound, LengthBins
from proxy.metrics.samples import RequestMetric, Snapshot, TallyMetric
from proxy.metrics.table import METRICS, REQUEST_METRICS
from proxy.process.tally import Tally

TEXT_TYPE = text_page.CONTENT_TYPE_PLAIN_0_0_4
OPENMETRICS_TYPE = openmetrics_page.CONTENT_TYPE_LATEST
MAX_EXEMPLAR_CHARACTERS = 100
"""Of a request id: name and value of an exemplar's label have 128 in all."""

Labels = tuple[str, ...]


class _Cell:
    """One histogram of one class of requests, with the newest request per bucket.

    `prometheus_client.Histogram` walks through its buckets, which takes four times as
    long with edges as fine as these.
    """

    __slots__ = ("exemplars", "tally")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.tally = Tally(edges)
        self.exemplars: dict[int, Exemplar] = {}


@dataclass(slots=True)
class EndedRequests:
    """Counts of settled requests, and of those of which something is not known."""

    requests: int = 0
    without_energy: int = 0
    without_tokens: int = 0
    """Answered or cut off without the engine's count of its output."""
    legs: Counter[str] = field(default_factory=Counter)
    """Those that were a half of a request on two engines."""

    def add(self, record: RequestRecord) -> None:
        """Count one."""
        is_uncounted = record.outcome == "ok" and record.output_tokens is None
        self.requests += 1
        self.without_energy += record.energy.energy_joules is None
        self.without_tokens += is_uncounted or bool(record.is_output_lower_bound)
        if record.leg is not None:
            self.legs[record.leg] += 1


class Metrics(Collector):
    """A table over the latest snapshot, plus per-request histograms."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._classes = ClassBound()
        self._cells: dict[str, dict[Labels, _Cell]] = {
            name: {} for name in REQUEST_METRICS
        }
        self.bins = LengthBins()
        self.ended: dict[str, dict[tuple[str, str], EndedRequests]] = {}
        """Settled requests by engine, and by model and tenant."""

    def observe(self, records: Iterable[RequestRecord]) -> None:
        """Count settled requests; each leaves its id as an exemplar."""
        unix_seconds = time.time()
        for record in records:
            labels = self._classes.bounded(
                (
                    record.engine, record.model, record.kind, record.tenant,
                    record.outcome,
                )
            )  # fmt: skip
            request_id = record.request_id[:MAX_EXEMPLAR_CHARACTERS]
            self.bins.add(record)
            by_class = self.ended.setdefault(record.engine, {})
            ended = by_class.setdefault((record.model, record.tenant), EndedRequests())
            ended.add(record)
            for name, spec in REQUEST_METRICS.items():
                value = spec.value(record)
                if value is not None and math.isfinite(value):
                    cell = self._cells[name].get(labels)
                    if cell is None:
                        cell = self._cells[name][labels] = _Cell(spec.edges)
                    bucket = cell.tally.add(value)
                    cell.exemplars[bucket] = Exemplar(
                        {"request_id": request_id}, value, unix_seconds
                    )

    def records_without_energy(self, engine: str) -> int:
        """Settled requests of an engine whose energy is unknown."""
        classes = self.ended.get(engine, {}).values()
        return sum(ended.without_energy for ended in classes)

    def show(self, snapshot: Snapshot) -> None:
        """Use this snapshot for the next scrapes."""
        self._snapshot = snapshot

    def render(self, openmetrics: bool) -> bytes:
        """Exposition text, on any thread; OpenMetrics carries the exemplars."""
        page = openmetrics_page if openmetrics else text_page
        text: bytes = page.generate_latest(self)
        return text

    def collect(self) -> Iterator[Metric]:
        """The table as metric families; of it nothing before the first snapshot."""
        for name, spec in METRICS.items():
            family = Metric(name.removesuffix("_total"), spec.help, spec.kind)
            if isinstance(spec, RequestMetric):
                for values, cell in list(self._cells[name].items()):
                    labels = dict(zip(spec.labels, values, strict=True))
                    _add_histogram(family, labels, cell.tally, dict(cell.exemplars))
            elif self._snapshot is None:
                continue
            elif isinstance(spec, TallyMetric):
                for values, tally in spec.tallies(self._snapshot):
                    labels = dict(zip(spec.labels, values, strict=True))
                    _add_histogram(family, labels, tally, {})
            else:
                for values, value in spec.samples(self._snapshot):
                    labels = dict(zip(spec.labels, values, strict=True))
                    family.add_sample(name, labels, value)
            yield family


def _add_histogram(
    family: Metric, labels: dict[str, str], tally: Tally, exemplars: dict[int, Exemplar]
) -> None:
    """All samples of one histogram; the loop may go on counting meanwhile.

    Its count is that of the buckets shown.
    """
    total, counts = tally.total, list(accumulate(tuple(tally.counts)))
    edges = (*map(floatToGoString, tally.edges), "+Inf")
    for bucket, (edge, count) in enumerate(zip(edges, counts, strict=True)):
        family.add_sample(
            f"{family.name}_bucket",
            {**labels, "le": edge},
            float(count),
            exemplar=exemplars.get(bucket),
        )
    family.add_sample(f"{family.name}_count", labels, float(counts[-1]))
    family.add_sample(f"{family.name}_sum", labels, total)
