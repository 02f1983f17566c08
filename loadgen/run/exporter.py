"""`--metrics-port`: the load as Prometheus sees it, from its own thread and port.

Latencies are the client's; energy is the proxy's to export. Labels are bounded:
kind and outcome, never a request id, a URL or an error text.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loadgen import __version__
from loadgen.errors import UsageError
from loadgen.results.measures import MEASURES, SCHEDULE_LAG
from loadgen.results.progress import Progress
from loadgen.results.results import Result
from loadgen.run.targets import listed
from proxy.process.build import build_form
from proxy.process.files import os_reason, readable_name
from proxy.process.tally import coarse_edges, fine_edges
from proxy.wire.facts import KINDS

PREFIX = "servewatt_loadgen_"
LOCAL = "127.0.0.1"

# The proxy's, so that both sides of one request fall into the same buckets.
_LATENCY_EDGES = fine_edges(-3, 5, below=(0.0001,), above=(300.0,))
_TOKEN_EDGES = fine_edges(-3, 3, below=(0.0001, 0.0003), above=(3.0, 10.0))
_LAG_EDGES = coarse_edges(-5, 6)


@dataclass(frozen=True, slots=True)
class LiveMetric:
    """One figure read from the run's counters at each scrape."""

    kind: str
    """`counter` or `gauge`."""
    help: str
    of: Callable[[Progress], float | None]
    """None: not known (yet), and then absent."""


@dataclass(frozen=True, slots=True)
class LatencyMetric:
    """One histogram over finished requests."""

    help: str
    of: Callable[[Result], float | None]
    edges: tuple[float, ...] = _LATENCY_EDGES
    labels: tuple[str, ...] = ("kind",)


METRICS: dict[str, LiveMetric] = {
    "planned_requests": LiveMetric(
        "gauge", "Requests in the plan.", lambda p: float(p.planned)
    ),
    "offered_requests_per_second": LiveMetric(
        "gauge",
        "Rate that was asked for, or else the plan's mean.",
        lambda p: p.offered_per_second,
    ),
    "achieved_requests_per_second": LiveMetric(
        "gauge",
        "Rate of the sends so far: those after the first over the time they took.",
        lambda p: p.achieved_per_second,
    ),
    "requests_in_flight": LiveMetric(
        "gauge", "Requests sent and not finished.", lambda p: float(p.in_flight)
    ),
    "requests_sent_total": LiveMetric(
        "counter", "Requests that left.", lambda p: float(p.sent)
    ),
    "received_tokens_total": LiveMetric(
        "counter",
        "Output tokens so far: reads that bore tokens, then the server's own count.",
        lambda p: float(p.tokens),
    ),
}

LATENCIES: dict[str, LatencyMetric] = {
    "time_to_first_token_seconds": LatencyMetric(
        "First token since the send.", MEASURES["ttft"].of, labels=("kind", "turn")
    ),
    "time_to_first_token_from_schedule_seconds": LatencyMetric(
        "First token since the intended start.", MEASURES["ttft_sched"].of
    ),
    "time_per_output_token_seconds": LatencyMetric(
        "Mean time per token after the first, one value per request.",
        MEASURES["tpot"].of,
        _TOKEN_EDGES,
    ),
    "end_to_end_latency_seconds": LatencyMetric(
        "Last token since the send.", MEASURES["e2el"].of, labels=("kind", "turn")
    ),
    "schedule_lag_seconds": LatencyMetric(
        "Send minus intended start, failures included.", SCHEDULE_LAG.of, _LAG_EDGES
    ),
}

TURNS = ("1", "2", "3", "more")
OUTCOMES = ("ok", "error", "timeout", "aborted", "dropped")

MAX_LAST_SCRAPE_SECONDS = 15.0
"""Longest wait for whoever scrapes to take a run's last figures: Prometheus asks every
few seconds, and what a run's last requests took would be in none of its answers."""


class Scrapes:
    """When the figures were taken, and whether there is something new since."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._at_seconds: float | None = None
        self._period_seconds: float | None = None
        self._has_news = False

    def note_news(self) -> None:
        """A figure is another one from now on."""
        self._has_news = True

    def note(self) -> None:
        """One begins now."""
        with self._changed:
            now = self._clock()
            if self._at_seconds is not None:
                self._period_seconds = now - self._at_seconds
            self._at_seconds = now
            self._has_news = False
            self._changed.notify_all()

    @property
    def patience_seconds(self) -> float:
        """How long one more is to be waited for; 0 if it would show nothing new, or
        if nobody asks regularly."""
        if self._period_seconds is None or not self._has_news:
            return 0.0
        return min(2 * self._period_seconds + 1, MAX_LAST_SCRAPE_SECONDS)

    def wait_for_last(self) -> None:
        """Wait until the newest figures were taken, if that is to be expected."""
        with self._changed:
            self._changed.wait_for(lambda: not self._has_news, self.patience_seconds)


class RunCollector(Collector):
    """Reads the run's counters when Prometheus asks; keeps nothing."""

    def __init__(self, progress: Progress, run: str, scrapes: Scrapes) -> None:
        self._progress = progress
        self._run = readable_name(run)
        self._scrapes = scrapes
        self._began_unix_seconds: float | None = None

    def collect(self) -> Iterable[Metric]:
        """The figures of this moment."""
        self._scrapes.note()
        info = GaugeMetricFamily(
            f"{PREFIX}build_info",
            "Version and build (pure or compiled) of the load generator.",
            labels=["version", "build"],
        )
        info.add_metric([__version__, build_form()], 1)
        yield info
        run = GaugeMetricFamily(
            f"{PREFIX}run_info", "Folder of the run in progress; 1.", labels=["run"]
        )
        run.add_metric([self._run], 1)
        yield run
        zero_seconds = self._progress.zero_seconds
        if self._began_unix_seconds is None and zero_seconds is not None:
            elapsed_seconds = time.monotonic() - zero_seconds
            self._began_unix_seconds = time.time() - elapsed_seconds
        if self._began_unix_seconds is not None:
            yield GaugeMetricFamily(
                f"{PREFIX}run_start_timestamp_seconds",
                "The run's zero: when its first request was due.",
                value=self._began_unix_seconds,
            )
        for name, metric in METRICS.items():
            value = metric.of(self._progress)
            if value is None:
                continue
            family = CounterMetricFamily if metric.kind == "counter" else (
                GaugeMetricFamily
            )  # fmt: skip
            yield family(PREFIX + name, metric.help, value=value)


class Exporter:
    """Counts finished requests; `registry` holds everything that is shown."""

    def __init__(self, progress: Progress, run: str = "") -> None:
        self.registry = CollectorRegistry()
        self.scrapes = Scrapes()
        self.registry.register(RunCollector(progress, run, self.scrapes))
        self._finished = Counter(
            f"{PREFIX}requests_finished_total",
            "Requests that came to an end, by outcome; `dropped` ones never left.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        for kind in KINDS:
            for outcome in OUTCOMES:
                # from 0 on: a rate does not know of a series' first value
                self._finished.labels(kind, outcome)
        self._latencies: Mapping[str, Histogram] = {
            name: Histogram(
                PREFIX + name, metric.help, metric.labels,
                buckets=metric.edges, registry=self.registry,
            )
            for name, metric in LATENCIES.items()
        }  # fmt: skip

    def observe(self, result: Result) -> None:
        """Take one finished request into account; 14 microseconds."""
        turn = TURNS[min(max(result.turn, 0), len(TURNS) - 1)]
        exemplar = {"request_id": result.request_id[:100]}
        kind = result.kind if result.kind in KINDS else "other"
        outcome = result.outcome if result.outcome in OUTCOMES else "error"
        self._finished.labels(kind, outcome).inc()
        for name, metric in LATENCIES.items():
            value = metric.of(result)
            if value is not None:
                labels = (kind, turn)[: len(metric.labels)]
                self._latencies[name].labels(*labels).observe(value, exemplar)
        self.scrapes.note_news()


@contextmanager
def exporting(
    address: str | None,
    progress: Progress,
    run: str = "",
    targets: Path | None = None,
) -> Iterator[str | None]:
    """Serve the metrics of this run on `[HOST:]PORT` while the block runs.

    At its end it waits until its last figures were taken, if someone takes them.
    The file `targets` names the port to Prometheus meanwhile.
    Gives the URL, or None when no address was asked for. Raises UsageError for
    an address that is none or that is taken.
    """
    if address is None:
        yield None
        return
    host, port = parse_address(address)
    # a second series per counter, of no use here; the function has no annotation
    disable_created_metrics()  # type: ignore[no-untyped-call]
    exporter = Exporter(progress, run)
    try:
        server, thread = start_http_server(port, host, exporter.registry)
    except OSError as error:
        reason = os_reason(error)
        raise UsageError(
            f"--metrics-port {address}: {reason}; name another port"
        ) from None
    progress.watchers.append(exporter.observe)
    try:
        url = f"http://{host}:{server.server_port}/metrics"
        with listed(targets, url):
            yield url
            exporter.scrapes.wait_for_last()
    finally:
        progress.watchers.remove(exporter.observe)
        server.shutdown()
        server.server_close()
        thread.join()


def check_free(address: str | None) -> None:
    """Raises UsageError for an address that is none or that is taken."""
    if address is None:
        return
    host, port = parse_address(address)
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise UsageError(
            f"--metrics-port {address}: {reason}; name another port"
        ) from None


def parse_address(text: str) -> tuple[str, int]:
    """`9465` or `0.0.0.0:9465`; without a host only this machine can ask."""
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            f"--metrics-port {text!r} is not a port; expected 9465 or 127.0.0.1:9465"
        )
    return host or LOCAL, int(port)
