"""The admin API over a real socket, in front of a real meter."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from sqlalchemy import make_url

from proxy.admin.auth import AdminAccess
from proxy.admin.views import EngineSources, engine_books
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.metrics.samples import Measured
from proxy.power.hardware import HardwareLog
from proxy.power.sampler import SamplerStats
from proxy.store.address import sqlite_url
from proxy.store.archive import Archive
from proxy.wire.api import HardwareReply
from proxy.wire.events import HardwareObserved
from proxy.wire.facts import HardwareState
from proxy.wire.sums import fleet_books
from tests.support.admin_api import ask
from tests.support.metered import metered


def test_a_probe_without_the_token_learns_whether_it_is_ready_and_nothing_else() -> (
    None
):
    async def visit(client: httpx.AsyncClient) -> None:
        reply = await client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json() == {"ready": False}
        sent = {"authorization": f"Bearer {'t' * 32}"}
        assert (await client.get("/readyz", headers=sent)).json()["reasons"]

    ask(visit, upstream="gone", access=AdminAccess("127.0.0.1", "t" * 32))


def test_a_proxy_that_stops_is_not_ready_whatever_works() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        reply = await client.get("/readyz")
        assert reply.status_code == 503
        assert "the proxy is stopping" in reply.json()["reasons"]

    ask(visit, is_stopping=True)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_long_scrape_holds_up_nothing_else() -> None:
    """Rendered on a thread: the loop, which relays chunks, goes on meanwhile."""
    begun, answered = threading.Event(), threading.Event()

    def render(openmetrics: bool) -> bytes:
        begun.set()
        assert answered.wait(20.0), "the loop stood still while the page was made"
        return b"late"

    async def visit(client: httpx.AsyncClient) -> None:
        scrape = asyncio.create_task(client.get("/metrics"))
        while not begun.is_set():  # noqa: ASYNC110 - set on another thread
            await asyncio.sleep(0.001)
        assert (await client.get("/healthz")).json() == {"healthy": True}
        answered.set()
        assert (await scrape).text == "late"

    ask(visit, render=render)


def test_records_are_read_by_a_cursor() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        first = lines((await client.get("/requests?since=0&limit=1")).text)
        rest = lines(
            (await client.get(f"/requests?since={first[-1]['sequence']}")).text
        )
        assert {r["request_id"] for r in first + rest} == {"chatty", "coder"}
        (coder,) = [r for r in first + rest if r["request_id"] == "coder"]
        assert coder == (await client.get("/requests/coder")).json()
        assert coder["energy"]["energy_joules"] > 0
        assert coder["finished_unix_seconds"] > coder["arrived_unix_seconds"] > 1e9
        assert (await client.get("/requests/nobody")).status_code == 404

    ask(visit)


def test_an_instant_is_a_cursor_too() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        everything = (await client.get("/requests")).text
        now = time.time()
        since = f"/requests?from_unix={now - 60}"
        assert (await client.get(since)).text == everything
        assert (await client.get(f"/requests?from_unix={now + 60}")).text == ""
        # the later of the two counts
        last = lines(everything)[-1]["sequence"]
        assert (await client.get(f"{since}&since={last}")).text == ""

    ask(visit)


@pytest.mark.parametrize("has_store", [False, True], ids=["memory", "store"])
def test_records_are_filtered_by_what_they_show(
    has_store: bool, tmp_path: Path
) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        every = lines((await client.get("/requests")).text)
        for name in ("model", "tenant", "outcome", "engine", "kind"):
            for value in {record[name] for record in every}:
                reply = await client.get("/requests", params={name: value})
                assert lines(reply.text) == [r for r in every if r[name] == value]
            assert (await client.get(f"/requests?{name}=nobody")).text == ""
        first, *rest = every
        assert rest
        for since, until in (
            (first["sequence"], rest[-1]["sequence"]),
            (first["sequence"] / 1e6 - 60, first["sequence"] / 1e6 + 60),
        ):
            found = (await client.get(f"/requests?since={since}&until={until}")).text
            wanted = rest if since == first["sequence"] else every
            assert lines(found) == wanted
        last = await client.get(f"/requests?until={first['sequence']}")
        assert lines(last.text) == [first]

    url = make_url(sqlite_url(tmp_path / "records.sqlite")) if has_store else None
    kept = Archive(url, upstream="http://engine")
    ask(visit, kept=kept)
    kept.start()
    kept.stop()


def test_a_store_that_is_down_is_said_and_hides_only_the_past(tmp_path: Path) -> None:
    url = make_url(sqlite_url(tmp_path / "away" / "records.sqlite"))

    async def visit(client: httpx.AsyncClient) -> None:
        refused = await client.get("/requests")
        assert refused.status_code == 503
        assert "unable to open database file" in refused.json()["error"]
        assert (await client.get("/requests/of-last-year")).status_code == 503
        assert (await client.get("/requests/coder")).status_code == 200
        (at,) = re.findall(r"since=(\d+)", refused.json()["error"])
        assert len(lines((await client.get(f"/requests?since={at}")).text)) == 2
        store = (await client.get("/info")).json()["store"]
        assert not store["up"]
        assert store["queue_records"] == 2
        assert store["last_error"] == "unable to open database file"

    ask(visit, kept=Archive(url, upstream="http://engine"))


@pytest.mark.parametrize(
    "path",
    [
        "/requests?since=x",
        "/requests?limit=0",
        "/requests?limit=many",
        "/requests?until=-1",
        "/requests?until=1e300",
        "/requests?since=nan",
        "/requests?modle=m",
        "/requests?from_unix=nan",
        "/requests?from_unix=yesterday",
        "/hardware?from_unix=x",
        "/hardware?to_unix=inf",
        "/books?at=noon",
        "/books?at=nan",
    ],
)
def test_a_question_that_makes_no_sense_is_refused(path: str) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        reply = await client.get(path)
        assert reply.status_code == 400
        assert reply.json()["error"]

    ask(visit)


def test_the_books_close_at_any_instant() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        offset = time.time() - time.monotonic()
        before = 0.0
        for at in (None, 1.0, 2.75, 3.1, 6.0):
            query = "" if at is None else f"?at={at + offset}"
            books = (await client.get(f"/books{query}")).json()
            accounts = (
                sum(books["attributed_joules"].values())
                + books["idle_share_joules"]
                + books["idle_joules"]
                + sum(books["unattributed_joules"].values())
            )
            assert books["measured_joules"] == pytest.approx(accounts, abs=0.001)
            if at is not None:
                assert books["complete"]
                assert books["measured_joules"] >= before
                before = books["measured_joules"]
        late = (await client.get(f"/books?at={100 + offset}")).json()
        assert late["complete"] is False

    ask(visit)


def test_without_a_sensor_joules_are_null() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        books = (await client.get("/books")).json()
        assert books["measured_joules"] is None
        assert books["attributed_joules"] is None
        assert (await client.get("/readyz")).status_code == 200

    none = Meter(MeterConfig(boundaries=("none",), has_sensor=False))
    ask(visit, boundaries=none, has_sensor=False)


def test_readiness_says_what_is_missing() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        reply = await client.get("/readyz")
        assert reply.status_code == 503
        assert reply.json()["reasons"] == ["upstream is down", "no driver"]
        assert (await client.get("/healthz")).status_code == 200

    down = SamplerStats(is_up=False, last_error="no driver")
    ask(visit, stats=down, upstream="upstream is down")


def test_a_meter_that_measures_is_ready() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        reply = await client.get("/readyz")
        assert reply.status_code == 200, reply.text

    ask(visit, stats=SamplerStats(is_up=True))


def test_the_calibration_is_shown_with_the_reason_why_it_is_not_trusted() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        found = (await client.get("/calibration")).json()
        assert found["version"] == 2
        (entry,) = found["calibrations"]
        assert (entry["engine"], entry["model"]) == ("vllm", "m")
        assert entry["is_fitted"] is False
        assert "rows of load seen" in entry["reason"]
        assert entry["constants"]["step_joules"]["unit"] == "J per step"

    ask(visit)


def test_a_run_can_ask_how_the_boards_worked_in_its_window() -> None:
    boards = HardwareLog()
    now = time.monotonic()
    for age in range(20, 0, -1):
        reasons = ("sw_power_cap",) if age > 15 else ()
        state = HardwareState("gpu0", temperature_celsius=60.0 - age)
        state = msgspec.structs.replace(state, throttle_reasons=reasons)
        boards.add(HardwareObserved("gpu", now - age, (state,)))

    async def visit(client: httpx.AsyncClient) -> None:
        async def told(query: str) -> Any:
            reply = await client.get(f"/hardware{query}")
            found = msgspec.json.decode(reply.content, type=HardwareReply)
            return found.engines["vllm"]

        whole = await told("")
        assert whole.now[0].temperature_celsius == 59.0
        assert whole.window[0].throttled_seconds == pytest.approx(5.0)
        assert len(whole.series.at_unix_seconds) == 20
        begin = time.time() - 10
        late = await told(f"?from_unix={begin}&to_unix={begin + 5}")
        assert late.window[0].seconds == pytest.approx(5.0, abs=0.1)
        assert late.window[0].throttled_seconds == 0.0
        assert late.window[0].temperature_celsius.min >= 49.0

    ask(visit, boards=boards)


def test_without_a_source_that_tells_the_boards_are_unknown() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        (engine,) = (await client.get("/hardware")).json()["engines"].values()
        assert engine["observed_unix_seconds"] is None
        assert engine["now"] == engine["window"] == []

    ask(visit)


def test_metrics_are_negotiated() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        assert (await client.get("/metrics")).text == "text"
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        reply = await client.get("/metrics", headers=accept)
        assert reply.text == "openmetrics"
        assert reply.headers["content-type"].startswith("application/openmetrics-text")
        assert (await client.get("/metrics/requests")).text == "recent"
        assert "/books" in (await client.get("/")).json()["paths"]

    ask(visit)


def test_every_boundary_has_its_books_and_a_share_of_the_whole() -> None:
    around, _ = metered(has_node=True)

    async def visit(client: httpx.AsyncClient) -> None:
        books = (await client.get("/books")).json()
        assert list(books["boundaries"]) == ["gpu", "node"]
        gpu = (await client.get("/books?boundary=gpu")).json()
        node = (await client.get("/books?boundary=node")).json()
        assert books["boundaries"] == {"gpu": gpu, "node": node}
        assert {**books, **gpu} == books  # the headline's
        for one in (gpu, node):
            accounts = (
                sum(one["attributed_joules"].values())
                + one["idle_share_joules"]
                + one["idle_joules"]
                + sum(one["unattributed_joules"].values())
            )
            assert one["measured_joules"] == pytest.approx(accounts, abs=1e-3)
        shares = {ratio["inner"]: ratio for ratio in books["ratios"]}
        assert shares["gpu"]["ratio"] == pytest.approx(0.5, rel=1e-3)
        assert shares["gpu"]["outer"] == "node"
        assert 0 < gpu["idle_accelerators_joules"] < gpu["measured_joules"]
        assert gpu["idle_accelerators_watts"] == {"gpu1": pytest.approx(25.0)}
        assert node["idle_accelerators_joules"] is None
        assert gpu["bare_idle_watts"] == 60.0
        assert gpu["model_idle_watts"] == pytest.approx(40.0, rel=0.02)
        refused = await client.get("/books?boundary=moon")
        assert refused.status_code == 400
        assert refused.json()["error"] == "boundary is one of gpu, node"
        info = (await client.get("/info")).json()
        assert info["sensors"]["node"]["up"]

    ask(visit, boundaries=around, stats=SamplerStats(is_up=True))


def test_the_books_of_several_engines_are_a_sum_or_unknown() -> None:
    known, _ = metered()
    other, _ = metered()
    none = Meter(MeterConfig(boundaries=("none",), has_sensor=False))

    async def answers() -> None:
        return None

    def source(name: str, boundaries: Meter, *, is_up: bool) -> EngineSources:
        boundary, stats = boundaries.headline, SamplerStats(is_up=is_up)

        def measured() -> list[Measured]:
            state = boundaries.state_of(boundary)
            return [Measured(boundary, "nvml", state, stats if is_up else None)]

        return EngineSources(name, boundaries, measured, answers)

    def summed(*engines: EngineSources) -> dict[str, Any]:
        books = fleet_books(
            {
                engine.name: engine_books(
                    engine, None, unix_offset_seconds=0.0, sample_interval_seconds=0.02
                )
                for engine in engines
            }
        )
        reply: dict[str, Any] = json.loads(msgspec.json.encode(books))
        return reply

    one, two = source("one", known, is_up=True), source("two", other, is_up=True)
    both = summed(one, two)
    alone = both["engines"]["one"]
    assert both["measured_joules"] == pytest.approx(2 * alone["measured_joules"])
    assert both["attributed_joules"]["decode"] == pytest.approx(
        2 * alone["attributed_joules"]["decode"]
    )
    assert both["residual_joules"] == pytest.approx(0.0, abs=1e-3)
    assert both["boundaries"]["gpu"]["idle_joules"] == both["idle_joules"]
    assert set(both["device_watts"]) == {"one/gpu0", "two/gpu0"}
    dark = summed(one, source("dark", none, is_up=False))
    assert dark["engines"]["one"]["measured_joules"] > 0
    assert dark["measured_joules"] is None
    assert dark["attributed_joules"] is None
    assert dark["boundaries"] == {}
    assert dark["boundary"] == "gpu, none"
