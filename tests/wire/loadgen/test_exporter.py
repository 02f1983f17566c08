"""What Prometheus reads from the load generator while a run goes on."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadgen.client.backends import RequestOptions, Target
from loadgen.errors import UsageError
from loadgen.replay.replay import replay
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder
from loadgen.results.results import Result
from loadgen.run.exporter import (
    LATENCIES,
    MAX_LAST_SCRAPE_SECONDS,
    METRICS,
    PREFIX,
    Scrapes,
    exporting,
    parse_address,
)
from tests.support.virtual_server import Server, single
from tests.support.virtual_time import VirtualClock, run_virtually


def finished(kind: str = "code", outcome: str = "ok") -> Result:
    return Result(
        request_id="very-secret-id",
        session_id="s1",
        turn=1,
        kind=kind,
        planned_seconds=1.0,
        sent_seconds=1.0004,
        first_token_seconds=1.2,
        last_token_seconds=2.2,
        finished_seconds=2.3,
        output_tokens=11,
        chunk_seconds=[1.2, 2.2],
        chunk_tokens=[1, 10],
        outcome=outcome,
        error=None if outcome == "ok" else "http://host/ said no",
    )


def scraped(url: str) -> dict[tuple[str, ...], float]:
    text = httpx.get(url, trust_env=False).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_shows_the_runs_counters_and_latencies() -> None:
    progress = Progress(planned=100, offered_per_second=4.0, sent=7, in_flight=3)
    with exporting("0", progress) as url:
        assert url
        for watch in progress.watchers:
            watch(finished())
            watch(finished(outcome="timeout"))
        found = scraped(url)
    assert found[f"{PREFIX}requests_sent_total",] == 7
    assert found[f"{PREFIX}requests_in_flight",] == 3
    assert found[f"{PREFIX}offered_requests_per_second",] == 4
    assert found[f"{PREFIX}requests_finished_total", "code", "ok"] == 1
    assert found[f"{PREFIX}requests_finished_total", "code", "timeout"] == 1
    assert found[f"{PREFIX}time_to_first_token_seconds_count", "code", "2"] == 1
    assert found[f"{PREFIX}time_per_output_token_seconds_sum", "code"] == (
        pytest.approx(0.1)
    )
    # lag is known of the request that timed out as well
    assert found[f"{PREFIX}schedule_lag_seconds_count", "code"] == 2


def test_every_metric_of_the_tables_is_shown() -> None:
    progress = Progress(planned=1, offered_per_second=1.0)
    progress.note_send(1.0)
    progress.note_send(3.0)
    with exporting("127.0.0.1:0", progress) as url:
        assert url
        progress.watchers[0](finished())
        names = {key[0] for key in scraped(url)}
    assert {PREFIX + name for name in METRICS} <= names
    assert {f"{PREFIX}{name}_bucket" for name in LATENCIES} <= names


def test_labels_stay_bounded_whatever_the_records_say() -> None:
    progress = Progress()
    with exporting("0", progress) as url:
        assert url
        for index in range(50):
            progress.watchers[0](finished(kind=f"kind-{index}", outcome="error"))
        text = httpx.get(url, trust_env=False).text
    assert 'kind="other"' in text
    assert "kind-7" not in text
    assert "secret" not in text
    assert "http://host" not in text


def test_a_replay_tells_the_exporter_of_every_request(tmp_path: Path) -> None:
    progress = Progress()
    server = Server(fails=lambda number: number == 2)

    async def whole() -> None:
        with Recorder(tmp_path / "requests.jsonl") as recorder:
            await replay(
                iter([single(n, 0.1 * n) for n in range(5)]),
                target=Target("http://test", "vllm"),
                options=RequestOptions(),
                recorder=recorder,
                progress=progress,
                clock=VirtualClock(),
                connect=lambda *_: server,
            )

    with exporting("0", progress) as url:
        assert url
        run_virtually(whole())
        found = scraped(url)
    assert found[f"{PREFIX}requests_sent_total",] == 5
    assert found[f"{PREFIX}requests_finished_total", "other", "ok"] == 4
    assert found[f"{PREFIX}requests_finished_total", "other", "error"] == 1


def test_after_the_run_the_port_is_free_and_nobody_is_told() -> None:
    progress = Progress()
    with exporting("0", progress) as url:
        assert url
        port = httpx.URL(url).port
    assert progress.watchers == []
    with exporting(str(port), progress) as again:
        assert again == url


def test_the_port_stays_until_whoever_asks_regularly_has_the_last_figures() -> None:
    progress = Progress()
    counts: list[float] = []

    def ask_once_more(url: str) -> None:
        counts.append(scraped(url)[f"{PREFIX}requests_finished_total", "code", "ok"])

    with exporting("0", progress) as url:
        assert url
        scraped(url)
        scraped(url)
        progress.watchers[0](finished())
        later = threading.Timer(0.01, ask_once_more, [url])
        later.start()
    later.join()
    assert counts == [1]


@pytest.mark.parametrize(
    ("scrapes_at_seconds", "has_news", "patience_seconds"),
    [
        ([], True, 0.0),
        ([1.0], True, 0.0),
        ([1.0, 6.0], True, 11.0),
        ([1.0, 6.0], False, 0.0),
        ([1.0, 600.0], True, MAX_LAST_SCRAPE_SECONDS),
    ],
    ids=["nobody", "once", "every-5-s", "no-news", "seldom"],
)
def test_the_last_scrape_is_waited_for_where_one_is_to_be_expected(
    scrapes_at_seconds: list[float], has_news: bool, patience_seconds: float
) -> None:
    times = iter(scrapes_at_seconds)
    scrapes = Scrapes(clock=lambda: next(times))
    for _ in scrapes_at_seconds:
        scrapes.note()
    if has_news:
        scrapes.note_news()
    assert scrapes.patience_seconds == patience_seconds


def test_a_run_without_a_port_serves_nothing() -> None:
    progress = Progress()
    with exporting(None, progress) as url:
        assert (url, progress.watchers) == (None, [])


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"--metrics-port {port}: .*in use"),
            exporting(str(port), Progress()),
        ):
            pass


@pytest.mark.parametrize("text", ["", "http", "70000", "localhost:", "-1", "1.5"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--metrics-port"):
        parse_address(text)


def test_a_host_may_be_named() -> None:
    assert parse_address("0.0.0.0:9465") == ("0.0.0.0", 9465)
    assert parse_address("9465") == ("127.0.0.1", 9465)


def test_the_run_is_named_whatever_the_name_of_its_folder() -> None:
    name = 'a "run"\\\n\udcff'  # the last is a byte that is no text
    with exporting("0", Progress(), run=name) as url:
        assert url
        found = scraped(url)
    (info,) = [key for key in found if key[0] == f"{PREFIX}run_info"]
    assert info[1].startswith('a "run"\\')


def test_the_rate_achieved_is_that_of_the_sends_so_far() -> None:
    progress = Progress()
    assert progress.achieved_per_second is None
    for at_seconds in (0.5, 1.5, 2.5):
        progress.note_send(at_seconds)
    assert progress.achieved_per_second == 1.0
