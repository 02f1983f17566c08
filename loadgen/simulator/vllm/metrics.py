"""vLLM's `/metrics`: the names dashboards and the proxy rely on.

Names, labels and buckets as in vLLM 0.32 (v1/metrics). Aborted requests raise
token counters but neither `request_success_total` nor the request histograms,
as measured there.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.simulator.core.engine import Step
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.exposition import Page, Samples
from loadgen.simulator.wire import Gauges, Generation

FINISHED = ("stop", "length", "abort", "error", "repetition")
LATENCY_BOUNDS = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
    1920, 7680,
)  # fmt: skip
FIRST_TOKEN_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5,
    10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
STEP_BOUNDS = (
    1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384,
)  # fmt: skip
LENGTH_BOUNDS = (
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000,
)  # fmt: skip


def _recomputed_tokens(truth: RequestTruth) -> int:
    """Tokens of a prompt that vLLM counts as sent, although it computes them again:
    the last one of a prompt that came whole."""
    is_whole = truth.cached_tokens + 1 == truth.prompt_tokens
    return int(bool(truth.external_tokens) and is_whole)


class VllmMetrics:
    """Counters and histograms of one engine."""

    def __init__(self, model: str) -> None:
        page = self._page = Page({"engine": "0", "model_name": model})
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0
        self._external_tokens = self._recomputed_tokens = 0
        self._queries = self._hits = 0
        self._external_queries = self._external_hits = 0
        self._preemptions = self._rejected = 0
        self._success = dict.fromkeys(FINISHED, 0)
        self._step_tokens = page.histogram("vllm:iteration_tokens_total", STEP_BOUNDS)
        self._prompt = page.histogram("vllm:request_prompt_tokens", LENGTH_BOUNDS)
        self._output = page.histogram("vllm:request_generation_tokens", LENGTH_BOUNDS)
        self._first_token = page.histogram(
            "vllm:time_to_first_token_seconds", FIRST_TOKEN_BOUNDS
        )
        self._latency, self._queue, self._prefill, self._decode = (
            page.histogram(f"vllm:{name}_seconds", LATENCY_BOUNDS)
            for name in (
                "e2e_request_latency",
                "request_queue_time",
                "request_prefill_time",
                "request_decode_time",
            )
        )

    def scheduled(self, truth: RequestTruth) -> None:
        """A sequence was looked up in the prefix cache and is computed from now on."""
        found = truth.cached_tokens - truth.external_tokens
        again = _recomputed_tokens(truth)
        self._queries += truth.prompt_tokens
        self._hits += found
        if truth.external_tokens:
            self._external_queries += truth.prompt_tokens - found
            self._external_hits += truth.external_tokens + again

    def prefilled(self, truth: RequestTruth) -> None:
        """A sequence got its first token: only now does vLLM count its prompt."""
        self._prompt_tokens += truth.prompt_tokens
        self._cached_tokens += truth.cached_tokens
        again = _recomputed_tokens(truth)
        self._external_tokens += truth.external_tokens + again
        self._recomputed_tokens += again

    def stepped(self, step: Step, generated_tokens: int) -> None:
        """A step ended."""
        self._generated_tokens += generated_tokens
        self._preemptions += len(step.preempted)
        computed = step.decodes + sum(step.prefill_tokens.values())
        self._step_tokens.observe(computed)

    def finished(self, generation: Generation, truths: Sequence[RequestTruth]) -> None:
        """A request got all its tokens."""
        reason = generation.finish_reason
        reason = reason if reason in FINISHED else "stop"  # a tool was called
        for truth in truths:
            self._success[reason] += 1
            self._prompt.observe(truth.prompt_tokens)
            self._output.observe(truth.output_tokens)
            scheduled, first = truth.scheduled_seconds, truth.first_token_seconds
            last = truth.last_token_seconds
            if scheduled is not None and first is not None and last is not None:
                arrived = truth.arrived_seconds
                self._first_token.observe(first - arrived)
                self._latency.observe(last - arrived)
                self._queue.observe(scheduled - arrived)
                self._prefill.observe(first - scheduled)
                self._decode.observe(last - first)

    def failed(self, reason: str) -> None:
        """A request was `overloaded`, `dropped` by its client, or broke."""
        if reason == "overloaded":
            self._rejected += 1
        elif reason == "generation":
            self._success["error"] += 1

    def page(self, gauges: Gauges) -> str:
        """The text of `GET /metrics`."""
        computed_tokens = self._prompt_tokens - self._cached_tokens
        local_tokens = (
            self._cached_tokens + self._recomputed_tokens - self._external_tokens
        )
        family = self._page.family
        gauges_now = {
            "num_requests_running": gauges.running,
            "num_requests_waiting": gauges.waiting,
            "kv_cache_usage_perc": gauges.kv_used_fraction,
        }
        counters: dict[str, float | Samples] = {
            "prefix_cache_queries": self._queries,
            "prefix_cache_hits": self._hits,
            "external_prefix_cache_queries": self._external_queries,
            "external_prefix_cache_hits": self._external_hits,
            "num_preemptions": self._preemptions,
            "prompt_tokens": self._prompt_tokens,
            "prompt_tokens_cached": self._cached_tokens,
            "prompt_tokens_by_source": [
                ({"source": "local_compute"}, computed_tokens),
                ({"source": "local_cache_hit"}, local_tokens),
                ({"source": "external_kv_transfer"}, self._external_tokens),
            ],
            "generation_tokens": self._generated_tokens,
            "request_success": [
                ({"finished_reason": reason}, n) for reason, n in self._success.items()
            ],
            "admission_rejections": [
                ({"reason": "max_num_queued_reqs"}, self._rejected)
            ],
        }
        return self._page.text(
            [
                *(family(f"vllm:{n}", "gauge", v) for n, v in gauges_now.items()),
                *(family(f"vllm:{n}_total", "counter", v) for n, v in counters.items()),
            ]
        )
