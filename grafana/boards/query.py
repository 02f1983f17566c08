"""PromQL of the panels: a series by its name, and the few sums that are honest.

A selector has every variable of the dashboards that is a label of its metric, from the
same table that the metric is exported from: no panel ignores a variable that it could
follow. Three rules, each for a wrong figure that was once shown:

- Sum over sum: a mean of means, or of gauges, weighs an idle engine as a busy one.
- `gained` for totals, not `increase`: that one multiplies a counter's rise to reach the
  edges of the range (a run of 40 s, scraped every 5 s, gains a tenth), and leaves out
  the first value of a series, which for a class of requests is its first requests.
- Nothing is taken for 0: a quotient of nothing by nothing is no point in the plot.
"""

from __future__ import annotations

from loadgen.run import exporter
from proxy.metrics.table import METRICS

CLIENT_PREFIX = exporter.PREFIX
VARIABLES = {
    "instance": "instance",
    "engine": "engine",
    "model": "model",
    "tenant": "tenant",
    "boundary": "boundary",
}
"""Variable by the label that it chooses."""
PARTS = ("_bucket", "_sum", "_count")
RECENT = "$__rate_interval"
SHOWN = "$__range"
STEP = "1s"
"""Shorter than any time between scrapes: none is passed over."""
ALWAYS = "servewatt_event_loop_lag_seconds"
"""Has one series from a proxy's first scrape on, and it stays the same one."""


def labels_of(metric: str) -> tuple[str, ...]:
    """Labels of a metric of ours, those that Prometheus adds included.

    Series of the load generator have none that a variable chooses.
    """
    if metric.startswith(CLIENT_PREFIX):
        return ()
    histograms = (metric.removesuffix(part) for part in PARTS)
    name = next((name for name in histograms if name in METRICS), metric)
    return ("instance", *METRICS[name].labels)


def series(metric: str, **matchers: str) -> str:
    """A selector with all variables that apply; `outcome="ok"`, `outcome="!ok"`."""
    chosen = [
        f'{label}=~"${VARIABLES[label]}"'
        for label in labels_of(metric)
        if label in VARIABLES and label not in matchers
    ]
    for label, value in matchers.items():
        operator = "!=" if value.startswith("!") else "="
        chosen.append(f'{label}{operator}"{value.removeprefix("!")}"')
    return f"{metric}{{{','.join(chosen)}}}" if chosen else metric


def total(vector: str, by: str = "", function: str = "sum") -> str:
    """Everything added up, or by these labels."""
    return f"{function} by ({by}) ({vector})" if by else f"{function}({vector})"


def rate(metric: str, by: str = "", **matchers: str) -> str:
    """A counter's rise per second of late, for a plot over time."""
    return total(f"rate({series(metric, **matchers)}[{RECENT}])", by)


def gained(metric: str, by: str = "", **matchers: str) -> str:
    """A counter's exact rise over the time shown, for a figure.

    The last value less the one at the start. A series that came later began at 0,
    which is known of one that its proxy did not have in its first scrape. Where a
    counter fell, its process began anew, and `increase` is as near as one gets.

    A load generator is there for one run, and the next one begins at 0: its counters
    are summed step by step, and what is less than before, or was not there, is new.
    """
    chosen = series(metric, **matchers)
    if metric.startswith(CLIENT_PREFIX):
        before = f"({chosen} offset {STEP} <= {chosen} or {chosen} * 0)"
        return total(f"sum_over_time(({chosen} - {before})[{SHOWN}:{STEP}])", by)
    over = f"{chosen}[{SHOWN}]"
    last = f"last_over_time({over})"
    always = f"count_over_time({series(ALWAYS)}[{SHOWN}])"
    came_later = f"count_over_time({over}) < on (job, instance) group_left () {always}"
    start = (
        f"{chosen} offset {SHOWN} "
        f"or (min_over_time({over}) unless ({came_later})) or {last} * 0"
    )
    rise = f"({last} unless resets({over}) > 0) - ({start}) or increase({over})"
    return total(rise, by)


def ratio(over: str, under: str) -> str:
    """Sum over sum; both by the same labels. Nothing where there is nothing below."""
    return f"{over} / ({under} > 0)"


def mean_of(histogram: str, by: str = "", **matchers: str) -> str:
    """A histogram's mean of late."""
    return ratio(
        rate(f"{histogram}_sum", by, **matchers),
        rate(f"{histogram}_count", by, **matchers),
    )


def mean_shown(histogram: str, by: str = "", **matchers: str) -> str:
    """A histogram's mean over the time shown, exact."""
    return ratio(
        gained(f"{histogram}_sum", by, **matchers),
        gained(f"{histogram}_count", by, **matchers),
    )


def quantile(q: float, histogram: str, by: str = "", **matchers: str) -> str:
    """A quantile of late, within the width of a bucket."""
    buckets = rate(f"{histogram}_bucket", f"le, {by}" if by else "le", **matchers)
    return f"histogram_quantile({q}, {buckets})"


def quantile_shown(q: float, histogram: str, by: str = "", **matchers: str) -> str:
    """A quantile over the time shown, within the width of a bucket."""
    buckets = gained(f"{histogram}_bucket", f"le, {by}" if by else "le", **matchers)
    return f"histogram_quantile({q}, {buckets})"


def quantiles(histogram: str, **matchers: str) -> dict[str, str]:
    """The three percentiles shown everywhere, by legend."""
    return {
        f"p{int(q * 100)}": quantile(q, histogram, **matchers) for q in (0.5, 0.9, 0.99)
    }
