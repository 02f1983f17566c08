"""`--metrics-port`: the load as Prometheus sees it, from its own thread and port.

Latencies are the client's; energy is the proxy's to export. Labels are bounded:
kind and outcome, never a request id, a URL or an error text.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

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
from proxy.process.files import os_reason
from proxy.wire.facts import KINDS

PREFIX = "servewatt_loadgen_"
LOCAL = "127.0.0.1"

# Steps of about 1.6: an interpolated quantile is then off by a quarter at most.
_LATENCY_BUCKETS = (
    0.001, 0.0016, 0.0025, 0.004, 0.0063, 0.01, 0.016, 0.025, 0.04, 0.063, 0.1, 0.16,
    0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0, 6.3, 10.0, 16.0, 25.0, 40.0, 63.0, 100.0,
)  # fmt: skip
_LAG_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0)


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
    """One histogram over finished requests, by kind."""

    help: str
    of: Callable[[Result], float | None]
    buckets: tuple[float, ...] = _LATENCY_BUCKETS


METRICS: dict[str, LiveMetric] = {
    "planned_requests": LiveMetric(
        "gauge", "Requests in the plan.", lambda p: float(p.planned)
    ),
    "offered_requests_per_second": LiveMetric(
        "gauge", "Mean rate of the plan.", lambda p: p.offered_per_second
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
        "First token since the send.", MEASURES["ttft"].of
    ),
    "time_to_first_token_from_schedule_seconds": LatencyMetric(
        "First token since the intended start.", MEASURES["ttft_sched"].of
    ),
    "time_per_output_token_seconds": LatencyMetric(
        "Mean time per token after the first, one value per request.",
        MEASURES["tpot"].of,
    ),
    "end_to_end_latency_seconds": LatencyMetric(
        "Last token since the send.", MEASURES["e2el"].of
    ),
    "schedule_lag_seconds": LatencyMetric(
        "Send minus intended start, failures included.", SCHEDULE_LAG.of, _LAG_BUCKETS
    ),
}

OUTCOMES = ("ok", "error", "timeout", "aborted", "dropped")


class RunCollector(Collector):
    """Reads the run's counters when Prometheus asks; keeps nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def collect(self) -> Iterable[Metric]:
        """The figures of this moment."""
        info = GaugeMetricFamily(
            f"{PREFIX}build_info", "Version of the load generator.", labels=["version"]
        )
        info.add_metric([__version__], 1)
        yield info
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

    def __init__(self, progress: Progress) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(RunCollector(progress))
        self._finished = Counter(
            f"{PREFIX}requests_finished_total",
            "Requests that came to an end, by outcome; `dropped` ones never left.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self._latencies: Mapping[str, Histogram] = {
            name: Histogram(
                PREFIX + name, metric.help, ["kind"],
                buckets=metric.buckets, registry=self.registry,
            )
            for name, metric in LATENCIES.items()
        }  # fmt: skip

    def observe(self, result: Result) -> None:
        """Take one finished request into account; 14 microseconds."""
        kind = result.kind if result.kind in KINDS else "other"
        outcome = result.outcome if result.outcome in OUTCOMES else "error"
        self._finished.labels(kind, outcome).inc()
        for name, metric in LATENCIES.items():
            value = metric.of(result)
            if value is not None:
                self._latencies[name].labels(kind).observe(value)


@contextmanager
def exporting(address: str | None, progress: Progress) -> Iterator[str | None]:
    """Serve the metrics of this run on `[HOST:]PORT` while the block runs.

    Gives the URL, or None when no address was asked for. Raises UsageError for
    an address that is none or that is taken.
    """
    if address is None:
        yield None
        return
    host, port = parse_address(address)
    # a second series per counter, of no use here; the function has no annotation
    disable_created_metrics()  # type: ignore[no-untyped-call]
    exporter = Exporter(progress)
    try:
        server, thread = start_http_server(port, host, exporter.registry)
    except OSError as error:
        reason = os_reason(error)
        raise UsageError(
            f"--metrics-port {address}: {reason}; name another port"
        ) from None
    progress.watchers.append(exporter.observe)
    try:
        yield f"http://{host}:{server.server_port}/metrics"
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
