"""What an engine's own `/metrics` says about who is in it: running, waiting, set aside.

Names: vLLM 0.32 (`vllm:...`, one line per data-parallel rank, added up) and TGI 3.3
(`tgi_...`, counters without `_total`). Whatever else the page holds is skipped.
"""

from __future__ import annotations

import re

from proxy.wire.facts import EngineGauges

METRICS_PATHS = {"vllm": "/metrics", "tgi": "/metrics"}
"""Engines that have such a page; of the others nothing is known but the wire."""

RUNNING = ("vllm:num_requests_running", "tgi_batch_current_size")
WAITING = ("vllm:num_requests_waiting", "tgi_queue_size")
PREEMPTIONS = ("vllm:num_preemptions_total",)
PROGRESS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "tgi_batch_inference_count",
)
_LINE = re.compile(
    rf"^({'|'.join((*RUNNING, *WAITING, *PREEMPTIONS, *PROGRESS))})"
    r"(?:\{.*\})?[ \t]+([0-9.eE+]+)",
    re.MULTILINE,
)


def read_gauges(text: str) -> EngineGauges | None:
    """The gauges on a page in Prometheus text format; None where it has none."""
    found: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        try:
            found[name] = found.get(name, 0.0) + float(value)
        except ValueError:
            continue
    running, waiting = _sum(found, RUNNING), _sum(found, WAITING)
    if running is None or waiting is None:
        return None
    preemptions = _sum(found, PREEMPTIONS)
    return EngineGauges(
        running=round(running),
        waiting=round(waiting),
        preemptions=None if preemptions is None else round(preemptions),
        progress=_sum(found, PROGRESS),
    )


def _sum(found: dict[str, float], names: tuple[str, ...]) -> float | None:
    values = [found[name] for name in names if name in found]
    return sum(values) if values else None
