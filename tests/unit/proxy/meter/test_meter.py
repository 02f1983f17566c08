from __future__ import annotations

from itertools import pairwise

import pytest

from proxy.errors import ConfigError
from proxy.meter.attribution.policies import POLICIES
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, PhaseSeconds, Reading, RequestFacts, Update, Usage
from tests.support.meter_scenes import (
    Asked,
    counter,
    events_of,
    in_order,
    play,
    settled,
)


def ticks(first: float, count: int, every: float = 0.02) -> list[float]:
    return [first + every * number for number in range(count)]


def test_a_request_alone_pays_for_all_that_was_not_idle() -> None:
    meter, records = settled([Asked(2.0, ticks(2.1, 50))], counter(6.0, 300.0))
    books = meter.books_at()
    energy = records["r0"].energy
    assert energy.energy_joules == pytest.approx(
        books.measured_joules - books.idle_joules
    )
    assert energy.energy_joules == pytest.approx(300.0 * 1.08, rel=0.15)
    assert abs(books.residual_joules) < 1e-3


def test_idle_watts_are_measured_while_nothing_runs() -> None:
    meter, records = settled([Asked(2.0, ticks(2.1, 10))], counter(5.0, 90.0))
    state = meter.state()
    assert state.idle_watts == pytest.approx(90.0)
    assert state.idle_source == "measured"
    energy = records["r0"].energy
    # At idle power all of it is idle: the request's own part is nothing.
    assert energy.prefill_joules == pytest.approx(0.0, abs=0.01)
    assert energy.decode_joules == pytest.approx(0.0, abs=0.01)
    assert energy.idle_share_joules == pytest.approx(90.0 * 0.28, rel=0.01)


def test_given_idle_watts_are_not_replaced_by_measured_ones() -> None:
    config = MeterConfig(idle_watts=42.0)
    meter, _ = settled([Asked(2.0, ticks(2.1, 10))], counter(5.0, 90.0), config)
    assert meter.state().idle_watts == 42.0
    assert meter.state().idle_source == "given"


def test_idle_nobody_could_measure_is_not_invented() -> None:
    asked = [Asked(0.05, ticks(0.2, 200))]
    meter, records = settled(asked, counter(4.0, 300.0))
    assert meter.state().idle_source == "unknown"
    assert meter.books_at().idle_share_joules == 0.0
    assert records["r0"].energy.quality == "unknown"  # it came before the first edge


def test_phase_times_make_a_record_exact() -> None:
    asked = [
        Asked(2.0, ticks(2.4, 20), prefill_seconds=0.1),
        Asked(3.0, ticks(3.1, 20)),
    ]
    _, records = settled(asked, counter(6.0))
    assert records["r0"].energy.quality == "exact"
    assert records["r0"].scheduled_seconds == pytest.approx(2.3)
    assert records["r1"].energy.quality == "estimated"


def test_a_queued_request_pays_nothing_while_it_waits() -> None:
    waits = Asked(1.0, ticks(4.1, 10), prefill_seconds=0.1)
    runs = Asked(0.9, ticks(1.0, 150), prefill_seconds=0.1)
    _, records = settled([waits, runs], counter(7.0))
    energy = records["r0"].energy
    assert energy.idle_share_by_time_joules is not None
    by_time = energy.policy_joules["equal"] + energy.idle_share_by_time_joules
    assert by_time == pytest.approx(300 * 0.28, rel=0.05)


def test_without_a_sensor_records_come_at_once_and_energy_is_unknown() -> None:
    config = MeterConfig(has_sensor=False)
    meter, records = settled([Asked(1.0, ticks(1.1, 5))], [], config)
    energy = records["r0"].energy
    assert energy.energy_joules is None
    assert energy.quality == "unknown"
    assert energy.policy_joules == {}
    assert records["r0"].output_tokens == 5
    assert meter.books_at().measured_joules == 0.0


def test_a_sensor_that_never_answers_holds_no_record_back_for_ever() -> None:
    meter = Meter()
    play(meter, events_of([Asked(1.0, ticks(1.1, 5))]))
    assert meter.settle(5.0) == []
    (record,) = meter.settle(30.0)
    assert record.energy.energy_joules is None
    assert record.energy.quality == "unknown"


def test_a_window_waits_for_the_facts_of_its_requests() -> None:
    asked = Asked(1.0, ticks(1.1, 100), running_usage=False)
    meter = Meter()
    play(meter, in_order(events_of([asked])[:-2], counter(8.0)))
    meter.settle(8.0)
    assert meter.books_at().settled_seconds <= 1.0
    play(meter, events_of([asked])[-2:])
    (record,) = meter.settle(8.1)
    assert record.energy.quality == "estimated"
    assert record.energy.energy_joules is not None
    assert meter.books_at().settled_seconds > 7.0


def test_running_usage_settles_while_requests_still_run() -> None:
    asked = Asked(1.0, ticks(1.1, 400))
    meter = Meter()
    events = in_order(events_of([asked]), counter(8.0))
    play(meter, [event for event in events if event.at_seconds < 5.0])
    meter.settle(5.0)
    assert meter.books_at().settled_seconds > 4.0
    assert meter.books_at().decode_joules > 0


def test_no_window_waits_for_ever() -> None:
    asked = Asked(1.0, ticks(1.1, 2000), running_usage=False)
    meter = Meter()
    events = in_order(events_of([asked]), counter(42.0))
    settled_at, records = [], []
    for event in events:
        play(meter, [event])
        if isinstance(event, PowerSampled) and round(event.at_seconds / 0.02) % 50 == 0:
            records += meter.settle(event.at_seconds)
            settled_at.append((event.at_seconds, meter.books_at().settled_seconds))
    assert all(now - settled < 12.0 for now, settled in settled_at if now > 2.0)
    (record,) = [*records, *meter.settle(60.0)]
    assert record.energy.quality == "estimated"
    assert record.energy.energy_joules == pytest.approx(300.0 * 40.08, rel=0.01)


def test_settled_accounts_never_fall() -> None:
    asked = [Asked(1.0 + n / 3, ticks(1.2 + n / 3, 60)) for n in range(9)]
    meter = Meter()
    accounts = []
    for event in in_order(events_of(asked), counter(8.0)):
        play(meter, [event])
        if isinstance(event, PowerSampled):
            meter.settle(event.at_seconds)
            books = meter.books_at()
            running = [books.prefill_joules, books.decode_joules]
            accounts.append([*running, books.idle_joules, books.idle_share_joules])
    for before, after in pairwise(accounts):
        assert all(new >= old for old, new in zip(before, after, strict=True))


def test_tokens_for_settled_time_move_to_the_open_window_and_are_counted() -> None:
    meter = Meter()
    asked = Asked(1.0, ticks(1.1, 100))
    play(
        meter,
        [e for e in in_order(events_of([asked]), counter(3.0)) if e.at_seconds < 3.0],
    )
    meter.settle(3.0)
    done = meter.books_at().settled_seconds
    late = (Update(carries_token=True, usage=Usage(100, 97)),)
    meter.feed(TokensReceived(0, done - 0.5, late))
    assert meter.state().late_reads_total == 1


def test_a_whole_reply_is_spread_over_its_time() -> None:
    meter = Meter()
    facts = RequestFacts("chat", is_stream=False)
    reply = Update(carries_token=True, usage=Usage(500, 40), finish_reason="stop")
    play(meter, [event for event in counter(6.0) if event.at_seconds < 3.0])
    meter.feed(RequestOpened(1, 2.0, "whole", facts, Labels()))
    meter.feed(TokensReceived(1, 2.9, (reply,)))
    meter.feed(RequestClosed(1, 2.9, "ok", status=200))
    play(meter, [event for event in counter(6.0) if event.at_seconds >= 3.0])
    (record,) = meter.settle(20.0)
    energy = record.energy
    assert energy.energy_joules == pytest.approx(300 * 0.9, rel=0.15)
    assert energy.prefill_joules is not None
    assert energy.decode_joules is not None
    assert 0 < energy.prefill_joules < energy.decode_joules
    assert record.output_tokens == 40


def test_a_whole_reply_with_phase_times_is_split_by_them() -> None:
    meter = Meter()
    facts = RequestFacts("generate", is_stream=False)
    phases = PhaseSeconds(prefill_seconds=0.2, decode_seconds=0.5)
    reply = Update(carries_token=True, usage=Usage(500, 40), phases=phases)
    play(meter, counter(6.0))
    meter.feed(RequestOpened(1, 2.0, "whole", facts, Labels()))
    meter.feed(TokensReceived(1, 2.9, (reply,)))
    meter.feed(RequestClosed(1, 2.9, "ok", status=200))
    (record,) = meter.settle(20.0)
    assert record.first_token_seconds == pytest.approx(2.4)
    assert record.scheduled_seconds == pytest.approx(2.2)
    assert record.energy.quality == "exact"


def test_an_aborted_request_keeps_what_it_consumed() -> None:
    asked = Asked(2.0, ticks(2.1, 20), outcome="aborted", closed=2.6)
    _, records = settled([asked], counter(6.0))
    assert records["r0"].outcome == "aborted"
    assert records["r0"].energy.energy_joules == pytest.approx(300 * 0.48, rel=0.05)


USAGE = Usage(100, 20)
FINAL = Update(is_usage_only=True, usage=USAGE)


@pytest.mark.parametrize(
    ("outcome", "updates", "tokens", "is_bound"),
    [
        pytest.param("aborted", [], 20, True, id="seen until its client left"),
        pytest.param("upstream_error", [], 20, True, id="seen until the engine died"),
        pytest.param("timeout", [], 20, True, id="seen until time was up"),
        pytest.param("error", [FINAL], 20, False, id="counted, then an error"),
        pytest.param("ok", [FINAL], 20, False, id="whole"),
        pytest.param("ok", [], None, False, id="whole, but never counted"),
    ],
)  # fmt: skip
def test_tokens_of_a_stream_that_breaks_off_are_a_lower_bound(
    outcome: str, updates: list[Update], tokens: int | None, is_bound: bool
) -> None:
    meter = Meter()
    play(meter, counter(6.0))
    facts = RequestFacts("chat", is_stream=True)
    meter.feed(RequestOpened(1, 2.0, "cut", facts, Labels()))
    for at in ticks(2.1, 20):
        meter.feed(TokensReceived(1, at, (Update(carries_token=True),)))
    meter.feed(TokensReceived(1, 2.6, tuple(updates)))
    meter.feed(RequestClosed(1, 2.6, outcome, status=200))
    (record,) = meter.settle(20.0)
    assert record.output_tokens == tokens
    assert record.is_output_lower_bound is is_bound


@pytest.mark.parametrize("outcome", ["aborted", "error"])
def test_a_reply_of_which_no_token_was_seen_has_no_bound(outcome: str) -> None:
    meter = Meter()
    play(meter, counter(6.0))
    facts = RequestFacts("chat", is_stream=True)
    meter.feed(RequestOpened(1, 2.0, "cut", facts, Labels()))
    meter.feed(RequestClosed(1, 2.6, outcome, status=200))
    (record,) = meter.settle(20.0)
    assert record.output_tokens is None
    assert not record.is_output_lower_bound


def test_several_sequences_are_one_request() -> None:
    meter = Meter()
    facts = RequestFacts("chat", is_stream=True, sequences=3)
    play(meter, counter(6.0))
    meter.feed(RequestOpened(1, 2.0, "three", facts, Labels()))
    for at in ticks(2.1, 20):
        meter.feed(TokensReceived(1, at, (Update(carries_token=True),) * 3))
    final = Update(is_usage_only=True, usage=Usage(100, 60))
    meter.feed(TokensReceived(1, 2.5, (final,)))
    meter.feed(RequestClosed(1, 2.5, "ok", status=200))
    (record,) = meter.settle(20.0)
    assert record.output_tokens == 60
    assert record.energy.energy_joules is not None


def test_closing_twice_or_an_unknown_request_does_nothing() -> None:
    meter = Meter()
    meter.feed(RequestClosed(7, 1.0, "ok"))
    meter.feed(TokensReceived(7, 1.0, (Update(carries_token=True),)))
    assert meter.state().open_requests == 0


def test_books_between_snapshots_add_up() -> None:
    asked = [Asked(1.0 + n / 2, ticks(1.2 + n / 2, 40)) for n in range(6)]
    meter, _ = settled(asked, counter(8.0))
    books = [meter.books_at(at) for at in (0.5, 2.3, 4.9, 7.0)]
    for snapshot in books:
        assert abs(snapshot.residual_joules) < 1e-6
    assert meter.books_at(2.3) == books[1]
    assert [b.measured_joules for b in books] == sorted(
        b.measured_joules for b in books
    )


def test_state_of_a_fresh_meter_can_be_read() -> None:
    state = Meter().state()
    assert state.open_requests == 0
    assert state.idle_watts is None
    assert state.idle_source == "unknown"
    assert state.books.measured_joules == 0.0


def test_state_shows_the_sensor_and_the_classes() -> None:
    asked = [Asked(2.0, ticks(2.1, 30), labels=Labels("m", "code", "a"), cached=40)]
    meter, _ = settled(asked, counter(6.0))
    state = meter.state()
    assert state.counter_period_seconds == pytest.approx(0.1)
    assert state.counter_power_ratio == pytest.approx(1.0, abs=0.02)
    assert state.device_watts["gpu0"] == pytest.approx(300.0)
    assert state.class_tokens[Labels("m", "code", "a")] == (100, 40, 30)
    assert state.quality_requests == {"exact": 0, "estimated": 1, "unknown": 0}
    assert set(state.policy_joules) == set(POLICIES)


def test_an_unknown_policy_is_refused_with_those_known() -> None:
    with pytest.raises(ConfigError, match="'fair'; known: calibrated, "):
        MeterConfig(policy="fair")


def test_memory_is_given_back() -> None:
    meter = Meter(MeterConfig(idle_watts=50.0))
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    joules, records = 0.0, 0
    for number in range(3000):
        at = number * 0.1
        joules += 30.0
        meter.feed(PowerSampled("gpu", at, (Reading("gpu0", joules, 300.0),)))
        if number % 5 == 0:
            meter.feed(RequestOpened(number, at, "r", facts, Labels()))
            meter.feed(
                TokensReceived(
                    number, at + 0.05, (Update(carries_token=True, usage=Usage(9, 1)),)
                )
            )
            meter.feed(RequestClosed(number, at + 0.06, "ok", status=200))
            records += len(meter.settle(at))
    assert records > 590
    assert len(meter._requests) < 10
    assert len(meter._timeline.seen.steps.seconds) < 20
    assert len(meter._head.curve.devices["gpu0"].seconds) < 30


def test_memory_is_bounded_while_the_sensor_is_silent() -> None:
    meter = Meter()
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    for number in range(2000):
        at = number * 0.1
        meter.feed(RequestOpened(number, at, "r", facts, Labels()))
        meter.feed(
            TokensReceived(
                number, at + 0.05, (Update(carries_token=True, usage=Usage(9, 1)),)
            )
        )
        meter.feed(RequestClosed(number, at + 0.06, "ok", status=200))
        meter.settle(at)
    assert len(meter._requests) < 200
    assert len(meter._timeline.seen.steps.seconds) < 600


def test_gpus_that_are_heard_one_after_another_leave_no_residual() -> None:
    """Counters of one host change at instants of their own."""
    meter = Meter(MeterConfig(idle_watts=200.0))
    for step in range(400):
        now = step * 0.02
        readings = [
            # both 100 W; the second one's counter changes 60 ms after the first's
            Reading(f"gpu{number}", joules=100.0 * (int((step - 3 * number) / 5) * 0.1))
            for number in range(2)
        ]
        meter.feed(PowerSampled("gpu", now, tuple(readings)))
        meter.settle(now)
    books = meter.books_at()
    assert books.measured_joules > 1000
    assert books.residual_joules == pytest.approx(0.0, abs=1e-6)
    assert books.measured_joules == pytest.approx(books.idle_joules)


def test_legs_are_counted_once_with_their_joules() -> None:
    meter = Meter()
    play(meter, counter(6.0))
    for key, leg in enumerate(("prefill", "decode", "decode", None), 1):
        facts = RequestFacts("chat", is_stream=True, leg=leg)
        meter.feed(RequestOpened(key, 2.0, f"r{key}", facts, Labels()))
        assert meter.note_of(key) is None
        meter.feed(TokensReceived(key, 2.5, (Update(carries_token=True),)))
        meter.feed(RequestClosed(key, 2.6, "ok", status=200))
        meter.note_of(key)
    records = meter.settle(20.0)
    assert [record.leg for record in records] == ["prefill", "decode", "decode", None]
    assert meter.legs_total == {"prefill": 1, "decode": 2}
    decoded = sum(r.energy.energy_joules or 0.0 for r in records if r.leg == "decode")
    assert meter.leg_joules["decode"] == pytest.approx(decoded)
    assert decoded > 0
