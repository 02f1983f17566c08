"""The last finished requests, one gauge each, for whoever scrapes them singly.

The only place where a request id is a label: the number of series is bounded
by the number of requests shown, and the page is not part of `/metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from proxy.meter.ledger import RequestRecord
from proxy.metrics.samples import PHASES

SHOWN_REQUESTS = 500


def render_recent(records: Iterable[RequestRecord]) -> bytes:
    """Exposition text of single requests; those of unknown energy are left out."""
    registry = CollectorRegistry()
    joules = Gauge(
        "servewatt_last_request_energy_joules",
        "Energy of one of the last finished requests, by phase.",
        ("request_id", "engine", "model", "kind", "outcome", "phase"),
        registry=registry,
    )
    for record in records:
        labels = (
            record.request_id, record.engine, record.model, record.kind, record.outcome,
        )  # fmt: skip
        for phase in PHASES:
            value = getattr(record.energy, f"{phase}_joules")
            if value is not None:
                joules.labels(*labels, phase).set(value)
    return generate_latest(registry)
