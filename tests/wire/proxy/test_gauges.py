"""The task that scrapes the engine, against real sockets."""

from __future__ import annotations

import asyncio

import pytest

from proxy.power.engine_load import GaugeStats, gauges_url, watch_gauges
from proxy.wire.events import EngineObserved
from proxy.wire.facts import EngineGauges
from tests.support.scripted import Peer, ScriptedServer, reply_bytes

PAGE = b"vllm:num_requests_running 2\nvllm:num_requests_waiting 1\n"


@pytest.mark.parametrize(
    ("asked", "engine", "url"),
    [
        ("auto", "vllm", "http://e:1/metrics"),
        ("auto", "tgi", "http://e:1/metrics"),
        ("auto", "transformers", None),
        ("auto", "openai", None),
        ("none", "vllm", None),
        ("http://other:9000/metrics", "openai", "http://other:9000/metrics"),
    ],
)
def test_where_gauges_are_depends_on_the_engine(
    asked: str, engine: str, url: str | None
) -> None:
    assert gauges_url(asked, engine, "http://e:1") == url


def test_scrapes_are_delivered_and_failures_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pages = [
        reply_bytes(503, b"starting"),
        reply_bytes(503, b"starting"),
        reply_bytes(200, b"something else"),
        reply_bytes(200, PAGE),
        reply_bytes(200, PAGE),
    ]

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            if not pages:
                return
            await peer.send(pages.pop(0))

    async def scrape() -> tuple[list[EngineObserved], GaugeStats]:
        got: list[EngineObserved] = []
        enough = asyncio.Event()
        stats = GaugeStats()

        def deliver(event: EngineObserved) -> None:
            got.append(event)
            if len(got) == 2:
                enough.set()

        async with ScriptedServer(script) as server:
            task = asyncio.create_task(
                watch_gauges(f"{server.url}/metrics", deliver, stats, every_seconds=0)
            )
            await enough.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return got, stats

    got, stats = asyncio.run(scrape())
    assert [event.gauges for event in got] == [EngineGauges(2, 1)] * 2
    assert got[0].at_seconds < got[1].at_seconds
    assert stats.errors_total >= 3
    said = [record.getMessage() for record in caplog.records if "gauges" in record.name]
    assert sum("status 503" in line for line in said) == 1
    assert sum("no plausible gauge of vLLM or TGI" in line for line in said) == 1


def test_an_engine_that_cannot_be_reached_is_said_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scrape() -> GaugeStats:
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        stats = GaugeStats()
        url = f"http://127.0.0.1:{port}/metrics"
        task = asyncio.create_task(
            watch_gauges(url, lambda *_: None, stats, every_seconds=0)
        )
        # failures are counted, nobody is called for them
        while stats.scrapes_total < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return stats

    stats = asyncio.run(scrape())
    assert stats.errors_total == stats.scrapes_total
    assert not stats.is_up
    assert sum("going on without" in r.getMessage() for r in caplog.records) == 1
