"""TGI's `/metrics`: counters without `_total`, as its router names them."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.simulator.core.engine import Step
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.exposition import Family, Histogram, text_of
from loadgen.simulator.wire import Gauges, Generation

FAILURES = (
    "validation", "overloaded", "dropped", "generation", "incomplete", "template",
)  # fmt: skip
SECONDS_BOUNDS = tuple(1e-4 * 1.5**k for k in range(1, 36))
LENGTH_BOUNDS = tuple(float(2**k) for k in range(18))


class TgiMetrics:
    """Counters and histograms of one engine."""

    def __init__(self) -> None:
        self._count = self._success = self._prefills = self._decodes = 0
        self._failures = dict.fromkeys(FAILURES, 0)
        self._total, self._queue, self._inference, self._per_token = (
            Histogram(f"tgi_request_{name}_duration", SECONDS_BOUNDS)
            for name in ("total", "queue", "inference", "mean_time_per_token")
        )
        self._total.name = "tgi_request_duration"
        self._input, self._generated = (
            Histogram(f"tgi_request_{name}", LENGTH_BOUNDS)
            for name in ("input_length", "generated_tokens")
        )

    def scheduled(self, truth: RequestTruth) -> None:
        """A sequence was computed for the first time."""
        self._input.observe(truth.prompt_tokens)

    def stepped(self, step: Step) -> None:
        """A step ended."""
        self._prefills += bool(step.prefill_tokens)
        self._decodes += bool(step.decodes)

    def finished(self, generation: Generation, truths: Sequence[RequestTruth]) -> None:
        """A request got all its tokens."""
        self._count += 1
        self._success += 1
        for truth in truths:
            last, scheduled = truth.last_token_seconds, truth.scheduled_seconds
            self._generated.observe(truth.output_tokens)
            if last is None or scheduled is None:
                continue
            self._total.observe(last - truth.arrived_seconds)
            self._queue.observe(scheduled - truth.arrived_seconds)
            self._inference.observe(last - scheduled)
            self._per_token.observe((last - scheduled) / truth.output_tokens)

    def failed(self, reason: str) -> None:
        """A request was `overloaded`, `dropped` by its client, or broke."""
        self._count += 1
        self._failures[reason] += 1

    def page(self, gauges: Gauges) -> str:
        """The text of `GET /metrics`."""
        failures = [({"err": reason}, n) for reason, n in self._failures.items()]
        methods = [({"method": "prefill"}, self._prefills)]
        methods.append(({"method": "decode"}, self._decodes))
        families: list[Family | Histogram] = [
            Family("tgi_batch_current_size", "gauge", [({}, gauges.running)]),
            Family("tgi_queue_size", "gauge", [({}, gauges.waiting)]),
            Family("tgi_request_count", "counter", [({}, self._count)]),
            Family("tgi_request_success", "counter", [({}, self._success)]),
            Family("tgi_request_failure", "counter", failures),
            Family("tgi_batch_inference_count", "counter", methods),
        ]
        histograms = [
            self._total, self._queue, self._inference, self._per_token, self._input,
            self._generated,
        ]  # fmt: skip
        return text_of([*families, *histograms], {})
