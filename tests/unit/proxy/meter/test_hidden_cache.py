"""Prompts that a cache held, where only the engine's counters tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.hidden_cache import brought_to
from proxy.meter.attribution.fit import FitRules
from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from tests.support.engine_counters import scrapes_of
from tests.support.meter_scenes import (
    Asked,
    counter,
    events_of,
    in_order,
    settled_on_beat,
)

PLAIN, TOKEN = 0.01, 5e-5
"""Seconds of a step without a prompt, and more of it for each prompt token."""


def served(
    cached: dict[int, int], count: int = 40, prompt: int = 2000
) -> tuple[list[Asked], list[int]]:
    """One after another beside a long stream; steps last as their prompts need."""
    at, first = 1.0, 1.1
    stamps = [first]
    requests: list[Asked] = []
    for number in range(count):
        at = stamps[-1]
        computed = prompt - cached.get(number, 0)
        arrived = at + 0.001
        stamps.append(at + PLAIN)
        stamps.append(stamps[-1] + PLAIN + computed * TOKEN)
        tokens = [stamps[-1] + PLAIN * k for k in range(15)]
        requests.append(Asked(arrived, tokens, prompt=prompt))
        stamps += tokens[1:]
    beside = Asked(1.0, stamps, prompt=1)
    hits = [cached.get(number, 0) for number in range(count)]
    return [*requests, beside], [*hits, 0]


def met(
    asked: list[Asked], hits: list[int], *, is_told: bool
) -> tuple[Meter, dict[str, RequestRecord]]:
    until = asked[-1].tokens[-1] + 3.0
    gauges = scrapes_of(asked, until, cached=hits) if is_told else []
    config = MeterConfig(idle_watts=50.0, fit_rules=FitRules(min_used_rows=1e6))
    meter = Meter(config)
    events = in_order(events_of(asked), counter(until), gauges)
    found = settled_on_beat(meter, events, beat=0.1, until=until + 100)
    return meter, {record.request_id: record for record in found}


def tokens_charged(records: dict[str, RequestRecord], number: int) -> float:
    return records[f"r{number}"].energy.policy_joules["tokens"]


def test_the_counters_tell_who_was_in_the_cache() -> None:
    """Every other prompt was there; its step is hardly longer than a plain one."""
    cached = {number: 1984 for number in range(0, 40, 2)}
    asked, hits = served(cached)
    _, records = met(asked, hits, is_told=True)
    late = range(20, 38)  # the first second or two passes before it is noticed
    held = [tokens_charged(records, n) for n in late if n in cached]
    computed = [tokens_charged(records, n) for n in late if n not in cached]
    assert max(held) < min(computed) / 10


def test_a_record_says_what_was_inferred_and_not_told() -> None:
    asked, hits = served({number: 1984 for number in range(0, 40, 2)})
    _, records = met(asked, hits, is_told=True)
    held, computed = records["r30"], records["r31"]
    assert held.cached_tokens is None
    assert held.inferred_cached_tokens == pytest.approx(1984, rel=0.05)
    assert computed.inferred_cached_tokens == pytest.approx(0, abs=100)
    assert "cache_inferred" in held.energy.grade_reasons
    _, blind = met(asked, hits, is_told=False)
    assert blind["r30"].inferred_cached_tokens is None
    assert "cache_unknown" in blind["r30"].energy.grade_reasons


def test_without_hits_a_whole_prompt_is_computed() -> None:
    asked, hits = served({})
    _, told = met(asked, hits, is_told=True)
    _, blind = met(asked, hits, is_told=False)
    for number in range(len(asked)):
        assert told[f"r{number}"].energy.policy_joules == (
            blind[f"r{number}"].energy.policy_joules
        )


@given(
    most=st.lists(st.floats(0.0, 9000.0), min_size=1, max_size=9),
    parts=st.lists(st.floats(0.0, 1.0), min_size=9, max_size=9),
    target=st.floats(0.0, 50_000.0),
)
def test_what_is_inferred_adds_up_to_what_the_engine_counted(
    most: list[float], parts: list[float], target: float
) -> None:
    limits = np.array(most)
    taken = limits * np.array(parts[: len(most)])
    filled = brought_to(taken, limits, target)
    assert (filled >= 0.0).all()
    assert (filled <= limits * (1 + 1e-9) + 1e-9).all()
    if taken.sum() > 0:
        assert filled.sum() == pytest.approx(min(target, limits.sum()), abs=1e-6)
