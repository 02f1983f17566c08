"""vLLM's `/metrics`: the names dashboards and the proxy rely on.

Names, labels and buckets as in vLLM 0.32 (v1/metrics). Aborted requests raise
token counters but neither `request_success_total` nor the request histograms,
as measured there.
"""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.simulator.core.engine import Step
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.exposition import Family, Histogram, text_of
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


class VllmMetrics:
    """Counters and histograms of one engine."""

    def __init__(self, model: str) -> None:
        self._labels = {"engine": "0", "model_name": model}
        self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0
        self._preemptions = self._rejected = 0
        self._success = dict.fromkeys(FINISHED, 0)
        self._step_tokens = Histogram("vllm:iteration_tokens_total", STEP_BOUNDS)
        self._prompt = Histogram("vllm:request_prompt_tokens", LENGTH_BOUNDS)
        self._output = Histogram("vllm:request_generation_tokens", LENGTH_BOUNDS)
        self._first_token = Histogram(
            "vllm:time_to_first_token_seconds", FIRST_TOKEN_BOUNDS
        )
        self._latency, self._queue, self._prefill, self._decode = (
            Histogram(f"vllm:{name}_seconds", LATENCY_BOUNDS)
            for name in (
                "e2e_request_latency",
                "request_queue_time",
                "request_prefill_time",
                "request_decode_time",
            )
        )

    def scheduled(self, truth: RequestTruth) -> None:
        """A sequence was computed for the first time."""
        self._prompt_tokens += truth.prompt_tokens
        self._cached_tokens += truth.cached_tokens

    def stepped(self, step: Step) -> None:
        """A step ended."""
        self._generated_tokens += len(step.emitted)
        self._preemptions += len(step.preempted)
        computed = step.decodes + sum(step.prefill_tokens.values())
        self._step_tokens.observe(computed)

    def finished(self, generation: Generation, truths: Sequence[RequestTruth]) -> None:
        """A request got all its tokens."""
        for truth in truths:
            self._success[generation.finish_reason] += 1
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
        families: list[Family | Histogram] = [
            _one("vllm:num_requests_running", gauges.running, "gauge"),
            _one("vllm:num_requests_waiting", gauges.waiting, "gauge"),
            _one("vllm:kv_cache_usage_perc", gauges.kv_used_fraction, "gauge"),
            _one("vllm:prefix_cache_queries_total", self._prompt_tokens),
            _one("vllm:prefix_cache_hits_total", self._cached_tokens),
            _one("vllm:num_preemptions_total", self._preemptions),
            _one("vllm:prompt_tokens_total", self._prompt_tokens),
            _one("vllm:prompt_tokens_cached_total", self._cached_tokens),
            Family(
                "vllm:prompt_tokens_by_source_total",
                "counter",
                [
                    ({"source": "local_compute"}, computed_tokens),
                    ({"source": "local_cache_hit"}, self._cached_tokens),
                    ({"source": "external_kv_transfer"}, 0),
                ],
            ),
            _one("vllm:generation_tokens_total", self._generated_tokens),
            Family(
                "vllm:request_success_total",
                "counter",
                [({"finished_reason": r}, n) for r, n in self._success.items()],
            ),
            Family(
                "vllm:admission_rejections_total",
                "counter",
                [({"reason": "max_num_queued_reqs"}, self._rejected)],
            ),
        ]
        histograms = [
            self._step_tokens, self._prompt, self._output, self._first_token,
            self._latency, self._queue, self._prefill, self._decode,
        ]  # fmt: skip
        return text_of([*families, *histograms], self._labels)


def _one(name: str, value: float, kind: str = "counter") -> Family:
    return Family(name, kind, [({}, value)])
