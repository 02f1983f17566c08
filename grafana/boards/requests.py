"""*Requests*: what a request costs, and which ones cost most.

Answered requests are apart from all others: a refused one costs nothing, and one that
was broken off cost something and gave nothing, so no figure is over both.
"""

from __future__ import annotations

from collections.abc import Mapping

from grafana.boards.figures import (
    DURATION,
    ENERGY,
    NO_LOAD,
    NO_REQUEST,
    TPOT,
    TTFT,
    answered_joules_per_token_shown,
)
from grafana.boards.panel import Board, Panel, Row, Stat
from grafana.boards.query import (
    CLIENT_PREFIX,
    gained,
    mean_shown,
    quantile,
    quantile_shown,
    quantiles,
    rate,
    ratio,
)

COUNT = f"{ENERGY}_count"
BIN_REQUESTS = "servewatt_length_bin_requests_total"
BIN_JOULES = "servewatt_length_bin_energy_joules_total"
LENGTHS = "prompt_bin, output_bin"
E2E = f"{CLIENT_PREFIX}end_to_end_latency_seconds"


def figure(title: str, description: str, query: str, unit: str = "joule") -> Panel:
    """One figure over the time shown."""
    return Stat(
        title=title,
        unit=unit,
        description=description,
        queries={"": query},
        width=4,
        empty=NO_REQUEST,
    )


def compared(title: str, description: str, by: Mapping[str, str]) -> Panel:
    """A table of answered requests by one or two labels."""
    labels = ", ".join(by)
    return Panel(
        title=title,
        unit="short",
        description=description,
        queries={
            "Requests": gained(COUNT, labels, outcome="ok"),
            "Mean energy": mean_shown(ENERGY, labels, outcome="ok"),
            "Median energy": quantile_shown(0.5, ENERGY, labels, outcome="ok"),
            "Per output token": answered_joules_per_token_shown(labels),
            "Median TTFT": quantile_shown(0.5, TTFT, labels, outcome="ok"),
        },
        kind="table",
        labels=by,
        units={
            "Mean energy": "joule",
            "Median energy": "joule",
            "Per output token": "joule",
            "Median TTFT": "s",
        },
        sort_by="Requests",
        empty=NO_REQUEST,
    )


REQUESTS = Board(
    "servewatt-requests",
    "servewatt: requests",
    "Distributions of energy and latency, outliers, and what was not answered.",
    [
        Row(
            "Answered requests, over the time shown",
            [
                figure(
                    "Answered",
                    "Settled requests that were answered and whose energy is known.",
                    gained(COUNT, outcome="ok"),
                    unit="short",
                ),
                figure(
                    "Mean energy",
                    "Each request's share of idle included.",
                    mean_shown(ENERGY, outcome="ok"),
                ),
                figure(
                    "p50",
                    "Half of the requests took less; exact to its bucket.",
                    quantile_shown(0.5, ENERGY, outcome="ok"),
                ),
                figure(
                    "p90",
                    "One in ten took more; exact to its bucket.",
                    quantile_shown(0.9, ENERGY, outcome="ok"),
                ),
                figure(
                    "p99",
                    "One in a hundred took more; exact to its bucket.",
                    quantile_shown(0.99, ENERGY, outcome="ok"),
                ),
                figure(
                    "Energy per output token",
                    "Joules of answered requests over their output tokens.",
                    answered_joules_per_token_shown(),
                ),
            ],
        ),
        Row(
            "Distribution and outliers",
            [
                Panel(
                    title="Energy per answered request",
                    unit="joule",
                    description="Percentiles of what was settled lately. Each diamond "
                    "is one request: point at an outlier for its id and its record.",
                    queries=quantiles(ENERGY, outcome="ok"),
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="Answered requests by energy, over time",
                    unit="joule",
                    description="Answered requests per second in each bucket.",
                    queries={"{{le}}": rate(f"{ENERGY}_bucket", "le", outcome="ok")},
                    kind="heatmap",
                    empty=NO_REQUEST,
                ),
            ],
        ),
        Row(
            "Answered requests apart",
            [
                compared(
                    "By kind",
                    "Code is mostly prefill, conversation mostly decode.",
                    {"kind": "Kind"},
                ),
                compared(
                    "By model and engine",
                    "The same model may cost differently on two engines.",
                    {"model": "Model", "engine": "Engine"},
                ),
                Panel(
                    title="By length",
                    unit="short",
                    description="Answered requests by the upper ends of the bins, in "
                    "tokens, that their prompt and output are in.",
                    queries={
                        "Requests": gained(BIN_REQUESTS, LENGTHS),
                        "Mean energy": ratio(
                            gained(BIN_JOULES, LENGTHS), gained(BIN_REQUESTS, LENGTHS)
                        ),
                    },
                    kind="table",
                    labels={"prompt_bin": "Prompt up to", "output_bin": "Output up to"},
                    units={"Mean energy": "joule"},
                    sort_by="Requests",
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="By turn",
                    unit="short",
                    description="Answered requests by their turn in the session: later "
                    "ones have more to read, and more of it cached.",
                    queries={
                        "Requests": gained(f"{E2E}_count", "turn"),
                        "Median TTFT": quantile_shown(
                            0.5, f"{CLIENT_PREFIX}time_to_first_token_seconds", "turn"
                        ),
                        "Median E2E": quantile_shown(0.5, E2E, "turn"),
                        "Mean E2E": mean_shown(E2E, "turn"),
                    },
                    kind="table",
                    labels={"turn": "Turn"},
                    units={"Median TTFT": "s", "Median E2E": "s", "Mean E2E": "s"},
                    empty=NO_LOAD,
                ),
                Panel(
                    title="Median energy by kind, over time",
                    unit="joule",
                    description="Median of answered requests, exact to its bucket.",
                    queries={"{{kind}}": quantile(0.5, ENERGY, "kind", outcome="ok")},
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="Tokens",
                    unit="short",
                    description="Tokens per second of settled requests, whatever "
                    "became of them; cached ones are prompt tokens too.",
                    queries={"{{type}}": rate("servewatt_tokens_total", "type")},
                    empty="no settled request",
                ),
            ],
        ),
        Row(
            "Not answered",
            [
                Panel(
                    title="Requests by outcome",
                    unit="short",
                    description="Metered requests that ended in the time shown.",
                    queries={
                        "{{outcome}}": gained("servewatt_requests_total", "outcome")
                    },
                    kind="bargauge",
                    width=6,
                    empty="no request",
                ),
                Panel(
                    title="Refused by the proxy itself",
                    unit="short",
                    description="By status and reason; no engine saw them, and none "
                    "of their energy is anywhere.",
                    queries={
                        "{{status}} {{reason}}": gained(
                            "servewatt_refused_requests_total", "status, reason"
                        )
                    },
                    kind="bargauge",
                    width=6,
                    empty="none",
                ),
                Panel(
                    title="Energy of what was not answered",
                    unit="joule",
                    description="Joules of requests that failed or were broken off.",
                    queries={
                        "{{outcome}}": gained(f"{ENERGY}_sum", "outcome", outcome="!ok")
                    },
                    kind="bargauge",
                    width=6,
                    empty="none",
                ),
                Panel(
                    title="Mean energy of what was not answered",
                    unit="joule",
                    description="Over those for which something was computed: a "
                    "refused request has no energy, and does not make the mean less.",
                    queries={
                        "{{outcome}}": mean_shown(ENERGY, "outcome", outcome="!ok")
                    },
                    kind="bargauge",
                    width=6,
                    empty="none",
                ),
            ],
        ),
        Row(
            "Latency of answered requests, at the proxy",
            [
                Panel(
                    title="TTFT",
                    unit="s",
                    description="From arrival at the proxy to the first token.",
                    queries=quantiles(TTFT, outcome="ok"),
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="TPOT",
                    unit="s",
                    description="Mean time per token after the first, one value per "
                    "request.",
                    queries=quantiles(TPOT, outcome="ok"),
                    empty=NO_REQUEST,
                ),
                Panel(
                    title="ITL",
                    unit="s",
                    description="Time between tokens of one sequence, whatever became "
                    "of its request.",
                    queries=quantiles("servewatt_inter_token_latency_seconds"),
                    empty="no token",
                ),
                Panel(
                    title="E2E latency",
                    unit="s",
                    description="From arrival at the proxy to the last byte.",
                    queries=quantiles(DURATION, outcome="ok"),
                    empty=NO_REQUEST,
                ),
            ],
        ),
    ],
)
