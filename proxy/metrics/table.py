"""All metrics in one table over one snapshot of the meters.

Base units, `_total` on counters, bounded labels only: never a request id, a
URL or an error text. Single requests are linked by exemplars. Counters hold
settled energy only, so they never fall.
"""

from __future__ import annotations

from proxy import __version__
from proxy.metrics.engine_table import ENGINE_METRICS
from proxy.metrics.samples import (
    EngineSnapshot,
    MetricSpec,
    Snapshot,
    one,
    refusals,
    stored,
)

__all__ = ["METRICS", "EngineSnapshot", "MetricSpec", "Snapshot"]

REFUSED = ("wrong_token", "no_token", "host", "site")
CHANGES = ("drain", "resume")
RELOADS = ("used", "refused")

PROXY_METRICS: dict[str, MetricSpec] = {
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
    "servewatt_loop_errors_total": MetricSpec(
        "counter",
        "Errors in a loop of the proxy, which went on after each.",
        ("loop",),
        lambda s: [((name,), float(n)) for name, n in sorted(s.loop_errors.items())],
    ),
    "servewatt_log_dropped_lines_total": MetricSpec(
        "counter",
        "Lines of the log that were dropped because nobody read them.",
        (),
        lambda s: one(float(s.dropped_log_lines)),
    ),
    "servewatt_admin_refused_total": MetricSpec(
        "counter",
        "Requests to the admin API that were refused, by why.",
        ("reason",),
        lambda s: [((why,), float(s.admin_refused.get(why, 0))) for why in REFUSED],
    ),
    "servewatt_admin_changes_total": MetricSpec(
        "counter",
        "Upstreams drained and resumed by the admin API.",
        ("change",),
        lambda s: [((what,), float(s.admin_changes.get(what, 0))) for what in CHANGES],
    ),
    "servewatt_config_reloads_total": MetricSpec(
        "counter",
        "Files of --config read again on SIGHUP: used, or refused for a mistake.",
        ("outcome",),
        lambda s: [((what,), float(s.reloads.get(what, 0))) for what in RELOADS],
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
}

METRICS: dict[str, MetricSpec] = {
    name: metric.of_all() for name, metric in ENGINE_METRICS.items()
} | PROXY_METRICS
