"""Every query of every panel, asked of a real Prometheus and compared with the truth.

The truth is what the runs and the proxies say by themselves: summary.json, the lines of
requests.jsonl, the records and accounts of the admin API. Two acts, one proxy alone and
three together (tests/support/watched_runs.py), have refused, broken, abandoned and
unfinished requests in them, and a figure that one of these has changed is off by more
than the 1 % that is allowed. A panel without a claim here fails as well.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from grafana.boards import BOARDS
from grafana.boards.panel import ANCHORS, RUNS, Panel, is_over_range
from grafana.boards.query import RECENT, SHOWN, gained
from grafana.boards.requests import REQUESTS
from grafana.boards.run import RUN
from loadgen.run.exporter import LATENCIES
from proxy.metrics.histograms import OUTPUT_BINS, PROMPT_BINS, length_bin
from proxy.metrics.table import REQUEST_METRICS
from tests.support.children import get
from tests.support.paths import ROOT
from tests.support.prometheus import ask
from tests.support.watched_runs import (
    ACCOUNTS,
    Act,
    Proxy,
    Row,
    Watched,
    accounts,
    by,
    watched,
)

pytestmark = pytest.mark.prometheus

PUE, PRICE, GRAMS = 1.56, 0.30, 436.0
"""As grafana/rules/servewatt-constants.yaml has them."""
JOULES_PER_KWH = 3.6e6
EXACT = 0.01
"""What a figure may be off, as a part of it."""
RULE_LAG_SECONDS = 10.0
"""A recorded figure is of a scrape of at most so long ago: two scrapes and two rounds
of rules, on a machine that is late with both."""
Key = tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """What is known of an act, for the proxies in view."""

    act: Act
    proxies: tuple[Proxy, ...]

    @property
    def seconds(self) -> float:
        """From its first scrape to its last."""
        return self.act.end - self.act.start

    @property
    def rows(self) -> list[Row]:
        """Requests of the runs."""
        return [
            row | {"instance": proxy.instance, "tenant": proxy.tenant}
            for proxy in self.proxies
            for row in self.act.rows.get(proxy.instance, [])
        ]

    @property
    def ok(self) -> list[Row]:
        """Requests of the runs that were answered."""
        return [row for row in self.rows if row["outcome"] == "ok"]

    @property
    def records(self) -> list[Row]:
        """Requests that the proxies settled, from whomever."""
        return [
            record | {"instance": proxy.instance}
            for proxy in self.proxies
            for record in self.act.records[proxy.instance]
        ]

    @property
    def answered(self) -> list[Row]:
        """Records of answered requests."""
        return [record for record in self.records if record["outcome"] == "ok"]

    @property
    def spent(self) -> list[Row]:
        """Records of what was not answered and took something."""
        return [
            record
            for record in self.records
            if record["outcome"] != "ok" and joules(record) > 0
        ]

    @property
    def summaries(self) -> list[Row]:
        """summary.json of each run."""
        return [
            self.act.summaries[proxy.instance]
            for proxy in self.proxies
            if proxy.instance in self.act.summaries
        ]

    def booked(self, account: str) -> dict[Key, float]:
        """Joules of an account in the act, by instance."""
        return {
            (proxy.instance,): accounts(closing)[account] - accounts(opening)[account]
            for proxy in self.proxies
            for opening, closing in [self.act.books[proxy.instance]]
        }

    def measured(self) -> float:
        """All joules of the act."""
        return sum(sum(self.booked(account).values()) for account in ACCOUNTS)

    def state(self, path: str) -> dict[str, Row]:
        """What each proxy's admin API says now."""
        return {
            proxy.instance: get(proxy.admin + path).json() for proxy in self.proxies
        }


def joules(request: Row) -> float:
    energy = request["energy"]
    return float(energy["energy_joules"]) if energy else 0.0


# -- claims --------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What the panel must show, by the labels it shows them with."""

    by_label: Mapping[Key, float]
    slack: float = 0.0
    """Absolute, beside the 1 %."""
    is_rate: bool = False
    """The totals of the act: the panel has them per second."""
    zeros: bool = True
    """Series that are 0 may be there beside."""


@dataclass(frozen=True)
class Quantiles:
    """The values whose quantile must be in the bucket where theirs is."""

    by_label: Mapping[Key, list[float]]
    edges: tuple[float, ...]


@dataclass(frozen=True)
class Between:
    """Bounds for every series: what no run tells, but what cannot be anything.

    Wide where a busy machine delays what is simulated, asked and scraped.
    """

    low: float
    high: float
    empty: bool = False
    """There may be none."""


Claim = Figures | Quantiles | Between
Claims = Callable[[Known], Claim]


def one(value: float, slack: float = 0.0) -> Figures:
    return Figures({(): value}, slack)


def counted(key: Callable[[Row], Key], rows: Iterable[Row]) -> dict[Key, float]:
    return dict(Counter(key(row) for row in rows))


def summed(
    value: Callable[[Row], float], rows: Iterable[Row], *names: str
) -> dict[Key, float]:
    return {
        key: sum(map(value, group)) for key, group in by(list(rows), *names).items()
    }


def over(above: Mapping[Key, float], below: Mapping[Key, float]) -> dict[Key, float]:
    return {key: value / below[key] for key, value in above.items() if below.get(key)}


def means(rows: Iterable[Row], *names: str) -> dict[Key, float]:
    groups = by(list(rows), *names)
    return {key: sum(map(joules, group)) / len(group) for key, group in groups.items()}


def per_token(rows: Iterable[Row], *names: str) -> dict[Key, float]:
    rows = list(rows)
    tokens = summed(lambda row: row["output_tokens"], rows, *names)
    return over(summed(joules, rows, *names), tokens)


def grouped(
    value: Callable[[Row], float | None], rows: Iterable[Row], *names: str
) -> dict[Key, list[float]]:
    found = {
        key: [figure for row in group if (figure := value(row)) is not None]
        for key, group in by(list(rows), *names).items()
    }
    return {key: values for key, values in found.items() if values}


ENERGY_EDGES = REQUEST_METRICS["servewatt_request_energy_joules"].edges
TTFT_EDGES = REQUEST_METRICS["servewatt_request_ttft_seconds"].edges
DURATION_EDGES = REQUEST_METRICS["servewatt_request_duration_seconds"].edges
TPOT_EDGES = REQUEST_METRICS["servewatt_request_time_per_output_token_seconds"].edges


def proxy_ttft(record: Row) -> float | None:
    if record["first_token_unix_seconds"] is None:
        return None
    return float(record["first_token_unix_seconds"] - record["arrived_unix_seconds"])


def proxy_tpot(record: Row) -> float | None:
    if (record["output_tokens"] or 0) < 2:
        return None
    took = record["last_token_unix_seconds"] - record["first_token_unix_seconds"]
    return float(took / (record["output_tokens"] - 1))


def proxy_duration(record: Row) -> float:
    return float(record["finished_unix_seconds"] - record["arrived_unix_seconds"])


def client_ttft(row: Row) -> float | None:
    if row["first_token_seconds"] is None:
        return None
    return float(row["first_token_seconds"] - row["sent_seconds"])


def client_ttft_from_schedule(row: Row) -> float | None:
    if row["first_token_seconds"] is None:
        return None
    return float(row["first_token_seconds"] - row["planned_seconds"])


def client_tpot(row: Row) -> float | None:
    if (row["output_tokens"] or 0) < 2:
        return None
    took = row["last_token_seconds"] - row["first_token_seconds"]
    return float(took / (row["output_tokens"] - 1))


def client_e2e(row: Row) -> float:
    return float(row["last_token_seconds"] - row["sent_seconds"])


def lag(row: Row) -> float | None:
    if row["sent_seconds"] is None:
        return None
    return max(float(row["sent_seconds"] - row["planned_seconds"]), 0.0)


def client(name: str, value: Callable[[Row], float | None], of_all: bool) -> Claims:
    """Quantiles of a figure of the load generator's."""
    edges = LATENCIES[name].edges

    def claimed(known: Known) -> Quantiles:
        rows = known.rows if of_all else known.ok
        return Quantiles(grouped(value, rows), edges)

    return claimed


def at_proxy(
    value: Callable[[Row], float | None], edges: tuple[float, ...], *names: str
) -> Claims:
    """Quantiles of a figure of answered requests, by their records."""
    return lambda known: Quantiles(grouped(value, known.answered, *names), edges)


def three(claims: Claims) -> dict[str, Claims]:
    return dict.fromkeys(("p50", "p90", "p99"), claims)


def mean_of_runs(known: Known) -> Figures:
    """The runs' own mean, weighed by their answered requests."""
    blocks = [summary["energy"]["joules_per_request"] for summary in known.summaries]
    total = sum(block["mean"] * block["n"] for block in blocks)
    return one(total / sum(block["n"] for block in blocks))


def per_token_of_runs(known: Known) -> Figures:
    """The runs' own J per output token, weighed by their output tokens."""
    pairs = [
        (summary["energy"]["joules_per_output_token"], summary["total_output_tokens"])
        for summary in known.summaries
    ]
    tokens = sum(count for _, count in pairs)
    return one(sum(each * count for each, count in pairs) / tokens)


def completed(known: Known) -> Figures:
    return one(sum(summary["completed"] for summary in known.summaries))


def outsiders(known: Known) -> float:
    """Joules of abandoned requests, which are no run's."""
    own = {row["request_id"] for row in known.rows}
    return sum(joules(r) for r in known.records if r["request_id"] not in own)


def failed_joules(known: Known) -> Figures:
    of_runs = sum(s["energy"]["failed_request_joules"] for s in known.summaries)
    return one(of_runs + outsiders(known))


def measured(known: Known) -> Figures:
    return one(known.measured())


def times(claims: Callable[[Known], Figures], factor: float) -> Claims:
    def scaled(known: Known) -> Figures:
        claim = claims(known)
        figures = {key: value * factor for key, value in claim.by_label.items()}
        return Figures(figures, claim.slack * factor)

    return scaled


def idle_share(known: Known, *, by_instance: bool) -> Figures:
    """Idle joules over all."""
    idle = known.booked("idle")
    every = {
        key: sum(known.booked(account)[key] for account in ACCOUNTS) for key in idle
    }
    if not by_instance:
        idle, every = {(): sum(idle.values())}, {(): sum(every.values())}
    return Figures(over(idle, every))


def by_engine(figures: Mapping[Key, float]) -> dict[Key, float]:
    """By instance and engine: each proxy has one, called after its dialect."""
    return {(*key, "vllm"): value for key, value in figures.items()}


def instance_energy(known: Known) -> dict[Key, float]:
    return {
        key: sum(known.booked(account)[key] for account in ACCOUNTS)
        for key in known.booked("idle")
    }


def attributed(known: Known, *names: str) -> Figures:
    """Joules of requests, whatever became of them, and of the one that goes on."""
    labelled = [
        # a name that no reply confirmed is no label
        r | ({"model": "other"} if r["model"] == "no-such-model" else {})
        for r in known.records
    ]
    found = summed(joules, labelled, *names)
    booked = sum(
        sum(known.booked(account).values())
        for account in ("prefill", "decode", "idle_share")
    )
    its = {"model": "unknown", "tenant": "none"}
    key = tuple(its[name] for name in names)
    open_joules = booked - sum(map(joules, labelled))
    found[key] = found.get(key, 0.0) + open_joules
    return Figures(found, is_rate=True)


def gauge(
    path: str, value: Callable[[Row], Mapping[Key, float]], slack: float
) -> Claims:
    """What the admin API says of each proxy, by instance and further labels."""

    def claimed(known: Known) -> Figures:
        found = {
            (instance, *key): figure
            for instance, state in known.state(path).items()
            for key, figure in value(state).items()
        }
        return Figures(found, slack)

    return claimed


def buckets(known: Known) -> Figures:
    """Answered requests by the edges of their energy, each up to its own."""
    values = [joules(record) for record in known.answered]
    found: dict[Key, float] = {
        (f"{edge}",): float(sum(v <= edge for v in values)) for edge in ENERGY_EDGES
    }
    return Figures(found | {("+Inf",): float(len(values))}, is_rate=True)


def bins(value: Callable[[list[Row]], float]) -> Claims:
    def claimed(known: Known) -> Figures:
        groups: dict[Key, list[Row]] = {}
        for record in known.answered:
            key = (
                length_bin(record["prompt_tokens"], PROMPT_BINS),
                length_bin(record["output_tokens"], OUTPUT_BINS),
            )
            groups.setdefault(key, []).append(record)
        return Figures({key: value(group) for key, group in groups.items()})

    return claimed


def turns(known: Known) -> list[Row]:
    """Answered requests of the run whose load generator is watched."""
    rows = known.act.rows[known.proxies[0].instance]
    return [
        row | {"turn": str(row["turn"] + 1)} for row in rows if row["outcome"] == "ok"
    ]


def since_the_first_scrape(known: Known, found: Mapping[Key, float]) -> Figures:
    """Requests of the run that is watched of which a rate can know."""
    begun = known.act.load_begun
    return Figures(
        {key: count - begun["".join(key) or "sent"] for key, count in found.items()},
        is_rate=True,
    )


def tokens(known: Known) -> Figures:
    """As the records have them."""
    return Figures(
        {
            ("prompt",): sum(r["prompt_tokens"] or 0 for r in known.records),
            ("cached",): sum(r["cached_tokens"] or 0 for r in known.records),
            ("output",): sum(r["output_tokens"] or 0 for r in known.records),
        },
        is_rate=True,
    )


def refusals(is_rate: bool) -> Claims:
    def claimed(known: Known) -> Figures:
        return Figures({("404", "unknown_route"): 30.0}, is_rate=is_rate)

    return claimed


def compared(*names: str) -> dict[str, Claims]:
    """The columns of a table of answered requests."""
    return {
        "Requests": lambda k: Figures(summed(lambda _: 1.0, k.answered, *names)),
        "Mean energy": lambda k: Figures(means(k.answered, *names)),
        "Median energy": at_proxy(joules, ENERGY_EDGES, *names),
        "Per output token": lambda k: Figures(per_token(k.answered, *names)),
        "Median TTFT": at_proxy(proxy_ttft, TTFT_EDGES, *names),
    }


def grades(known: Known) -> Figures:
    counts = counted(lambda r: (r["energy"]["grade"],), known.records)
    return Figures({key: count / len(known.records) for key, count in counts.items()})


def doubts(known: Known) -> Figures:
    reasons = [r for record in known.records for r in record["energy"]["grade_reasons"]]
    return Figures(counted(lambda reason: (str(reason),), reasons), is_rate=True)


UP: dict[str, Claims] = {"": lambda _: one(1.0)}
IS_SIMULATED: dict[str, Claims] = {"": lambda _: one(1.0)}
E2E = "end_to_end_latency_seconds"

CLAIMS: dict[str, dict[str, dict[str, Claims]]] = {
    "servewatt-run": {
        "Joules are": IS_SIMULATED,
        "Answered": {
            "": lambda k: one(k.act.summaries[k.proxies[0].instance]["completed"])
        },
        "Not answered": {
            "": lambda k: one(
                sum(r["outcome"] != "ok" for r in k.act.rows[k.proxies[0].instance])
            )
        },
        "Energy per answered request": {"": mean_of_runs},
        "Energy per output token": {"": per_token_of_runs},
        "Spent on what was not answered": {"": failed_joules},
        "Energy measured": {"": measured},
        "Asked and achieved rate": {
            "asked": lambda k: one(k.summaries[0]["schedule"]["asked_per_second"]),
            "achieved": lambda k: one(
                k.summaries[0]["schedule"]["achieved_per_second"]
            ),
            "of late": lambda k: since_the_first_scrape(
                k, {(): k.summaries[0]["schedule"]["sent"]}
            ),
        },
        "Schedule lag": three(client("schedule_lag_seconds", lag, of_all=True)),
        "In flight": {"in flight": lambda _: one(0.0)},
        "Finished by outcome": {
            "{{outcome}}": lambda k: since_the_first_scrape(
                k, counted(lambda row: (row["outcome"],), k.rows)
            )
        },
        "TTFT": three(client("time_to_first_token_seconds", client_ttft, of_all=False)),
        "TTFT from the schedule": three(
            client(
                "time_to_first_token_from_schedule_seconds",
                client_ttft_from_schedule,
                of_all=False,
            )
        ),
        "TPOT": three(
            client("time_per_output_token_seconds", client_tpot, of_all=False)
        ),
        "E2E latency": three(client(E2E, client_e2e, of_all=False)),
        "Power by account": {
            "{{account}}": lambda k: Figures(
                {(a,): sum(k.booked(a).values()) for a in ACCOUNTS}, is_rate=True
            )
        },
        "Energy per answered request, by kind": {
            "{{kind}}": lambda k: Figures(means(k.ok, "kind"))
        },
        "Energy per output token, over time": {"J/token": per_token_of_runs},
        "Power spent on what was not answered": {
            "{{outcome}}": lambda k: Figures(
                summed(joules, k.spent, "outcome"), is_rate=True
            )
        },
    },
    "servewatt-requests": {
        "Answered": {"": completed},
        "Mean energy": {"": mean_of_runs},
        "p50": {"": at_proxy(joules, ENERGY_EDGES)},
        "p90": {"": at_proxy(joules, ENERGY_EDGES)},
        "p99": {"": at_proxy(joules, ENERGY_EDGES)},
        "Energy per output token": {"": per_token_of_runs},
        "Energy per answered request": three(at_proxy(joules, ENERGY_EDGES)),
        "Answered requests by energy, over time": {"{{le}}": buckets},
        "By kind": compared("kind"),
        "By model and engine": compared("model", "engine"),
        "By length": {
            "Requests": bins(lambda group: float(len(group))),
            "Mean energy": bins(lambda group: sum(map(joules, group)) / len(group)),
        },
        "By turn": {
            "Requests": lambda k: Figures(summed(lambda _: 1.0, turns(k), "turn")),
            "Median TTFT": lambda k: Quantiles(
                grouped(client_ttft, turns(k), "turn"),
                LATENCIES["time_to_first_token_seconds"].edges,
            ),
            "Median E2E": lambda k: Quantiles(
                grouped(client_e2e, turns(k), "turn"), LATENCIES[E2E].edges
            ),
            "Mean E2E": lambda k: Figures(
                over(
                    summed(client_e2e, turns(k), "turn"),
                    summed(lambda _: 1.0, turns(k), "turn"),
                )
            ),
        },
        "Median energy by kind, over time": {
            "{{kind}}": at_proxy(joules, ENERGY_EDGES, "kind")
        },
        "Tokens": {"{{type}}": tokens},
        "Requests by outcome": {
            "{{outcome}}": lambda k: Figures(
                counted(lambda r: (r["outcome"],), k.records)
            )
        },
        "Refused by the proxy itself": {"{{status}} {{reason}}": refusals(False)},
        "Energy of what was not answered": {
            "{{outcome}}": lambda k: Figures(summed(joules, k.spent, "outcome"))
        },
        "Mean energy of what was not answered": {
            "{{outcome}}": lambda k: Figures(means(k.spent, "outcome"))
        },
        "TTFT": three(at_proxy(proxy_ttft, TTFT_EDGES)),
        "TPOT": three(at_proxy(proxy_tpot, TPOT_EDGES)),
        "ITL": three(lambda _: Between(0.0001, 10)),
        "E2E latency": three(at_proxy(proxy_duration, DURATION_EDGES)),
    },
    "servewatt-fleet": {
        "Joules are": IS_SIMULATED,
        "Engines up": {"": lambda k: one(len(k.proxies))},
        "Energy": {"": times(measured, 1 / JOULES_PER_KWH)},
        "Cost": {"": times(measured, PUE * PRICE / JOULES_PER_KWH)},
        "CO2": {"": times(measured, PUE * GRAMS / JOULES_PER_KWH)},
        "Idle": {"": lambda k: idle_share(k, by_instance=False)},
        "Per answered request": {"": mean_of_runs},
        "Per output token": {"": per_token_of_runs},
        "Top consumers": {
            "Energy": times(
                lambda k: attributed(k, "model", "tenant"), 1 / JOULES_PER_KWH
            ),
            "Answered": lambda k: Figures(
                summed(lambda _: 1.0, k.answered, "model", "tenant")
            ),
            "Mean energy": lambda k: Figures(means(k.answered, "model", "tenant")),
            "Per output token": lambda k: Figures(
                per_token(k.answered, "model", "tenant")
            ),
        },
        "Engines": {
            "Energy": lambda k: Figures(
                {
                    key: value / JOULES_PER_KWH
                    for key, value in by_engine(instance_energy(k)).items()
                },
            ),
            "Idle": lambda k: Figures(
                by_engine(idle_share(k, by_instance=True).by_label)
            ),
            "Answered": lambda k: Figures(
                by_engine(summed(lambda _: 1.0, k.answered, "instance"))
            ),
            "Mean energy": lambda k: Figures(by_engine(means(k.answered, "instance"))),
        },
        "Power by engine": {
            "{{instance}} {{engine}}": lambda k: Figures(
                by_engine(instance_energy(k)), is_rate=True
            )
        },
        "Power by model": {"{{model}}": lambda k: attributed(k, "model")},
        "Power by tenant": {"{{tenant}}": lambda k: attributed(k, "tenant")},
        "Energy per answered request, by engine": {
            "{{instance}} {{engine}}": lambda k: Figures(
                by_engine(means(k.answered, "instance"))
            )
        },
        "Idle over time": {
            "{{instance}} {{engine}}": lambda k: Figures(
                by_engine(idle_share(k, by_instance=True).by_label)
            )
        },
        "In flight by engine": {
            "{{instance}} {{engine}}": lambda k: Figures(
                # the one that never ends is the first proxy's
                {(p.instance, "vllm"): float(n == 0) for n, p in enumerate(k.proxies)}
            )
        },
        "Engines that answer": {
            "{{instance}} {{engine}}": lambda k: Figures(
                {(p.instance, "vllm"): 1.0 for p in k.proxies}
            )
        },
        "Power by board": {"{{instance}} {{device}}": lambda _: Between(1, 1_600)},
        "Idle power": {
            "loaded, {{instance}} {{engine}}": gauge(
                "/books", lambda b: {("vllm",): b["idle_watts"]}, 2.0
            ),
            "bare, {{instance}} {{engine}}": gauge(
                "/books", lambda b: {("vllm",): b["bare_idle_watts"]}, 0.0
            ),
            "not the engine's, {{instance}} {{device}}": lambda _: Between(1, 1_600),
        },
        "SM clock": {"{{instance}} {{device}}": lambda _: Between(1e9, 3e9)},
        "Temperature": {"{{instance}} {{device}}": lambda _: Between(20, 100)},
        "Throttled": {"{{instance}} {{device}} {{reason}}": lambda _: Between(0, 1)},
        "Processes beside the engine": {
            "{{instance}} {{device}}": lambda _: Between(0, 0, empty=True)
        },
    },
    "servewatt-meter": {
        "Joules are": IS_SIMULATED,
        "Sensors": UP,
        "Settlement": UP,
        "Store": UP,
        "Residual of the books": {"": lambda _: Between(0, 1e-6)},
        "Requests without energy": {"": lambda _: one(0.0)},
        "Defects inside the meter": {"": lambda _: one(0.0)},
        "Settlement lag, at its worst": {"": lambda _: Between(0, 60)},
        "Residual, over time": {"{{instance}} {{engine}}": lambda _: Between(0, 1e-6)},
        "Settlement lag": {"{{instance}} {{engine}}": lambda _: Between(0, 60)},
        "Unattributed power": {
            # what is seldom has no series before, and a rate not its first joules
            "{{reason}}": lambda k: Between(
                0, sum(k.booked("unattributed").values()) / k.seconds, empty=True
            )
        },
        "Counter over integrated power": {
            "{{instance}} {{engine}}": lambda k: Figures(
                {
                    (p.instance, "vllm"): k.act.books[p.instance][1][
                        "counter_power_ratio"
                    ]
                    for p in k.proxies
                }
            )
        },
        "Sensor trouble": {
            "errors": lambda _: one(0.0),
            "missed": lambda _: Between(0, 50),
            "gaps": lambda _: Between(0, 5),
            "resets": lambda _: one(0.0),
        },
        "Since the last reading": {"{{instance}} {{source}}": lambda _: Between(0, 60)},
        "Readings not believed": {"{{reason}}": lambda _: Between(0, 0)},
        "Power by boundary": {"{{boundary}}": lambda _: Between(1, 5_000)},
        "Share of the node's energy": {
            "{{instance}} {{inner}}": lambda _: Between(0.02, 1)
        },
        "Not measured": {"{{instance}} {{engine}}": lambda _: Between(0, 0.5)},
        "Records by grade": {"{{grade}}": grades},
        "Why records are not good": {"{{reason}}": doubts},
        "Mean half width": {"{{instance}} {{engine}}": lambda _: Between(0.001, 1)},
        "Constants not trusted": {
            "{{engine}} {{reason}}": lambda _: Between(1, 1, empty=True)
        },
        "Event loop delay": three(lambda _: Between(0, 10)),
        "Proxy overhead, p99": {"{{part}}": lambda _: Between(1e-6, 10)},
        "Records that wait or were dropped": {
            "waiting, {{instance}}": lambda _: Between(0, 60),
            "dropped, {{instance}}": lambda _: Between(0, 0),
        },
        "Refused requests": {"{{status}} {{reason}}": refusals(True)},
    },
}


# -- asking --------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched(tmp_path_factory.mktemp("watched")) as everything:
        yield everything


def queries(every: bool) -> list[Any]:
    """All of them, or those that are one figure over the time shown."""
    return [
        pytest.param(
            board.uid, panel, legend,
            id=f"{board.uid.removeprefix('servewatt-')}: {panel.title}: {legend}",
        )
        for board in BOARDS
        for panel in board.panels
        for legend, query in panel.queries.items()
        if every or is_over_range(query)
    ]  # fmt: skip


def filled(query: str, instance: str, seconds: float, **others: str) -> str:
    window = f"{max(round(seconds * 1000), 1)}ms"
    values = {
        RECENT: window, SHOWN: window, "$instance": instance, "$engine": ".*",
        "$model": ".*", "$tenant": ".*", "$boundary": "gpu",
    }  # fmt: skip
    values |= {f"${name}": value for name, value in others.items()}
    for name, value in values.items():
        query = query.replace(name, value)
    assert "$" not in query
    return query


def shown(labels: list[str], series: list[Row]) -> dict[Key, float]:
    """Values by the labels that the panel shows; each must be there once."""
    found: dict[Key, float] = {}
    for each in series:
        key = tuple(each["metric"].get(label, "") for label in labels)
        assert key not in found, f"two series look alike: {key}"
        found[key] = float(each["value"][1])
    return {key: value for key, value in found.items() if not math.isnan(value)}


def labels_of(panel: Panel, legend: str) -> list[str]:
    return re.findall(r"{{(\w+)}}", legend) or list(panel.labels)


def bucket_of(
    values: list[float], q: float, edges: tuple[float, ...]
) -> tuple[float, float]:
    """Ends of the bucket with the value that Prometheus looks for."""
    value = sorted(values)[max(math.ceil(q * len(values) - 1e-9), 1) - 1]
    above = next((edge for edge in edges if value <= edge), math.inf)
    below = max((edge for edge in edges if edge < value), default=0.0)
    return below * (1 - 1e-6), above * (1 + 1e-6)


def check(claim: Claim, found: dict[Key, float], query: str, seconds: float) -> None:
    if isinstance(claim, Between):
        assert found or claim.empty
        assert all(claim.low <= value <= claim.high for value in found.values()), found
        return
    if isinstance(claim, Quantiles):
        match = re.match(r"histogram_quantile\(([\d.]+)", query)
        assert match
        assert found.keys() == claim.by_label.keys()
        for key, values in claim.by_label.items():
            low, high = bucket_of(values, float(match.group(1)), claim.edges)
            assert low <= found[key] <= high, (key, sorted(values))
        return
    assert claim.by_label.keys() <= found.keys(), (claim.by_label, found)
    for key, value in found.items():
        known = claim.by_label.get(key, 0.0)
        value *= seconds if claim.is_rate else 1.0
        slack = claim.slack + EXACT * abs(known) + 1e-9
        assert value == pytest.approx(known, abs=slack), (key, found)


@pytest.mark.parametrize(("uid", "panel", "legend"), queries(every=False))
def test_one_proxy_alone_and_asked_for_the_first_time(
    seen: Watched, uid: str, panel: Panel, legend: str
) -> None:
    query = panel.queries[legend]
    first = seen.proxies[0]
    act, seconds = seen.alone, seen.alone.end - seen.alone.start
    found = ask(seen.client, filled(query, first.instance, seconds), act.end)
    claim = CLAIMS[uid][panel.title][legend](Known(act, (first,)))
    check(claim, shown(labels_of(panel, legend), found), query, seconds)


@pytest.mark.parametrize(("uid", "panel", "legend"), queries(every=True))
def test_three_proxies_at_once(
    seen: Watched, uid: str, panel: Panel, legend: str
) -> None:
    query, act = panel.queries[legend], seen.together
    start, end, proxies, instance = act.start, act.end, seen.proxies, ".*"
    if RECENT in query or "loadgen" in query:
        # one target, from scrape to scrape: a rate is then exact
        proxies = proxies[:1]
        instance = proxies[0].instance
    if "loadgen" in query:
        end = act.load_scrapes[-1]
        if "_bucket" in query and RECENT in query:
            start = seen.alone.load_scrapes[-1]  # or the first values are in no rate
        elif RECENT in query:
            start = act.load_scrapes[0]
    found = ask(seen.client, filled(query, instance, end - start), end)
    claim = CLAIMS[uid][panel.title][legend](Known(act, proxies))
    check(claim, shown(labels_of(panel, legend), found), query, end - start)


ANSWERED = "servewatt_request_energy_joules"
OLD_FAULTS = {
    "requests-of-all-outcomes": (gained(f"{ANSWERED}_count"), completed),
    "energy-over-all-tokens": (
        "sum(increase(servewatt_attributed_energy_joules_total[$__range]))"
        ' / sum(increase(servewatt_tokens_total{type="output"}[$__range]))',
        per_token_of_runs,
    ),
    "both-boundaries": (
        "sum(increase(servewatt_energy_joules_total[$__range]))",
        measured,
    ),
}


def joules_of_outcomes(known: Known, *names: str) -> dict[Key, float]:
    """Joules of all requests over those answered, where there are any."""
    answered = summed(lambda _: 1.0, known.answered, *names)
    return over(summed(joules, known.records, *names), answered)


def good(known: Known) -> Figures:
    left = sum(record["outcome"] == "aborted" for record in known.records)
    found = len(known.answered) / (len(known.records) - left)
    return Figures({("vllm",): found})


WAITING = ("idle", "idle_share")
RULES = {
    rule["record"]: rule["expr"]
    for path in sorted((ROOT / "grafana" / "rules").glob("*.yaml"))
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "record" in rule
}
RATE5M = "engine_boundary_account:servewatt_energy_joules:rate5m"
RULE_CLAIMS: dict[str, tuple[list[str], Claims]] = {
    RATE5M: (
        ["engine", "account"],
        lambda k: Figures(
            {("vllm", a): sum(k.booked(a).values()) for a in ACCOUNTS}, is_rate=True
        ),
    ),
    "engine_boundary:servewatt_idle_energy:ratio_rate5m": (
        ["engine"],
        lambda k: Figures(
            {("vllm",): sum(sum(k.booked(a).values()) for a in WAITING) / k.measured()}
        ),
    ),
    "engine_model_tenant:servewatt_joules_per_output_token:ratio_rate5m": (
        ["model", "tenant"],
        lambda k: Figures(per_token(k.answered, "model", "tenant")),
    ),
    "engine:servewatt_joules_per_output_token:ratio_rate5m": (
        [],
        per_token_of_runs,
    ),
    "engine_model:servewatt_joules_per_output_token:ratio_rate1h": (
        ["model"],
        lambda k: Figures(per_token(k.answered, "model")),
    ),
    "engine_model_tenant:servewatt_joules_per_good_request:ratio_rate5m": (
        ["model", "tenant"],
        lambda k: Figures(joules_of_outcomes(k, "model", "tenant")),
    ),
    "engine_boundary:servewatt_joules_per_good_request:ratio_rate5m": (
        ["engine"],
        lambda k: Figures({("vllm",): k.measured() / len(k.answered)}),
    ),
    "engine:servewatt_good_requests:ratio_rate5m": (["engine"], good),
}
"""Those of the day are sums of counters at other moments: promtool tests them, and the
test below compares them with what has gone through the proxies since their start."""


@pytest.mark.parametrize("name", RULE_CLAIMS)
def test_a_recorded_rate_agrees_with_the_run(seen: Watched, name: str) -> None:
    labels, claims = RULE_CLAIMS[name]
    act, first = seen.together, seen.proxies[0]
    seconds = act.end - act.start
    query = RULES[name]
    if name != RATE5M:
        query = query.replace(RATE5M + "{", "RATE5M{").replace(
            RATE5M, f"({RULES[RATE5M]})"
        )
        query = query.replace(
            'RATE5M{account=~"idle|idle_share"}',
            "("
            + RULES[RATE5M].replace("joules_total", "joules_total{account=~'idle.*'}")
            + ")",
        )
    # one proxy, from scrape to scrape, as with the panels
    query = re.sub(
        r"(?<![:\w])(servewatt_\w+)(\{?)",
        lambda m: f'{m[1]}{{instance="{first.instance}"' + ("," if m[2] else "}"),
        query,
    )
    query = re.sub(r"\[(?:5m|1h)\]", f"[{round(seconds * 1000)}ms]", query)
    found = [
        each
        for each in ask(seen.client, query, act.end)
        if each["metric"].get("boundary", "gpu") == "gpu"
    ]
    check(claims(Known(act, (first,))), shown(labels, found), query, seconds)


def test_the_recorded_day_is_what_has_gone_through_the_proxies(seen: Watched) -> None:
    at = seen.together.end
    ends = sum(
        sum(accounts(seen.together.books[proxy.instance][1]).values())
        for proxy in seen.proxies
    )

    def total(query: str, when: float) -> float:
        (found,) = ask(seen.client, f"sum({query})", when)
        return float(found["value"][1])

    # rules look some seconds after a scrape, at its first and at its last value
    counter = "servewatt_energy_joules_total{boundary='gpu'}"
    recorded = "instance_engine_boundary:servewatt_energy_joules:sum{boundary='gpu'}"
    most = ends - total(f"min_over_time({counter}[1h])", at)
    least = total(counter, at - RULE_LAG_SECONDS)
    least -= total(f"min_over_time({recorded}[1h])", at)
    assert 0.5 * most < least < most
    for name, factor in {
        "engine_boundary:servewatt_energy_kwh:increase1d": 1.0,
        "engine_boundary:servewatt_energy_cost:increase1d": PUE * PRICE,
        "engine_boundary:servewatt_carbon_grams:increase1d": PUE * GRAMS,
    }.items():
        (found,) = ask(seen.client, f'{name}{{boundary="gpu"}}', at)
        joules_told = float(found["value"][1]) / factor * JOULES_PER_KWH
        assert (1 - EXACT) * least <= joules_told <= (1 + EXACT) * most, name
    for name, factor in {
        "engine_model_tenant:servewatt_energy_kwh:increase1d": 1.0,
        "engine_model_tenant:servewatt_energy_cost:increase1d": PUE * PRICE,
        "engine_model_tenant:servewatt_carbon_grams:increase1d": PUE * GRAMS,
    }.items():
        found = {
            each["metric"]["tenant"]: float(each["value"][1])
            for each in ask(seen.client, f'{name}{{model=~"simulated.*"}}', at)
        }
        acts = (seen.alone, seen.together)
        for proxy in seen.proxies:
            known = sum(
                joules(row)
                for act in acts
                for row in act.rows.get(proxy.instance, [])
                if row["energy"]
            )
            assert found[proxy.tenant] == pytest.approx(
                known / JOULES_PER_KWH * factor, rel=EXACT
            )


def test_every_recorded_figure_has_a_claim() -> None:
    derived = {name for name in RULES if name.endswith(("increase1d", ":sum", ":max"))}
    constants = {name for name in RULES if name.startswith("servewatt:")}
    assert RULES.keys() == RULE_CLAIMS.keys() | derived | constants


@pytest.mark.parametrize("fault", OLD_FAULTS)
def test_a_query_that_is_wrong_is_found_out(seen: Watched, fault: str) -> None:
    query, claims = OLD_FAULTS[fault]
    act, seconds = seen.alone, seen.alone.end - seen.alone.start
    found = shown([], ask(seen.client, filled(query, "", seconds), act.end))
    with pytest.raises(AssertionError):
        check(claims(Known(act, seen.proxies[:1])), found, query, seconds)


def test_two_runs_in_the_time_shown_add_up(seen: Watched) -> None:
    first, seconds = seen.proxies[0], seen.together.end - seen.alone.start
    for board, title, legend in (
        (RUN, "Answered", ""),
        (RUN, "Not answered", ""),
        (REQUESTS, "By turn", "Requests"),
    ):
        panel = next(panel for panel in board.panels if panel.title == title)
        query = filled(panel.queries[legend], first.instance, seconds)
        found = shown(
            labels_of(panel, legend), ask(seen.client, query, seen.together.end)
        )
        known: Counter[Key] = Counter()
        for act in (seen.alone, seen.together):
            claim = CLAIMS[board.uid][title][legend](Known(act, seen.proxies[:1]))
            assert isinstance(claim, Figures)
            known.update(claim.by_label)
        assert found == pytest.approx(dict(known)), title


def test_a_choice_of_tenant_leaves_its_requests(seen: Watched) -> None:
    act, seconds = seen.together, seen.together.end - seen.together.start
    panel = next(p for p in REQUESTS.panels if p.title == "Answered")
    for proxy in seen.proxies:
        query = filled(panel.queries[""], ".*", seconds, tenant=proxy.tenant)
        found = shown([], ask(seen.client, query, act.end))
        assert found == {(): act.summaries[proxy.instance]["completed"]}


def test_every_choice_is_offered(seen: Watched) -> None:
    end = seen.together.end
    offered = {
        name: {each["metric"].get(name) for each in ask(seen.client, metric, end)}
        for name, metric in ANCHORS.items()
    }
    assert offered["instance"] == {proxy.instance for proxy in seen.proxies}
    assert offered["engine"] == {"vllm"}
    assert offered["boundary"] == {"gpu", "node"}
    assert {proxy.tenant for proxy in seen.proxies} <= offered["tenant"]
    assert {row["model"] for row in Known(seen.alone, seen.proxies).answered} <= (
        offered["model"]
    )


def test_the_costliest_answered_request_is_a_diamond(seen: Watched) -> None:
    panel = next(p for p in REQUESTS.panels if p.title == "Energy per answered request")
    query = filled(panel.queries["p99"], ".*", 60)
    act = seen.alone
    form = {"query": query, "start": act.start, "end": act.end}
    reply = seen.client.post("/api/v1/query_exemplars", data=form).json()
    ids = {
        exemplar["labels"]["request_id"]
        for series in reply["data"]
        for exemplar in series["exemplars"]
    }
    answered = {row["request_id"]: joules(row) for row in Known(act, seen.proxies).ok}
    assert ids <= answered.keys()
    assert max(answered, key=lambda name: answered[name]) in ids


def test_runs_are_marked_from_their_start_to_their_end(seen: Watched) -> None:
    form = {
        "query": RUNS, "step": "1",
        "start": seen.alone.start, "end": seen.together.end,
    }  # fmt: skip
    reply = seen.client.post("/api/v1/query_range", data=form).json()
    marked = {
        series["metric"]["run"]: [float(at) for at, _ in series["values"]]
        for series in reply["data"]["result"]
    }
    assert marked.keys() == {"alone-north", "together-north"}
    for act, name in ((seen.alone, "alone-north"), (seen.together, "together-north")):
        assert act.start < marked[name][0] < marked[name][-1] < act.end


def test_every_panel_has_a_claim_and_every_claim_a_panel() -> None:
    panels = {
        board.uid: {panel.title: set(panel.queries) for panel in board.panels}
        for board in BOARDS
    }
    assert panels == {
        uid: {title: set(claims) for title, claims in titles.items()}
        for uid, titles in CLAIMS.items()
    }
