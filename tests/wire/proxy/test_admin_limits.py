"""The admin port bounds who connects to it, and lets scrapers in all the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from proxy.admin.limits import AdminLimits
from proxy.admin.server import AdminConnections, AdminServer, listen
from tests.support.relaying import LOOPS, run
from tests.support.scripted import Peer, connect, request_bytes

loops = pytest.mark.parametrize("loop", LOOPS)
HALF = b"GET /books HTTP/1.1\r\nHost: x\r\nA: "
BOOKS = request_bytes("GET", "/books")


def allowing(**limits: Any) -> AdminConnections:
    return AdminConnections(AdminLimits(**limits))


async def admin(connections: AdminConnections, gate: asyncio.Event) -> AdminServer:
    async def books(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response(body=b"{}")

    app = web.Application()
    app.router.add_get("/books", books)
    return await listen(app, "127.0.0.1", 0, None, connections)


async def leave(server: AdminServer, *clients: Peer) -> None:
    for client in clients:
        client.abort()
        await client.lost.wait()
    await server.close()


@loops
def test_half_heads_make_room_for_whoever_asks(loop: str) -> None:
    async def test() -> None:
        connections, gate = allowing(admin_max_connections=3), asyncio.Event()
        gate.set()
        server = await admin(connections, gate)
        half: list[Peer] = []
        for _ in range(5):
            half.append(await connect(server.port))
            await half[-1].send(HALF)
        scraper = await connect(server.port)
        for _ in range(3):
            await scraper.send(BOOKS)
            assert (await scraper.reply()).status == 200
        for stranger in half[:3]:
            await stranger.gone.wait()
        assert len(connections) == 3
        await leave(server, *half, scraper)

    run(loop, test)


@loops
def test_who_is_being_answered_is_not_closed_for_another(loop: str) -> None:
    async def test() -> None:
        connections, gate = allowing(admin_max_connections=2), asyncio.Event()
        server = await admin(connections, gate)
        served = [await connect(server.port) for _ in range(2)]
        for client in served:
            await client.send(BOOKS)
        while not all(c.is_serving for c in connections):  # noqa: ASYNC110
            await asyncio.sleep(0)
        late = await connect(server.port)
        await late.gone.wait()
        gate.set()
        for client in served:
            assert (await client.reply()).status == 200
        await leave(server, *served, late)

    run(loop, test)


@loops
@pytest.mark.parametrize("asks_first", [False, True])
def test_a_head_without_end_is_cut(loop: str, asks_first: bool) -> None:
    async def test() -> None:
        connections, gate = allowing(admin_header_timeout_seconds=0.05), asyncio.Event()
        gate.set()
        server = await admin(connections, gate)
        client = await connect(server.port)
        if asks_first:
            await client.send(BOOKS)
            assert (await client.reply()).status == 200
        await client.send(HALF)
        while not client.gone.is_set():
            await client.send(b"a")
            await asyncio.sleep(0.005)
        assert len(connections) == 0
        await leave(server, client)

    run(loop, test)


@loops
def test_who_reads_nothing_of_large_replies_makes_room_for_others(loop: str) -> None:
    page = 16_000_000 * b"r"

    async def test() -> None:
        async def pages(request: web.Request) -> web.Response:
            return web.Response(body=page)

        app = web.Application()
        app.router.add_get("/books", pages)
        connections = allowing(admin_max_unread_bytes=3 * len(page))
        server = await listen(app, "127.0.0.1", 0, None, connections)
        silent: list[Peer] = []
        for _ in range(6):
            silent.append(await connect(server.port))
            silent[-1].transport.pause_reading()
            await silent[-1].send(BOOKS)
        reader = await connect(server.port)
        for _ in range(3):
            await reader.send(BOOKS)
            assert (await reader.reply()).body == page
        unread = sum(connection.unread_bytes for connection in connections)
        assert unread <= 3 * len(page)
        assert 1 < len(connections) < 7  # the newest are still there
        await leave(server, *silent, reader)

    run(loop, test)
