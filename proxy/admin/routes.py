"""The admin API, on its own port: books, records, metrics, health, upstreams.

Read-only but for one thing: an upstream can be drained, and take requests again.
Instants leave as Unix seconds: the proxy's monotonic stamps plus one offset,
which follows the wall clock when that is stepped.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from msgspec import UNSET

from proxy.admin.auth import COOKIE, LOGIN_PATH, AdminAccess, guarding, refusal_of
from proxy.admin.live import (
    MAX_PAGES,
    SHOWN_RECENT,
    LiveFeed,
    PowerRows,
    live_engine,
    running_requests,
)
from proxy.admin.page import accepts_page, live_page
from proxy.admin.views import (
    EngineSources,
    ProcessRun,
    boards_of,
    engine_books,
    engine_info,
    engine_totals,
    fleet_readiness,
    readiness,
    upstream_reply,
)
from proxy.errors import StoreError
from proxy.metrics.collector import OPENMETRICS_TYPE, TEXT_TYPE, EndedRequests
from proxy.process.build import build_form
from proxy.process.supervise import LoopErrors
from proxy.relay.upstream.upstream import Upstream
from proxy.store.archive import Archive
from proxy.store.fits import encoded, saved_of
from proxy.store.stored_record import FILTERED, RecordFilter, cursor_at
from proxy.wire.api import (
    BooksReply,
    HardwareReply,
    InfoReply,
    LiveReply,
    ReadinessReply,
    TotalsReply,
    UpstreamReply,
    UpstreamsReply,
)
from proxy.wire.sums import fleet_books

log = logging.getLogger("servewatt.admin")

MAX_RECORDS = 10_000
"""Per reply of `/requests`: about 6 MB; ask again with the last cursor."""
LATELY_SECONDS = 600.0
"""Window of `/hardware` where none is asked for."""
PAGES_AT_ONCE = 2
"""Of records, while they are made."""
OFFSET_STEP_SECONDS = 0.001
YEAR_3000_UNIX_SECONDS = 32_503_680_000


@dataclass(slots=True)
class AdminSources:
    """Sources of everything that the admin API shows; replaced as they change."""

    engines: Sequence[EngineSources]
    """One source or more."""
    records: Archive
    version: str
    config: Mapping[str, Any]
    """The configuration in use, without secrets."""
    render_metrics: Callable[[bool], bytes]
    """Exposition text; True for OpenMetrics (with exemplars). Runs on a thread."""
    render_recent: Callable[[], bytes]
    sample_interval_seconds: float
    freshen: Callable[[], None]
    """Take one snapshot for the metrics, on the event loop."""
    run: ProcessRun = field(default_factory=ProcessRun)
    """What sums over engines belong to."""
    instance: str | None = None
    """Name of this proxy among others."""
    host: str | None = None
    """Name of the machine."""
    ended: Mapping[str, Mapping[tuple[str, str], EndedRequests]] = field(
        default_factory=dict
    )
    """Settled requests by engine, and by model and tenant."""
    errors: LoopErrors = field(default_factory=LoopErrors)
    """Of the live page's beat, among those of the process."""
    is_stopping: Callable[[], bool] = lambda: False
    """Whether the proxy was asked to stop: it is not ready from then on."""
    relays_away: Callable[[], Sequence[int]] = tuple
    """Numbers of the relays, in processes of their own, that are not connected."""
    relays: int = 1
    """How many there should be."""


def admin_app(
    sources: AdminSources, access: AdminAccess | None = None
) -> web.Application:
    """The application, open to loopback alone without `access`.

    Every reply is JSON, JSON lines or Prometheus text.
    """
    access = access or AdminAccess()
    app = web.Application(middlewares=[guarding(access)])
    views = _Views(sources, access)
    app.on_shutdown.append(views.feed.close)
    app.router.add_get("/", views.index)
    app.router.add_get("/live", views.live, allow_head=False)
    app.router.add_post(LOGIN_PATH, views.login)
    app.router.add_post("/logout", views.logout)
    app.router.add_get("/metrics", views.metrics)
    app.router.add_get("/metrics/requests", views.metrics_requests)
    app.router.add_get("/requests", views.requests)
    app.router.add_get("/requests/{request_id}", views.request)
    app.router.add_get("/books", views.books)
    app.router.add_get("/totals", views.totals)
    app.router.add_get("/hardware", views.hardware)
    app.router.add_get("/info", views.info)
    app.router.add_get("/calibration", views.calibration)
    app.router.add_get("/upstreams", views.upstreams)
    app.router.add_post("/upstreams/{name}/drain", views.drain)
    app.router.add_post("/upstreams/{name}/resume", views.resume)
    app.router.add_get("/healthz", views.healthz)
    app.router.add_get("/readyz", views.readyz)
    return app


class _Views:
    def __init__(self, sources: AdminSources, access: AdminAccess) -> None:
        self._from = sources
        self._access = access
        self._offset_seconds = 0.0
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)
        self.feed = LiveFeed(self._live, sources.errors)

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
        if accepts_page(request):
            return live_page()
        paths = sorted(
            {
                resource.canonical
                for resource in request.app.router.resources()
                if resource.canonical != "/"
            }
        )
        return _json({"servewatt": self._from.version, "paths": paths})

    async def live(self, request: web.Request) -> web.StreamResponse:
        if self.feed.pages >= MAX_PAGES:
            return _json({"error": f"{MAX_PAGES} pages are open; close one"}, 503)
        reply = web.StreamResponse(
            headers={"content-type": "text/event-stream", "cache-control": "no-store"}
        )
        await reply.prepare(request)
        with suppress(ConnectionError):  # whoever looked has gone
            async with aclosing(self.feed.messages()) as messages:
                async for message in messages:
                    await reply.write(message)
        return reply

    async def _live(self, power: dict[str, PowerRows], is_whole: bool) -> LiveReply:
        offset, engines = self._unix_offset_seconds(), self._from.engines
        running, counts = running_requests(engines, time.monotonic(), offset)
        for name in power.keys() - counts.keys():  # an upstream that was let go
            del power[name]
        return LiveReply(
            at_unix_seconds=time.time(),
            version=self._from.version,
            run=self._from.run.name,
            has_token=self._access.token is not None,
            readiness=await self._readiness(),
            engines=[
                live_engine(
                    engine,
                    power,
                    is_whole=is_whole,
                    requests=counts[engine.name],
                    unix_offset_seconds=offset,
                    sample_interval_seconds=self._from.sample_interval_seconds,
                )
                for engine in engines
            ],
            running=running,
            recent=self._from.records.latest(SHOWN_RECENT),
            store=self._from.records.state(),
        )

    async def login(self, request: web.Request) -> web.Response:
        # the guard opens sessions; who comes here has one, or needs none
        return _json({"logged_in": True})

    async def logout(self, request: web.Request) -> web.Response:
        self._access.sessions.end(request.cookies.get(COOKIE, ""))
        reply = _json({"logged_in": False})
        reply.del_cookie(COOKIE)
        return reply

    async def metrics(self, request: web.Request) -> web.Response:
        openmetrics = "openmetrics" in request.headers.get("accept", "")
        self._from.freshen()
        # rendering a thousand series takes longer than a token: off the loop
        body = await asyncio.to_thread(self._from.render_metrics, openmetrics)
        kind = OPENMETRICS_TYPE if openmetrics else TEXT_TYPE
        return web.Response(body=body, headers={"content-type": kind})

    async def metrics_requests(self, request: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._from.render_recent)
        return web.Response(body=body, headers={"content-type": TEXT_TYPE})

    async def requests(self, request: web.Request) -> web.Response:
        try:
            since, limit, wanted = read_requests_query(request.query)
        except ValueError as error:
            return _refuse(str(error))
        try:
            async with self._pages:  # one of 10,000 records takes 25 MB to make
                body = await self._from.records.lines(since, limit, wanted)
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
            engine.name: engine_books(
                engine,
                at,
                unix_offset_seconds=offset,
                sample_interval_seconds=self._from.sample_interval_seconds,
            )
            for engine in self._from.engines
        }
        name = request.query.get("engine")
        if name is not None and name not in replies:
            return _refuse(f"engine is one of {', '.join(replies)}")
        if name is None and len(replies) > 1:
            books: BooksReply = fleet_books(
                replies,
                run=self._from.run.name,
                run_unix_seconds=self._from.run.began_seconds + offset,
            )
        else:
            books = replies[name or self._from.engines[0].name]
        chosen = request.query.get("boundary")
        if chosen is None:
            own = self._from.instance
            return _json(msgspec.structs.replace(books, instance=own))
        if chosen not in books.boundaries:
            return _refuse(f"boundary is one of {', '.join(books.boundaries)}")
        return _json(books.boundaries[chosen])

    async def totals(self, request: web.Request) -> web.Response:
        run = self._from.run
        return _json(
            TotalsReply(
                version=self._from.version,
                run=run.name,
                run_unix_seconds=run.began_seconds + self._unix_offset_seconds(),
                instance=self._from.instance,
                host=self._from.host,
                engines={
                    engine.name: engine_totals(
                        engine, self._from.ended.get(engine.name, {})
                    )
                    for engine in self._from.engines
                },
            )
        )

    async def hardware(self, request: web.Request) -> web.Response:
        offset, edges = self._unix_offset_seconds(), []
        for name in ("from_unix", "to_unix"):
            text = request.query.get(name)
            try:
                edges.append(None if text is None else float(text))
            except ValueError:
                return _refuse(f"{name} is Unix seconds, such as 1767225600.5")
            if text is not None and not math.isfinite(float(text)):
                return _refuse(f"{name} is finite Unix seconds")
        begin, end = edges
        now = time.monotonic()
        # without a beginning the newest minutes: all that is kept may be half a day
        first = now - LATELY_SECONDS if begin is None else begin - offset
        last = now if end is None else end - offset
        found = {
            engine.name: boards_of(engine, first, last) for engine in self._from.engines
        }

        def body() -> HardwareReply:
            return HardwareReply(
                from_unix_seconds=first + offset,
                to_unix_seconds=last + offset,
                engines={name: boards.reply(offset) for name, boards in found.items()},
            )

        return _json(await asyncio.to_thread(body))

    async def info(self, request: web.Request) -> web.Response:
        engines = {e.name: engine_info(e) for e in self._from.engines}
        (only,) = engines.values() if len(engines) == 1 else (None,)
        return _json(
            InfoReply(
                version=self._from.version,
                build=build_form(),
                run=self._from.run.name,
                instance=self._from.instance,
                host=self._from.host,
                config=dict(self._from.config),
                sensor=only.sensor if only else UNSET,
                sensors=only.sensors if only else UNSET,
                engines=engines,
                upstreams=self._shown_upstreams(),
                store=self._from.records.state(),
            )
        )

    async def calibration(self, request: web.Request) -> web.Response:
        found = [
            saved_of(state, engine.name)
            for engine in self._from.engines
            if (state := engine.boundaries.state().calibration) is not None
        ]
        return web.Response(body=encoded(found), content_type="application/json")

    async def upstreams(self, request: web.Request) -> web.Response:
        return _json(UpstreamsReply(upstreams=self._shown_upstreams()))

    async def drain(self, request: web.Request) -> web.Response:
        return self._set_draining(request, True)

    async def resume(self, request: web.Request) -> web.Response:
        return self._set_draining(request, False)

    def _set_draining(self, request: web.Request, is_draining: bool) -> web.Response:
        upstreams = self._upstreams()
        name = request.match_info["name"]
        if name not in upstreams:
            known = ", ".join(upstreams)
            return _json({"error": f"no upstream {name[:80]!r}; known: {known}"}, 404)
        upstreams[name].drain(is_draining)
        change = "drain" if is_draining else "resume"
        self._access.counters.changes[change] += 1
        log.info("admin API: %s of %s, asked by %s", change, name, request.remote)
        return _json(self._shown(upstreams[name]))

    def _upstreams(self) -> dict[str, Upstream]:
        return {
            e.name: e.upstream for e in self._from.engines if e.upstream is not None
        }

    def _shown_upstreams(self) -> list[UpstreamReply]:
        return [self._shown(upstream) for upstream in self._upstreams().values()]

    def _shown(self, upstream: Upstream) -> UpstreamReply:
        return upstream_reply(upstream, self._unix_offset_seconds())

    async def healthz(self, request: web.Request) -> web.Response:
        return _json({"healthy": True})

    async def readyz(self, request: web.Request) -> web.Response:
        body = await self._readiness()
        status = 200 if body.ready else 503
        if refusal_of(self._access, request) is not None:
            return _json({"ready": body.ready}, status)
        return _json(body, status)

    async def _readiness(self) -> ReadinessReply:
        engines = self._from.engines
        found = await asyncio.gather(*(readiness(engine) for engine in engines))
        body = found[0] if len(found) == 1 else fleet_readiness(engines, found)
        away = self._from.relays_away()
        if away:
            which = ", ".join(map(str, away))
            reasons = [*body.reasons, f"relays that are away: {which}"]
            is_ready = body.ready and len(away) < self._from.relays
            body = msgspec.structs.replace(body, ready=is_ready, reasons=reasons)
        if self._from.is_stopping():
            reasons = ["the proxy is stopping", *body.reasons]
            body = msgspec.structs.replace(body, ready=False, reasons=reasons)
        return body


MAX_CURSOR = cursor_at(YEAR_3000_UNIX_SECONDS)
REQUESTS_KEYS = ("since", "until", "from_unix", "limit", *FILTERED)


def read_requests_query(
    query: Mapping[str, str],
) -> tuple[int, int, RecordFilter]:
    """Cursor to begin after, number of records, and which: the query of `/requests`.

    `since` and `until` are cursors, or instants in Unix seconds: a cursor is an instant
    in microseconds, so the two are never taken for each other. Raises ValueError.
    """
    for name in query:
        if name not in REQUESTS_KEYS:
            known = ", ".join(REQUESTS_KEYS)
            raise ValueError(f"no filter is called {name[:80]!r}; known: {known}")
    try:
        limit = int(query.get("limit", "1000"))
    except ValueError:
        raise ValueError("limit is a whole number") from None
    if not 1 <= limit <= MAX_RECORDS:
        raise ValueError(f"limit is from 1 to {MAX_RECORDS}")
    since = _cursor(query, "since") or 0
    if "from_unix" in query:
        try:
            from_unix = float(query["from_unix"])
        except ValueError:
            raise ValueError("from_unix is Unix seconds") from None
        if not 0 <= from_unix < YEAR_3000_UNIX_SECONDS:
            raise ValueError("from_unix is Unix seconds, such as 1767225600")
        # the cursor is the instant of settlement: an instant is a cursor too
        since = max(since, cursor_at(from_unix) - 1)
    until = _cursor(query, "until")
    equal = {name: query[name] for name in FILTERED if name in query}
    return since, limit, RecordFilter(until=until, **equal)


def _cursor(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        value = int(text) if text.isdecimal() else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < MAX_CURSOR:
        raise ValueError(f"{name} is a cursor, or Unix seconds such as 1767225600.5")
    return cursor_at(value) if value < YEAR_3000_UNIX_SECONDS else int(value)


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(body), status=status, content_type="application/json"
    )


def _refuse(reason: str) -> web.Response:
    return _json({"error": reason}, 400)
