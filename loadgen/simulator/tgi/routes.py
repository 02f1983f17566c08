"""The routes of TGI over the simulated engine."""

from __future__ import annotations

import time
from functools import partial

from aiohttp import web

from loadgen.simulator.realtime.runner import Runner
from loadgen.simulator.realtime.streams import (
    NoSink,
    json_reply,
    opened,
    request_id_of,
)
from loadgen.simulator.tgi.dialect import (
    CHAT,
    COMPLETIONS,
    NATIVE,
    TgiGeneration,
    broken,
    chat_reply,
    closing,
    completion_reply,
    error_event,
    events_of,
    info_page,
    native_reply,
    overloaded,
    read_chat,
    read_completions,
    read_json,
    read_native,
    stream_headers,
    timing_headers,
)
from loadgen.simulator.wire import EngineRefusal, Limits


class TgiApi:
    """`queue_limit` is where a request is refused as overloaded; 0 is no limit."""

    def __init__(self, runner: Runner, limits: Limits, queue_limit: int = 0) -> None:
        self._runner = runner
        self._limits = limits
        self._queue_limit = queue_limit

    def routes(self) -> list[web.RouteDef]:
        """All routes of this dialect."""
        return [
            web.post("/", partial(self._native, is_stream=None, as_list=True)),
            web.post("/generate", partial(self._native, is_stream=False)),
            web.post("/generate_stream", partial(self._native, is_stream=True)),
            web.post("/v1/chat/completions", partial(self._openai, kind=CHAT)),
            web.post("/v1/completions", partial(self._openai, kind=COMPLETIONS)),
            web.get("/v1/models", self._models),
            web.get("/health", self._health),
            web.get("/info", self._info),
            web.get("/metrics", self._metrics),
        ]

    async def _native(
        self, request: web.Request, *, is_stream: bool | None, as_list: bool = False
    ) -> web.StreamResponse:
        """`/generate`, `/generate_stream`, and `/`, where the body names its kind."""
        try:
            fields = read_json(await request.read())
        except EngineRefusal as refusal:
            return json_reply(refusal.body, refusal.status)
        if is_stream is None:
            is_stream = fields.get("stream") is True
        try:
            generation = read_native(
                fields,
                is_stream=is_stream,
                request_id=request_id_of(request),
                limits=self._limits,
            )
            self._check_queue()
        except EngineRefusal as refusal:
            return await self._refuse(request, refusal, is_stream, NATIVE)
        if is_stream:
            return await self._stream(request, generation)
        ticket = await self._runner.serve(generation, NoSink())
        if not ticket.is_ok:
            return _broken_reply()
        body = native_reply(generation, ticket.words[0], ticket.texts[0])
        headers = timing_headers(ticket.truths[0], _characters(generation))
        return json_reply([body] if as_list else body, headers=headers)

    async def _openai(self, request: web.Request, *, kind: str) -> web.StreamResponse:
        is_stream = False
        read = read_chat if kind == CHAT else read_completions
        try:
            fields = read_json(await request.read())
            is_stream = fields.get("stream") is True
            generation = read(
                fields,
                request_id=request_id_of(request),
                created=int(time.time()),
                limits=self._limits,
            )
            self._check_queue()
        except EngineRefusal as refusal:
            return await self._refuse(request, refusal, is_stream, kind)
        if is_stream:
            return await self._stream(request, generation)
        ticket = await self._runner.serve(generation, NoSink())
        if not ticket.is_ok:
            return _broken_reply()
        tokens = ticket.truths[0].output_tokens
        write = chat_reply if kind == CHAT else completion_reply
        body = write(generation, self._limits.model, ticket.texts[0], tokens)
        headers = timing_headers(ticket.truths[0], _characters(generation))
        if kind == COMPLETIONS:
            del headers["x-compute-time"]
        return json_reply(body, headers=headers)

    def _check_queue(self) -> None:
        if self._queue_limit and self._runner.engine.waiting >= self._queue_limit:
            raise overloaded()

    async def _refuse(
        self, request: web.Request, refusal: EngineRefusal, is_stream: bool, kind: str
    ) -> web.StreamResponse:
        """A status line, or an error inside a 200 where a stream was asked for."""
        reason = "overloaded" if refusal.status == 429 else "validation"
        self._runner.metrics.failed(reason)
        if not is_stream:
            return json_reply(refusal.body, refusal.status)
        stream = await opened(request, [], stream_headers(0))
        return await stream.close(error_event(refusal, kind))

    async def _stream(
        self, request: web.Request, generation: TgiGeneration
    ) -> web.StreamResponse:
        model = self._limits.model
        headers = stream_headers(_characters(generation))
        events = events_of(generation, model)
        stream = await opened(request, [events], headers)
        ticket = await self._runner.serve(generation, stream)
        if not ticket.is_ok:
            return await stream.close(error_event(broken(), generation.kind))
        tokens = ticket.truths[0].output_tokens
        return await stream.close(closing(generation, model, tokens))

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _info(self, request: web.Request) -> web.Response:
        max_batch = self._runner.engine.config.max_num_seqs
        return json_reply(info_page(self._limits.model, self._limits, max_batch))

    async def _models(self, request: web.Request) -> web.Response:
        entry = {"id": self._limits.model, "object": "model", "created": 0}
        page = {"object": "list", "data": [entry | {"owned_by": self._limits.model}]}
        return json_reply(page)

    async def _metrics(self, request: web.Request) -> web.Response:
        page = self._runner.metrics.page(self._runner.gauges())
        return web.Response(text=page)


def _broken_reply() -> web.Response:
    failure = broken()
    return json_reply(failure.body, failure.status)


def _characters(generation: TgiGeneration) -> int:
    return sum(map(len, generation.prompt_words)) + generation.prompt_tokens - 1
