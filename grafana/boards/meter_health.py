"""*Meter health*: whether the joules on the other dashboards can be believed."""

from __future__ import annotations

from grafana.boards.figures import IS_SIMULATED, NO_SENSOR, UP_STATES
from grafana.boards.panel import Board, Panel, Row, Stat
from grafana.boards.query import (
    gained,
    quantile,
    quantiles,
    rate,
    series,
    total,
)

GRADED = "servewatt_graded_requests_total"


def worst(metric: str, by: str) -> str:
    """The largest distance from 0 among series that are alike."""
    return total(f"abs({series(metric)})", by, "max")


METER_HEALTH = Board(
    "servewatt-meter",
    "servewatt: meter health",
    "Books, sensors, settlement, grades, store and relay: can the joules be believed?",
    [
        Row(
            "Now",
            [
                IS_SIMULATED,
                Stat(
                    title="Sensors",
                    unit="none",
                    description="Down if one power source does not answer; requests "
                    "flow either way.",
                    queries={"": total(series("servewatt_sensor_up"), function="min")},
                    states=UP_STATES,
                    empty=NO_SENSOR,
                ),
                Stat(
                    title="Settlement",
                    unit="none",
                    description="Down if measured energy does not reach its accounts "
                    "in time.",
                    queries={
                        "": total(series("servewatt_settlement_up"), function="min")
                    },
                    states=UP_STATES,
                    empty=NO_SENSOR,
                ),
                Stat(
                    title="Store",
                    unit="none",
                    description="Down while the database does not take records.",
                    queries={"": total(series("servewatt_store_up"), function="min")},
                    states=UP_STATES,
                    empty="no store",
                ),
                Stat(
                    title="Residual of the books",
                    unit="joule",
                    description="Measured energy minus all accounts, at its worst: "
                    "more than rounding is a defect.",
                    queries={"": worst("servewatt_books_residual_joules", "")},
                    limits=[(0.001, "red")],
                    empty=NO_SENSOR,
                ),
                Stat(
                    title="Requests without energy",
                    unit="short",
                    description="Requests that ended in the time shown and whose "
                    "energy is not known.",
                    queries={"": gained("servewatt_requests_without_energy_total")},
                    limits=[(0.5, "orange")],
                    empty="no proxy",
                ),
                Stat(
                    title="Defects inside the meter",
                    unit="short",
                    description="Errors in the time shown that were kept from the "
                    "requests.",
                    queries={"": gained("servewatt_meter_errors_total")},
                    limits=[(0.5, "red")],
                    empty="no proxy",
                ),
                Stat(
                    title="Settlement lag, at its worst",
                    unit="s",
                    description="How far settled energy is behind the newest reading.",
                    queries={
                        "": total(
                            series("servewatt_settlement_lag_seconds"), function="max"
                        )
                    },
                    empty=NO_SENSOR,
                ),
            ],
        ),
        Row(
            "Books",
            [
                Panel(
                    title="Residual, over time",
                    unit="joule",
                    description="Measured energy minus all accounts: more than "
                    "rounding is a defect.",
                    queries={
                        "{{instance}} {{engine}}": worst(
                            "servewatt_books_residual_joules", "instance, engine"
                        )
                    },
                    width=8,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Settlement lag",
                    unit="s",
                    description="How far settled energy is behind the newest reading.",
                    queries={
                        "{{instance}} {{engine}}": worst(
                            "servewatt_settlement_lag_seconds", "instance, engine"
                        )
                    },
                    width=8,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Unattributed power",
                    unit="watt",
                    description="Measured energy that belongs to no request, by "
                    "reason.",
                    queries={
                        "{{reason}}": rate(
                            "servewatt_unattributed_energy_joules_total", "reason"
                        )
                    },
                    width=8,
                    stacked=True,
                    empty="none",
                ),
            ],
        ),
        Row(
            "Sensors",
            [
                Panel(
                    title="Counter over integrated power",
                    unit="none",
                    description="About 1 when the energy counter and the power "
                    "readings agree.",
                    queries={
                        "{{instance}} {{engine}}": series(
                            "servewatt_energy_power_ratio"
                        )
                    },
                    width=8,
                    empty="no counter beside the power readings",
                ),
                Panel(
                    title="Sensor trouble",
                    unit="ops",
                    description="Failed and missed reads, gaps, and counters that "
                    "began anew, per second.",
                    queries={
                        name: rate(f"servewatt_sensor_{name}_total")
                        for name in ("errors", "missed", "gaps", "resets")
                    },
                    width=8,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Since the last reading",
                    unit="s",
                    description="How long ago each power source last answered.",
                    queries={
                        "{{instance}} {{source}}": series(
                            "servewatt_sensor_age_seconds"
                        )
                    },
                    width=8,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Readings not believed",
                    unit="ops",
                    description="Figures that no device can give, or that are gone, "
                    "by why.",
                    queries={
                        "{{reason}}": rate(
                            "servewatt_readings_rejected_total", "reason"
                        )
                    },
                    width=8,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Power by boundary",
                    unit="watt",
                    description="Settled energy of each boundary. They overlap: the "
                    "node's contains the others', so lines are compared, never added.",
                    queries={
                        "{{boundary}}": total(
                            "rate(servewatt_energy_joules_total"
                            '{instance=~"$instance",engine=~"$engine"}'
                            "[$__rate_interval])",
                            "boundary",
                        )
                    },
                    width=8,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Share of the node's energy",
                    unit="percentunit",
                    description="Joules inside the boundary over those of the node, "
                    "over the same time since start.",
                    queries={
                        "{{instance}} {{inner}}": series("servewatt_boundary_ratio")
                    },
                    width=8,
                    empty="no sensor of the node",
                ),
                Panel(
                    title="Not measured",
                    unit="percentunit",
                    description="Part of the time in which a boundary had no reading "
                    "to settle with.",
                    queries={
                        "{{instance}} {{engine}}": rate(
                            "servewatt_boundary_gap_seconds_total", "instance, engine"
                        )
                    },
                    width=8,
                    empty=NO_SENSOR,
                ),
            ],
        ),
        Row(
            "Records",
            [
                Panel(
                    title="Records by grade",
                    unit="percentunit",
                    description="Share of settled requests by how far their joules "
                    "can be trusted.",
                    queries={
                        "{{grade}}": f"{rate(GRADED, 'grade')} / ignoring (grade) "
                        f"group_left () ({rate(GRADED)} > 0)"
                    },
                    width=6,
                    stacked=True,
                    maximum=1,
                    empty="no settled request",
                ),
                Panel(
                    title="Why records are not good",
                    unit="reqps",
                    description="Settled requests with each reason; one request may "
                    "have several.",
                    queries={
                        "{{reason}}": rate("servewatt_doubted_requests_total", "reason")
                    },
                    width=6,
                    empty="none is doubted",
                ),
                Panel(
                    title="Mean half width",
                    unit="percentunit",
                    description="Of the 90 % intervals of the newest records, by "
                    "their joules.",
                    queries={
                        "{{instance}} {{engine}}": worst(
                            "servewatt_request_half_width_ratio", "instance, engine"
                        )
                    },
                    width=6,
                    empty="no settled request",
                ),
                Panel(
                    title="Constants not trusted",
                    unit="none",
                    description="1 for the reason why the fitted constants of the "
                    "policy calibrated are not trusted.",
                    queries={
                        "{{engine}} {{reason}}": total(
                            series("servewatt_calibration_doubt"),
                            "engine, reason",
                            "max",
                        )
                        + " > 0"
                    },
                    width=6,
                    empty="trusted, or not fitted",
                ),
            ],
        ),
        Row(
            "Proxy",
            [
                Panel(
                    title="Event loop delay",
                    unit="s",
                    description="How late the proxy's own beats were; streams wait as "
                    "long.",
                    queries=quantiles("servewatt_event_loop_delay_seconds"),
                    width=6,
                    empty="no proxy",
                ),
                Panel(
                    title="Proxy overhead, p99",
                    unit="s",
                    description="What the proxy adds: to a request until the engine's "
                    "connection has it, to a read of a reply until the client's has.",
                    queries={
                        "{{part}}": quantile(
                            0.99, "servewatt_proxy_overhead_seconds", "part"
                        )
                    },
                    width=6,
                    empty="no metered request",
                ),
                Panel(
                    title="Records that wait or were dropped",
                    unit="short",
                    description="Settled requests that wait for the database, and "
                    "those per second that it never got.",
                    queries={
                        "waiting, {{instance}}": series(
                            "servewatt_store_queue_records"
                        ),
                        "dropped, {{instance}}": rate(
                            "servewatt_store_dropped_total", "instance"
                        ),
                    },
                    width=6,
                    empty="no store",
                ),
                Panel(
                    title="Refused requests",
                    unit="reqps",
                    description="Answered by the proxy itself, by why.",
                    queries={
                        "{{status}} {{reason}}": rate(
                            "servewatt_refused_requests_total", "status, reason"
                        )
                    },
                    width=6,
                    empty="none",
                ),
            ],
        ),
    ],
)
