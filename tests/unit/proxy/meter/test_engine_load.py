"""What the engine's own gauges change: waiting, strangers, run-ons, preemptions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import hypothesis
import pytest
from hypothesis import strategies as st

from proxy.meter.activity.engine_load import GaugeLog
from proxy.meter.activity.request import Pause
from proxy.meter.attribution.policies import POLICIES
from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import EngineObserved
from proxy.wire.facts import EngineGauges
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


def scrapes(
    counts: Sequence[tuple[int, int]],
    *,
    first: float = 0.5,
    progress: Sequence[float] | None = None,
    preemptions: Sequence[int] | None = None,
) -> list[EngineObserved]:
    """One scrape a second, (running, waiting) each; progress in all by default."""
    return [
        EngineObserved(
            first + number,
            EngineGauges(
                running,
                waiting,
                None if preemptions is None else preemptions[number],
                100.0 * number if progress is None else progress[number],
            ),
        )
        for number, (running, waiting) in enumerate(counts)
    ]


def settled(
    asked: Sequence[Asked],
    gauges: Sequence[EngineObserved],
    *,
    until: float = 12.0,
    config: MeterConfig = GIVEN,
) -> tuple[Meter, dict[str, RequestRecord]]:
    meter = Meter(config)
    events = in_order(events_of(asked), gauges, counter(until, WATTS))
    found = settled_on_beat(meter, events, beat=0.05, until=until + 100.0)
    records = {record.request_id: record for record in found}
    assert abs(meter.books_at().residual_joules) < 1e-6
    return meter, records


def joules(record: RequestRecord) -> float:
    assert record.energy.energy_joules is not None
    return record.energy.energy_joules


# --- traffic that bypasses the proxy ------------------------------------------


def test_a_stranger_beside_a_request_takes_its_share() -> None:
    own = Asked(2.1, ticks(2.2, 7.9))
    alone, free = settled([own], [])
    meter, shared = settled([own], scrapes([(0, 0), (0, 0), *[(2, 0)] * 6, (0, 0)]))
    books = meter.books_at()
    external = books.unattributed_joules["external"]
    seconds = 5.0  # between the six scrapes from 2.5 s to 7.5 s
    assert external == pytest.approx(WATTS * seconds / 2, rel=0.03)
    assert joules(shared["r0"]) == pytest.approx(joules(free["r0"]) - external)
    assert books.idle_joules == pytest.approx(alone.books_at().idle_joules)
    assert "external" not in alone.books_at().unattributed_joules


def test_every_policy_gives_out_what_strangers_left() -> None:
    own = [Asked(2.1, ticks(2.2, 7.9)), Asked(3.0, ticks(3.3, 5.0), prompt=3000)]
    meter, _ = settled(own, scrapes([(0, 0), (0, 0), *[(4, 0)] * 6, (0, 0)]))
    totals = [sum(pair) for pair in meter.state().policy_joules.values()]
    assert totals == pytest.approx([totals[0]] * len(totals))
    assert meter.books_at().unattributed_joules["external"] > totals[0]


def test_strangers_alone_are_not_idle() -> None:
    meter, _ = settled([], scrapes([(3, 0)] * 12), config=MeterConfig())
    books = meter.books_at()
    assert meter.state().idle_watts is None  # nothing to learn idle watts from
    assert books.unattributed_joules["external"] == pytest.approx(WATTS * 11, rel=0.01)
    # before the first scrape nobody can know
    assert books.idle_joules == pytest.approx(WATTS * 0.5, rel=0.2)


def test_one_scrape_alone_proves_nothing() -> None:
    own = Asked(2.1, ticks(2.2, 7.9))
    counts = [(0, 0), (0, 0), (1, 0), (2, 0), (1, 0), (2, 0), (1, 0), (1, 0), (0, 0)]
    meter, records = settled([own], scrapes(counts))
    _, free = settled([own], [])
    assert "external" not in meter.books_at().unattributed_joules
    assert joules(records["r0"]) == pytest.approx(joules(free["r0"]))


def test_a_gauge_left_standing_is_no_traffic() -> None:
    """vLLM keeps its gauges when all requests are aborted at once."""
    still = scrapes([(5, 2)] * 12, progress=[1000.0] * 12)
    meter, _ = settled([], still, config=MeterConfig())
    assert "external" not in meter.books_at().unattributed_joules
    assert meter.state().idle_watts == pytest.approx(WATTS, rel=0.01)


def test_progress_between_empty_scrapes_is_not_loaded_idle() -> None:
    meter, _ = settled([], scrapes([(0, 0)] * 12), config=MeterConfig())
    assert meter.state().idle_source == "unknown"
    quiet = scrapes([(0, 0)] * 12, progress=[7.0] * 12)
    meter, _ = settled([], quiet, config=MeterConfig())
    assert meter.state().idle_source == "measured"


def test_a_request_just_ended_or_arriving_is_no_stranger() -> None:
    own = [Asked(1.0 + n, ticks(1.1 + n, 1.45 + n)) for n in range(8)]
    counts = [(0, 0), *[(1, 0)] * 8, (0, 0)]  # each is scraped 45 ms after its end
    meter, _ = settled(own, scrapes(counts))
    assert "external" not in meter.books_at().unattributed_joules


def test_without_a_newer_scrape_settlement_goes_on() -> None:
    own = Asked(2.1, ticks(2.2, 7.9))
    meter, records = settled([own], scrapes([(0, 0), (0, 0), (3, 0), (3, 0)]))
    assert records["r0"].energy.quality == "estimated"
    external = meter.books_at().unattributed_joules["external"]
    assert external == pytest.approx(WATTS * 2 / 3, rel=0.1)


# --- scheduled time -----------------------------------------------------------


def test_nobody_is_scheduled_while_the_gauges_show_it_waiting() -> None:
    first = Asked(1.0, ticks(1.1, 6.0))
    second = Asked(1.2, ticks(3.7, 6.0), prompt=12_000)
    _, blind = settled([first, second], [])
    shown = [(0, 0), (1, 1), (1, 1), (2, 0), (2, 0), (2, 0), (0, 0)]
    _, told = settled([first, second], scrapes(shown))
    assert blind["r1"].scheduled_seconds is not None
    assert told["r1"].scheduled_seconds is not None
    assert blind["r1"].scheduled_seconds < 3.2
    assert 2.5 <= told["r1"].scheduled_seconds <= 3.7
    assert told["r1"].energy.quality == "estimated"
    assert told["r0"].scheduled_seconds == blind["r0"].scheduled_seconds


def test_the_newest_wait_first() -> None:
    """Two wait of three: the third's first token does not clear the second."""
    running = Asked(1.0, ticks(1.1, 6.0))
    queue = [Asked(1.2 + n / 10, ticks(4.0, 6.0), prompt=20_000) for n in range(2)]
    shown = [(0, 0), (1, 2), (2, 1), (2, 1), (3, 0), (3, 0), (0, 0)]
    _, records = settled([running, *queue], scrapes(shown))
    older, newer = records["r1"].scheduled_seconds, records["r2"].scheduled_seconds
    assert older is not None
    assert newer is not None
    assert older >= 1.5
    assert newer >= 3.5


def test_who_gave_up_in_the_queue_pays_for_no_time_in_it() -> None:
    running = Asked(1.0, ticks(1.1, 8.0))
    gone = Asked(1.2, [], closed=6.6, outcome="aborted", status=None)
    shown = [(0, 0), *[(1, 1)] * 6, (1, 0), (0, 0)]
    _, records = settled([running, gone], scrapes(shown))
    _, blind = settled([running, gone], [])
    assert records["r1"].scheduled_seconds == pytest.approx(6.5)
    assert joules(records["r1"]) < joules(blind["r1"]) / 4


# --- clients that left --------------------------------------------------------


def abandoned() -> Asked:
    """Its client leaves at 3 s, in the middle of decoding."""
    return Asked(2.0, ticks(2.1, 3.0), closed=3.01, outcome="aborted")


def test_an_engine_that_runs_on_is_charged_to_who_asked() -> None:
    counts = [(0, 0), (0, 0), *[(1, 0)] * 3, (0, 0), (0, 0)]
    meter, records = settled([abandoned()], scrapes(counts))
    books = meter.books_at()
    assert "external" not in books.unattributed_joules
    # from 2.0 s to the last scrape that shows it, at 4.5 s
    assert joules(records["r0"]) == pytest.approx(WATTS * 2.5, rel=0.05)
    assert records["r0"].output_tokens == 46
    assert records["r0"].finished_seconds == 3.01


def test_an_engine_that_stops_is_not() -> None:
    counts = [(0, 0), (0, 0), (1, 0), (0, 0), (0, 0)]
    _, records = settled([abandoned()], scrapes(counts))
    _, blind = settled([abandoned()], [])
    assert joules(records["r0"]) == pytest.approx(joules(blind["r0"]))


def test_a_gauge_left_standing_after_an_abort_is_not_the_request() -> None:
    counts = [(0, 0), (0, 0), *[(1, 0)] * 8]
    stuck = scrapes(counts, progress=[0, 0, 30, 50, 50, 50, 50, 50, 50, 50])
    meter, records = settled([abandoned()], stuck)
    _, blind = settled([abandoned()], [])
    assert joules(records["r0"]) == pytest.approx(joules(blind["r0"]))
    assert "external" not in meter.books_at().unattributed_joules


def test_a_run_on_is_bounded_and_then_nobodys() -> None:
    counts = [(0, 0), (0, 0), *[(1, 0)] * 17]
    meter, records = settled([abandoned()], scrapes(counts), until=18.0)
    books = meter.books_at()
    assert WATTS * 5 < joules(records["r0"]) < WATTS * 8
    assert books.unattributed_joules["external"] > WATTS * 6
    assert books.settled_seconds > 17.0


def test_a_prefill_that_nobody_waits_for_runs_on() -> None:
    gone = Asked(2.0, [], closed=2.6, outcome="timeout", status=None)
    counts = [(0, 0), (0, 0), *[(1, 0)] * 3, (0, 0), (0, 0)]
    _, records = settled([gone], scrapes(counts))
    assert joules(records["r0"]) == pytest.approx(WATTS * 2.5, rel=0.05)


# --- preemptions --------------------------------------------------------------


def test_a_preemption_makes_the_records_of_its_time_estimated() -> None:
    # the first request is how the meter learns that phase times come at the end
    first = Asked(0.6, ticks(0.7, 0.8), prefill_seconds=0.1, cached=0)
    early = Asked(1.0, ticks(1.2, 2.0), prefill_seconds=0.1, cached=0)
    during = Asked(4.0, ticks(4.2, 6.0), prefill_seconds=0.2, cached=0)
    shown = [(0, 0), (1, 0), (0, 0), (0, 0), (1, 0), (1, 0), (0, 0), (0, 0)]
    calm = scrapes(shown, preemptions=[3] * 8)
    rising = scrapes(shown, preemptions=[3, 3, 3, 3, 3, 3, 4, 4])
    _, records = settled([first, early, during], calm)
    assert [records[f"r{n}"].energy.quality for n in (1, 2)] == ["exact", "exact"]
    _, records = settled([first, early, during], rising)
    assert [records[f"r{n}"].energy.quality for n in (1, 2)] == ["exact", "estimated"]


def late_reads() -> tuple[list[Asked], list[tuple[int, int]]]:
    """One stream's reads come 0.4 s late once, while others go on."""
    slow = [*ticks(1.0, 3.0), *ticks(3.4, 6.0)]
    beside = Asked(0.6, ticks(0.7, 6.0))
    return [Asked(0.9, slow, prompt=3000), beside], [(2, 0)] * 9


def test_late_reads_are_no_preemption_where_the_engine_counts_none() -> None:
    asked, shown = late_reads()
    _, calm = settled(asked, scrapes(shown, preemptions=[3] * 9))
    _, moved = settled(asked, scrapes(shown, preemptions=[3] * 3 + [4] * 6))
    _, untold = settled(asked, scrapes(shown))
    tokens = [
        records["r0"].energy.policy_joules["tokens"]
        for records in (calm, moved, untold)
    ]
    assert tokens[1] == pytest.approx(tokens[2])  # a prompt was computed again
    assert tokens[0] < tokens[1]


def left_out_of_one_step() -> tuple[list[Asked], list[tuple[int, int]]]:
    """One stream misses a single step of 20 ms twice, while three others go on.

    The engine had preempted before.
    """
    stamps = [0.02 * number for number in range(50, 300)]
    short = [at for at in stamps if round(at / 0.02) not in (150, 225)]
    beside = [Asked(0.6 + 0.01 * n, ticks(0.72, 6.0)) for n in range(3)]
    return [Asked(0.9, short, prompt=3000), *beside], [(4, 0)] * 9


def test_no_more_short_pauses_are_preemptions_than_the_engine_counts() -> None:
    asked, shown = left_out_of_one_step()
    found = []
    for late in ([4, 4, 4, 4], [5, 5, 5, 5], [5, 6, 6, 6]):
        told = [3, 3, 4, *late, late[-1], late[-1]]
        _, records = settled(asked, scrapes(shown, preemptions=told))
        found.append(records["r0"].energy.policy_joules["tokens"])
    assert found[0] < found[1] < found[2]


@hypothesis.given(
    counted=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    pauses=st.lists(
        st.tuples(st.floats(0.6, 5.4), st.floats(0.01, 3.0), st.booleans()), max_size=20
    ),
)
def test_a_pause_is_a_preemption_only_as_the_count_allows(
    counted: list[int], pauses: list[tuple[float, float, bool]]
) -> None:
    gauges = GaugeLog()
    for number, total in enumerate([0, *accumulate(counted)]):
        gauges.add(0.5 + number, EngineGauges(0, 0, preemptions=total), ())
    short = 0
    for stopped, lasted, is_short in sorted(pauses):
        pause = Pause(stopped, stopped + lasted, 5.0, is_short)
        if not gauges.was_set_aside(pause, stopped + 0.005):
            continue
        short += is_short
        moved = [count for n, count in enumerate(counted) if 1.5 + n > stopped]
        assert any(moved) or stopped + lasted > 0.5 + len(counted)
    assert short <= sum(counted)


# --- whatever the gauges say --------------------------------------------------


@st.composite
def lives(draw: st.DrawFn) -> Asked:
    arrived = draw(st.floats(0.6, 6.0))
    first = arrived + draw(st.floats(0.02, 2.0))
    tokens = [first + 0.03 * number for number in range(draw(st.integers(0, 60)))]
    return Asked(
        arrived,
        tokens,
        prompt=draw(st.integers(1, 9000)),
        closed=None if tokens else first,
        outcome=draw(st.sampled_from(["ok", "aborted", "timeout"])),
        prefill_seconds=draw(st.none() | st.floats(0.0, 3.0)),
    )


gauge = st.builds(
    EngineGauges,
    running=st.integers(0, 9),
    waiting=st.integers(0, 9),
    preemptions=st.none() | st.integers(0, 3),
    progress=st.none() | st.floats(0, 3).map(round),
)


@pytest.mark.parametrize("policy", POLICIES)
@examples(30)
@hypothesis.given(
    asked=st.lists(lives(), min_size=1, max_size=5),
    pages=st.lists(gauge, min_size=1, max_size=14),
)
def test_no_gauge_breaks_the_books(
    policy: str, asked: list[Asked], pages: list[EngineGauges]
) -> None:
    shown = [EngineObserved(0.4 + n, page) for n, page in enumerate(pages)]
    meter, records = settled(
        asked, shown, until=16.0, config=MeterConfig(policy=policy)
    )
    books = meter.books_at()
    assert books.settled_seconds > 15.0
    assert len(records) == len(asked)
    external = sum(books.unattributed_joules.values())
    assert external >= 0.0
    paid = sum(joules(record) for record in records.values())
    assert books.measured_joules == pytest.approx(paid + books.idle_joules + external)
    for record in records.values():
        parts = [*record.energy.policy_joules.values(), joules(record)]
        assert min(parts) >= 0.0
    for one, record in zip(
        asked, (records[f"r{n}"] for n in range(len(asked))), strict=True
    ):
        assert record.scheduled_seconds is not None
        assert record.scheduled_seconds >= one.arrived
