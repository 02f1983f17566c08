"""The load of an engine by its own `/metrics`: who runs and waits, what was computed.

Names: vLLM 0.32 (`vllm:...`, one line per data-parallel rank, added up) and TGI 3.3
(`tgi_...`, counters without `_total`). All other lines of the page are left out.

Rule: a counter is read where it moves with the work. vLLM counts output at each step
and a prompt at its first token. TGI counts a prompt when it is validated, before it
waits, and output when a request has ended (`tgi_request_input_length_sum`,
`tgi_request_generated_tokens_sum`): within a request's time they tell nothing, so its
tokens count as not told, and only its steps are read.
"""

from __future__ import annotations

from proxy.wire.exposition import samples_named
from proxy.wire.facts import EngineGauges

METRICS_PATHS = {"vllm": "/metrics", "tgi": "/metrics"}
"""Dialects whose servers have such a page."""

RUNNING = ("vllm:num_requests_running", "tgi_batch_current_size")
WAITING = ("vllm:num_requests_waiting", "tgi_queue_size")
PREEMPTIONS = ("vllm:num_preemptions_total",)
PROMPT_TOKENS = ("vllm:prompt_tokens_total",)
OUTPUT_TOKENS = ("vllm:generation_tokens_total",)
BY_SOURCE = "vllm:prompt_tokens_by_source_total"
CACHED_TOKENS = (
    ("vllm:prompt_tokens_cached_total",),
    ("vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total"),
)
"""Where no source is told: the first of these that the page has. The last one counts
when a prompt is scheduled, the others at its first token."""
COMPUTED = "local_compute"
"""The source of prompt tokens that were computed; all others were found."""
DRAFTS = ("vllm:spec_decode_num_drafts_total",)
DRAFT_TOKENS = ("vllm:spec_decode_num_draft_tokens_total",)
ACCEPTED_TOKENS = ("vllm:spec_decode_num_accepted_tokens_total",)
STEPS = ("vllm:iteration_tokens_total_count", "tgi_batch_inference_count")
STEP_TOKENS = ("vllm:iteration_tokens_total_sum",)
PROGRESS = (
    "vllm:generation_tokens_total",
    "vllm:prompt_tokens_total",
    "tgi_batch_inference_count",
)

NAMES = (
    *RUNNING, *WAITING, *PREEMPTIONS, *PROGRESS, BY_SOURCE,
    *(name for names in CACHED_TOKENS for name in names), *DRAFTS, *DRAFT_TOKENS,
    *ACCEPTED_TOKENS, *STEPS, *STEP_TOKENS,
)  # fmt: skip
"""All that is read of a page."""

MAX_SEQUENCES = 1_000_000
"""Running or waiting in one engine: a thousand times what the largest schedule."""

MAX_TOTAL = 2**53
"""Above it a double no longer counts one by one."""


def read_gauges(text: str) -> EngineGauges | None:
    """The gauges on a page in Prometheus text format; None where it has none.

    A value that is no plausible count (negative, NaN, infinite, absurdly large) is
    unknown, and with it the sum that it is a part of; nothing is raised.
    """
    values: dict[str, list[float]] = {}
    try:
        for sample in samples_named(text, NAMES):
            name = sample.name
            if name == BY_SOURCE and sample.labels.get("source") == COMPUTED:
                continue
            values.setdefault(name, []).append(sample.value)
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
        prompt_tokens=_count(values, PROMPT_TOKENS, MAX_TOTAL),
        cached_tokens=_cached(values),
        output_tokens=_count(values, OUTPUT_TOKENS, MAX_TOTAL),
        drafts=_count(values, DRAFTS, MAX_TOTAL),
        draft_tokens=_count(values, DRAFT_TOKENS, MAX_TOTAL),
        accepted_tokens=_count(values, ACCEPTED_TOKENS, MAX_TOTAL),
        steps=_count(values, STEPS, MAX_TOTAL),
        step_tokens=_count(values, STEP_TOKENS, MAX_TOTAL),
    )


def _cached(values: dict[str, list[float]]) -> float | None:
    """Prompt tokens found in a cache, by the first counter that the page has."""
    for names in ((BY_SOURCE,), *CACHED_TOKENS):
        if any(name in values for name in names):
            return _count(values, names, MAX_TOTAL)
    return None


def _count(
    values: dict[str, list[float]], names: tuple[str, ...], most: float
) -> float | None:
    """Sum of those that the page has; None without any, and where one cannot be."""
    found = [value for name in names for value in values.get(name, ())]
    if not found or not all(0 <= value <= most for value in found):
        return None
    total = sum(found)
    return total if total <= most else None
