"""All metrics in one table over one snapshot of the meters.

Base units, `_total` on counters, bounded labels only: never a request id, a
URL or an error text. Single requests are linked by exemplars. Counters hold
settled energy only, so they never fall.
"""

from __future__ import annotations

from proxy import __version__
from proxy.metrics.histograms import (
    DURATION_EDGES,
    FIRST_TOKEN_EDGES,
    JOULE_EDGES,
    TOKEN_EDGES,
    TOKEN_JOULE_EDGES,
    consumed_joules,
    output_token_joules,
    token_seconds,
    ttft_seconds,
)
from proxy.metrics.samples import (
    EngineMetric,
    EngineSnapshot,
    MetricSpec,
    RequestMetric,
    Snapshot,
    TallyMetric,
    accounts,
    by_board,
    by_boundary,
    by_class,
    by_device,
    by_sensor,
    constants,
    doubts,
    ecc_errors,
    fitted,
    idle_watts,
    is_simulated,
    limit_changes,
    one,
    overheads,
    policies,
    ratios,
    recorded,
    refusals,
    rejections,
    relays_up,
    restarts,
    sensor_age,
    slowdowns,
    stored,
    tokens,
    unattributed,
)
from proxy.process.build import build_form
from proxy.relay.counters import TOKEN_EDGES_SECONDS

__all__ = ["METRICS", "EngineSnapshot", "MetricSpec", "Snapshot"]

REFUSED = ("wrong_token", "no_token", "host", "site")
CHANGES = ("drain", "resume")
RELOADS = ("used", "refused")
NOT_RECORDED = ("file", "behind", "defect")

ENGINE_METRICS: dict[str, EngineMetric] = {
    "servewatt_measured_energy_joules_total": EngineMetric(
        "counter",
        "Energy measured by the sensor; ahead of the accounts by the settlement lag.",
        ("boundary", "device"),
        by_device(lambda m: m.meter.device_joules),
    ),
    "servewatt_energy_joules_total": EngineMetric(
        "counter",
        "Measured energy by account; the accounts sum to the measured energy.",
        ("boundary", "account"),
        accounts,
    ),
    "servewatt_unattributed_energy_joules_total": EngineMetric(
        "counter",
        "Measured energy that belongs to no request, by reason.",
        ("boundary", "reason"),
        unattributed,
    ),
    "servewatt_attributed_energy_joules_total": EngineMetric(
        "counter",
        "Energy of requests under the headline policy; idle_share is a phase too.",
        ("model", "kind", "tenant", "phase", "policy"),
        by_class,
    ),
    "servewatt_policy_energy_joules_total": EngineMetric(
        "counter",
        "Active energy of all requests under every policy, on the same intervals.",
        ("policy", "phase"),
        policies,
    ),
    "servewatt_device_power_watts": EngineMetric(
        "gauge",
        "Mean power over the last interval between two fresh readings.",
        ("boundary", "device"),
        by_device(lambda m: m.meter.device_watts),
    ),
    "servewatt_device_sm_clock_hertz": EngineMetric(
        "gauge",
        "Clock of the board's processors, asked once a second.",
        ("boundary", "device"),
        by_board(lambda state: state.sm_clock_hertz),
    ),
    "servewatt_device_memory_clock_hertz": EngineMetric(
        "gauge",
        "Clock of the board's memory.",
        ("boundary", "device"),
        by_board(lambda state: state.memory_clock_hertz),
    ),
    "servewatt_device_temperature_celsius": EngineMetric(
        "gauge",
        "Temperature of the board's chip.",
        ("boundary", "device"),
        by_board(lambda state: state.temperature_celsius),
    ),
    "servewatt_device_throttled_seconds_total": EngineMetric(
        "counter",
        "Time in which a board was slower than its settings allow, by reason.",
        ("boundary", "device", "reason"),
        slowdowns,
    ),
    "servewatt_device_power_limit_watts": EngineMetric(
        "gauge",
        "Power limit that is enforced on the board.",
        ("boundary", "device"),
        by_board(lambda state: state.power_limit_watts),
    ),
    "servewatt_device_power_limit_changes_total": EngineMetric(
        "counter",
        "Times the board's power limit was seen to be another one.",
        ("boundary", "device"),
        limit_changes,
    ),
    "servewatt_device_ecc_errors": EngineMetric(
        "gauge",
        "Errors of the board's memory since its driver was loaded.",
        ("boundary", "device", "kind"),
        ecc_errors,
    ),
    "servewatt_device_last_xid": EngineMetric(
        "gauge",
        "Number of the board's last fault by its driver; 0 where there was none.",
        ("boundary", "device"),
        by_board(lambda state: state.last_xid),
    ),
    "servewatt_device_other_processes": EngineMetric(
        "gauge",
        "Processes on the board beside the engine's, where the driver lists them.",
        ("boundary", "device"),
        by_board(lambda state: state.other_processes),
    ),
    "servewatt_idle_power_watts": EngineMetric(
        "gauge",
        "Loaded idle power: weights resident, nothing running, clocks up once seen so.",
        ("boundary", "source"),
        idle_watts,
    ),
    "servewatt_rest_power_watts": EngineMetric(
        "gauge",
        "Loaded idle power long after the last work, when clocks are down.",
        ("boundary",),
        by_boundary(lambda m: m.meter.rest_watts),
    ),
    "servewatt_bare_idle_power_watts": EngineMetric(
        "gauge",
        "Power with no weights loaded, as configured; the rest of idle is the model's.",
        ("boundary",),
        by_boundary(lambda m: m.bare_idle_watts),
    ),
    "servewatt_idle_accelerators_energy_joules_total": EngineMetric(
        "counter",
        "Energy of the host's GPUs that are not the engine's; in no other account.",
        ("boundary", "device"),
        by_device(lambda m: m.outside.device_joules if m.outside else {}),
    ),
    "servewatt_idle_accelerators_power_watts": EngineMetric(
        "gauge",
        "Mean power of the host's GPUs that are not the engine's.",
        ("boundary", "device"),
        by_device(lambda m: m.outside.device_watts if m.outside else {}),
    ),
    "servewatt_boundary_ratio": EngineMetric(
        "gauge",
        "Energy inside one boundary over energy of the one around it, same time.",
        ("inner", "outer"),
        ratios,
    ),
    "servewatt_boundary_gap_seconds_total": EngineMetric(
        "counter",
        "Settled time in which a boundary was not measured.",
        ("boundary",),
        by_boundary(lambda m: m.meter.books.gap_seconds),
    ),
    "servewatt_boundary_requests_without_energy_total": EngineMetric(
        "counter",
        "Records without the joules of this boundary, which is not the headline.",
        ("boundary",),
        lambda s: [((name,), n) for name, n in s.unjoined_records.items()],
    ),
    "servewatt_books_residual_joules": EngineMetric(
        "gauge",
        "Measured energy minus all accounts; anything but 0 is a defect.",
        ("boundary",),
        by_boundary(lambda m: m.meter.books.residual_joules),
    ),
    "servewatt_settlement_lag_seconds": EngineMetric(
        "gauge",
        "How far settled energy is behind the newest reading.",
        ("boundary",),
        by_boundary(lambda m: m.meter.unsettled_seconds),
    ),
    "servewatt_energy_reading_period_seconds": EngineMetric(
        "gauge",
        "Median time between two changes of the energy counter.",
        ("boundary",),
        by_boundary(lambda m: m.meter.counter_period_seconds),
    ),
    "servewatt_energy_power_ratio": EngineMetric(
        "gauge",
        "Energy by the counter over energy by integrated power; about 1 is healthy.",
        ("boundary",),
        by_boundary(lambda m: m.meter.counter_power_ratio),
    ),
    "servewatt_sensor_up": EngineMetric(
        "gauge",
        "1 while the power source answers.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.is_up),
    ),
    "servewatt_settlement_up": EngineMetric(
        "gauge",
        "1 while measured energy reaches its accounts in time.",
        ("boundary",),
        by_boundary(lambda m: float(m.is_settling)),
    ),
    "servewatt_health_up": EngineMetric(
        "gauge",
        "1 while the engine's health is asked for in time, whatever it answers.",
        (),
        lambda s: one(float(s.is_health_asked)),
    ),
    "servewatt_sensor_simulated": EngineMetric(
        "gauge",
        "1 when the joules come from a simulator and not from a device.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.is_simulated),
    ),
    "servewatt_engine_gauges_up": EngineMetric(
        "gauge",
        "1 while the engine's own metrics show who runs and who waits.",
        (),
        lambda s: one(s.gauges.is_up if s.gauges and s.gauges.scrapes_total else None),
    ),
    "servewatt_engine_scrape_errors_total": EngineMetric(
        "counter",
        "Scrapes of the engine's own metrics that gave nothing.",
        (),
        lambda s: one(s.gauges.errors_total if s.gauges else None),
    ),
    "servewatt_external_requests": EngineMetric(
        "gauge",
        "Sequences that the engine runs and that did not come through the proxy.",
        (),
        lambda s: one(s.meter.external_requests),
    ),
    "servewatt_engine_drafted_tokens_total": EngineMetric(
        "counter",
        "Tokens that the engine drafted by speculation, by its own count.",
        (),
        lambda s: one(s.meter.speculation and s.meter.speculation.drafted),
    ),
    "servewatt_engine_accepted_tokens_total": EngineMetric(
        "counter",
        "Drafted tokens that became output; decode joules by them is what one costs.",
        (),
        lambda s: one(s.meter.speculation and s.meter.speculation.accepted),
    ),
    "servewatt_sensor_samples_total": EngineMetric(
        "counter",
        "Successful reads of the power source.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.samples),
    ),
    "servewatt_sensor_missed_total": EngineMetric(
        "counter",
        "Reads left out because an earlier one took too long.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.missed),
    ),
    "servewatt_sensor_errors_total": EngineMetric(
        "counter",
        "Failed reads of the power source.",
        ("boundary", "source"),
        by_sensor(lambda stats: stats.errors),
    ),
    "servewatt_devices_joined_total": EngineMetric(
        "counter",
        "Devices that came after the first reading, and were good for some seconds.",
        ("boundary",),
        by_boundary(lambda m: m.meter.devices_joined_total),
    ),
    "servewatt_devices_left_total": EngineMetric(
        "counter",
        "Devices that showed no figure for 30 s and are not waited for any more.",
        ("boundary",),
        by_boundary(lambda m: m.meter.devices_left_total),
    ),
    "servewatt_readings_rejected_total": EngineMetric(
        "counter",
        "Figures of the power source that no device can give, or are gone, by why.",
        ("boundary", "source", "reason"),
        rejections,
    ),
    "servewatt_sensor_gaps_total": EngineMetric(
        "counter",
        "Stretches without a usable reading, and counter resets.",
        ("boundary",),
        by_boundary(lambda m: m.meter.gaps_total),
    ),
    "servewatt_sensor_resets_total": EngineMetric(
        "counter",
        "Times the energy counter began anew; the joules around one are in no request.",
        ("boundary",),
        by_boundary(lambda m: m.meter.counter_resets_total),
    ),
    "servewatt_sensor_age_seconds": EngineMetric(
        "gauge",
        "Time since the power source last answered.",
        ("boundary", "source"),
        sensor_age,
    ),
    "servewatt_requests_total": EngineMetric(
        "counter",
        "Metered requests that ended, by outcome.",
        ("outcome",),
        lambda s: [((o,), float(n)) for o, n in sorted(s.relay.requests.items())],
    ),
    "servewatt_requests_in_flight": EngineMetric(
        "gauge",
        "Requests at the engine that have not ended.",
        (),
        lambda s: one(s.in_flight),
    ),
    "servewatt_settled_requests_total": EngineMetric(
        "counter",
        "Settled requests by how well it is known who ran when: the older name of "
        "timing, `exact` is `timed`.",
        ("quality",),
        lambda s: [((q,), n) for q, n in s.meter.quality_requests.items()],
    ),
    "servewatt_doubted_requests_total": EngineMetric(
        "counter",
        "Settled requests whose joules are not good, by each reason of theirs.",
        ("reason",),
        lambda s: [((r,), n) for r, n in s.meter.doubted_requests.items()],
    ),
    "servewatt_graded_requests_total": EngineMetric(
        "counter",
        "Settled requests by how far their joules can be trusted.",
        ("grade",),
        lambda s: [((g,), n) for g, n in s.meter.grade_requests.items()],
    ),
    "servewatt_request_half_width_ratio": EngineMetric(
        "gauge",
        "Mean half width of the 90 % interval of the newest records, by their joules.",
        (),
        lambda s: one(s.meter.half_width_fraction),
    ),
    "servewatt_requests_without_energy_total": EngineMetric(
        "counter",
        "Finished requests whose energy is unknown.",
        (),
        lambda s: one(s.records_without_energy + s.relay.unseen_requests),
    ),
    "servewatt_unseen_requests_total": EngineMetric(
        "counter",
        "Those of them that ended while the meter's process was away, or was another "
        "one than when they came (--relays).",
        (),
        lambda s: one(s.relay.unseen_requests),
    ),
    "servewatt_unseen_reads_total": EngineMetric(
        "counter",
        "Reads of replies left out because the meter's process was behind; the energy "
        "of their requests is unknown (--relays).",
        (),
        lambda s: one(s.relay.unseen_reads),
    ),
    "servewatt_legs_total": EngineMetric(
        "counter",
        "Settled requests that were a half of one on two engines, prefill or decode.",
        ("leg",),
        lambda s: [((leg,), float(n)) for leg, n in sorted(s.legs.items())],
    ),
    "servewatt_leg_energy_joules_total": EngineMetric(
        "counter",
        "Energy of those halves.",
        ("leg",),
        lambda s: [((leg,), joules) for leg, joules in sorted(s.leg_joules.items())],
    ),
    "servewatt_late_reads_total": EngineMetric(
        "counter",
        "Reads with tokens for time already settled; they count as later.",
        (),
        lambda s: one(s.meter.late_reads_total),
    ),
    "servewatt_relay_bytes_total": EngineMetric(
        "counter",
        "Bytes of metered replies, as the engine sent them.",
        (),
        lambda s: one(s.relay.reply_bytes),
    ),
    "servewatt_relay_chunks_total": EngineMetric(
        "counter",
        "Reads from upstream that were passed on.",
        (),
        lambda s: one(s.relay.chunks),
    ),
    "servewatt_upstream_up": EngineMetric(
        "gauge",
        "1 while the engine can be reached, 0 after it could not, until it answers.",
        (),
        lambda s: one(s.is_up),
    ),
    "servewatt_upstream_draining": EngineMetric(
        "gauge",
        "1 while the engine gets no new requests because it is drained by hand.",
        (),
        lambda s: one(s.is_draining),
    ),
    "servewatt_rerouted_requests_total": EngineMetric(
        "counter",
        "Requests sent to a replica because this engine could not be reached.",
        (),
        lambda s: one(s.relay.rerouted),
    ),
    "servewatt_upstream_connections": EngineMetric(
        "gauge",
        "Open connections to the engine.",
        (),
        lambda s: one(s.relay.upstream_open),
    ),
    "servewatt_meter_errors_total": EngineMetric(
        "counter",
        "Defects inside the meter that were kept from the requests.",
        (),
        lambda s: one(s.relay.meter_errors),
    ),
    "servewatt_calibration_fitted": EngineMetric(
        "gauge",
        "1 while the fitted constants are trusted, 0 while servewatt_calibration_doubt "
        "says why not.",
        (),
        fitted,
    ),
    "servewatt_calibration_doubt": EngineMetric(
        "gauge",
        "1 for the reason why the fitted constants are not trusted, 0 for the others.",
        ("reason",),
        doubts,
    ),
    "servewatt_calibration_joules": EngineMetric(
        "gauge",
        "Fitted constants of the cost model: joules per step, per token and so on.",
        ("constant",),
        constants,
    ),
    "servewatt_length_bin_requests_total": EngineMetric(
        "counter",
        "Requests answered in full, of known energy, by the upper ends of the bins "
        "that their lengths are in.",
        ("prompt_bin", "output_bin"),
        lambda s: [(key, float(n)) for key, n in sorted(s.bin_requests.items())],
    ),
    "servewatt_length_bin_energy_joules_total": EngineMetric(
        "counter",
        "Energy of the requests of each bin of lengths.",
        ("prompt_bin", "output_bin"),
        lambda s: sorted(s.bin_joules.items()),
    ),
    "servewatt_tokens_total": EngineMetric(
        "counter",
        "Tokens of settled requests; cached ones are part of the prompt.",
        ("model", "kind", "tenant", "type"),
        tokens,
    ),
}

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
    "servewatt_recording_up": MetricSpec(
        "gauge",
        "1 while the recording of the traffic (--record) can be written.",
        (),
        lambda s: recorded(s, lambda state: one(state.is_up)),
    ),
    "servewatt_recorded_requests_total": MetricSpec(
        "counter",
        "Requests written to the recording.",
        (),
        lambda s: recorded(s, lambda state: one(float(state.written_total))),
    ),
    "servewatt_recording_lost_total": MetricSpec(
        "counter",
        "Requests that are not in the recording, by why: the file could not be "
        "written, they came faster than they could be read, or a defect.",
        ("reason",),
        lambda s: recorded(
            s,
            lambda state: [
                ((why,), float(state.lost_total.get(why, 0))) for why in NOT_RECORDED
            ],
        ),
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
    "servewatt_relay_up": MetricSpec(
        "gauge",
        "1 while the process of this relay is connected to the meter's (--relays).",
        ("relay",),
        relays_up,
    ),
    "servewatt_process_restarts_total": MetricSpec(
        "counter",
        "Times a process of the proxy had ended and was started again (--relays).",
        ("process",),
        restarts,
    ),
    "servewatt_event_loop_lag_seconds": MetricSpec(
        "gauge",
        "How late the proxy's own beat was, last time.",
        (),
        lambda s: one(s.loop_lag_seconds),
    ),
    "servewatt_build_info": MetricSpec(
        "gauge",
        "Version and build (pure or compiled) of the proxy, and whether any of its "
        "joules are simulated; always 1.",
        ("version", "build", "simulated"),
        lambda s: [((__version__, build_form(), is_simulated(s)), 1.0)],
    ),
    # `instance` is the label that Prometheus itself gives to what it scrapes
    "servewatt_proxy_info": MetricSpec(
        "gauge",
        "Name of the proxy, as its records have it, and of its host; always 1.",
        ("name", "host"),
        lambda s: [((s.instance, s.host), 1.0)],
    ),
}

REQUEST_METRICS: dict[str, RequestMetric] = {
    "servewatt_request_energy_joules": RequestMetric(
        "Energy of one request for which anything was computed, idle share included.",
        JOULE_EDGES,
        consumed_joules,
    ),
    "servewatt_output_token_energy_joules": RequestMetric(
        "Energy of one request over its output tokens.",
        TOKEN_JOULE_EDGES,
        output_token_joules,
    ),
    "servewatt_request_ttft_seconds": RequestMetric(
        "From the request's arrival at the proxy to its first token.",
        FIRST_TOKEN_EDGES,
        ttft_seconds,
    ),
    "servewatt_request_time_per_output_token_seconds": RequestMetric(
        "Mean time per output token after the first, one value per request (TPOT).",
        TOKEN_EDGES_SECONDS,
        token_seconds,
    ),
    "servewatt_request_duration_seconds": RequestMetric(
        "From the request's arrival at the proxy to its last byte (E2E).",
        DURATION_EDGES,
        lambda r: r.finished_seconds - r.arrived_seconds,
    ),
    "servewatt_request_prompt_tokens": RequestMetric(
        "Prompt tokens of one request, cached ones included.",
        TOKEN_EDGES,
        lambda r: r.prompt_tokens,
    ),
    "servewatt_request_output_tokens": RequestMetric(
        "Output tokens of one request; the sum over a class and outcome is its tokens.",
        TOKEN_EDGES,
        lambda r: r.output_tokens,
    ),
}

TALLY_METRICS: dict[str, TallyMetric] = {
    "servewatt_inter_token_latency_seconds": TallyMetric(
        "Time between tokens of one sequence, those of one read sharing it (ITL).",
        ("engine",),
        lambda s: [((e.engine,), e.relay.token_seconds) for e in s.engines],
    ),
    "servewatt_proxy_overhead_seconds": TallyMetric(
        "What the proxy adds: to a request until the engine's connection has it, to a "
        "read of a reply until the client's has.",
        ("engine", "part"),
        overheads,
    ),
    "servewatt_event_loop_delay_seconds": TallyMetric(
        "How late each beat of the proxy was, twenty a second; streams wait as long.",
        (),
        lambda s: [((), s.loop_delay_seconds)],
    ),
}

METRICS: dict[str, MetricSpec | RequestMetric | TallyMetric] = {
    **{name: metric.of_all() for name, metric in ENGINE_METRICS.items()},
    **PROXY_METRICS,
    **REQUEST_METRICS,
    **TALLY_METRICS,
}
"""Everything on the page, in its order."""
