from __future__ import annotations

import pytest

from proxy.meter import Meter, MeterConfig
from tests.proxy.meter_scenes import Asked, counter, settled


def ticks(first: float, count: int, every: float = 0.02) -> list[float]:
    return [first + every * number for number in range(count)]


def test_books_close_and_a_request_pays_for_its_own_work() -> None:
    asked = [Asked(1.0, ticks(1.1, 50)), Asked(1.5, ticks(1.6, 50))]
    meter, records = settled(asked, counter(5.0))
    books = meter.books_at()
    assert abs(books.residual_joules) < 1e-3
    paid = sum(record.energy.energy_joules or 0.0 for record in records.values())
    assert paid == pytest.approx(
        books.prefill_joules + books.decode_joules + books.idle_share_joules
    )
    assert books.idle_joules > 0
    assert set(records) == {"r0", "r1"}


def test_without_a_sensor_records_come_at_once_and_energy_is_unknown() -> None:
    meter, records = settled(
        [Asked(1.0, ticks(1.1, 5))], [], MeterConfig(has_sensor=False)
    )
    energy = records["r0"].energy
    assert energy.energy_joules is None
    assert energy.quality == "unknown"
    assert meter.books_at().measured_joules == 0.0


def test_state_of_a_fresh_meter_can_be_read() -> None:
    state = Meter().state()
    assert state.open_requests == 0
    assert state.idle_watts is None
    assert state.idle_source == "unknown"
