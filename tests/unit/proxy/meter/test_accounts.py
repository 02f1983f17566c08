"""Several sensors around one engine: each has its books, one has the headline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.config import MeterConfig
from proxy.meter.deadlines import MAX_JOIN_SECONDS
from proxy.meter.ledger import Books, RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading
from tests.support.meter_scenes import (
    Asked,
    counter_of,
    events_of,
    in_order,
)
from tests.support.profiles import examples

MILLIJOULE = 1e-3
quickly = examples(60)

REQUESTS = [
    Asked(2.0, [2.2 + 0.025 * n for n in range(60)], prompt=500),
    Asked(2.6, [2.9 + 0.025 * n for n in range(30)], prompt=2000),
]


def polled(
    boundary: str, until: float, watts: float, *, every: float, device: str = "x"
) -> list[PowerSampled]:
    """A counter that ticks at every poll."""
    return [
        PowerSampled(boundary, n * every, (Reading(device, n * every * watts),))
        for n in range(round(until / every) + 1)
    ]


def replayed(
    boundaries: Meter,
    requests: Sequence[Asked],
    sensors: Sequence[PowerSampled],
    *,
    beat: float = 0.5,
    until: float = 60.0,
) -> list[tuple[float, RequestRecord]]:
    """All in order of time, settled at every beat; records with their instant."""
    events = in_order(events_of(requests), sensors)
    records: list[tuple[float, RequestRecord]] = []
    now = 0.0
    while now < until:
        while events and events[0].at_seconds <= now:
            boundaries.feed(events.pop(0))
        records += [(now, record) for record in boundaries.settle(now)]
        now += beat
    return records


def closes(books: Books) -> bool:
    accounts = (
        books.prefill_joules
        + books.decode_joules
        + books.idle_share_joules
        + books.idle_joules
        + sum(books.unattributed_joules.values())
    )
    return abs(books.measured_joules - accounts) <= MILLIJOULE


def three() -> Meter:
    return Meter(MeterConfig(boundaries=("gpu", "host", "node")))


SENSORS = [
    *polled("gpu", 40.0, 300.0, every=0.1),
    *polled("host", 40.0, 150.0, every=0.02),
    *polled("node", 40.0, 750.0, every=1.0),
]


def test_a_record_has_the_joules_of_every_boundary_and_all_books_close() -> None:
    boundaries = three()
    records = [record for _, record in replayed(boundaries, REQUESTS, SENSORS)]
    assert [record.request_id for record in records] == ["r1", "r0"]
    for record in records:
        beside = record.energy.boundaries
        assert set(beside) == {"host", "node"}
        for energy in beside.values():
            assert energy.quality != "unknown"
            assert energy.energy_joules is not None
            assert energy.energy_joules > 0
    for name, watts in (("gpu", 300.0), ("host", 150.0), ("node", 750.0)):
        books = boundaries.books_of(name)
        assert closes(books)
        assert books.measured_joules == pytest.approx(watts * 40, rel=0.15)
        # what is outside the engine's books is never in a request's
        assert books.prefill_joules + books.decode_joules > 0
    assert boundaries.unjoined_total == {"host": 0, "node": 0}


def test_the_ratio_is_of_joules_over_the_same_time() -> None:
    boundaries = three()
    sensors = [s for s in SENSORS if s.boundary != "gpu" or s.at_seconds > 12.0]
    replayed(boundaries, REQUESTS, sensors)
    gpu, host = boundaries.ratios()
    assert (gpu.inner, gpu.outer) == ("gpu", "node")
    assert gpu.ratio == pytest.approx(300 / 750)
    assert host.ratio == pytest.approx(150 / 750)
    assert gpu.seconds < host.seconds


def test_what_one_sensor_missed_does_not_look_like_a_share() -> None:
    boundaries = Meter(MeterConfig(boundaries=("gpu", "node")))
    # without a counter the joules of a gap are not known
    shown = (Reading("psu", None, 750.0),)
    sensors = [
        *polled("gpu", 40.0, 300.0, every=0.1),
        *(PowerSampled("node", float(n), shown) for n in range(15)),
        PowerSampled("node", 14.5, gap_reason="psu is away"),
        *(PowerSampled("node", float(n), shown) for n in range(25, 41)),
    ]
    replayed(boundaries, [], sensors)
    books = boundaries.books_of("node")
    assert books.gap_seconds == pytest.approx(11.0)
    assert books.measured_joules == pytest.approx(750 * (40 - 11), rel=0.2)
    (ratio,) = boundaries.ratios()
    assert ratio.ratio == pytest.approx(300 / 750)


def test_a_slow_sensor_gets_windows_of_five_periods() -> None:
    boundaries = three()
    replayed(boundaries, REQUESTS, SENSORS)
    assert boundaries.state_of("gpu").window_seconds == 0.5
    assert boundaries.state_of("host").window_seconds == 0.5
    assert boundaries.state_of("node").window_seconds == pytest.approx(5.0)


def test_a_record_waits_for_a_slow_sensor_within_bounds() -> None:
    lone = Meter(MeterConfig(boundaries=("gpu",)))
    alone = dict.fromkeys(["r0", "r1"], 0.0) | {
        record.request_id: at
        for at, record in replayed(
            lone, REQUESTS, [s for s in SENSORS if s.boundary == "gpu"]
        )
    }
    for at, record in replayed(three(), REQUESTS, SENSORS):
        assert alone[record.request_id] < at < alone[record.request_id] + 10.0


def test_a_sensor_that_is_down_is_not_waited_for_and_leaves_the_others_alone() -> None:
    boundaries = three()
    sensors = [s for s in SENSORS if s.boundary != "node" or s.at_seconds < 2.5]
    sensors.append(PowerSampled("node", 3.0, gap_reason="no answer"))
    found = replayed(boundaries, REQUESTS, sensors)
    assert all(at < 7.0 for at, _ in found)
    for _, record in found:
        node = record.energy.boundaries["node"]
        assert (node.energy_joules, node.quality) == (None, "unknown")
        assert record.energy.boundaries["host"].energy_joules is not None
        assert record.energy.energy_joules is not None
    assert boundaries.unjoined_total == {"host": 0, "node": 2}
    assert closes(boundaries.books_of("gpu"))


def test_a_sensor_that_hangs_holds_a_record_only_so_long() -> None:
    sensors = [s for s in SENSORS if s.boundary != "node" or s.at_seconds < 2.5]
    for at, record in replayed(three(), REQUESTS, sensors):
        assert record.energy.boundaries["node"].energy_joules is None
        assert at < record.finished_seconds + 3.0 + MAX_JOIN_SECONDS


def test_a_proxy_that_ends_hands_out_every_record() -> None:
    boundaries = three()
    early = [sensor for sensor in SENSORS if sensor.at_seconds <= 4.0]
    assert replayed(boundaries, REQUESTS, early, until=4.5) == []
    out = boundaries.settle(64.0) + boundaries.settle(124.0)
    assert {record.request_id for record in out} == {"r0", "r1"}
    assert boundaries.state().unsettled_requests == 0


def test_accelerators_the_engine_does_not_use_have_an_account_of_their_own() -> None:
    boundaries = Meter(MeterConfig(boundaries=("gpu", "node")))
    sensors = [
        PowerSampled(
            "gpu",
            n * 0.1,
            (Reading("gpu0", n * 30.0), Reading("gpu1", n * 7.0, is_outside=True)),
        )
        for n in range(401)
    ]
    assert boundaries.outside_books("gpu") is None
    records = replayed(
        boundaries, REQUESTS, [*sensors, *polled("node", 40.0, 750.0, every=1.0)]
    )
    outside = boundaries.outside_books("gpu")
    state = boundaries.outside_state("gpu")
    assert outside is not None
    assert state is not None
    assert outside.measured_joules == pytest.approx(70 * 39.9, rel=0.02)
    assert set(state.device_watts) == {"gpu1"}
    inside = boundaries.books_of("gpu")
    assert set(boundaries.state().device_watts) == {"gpu0"}
    assert inside.measured_joules == pytest.approx(300 * 39.9, rel=0.02)
    alone = Meter(MeterConfig(boundaries=("gpu",)))
    plain = replayed(
        alone,
        REQUESTS,
        [PowerSampled("gpu", s.at_seconds, s.readings[:1]) for s in sensors],
    )
    joules = {r.request_id: r.energy.energy_joules for _, r in plain}
    assert {r.request_id: r.energy.energy_joules for _, r in records} == joules
    shares = {ratio.inner: ratio.ratio for ratio in boundaries.ratios()}
    assert shares["gpu"] == pytest.approx(300 / 750)
    assert shares["idle_accelerators"] == pytest.approx(70 / 750)


@st.composite
def requests(draw: st.DrawFn) -> Asked:
    arrived = draw(st.floats(0.6, 4.0))
    first = arrived + draw(st.floats(0.01, 0.5))
    every = draw(st.sampled_from([0.01, 0.025, 0.06]))
    count = draw(st.integers(0, 40))
    return Asked(
        arrived,
        [first + every * number for number in range(count)],
        prompt=draw(st.integers(1, 4000)),
        closed=None if count else arrived + draw(st.floats(0.001, 1.0)),
        outcome=draw(st.sampled_from(["ok", "aborted"])),
    )


powers = st.lists(st.floats(1.0, 900.0), min_size=80, max_size=80)


@quickly
@given(
    asked=st.lists(requests(), min_size=1, max_size=5),
    gpu=powers,
    node=powers,
    gap=st.one_of(st.none(), st.floats(0.0, 8.0)),
    late=st.sampled_from([0.0, 0.013, 0.05, 0.087]),
    slower=st.sampled_from([1, 3, 10]),
)
def test_each_boundary_gives_what_it_would_give_alone(
    asked: list[Asked],
    gpu: list[float],
    node: list[float],
    gap: float | None,
    late: float,
    slower: int,
) -> None:
    """Wherever the windows of the others end: who ran when is one answer."""
    of_gpu = counter_of(gpu)
    of_node = [
        PowerSampled("node", slower * event.at_seconds + late, event.readings)
        for event in counter_of(node)
    ]
    if gap is not None:
        of_node.append(PowerSampled("node", gap, gap_reason="away"))
        of_node.sort(key=lambda sensor: sensor.at_seconds)
    both = Meter(MeterConfig(boundaries=("gpu", "node")))
    joined = {r.request_id: r for _, r in replayed(both, asked, of_gpu + of_node)}
    lone_gpu = Meter(MeterConfig(boundaries=("gpu",)))
    lone_node = Meter(MeterConfig(boundaries=("node",)))
    head = {r.request_id: r for _, r in replayed(lone_gpu, asked, of_gpu)}
    beside = {r.request_id: r for _, r in replayed(lone_node, asked, of_node)}
    assert joined.keys() == head.keys() == beside.keys()
    for request_id, record in joined.items():
        bare = replace(record, energy=replace(record.energy, boundaries={}))
        assert bare == head[request_id]
        node_energy = record.energy.boundaries["node"]
        if node_energy.quality != "unknown":
            assert node_energy == beside[request_id].energy
    for name, lone in (("gpu", lone_gpu), ("node", lone_node)):
        assert both.books_of(name) == lone.books_at()
        assert closes(both.books_of(name))
    assert both.books_at() == both.books_of("gpu")
