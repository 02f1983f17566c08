"""The routes of TGI over the simulated engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from loadgen.simulator.server.runner import Runner, Ticket
from loadgen.simulator.server.streams import NoSink, json_reply, opened
from loadgen.simulator.server.vllm import request_id_of
from loadgen.simulator.tgi_reply import (
    ChatEvents,
    NativeEvents,
    chat_closing,
    chat_reply,
    error_event,
    info_page,
    native_reply,
    stream_headers,
    timing_headers,
)
from loadgen.simulator.tgi_request import (
    TgiGeneration,
    broken,
    overloaded,
    read_chat,
    read_json,
    read_native,
)
from loadgen.simulator.wire import Limits, Refusal, TokenEvents


class TgiApi:
    """`queue_limit` is where a request is refused as overloaded; 0 is no limit."""

    def __init__(self, runner: Runner, limits: Limits, queue_limit: int = 0) -> None:
        self._runner = runner
        self._limits = limits
        self._queue_limit = queue_limit

    def routes(self) -> list[web.RouteDef]:
        """Everything that this dialect answers."""
        return [
            web.post("/", self._compatible),
            web.post("/generate", self._generate),
            web.post("/generate_stream", self._generate_stream),
            web.post("/v1/chat/completions", self._chat),
            web.get("/health", self._health),
            web.get("/info", self._info),
            web.get("/metrics", self._metrics),
        ]

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        return await self._native(request, is_stream=False)

    async def _generate_stream(self, request: web.Request) -> web.StreamResponse:
        return await self._native(request, is_stream=True)

    async def _compatible(self, request: web.Request) -> web.StreamResponse:
        """`POST /`: the body says whether to stream; a whole reply is a list."""
        try:
            fields = read_json(await request.read())
        except Refusal as refusal:
            return json_reply(refusal.body, refusal.status)
        is_stream = fields.get("stream") is True
        return await self._answer_native(request, fields, is_stream, as_list=True)

    async def _native(
        self, request: web.Request, *, is_stream: bool
    ) -> web.StreamResponse:
        try:
            fields = read_json(await request.read())
        except Refusal as refusal:
            return json_reply(refusal.body, refusal.status)
        return await self._answer_native(request, fields, is_stream, as_list=False)

    async def _answer_native(
        self,
        request: web.Request,
        fields: Mapping[str, Any],
        is_stream: bool,
        *,
        as_list: bool,
    ) -> web.StreamResponse:
        try:
            generation = read_native(
                fields,
                is_stream=is_stream,
                request_id=request_id_of(request),
                limits=self._limits,
            )
            self._check_queue()
        except Refusal as refusal:
            return await self._refuse(request, refusal, is_stream, is_chat=False)
        if is_stream:
            return await self._stream(request, generation)
        ticket = await self._finished(generation)
        if isinstance(ticket, Refusal):
            return json_reply(ticket.body, ticket.status)
        body = native_reply(generation, ticket.words[0], ticket.texts[0])
        headers = timing_headers(ticket.truths[0], _characters(generation))
        return json_reply([body] if as_list else body, headers=headers)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        is_stream = False
        try:
            fields = read_json(await request.read())
            is_stream = fields.get("stream") is True
            generation = read_chat(
                fields,
                request_id=request_id_of(request),
                created=int(time.time()),
                limits=self._limits,
            )
            self._check_queue()
        except Refusal as refusal:
            return await self._refuse(request, refusal, is_stream, is_chat=True)
        if is_stream:
            return await self._stream(request, generation)
        ticket = await self._finished(generation)
        if isinstance(ticket, Refusal):
            return json_reply(ticket.body, ticket.status)
        tokens = ticket.truths[0].output_tokens
        body = chat_reply(generation, self._limits.model, ticket.texts[0], tokens)
        headers = timing_headers(ticket.truths[0], _characters(generation))
        return json_reply(body, headers=headers)

    def _check_queue(self) -> None:
        if self._queue_limit and self._runner.engine.waiting >= self._queue_limit:
            raise overloaded()

    async def _refuse(
        self, request: web.Request, refusal: Refusal, is_stream: bool, *, is_chat: bool
    ) -> web.StreamResponse:
        """A status line, or an error inside a 200 where a stream was asked for."""
        reason = "overloaded" if refusal.status == 429 else "validation"
        self._runner.metrics.failed(reason)
        if not is_stream:
            return json_reply(refusal.body, refusal.status)
        stream = await opened(request, [], stream_headers(0))
        return await stream.close(error_event(refusal, is_chat=is_chat))

    async def _stream(
        self, request: web.Request, generation: TgiGeneration
    ) -> web.StreamResponse:
        model = self._limits.model
        events: TokenEvents = NativeEvents(generation)
        if generation.is_chat:
            events = ChatEvents(generation, model)
        headers = stream_headers(_characters(generation))
        stream = await opened(request, [events], headers)
        ticket = self._runner.submit(generation, stream)
        try:
            outcome = await ticket.outcome
        finally:
            self._runner.abort(ticket)
        if outcome != "ok":
            failure = error_event(broken(), is_chat=generation.is_chat)
            return await stream.close(failure)
        if not generation.is_chat:
            return await stream.close()
        tokens = ticket.truths[0].output_tokens
        return await stream.close(chat_closing(generation, model, tokens))

    async def _finished(self, generation: TgiGeneration) -> Ticket | Refusal:
        ticket = self._runner.submit(generation, NoSink())
        try:
            outcome = await ticket.outcome
        finally:
            self._runner.abort(ticket)
        return ticket if outcome == "ok" else broken()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _info(self, request: web.Request) -> web.Response:
        most = self._runner.engine.config.max_num_seqs
        return json_reply(info_page(self._limits.model, self._limits, most))

    async def _metrics(self, request: web.Request) -> web.Response:
        page = self._runner.metrics.page(self._runner.gauges())
        return web.Response(text=page)


def _characters(generation: TgiGeneration) -> int:
    return sum(map(len, generation.prompt_words)) + generation.prompt_tokens - 1
