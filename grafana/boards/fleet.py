"""*Fleet*: all proxies, engines, models, tenants and GPUs, and what they cost."""

from __future__ import annotations

from grafana.boards.figures import (
    ENERGY,
    IS_SIMULATED,
    JOULES_PER_KWH,
    NO_BOARD,
    NO_REQUEST,
    NO_SENSOR,
    UP_STATES,
    answered_joules_per_token_shown,
)
from grafana.boards.panel import Board, Panel, Row, Stat
from grafana.boards.query import (
    gained,
    mean_of,
    mean_shown,
    rate,
    ratio,
    series,
    total,
)

MEASURED = "servewatt_energy_joules_total"
ATTRIBUTED = "servewatt_attributed_energy_joules_total"
PUE = "servewatt:pue:ratio"
PRICE = "servewatt:electricity_price:per_kwh"
GRAMS = "servewatt:grid_intensity:grams_per_kwh"
NO_CONSTANTS = "no energy, or no rules of constants"


def times_constants(figure: str, *constants: str) -> str:
    """The figure, which has no labels, times recorded constants, which have none."""
    return " * on () ".join((figure, *constants))


def kwh(joules: str) -> str:
    """Joules as the electricity bill has them."""
    return f"{joules} / {JOULES_PER_KWH}"


FLEET = Board(
    "servewatt-fleet",
    "servewatt: fleet",
    "Engines, models, tenants and GPUs: energy, idle, cost, CO2 and who takes most.",
    [
        Row(
            "Over the time shown",
            [
                IS_SIMULATED,
                Stat(
                    title="Engines up",
                    unit="short",
                    description="Engines that can be reached now.",
                    queries={"": total(series("servewatt_upstream_up"))},
                    empty="no proxy",
                ),
                Stat(
                    title="Energy",
                    unit="kwatth",
                    description="All that was measured, idle included; without PUE.",
                    queries={"": kwh(gained(MEASURED))},
                    empty=NO_SENSOR,
                ),
                Stat(
                    title="Cost",
                    unit="none",
                    description="Energy times PUE times the price that "
                    "grafana/rules/servewatt-constants.yaml has now, in its currency.",
                    queries={"": times_constants(kwh(gained(MEASURED)), PUE, PRICE)},
                    empty=NO_CONSTANTS,
                ),
                Stat(
                    title="CO2",
                    unit="massg",
                    description="Energy times PUE times the grid's intensity that "
                    "grafana/rules/servewatt-constants.yaml has now.",
                    queries={"": times_constants(kwh(gained(MEASURED)), PUE, GRAMS)},
                    empty=NO_CONSTANTS,
                ),
                Stat(
                    title="Idle",
                    unit="percentunit",
                    description="Share of the measured energy while no request ran.",
                    queries={
                        "": ratio(gained(MEASURED, account="idle"), gained(MEASURED))
                    },
                    empty=NO_SENSOR,
                ),
                Stat(
                    title="Per answered request",
                    unit="joule",
                    description="Mean, each request's share of idle included.",
                    queries={"": mean_shown(ENERGY, outcome="ok")},
                    empty=NO_REQUEST,
                ),
                Stat(
                    title="Per output token",
                    unit="joule",
                    description="Joules of answered requests over their output tokens.",
                    queries={"": answered_joules_per_token_shown()},
                    empty=NO_REQUEST,
                ),
            ],
        ),
        Row(
            "Who takes it, over the time shown",
            [
                Panel(
                    title="Top consumers",
                    unit="short",
                    description="Energy of requests by model and tenant, whatever "
                    "became of them; means are of answered ones.",
                    queries={
                        "Energy": kwh(gained(ATTRIBUTED, "model, tenant")),
                        "Answered": gained(
                            f"{ENERGY}_count", "model, tenant", outcome="ok"
                        ),
                        "Mean energy": mean_shown(
                            ENERGY, "model, tenant", outcome="ok"
                        ),
                        "Per output token": answered_joules_per_token_shown(
                            "model, tenant"
                        ),
                    },
                    kind="table",
                    labels={"model": "Model", "tenant": "Tenant"},
                    units={
                        "Energy": "kwatth",
                        "Mean energy": "joule",
                        "Per output token": "joule",
                    },
                    sort_by="Energy",
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="Engines",
                    unit="short",
                    description="Energy of each engine's boards, the part of it while "
                    "no request ran, and answered requests.",
                    queries={
                        "Energy": kwh(gained(MEASURED, "instance, engine")),
                        "Idle": ratio(
                            gained(MEASURED, "instance, engine", account="idle"),
                            gained(MEASURED, "instance, engine"),
                        ),
                        "Answered": gained(
                            f"{ENERGY}_count", "instance, engine", outcome="ok"
                        ),
                        "Mean energy": mean_shown(
                            ENERGY, "instance, engine", outcome="ok"
                        ),
                    },
                    kind="table",
                    labels={"instance": "Proxy", "engine": "Engine"},
                    units={
                        "Energy": "kwatth",
                        "Idle": "percentunit",
                        "Mean energy": "joule",
                    },
                    sort_by="Energy",
                    empty=NO_SENSOR,
                ),
            ],
        ),
        Row(
            "Over time",
            [
                Panel(
                    title="Power by engine",
                    unit="watt",
                    description="Settled energy of each engine's own boards.",
                    queries={
                        "{{instance}} {{engine}}": rate(MEASURED, "instance, engine")
                    },
                    stacked=True,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Power by model",
                    unit="watt",
                    description="Settled energy of requests, their share of idle "
                    "included.",
                    queries={"{{model}}": rate(ATTRIBUTED, "model")},
                    stacked=True,
                    empty="no settled request",
                ),
                Panel(
                    title="Power by tenant",
                    unit="watt",
                    description="Settled energy of requests, their share of idle "
                    "included.",
                    queries={"{{tenant}}": rate(ATTRIBUTED, "tenant")},
                    stacked=True,
                    empty="no settled request",
                ),
                Panel(
                    title="Energy per answered request, by engine",
                    unit="joule",
                    description="Mean of what was settled lately.",
                    queries={
                        "{{instance}} {{engine}}": mean_of(
                            ENERGY, "instance, engine", outcome="ok"
                        )
                    },
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="Idle over time",
                    unit="percentunit",
                    description="Share of each engine's energy while no request ran.",
                    queries={
                        "{{instance}} {{engine}}": ratio(
                            rate(MEASURED, "instance, engine", account="idle"),
                            rate(MEASURED, "instance, engine"),
                        )
                    },
                    maximum=1,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="In flight by engine",
                    unit="short",
                    description="Requests at each engine that have not ended.",
                    queries={
                        "{{instance}} {{engine}}": series(
                            "servewatt_requests_in_flight"
                        )
                    },
                    empty="no proxy",
                ),
                Panel(
                    title="Engines that answer",
                    unit="none",
                    description="1 while an engine can be reached; its replicas take "
                    "over while not.",
                    queries={
                        "{{instance}} {{engine}}": series("servewatt_upstream_up")
                    },
                    states=UP_STATES,
                    empty="no proxy",
                ),
            ],
        ),
        Row(
            "GPUs",
            [
                Panel(
                    title="Power by board",
                    unit="watt",
                    description="Mean power of each board between fresh readings.",
                    queries={
                        "{{instance}} {{device}}": series(
                            "servewatt_device_power_watts"
                        )
                    },
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Idle power",
                    unit="watt",
                    description="Loaded idle, of which bare idle would be there "
                    "without the model; and what the host's other GPUs draw.",
                    queries={
                        "loaded, {{instance}} {{engine}}": series(
                            "servewatt_idle_power_watts"
                        ),
                        "bare, {{instance}} {{engine}}": series(
                            "servewatt_bare_idle_power_watts"
                        ),
                        "not the engine's, {{instance}} {{device}}": series(
                            "servewatt_idle_accelerators_power_watts"
                        ),
                    },
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="SM clock",
                    unit="hertz",
                    description="Clock of each board's processors.",
                    queries={
                        "{{instance}} {{device}}": series(
                            "servewatt_device_sm_clock_hertz"
                        )
                    },
                    width=6,
                    empty=NO_BOARD,
                ),
                Panel(
                    title="Temperature",
                    unit="celsius",
                    description="Temperature of each board's chip.",
                    queries={
                        "{{instance}} {{device}}": series(
                            "servewatt_device_temperature_celsius"
                        )
                    },
                    width=6,
                    empty=NO_BOARD,
                ),
                Panel(
                    title="Throttled",
                    unit="percentunit",
                    description="Part of the time in which a board was slower than "
                    "its settings allow, by reason; reasons come together.",
                    queries={
                        "{{instance}} {{device}} {{reason}}": rate(
                            "servewatt_device_throttled_seconds_total",
                            "instance, device, reason",
                        )
                    },
                    width=6,
                    empty=NO_BOARD,
                ),
                Panel(
                    title="Processes beside the engine",
                    unit="none",
                    description="Other processes on a board: their joules are among "
                    "the requests'.",
                    queries={
                        "{{instance}} {{device}}": series(
                            "servewatt_device_other_processes"
                        )
                    },
                    width=6,
                    empty=NO_BOARD,
                ),
            ],
        ),
    ],
    span="now-24h",
)
