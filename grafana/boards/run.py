"""*Run*: the load generator's load, latency and energy on one time axis."""

from __future__ import annotations

from grafana.boards.figures import (
    ACCOUNT_COLOURS,
    ENERGY,
    IS_SIMULATED,
    NO_LOAD,
    NO_REQUEST,
    NO_SENSOR,
    answered_joules_per_token,
    answered_joules_per_token_shown,
)
from grafana.boards.panel import Board, Panel, Row, Stat
from grafana.boards.query import (
    CLIENT_PREFIX,
    gained,
    mean_of,
    mean_shown,
    quantiles,
    rate,
    series,
    total,
)

FINISHED = f"{CLIENT_PREFIX}requests_finished_total"

RUN = Board(
    "servewatt-run",
    "servewatt: run",
    "Load, latency, lag, power by account and joules per request on one time axis.",
    [
        Row(
            "Over the time shown",
            [
                IS_SIMULATED,
                Stat(
                    title="Answered",
                    unit="short",
                    description="Requests that the client got its whole answer to.",
                    queries={"": gained(FINISHED, outcome="ok")},
                    empty=NO_LOAD,
                ),
                Stat(
                    title="Not answered",
                    unit="short",
                    description="Requests that were refused, failed, took too long, "
                    "were broken off or never left.",
                    queries={"": gained(FINISHED, outcome="!ok")},
                    empty="none",
                ),
                Stat(
                    title="Energy per answered request",
                    unit="joule",
                    description="Mean, each request's share of idle included. Those "
                    "that were not answered are not in it.",
                    queries={"": mean_shown(ENERGY, outcome="ok")},
                    width=4,
                    empty=NO_REQUEST,
                ),
                Stat(
                    title="Energy per output token",
                    unit="joule",
                    description="Joules of answered requests over their output tokens.",
                    queries={"": answered_joules_per_token_shown()},
                    width=4,
                    empty=NO_REQUEST,
                ),
                Stat(
                    title="Spent on what was not answered",
                    unit="joule",
                    description="Joules of requests that failed or were broken off; "
                    "one that was refused took none.",
                    queries={"": gained(f"{ENERGY}_sum", outcome="!ok")},
                    width=4,
                    empty="none",
                ),
                Stat(
                    title="Energy measured",
                    unit="joule",
                    description="All of it, idle and what belongs to no request too.",
                    queries={"": gained("servewatt_energy_joules_total")},
                    empty=NO_SENSOR,
                ),
            ],
        ),
        Row(
            "Load",
            [
                Panel(
                    title="Asked and achieved rate",
                    unit="reqps",
                    description="The rate that was asked for, that of all sends so "
                    "far, and that of the latest ones.",
                    queries={
                        "asked": total(
                            series(f"{CLIENT_PREFIX}offered_requests_per_second")
                        ),
                        "achieved": total(
                            series(f"{CLIENT_PREFIX}achieved_requests_per_second")
                        ),
                        "of late": rate(f"{CLIENT_PREFIX}requests_sent_total"),
                    },
                    empty=NO_LOAD,
                ),
                Panel(
                    title="Schedule lag",
                    unit="s",
                    description="Send minus intended start: how far the load is from "
                    "its plan.",
                    queries=quantiles(f"{CLIENT_PREFIX}schedule_lag_seconds"),
                    empty=NO_LOAD,
                ),
                Panel(
                    title="In flight",
                    unit="short",
                    description="Requests sent and not finished.",
                    queries={
                        "in flight": total(series(f"{CLIENT_PREFIX}requests_in_flight"))
                    },
                    empty=NO_LOAD,
                ),
                Panel(
                    title="Finished by outcome",
                    unit="reqps",
                    description="Requests that came to an end, per second.",
                    queries={"{{outcome}}": rate(FINISHED, "outcome")},
                    stacked=True,
                    empty=NO_LOAD,
                ),
            ],
        ),
        Row(
            "What the client saw",
            [
                Panel(
                    title="TTFT",
                    unit="s",
                    description="Time to first token since the send.",
                    queries=quantiles(f"{CLIENT_PREFIX}time_to_first_token_seconds"),
                    width=6,
                    empty=NO_LOAD,
                ),
                Panel(
                    title="TTFT from the schedule",
                    unit="s",
                    description="As a user waits who came at the planned time.",
                    queries=quantiles(
                        f"{CLIENT_PREFIX}time_to_first_token_from_schedule_seconds"
                    ),
                    width=6,
                    empty=NO_LOAD,
                ),
                Panel(
                    title="TPOT",
                    unit="s",
                    description="Mean time per token after the first, one value per "
                    "request.",
                    queries=quantiles(f"{CLIENT_PREFIX}time_per_output_token_seconds"),
                    width=6,
                    empty=NO_LOAD,
                ),
                Panel(
                    title="E2E latency",
                    unit="s",
                    description="Last token since the send.",
                    queries=quantiles(f"{CLIENT_PREFIX}end_to_end_latency_seconds"),
                    width=6,
                    empty=NO_LOAD,
                ),
            ],
        ),
        Row(
            "Energy",
            [
                Panel(
                    title="Power by account",
                    unit="watt",
                    description="Settled energy by account. The stack is the measured "
                    "power: prefill and decode belong to requests, the idle share is "
                    "the idle power while they ran, idle is when nobody ran.",
                    queries={
                        "{{account}}": rate("servewatt_energy_joules_total", "account")
                    },
                    stacked=True,
                    colours=ACCOUNT_COLOURS,
                    empty=NO_SENSOR,
                ),
                Panel(
                    title="Energy per answered request, by kind",
                    unit="joule",
                    description="Mean of what was settled lately. Code is mostly "
                    "prefill, conversation mostly decode: never one mean.",
                    queries={"{{kind}}": mean_of(ENERGY, "kind", outcome="ok")},
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="Energy per output token, over time",
                    unit="joule",
                    description="Joules of answered requests over their output tokens.",
                    queries={"J/token": answered_joules_per_token()},
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="Power spent on what was not answered",
                    unit="watt",
                    description="Joules of requests that failed or were broken off, "
                    "as they are settled.",
                    queries={
                        "{{outcome}}": rate(f"{ENERGY}_sum", "outcome", outcome="!ok")
                    },
                    stacked=True,
                    empty="none",
                ),
            ],
        ),
    ],
)
