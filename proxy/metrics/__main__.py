"""`python -m proxy.metrics > docs/metrics.md`: the table, for readers."""

from __future__ import annotations

from proxy.metrics.table import METRICS

HEAD = """# Metrics

What `metering-proxy` exports on its admin port at `/metrics`, and `loadgen replay
--metrics-port` during a run. This page is made by `python -m proxy.metrics >
docs/metrics.md && python -m loadgen.run.metrics_page >> docs/metrics.md`; a test keeps
it equal to the code. [Rules](rules.md) has what Prometheus makes of them.

- Counters hold settled energy only and never fall. A figure that is not known is
  absent, never 0.
- A request for which nothing was computed (refused, or gone before its work began) has
  no energy observation. One that failed later keeps what it consumed, under its
  `outcome`.
- No label comes from a session or a request. Classes of `model`, `kind` and `tenant`
  are bounded: beyond 64 a request is counted under `other`.
- Each bucket of a request's histogram keeps its newest request's id as an exemplar
  `request_id`, which leads to `/requests/ID`. Exemplars are in the OpenMetrics page
  only, which Prometheus asks for by itself, and which it keeps with
  `--enable-feature=exemplar-storage`.
- Energy, joules per token and times of requests have eleven buckets a decade over the
  decades that matter, at most 23.6 % apart: the p50 of identical requests is off
  by 12 % at most. Coarse ones lie around them.
- Native histograms: Python's client cannot make them (0.26;
  prometheus/client_python#1104 is open), and there is no text format for them that
  Prometheus reads. It can store these as native ones with their own buckets:
  `convert_classic_histograms_to_nhcb: true` in the scrape configuration, from
  Prometheus 3 on. Then they are one series each, and queries lose `_bucket`, `_sum`
  and `_count`; the dashboards and rules here ask for the classic ones.

## Of the proxy

| metric | type | labels | meaning |
|---|---|---|---|
"""


def markdown() -> str:
    """The page, in the order of the tables."""
    return HEAD + "".join(
        f"| `{name}` | {spec.kind} | {', '.join(f'`{x}`' for x in spec.labels)} "
        f"| {spec.help} |\n"
        for name, spec in METRICS.items()
    )


if __name__ == "__main__":
    print(markdown(), end="")
