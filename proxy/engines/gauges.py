"""The load of an engine by its own `/metrics`: running, waiting, preempted.

Names: vLLM 0.32 (`vllm:...`, one line per data-parallel rank, added up) and TGI 3.3
(`tgi_...`, counters without `_total`). All other lines of the page are left out.
"""

from __future__ import annotations

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


MAX_SEQUENCES = 1_000_000
"""Running or waiting in one engine: a thousand times what the largest schedule."""

MAX_TOTAL = 2**53
"""Above it a double no longer counts one by one."""


def read_gauges(text: str) -> EngineGauges | None:
    """The gauges on a page in Prometheus text format; None where it has none.

    A value that is no plausible count (negative, NaN, infinite, absurdly large) is
    unknown, and with it the sum that it is a part of; nothing is raised.
    """
    names = (*RUNNING, *WAITING, *PREEMPTIONS, *PROGRESS)
    values: dict[str, list[float]] = {}
    try:
        for sample in samples_named(text, names):
            values.setdefault(sample.name, []).append(sample.value)
    except ValueError:
        return None
    running = _count(values, RUNNING, MAX_SEQUENCES)
    waiting = _count(values, WAITING, MAX_SEQUENCES)
    if running is None or waiting is None:
        return None
    preemptions = _count(values, PREEMPTIONS, MAX_TOTAL)
    return EngineGauges(
        running=round(running),
        waiting=round(waiting),
        preemptions=None if preemptions is None else round(preemptions),
        progress=_count(values, PROGRESS, MAX_TOTAL),
    )


def _count(
    values: dict[str, list[float]], names: tuple[str, ...], most: float
) -> float | None:
    """Sum of those that the page has; None without any, and where one cannot be."""
    found = [value for name in names for value in values.get(name, ())]
    if not found or not all(0 <= value <= most for value in found):
        return None
    total = sum(found)
    return total if total <= most else None
