"""The routes of TGI over the simulated engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from aiohttp import web

from loadgen.simulator.realtime.runner import Runner
from loadgen.simulator.realtime.streams import (
    NoSink,
    json_reply,
    opened,
    refusal_reply,
    request_id_of,
)
from loadgen.simulator.tgi.dialect import (
    CHAT,
    COMPLETIONS,
    NATIVE,
    BeforeStream,
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
    undecodable,
)
from loadgen.simulator.wire import EngineRefusal, Limits

Reader = Callable[[Mapping[str, Any], str], TgiGeneration]


class TgiApi:
    """`queue_limit` is TGI's max_concurrent_requests: requests beyond it, running ones
    counted, are refused as overloaded; 0 is no limit."""

    def __init__(self, runner: Runner, limits: Limits, queue_limit: int = 0) -> None:
        self._runner = runner
        self._limits = limits
        self._queue_limit = queue_limit
        self._in_flight = 0

    def routes(self) -> list[web.RouteDef]:
        """All routes of this dialect."""
        return [
            web.post("/", partial(self._post, kind=NATIVE, is_root=True)),
            web.post("/generate", partial(self._post, kind=NATIVE, is_stream=False)),
            web.post(
                "/generate_stream", partial(self._post, kind=NATIVE, is_stream=True)
            ),
            web.post("/v1/chat/completions", partial(self._post, kind=CHAT)),
            web.post("/v1/completions", partial(self._post, kind=COMPLETIONS)),
            web.post("/invocations", self._invocations),
            web.post("/vertex", self._vertex),
            web.get("/v1/models", self._models),
            web.get("/health", self._health),
            web.get("/ping", self._health),
            web.get("/info", self._info),
            web.get("/metrics", self._metrics),
        ]

    async def _fields(self, request: web.Request) -> Mapping[str, Any]:
        if request.content_type != "application/json":
            raise undecodable("", 415)
        return read_json(await request.read())

    async def _post(
        self,
        request: web.Request,
        *,
        kind: str,
        is_stream: bool | None = None,
        is_root: bool = False,
    ) -> web.StreamResponse:
        try:
            fields = await self._fields(request)
        except EngineRefusal as refusal:
            return self._refuse(refusal)
        return await self._answer(
            request, fields, kind=kind, is_stream=is_stream, is_root=is_root
        )

    async def _answer(
        self,
        request: web.Request,
        fields: Mapping[str, Any],
        *,
        kind: str,
        is_stream: bool | None = None,
        is_root: bool = False,
    ) -> web.StreamResponse:
        """One request of a kind; the body says whether it streams, if the route does
        not."""
        if is_stream is None:
            is_stream = fields.get("stream") is True
        try:
            self._check_room()
            generation = self._read(request, fields, kind, is_stream, is_root)
        except BeforeStream as refusal:
            return self._refuse(refusal)
        except EngineRefusal as refusal:
            if not is_stream:
                return self._refuse(refusal)
            self._count(refusal)
            stream = await opened(request, [], stream_headers(0))
            return await stream.close(error_event(refusal, kind))
        self._in_flight += 1
        try:
            if is_stream:
                return await self._stream(request, generation)
            return await self._whole(generation, as_list=is_root)
        finally:
            self._in_flight -= 1

    def _read(
        self,
        request: web.Request,
        fields: Mapping[str, Any],
        kind: str,
        is_stream: bool,
        is_root: bool,
    ) -> TgiGeneration:
        request_id, limits = request_id_of(request), self._limits
        if kind == NATIVE:
            return read_native(
                fields,
                is_stream=is_stream,
                request_id=request_id,
                limits=limits,
                returns_prompt=is_root,
            )
        read = read_chat if kind == CHAT else read_completions
        created = int(time.time())
        return read(fields, request_id=request_id, created=created, limits=limits)

    async def _invocations(self, request: web.Request) -> web.StreamResponse:
        """SageMaker's route: what the body looks like."""
        try:
            fields = await self._fields(request)
        except EngineRefusal as refusal:
            return self._refuse(refusal)
        kind = CHAT if "messages" in fields else COMPLETIONS
        kind = NATIVE if "inputs" in fields else kind
        return await self._answer(request, fields, kind=kind, is_root=kind == NATIVE)

    async def _vertex(self, request: web.Request) -> web.StreamResponse:
        """Vertex AI's route: instances in, their texts out."""
        try:
            fields = await self._fields(request)
            instances = fields.get("instances")
            if not isinstance(instances, list) or not instances:
                raise undecodable("missing field `instances` at line 1 column 2")
            self._check_room()
            generations = [
                self._read(request, instance, NATIVE, False, False)
                for instance in instances
            ]
        except EngineRefusal as refusal:
            return self._refuse(refusal)
        tickets = await asyncio.gather(
            *(self._runner.serve(one, NoSink()) for one in generations)
        )
        if not all(ticket.is_ok for ticket in tickets):
            return refusal_reply(broken())
        return json_reply({"predictions": [ticket.texts[0] for ticket in tickets]})

    def _check_room(self) -> None:
        if self._queue_limit and self._in_flight >= self._queue_limit:
            raise overloaded()

    def _count(self, refusal: EngineRefusal) -> None:
        reason = "overloaded" if refusal.status == 429 else "validation"
        self._runner.metrics.failed(reason)

    def _refuse(self, refusal: EngineRefusal) -> web.Response:
        self._count(refusal)
        return refusal_reply(refusal)

    async def _whole(
        self, generation: TgiGeneration, *, as_list: bool
    ) -> web.StreamResponse:
        ticket = await self._runner.serve(generation, NoSink())
        if not ticket.is_ok:
            return refusal_reply(broken())
        model, truths = self._limits.model, ticket.truths
        body: object
        if generation.kind == NATIVE:
            body = native_reply(generation, ticket.words)
            body = [body] if as_list else body
            truths = truths[:1]  # the headers count the best one
        elif generation.kind == CHAT:
            body = chat_reply(generation, model, ticket.words[0])
        else:
            body = completion_reply(generation, model, ticket.words)
        headers = timing_headers(truths, _characters(generation))
        if generation.kind == COMPLETIONS:
            del headers["x-compute-time"]
        return json_reply(body, headers=headers)

    async def _stream(
        self, request: web.Request, generation: TgiGeneration
    ) -> web.StreamResponse:
        model = self._limits.model
        headers = stream_headers(_characters(generation))
        stream = await opened(request, events_of(generation, model), headers)
        ticket = await self._runner.serve(generation, stream)
        if not ticket.is_ok:
            return await stream.close(error_event(broken(), generation.kind))
        return await stream.close(closing(generation, model))

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _info(self, request: web.Request) -> web.Response:
        most = self._queue_limit or self._runner.engine.config.max_num_seqs
        return json_reply(info_page(self._limits.model, self._limits, most))

    async def _models(self, request: web.Request) -> web.Response:
        entry = {"id": self._limits.model, "object": "model", "created": 0}
        page = {"object": "list", "data": [entry | {"owned_by": self._limits.model}]}
        return json_reply(page)

    async def _metrics(self, request: web.Request) -> web.Response:
        page = self._runner.metrics.page(self._runner.gauges())
        return web.Response(text=page)


def _characters(generation: TgiGeneration) -> int:
    return sum(map(len, generation.prompt_words)) + generation.prompt_tokens - 1
