"""Histograms over settled requests: figures, buckets, and the bound on their labels.

A class is one combination of labels, and costs some eighty lines on the page: clients
may multiply them, so there are `MAX_CLASSES` in all. Beyond, a request is observed
under a coarser class (tenant `other`, then kind `other` too), never left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.meter.ledger import RequestRecord

JOULE_BUCKETS = (
    0.01, 0.025, 0.06, 0.15, 0.4, 1, 2.5, 6, 15, 40, 100, 250, 600, 1_500, 4_000,
    10_000, 25_000,
)  # fmt: skip
"""About x2.5 a step: from a short completion on a small model to a long one on 70B."""
TOKEN_JOULE_BUCKETS = (
    0.0001, 0.00025, 0.0006, 0.0015, 0.004, 0.01, 0.025, 0.06, 0.15, 0.4, 1, 2.5, 6,
    15, 40, 100,
)  # fmt: skip
SECOND_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50,
    100, 250, 600,
)  # fmt: skip


MAX_CLASSES = 64
"""Distinct (engine, model, kind, tenant); with five outcomes, 25,000 lines at worst."""
RESERVED = 32
"""Room kept for classes of engine and model alone, which the operator chose."""

Class = tuple[str, str, str, str]
"""Engine, model, kind, tenant."""


class ClassBound:
    """Lets the first classes through and makes later ones coarser."""

    def __init__(self, most: int = MAX_CLASSES, reserved: int = RESERVED) -> None:
        self._fine_most = most - reserved
        self._coarse_most = reserved
        self._fine: set[Class] = set()
        self._coarse: set[Class] = set()

    def bounded(self, labels: Class) -> Class:
        """The class itself if there is room for it, else the finest one there is."""
        engine, model, kind, _ = labels
        coarse = (engine, model, "other", "other")
        for candidate in (labels, (engine, model, kind, "other")):
            if candidate in self._fine:
                return candidate
            if candidate != coarse and len(self._fine) < self._fine_most:
                self._fine.add(candidate)
                return candidate
        if coarse not in self._coarse and len(self._coarse) >= self._coarse_most:
            return ("other", "other", "other", "other")
        self._coarse.add(coarse)
        return coarse


@dataclass(frozen=True, slots=True)
class HistogramSpec:
    """One histogram: observed once for every settled request that has the figure."""

    help: str
    buckets: tuple[float, ...]
    value: Callable[[RequestRecord], float | None]


def _energy_joules(record: RequestRecord) -> float | None:
    """None where nothing was computed: a refused request is no cheap request."""
    joules = record.energy.energy_joules
    return None if joules == 0 and not record.output_tokens else joules


def _ttft_seconds(record: RequestRecord) -> float | None:
    if record.first_token_seconds is None:
        return None
    return record.first_token_seconds - record.arrived_seconds


def _joules_per_output_token(record: RequestRecord) -> float | None:
    if record.energy.energy_joules is None or not record.output_tokens:
        return None
    return record.energy.energy_joules / record.output_tokens


HISTOGRAMS: dict[str, HistogramSpec] = {
    "servewatt_request_energy_joules": HistogramSpec(
        "Energy of one request that consumed any, its share of idle included.",
        JOULE_BUCKETS,
        _energy_joules,
    ),
    "servewatt_output_token_energy_joules": HistogramSpec(
        "Energy of one request over its output tokens.",
        TOKEN_JOULE_BUCKETS,
        _joules_per_output_token,
    ),
    "servewatt_request_ttft_seconds": HistogramSpec(
        "From the request's arrival at the proxy to its first token.",
        SECOND_BUCKETS,
        _ttft_seconds,
    ),
    "servewatt_request_duration_seconds": HistogramSpec(
        "From the request's arrival at the proxy to its last byte.",
        SECOND_BUCKETS,
        lambda r: r.finished_seconds - r.arrived_seconds,
    ),
}
