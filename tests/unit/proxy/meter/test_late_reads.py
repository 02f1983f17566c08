"""Own tokens that are read late are never taken for somebody else's work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.external import MEMORY_SECONDS, Excess
from proxy.meter.activity.late_reads import Instant, Late, Reads, late_output
from proxy.meter.activity.request import RequestTimeline
from proxy.meter.config import MeterConfig
from proxy.meter.lateness import Lateness
from proxy.meter.meter import Meter
from proxy.wire.facts import RequestFacts
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

UNTIL, SAMPLED_UNTIL = 12.0, 22.0
RUN_ON_SECONDS = 0.25
"""The engine notices so much later that a client has left."""


def external_of(
    computed: list[Asked], read: list[Asked], *, beat: float = 0.5
) -> float:
    """Joules of others, where an engine computed this and the proxy read that."""
    meter = Meter(MeterConfig(idle_watts=50.0))
    events = in_order(
        events_of(read), scrapes_of(computed, SAMPLED_UNTIL), counter(SAMPLED_UNTIL)
    )
    settled_on_beat(meter, events, beat=beat, until=SAMPLED_UNTIL + 100.0)
    books = meter.books_at()
    assert abs(books.residual_joules) < 1e-6
    return books.unattributed_joules.get("external", 0.0)


@st.composite
def streams(draw: st.DrawFn) -> Asked:
    arrived = draw(st.floats(0.6, 6.0))
    first = arrived + draw(st.floats(0.02, 1.0))
    every = draw(st.sampled_from([0.01, 0.03]))
    count = draw(st.integers(5, 200))
    prompt = draw(st.integers(1, 4000))
    stamps = [first + every * n for n in range(count)]
    return Asked(arrived, stamps, prompt=prompt)


@st.composite
def read_late(draw: st.DrawFn) -> tuple[Asked, Asked]:
    """A stream as it was computed, and as it was read."""
    made = draw(streams())
    way = draw(st.sampled_from(["at once", "jitter", "at turns", "paused", "left"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stamps, late = np.array(made.tokens), draw(st.floats(0.0, 1.0))
    if way == "jitter":  # each token by its own, in order
        stamps = np.maximum.accumulate(stamps + rng.uniform(0.0, late, len(stamps)))
    elif way == "at turns":  # each read empties the socket
        turns = made.arrived + rng.uniform(0.0, late, 2000).cumsum()
        seen = np.searchsorted(turns, stamps)
        stamps = np.where(seen < 2000, turns[np.minimum(seen, 1999)], stamps)
    elif way in ("paused", "left"):  # the client stops reading, for some seconds
        stopped = draw(st.floats(float(stamps[0]), float(stamps[-1])))
        went_on = stopped + draw(st.floats(0.0, 9.0))
        if way == "left":
            computed = stamps[stamps <= went_on + RUN_ON_SECONDS].tolist()
            read = stamps[stamps <= stopped].tolist()
            left = replace(made, tokens=read, closed=went_on, outcome="aborted")
            return replace(made, tokens=computed), left
        is_unread = (stamps > stopped) & (stamps < went_on)
        stamps = np.where(is_unread, went_on, stamps)
    return made, replace(made, tokens=stamps.tolist())


@examples(40)
@given(pairs=st.lists(read_late(), min_size=1, max_size=12))
def test_no_read_is_so_late_that_somebody_else_is_charged(
    pairs: list[tuple[Asked, Asked]],
) -> None:
    assert external_of([one for one, _ in pairs], [one for _, one in pairs]) == 0.0


@examples(10)
@given(pairs=st.lists(read_late(), min_size=1, max_size=4))
def test_others_are_charged_beside_late_reads(
    pairs: list[tuple[Asked, Asked]],
) -> None:
    """From 2 to 9 s somebody else decodes at 200 tokens a second."""
    others = [Asked(1.9 + n / 100, ticks(2.0 + n / 100, 9.0)) for n in range(4)]
    computed = [one for one, _ in pairs]
    read = [one for _, one in pairs]
    in_time = external_of([*computed, *others], computed)
    late = external_of([*computed, *others], read)
    assert late > 0.25 * in_time > 0.0


def load_of(seed: int, until: float) -> list[Asked]:
    """Streams that come and go in waves: the engine's pace changes all the time."""
    rng = np.random.default_rng(seed)
    made: list[Asked] = []
    at = 1.0
    while at < until - 4.0:
        at += rng.exponential(0.3 if at % 8 < 4 else 1.5)
        first = at + rng.uniform(0.05, 0.4)
        count = int(rng.integers(5, 60))
        stamps = [first + 0.02 * number for number in range(count)]
        made.append(Asked(at, stamps, prompt=int(rng.integers(10, 3000))))
    return made


def external_where_all_is_late(
    late_seconds: float, others: list[Asked], *, until: float = 36.0
) -> float:
    """Joules of others where every read is late by the same time."""
    made = load_of(3, until)
    read = [
        replace(one, tokens=[at + late_seconds for at in one.tokens]) for one in made
    ]
    meter = Meter(MeterConfig(idle_watts=50.0))
    scrapes = scrapes_of([*made, *others], until)
    events = in_order(events_of(read), scrapes, counter(until))
    settled_on_beat(meter, events, beat=0.5, until=until + 100.0)
    books = meter.books_at()
    assert abs(books.residual_joules) < 1e-6
    return books.unattributed_joules.get("external", 0.0)


@pytest.mark.parametrize("late_seconds", [0.15, 0.3, 0.6])
def test_reads_all_late_by_the_same_time_are_nobody_elses(late_seconds: float) -> None:
    assert external_where_all_is_late(late_seconds, []) == 0.0


@pytest.mark.parametrize("late_seconds", [0.4])
def test_others_are_still_seen_where_all_reads_are_late(late_seconds: float) -> None:
    others = [Asked(13.9 + n / 100, ticks(14.0 + n / 100, 33.0)) for n in range(4)]
    in_time = external_where_all_is_late(0.0, others)
    assert in_time > 0.0
    late = external_where_all_is_late(late_seconds, others)
    assert late == pytest.approx(in_time, rel=0.15)


def test_a_trickle_beside_reads_that_wait_is_proven_again_and_again() -> None:
    """What waits makes the sum too high, and more no harder to prove."""
    rate, waiting = 30.0, 1000.0
    excess = Excess()
    excess.begin(0.0, 10.0)
    found = [excess.found(n - 1.0, float(n), rate, 10.0, 0.0) for n in range(1, 5)]
    assert any(found)
    seconds = int(6 * MEMORY_SECONDS)
    for n in range(5, seconds):
        is_late = n % 7 == 0  # reads that waited at this scrape came until the next
        more = waiting if is_late else -waiting if n % 7 == 1 and n > 7 else 0.0
        slack = 10.0 + (waiting if is_late else 0.0)
        held = waiting if is_late else 0.0
        found.append(
            excess.found(
                n - 1.0, float(n), rate + more, slack, 0.0, waiting=held, ahead=10.0
            )
        )
    assert excess.is_expected(float(seconds))
    assert sum(found) == pytest.approx(rate * (seconds - 1), rel=0.05)


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "not told"])
def test_a_stall_of_seconds_is_told_by_the_loop(is_told: bool) -> None:
    """First tokens came meanwhile, of which no stream's silence tells."""
    began, ended = 2.2, 6.2
    made = [Asked(2.1, ticks(2.3 + n / 2, 8.0), prompt=900) for n in range(6)]
    read = [
        replace(one, tokens=[max(at, ended) for at in one.tokens if at <= 8.0])
        for one in made
    ]
    meter = Meter(MeterConfig(idle_watts=50.0))
    scrapes, due = scrapes_of(made, SAMPLED_UNTIL), 0.25
    for event in in_order(events_of(read), scrapes, counter(SAMPLED_UNTIL)):
        while event.at_seconds > due:
            if not began < due < ended:
                is_first = due - 0.25 < ended <= due
                late_seconds = due - began if is_first and is_told else 0.0
                meter.settle(due, late_seconds)
            due += 0.25
        meter.feed(event)
    meter.settle(SAMPLED_UNTIL + 100.0)
    found = meter.books_at().unattributed_joules.get("external", 0.0)
    assert (found == 0.0) == is_told


# --- one instant --------------------------------------------------------------


def reads_of(*stamps: list[float]) -> Reads:
    """A token at each of these, of one stream each."""
    rows = sorted(
        (at, key, float(number))
        for key, seconds in enumerate(stamps)
        for number, at in enumerate(seconds)
    )
    seconds, keys, before = (np.array(column) for column in zip(*rows, strict=True))
    return Reads(seconds, np.ones(len(rows)), keys.astype(np.int64), before)


def late_at(
    at_seconds: float, *stamps: list[float], open_keys: tuple[int, ...] = ()
) -> Late:
    open_ones = [
        RequestTimeline(key, 0.0, RequestFacts("chat", is_stream=True))
        for key in open_keys
    ]
    instant = Instant(at_seconds, 0.1, at_seconds + 1.1)
    return late_output(reads_of(*stamps), open_ones, instant).late


def test_a_stream_in_step_is_in_doubt_by_what_is_read_around_the_instant() -> None:
    found = late_at(5.0, ticks(2.01, 8.0))
    assert found == Late(most_tokens=6.0, waiting_tokens=0.0)


def test_all_that_a_silent_stream_is_read_next_may_have_waited() -> None:
    paused = [*ticks(2.0, 4.0), *[5.5] * 70, *ticks(5.51, 8.0)]
    found = late_at(5.0, paused)
    assert found.waiting_tokens >= 70


def test_a_silent_stream_that_was_not_read_yet_goes_on_at_its_pace() -> None:
    found = late_at(7.0, ticks(2.0, 4.0), open_keys=(0,))
    assert found.waiting_tokens == pytest.approx(3.0 * 50 * 1.5, rel=0.05)
    assert late_at(7.0, ticks(2.0, 4.0)) == Late()  # it was read to its end


@given(
    stamps=st.lists(
        st.lists(st.floats(0.0, 10.0), min_size=1, max_size=30), min_size=1, max_size=6
    ),
    at_seconds=st.floats(0.0, 10.0),
)
def test_what_waited_is_part_of_what_may_be_late(
    stamps: list[list[float]], at_seconds: float
) -> None:
    found = late_at(at_seconds, *[sorted(one) for one in stamps])
    after = sum(at > at_seconds for one in stamps for at in one)
    assert 0.0 <= found.waiting_tokens <= found.most_tokens <= after


# --- what is held back --------------------------------------------------------


MOST_WAITING = 500
PROVEN_RATE = 2 * (MOST_WAITING + 1) / (MEMORY_SECONDS - 1) + 1
"""Slower work is not proven anew while it is remembered: what waits hides it."""


@given(
    rate=st.floats(PROVEN_RATE, 1e3),
    late=st.lists(st.integers(0, MOST_WAITING), min_size=5, max_size=40),
)
def test_what_is_held_back_is_found_as_soon_as_nothing_waits(
    rate: float, late: list[int]
) -> None:
    """Beside own tokens that are read late others compute at a steady rate."""
    excess = Excess()
    excess.begin(0.0, 1.0)
    found = [excess.found(n - 1.0, float(n), rate, 1.0, 0.0) for n in range(1, 4)]
    waited = 0
    for number, waits in enumerate([*late, 0], start=4):
        difference = rate + waits - waited
        found.append(
            excess.found(
                number - 1.0,
                float(number),
                difference,
                waits + 1.0,
                0.0,
                waiting=float(waits),
            )
        )
        waited = waits
    assert sum(found) == pytest.approx(sum(found[:3]) + rate * (len(late) + 1))


@given(lost=st.floats(0.0, 1e4))
def test_what_nobody_will_ever_read_is_not_somebody_elses(lost: float) -> None:
    excess = Excess()
    excess.begin(0.0, 1.0)
    for n in range(1, 4):
        excess.found(n - 1.0, float(n), 50.0, 1.0, 0.0)
    found = excess.found(3.0, 4.0, 50.0 + lost, 1.0, lost, unread=lost)
    assert found == pytest.approx(50.0)


def test_a_stall_is_told_for_all_of_its_time() -> None:
    lateness = Lateness()
    lateness.beat(3.0, 0.001)
    lateness.beat(5.0, 1.5)
    lateness.beat(9.0, 0.5)
    told = [lateness.stalled_until(at) for at in (3.2, 3.6, 4.9, 5.0, 8.4, 8.7)]
    assert told == [-np.inf, 5.0, 5.0, -np.inf, -np.inf, 9.0]
