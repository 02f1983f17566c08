"""The load of an engine by its own `/metrics`: running, waiting, preempted.

Names: vLLM 0.32 (`vllm:...`, one line per data-parallel rank, added up) and TGI 3.3
(`tgi_...`, counters without `_total`). All other lines of the page are left out.
"""

from __future__ import annotations

import math

from proxy.wire.exposition import samples_named
from proxy.wire.facts import EngineGauges

METRICS_PATHS = {"vllm": "/metrics", "tgi": "/metrics"}
"""Dialects whose servers have such a page."""

RUNNING = ("vllm:num_requests_running", "tgi_batch_current_size")
WAITING = ("vllm:num_requests_waiting", "tgi_queue_size")
PREEMPTIONS = ("vllm:num_preemptions_total",)
PROGRESS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "tgi_batch_inference_count",
)


def read_gauges(text: str) -> EngineGauges | None:
    """The gauges on a page in Prometheus text format; None where it has none."""
    names = (*RUNNING, *WAITING, *PREEMPTIONS, *PROGRESS)
    totals: dict[str, float] = {}
    try:
        for sample in samples_named(text, names):
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    except ValueError:
        return None
    running, waiting = _known(totals, RUNNING), _known(totals, WAITING)
    if running is None or waiting is None:
        return None
    preemptions = _known(totals, PREEMPTIONS)
    return EngineGauges(
        running=round(running),
        waiting=round(waiting),
        preemptions=None if preemptions is None else round(preemptions),
        progress=_known(totals, PROGRESS),
    )


def _known(totals: dict[str, float], names: tuple[str, ...]) -> float | None:
    """Sum of those that the page has; None without a finite one."""
    values = [
        totals[name] for name in names if math.isfinite(totals.get(name, math.inf))
    ]
    return sum(values) if values else None
