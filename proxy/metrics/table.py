"""Everything Prometheus sees, in one table over one snapshot of the meter.

Base units, `_total` on counters, bounded labels only: never a request id, a
URL or an error text. Single requests are linked by exemplars. Counters hold
settled energy only, so they never fall.
"""

from __future__ import annotations

from proxy import __version__
from proxy.metrics.samples import (
    MetricSpec,
    Snapshot,
    accounts,
    by_boundary,
    by_class,
    by_device,
    by_sensor,
    constants,
    fitted,
    idle_watts,
    one,
    policies,
    ratios,
    refusals,
    stored,
    tokens,
    unattributed,
)

__all__ = ["METRICS", "MetricSpec", "Snapshot"]

METRICS: dict[str, MetricSpec] = {
    "servewatt_measured_energy_joules_total": MetricSpec(
        "counter",
        "Energy measured by the sensor; ahead of the accounts by the settlement lag.",
        ("boundary", "device"),
        by_device(lambda m: m.meter.device_joules),
    ),
    "servewatt_energy_joules_total": MetricSpec(
        "counter",
        "Measured energy by account; the accounts sum to the measured energy.",
        ("boundary", "account"),
        accounts,
    ),
    "servewatt_unattributed_energy_joules_total": MetricSpec(
        "counter",
        "Measured energy that belongs to no request, by reason.",
        ("boundary", "reason"),
        unattributed,
    ),
    "servewatt_attributed_energy_joules_total": MetricSpec(
        "counter",
        "Energy of requests under the headline policy; idle_share is a phase too.",
        ("model", "kind", "tenant", "phase", "policy"),
        by_class,
    ),
    "servewatt_policy_energy_joules_total": MetricSpec(
        "counter",
        "Active energy of all requests under every policy, on the same intervals.",
        ("policy", "phase"),
        policies,
    ),
    "servewatt_device_power_watts": MetricSpec(
        "gauge",
        "Mean power over the last interval between two fresh readings.",
        ("boundary", "device"),
        by_device(lambda m: m.meter.device_watts),
    ),
    "servewatt_idle_power_watts": MetricSpec(
        "gauge",
        "Loaded idle power: weights resident, nothing running.",
        ("boundary", "source"),
        idle_watts,
    ),
    "servewatt_bare_idle_power_watts": MetricSpec(
        "gauge",
        "Power with no weights loaded, as told; the rest of loaded idle is the model.",
        ("boundary",),
        by_boundary(lambda m: m.bare_idle_watts),
    ),
    "servewatt_idle_accelerators_energy_joules_total": MetricSpec(
        "counter",
        "Energy of the host's GPUs that are not the engine's; in no other account.",
        ("boundary", "device"),
        by_device(lambda m: m.outside.device_joules if m.outside else {}),
    ),
    "servewatt_idle_accelerators_power_watts": MetricSpec(
        "gauge",
        "Mean power of the host's GPUs that are not the engine's.",
        ("boundary", "device"),
        by_device(lambda m: m.outside.device_watts if m.outside else {}),
    ),
    "servewatt_boundary_ratio": MetricSpec(
        "gauge",
        "Energy inside one boundary over energy of the one around it, same time.",
        ("inner", "outer"),
        ratios,
    ),
    "servewatt_boundary_gap_seconds_total": MetricSpec(
        "counter",
        "Settled time in which a boundary was not measured.",
        ("boundary",),
        by_boundary(lambda m: m.meter.books.gap_seconds),
    ),
    "servewatt_boundary_requests_without_energy_total": MetricSpec(
        "counter",
        "Records without the joules of this boundary, which is not the headline.",
        ("boundary",),
        lambda s: [((name,), n) for name, n in s.unjoined_records.items()],
    ),
    "servewatt_books_residual_joules": MetricSpec(
        "gauge",
        "Measured energy minus all accounts; anything but 0 is a defect.",
        ("boundary",),
        by_boundary(lambda m: m.meter.books.residual_joules),
    ),
    "servewatt_settlement_lag_seconds": MetricSpec(
        "gauge",
        "How far settled energy is behind the newest reading.",
        ("boundary",),
        by_boundary(lambda m: m.meter.unsettled_seconds),
    ),
    "servewatt_energy_counter_period_seconds": MetricSpec(
        "gauge",
        "Median time between two changes of the energy counter.",
        ("boundary",),
        by_boundary(lambda m: m.meter.counter_period_seconds),
    ),
    "servewatt_energy_counter_power_ratio": MetricSpec(
        "gauge",
        "Energy by the counter over energy by integrated power; about 1 is healthy.",
        ("boundary",),
        by_boundary(lambda m: m.meter.counter_power_ratio),
    ),
    "servewatt_sensor_up": MetricSpec(
        "gauge",
        "1 while the power source answers.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.is_up),
    ),
    "servewatt_sensor_simulated": MetricSpec(
        "gauge",
        "1 when the joules come from a simulator and not from a device.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.is_simulated),
    ),
    "servewatt_engine_gauges_up": MetricSpec(
        "gauge",
        "1 while the engine's own metrics show who runs and who waits.",
        (),
        lambda s: one(s.gauges.is_up if s.gauges and s.gauges.scrapes_total else None),
    ),
    "servewatt_engine_gauge_errors_total": MetricSpec(
        "counter",
        "Scrapes of the engine's own metrics that gave nothing.",
        (),
        lambda s: one(s.gauges.errors_total if s.gauges else None),
    ),
    "servewatt_external_requests": MetricSpec(
        "gauge",
        "Sequences that the engine runs and that did not come through the proxy.",
        (),
        lambda s: one(s.meter.external_requests),
    ),
    "servewatt_sensor_samples_total": MetricSpec(
        "counter",
        "Successful reads of the power source.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.samples),
    ),
    "servewatt_sensor_missed_total": MetricSpec(
        "counter",
        "Reads left out because an earlier one took too long.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.missed),
    ),
    "servewatt_sensor_errors_total": MetricSpec(
        "counter",
        "Failed reads of the power source.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.errors),
    ),
    "servewatt_sensor_gaps_total": MetricSpec(
        "counter",
        "Stretches without a usable reading, and counter resets.",
        ("boundary",),
        by_boundary(lambda m: m.meter.gaps_total),
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
        lambda s: one(s.relay.in_flight),
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
        lambda s: one(s.records_without_energy),
    ),
    "servewatt_late_reads_total": MetricSpec(
        "counter",
        "Reads with tokens for time already settled; they count as later.",
        (),
        lambda s: one(s.meter.late_reads_total),
    ),
    "servewatt_relay_bytes_total": MetricSpec(
        "counter",
        "Bytes of metered replies, as the engine sent them.",
        (),
        lambda s: one(s.relay.reply_bytes),
    ),
    "servewatt_relay_chunks_total": MetricSpec(
        "counter",
        "Reads from upstream that were passed on.",
        (),
        lambda s: one(s.relay.chunks),
    ),
    "servewatt_refused_requests_total": MetricSpec(
        "counter",
        "Requests and connections that the proxy answered itself, by why.",
        ("status", "reason"),
        refusals,
    ),
    "servewatt_client_timeouts_total": MetricSpec(
        "counter",
        "Connections closed because the client was silent, by what was awaited.",
        ("awaited",),
        lambda s: [((w,), float(n)) for w, n in sorted(s.relay.timeouts.items())],
    ),
    "servewatt_client_connections": MetricSpec(
        "gauge",
        "Open connections of clients.",
        (),
        lambda s: one(s.relay.clients_open),
    ),
    "servewatt_upstream_connections": MetricSpec(
        "gauge",
        "Open connections to the engine.",
        (),
        lambda s: one(s.relay.upstream_open),
    ),
    "servewatt_meter_errors_total": MetricSpec(
        "counter",
        "Defects inside the meter that were kept from the requests.",
        (),
        lambda s: one(s.relay.meter_errors),
    ),
    "servewatt_store_up": MetricSpec(
        "gauge",
        "1 while the database of records takes them.",
        (),
        lambda s: stored(s, lambda state: state.is_up),
    ),
    "servewatt_store_queue_records": MetricSpec(
        "gauge",
        "Settled requests that wait to be written.",
        (),
        lambda s: stored(s, lambda state: state.queue_records),
    ),
    "servewatt_store_written_total": MetricSpec(
        "counter",
        "Settled requests written to the database.",
        (),
        lambda s: stored(s, lambda state: state.written_total),
    ),
    "servewatt_store_dropped_total": MetricSpec(
        "counter",
        "Settled requests the database never got: no room to wait, or unacceptable.",
        (),
        lambda s: stored(s, lambda state: state.dropped_total),
    ),
    "servewatt_store_deleted_total": MetricSpec(
        "counter",
        "Records deleted because of their age or number.",
        (),
        lambda s: stored(s, lambda state: state.deleted_total),
    ),
    "servewatt_event_loop_lag_seconds": MetricSpec(
        "gauge",
        "How late the proxy's own beat was, last time.",
        (),
        lambda s: one(s.loop_lag_seconds),
    ),
    "servewatt_build_info": MetricSpec(
        "gauge",
        "Version of the proxy; always 1.",
        ("version",),
        lambda s: [((__version__,), 1.0)],
    ),
    "servewatt_calibration_fitted": MetricSpec(
        "gauge",
        "1 while the policy calibrated uses fitted constants, 0 while those of phase.",
        (),
        fitted,
    ),
    "servewatt_calibration_joules": MetricSpec(
        "gauge",
        "Fitted constants of the cost model: joules per step, per token and so on.",
        ("constant",),
        constants,
    ),
    "servewatt_tokens_total": MetricSpec(
        "counter",
        "Tokens of settled requests; cached ones are part of the prompt.",
        ("model", "kind", "tenant", "type"),
        tokens,
    ),
}
