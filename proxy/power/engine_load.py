"""Scrapes the engine's gauges: one task, once a second, for as long as it is alive.

Rule: it reads beside the requests and never in their way. A page that cannot be
had is said once, counted, and asked for again; the meter then goes on without.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

from proxy.engines.gauges import METRICS_PATHS, read_gauges
from proxy.process.http_get import AsyncGetter, GetError
from proxy.wire.events import EngineObserved

log = logging.getLogger("servewatt.gauges")

SCRAPE_SECONDS = 1.0
"""An engine's page may have 60 kB and take it some milliseconds to write."""
TIMEOUT_SECONDS = 0.9

Deliver = Callable[[EngineObserved], None]


@dataclass(slots=True)
class GaugeStats:
    """What the task did so far."""

    scrapes_total: int = 0
    errors_total: int = 0
    is_up: bool = False
    """The last scrape found gauges."""


def gauges_url(asked: str, engine: str, upstream: str) -> str | None:
    """Where to scrape: as asked, `auto` by the engine, None for `none`."""
    if asked == "none":
        return None
    if asked != "auto":
        return asked
    path = METRICS_PATHS.get(engine)
    return None if path is None else f"{upstream}{path}"


async def watch_gauges(
    url: str,
    deliver: Deliver,
    stats: GaugeStats,
    *,
    every_seconds: float = SCRAPE_SECONDS,
    tls: Callable[[], ssl.SSLContext | bool] = lambda: True,
) -> None:
    """Scrape for ever; what `deliver` gets is stamped at the middle of the scrape.

    `tls` is asked before each.
    """
    async with AsyncGetter(tls=tls(), total_seconds=TIMEOUT_SECONDS) as getter:
        due_seconds = time.monotonic()
        said: str | None = None
        while True:
            await getter.use_tls(tls())
            try:
                problem = await _scrape(getter, url, deliver)
            except Exception:
                stats.scrapes_total += 1
                stats.errors_total += 1
                stats.is_up = False
                raise
            stats.scrapes_total += 1
            stats.errors_total += problem is not None
            stats.is_up = problem is None
            if problem is not None and problem != said:
                log.warning("engine gauges: %s: %s; going on without", url, problem)
            said = problem
            due_seconds = max(due_seconds + every_seconds, time.monotonic())
            await asyncio.sleep(due_seconds - time.monotonic())


async def _scrape(getter: AsyncGetter, url: str, deliver: Deliver) -> str | None:
    """One scrape; None when it went well, else why not."""
    asked_seconds = time.monotonic()
    try:
        reply = await getter.get(url)
    except GetError as error:
        return str(error)
    answered_seconds = time.monotonic()
    if reply.status != 200:
        return f"status {reply.status}"
    gauges = read_gauges(reply.text)
    if gauges is None:
        return "no plausible gauge of vLLM or TGI on this page"
    half_seconds = (answered_seconds - asked_seconds) / 2
    deliver(EngineObserved(asked_seconds + half_seconds, gauges, half_seconds))
    return None
