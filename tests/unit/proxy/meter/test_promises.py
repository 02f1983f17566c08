"""The promises of attribution, as properties, for every policy as the headline."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.attribution.fit import FitRules
from proxy.meter.attribution.policies import POLICIES
from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import (
    Event,
    PowerSampled,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)
from proxy.wire.facts import Labels
from tests.support.meter_scenes import (
    Asked,
    counter_of,
    events_of,
    play,
    settled,
    settled_on_beat,
)
from tests.support.profiles import examples

MILLIJOULE = 1e-3
EAGER = FitRules(
    row_seconds=0.0,
    refit_seconds=0.0,
    min_used_rows=2.0,
    min_rows=2,
    max_split_error=math.inf,
    max_misfit=math.inf,
)
"""Trusts its constants after two windows, so that these short scenes use them."""

pytestmark = pytest.mark.parametrize("policy", POLICIES)
quickly = examples(15)


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    """A streamed request with some, or no, tokens; refused, aborted or fine."""
    arrived = draw(st.floats(0.6, 4.0))
    count = draw(st.integers(0, 40))
    first = arrived + draw(st.floats(0.01, 0.5))
    every = draw(st.sampled_from([0.01, 0.025, 0.06]))
    prompt = draw(st.integers(1, 4000))
    return Asked(
        arrived,
        [first + every * number for number in range(count)],
        prompt=prompt,
        cached=draw(st.one_of(st.none(), st.integers(0, prompt))),
        closed=None if count else arrived + draw(st.floats(0.001, 1.0)),
        labels=Labels(
            kind=draw(st.sampled_from(["conversation", "code"])),
            tenant=draw(st.sampled_from(["a", "b"])),
        ),
        outcome=draw(st.sampled_from(["ok", "aborted"])),
        status=200 if count else draw(st.sampled_from([200, 429, None])),
        running_usage=draw(st.booleans()),
    )


def config_of(policy: str, idle_watts: float | None = None) -> MeterConfig:
    """The policy as headline; one that learns does so at once."""
    return MeterConfig(policy=policy, idle_watts=idle_watts, fit_rules=EAGER)


several = st.lists(requests(), min_size=1, max_size=6)
powers = st.lists(st.floats(1.0, 900.0), min_size=80, max_size=80)


def joules_of(records: dict[str, RequestRecord]) -> dict[str, float]:
    """Known energy, by request."""
    return {
        name: record.energy.energy_joules
        for name, record in records.items()
        if record.energy.energy_joules is not None
    }


@quickly
@given(asked=several, watts=powers)
def test_every_joule_lands_in_exactly_one_account(
    policy: str, asked: list[Asked], watts: list[float]
) -> None:
    meter, records = settled(asked, counter_of(watts), config_of(policy))
    books = meter.books_at()
    paid = sum(joules_of(records).values())
    assert abs(books.residual_joules) < MILLIJOULE
    assert len(joules_of(records)) == len(asked)
    assert books.measured_joules == pytest.approx(
        paid + books.idle_joules + sum(books.unattributed_joules.values()),
        abs=MILLIJOULE,
    )


@quickly
@given(asked=several, watts=powers)
def test_no_share_is_negative(
    policy: str, asked: list[Asked], watts: list[float]
) -> None:
    _, records = settled(asked, counter_of(watts), config_of(policy))
    for record in records.values():
        energy = record.energy
        for joules in (
            energy.prefill_joules,
            energy.decode_joules,
            energy.idle_share_joules,
            *energy.policy_joules.values(),
        ):
            assert joules is not None
            assert joules >= 0.0


@quickly
@given(asked=several, watts=powers)
def test_nobody_pays_before_arrival_or_after_the_last_token(
    policy: str, asked: list[Asked], watts: list[float]
) -> None:
    config = config_of(policy, idle_watts=0.0)
    spike = [1.0] * len(watts)
    begin = min(one.arrived for one in asked)
    end = max(one.closed_seconds for one in asked)
    for number in range(len(watts)):
        is_before = (number + 1) * 0.1 < begin - 0.7  # a window and an update away
        is_after = number * 0.1 > end + 0.7
        spike[number] = 500.0 if is_before or is_after else 1.0
    _, records = settled(asked, counter_of(spike), config)
    assert sum(joules_of(records).values()) <= 1.0 * (end - begin + 1.4)


@quickly
@given(asked=several, watts=powers)
def test_every_edge_of_the_counter_is_used_once(
    policy: str, asked: list[Asked], watts: list[float]
) -> None:
    meter, _ = settled(asked, counter_of(watts), config_of(policy))
    books = meter.books_at()
    total = meter.state().device_joules["gpu0"]
    # Updates show from 0.1 s on; the first change is the zero, the last is shown.
    assert total == pytest.approx(sum(watts[1:-1]) * 0.1, abs=1e-6)
    ends = np.linspace(0.0, books.settled_seconds, 40)
    measured = [meter.books_at(at).measured_joules for at in ends]
    assert (np.diff(measured) >= 0).all()
    assert measured[-1] <= total + 1e-6


@quickly
@given(asked=several, watts=powers, seed=st.integers(0, 1000))
def test_the_order_in_which_events_are_told_does_not_matter(
    policy: str, asked: list[Asked], watts: list[float], seed: int
) -> None:
    sensor = counter_of(watts)
    _, in_order = settled(asked, sensor, config_of(policy))
    told: dict[int, list[Event]] = defaultdict(list)
    for event in events_of(asked):
        assert isinstance(event, RequestOpened | TokensReceived | RequestClosed)
        told[event.key].append(event)
    meter = Meter(config_of(policy))
    keys = np.random.default_rng(seed).permutation(len(asked)).tolist()
    play(meter, [event for key in keys for event in told[key]])
    play(meter, sensor)
    shuffled = {record.request_id: record for record in meter.settle(1000.0)}
    assert joules_of(shuffled) == pytest.approx(joules_of(in_order), abs=1e-6)


@quickly
@given(asked=several, watts=powers, beat=st.sampled_from([0.1, 0.5, 3.0]))
def test_when_settlement_runs_does_not_matter(
    policy: str, asked: list[Asked], watts: list[float], beat: float
) -> None:
    # prompts are placed in order; one that is told only at the end of its reply may
    # come behind another that was done later and has to be settled before
    asked = [replace(one, running_usage=True) for one in asked]
    sensor = counter_of(watts)
    _, at_once = settled(asked, sensor, config_of(policy))
    meter = Meter(config_of(policy))
    events = [*events_of(asked), *sensor]
    records = settled_on_beat(meter, events, beat=beat, until=1000.0)
    found = {record.request_id: record for record in records}
    assert joules_of(found) == pytest.approx(joules_of(at_once), abs=1e-6)


@quickly
@given(asked=several, watts=powers)
def test_several_events_in_one_read_are_the_same_as_one_by_one(
    policy: str, asked: list[Asked], watts: list[float]
) -> None:
    sensor = counter_of(watts)
    coarse = [
        replace(one, tokens=[round(at * 10) / 10 + 0.1 for at in one.tokens])
        for one in asked
    ]
    _, single = settled(coarse, sensor, config_of(policy))
    merged: dict[tuple[float, int], TokensReceived] = {}
    others: list[Event] = []
    for event in events_of(coarse):
        if not isinstance(event, TokensReceived):
            others.append(event)
            continue
        place = (event.at_seconds, event.key)
        before = merged[place].updates if place in merged else ()
        merged[place] = TokensReceived(*place[::-1], before + event.updates)
    order: list[type] = [RequestOpened, TokensReceived, RequestClosed, PowerSampled]
    meter = Meter(config_of(policy))
    play(
        meter,
        sorted(
            [*merged.values(), *others, *sensor],
            key=lambda event: (event.at_seconds, order.index(type(event))),
        ),
    )
    together = {record.request_id: record for record in meter.settle(1000.0)}
    assert joules_of(together) == pytest.approx(joules_of(single), abs=1e-6)


@quickly
@given(asked=several, watts=powers)
def test_classes_add_up_to_the_books(
    policy: str, asked: list[Asked], watts: list[float]
) -> None:
    meter, records = settled(asked, counter_of(watts), config_of(policy))
    books = meter.books_at()
    state = meter.state()
    by_class = np.array(list(state.class_joules.values()))
    assert by_class.sum(axis=0).tolist() == pytest.approx(
        [books.prefill_joules, books.decode_joules, books.idle_share_joules],
        abs=MILLIJOULE,
    )
    for labels, joules in state.class_joules.items():
        own = [
            record.energy.energy_joules or 0.0
            for record in records.values()
            if (record.kind, record.tenant) == (labels.kind, labels.tenant)
        ]
        assert sum(joules) == pytest.approx(sum(own), abs=MILLIJOULE)
    headline = state.policy_joules[policy]
    assert sum(headline) == pytest.approx(
        books.prefill_joules + books.decode_joules, abs=MILLIJOULE
    )
    for totals in state.policy_joules.values():
        assert sum(totals) == pytest.approx(sum(headline), abs=MILLIJOULE)


@quickly
@given(one=requests(), watts=powers, count=st.integers(2, 5))
def test_equal_requests_get_equal_shares(
    policy: str, one: Asked, watts: list[float], count: int
) -> None:
    _, records = settled([one] * count, counter_of(watts), config_of(policy))
    shares = list(joules_of(records).values())
    if one.tokens:
        assert shares == pytest.approx([shares[0]] * count, abs=1e-6)


@quickly
@given(asked=several, watts=powers, at=st.floats(0.6, 4.0))
def test_who_did_nothing_pays_nothing_and_changes_nothing(
    policy: str, asked: list[Asked], watts: list[float], at: float
) -> None:
    sensor = counter_of(watts)
    config = config_of(policy, idle_watts=70.0)
    _, without = settled(asked, sensor, config)
    refused = Asked(at, [], closed=at + 1.0, status=429, outcome="upstream_error")
    _, records = settled([*asked, refused], sensor, config)
    shares = joules_of(records)
    assert shares.pop(f"r{len(asked)}") == 0.0
    assert shares == pytest.approx(joules_of(without), abs=1e-6)


@quickly
@given(asked=several, watts=powers, at=st.floats(1.0, 5.0), lost=st.floats(0.02, 1.0))
def test_a_gap_is_never_filled(
    policy: str, asked: list[Asked], watts: list[float], at: float, lost: float
) -> None:
    sensor = [
        PowerSampled("gpu", event.at_seconds, gap_reason="read failed")
        if at <= event.at_seconds < at + lost
        else event
        for event in counter_of(watts)
    ]
    if all(event.gap_reason is None for event in sensor):
        return
    meter, records = settled(asked, sensor, config_of(policy))
    books = meter.books_at()
    assert abs(books.residual_joules) < MILLIJOULE
    assert books.unattributed_joules["sensor_gap"] > 0.0
    for record in records.values():
        began = record.scheduled_seconds
        assert began is not None
        ended = record.last_token_seconds or record.finished_seconds
        if began < at < ended - 0.001 and record.status != 429:
            assert record.energy.energy_joules is None
            assert record.energy.quality == "unknown"


@quickly
@given(asked=several, watts=powers, reset=st.integers(20, 60))
def test_a_counter_reset_is_unknown_energy_and_never_negative(
    policy: str, asked: list[Asked], watts: list[float], reset: int
) -> None:
    meter, records = settled(
        asked, counter_of(watts, reset_at=reset), config_of(policy)
    )
    books = meter.books_at()
    assert abs(books.residual_joules) < MILLIJOULE
    assert meter.state().counter_resets_total == 1
    assert books.unattributed_joules.get("counter_reset", 0.0) == 0.0
    shown = np.cumsum(np.array(watts) * 0.1)
    assert books.measured_joules <= shown[-1] + 1e-6
    assert all(joules >= 0 for joules in joules_of(records).values())


@quickly
@given(asked=several, watts=powers, more=powers)
def test_what_is_settled_does_not_depend_on_what_comes_later(
    policy: str, asked: list[Asked], watts: list[float], more: list[float]
) -> None:
    """A policy that learns uses what was settled before, and nothing else."""
    first, _ = settled(asked, counter_of(watts), config_of(policy))
    longer, _ = settled(asked, counter_of(watts + more), config_of(policy))
    books = first.books_at()
    assert longer.books_at(books.settled_seconds) == books
