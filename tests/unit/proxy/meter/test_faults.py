"""Sensors that fail in the middle of a request: rather no number than a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading
from tests.support.meter_scenes import (
    Asked,
    counter,
    events_of,
    in_order,
    play,
    settled_on_beat,
)

WATTS = 300.0
BEFORE = Asked(1.0, [1.1 + 0.02 * n for n in range(20)])
DURING = Asked(3.0, [3.2 + 0.02 * n for n in range(90)])
AFTER = Asked(8.0, [8.1 + 0.02 * n for n in range(20)])
Break = Callable[[PowerSampled], PowerSampled]


def lost(event: PowerSampled) -> PowerSampled:
    """Reads fail from 4.0 s to 5.5 s."""
    if not 4.0 <= event.at_seconds < 5.5:
        return event
    return PowerSampled("gpu", event.at_seconds, gap_reason="sensor_gap")


def gpu_lost(event: PowerSampled) -> PowerSampled:
    """The source answers, without its GPU, from 4.0 s to 5.5 s."""
    return replace(event, readings=()) if 4.0 <= event.at_seconds < 5.5 else event


def reset(event: PowerSampled) -> PowerSampled:
    """The driver is reloaded at 4.0 s: the counter starts again."""
    (reading,) = event.readings
    assert reading.joules is not None
    if event.at_seconds < 4.0:
        return event
    since = Reading("gpu0", reading.joules - 4.0 * WATTS + 17.0, WATTS)
    return replace(event, readings=(since,))


def half_lost(event: PowerSampled) -> PowerSampled:
    """One GPU of two is lost from 4.0 s to 5.5 s."""
    (reading,) = event.readings
    other = Reading("gpu1", reading.joules, WATTS)
    is_there = not 4.0 <= event.at_seconds < 5.5
    return replace(event, readings=(reading, other) if is_there else (reading,))


def settled(breaks: Break) -> tuple[Meter, dict[str, RequestRecord], list[float]]:
    """Three requests, one of them while it breaks; also what was settled, by beat."""
    meter = Meter(MeterConfig(idle_watts=50.0))
    asked: Sequence[Asked] = (BEFORE, DURING, AFTER)
    sensor = [breaks(event) for event in counter(12.0, WATTS)]
    events = in_order(events_of(asked), sensor)
    records: dict[str, RequestRecord] = {}
    measured: list[float] = []
    due = 0.05
    for event in events:
        while event.at_seconds > due:
            records |= {r.request_id: r for r in meter.settle(due)}
            measured.append(meter.books_at().measured_joules)
            due += 0.05
        play(meter, [event])
    records |= {r.request_id: r for r in meter.settle(100.0)}
    return meter, records, measured


@pytest.mark.parametrize("breaks", [lost, gpu_lost, reset, half_lost])
def test_a_request_that_it_hit_is_null_and_the_others_are_not(breaks: Break) -> None:
    _, records, _ = settled(breaks)
    for name in ("r0", "r2"):
        assert records[name].energy.quality == "estimated"
        assert records[name].energy.energy_joules is not None
    hit = records["r1"].energy
    assert hit.quality == "unknown"
    assert (hit.prefill_joules, hit.decode_joules) == (None, None)
    assert (hit.idle_share_joules, hit.energy_joules) == (None, None)
    assert hit.policy_joules == {}


@pytest.mark.parametrize("breaks", [lost, gpu_lost, reset, half_lost])
def test_the_books_close_over_it(breaks: Break) -> None:
    meter, records, measured = settled(breaks)
    books = meter.books_at()
    assert abs(books.residual_joules) < 1e-6
    assert books.settled_seconds > 11.0
    assert measured == sorted(measured)
    paid = sum(record.energy.energy_joules or 0.0 for record in records.values())
    accounts = books.prefill_joules + books.decode_joules + books.idle_share_joules
    assert accounts >= paid  # the hit one's settled part stays in the accounts
    assert len(records) == 3
    assert meter.state().gaps_total > 0 or breaks in (gpu_lost, half_lost)


@pytest.mark.parametrize(("breaks", "gpus"), [(lost, 1), (gpu_lost, 1), (half_lost, 2)])
def test_energy_of_the_gap_is_booked_and_not_spread(breaks: Break, gpus: int) -> None:
    meter, _, _ = settled(breaks)
    gap = meter.books_at().unattributed_joules["sensor_gap"]
    # from the last edge before 4.0 s to the first after 5.5 s, all GPUs of the group
    assert gap == pytest.approx(gpus * WATTS * 1.6, rel=0.15)


def test_energy_across_a_reset_is_unknown_and_in_no_account() -> None:
    meter, _, _ = settled(reset)
    books = meter.books_at()
    assert books.unattributed_joules.get("counter_reset", 0.0) == 0.0
    assert meter.state().counter_resets_total == 1
    # from the first edge, less the interval of the reset
    seconds = books.settled_seconds - 0.1 - 0.2
    assert books.measured_joules == pytest.approx(WATTS * seconds, rel=0.02)


def test_requests_arriving_in_a_gap_that_never_ends_are_let_go() -> None:
    meter = Meter(MeterConfig(idle_watts=50.0))
    sensor = [event for event in counter(12.0, WATTS) if event.at_seconds < 2.9]
    sensor += [
        PowerSampled("gpu", 3.0 + n * 0.02, gap_reason="sensor_gap") for n in range(400)
    ]
    play(meter, in_order(events_of([DURING]), sensor))
    assert meter.settle(12.0) == []
    (record,) = meter.settle(60.0)
    assert record.energy.energy_joules is None
    assert meter.state().unsettled_requests == 0


# --- settlement does not wait for a stream to end -----------------------------------


def minute(*, tells_as_seen: bool) -> list[Asked]:
    """Short ones by which the meter learns that the engine tells late, then a long."""
    early = [
        Asked(0.6 + n, [0.7 + n + 0.02 * k for k in range(10)], prefill_seconds=0.1)
        for n in range(2)
    ]
    took = 0.6 if tells_as_seen else 0.1
    long = Asked(
        3.0, [3.6 + 0.02 * k for k in range(3000)], prompt=900, prefill_seconds=took
    )
    return [*early, long]


def test_a_stream_of_a_minute_shows_its_joules_within_two_seconds() -> None:
    meter = Meter(MeterConfig(idle_watts=50.0))
    events = in_order(events_of(minute(tells_as_seen=True)), counter(70.0))
    lags: list[float] = []
    due = 0.5
    for event in events:
        while event.at_seconds > due:
            meter.settle(due)
            if due > 5.0:
                lags.append(meter.state().unsettled_seconds)
            due += 0.5
        meter.feed(event)
    assert max(lags) < 2.0


@pytest.mark.parametrize("confirms", [True, False])
def test_what_is_told_after_the_prompt_is_placed_confirms_the_place_or_not(
    confirms: bool,
) -> None:
    events = in_order(events_of(minute(tells_as_seen=confirms)), counter(70.0))
    meter = Meter(MeterConfig(idle_watts=50.0))
    found = settled_on_beat(meter, events, beat=0.5, until=170.0)
    record = next(one for one in found if one.request_id == "r2")
    assert record.energy.quality == ("exact" if confirms else "estimated")
    assert record.energy.energy_joules is not None
