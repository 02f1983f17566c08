"""Histograms over settled requests: figures, buckets, and the bound on their labels.

A class is one combination of labels, and costs some 300 lines on the page: clients
may multiply them, so there are `MAX_CLASSES` in all, and a page stays below 10,000
lines. Beyond, a request is observed under a coarser class (tenant `other`, then kind
`other` too, then model and engine), never left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from proxy.meter.ledger import RequestRecord
from proxy.process.tally import fine_edges

# Fine over the decades that engines and boards of today need, coarse around them.
JOULE_EDGES = fine_edges(-1, 5, below=(0.001, 0.01), above=(3e4, 1e5))
"""From a short completion on a small model to a long one on many boards."""
TOKEN_JOULE_EDGES = fine_edges(-3, 5, below=(1e-4,), above=(300.0, 1e3))
FIRST_TOKEN_EDGES = fine_edges(-3, 5, below=(1e-4,), above=(300.0,))
DURATION_EDGES = fine_edges(-2, 5, below=(0.001,), above=(3e3,))
TOKEN_EDGES = tuple(float(2**power) for power in range(18))
"""Counts of tokens: lengths are told apart by their doublings."""

MAX_CLASSES = 24
"""Distinct (engine, model, kind, tenant, outcome), without the few that have only
`other` for the first four."""
RESERVED = 10
"""Room kept for classes of engine, model and outcome alone, whose names the operator
chose."""

Class = tuple[str, str, str, str, str]
"""Engine, model, kind, tenant, outcome."""


class ClassBound:
    """Lets the first classes through and makes later ones coarser."""

    def __init__(self, most: int = MAX_CLASSES, reserved: int = RESERVED) -> None:
        self._fine_most = most - reserved
        self._coarse_most = reserved
        self._fine: set[Class] = set()
        self._coarse: set[Class] = set()

    def bounded(self, labels: Class) -> Class:
        """The class itself if there is room for it, else the finest one there is."""
        engine, model, kind, _, outcome = labels
        coarse = (engine, model, "other", "other", outcome)
        for candidate in (labels, (engine, model, kind, "other", outcome)):
            if candidate in self._fine:
                return candidate
            if candidate != coarse and len(self._fine) < self._fine_most:
                self._fine.add(candidate)
                return candidate
        if coarse not in self._coarse and len(self._coarse) >= self._coarse_most:
            return ("other", "other", "other", "other", outcome)
        self._coarse.add(coarse)
        return coarse


def consumed_joules(record: RequestRecord) -> float | None:
    """Energy of a request for which something was computed, else None.

    A refused request, or one that left before its work began, is no cheap request;
    of an unknown energy nothing is known either.
    """
    energy = record.energy
    active_joules = (energy.prefill_joules or 0.0) + (energy.decode_joules or 0.0)
    is_free = not energy.energy_joules or active_joules <= 0
    return None if is_free and not record.output_tokens else energy.energy_joules


def ttft_seconds(record: RequestRecord) -> float | None:
    """From arrival to first token."""
    if record.first_token_seconds is None:
        return None
    return record.first_token_seconds - record.arrived_seconds


def token_seconds(record: RequestRecord) -> float | None:
    """Mean time per token after the first; None below two tokens."""
    first, last = record.first_token_seconds, record.last_token_seconds
    if first is None or last is None or (record.output_tokens or 0) < 2:
        return None
    return (last - first) / ((record.output_tokens or 0) - 1)


def output_token_joules(record: RequestRecord) -> float | None:
    """Whole energy of the request over the tokens it was given."""
    if record.energy.energy_joules is None or not record.output_tokens:
        return None
    return record.energy.energy_joules / record.output_tokens


PROMPT_BINS = (128, 512, 2_048, 8_192, 32_768)
OUTPUT_BINS = (32, 128, 512, 2_048, 8_192)
"""Upper ends of length bins, which belong to them; longer ones are `more`."""


def length_bin(tokens: int, ends: tuple[int, ...]) -> str:
    """The bin's upper end, as a label."""
    return next((str(end) for end in ends if tokens <= end), "more")


@dataclass(slots=True)
class LengthBins:
    """Requests answered in full whose energy is known, and their joules, by lengths."""

    _requests: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    _joules: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)

    def add(self, record: RequestRecord) -> None:
        """Count a record, if it has all of that."""
        joules = record.energy.energy_joules
        prompt, output = record.prompt_tokens, record.output_tokens
        if record.outcome == "ok" and None not in (joules, prompt, output):
            assert joules is not None
            assert prompt is not None
            assert output is not None
            bins = length_bin(prompt, PROMPT_BINS), length_bin(output, OUTPUT_BINS)
            self._requests.setdefault(record.engine, Counter())[bins] += 1
            joules_by_bin = self._joules.setdefault(record.engine, {})
            joules_by_bin[bins] = joules_by_bin.get(bins, 0.0) + joules

    def requests_of(self, engine: str) -> dict[tuple[str, str], int]:
        """Requests of an engine by bin of prompt and output."""
        return dict(self._requests.get(engine, {}))

    def joules_of(self, engine: str) -> dict[tuple[str, str], float]:
        """Their energy."""
        return dict(self._joules.get(engine, {}))
