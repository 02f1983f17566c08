"""The page of metrics: the table over one snapshot, and what requests left behind."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from proxy.meter.ledger import RequestRecord
from proxy.metrics.exposition import END, Exemplar, head, histogram, sample
from proxy.metrics.histograms import ClassBound, LengthBins
from proxy.metrics.samples import MetricSpec, RequestMetric, Snapshot, TallyMetric
from proxy.metrics.table import METRICS, REQUEST_METRICS
from proxy.process.tally import Tally

MAX_EXEMPLAR_CHARACTERS = 100
"""Of a request id: name and value of an exemplar's label have 128 in all."""

Labels = tuple[str, ...]


class _Cell:
    """One histogram of one class of requests, with the newest request per bucket."""

    __slots__ = ("exemplars", "tally")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.tally = Tally(edges)
        self.exemplars: dict[int, Exemplar] = {}


class Metrics:
    """A table over the latest snapshot, plus per-request histograms."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._classes = ClassBound()
        self._cells: dict[str, dict[Labels, _Cell]] = {
            name: {} for name in REQUEST_METRICS
        }
        self.bins = LengthBins()
        self.records_without_energy: Counter[str] = Counter()
        """Count by engine."""

    def observe(self, records: Iterable[RequestRecord]) -> None:
        """Count settled requests; each leaves its id as an exemplar."""
        unix_seconds = time.time()
        for record in records:
            own = (record.engine, record.model, record.kind, record.tenant)
            labels = (*self._classes.bounded(own), record.outcome)
            request_id = record.request_id[:MAX_EXEMPLAR_CHARACTERS]
            self.bins.add(record)
            for name, spec in REQUEST_METRICS.items():
                value = spec.value(record)
                if value is not None and math.isfinite(value):
                    cell = self._cells[name].get(labels)
                    if cell is None:
                        cell = self._cells[name][labels] = _Cell(spec.edges)
                    bucket = cell.tally.add(value)
                    exemplar = Exemplar(request_id, value, unix_seconds)
                    cell.exemplars[bucket] = exemplar
            if record.energy.energy_joules is None:
                self.records_without_energy[record.engine] += 1

    def show(self, snapshot: Snapshot) -> None:
        """Use this snapshot for the next scrapes."""
        self._snapshot = snapshot

    def render(self, openmetrics: bool) -> bytes:
        """Exposition text, on any thread; OpenMetrics carries the exemplars.

        Nothing of the table is shown before the first snapshot.
        """
        lines: list[str] = []
        for name, spec in METRICS.items():
            lines.append(head(name, spec.kind, spec.help, openmetrics=openmetrics))
            if isinstance(spec, RequestMetric):
                lines.extend(self._requests(name, spec, openmetrics))
            elif self._snapshot is not None:
                lines.extend(_of_snapshot(name, spec, self._snapshot))
        if openmetrics:
            lines.append(END)
        return "".join(lines).encode("utf-8", "replace")

    def _requests(
        self, name: str, spec: RequestMetric, openmetrics: bool
    ) -> Iterator[str]:
        for values, cell in list(self._cells[name].items()):
            exemplars = dict(cell.exemplars) if openmetrics else None
            yield from histogram(name, spec.labels, values, cell.tally, exemplars)


def _of_snapshot(
    name: str, spec: MetricSpec | TallyMetric, snapshot: Snapshot
) -> Iterator[str]:
    if isinstance(spec, MetricSpec):
        for values, value in spec.samples(snapshot):
            yield sample(name, spec.labels, values, value)
    else:
        for values, tally in spec.tallies(snapshot):
            yield from histogram(name, spec.labels, values, tally)
