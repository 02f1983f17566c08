"""What the engine drafted and accepted, over time."""

from __future__ import annotations

from proxy.meter.activity.speculation import Speculation, SpeculationLog
from proxy.meter.meter import Meter
from proxy.wire.events import EngineObserved
from proxy.wire.facts import EngineGauges


def scraped(*counts: tuple[float, float] | None) -> SpeculationLog:
    """A scrape a second, from 1 s on; None tells nothing of drafts."""
    log = SpeculationLog()
    for at, count in enumerate(counts, start=1):
        drafted, accepted = count or (None, None)
        gauges = EngineGauges(
            running=0, waiting=0, draft_tokens=drafted, accepted_tokens=accepted
        )
        log.add(float(at), gauges)
    return log


def test_an_engine_that_does_not_speculate_tells_nothing() -> None:
    assert scraped(None, None).totals_at() is None


def test_tokens_are_counted_from_the_first_scrape_on() -> None:
    log = scraped((900.0, 300.0), (930.0, 320.0), None, (960.0, 340.0))
    assert log.totals_at() == Speculation(60.0, 40.0)
    assert log.totals_at(3.5) == Speculation(30.0, 20.0)
    assert log.totals_at(0.5) == Speculation(0.0, 0.0)


def test_an_engine_that_began_anew_counts_on() -> None:
    log = scraped((900.0, 300.0), (930.0, 320.0), (15.0, 5.0))
    assert log.totals_at() == Speculation(45.0, 25.0)


def test_a_meter_tells_it_as_of_an_instant() -> None:
    meter = Meter()
    for at, accepted in ((1.0, 10.0), (2.0, 40.0)):
        gauges = EngineGauges(
            running=1, waiting=0, draft_tokens=2 * accepted, accepted_tokens=accepted
        )
        meter.feed(EngineObserved(at, gauges))
    assert meter.speculation_at(1.5) == Speculation(0.0, 0.0)
    assert (
        meter.speculation_at() == meter.state().speculation == Speculation(60.0, 30.0)
    )
