"""Measures: every latency and energy figure as a function of a record.

Seconds and joules, base units. A measure of a failed request is None, never 0,
and None also stands for a measure that the request does not have (a time per
output token of a one-token reply). Names follow vLLM where vLLM has the measure; the
same names mean other things elsewhere (what we call TPOT is ITL in aiperf).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loadgen.errors import UsageError
from loadgen.results.results import Result


@dataclass(frozen=True, slots=True)
class Measure:
    """One value per request."""

    of: Callable[[Result], float | None]
    unit: str
    help: str


@dataclass(frozen=True, slots=True)
class PooledMeasure:
    """Many values per request, pooled over requests before percentiles are taken."""

    of: Callable[[Result], Sequence[float]]
    unit: str
    help: str


def is_ok(result: Result) -> bool:
    """Whether the request was answered in full."""
    return result.outcome == "ok"


def ttft_seconds(result: Result) -> float | None:
    """First token of any channel, visible or reasoning, since the send."""
    return _since_send(result, result.first_token_seconds)


def ttft_sched_seconds(result: Result) -> float | None:
    """First token since the intended start: waiting in the client included."""
    return _since_plan(result, result.first_token_seconds)


def ttfo_seconds(result: Result) -> float | None:
    """First token the user would see since the send."""
    return _since_send(result, result.first_visible_seconds)


def connect_seconds(result: Result) -> float | None:
    """Time for a connection of the request's own; 0 where one was ready."""
    return result.connect_seconds if is_ok(result) else None


def send_seconds(result: Result) -> float | None:
    """Time to hand the request to the kernel."""
    return result.send_seconds if is_ok(result) else None


def wait_seconds(result: Result) -> float | None:
    """From the send to the first byte of the reply's head."""
    return result.wait_seconds if is_ok(result) else None


def e2el_seconds(result: Result) -> float | None:
    """Last token since the send; usage-only events and `[DONE]` do not extend it."""
    return _since_send(result, _last_answer_seconds(result))


def e2el_sched_seconds(result: Result) -> float | None:
    """Last token since the intended start."""
    return _since_plan(result, _last_answer_seconds(result))


def decode_seconds(result: Result) -> float | None:
    """First to last token, not divided by anything: shows early stops."""
    first, last = result.first_token_seconds, result.last_token_seconds
    if not is_ok(result) or first is None or last is None:
        return None
    return last - first


def tpot_seconds(result: Result) -> float | None:
    """Decode time per token after the first; None below two tokens."""
    decoding = decode_seconds(result)
    if decoding is None or result.output_tokens is None or result.output_tokens < 2:
        return None
    return decoding / (result.output_tokens - 1)


def ntpot_seconds(result: Result) -> float | None:
    """End-to-end latency per output token."""
    whole = e2el_seconds(result)
    if whole is None or not result.output_tokens:
        return None
    return whole / result.output_tokens


def lag_seconds(result: Result) -> float | None:
    """Send minus intended start, whatever came back; None when never sent."""
    if result.sent_seconds is None:
        return None
    return result.sent_seconds - result.planned_seconds


def energy_joules(result: Result) -> float | None:
    """Prefill + decode + the share of idle power while the request ran."""
    return result.energy.energy_joules if is_ok(result) and result.energy else None


def active_joules(result: Result) -> float | None:
    """Prefill + decode: what the request cost beyond keeping the engine loaded."""
    if not is_ok(result) or result.energy is None:
        return None
    prefill, decode = result.energy.prefill_joules, result.energy.decode_joules
    return prefill + decode if prefill is not None and decode is not None else None


def energy_per_output_token_joules(result: Result) -> float | None:
    """Whole energy of the request over the tokens it was given."""
    joules = energy_joules(result)
    if joules is None or not result.output_tokens:
        return None
    return joules / result.output_tokens


def tokens_per_joule(result: Result) -> float | None:
    """Output tokens over the whole energy of the request."""
    joules = energy_joules(result)
    if not joules or result.output_tokens is None:
        return None
    return result.output_tokens / joules


def energy_delay_joule_seconds(result: Result) -> float | None:
    """Energy-delay product: whole energy times end-to-end latency."""
    joules, whole = energy_joules(result), e2el_seconds(result)
    return None if joules is None or whole is None else joules * whole


def chunk_gaps_seconds(result: Result) -> Sequence[float]:
    """Time between consecutive reads that bore tokens; none on failure."""
    if not is_ok(result):
        return []
    return [later - sooner for sooner, later in pairwise(result.chunk_seconds)]


def token_gaps_seconds(result: Result) -> Sequence[float]:
    """Each gap divided over the tokens that arrived at its end, once per token."""
    gaps = chunk_gaps_seconds(result)
    spread: list[float] = []
    for gap, tokens in zip(gaps, result.chunk_tokens[1:], strict=False):
        if tokens:
            spread += [gap / tokens] * tokens
    return spread


MEASURES: dict[str, Measure] = {
    "ttft": Measure(ttft_seconds, "s", "time to first token, from the send"),
    "ttft_sched": Measure(
        ttft_sched_seconds, "s", "time to first token, from the intended start"
    ),
    "connect": Measure(
        connect_seconds, "s", "connection that had to be made first; 0: one was ready"
    ),
    "send": Measure(send_seconds, "s", "request handed to the kernel"),
    "wait": Measure(wait_seconds, "s", "send to the first byte of the reply's head"),
    "ttfo": Measure(ttfo_seconds, "s", "time to first visible (non-reasoning) token"),
    "tpot": Measure(
        tpot_seconds, "s", "time per output token after the first: decode / (n - 1)"
    ),
    "e2el": Measure(e2el_seconds, "s", "end-to-end latency, send to last token"),
    "e2el_sched": Measure(
        e2el_sched_seconds, "s", "end-to-end latency, intended start to last token"
    ),
    "ntpot": Measure(ntpot_seconds, "s", "end-to-end latency per output token"),
    "decode": Measure(decode_seconds, "s", "first to last token"),
    "energy": Measure(
        energy_joules, "J", "energy per request: prefill + decode + idle share"
    ),
    "active_energy": Measure(
        active_joules, "J", "energy per request without its share of idle power"
    ),
    "energy_per_output_token": Measure(
        energy_per_output_token_joules, "J", "energy per output token of one request"
    ),
    "tokens_per_joule": Measure(
        tokens_per_joule, "tokens/J", "output tokens per joule of one request"
    ),
    "energy_delay": Measure(
        energy_delay_joule_seconds,
        "J s",
        "energy-delay product: energy per request times end-to-end latency",
    ),
}

POOLED_MEASURES: dict[str, PooledMeasure] = {
    "itl": PooledMeasure(
        chunk_gaps_seconds, "s", "inter-token latency: gaps between token-bearing reads"
    ),
    "itl_token": PooledMeasure(
        token_gaps_seconds, "s", "the same gaps, shared over the tokens of each read"
    ),
}

SCHEDULE_LAG = Measure(
    lag_seconds, "s", "schedule lag: send minus intended start, failures included"
)


@dataclass(frozen=True, slots=True)
class Objective:
    """A goodput key: the value compared with its limit, and the limit's unit."""

    of: Callable[[Result], float | None]
    per_base_unit: float
    """User's units in one base unit: 1000 for milliseconds."""
    needs_two_tokens: bool = False
    """A one-token reply has no value to compare, so it meets the objective."""


def worst_gap_seconds(result: Result) -> float | None:
    """The longest silence inside the reply."""
    return max(chunk_gaps_seconds(result), default=None)


OBJECTIVES: dict[str, Objective] = {
    "ttft": Objective(ttft_seconds, 1000),
    "ttft_sched": Objective(ttft_sched_seconds, 1000),
    "tpot": Objective(tpot_seconds, 1000, needs_two_tokens=True),
    "itl": Objective(worst_gap_seconds, 1000, needs_two_tokens=True),
    "e2el": Objective(e2el_seconds, 1000),
    "e2el_sched": Objective(e2el_sched_seconds, 1000),
    "energy": Objective(energy_joules, 1),
}


def parse_goodput(words: Iterable[str]) -> dict[str, float]:
    """`ttft:200 tpot:50` in milliseconds (energy in joules) to limits in base units.

    Words may be given one by one, or several in one, apart by space or comma.
    Raises UsageError for an unknown key, a limit that is no positive number, or
    a key given twice.
    """
    limits: dict[str, float] = {}
    for word in " ".join(words).replace(",", " ").split():
        key, _, value = word.partition(":")
        name, equals, limit = word.partition("=")
        if equals and name in OBJECTIVES:
            raise UsageError(
                f"--goodput {word}: expected a colon, {name}:{limit or 200}"
            )
        if key not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise UsageError(f"--goodput {word}: unknown key {key!r}; known: {known}")
        if key in limits:
            raise UsageError(f"--goodput {word}: {key} is given twice")
        limits[key] = _limit(word, value) / OBJECTIVES[key].per_base_unit
    return limits


def meets(result: Result, limits: Mapping[str, float]) -> bool:
    """Whether the request was answered within every limit; failures are misses."""
    return is_ok(result) and all(
        _is_within(result, OBJECTIVES[key], limit) for key, limit in limits.items()
    )


def _is_within(result: Result, objective: Objective, limit: float) -> bool:
    value = objective.of(result)
    if value is None:
        has_two = result.output_tokens is None or result.output_tokens > 1
        return objective.needs_two_tokens and not has_two
    return value <= limit


def _limit(word: str, value: str) -> float:
    try:
        limit = float(value)
    except ValueError:
        limit = -1.0
    if not 0 < limit < float("inf"):
        raise UsageError(
            f"--goodput {word}: the limit is {value!r}, expected a positive number "
            "(milliseconds; joules for energy), such as ttft:200"
        )
    return limit


def _last_answer_seconds(result: Result) -> float | None:
    """Last token; a reply that does not stream has its only stamp at the end."""
    if result.last_token_seconds is None and not result.chunk_seconds:
        return result.finished_seconds
    return result.last_token_seconds


def _since_send(result: Result, at_seconds: float | None) -> float | None:
    return _between(result, result.sent_seconds, at_seconds)


def _since_plan(result: Result, at_seconds: float | None) -> float | None:
    return _between(result, result.planned_seconds, at_seconds)


def _between(
    result: Result, begin_seconds: float | None, end_seconds: float | None
) -> float | None:
    """None for a failed or unsent request, and where an instant is not known."""
    if not is_ok(result) or result.sent_seconds is None:
        return None
    if begin_seconds is None or end_seconds is None:
        return None
    return end_seconds - begin_seconds
