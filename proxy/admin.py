"""The admin API, on its own port: books, records, metrics, health; all read-only.

Instants leave as Unix seconds: the proxy's monotonic stamps plus one offset,
which follows the wall clock when that is stepped.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from proxy.calibration.document import encoded, saved_of
from proxy.errors import StoreError
from proxy.ledger import Books
from proxy.meter import MeterProtocol
from proxy.sampler import SamplerStats
from proxy.store.archive import Archive
from proxy.store.filed import sequence_at
from proxy.store.writer import StoreState

MOST_RECORDS = 10_000
"""Per reply of `/requests`: about 6 MB; ask again with the last sequence."""
OFFSET_STEP_SECONDS = 0.001
YEAR_3000_UNIX_SECONDS = 32_503_680_000
CONTENT_TYPE_METRICS = "text/plain; version=0.0.4; charset=utf-8"
CONTENT_TYPE_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True)
class AdminSources:
    """Where the admin API looks; it changes nothing."""

    meter: MeterProtocol
    records: Archive
    sampler: Callable[[], SamplerStats | None]
    has_sensor: bool
    """False when there is no power source, and so no energy."""
    info: Mapping[str, Any]
    """Configuration as a user may see it: no secrets."""
    render_metrics: Callable[[bool], bytes]
    """Exposition text; True for OpenMetrics (with exemplars). Runs on a thread."""
    render_recent: Callable[[], bytes]
    upstream_state: Callable[[], Any]
    """Awaitable: None when the upstream answers, else why it does not."""
    window_seconds: float
    sample_interval_seconds: float
    source: str
    freshen: Callable[[], None]
    """Take one snapshot for the metrics, on the event loop."""
    engine: str = "vllm"
    """The upstream's dialect, which its calibration is kept under."""


def admin_app(sources: AdminSources) -> web.Application:
    """The routes; every reply is JSON, JSON lines or Prometheus text."""
    app = web.Application()
    views = _Views(sources)
    app.router.add_get("/", views.index)
    app.router.add_get("/metrics", views.metrics)
    app.router.add_get("/metrics/requests", views.metrics_requests)
    app.router.add_get("/requests", views.requests)
    app.router.add_get("/requests/{request_id}", views.request)
    app.router.add_get("/books", views.books)
    app.router.add_get("/info", views.info)
    app.router.add_get("/calibration", views.calibration)
    app.router.add_get("/healthz", views.healthz)
    app.router.add_get("/readyz", views.readyz)
    return app


class _Views:
    def __init__(self, sources: AdminSources) -> None:
        self._from = sources
        self._offset_seconds = 0.0

    def _unix_offset_seconds(self) -> float:
        """Wall clock minus monotonic clock; taken anew when the wall clock moved.

        Kept while it moves by less than a millisecond, so that the same stamp
        is the same Unix time in every reply.
        """
        now = time.time() - time.monotonic()
        if abs(now - self._offset_seconds) > OFFSET_STEP_SECONDS:
            self._offset_seconds = now
        return self._offset_seconds

    async def index(self, request: web.Request) -> web.Response:
        paths = sorted(
            {
                resource.canonical
                for resource in request.app.router.resources()
                if resource.canonical != "/"
            }
        )
        return _json({"servewatt": self._from.info.get("version"), "paths": paths})

    async def metrics(self, request: web.Request) -> web.Response:
        openmetrics = "openmetrics" in request.headers.get("accept", "")
        self._from.freshen()
        # rendering a thousand series takes longer than a token: off the loop
        body = await asyncio.to_thread(self._from.render_metrics, openmetrics)
        kind = CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_METRICS
        return web.Response(body=body, headers={"content-type": kind})

    async def metrics_requests(self, request: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._from.render_recent)
        return web.Response(body=body, headers={"content-type": CONTENT_TYPE_METRICS})

    async def requests(self, request: web.Request) -> web.Response:
        try:
            since = int(request.query.get("since", "0"))
            limit = int(request.query.get("limit", "1000"))
            from_unix = float(request.query.get("from_unix", "0"))
        except ValueError:
            return _refuse("since and limit are whole numbers, from_unix seconds")
        if since < 0 or not 1 <= limit <= MOST_RECORDS:
            return _refuse(f"since is from 0, limit from 1 to {MOST_RECORDS}")
        if not 0 <= from_unix < YEAR_3000_UNIX_SECONDS:
            return _refuse("from_unix is Unix seconds, such as 1767225600")
        # the sequence is the instant of settlement: an instant is a cursor too
        since = max(since, sequence_at(from_unix) - 1)
        try:
            body = await self._from.records.lines(since, limit)
        except StoreError as error:
            return _json({"error": str(error)}, 503)
        return web.Response(body=body, content_type="application/x-ndjson")

    async def request(self, request: web.Request) -> web.Response:
        try:
            line = await self._from.records.line(request.match_info["request_id"])
        except StoreError as error:
            return _json({"error": str(error)}, 503)
        if line is None:
            return _json(
                {"error": "no settled request of this id among those kept"}, 404
            )
        return web.Response(body=line, content_type="application/json")

    async def books(self, request: web.Request) -> web.Response:
        offset = self._unix_offset_seconds()
        at_unix: float | None = None
        if "at" in request.query:
            try:
                at_unix = float(request.query["at"])
            except ValueError:
                return _refuse("at is Unix seconds, such as 1767225600.5")
            if not math.isfinite(at_unix):
                return _refuse("at is finite Unix seconds")
        at = None if at_unix is None else at_unix - offset
        return _json(self._books_json(self._from.meter.books_at(at), at, offset))

    def _books_json(
        self, books: Books, at_seconds: float | None, offset: float
    ) -> dict[str, Any]:
        state = self._from.meter.state()
        stats = self._from.sampler()
        settled = state.books.settled_seconds
        reply: dict[str, Any] = {
            "settled_unix_seconds": settled + offset
            if math.isfinite(settled)
            else None,
            "complete": at_seconds is None or settled >= at_seconds,
            "boundary": stats.boundary if stats else "none",
            "source": self._from.source,
            "simulated": bool(stats and stats.is_simulated),
            "sensor_up": bool(stats and stats.is_up),
            "policy": state.policy,
            "sample_interval_seconds": self._from.sample_interval_seconds,
            "window_seconds": self._from.window_seconds,
        }
        is_measured = state.samples_total > 0 and math.isfinite(settled)
        reply |= books_json(books) if is_measured else NO_BOOKS
        reply |= {
            "idle_watts": state.idle_watts,
            "idle_source": state.idle_source,
            "device_watts": dict(state.device_watts),
            "gaps_total": state.gaps_total,
            "samples_total": state.samples_total,
            "missed_total": stats.missed if stats else 0,
            "counter_period_seconds": state.counter_period_seconds,
            "counter_power_ratio": state.counter_power_ratio,
            "unsettled_seconds": state.unsettled_seconds,
            "open_requests": state.open_requests,
        }
        return reply

    async def info(self, request: web.Request) -> web.Response:
        stats = self._from.sampler()
        sensor = {
            "up": bool(stats and stats.is_up),
            "simulated": bool(stats and stats.is_simulated),
            "last_error": stats.last_error if stats else None,
        }
        store = self._from.records.state()
        shown = None if store is None else _store_json(store)
        return _json({**self._from.info, "sensor": sensor, "store": shown})

    async def calibration(self, request: web.Request) -> web.Response:
        state = self._from.meter.state().calibration
        found = [] if state is None else [saved_of(state, self._from.engine)]
        return web.Response(body=encoded(found), content_type="application/json")

    async def healthz(self, request: web.Request) -> web.Response:
        return _json({"healthy": True})

    async def readyz(self, request: web.Request) -> web.Response:
        upstream_reason = await self._from.upstream_state()
        sensor_reason = self._sensor_reason()
        reasons = [r for r in (upstream_reason, sensor_reason) if r is not None]
        body = {
            "ready": not reasons,
            "upstream": upstream_reason is None,
            "sensor": sensor_reason is None,
            "reasons": reasons,
        }
        return _json(body, 503 if reasons else 200)

    def _sensor_reason(self) -> str | None:
        """Why energy is not known yet; None when it is, or is not asked for."""
        stats = self._from.sampler()
        if not self._from.has_sensor:
            return None
        if stats is None or not stats.is_up:
            error = stats.last_error if stats else None
            return error or "the power source has not answered yet"
        state = self._from.meter.state()
        if state.books.measured_joules <= 0:
            return "the energy counter has not moved yet"
        if state.idle_watts is None:
            return "idle power is still being measured"
        return None


NO_BOOKS: dict[str, Any] = {
    "measured_joules": None,
    "attributed_joules": None,
    "idle_share_joules": None,
    "idle_joules": None,
    "unattributed_joules": None,
    "residual_joules": None,
}
"""Before any reading the joules are unknown, which is not zero."""


def books_json(books: Books) -> dict[str, Any]:
    """The accounts as `/books` shows them."""
    return {
        "measured_joules": books.measured_joules,
        "attributed_joules": {
            "prefill": books.prefill_joules,
            "decode": books.decode_joules,
        },
        "idle_share_joules": books.idle_share_joules,
        "idle_joules": books.idle_joules,
        "unattributed_joules": dict(books.unattributed_joules),
        "residual_joules": books.residual_joules,
    }


def _store_json(state: StoreState) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(state)
    return {"up": shown.pop("is_up"), **shown}


def _json(body: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


def _refuse(reason: str) -> web.Response:
    return _json({"error": reason}, 400)
