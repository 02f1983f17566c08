"""Time in which requests passed unread: nobody's joules, and never idle."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.wire.events import EngineObserved, Event, RequestClosed, RequestOpened
from proxy.wire.facts import UNMETERED, EngineGauges, RequestFacts
from tests.support.meter_scenes import (
    Asked,
    counter,
    counter_of,
    events_of,
    in_order,
    settled_on_beat,
)
from tests.support.profiles import examples

WATTS, IDLE_WATTS = 300.0, 100.0
KEYS = 10_000
"""Of the unmetered: beyond those of the others in a scene."""

Stay = tuple[float, float | None]
"""From when to when one was open; None: it still is."""


def passed(stays: Sequence[Stay]) -> list[Event]:
    """What the relay feeds of requests that it does not read."""
    found: list[Event] = []
    for key, (began, ended) in enumerate(stays, KEYS):
        found.append(RequestOpened(key, began, f"u{key}", RequestFacts(UNMETERED)))
        if ended is not None:
            found.append(RequestClosed(key, ended, "ok"))
    return found


def met(
    stays: Sequence[Stay],
    asked: Sequence[Asked] = (),
    *,
    power: Sequence[float],
    gauges: Sequence[Event] = (),
    config: MeterConfig | None = None,
) -> Meter:
    """A meter that saw all of it; `power` is the mean of every 0.1 s."""
    meter = Meter(config or MeterConfig())
    events = in_order(events_of(asked), passed(stays), gauges, counter_of(power))
    settled_on_beat(meter, events, beat=0.05, until=len(power) / 10 + 100.0)
    assert abs(meter.books_at().residual_joules) < 1e-6
    return meter


def scene(*stretches: tuple[float, float]) -> list[float]:
    """Watts for so many seconds, one stretch after another."""
    return [w for watts, seconds in stretches for w in [watts] * round(seconds * 10)]


def test_time_of_unmetered_requests_is_not_idle() -> None:
    power = scene((IDLE_WATTS, 3.0), (WATTS, 4.0), (IDLE_WATTS, 5.0))
    meter = met([(3.0, 7.0)], power=power)
    books = meter.books_at()
    assert books.unattributed_joules["unmetered"] == pytest.approx(1200.0, rel=0.05)
    assert books.idle_joules == pytest.approx(800.0, rel=0.1)
    assert meter.state().idle_watts == pytest.approx(IDLE_WATTS, rel=0.01)


def test_one_that_never_ends_holds_off_idle_and_the_books_go_on() -> None:
    meter = met([(0.0, None)], power=scene((WATTS, 10.0)))
    books = meter.books_at()
    assert meter.state().idle_watts is None
    assert books.settled_seconds > 9.0
    assert books.unattributed_joules["unmetered"] == pytest.approx(
        books.measured_joules
    )


def test_without_unmetered_requests_nothing_changes() -> None:
    own = [Asked(2.1, [2.2 + 0.02 * n for n in range(100)])]
    power = scene((WATTS, 8.0))
    assert "unmetered" not in met([], own, power=power).books_at().unattributed_joules


def test_beside_a_request_it_takes_a_share_by_time() -> None:
    own = [Asked(2.1, [2.2 + 0.02 * n for n in range(200)])]  # until 6.2 s
    power = scene((WATTS, 10.0))
    config = MeterConfig(idle_watts=IDLE_WATTS)
    alone = met([], own, power=power, config=config).books_at()
    shared = met([(3.0, 5.0)], own, power=power, config=config).books_at()
    taken = shared.unattributed_joules["unmetered"]
    assert taken == pytest.approx(WATTS * 2.0 / 2, rel=0.05)
    assert shared.idle_joules == pytest.approx(alone.idle_joules)


def test_one_that_the_gauges_show_is_not_a_stranger_as_well() -> None:
    gauges = [
        EngineObserved(0.5 + n, EngineGauges(int(1 < n < 6), 0, None, 10.0 * n))
        for n in range(9)
    ]
    meter = met([(2.1, 6.9)], power=scene((WATTS, 9.0)), gauges=gauges)
    assert "external" not in meter.books_at().unattributed_joules


def test_what_settled_is_forgotten() -> None:
    stays: list[Stay] = [(0.5 + n / 100, 0.505 + n / 100) for n in range(500)]
    meter = met(stays, power=scene((WATTS, 20.0)))
    timeline = meter._timeline
    assert timeline.unmetered.between(0.0, 20.0) == []


spans = st.tuples(st.floats(0.0, 6.0), st.floats(0.001, 3.0))


@examples(25)
@given(stays=st.lists(spans, max_size=8), asked=st.booleans())
def test_books_close_whatever_passes(
    stays: list[tuple[float, float]], asked: bool
) -> None:
    own = [Asked(2.1, [2.2 + 0.02 * n for n in range(50)])] if asked else []
    meter = Meter(MeterConfig(idle_watts=IDLE_WATTS))
    open_from_to = [(began, began + seconds) for began, seconds in stays]
    events = in_order(events_of(own), passed(open_from_to), counter(10.0, WATTS))
    (*records,) = settled_on_beat(meter, events, beat=0.05, until=110.0)
    books = meter.books_at()
    paid = sum(record.energy.energy_joules or 0.0 for record in records)
    assert len(records) == len(own)
    assert all(joules >= 0 for joules in books.unattributed_joules.values())
    assert books.measured_joules == pytest.approx(
        paid + books.idle_joules + sum(books.unattributed_joules.values()), abs=1e-3
    )
