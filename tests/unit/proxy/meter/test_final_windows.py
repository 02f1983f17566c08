"""Windows do not end right after somebody began on an idle engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.config import MeterConfig
from proxy.meter.final_windows import EDGE_SECONDS, too_late_to_cut
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, PhaseSeconds, Reading, RequestFacts, Update, Usage
from tests.support.profiles import examples

IDLE_WATTS, BUSY_WATTS = 110.0, 500.0
PREFILL_SECONDS, DECODE_SECONDS = 0.008, 0.2


def ran(arrived: float, ended: float) -> RequestTimeline:
    timeline = RequestTimeline(1, arrived, RequestFacts("chat", is_stream=True))
    timeline.close(ended)
    return timeline


def test_an_end_shortly_after_work_began_is_too_late() -> None:
    began = 10.0 - EDGE_SECONDS / 2
    assert too_late_to_cut(10.0, [ran(began, 11.0)]) == began
    assert too_late_to_cut(10.0, [ran(9.0, 9.5), ran(began, 11.0)]) == began


@pytest.mark.parametrize(
    "timelines",
    [
        [],
        [ran(10.0 - 2 * EDGE_SECONDS, 11.0)],
        [ran(9.0, 9.97)],
        [ran(9.0, 9.99), ran(9.98, 11.0)],  # it did not begin on an idle engine
        [ran(10.01, 11.0)],
    ],
    ids=["nobody", "long before", "ended", "joined", "later"],
)
def test_other_ends_are_good(timelines: list[RequestTimeline]) -> None:
    assert too_late_to_cut(10.0, timelines) is None


def whole_replies(
    start_seconds: float, late_seconds: float, *, beat_seconds: float = 0.05
) -> list[RequestRecord]:
    """Three replies in one piece, one after the other, on an engine left idle before.

    The counter updates every 0.1 s, shifted by `late_seconds`, and is polled every
    20 ms; the GPU draws its busy watts from the first arrival to the last close.
    """
    meter = Meter(MeterConfig())
    facts = RequestFacts("chat")
    took = PREFILL_SECONDS + DECODE_SECONDS
    arrivals = [start_seconds + number * (took + 0.003) for number in range(3)]
    end = arrivals[-1] + took
    events: list[tuple[float, int, str, int]] = []
    for key, arrived in enumerate(arrivals):
        events += [(arrived, 0, "opened", key), (arrived + took, 1, "closed", key)]
    polls = int((end + 3) / 0.02)
    events += [(number * 0.02, 2, "sampled", 0) for number in range(polls)]
    beats = int((end + 3) / beat_seconds)
    events += [(number * beat_seconds, 3, "settle", 0) for number in range(beats)]
    phases = PhaseSeconds(0.0, PREFILL_SECONDS, DECODE_SECONDS)
    records: list[RequestRecord] = []
    for at, _, what, key in sorted(events):
        if what == "opened":
            meter.feed(RequestOpened(key, at, f"r{key}", facts, Labels()))
        elif what == "closed":
            reply = Update(carries_token=True, usage=Usage(150, 30, 0), phases=phases)
            meter.feed(TokensReceived(key, at, (reply,)))
            meter.feed(RequestClosed(key, at, "ok", status=200))
        elif what == "sampled":
            shown = max(int((at + late_seconds) / 0.1) * 0.1 - late_seconds, 0.0)
            busy = min(max(shown - start_seconds, 0.0), end - start_seconds)
            joules = IDLE_WATTS * (shown - busy) + BUSY_WATTS * busy
            meter.feed(PowerSampled("gpu", at, (Reading("gpu0", joules, None),)))
        else:
            records += meter.settle(at)
    return records


@examples(150)
@given(start=st.floats(1.0, 2.0), late=st.floats(0.0, 0.099))
def test_the_first_prefill_after_a_quiet_time_is_charged(
    start: float, late: float
) -> None:
    records = whole_replies(start, late)
    assert len(records) == 3
    least = PREFILL_SECONDS * (BUSY_WATTS - IDLE_WATTS) / 4
    for record in records:
        assert record.energy.prefill_joules is not None
        assert record.energy.prefill_joules > least


@examples(25)
@given(start=st.floats(1.0, 2.0), late=st.floats(0.0, 0.099))
def test_the_beat_does_not_decide_where_windows_end(start: float, late: float) -> None:
    often, seldom = (whole_replies(start, late, beat_seconds=b) for b in (0.01, 0.7))
    assert [record.energy for record in often] == [record.energy for record in seldom]


def test_short_requests_in_step_with_the_counter_do_not_stop_settlement() -> None:
    meter = Meter(MeterConfig(idle_watts=IDLE_WATTS))
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    settled: list[RequestRecord] = []
    for number in range(100):
        at = 1.0 + number * 0.1
        for step in range(5):
            read = at - 0.1 + step * 0.02
            meter.feed(
                PowerSampled("gpu", read, (Reading("gpu0", 30.0 * number, None),))
            )
        meter.feed(RequestOpened(number, at - 0.02, f"r{number}", facts, Labels()))
        token = Update(carries_token=True, usage=Usage(9, 1))
        meter.feed(TokensReceived(number, at - 0.015, (token,)))
        meter.feed(RequestClosed(number, at - 0.014, "ok", status=200))
        settled += meter.settle(at)
    assert len(settled) > 75
