"""Everything Prometheus sees, in one table over one snapshot of the meter.

Base units, `_total` on counters, bounded labels only: never a request id, a
URL or an error text. Single requests are linked by exemplars. Counters hold
settled energy only, so they never fall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from proxy import __version__
from proxy.meter import MeterState
from proxy.relay.counters import RelayCounters
from proxy.sampler import SamplerStats
from proxy.store.writer import StoreState

Sample = tuple[tuple[str, ...], float]
PHASES = ("prefill", "decode", "idle_share")
TOKEN_TYPES = ("prompt", "cached", "output")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one scrape is made of, taken at one moment on the event loop."""

    meter: MeterState
    relay: RelayCounters
    sampler: SamplerStats | None
    source: str
    loop_lag_seconds: float
    records_without_energy: int
    store: StoreState | None = None

    @property
    def boundary(self) -> str:
        """What is inside the joules."""
        return self.sampler.boundary if self.sampler else "none"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One line of the table: how a metric is called and where its figure is."""

    kind: str
    """`counter` or `gauge`."""
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Snapshot], Iterable[Sample]]


def _one(value: float | None) -> list[Sample]:
    """A metric without labels; unknown is absent, not 0."""
    return [] if value is None else [((), value)]


def _accounts(snapshot: Snapshot) -> Iterator[Sample]:
    if snapshot.sampler is None:
        return
    books = snapshot.meter.books
    for account, joules in (
        ("prefill", books.prefill_joules),
        ("decode", books.decode_joules),
        ("idle_share", books.idle_share_joules),
        ("idle", books.idle_joules),
        ("unattributed", sum(books.unattributed_joules.values())),
    ):
        yield (snapshot.boundary, account), joules


def _unattributed(snapshot: Snapshot) -> Iterator[Sample]:
    for reason, joules in snapshot.meter.books.unattributed_joules.items():
        yield (snapshot.boundary, reason), joules


def _by_class(snapshot: Snapshot) -> Iterator[Sample]:
    for labels, joules in snapshot.meter.class_joules.items():
        for phase, value in zip(PHASES, joules, strict=True):
            key = (labels.model, labels.kind, labels.tenant)
            yield (*key, phase, snapshot.meter.policy), value


def _tokens(snapshot: Snapshot) -> Iterator[Sample]:
    for labels, counts in snapshot.meter.class_tokens.items():
        for kind, count in zip(TOKEN_TYPES, counts, strict=True):
            yield (labels.model, labels.kind, labels.tenant, kind), count


def _policies(snapshot: Snapshot) -> Iterator[Sample]:
    for policy, joules in snapshot.meter.policy_joules.items():
        for phase, value in zip(PHASES, joules, strict=False):
            yield (policy, phase), value


def _stored(snapshot: Snapshot, figure: Callable[[StoreState], float]) -> list[Sample]:
    return [] if snapshot.store is None else [((), float(figure(snapshot.store)))]


def _by_device(values: Iterable[tuple[str, float]], boundary: str) -> list[Sample]:
    return [((boundary, device), value) for device, value in values]


METRICS: dict[str, MetricSpec] = {
    "servewatt_measured_energy_joules_total": MetricSpec(
        "counter",
        "Energy measured by the sensor; ahead of the accounts by the settlement lag.",
        ("boundary", "device"),
        lambda s: _by_device(s.meter.device_joules.items(), s.boundary),
    ),
    "servewatt_energy_joules_total": MetricSpec(
        "counter",
        "Measured energy by account; the accounts sum to the measured energy.",
        ("boundary", "account"),
        _accounts,
    ),
    "servewatt_unattributed_energy_joules_total": MetricSpec(
        "counter",
        "Measured energy that belongs to no request, by reason.",
        ("boundary", "reason"),
        _unattributed,
    ),
    "servewatt_attributed_energy_joules_total": MetricSpec(
        "counter",
        "Energy of requests under the headline policy; idle_share is a phase too.",
        ("model", "kind", "tenant", "phase", "policy"),
        _by_class,
    ),
    "servewatt_policy_energy_joules_total": MetricSpec(
        "counter",
        "Active energy of all requests under every policy, on the same intervals.",
        ("policy", "phase"),
        _policies,
    ),
    "servewatt_device_power_watts": MetricSpec(
        "gauge",
        "Mean power over the last interval between two fresh readings.",
        ("boundary", "device"),
        lambda s: _by_device(s.meter.device_watts.items(), s.boundary),
    ),
    "servewatt_idle_power_watts": MetricSpec(
        "gauge",
        "Loaded idle power: weights resident, nothing running.",
        ("boundary", "source"),
        lambda s: (
            []
            if s.meter.idle_watts is None
            else [((s.boundary, s.meter.idle_source), s.meter.idle_watts)]
        ),
    ),
    "servewatt_books_residual_joules": MetricSpec(
        "gauge",
        "Measured energy minus all accounts; anything but 0 is a defect.",
        (),
        lambda s: _one(s.meter.books.residual_joules if s.sampler else None),
    ),
    "servewatt_settlement_lag_seconds": MetricSpec(
        "gauge",
        "How far settled energy is behind the newest reading.",
        (),
        lambda s: _one(s.meter.unsettled_seconds),
    ),
    "servewatt_energy_counter_period_seconds": MetricSpec(
        "gauge",
        "Median time between two changes of the energy counter.",
        (),
        lambda s: _one(s.meter.counter_period_seconds),
    ),
    "servewatt_energy_counter_power_ratio": MetricSpec(
        "gauge",
        "Energy by the counter over energy by integrated power; about 1 is healthy.",
        (),
        lambda s: _one(s.meter.counter_power_ratio),
    ),
    "servewatt_sensor_up": MetricSpec(
        "gauge",
        "1 while the power source answers.",
        ("source",),
        lambda s: [((s.source,), float(s.sampler.is_up))] if s.sampler else [],
    ),
    "servewatt_sensor_simulated": MetricSpec(
        "gauge",
        "1 when the joules come from a simulator and not from a device.",
        ("source",),
        lambda s: [((s.source,), float(s.sampler.is_simulated))] if s.sampler else [],
    ),
    "servewatt_sensor_samples_total": MetricSpec(
        "counter",
        "Successful reads of the power source.",
        (),
        lambda s: _one(s.sampler.samples if s.sampler else None),
    ),
    "servewatt_sensor_missed_total": MetricSpec(
        "counter",
        "Reads left out because an earlier one took too long.",
        (),
        lambda s: _one(s.sampler.missed if s.sampler else None),
    ),
    "servewatt_sensor_errors_total": MetricSpec(
        "counter",
        "Failed reads of the power source.",
        (),
        lambda s: _one(s.sampler.errors if s.sampler else None),
    ),
    "servewatt_sensor_gaps_total": MetricSpec(
        "counter",
        "Stretches without a usable reading, and counter resets.",
        (),
        lambda s: _one(s.meter.gaps_total),
    ),
    "servewatt_requests_total": MetricSpec(
        "counter",
        "Metered requests that ended, by outcome.",
        ("outcome",),
        lambda s: [((o,), float(n)) for o, n in sorted(s.relay.requests.items())],
    ),
    "servewatt_requests_in_flight": MetricSpec(
        "gauge",
        "Metered requests that have not ended.",
        (),
        lambda s: _one(s.relay.in_flight),
    ),
    "servewatt_settled_requests_total": MetricSpec(
        "counter",
        "Settled requests by how well it is known who ran when.",
        ("quality",),
        lambda s: [((q,), n) for q, n in s.meter.quality_requests.items()],
    ),
    "servewatt_requests_without_energy_total": MetricSpec(
        "counter",
        "Finished requests whose energy is unknown.",
        (),
        lambda s: _one(s.records_without_energy),
    ),
    "servewatt_late_reads_total": MetricSpec(
        "counter",
        "Reads with tokens for time already settled; they count as later.",
        (),
        lambda s: _one(s.meter.late_reads_total),
    ),
    "servewatt_relay_bytes_total": MetricSpec(
        "counter",
        "Bytes of metered replies, as the engine sent them.",
        (),
        lambda s: _one(s.relay.reply_bytes),
    ),
    "servewatt_relay_chunks_total": MetricSpec(
        "counter",
        "Reads from upstream that were passed on.",
        (),
        lambda s: _one(s.relay.chunks),
    ),
    "servewatt_refused_requests_total": MetricSpec(
        "counter",
        "Requests that the proxy answered itself before any upstream, by status.",
        ("status",),
        lambda s: [((str(c),), float(n)) for c, n in sorted(s.relay.refused.items())],
    ),
    "servewatt_upstream_connections": MetricSpec(
        "gauge",
        "Open connections to the engine.",
        (),
        lambda s: _one(s.relay.upstream_open),
    ),
    "servewatt_meter_errors_total": MetricSpec(
        "counter",
        "Defects inside the meter that were kept from the requests.",
        (),
        lambda s: _one(s.relay.meter_errors),
    ),
    "servewatt_store_up": MetricSpec(
        "gauge",
        "1 while the database of records takes them.",
        (),
        lambda s: _stored(s, lambda state: state.is_up),
    ),
    "servewatt_store_queue_records": MetricSpec(
        "gauge",
        "Settled requests that wait to be written.",
        (),
        lambda s: _stored(s, lambda state: state.queue_records),
    ),
    "servewatt_store_written_total": MetricSpec(
        "counter",
        "Settled requests written to the database.",
        (),
        lambda s: _stored(s, lambda state: state.written_total),
    ),
    "servewatt_store_dropped_total": MetricSpec(
        "counter",
        "Settled requests the database never got: no room to wait, or unacceptable.",
        (),
        lambda s: _stored(s, lambda state: state.dropped_total),
    ),
    "servewatt_store_deleted_total": MetricSpec(
        "counter",
        "Records deleted because of their age or number.",
        (),
        lambda s: _stored(s, lambda state: state.deleted_total),
    ),
    "servewatt_event_loop_lag_seconds": MetricSpec(
        "gauge",
        "How late the proxy's own beat was, last time.",
        (),
        lambda s: _one(s.loop_lag_seconds),
    ),
    "servewatt_build_info": MetricSpec(
        "gauge",
        "Version of the proxy; always 1.",
        ("version",),
        lambda s: [((__version__,), 1.0)],
    ),
    "servewatt_tokens_total": MetricSpec(
        "counter",
        "Tokens of settled requests; cached ones are part of the prompt.",
        ("model", "kind", "tenant", "type"),
        _tokens,
    ),
}
