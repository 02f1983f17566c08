"""Work past the proxy, known by the engine's own count of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.external import Excess, Found, Ground, work_rows
from proxy.meter.attribution.policies import POLICIES
from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import EngineObserved, Event, RequestClosed, RequestOpened
from proxy.wire.facts import UNMETERED, EngineGauges, RequestFacts
from tests.support.engine_counters import scrapes_of
from tests.support.meter_scenes import (
    Asked,
    counter,
    events_of,
    in_order,
    settled_on_beat,
    ticks,
)
from tests.support.profiles import examples

WATTS, IDLE_WATTS = 300.0, 50.0
GIVEN = MeterConfig(idle_watts=IDLE_WATTS)


def met(
    own: Sequence[Asked],
    gauges: Sequence[EngineObserved],
    *,
    until: float = 16.0,
    beat: float = 0.1,
    config: MeterConfig = GIVEN,
    more: Sequence[Event] = (),
) -> tuple[Meter, dict[str, RequestRecord]]:
    meter = Meter(config)
    events = in_order(events_of(own), gauges, counter(until, WATTS), more)
    found = settled_on_beat(meter, events, beat=beat, until=until + 100.0)
    assert abs(meter.books_at().residual_joules) < 1e-6
    return meter, {record.request_id: record for record in found}


def external(meter: Meter, reason: str = "external") -> float:
    return meter.books_at().unattributed_joules.get(reason, 0.0)


OWN = Asked(2.1, ticks(2.2, 12.0), prompt=200)


def test_what_the_engine_computed_for_others_is_charged_by_its_tokens() -> None:
    """One stranger with the proxy's own pace: half the work is its own."""
    stranger = Asked(2.1, ticks(2.21, 12.01), prompt=200)
    meter, records = met([OWN], scrapes_of([OWN, stranger], 16.0))
    _, alone = met([OWN], scrapes_of([OWN], 16.0))
    whole = alone["r0"].energy.policy_joules
    shared = records["r0"].energy.policy_joules
    for policy in ("tokens", "phase"):
        # it is proven within three seconds; from there on each pays a half
        assert 0.49 < shared[policy] / whole[policy] < 0.6
    assert external(meter) > 0.35 * WATTS * 9.8


def test_one_token_in_four_is_a_fourth_of_the_tokens() -> None:
    stranger = Asked(2.1, ticks(2.23, 14.0, every=0.06), prompt=1)
    config = replace(GIVEN, policy="tokens")
    meter, _ = met([OWN], scrapes_of([OWN, stranger], 16.0), config=config)
    at, then = (meter.books_at(each) for each in (6.0, 10.0))
    told = (
        then.unattributed_joules["external"] - at.unattributed_joules["external"]
    ) / (then.measured_joules - at.measured_joules)
    # of idle too: they keep the engine busy for as long as each other token
    assert told == pytest.approx(0.25, rel=0.1)


def test_prompts_without_output_are_work_too() -> None:
    """Embeddings beside a chat: no generated token tells of them."""
    inputs = [Asked(2.0 + n / 10, [2.05 + n / 10], prompt=3000) for n in range(100)]
    gauges = scrapes_of([OWN, *inputs], 16.0)
    output = scrapes_of([OWN], 16.0)
    shown = [
        replace_tokens(one, two.gauges.output_tokens)
        for one, two in zip(gauges, output, strict=True)
    ]
    meter, _ = met([OWN], shown)
    assert external(meter) > 0.7 * WATTS * 9.8


def replace_tokens(one: EngineObserved, output: float | None) -> EngineObserved:
    told = one.gauges
    gauges = EngineGauges(
        told.running, told.waiting, told.preemptions, told.progress,
        prompt_tokens=told.prompt_tokens, output_tokens=output,
    )  # fmt: skip
    return EngineObserved(one.at_seconds, gauges)


@given(
    st.lists(st.floats(2.0, 14.0), min_size=1, max_size=4),
    st.floats(0.1, 0.9),
    st.integers(1, 6),
)
def test_a_proxy_that_was_stalled_has_no_external_work(
    starts: list[float], seconds: float, streams: int
) -> None:
    """It reads what came meanwhile all at once; the engine counted it in time."""

    def read(at: float) -> float:
        for start in sorted(starts):
            if start <= at < start + seconds:
                at = start + seconds
        return at

    own = [
        Asked(2.1 + n / 100, ticks(2.2 + n / 100, 12.0), prompt=200)
        for n in range(streams)
    ]
    late = [replace(one, tokens=[read(at) for at in one.tokens]) for one in own]
    meter, _ = met(late, scrapes_of(own, 18.0), until=18.0)
    assert external(meter) == 0.0


@pytest.mark.parametrize("odd", ["restart", "jump", "not told"])
def test_counters_that_cannot_be_are_no_information(odd: str) -> None:
    scraped = scrapes_of([OWN], 16.0)
    shown: list[EngineObserved] = []
    for number, one in enumerate(scraped):
        told = one.gauges
        prompt, output = told.prompt_tokens or 0.0, told.output_tokens or 0.0
        if number >= 6:
            if odd == "restart":
                prompt, output = 0.0, output - 200.0
            elif odd == "jump":
                prompt += 1e9
        gauges = EngineGauges(
            told.running, told.waiting, 0, told.progress,
            prompt_tokens=None if odd == "not told" and number == 6 else prompt,
            output_tokens=output,
        )  # fmt: skip
        shown.append(EngineObserved(one.at_seconds, gauges))
    meter, records = met([OWN], shown)
    _, alone = met([OWN], scraped)
    assert external(meter) == 0.0
    assert records["r0"].energy.energy_joules == alone["r0"].energy.energy_joules


# --- a load that is fully seen ------------------------------------------------


@st.composite
def streams(draw: st.DrawFn) -> Asked:
    arrived = draw(st.floats(0.6, 4.0))
    count = draw(st.integers(1, 100))
    first = arrived + draw(st.floats(0.02, 1.0))
    every = draw(st.sampled_from([0.01, 0.03]))
    return Asked(
        arrived,
        [first + every * n for n in range(count)],
        prompt=draw(st.integers(1, 9000)),
        outcome=draw(st.sampled_from(["ok", "ok", "aborted"])),
        running_usage=draw(st.booleans()),
    )


@examples(15)
@given(
    own=st.lists(streams(), min_size=1, max_size=8),
    early=st.floats(-0.08, 0.08),
    first=st.floats(0.0, 0.99),
    run_on=st.integers(0, 10),
)
def test_a_load_that_is_fully_seen_has_no_external_work(
    own: list[Asked], early: float, first: float, run_on: int
) -> None:
    """Also where the engine went on for clients that had left."""
    computed = [
        replace(one, tokens=[*one.tokens, *[one.tokens[-1] + 0.02] * run_on])
        if one.outcome == "aborted"
        else one
        for one in own
    ]
    shown = scrapes_of(computed, 9.0, first=first, early_seconds=early)
    meter, _ = met(own, shown, until=9.0, beat=0.5)
    assert "external" not in meter.books_at().unattributed_joules


@examples(15)
@given(
    own=st.lists(streams(), min_size=1, max_size=5),
    others=st.lists(streams(), max_size=5),
    beat=st.sampled_from([0.2, 0.5, 2.0]),
)
def test_when_settlement_runs_does_not_matter_beside_others(
    own: list[Asked], others: list[Asked], beat: float
) -> None:
    """Whatever a beat knows of later times, it charges the same."""
    seen = [replace(one, outcome="ok", running_usage=True) for one in own]
    gauges = scrapes_of([*seen, *others], 9.0)
    once, at_once = met(seen, gauges, until=9.0, beat=1e9)
    often, on_beat = met(seen, gauges, until=9.0, beat=beat)
    assert external(often) == pytest.approx(external(once), abs=1e-6)
    for name, record in on_beat.items():
        assert record.energy.energy_joules == pytest.approx(
            at_once[name].energy.energy_joules, abs=1e-6
        )


@pytest.mark.parametrize("policy", POLICIES)
@examples(15)
@given(
    own=st.lists(streams(), max_size=5),
    others=st.lists(streams(), max_size=5),
    lost=st.sets(st.integers(0, 9)),
)
def test_every_joule_is_in_one_account_beside_others(
    policy: str, own: list[Asked], others: list[Asked], lost: set[int]
) -> None:
    gauges = scrapes_of([*own, *others], 9.0)
    shown = [one for number, one in enumerate(gauges) if number not in lost]
    config = replace(GIVEN, policy=policy)
    meter, records = met(own, shown, until=9.0, beat=0.5, config=config)
    books = meter.books_at()
    joules = [record.energy.energy_joules or 0.0 for record in records.values()]
    assert len(records) == len(own)
    assert min([external(meter), *joules]) >= 0.0
    assert books.measured_joules == pytest.approx(
        sum(joules) + books.idle_joules + external(meter), abs=1e-3
    )


# --- requests passed on unread ------------------------------------------------


def passed(began: float, ended: float) -> list[Event]:
    return [
        RequestOpened(9999, began, "u", RequestFacts(UNMETERED)),
        RequestClosed(9999, ended, "ok"),
    ]


def test_one_passed_unread_is_charged_by_its_tokens() -> None:
    unread = Asked(4.4, [4.9], prompt=20_000)
    gauges = scrapes_of([OWN, unread], 16.0)
    meter, _ = met([OWN], gauges, more=passed(4.4, 5.0))
    assert external(meter) == 0.0
    taken = external(meter, "unmetered")
    assert 0.5 * WATTS < taken < 0.9 * WATTS  # most of the two windows it ran in


def test_one_passed_unread_that_computes_nothing_costs_nothing() -> None:
    meter, _ = met([OWN], scrapes_of([OWN], 16.0), more=passed(4.0, 8.0))
    assert external(meter, "unmetered") == 0.0


# --- the difference of two counts ---------------------------------------------


@given(
    noise=st.lists(st.floats(-50.0, 50.0), min_size=2, max_size=60),
    own=st.floats(0.0, 1e4),
)
def test_no_noise_within_the_slack_is_external(noise: list[float], own: float) -> None:
    excess = Excess()
    excess.begin(0.0, 50.0)
    offset = noise[0] - noise[0]
    for number, off in enumerate(noise, start=1):
        found = excess.found(number - 1.0, number, off - offset, 50.0, 0.02 * own)
        offset = off
        assert found == 0.0


@given(rate=st.floats(20.0, 1e4), slack_seconds=st.floats(0.0, 4.0))
def test_a_steady_difference_is_found_whole_once_it_is_proven(
    rate: float, slack_seconds: float
) -> None:
    slack = rate * slack_seconds  # a trickle below it is proven anew too seldom
    excess = Excess()
    excess.begin(0.0, slack)
    found = [excess.found(n - 1.0, float(n), rate, slack, 0.0) for n in range(1, 200)]
    proven = next(n for n, one in enumerate(found) if one)
    assert proven <= 4 * slack / rate + 1
    assert found[proven + 1 :] == pytest.approx([rate] * (198 - proven))


# --- where the work is put ----------------------------------------------------

spans = st.lists(st.floats(0.001, 0.3), max_size=30)


@given(
    spans=spans,
    gap=st.floats(0.0, 0.5),
    prompts=st.floats(0.0, 1e5),
    output=st.floats(0.0, 1e4),
)
def test_all_of_the_work_is_put_between_the_scrapes(
    spans: list[float], gap: float, prompts: float, output: float
) -> None:
    ends = 1.0 + np.cumsum(spans)
    ground = Ground(ends - spans, ends, np.zeros(len(ends)), 0.02)
    found = Found(1.2, 2.2 + gap, prompts, output)
    prompt_rows, output_rows = work_rows(found, ground)
    spread = [row[:3] for row in output_rows]
    for rows, tokens in ((prompt_rows, prompts), (spread, output)):
        assert sum(row[2] for row in rows) == pytest.approx(tokens)
        assert all(1.2 <= row[0] <= row[1] <= 2.2 + gap for row in rows)
        assert all(row[2] >= 0.0 for row in rows)
    assert all(row[3] >= 0.0 for row in output_rows)


def test_prompts_are_put_into_steps_that_nothing_else_explains() -> None:
    spans = np.array([0.01] * 10 + [0.2] + [0.01] * 10)
    ends = 5.0 + np.cumsum(spans)
    ground = Ground(ends - spans, ends, np.zeros(21), 0.02)
    found = Found(5.0, float(ends[-1]), 3000.0, 42.0)
    (prompt,), output = work_rows(found, ground)
    assert prompt == pytest.approx((ends[9], ends[10], 3000.0))
    assert [row[2] for row in output] == pytest.approx([2.0] * 21)


# --- an engine that tells nothing any more ------------------------------------

LONG = 130.0
COARSE = replace(GIVEN, window_seconds=5.0)
ALONE = [Asked(n + 0.1, ticks(n + 0.2, n + 0.6)) for n in range(1, 120)]
SCRAPED = scrapes_of(ALONE, LONG)


def test_own_tokens_are_not_kept_for_scrapes_that_never_come() -> None:
    meter, _ = met(ALONE, SCRAPED[:5], until=LONG, beat=5.0, config=COARSE)
    count = meter._timeline.count._own
    reads = sum(len(one.tokens) for one in ALONE)
    assert len(count._reads.seconds) < 0.7 * reads  # of a minute
    assert len(count._left) < 70


def test_scrapes_that_come_again_after_a_minute_find_no_external_work() -> None:
    meter, _ = met(
        ALONE, [*SCRAPED[:5], *SCRAPED[80:]], until=LONG, beat=5.0, config=COARSE
    )
    assert external(meter) == 0.0
