"""TGI's `/metrics`: counters without `_total`, as its router names them."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.simulator.core.engine import Step
from loadgen.simulator.core.truth import RequestTruth
from loadgen.simulator.exposition import Page
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
        self._has_queue = self._has_batch = False
        self._failures = dict.fromkeys(FAILURES, 0)
        page = self._page = Page()
        self._total, self._queue, self._inference, self._per_token = (
            page.histogram(f"tgi_request_{name}", SECONDS_BOUNDS)
            for name in (
                "duration",
                "queue_duration",
                "inference_duration",
                "mean_time_per_token_duration",
            )
        )
        self._input, self._generated = (
            page.histogram(f"tgi_request_{name}", LENGTH_BOUNDS)
            for name in ("input_length", "generated_tokens")
        )

    def scheduled(self, truth: RequestTruth) -> None:
        """A sequence was computed for the first time."""
        self._has_queue = True
        self._input.observe(truth.prompt_tokens)

    def prefilled(self, truth: RequestTruth) -> None:
        """A sequence got its first token; TGI counts prompts as they are queued."""

    def stepped(self, step: Step, generated_tokens: int) -> None:
        """A step ended."""
        self._has_batch = True
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
        family = self._page.family
        failures = [({"err": reason}, n) for reason, n in self._failures.items()]
        steps = [
            ({"method": "prefill"}, self._prefills),
            ({"method": "decode"}, self._decodes),
        ]
        # A gauge exists once it was set: the queue's with a first request, the batch's
        # when a prefill is done.
        shown = []
        if self._has_batch:
            shown.append(family("tgi_batch_current_size", "gauge", gauges.decoding))
        if self._has_queue:
            shown.append(family("tgi_queue_size", "gauge", gauges.waiting))
        return self._page.text(
            [
                *shown,
                family("tgi_request_count", "counter", self._count),
                family("tgi_request_success", "counter", self._success),
                family("tgi_request_failure", "counter", failures),
                family("tgi_batch_inference_count", "counter", steps),
            ]
        )
