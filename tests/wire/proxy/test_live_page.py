"""The live page, its stream and its login, as programs and a real browser get them."""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin.auth import (
    COOKIE,
    MAX_SESSIONS,
    SESSION_SECONDS,
    AdminAccess,
    Sessions,
)
from proxy.admin.live import MAX_PAGES, LiveFeed, PowerRows
from proxy.meter.meter import Meter
from proxy.store.archive import Archive
from proxy.wire.api import LiveReply, PowerRow, ReadinessReply
from proxy.wire.events import RequestOpened
from proxy.wire.facts import Labels, RequestFacts
from tests.support.admin_api import ask
from tests.support.browser import Tab, needs_browser, open_tab
from tests.support.metered import BUSY_WATTS, IDLE_WATTS, metered

TOKEN = "t" * 32
LOGIN_SHOWN = "document.getElementById('login')?.hidden === false"
HOSTILE = "<img src=x onerror=alert(1)>\u202egpj.exe"


async def event(client: httpx.AsyncClient) -> tuple[str, dict[str, Any]]:
    """The first event of `/live`."""
    async with client.stream("GET", "/live") as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/event-stream"
        lines = aiter(reply.aiter_lines())
        kind, data = await anext(lines), await anext(lines)
    return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def busy() -> Meter:
    """The meter of `metered` with a request that still runs, named by its client."""
    meter, _ = metered()
    facts = RequestFacts(route="chat", model="m", is_stream=True)
    meter.feed(RequestOpened(9, 7.9, HOSTILE, facts, Labels("m", "chat", "none")))
    return meter


def test_programs_get_json_and_browsers_the_page() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        assert "/live" in (await client.get("/")).json()["paths"]
        page = await client.get("/", headers={"accept": "text/html,*/*;q=0.8"})
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        for outside in ("http://", "https://", "//cdn"):
            assert f'src="{outside}' not in page.text
            assert f'href="{outside}' not in page.text

    ask(visit)


def test_a_message_has_the_books_the_running_and_the_last_requests() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        kind, message = await event(client)
        assert kind == "whole"
        (engine,) = message["engines"]
        assert (
            engine["books"] == (await client.get("/books")).json()["boundaries"]["gpu"]
        )
        assert engine["requests"] == 1
        assert [each["request_id"] for each in message["running"]] == [HOSTILE]
        assert {each["request_id"] for each in message["recent"]} == {"chatty", "coder"}
        for record in message["recent"]:
            path = f"/requests/{record['request_id']}"
            assert (await client.get(path)).json() == record

    ask(visit, boundaries=busy())


def test_power_by_account_is_what_the_sensor_measured() -> None:
    meter, _ = metered()
    power = PowerRows()
    rows = power.advance(meter, 1000.0)
    watts = {round(row.at_unix_seconds) - 1000: sum(accounts(row)) for row in rows}
    first, last = min(watts) - 1, max(watts)
    # each row is named by its end; nothing is lost between them
    books = [meter.books_at(float(at)).measured_joules for at in (first, last)]
    assert sum(watts.values()) == pytest.approx(books[1] - books[0])
    # requests ran from second 2 to 4; books of an instant are those of its window
    assert watts[2] == pytest.approx(IDLE_WATTS, rel=0.25)
    assert watts[3] == pytest.approx(BUSY_WATTS, rel=0.1)
    assert watts[7] == pytest.approx(IDLE_WATTS, rel=0.01)
    assert power.advance(meter, 1000.0) == []
    assert list(power.rows) == rows


def accounts(row: PowerRow) -> list[float]:
    _, *values = (getattr(row, name) for name in row.__struct_fields__)
    return values


@given(st.lists(st.floats(0, 8), min_size=1, max_size=6))
def test_no_second_of_power_is_told_twice_or_left_out(instants: list[float]) -> None:
    whole, parts = PowerRows(), PowerRows()
    meter, _ = metered()
    told = [row for _ in instants for row in parts.advance(meter, 0.0)]
    assert told == whole.advance(meter, 0.0) == list(parts.rows)


def test_pages_are_bounded() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        async with AsyncExitStack() as pages:
            for _ in range(MAX_PAGES):
                reply = await pages.enter_async_context(client.stream("GET", "/live"))
                await anext(aiter(reply.aiter_lines()))
            refused = await client.get("/live")
            assert refused.status_code == 503
            assert "close one" in refused.json()["error"]

    ask(visit)


def test_a_login_opens_what_the_token_opens_and_the_logout_closes_it() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        page = await client.get("/", headers={"accept": "text/html"})
        assert page.status_code == 200
        assert "chatty" not in page.text  # nothing that is known only here
        assert (await client.get("/live")).status_code == 401
        reply = await client.post("/login", json={"token": TOKEN})
        assert reply.status_code == 200
        flags = reply.headers["set-cookie"].lower()
        assert "httponly" in flags
        assert "samesite=strict" in flags
        assert TOKEN not in flags
        assert (await event(client))[0] == "whole"
        assert (await client.get("/requests")).status_code == 200
        cookie = client.cookies[COOKIE]
        assert (await client.post("/logout")).status_code == 200
        client.cookies.set(COOKIE, cookie)  # one that was copied is worth nothing now
        assert (await client.get("/live")).status_code == 401

    ask(visit, access=AdminAccess("127.0.0.1", TOKEN))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"token": 1}',
        b'{"token": "no"}',
        b"[]",
        b'{"token":"' + b"t" * 9000,
    ],
    ids=["empty", "cut", "number", "wrong", "list", "long"],
)
def test_a_wrong_login_is_refused_and_counted(body: bytes) -> None:
    access = AdminAccess("127.0.0.1", TOKEN)

    async def visit(client: httpx.AsyncClient) -> None:
        reply = await client.post("/login", content=body)
        assert reply.status_code == 401
        assert "set-cookie" not in reply.headers
        assert access.counters.refused == {"wrong_token": 1}

    ask(visit, access=access)


def test_a_page_of_another_site_logs_nobody_in() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        headers = {"origin": "http://elsewhere.example"}
        reply = await client.post("/login", json={"token": TOKEN}, headers=headers)
        assert reply.status_code == 403

    ask(visit, access=AdminAccess("127.0.0.1", TOKEN))


def test_sessions_end_with_time_and_with_their_token() -> None:
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    first = sessions.open("one")
    assert sessions.has(first, "one")
    assert not sessions.has(first, "two")
    assert not sessions.has(first, "one")  # a token that was changed ends it for good
    old = sessions.open("one")
    now[0] = SESSION_SECONDS
    assert not sessions.has(old, "one")
    opened = [sessions.open("one") for _ in range(MAX_SESSIONS + 1)]
    assert [sessions.has(each, "one") for each in opened] == [False] + [
        True
    ] * MAX_SESSIONS


def test_a_process_that_stops_waits_for_no_page() -> None:
    async def make(power: dict[str, PowerRows], is_whole: bool) -> LiveReply:
        return LiveReply(
            at_unix_seconds=0.0, version="", run="", has_token=False, engines=[],
            running=[], recent=[], store=None,
            readiness=ReadinessReply(
                ready=True, upstream=True, sensor=True, reasons=[]
            ),
        )  # fmt: skip

    async def look() -> None:
        feed = LiveFeed(make, beat_seconds=math.inf)
        messages = feed.messages()
        assert (await anext(messages)).startswith(b"event: whole\ndata: {")
        # the first waits for the next message when the second begins
        await asyncio.gather(anext(messages, b"ended"), feed.close())
        assert [message async for message in messages] == []
        assert [message async for message in feed.messages()] == []
        assert feed.pages == 0

    asyncio.run(look())


# -- in a browser ---------------------------------------------------------------


@needs_browser
@pytest.mark.browser
def test_a_browser_shows_what_the_api_says() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        async with open_tab(str(client.base_url)) as tab:
            await tab.until("document.querySelector('#recent tbody tr') !== null")
            rows = await cells(tab, "recent")
            records = {r["request_id"]: r for r in await requests_of(client)}
            assert [row[0] for row in rows] == list(records)[::-1]
            for row in rows:
                record = records[row[0]]
                assert row[8] == record["outcome"]
                assert row[6] == str(record["output_tokens"])
                assert as_joules(row[1]) == pytest.approx(
                    record["energy"]["energy_joules"], rel=0.01
                )
            (book,) = await cells(tab, "books")
            books = (await client.get("/books")).json()
            assert as_joules(book[1]) == pytest.approx(
                books["measured_joules"], rel=0.01
            )
            (running,) = await cells(tab, "running")
            assert running[0] == HOSTILE.replace("\u202e", "\\u{202e}")
            assert await tab.value("document.querySelectorAll('img').length") == 0
            assert await tab.until("document.querySelector('canvas') !== null")
            # its policy refused nothing of its own, and no script failed
            assert tab.complaints == []

    ask(visit, boundaries=busy(), kept=Archive())


@needs_browser
@pytest.mark.browser
def test_a_phone_has_nothing_to_scroll_sideways() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        async with open_tab(str(client.base_url), width=360) as tab:
            await tab.until("document.querySelector('#recent tbody tr') !== null")
            width = await tab.value("document.documentElement.scrollWidth")
            assert width <= 360

    ask(visit, boundaries=busy())


@needs_browser
@pytest.mark.browser
def test_a_person_logs_in_with_the_token_and_out() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        async with open_tab(str(client.base_url)) as tab:
            await tab.until(LOGIN_SHOWN)
            for token, then in (
                ("wrong", "document.getElementById('refusal').textContent !== ''"),
                (TOKEN, "document.querySelector('#recent tbody tr') !== null"),
            ):
                await tab.value(f"document.getElementById('token').value = '{token}'")
                await tab.value("document.querySelector('#login button').click()")
                await tab.until(then)
            assert TOKEN not in await tab.value("location.href")
            await tab.value("document.getElementById('logout').click()")
            await tab.until(LOGIN_SHOWN)
            await tab.call("Page.reload")
            await tab.until(LOGIN_SHOWN)

    ask(visit, access=AdminAccess("127.0.0.1", TOKEN))


async def cells(tab: Tab, table: str) -> list[list[str]]:
    """The text of a table's rows."""
    found: list[list[str]] = await tab.value(
        f"[...document.querySelectorAll('#{table} tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return found


async def requests_of(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (await client.get("/requests")).text.splitlines()
    ]


def as_joules(text: str) -> float:
    value, unit = text.rsplit(" ", 1)
    return float(value.replace(" ", "")) * {"J": 1, "kJ": 1e3, "mJ": 1e-3}[unit]
