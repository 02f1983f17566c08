"""What is stored of a request, and under which number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigError
from proxy.store.address import (
    Retention,
    parse_retention,
    shown_url,
    store_url,
)
from proxy.store.stored_record import (
    RecordNumbering,
    cursor_at,
)
from tests.support.stored_records import record


@given(st.lists(st.floats(0, 4e9), max_size=20), st.integers(0, 2**53 - 1000))
def test_numbers_rise_whatever_the_clock_does(clock: list[float], start: int) -> None:
    numbering = RecordNumbering()
    numbering.continue_from(start)
    numbers = [
        stored.cursor
        for now in clock
        for stored in numbering.number([record(1), record(2)], now, 5.0)
    ]
    assert numbers == sorted(set(numbers))
    assert all(number > start for number in numbers)


def test_a_number_is_the_instant_of_settlement_exact_in_any_json_reader() -> None:
    (stored,) = RecordNumbering().number([record(1)], 1.7e9 + 0.25, 100.0)
    assert stored.cursor == 1_700_000_000_250_000 == cursor_at(1.7e9 + 0.25)
    assert cursor_at(9e9) < 2**53  # until the year 2255


@pytest.mark.parametrize(
    ("text", "retention"),
    [
        ("30d", Retention(30 * 86_400.0, None)),
        ("100000", Retention(None, 100_000)),
        ("12h, 500", Retention(43_200.0, 500)),
        ("8w", Retention(8 * 7 * 86_400.0, None)),
        ("forever", Retention(None, None)),
    ],
)
def test_retention_is_an_age_a_number_or_both(text: str, retention: Retention) -> None:
    assert parse_retention(text) == retention


@pytest.mark.parametrize("text", ["", "0", "30days", "-1", "1.5d", "0d"])
def test_a_retention_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--retain"):
        parse_retention(text)


@pytest.mark.parametrize(
    "text", ["records.sqlite", "mysql://host/name", "sqlite://", "sqlite:///:memory:"]
)
def test_a_store_that_can_never_work_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--store .*none|--store .*sqlite:///"):
        store_url(text)


def test_a_store_is_shown_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    text = "postgres://joe:secret@db.local:5433/energy?password=other&sslmode=require"
    assert shown_url(store_url(text)) == "postgresql+psycopg://db.local:5433/energy"
