"""Health of an upstream and the models it serves: asked seldom while it is up.

Rule: a request that cannot reach it finds out at once; this task finds out while
there are none, and is what brings an upstream back. It reads beside the requests.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from typing import Any

import msgspec

from proxy.engines.wire import UNREADABLE, as_count
from proxy.process.http_get import AsyncGetter, GetError
from proxy.relay.upstream.upstream import Upstream

log = logging.getLogger("servewatt.proxy")

HEALTH_PATHS = {"openai": "/v1/models"}
"""Health path by dialect; `/health` for all the others."""
STEADY_PATHS = {"tgi": "/info"}
"""Where to ask one that was up: TGI's `/health` allocates on the device."""
TIMEOUT_SECONDS = 2.0
LOOK_SECONDS = 1.0
STEADY_SECONDS = 10.0
"""Between two questions to an engine that is up; every look while it is down."""
OVERDUE_SECONDS = 10.0
"""A question is late by this much where something is wrong with who asks."""
MAX_SLOW = 2
"""An engine in a long step may be late once; one that is late again is down."""


class _Card(msgspec.Struct):
    id: str
    max_model_len: Any = None


class _Models(msgspec.Struct):
    data: list[msgspec.Raw]


_decode_models = msgspec.json.Decoder(_Models).decode
_decode_card = msgspec.json.Decoder(_Card).decode


class HealthWatch:
    """Asks one upstream for its health, and records the answer in it."""

    def __init__(
        self,
        upstream: Upstream,
        *,
        tls: ssl.SSLContext,
        asks_models: bool,
        has_fixed_models: bool,
        path: str | None = None,
    ) -> None:
        """`has_fixed_models`: `upstream.models` is given, only their cards are read.
        `path` is asked in place of the dialect's own."""
        self._upstream = upstream
        self._tls = tls
        self.asks_models = asks_models
        self._path = path
        self.has_fixed_models = has_fixed_models
        self._slow = 0
        self._due_seconds = upstream.clock()
        self._asking = asyncio.Lock()
        self._answer: str | None = None
        self._answered_seconds = -math.inf

    def use_tls(self, context: ssl.SSLContext) -> None:
        """For the questions to come."""
        self._tls = context

    @property
    def is_overdue(self) -> bool:
        """Nobody has asked, or got an answer to that, for longer than can be."""
        return self._upstream.clock() > self._due_seconds + OVERDUE_SECONDS

    async def answer(self) -> str | None:
        """None when it answers, else why not: asked now, but once a second at most."""
        async with self._asking:
            if self._upstream.clock() >= self._answered_seconds + LOOK_SECONDS:
                self._answer = await self.ask()
                self._answered_seconds = self._upstream.clock()
            return self._answer

    async def watch(self) -> None:
        """For as long as the proxy lives."""
        upstream = self._upstream
        while True:
            now = upstream.clock()
            if not upstream.is_up or now >= self._due_seconds:
                await self.ask(is_steady=upstream.is_up)
                self._due_seconds = upstream.clock() + STEADY_SECONDS
            await asyncio.sleep(LOOK_SECONDS)

    async def ask(self, *, is_steady: bool = False) -> str | None:
        """None when it answers, else one line why not."""
        upstream = self._upstream
        url = f"{upstream.address.url}{self._asked_path(is_steady)}"
        async with AsyncGetter(tls=self._tls, total_seconds=TIMEOUT_SECONDS) as getter:
            try:
                reply = await getter.get(url)
            except GetError as error:
                reason = f"upstream {url}: {error}"
                return self._failed(reason, is_sure=error.is_unreachable)
            if reply.status >= 500:
                reason = f"upstream {url} answered {reply.status}"
                return self._failed(reason, is_sure=False)
            if self.asks_models:
                await self._learn_models(getter)
        self._slow = 0
        if not upstream.is_up:
            log.warning("upstream %s is up again", upstream.name)
        upstream.mark_up()
        return None

    def _asked_path(self, is_steady: bool) -> str:
        name = self._upstream.dialect.name
        if self._path is not None:
            return self._path
        path = HEALTH_PATHS.get(name, "/health")
        return STEADY_PATHS.get(name, path) if is_steady else path

    def _failed(self, reason: str, *, is_sure: bool) -> str:
        upstream = self._upstream
        self._slow += 1
        if is_sure or self._slow >= MAX_SLOW:
            if upstream.is_up:
                log.warning("%s; asked again every %g s", reason, LOOK_SECONDS)
            upstream.mark_down(reason)
        return reason

    async def _learn_models(self, getter: AsyncGetter) -> None:
        """Read the models that it lists; they stay as they were where it lists none."""
        upstream = self._upstream
        try:
            url = f"{upstream.address.url}/v1/models"
            reply = await getter.get(url)
            listed = _decode_models(reply.body).data
            read = [_decode_card(card) for card in listed]
            cards = {
                card.id: raw.copy() for card, raw in zip(read, listed, strict=True)
            }
            lengths = {card.id: as_count(card.max_model_len) for card in read}
        except (GetError, *UNREADABLE) as error:
            if upstream.models is None:
                log.warning(
                    "upstream %s does not list its models (%s): name them with "
                    "models = [...]", upstream.name, error,
                )  # fmt: skip
            return
        upstream.cards = cards
        upstream.context_tokens = {
            name: length for name, length in lengths.items() if length
        }
        if not self.has_fixed_models:
            upstream.models = tuple(cards)
