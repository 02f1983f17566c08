"""The admin API over a real socket, in front of a real meter, for one visitor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
from aiohttp import web

from proxy.admin.auth import AdminAccess
from proxy.admin.routes import AdminSources, admin_app
from proxy.admin.views import EngineSources
from proxy.meter.meter import Meter
from proxy.metrics.samples import Measured
from proxy.power.hardware import HardwareLog
from proxy.power.sampler import SamplerStats
from proxy.store.archive import Archive
from tests.support.metered import metered


def ask(
    visit: Callable[[httpx.AsyncClient], Awaitable[None]],
    *,
    boundaries: Meter | None = None,
    has_sensor: bool = True,
    stats: SamplerStats | None = None,
    access: AdminAccess | None = None,
    is_stopping: bool = False,
    upstream: str | None = None,
    kept: Archive | None = None,
    boards: HardwareLog | None = None,
    render: Callable[[bool], bytes] = lambda is_open: (
        b"openmetrics" if is_open else b"text"
    ),
) -> None:
    """Serve the API on loopback and let a client visit it."""
    known, records = metered()
    boundaries = boundaries or known
    kept = kept or Archive()
    kept.add(records)

    async def upstream_state() -> str | None:
        return upstream

    def measured() -> list[Measured]:
        return [
            Measured(
                name, "nvml", boundaries.state_of(name),
                (stats or SamplerStats()) if has_sensor else None,
                boundaries.outside_state(name),
                bare_idle_watts=60.0,
            )
            for name in boundaries.names
        ]  # fmt: skip

    engine = EngineSources(
        "vllm", boundaries, measured, upstream_state, hardware=boards or HardwareLog()
    )
    sources = AdminSources(
        engines=[engine],
        records=kept,
        version="test",
        config={},
        render_metrics=render,
        render_recent=lambda: b"recent",
        sample_interval_seconds=0.02,
        freshen=lambda: None,
        is_stopping=lambda: is_stopping,
    )

    async def serve() -> None:
        runner = web.AppRunner(admin_app(sources, access))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with httpx.AsyncClient(base_url=base) as client:
            await visit(client)
        await runner.cleanup()

    asyncio.run(serve())
