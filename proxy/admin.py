"""The admin API, on its own port: books, records, metrics, health; all read-only.

Instants leave as Unix seconds: the proxy's monotonic stamps plus one offset,
which follows the wall clock when that is stepped.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from proxy.admin_guard import AdminAccess, guarding
from proxy.admin_json import (
    boundary_json,
    lacking,
    ratio_json,
    sensor_json,
    store_json,
)
from proxy.boundaries import Boundaries
from proxy.calibration.document import encoded, saved_of
from proxy.errors import StoreError
from proxy.sensing import Measured
from proxy.store.archive import Archive
from proxy.store.filed import sequence_at

MOST_RECORDS = 10_000
"""Per reply of `/requests`: about 6 MB; ask again with the last sequence."""
OFFSET_STEP_SECONDS = 0.001
YEAR_3000_UNIX_SECONDS = 32_503_680_000
CONTENT_TYPE_METRICS = "text/plain; version=0.0.4; charset=utf-8"
CONTENT_TYPE_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True)
class AdminSources:
    """Where the admin API looks; it changes nothing."""

    boundaries: Boundaries
    measured: Callable[[], Sequence[Measured]]
    """Every boundary now, the headline first."""
    records: Archive
    info: Mapping[str, Any]
    """Configuration as a user may see it: no secrets."""
    render_metrics: Callable[[bool], bytes]
    """Exposition text; True for OpenMetrics (with exemplars). Runs on a thread."""
    render_recent: Callable[[], bytes]
    upstream_state: Callable[[], Any]
    """Awaitable: None when the upstream answers, else why it does not."""
    sample_interval_seconds: float
    freshen: Callable[[], None]
    """Take one snapshot for the metrics, on the event loop."""
    engine: str = "vllm"
    """The upstream's dialect, which its calibration is kept under."""


def admin_app(
    sources: AdminSources, access: AdminAccess | None = None
) -> web.Application:
    """The routes, for loopback unless told otherwise.

    Every reply is JSON, JSON lines or Prometheus text.
    """
    app = web.Application(middlewares=[guarding(access or AdminAccess())])
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
        replies = {
            measured.boundary: boundary_json(
                self._from.boundaries,
                measured,
                at,
                unix_offset_seconds=offset,
                sample_interval_seconds=self._from.sample_interval_seconds,
            )
            for measured in self._from.measured()
        }
        chosen = request.query.get("boundary")
        if chosen is None:
            return _json(
                {
                    **replies[self._from.boundaries.headline],
                    "boundaries": replies,
                    "ratios": [ratio_json(r) for r in self._from.boundaries.ratios()],
                }
            )
        if chosen not in replies:
            return _refuse(f"boundary is one of {', '.join(replies)}")
        return _json(replies[chosen])

    async def info(self, request: web.Request) -> web.Response:
        sensors = {m.boundary: sensor_json(m) for m in self._from.measured()}
        store = self._from.records.state()
        shown = None if store is None else store_json(store)
        sensor = sensors[self._from.boundaries.headline]
        return _json(
            {**self._from.info, "sensor": sensor, "sensors": sensors, "store": shown}
        )

    async def calibration(self, request: web.Request) -> web.Response:
        state = self._from.boundaries.state().calibration
        found = [] if state is None else [saved_of(state, self._from.engine)]
        return web.Response(body=encoded(found), content_type="application/json")

    async def healthz(self, request: web.Request) -> web.Response:
        return _json({"healthy": True})

    async def readyz(self, request: web.Request) -> web.Response:
        upstream_reason = await self._from.upstream_state()
        headline, *others = self._from.measured()
        sensor_reason = lacking(headline)
        reasons = [r for r in (upstream_reason, sensor_reason) if r is not None]
        body = {
            "ready": not reasons,
            "upstream": upstream_reason is None,
            "sensor": sensor_reason is None,
            "reasons": reasons,
            # of the boundaries beside the headline; requests do not wait for them
            "lacking": {
                other.boundary: reason
                for other in others
                if (reason := lacking(other)) is not None
            },
        }
        return _json(body, 503 if reasons else 200)


def _json(body: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


def _refuse(reason: str) -> web.Response:
    return _json({"error": reason}, 400)
