"""The routes of vLLM's OpenAI server over the simulated engine."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from aiohttp import web

from loadgen.simulator.core.text import words_of
from loadgen.simulator.realtime.runner import Runner
from loadgen.simulator.realtime.streams import (
    NoSink,
    json_reply,
    opened,
    request_id_of,
)
from loadgen.simulator.vllm.apis import (
    AUDIO,
    BATCH,
    MESSAGES,
    RESPONSES,
    Api,
    invoked,
    pooled_page,
    read_pooled,
)
from loadgen.simulator.vllm.dialect import (
    DONE,
    VERSION,
    VllmEvents,
    VllmGeneration,
    closing_events,
    error_event,
    models_page,
    overloaded,
    read_fields,
    read_object,
    refused,
    unstreamed_reply,
)
from loadgen.simulator.vllm.transfer import KvSource
from loadgen.simulator.wire import EngineRefusal, Generation, Limits

AnyGeneration = TypeVar("AnyGeneration", bound=Generation)

POOLED = {
    "/v1/embeddings": "embeddings",
    "/score": "score",
    "/v1/score": "score",
    "/rerank": "rerank",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
}
ENGINE_FAILED = "SIMULATED failure, injected by --fail-every."


class VllmApi:
    """`queue_limit` is vLLM's max_num_queued_reqs; 0 is no limit. `echoes_ids` is its
    `--enable-request-id-headers`."""

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        queue_limit: int = 0,
        *,
        echoes_ids: bool = False,
    ) -> None:
        self._echoes_ids = echoes_ids
        self._runner = runner
        self._limits = limits
        self._queue_limit = queue_limit
        self._created = int(time.time())
        self._blocks = KvSource(str(uuid4()), runner.engine.config.n_gpus)
        self._overloaded_streams = 0

    def routes(self) -> list[web.RouteDef]:
        """All routes of this dialect."""
        return [
            web.post("/v1/chat/completions", partial(self._generate, is_chat=True)),
            web.post("/v1/completions", partial(self._generate, is_chat=False)),
            web.post("/v1/chat/completions/batch", partial(self._api, api=BATCH)),
            web.post("/v1/responses", partial(self._api, api=RESPONSES)),
            web.post("/v1/messages", partial(self._api, api=MESSAGES)),
            *(
                web.post(f"/v1/audio/{name}", self._audio)
                for name in ("transcriptions", "translations")
            ),
            *(
                web.post(path, partial(self._pooled, kind=kind))
                for path, kind in POOLED.items()
            ),
            web.post("/invocations", self._invocations),
            web.post("/tokenize", self._tokenize),
            web.get("/health", self._health),
            web.get("/version", self._version),
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
        ]

    def _headers(self, request: web.Request) -> dict[str, str]:
        """The caller's id, where ids are sent back."""
        return {"x-request-id": request_id_of(request)} if self._echoes_ids else {}

    async def _generate(
        self,
        request: web.Request,
        *,
        is_chat: bool,
    ) -> web.StreamResponse:
        headers = self._headers(request)
        try:
            generation = read_fields(
                await _fields_of(request),
                is_chat=is_chat,
                request_id=request_id_of(request),
                created=int(time.time()),
                limits=self._limits,
            )
            if self._is_full(generation.sequences):
                self._runner.metrics.failed("overloaded")
                self._overloaded_streams += generation.is_stream
                # vLLM in a burst: some streams get the status line, others a 200
                # with the error inside. Here they take turns.
                if generation.is_stream and self._overloaded_streams % 2 == 0:
                    stream = await opened(request, [], headers)
                    refusal = overloaded()
                    return await stream.close(error_event(refusal.body) + DONE)
                raise overloaded()
        except EngineRefusal as refusal:
            return json_reply(refusal.body, refusal.status, headers)
        if generation.is_stream:
            return await self._stream(request, generation, headers)
        return await self._whole(generation, headers)

    async def _api(self, request: web.Request, *, api: Api) -> web.StreamResponse:
        """A request in JSON of another API that writes."""
        try:
            fields = await _fields_of(request)
        except EngineRefusal as refusal:
            headers = self._headers(request)
            return json_reply(api.failure(refusal), refusal.status, headers)
        return await self._served(request, fields, api)

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        """A form with sound in it."""
        fields: dict[str, Any] = {}
        for name, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                fields[name] = len(value.file.read())
            else:
                fields[name] = value
        return await self._served(request, fields, AUDIO)

    async def _served(
        self, request: web.Request, fields: Mapping[str, Any], api: Api
    ) -> web.StreamResponse:
        headers, model = self._headers(request), self._limits.model
        try:
            generation = self._admitted(request, partial(api.read, fields))
        except EngineRefusal as refusal:
            return json_reply(api.failure(refusal), refusal.status, headers)
        if not generation.is_stream:
            ticket = await self._runner.serve(generation, NoSink())
            if not ticket.is_ok:
                failure = refused(500, ENGINE_FAILED)
                return json_reply(api.failure(failure), failure.status, headers)
            body = api.whole(generation, model, ticket.words, ticket.truths)
            return json_reply(body, headers=headers)
        stream = await opened(request, [api.events(generation, model)], headers)
        ticket = await self._runner.serve(generation, stream)
        if not ticket.is_ok:
            failed = api.failure(refused(500, ENGINE_FAILED))
            return await stream.close(b"event: error\n" + error_event(failed))
        return await stream.close(
            api.closing(generation, model, ticket.words, ticket.truths)
        )

    async def _pooled(self, request: web.Request, *, kind: str) -> web.StreamResponse:
        """Embeddings, scores and ranks: prompts are read, and that is all."""
        headers = self._headers(request)
        try:
            fields = await _fields_of(request)
            generation = self._admitted(request, partial(read_pooled, fields, kind))
        except EngineRefusal as refusal:
            return json_reply(refusal.body, refusal.status, headers)
        ticket = await self._runner.serve(generation, NoSink())
        if not ticket.is_ok:
            failure = refused(500, ENGINE_FAILED)
            return json_reply(failure.body, failure.status, headers)
        return json_reply(pooled_page(generation, self._limits.model), headers=headers)

    def _admitted(
        self, request: web.Request, read: Callable[..., AnyGeneration]
    ) -> AnyGeneration:
        """What is asked for. Raises EngineRefusal, also where the queue is full."""
        generation = read(
            request_id=request_id_of(request),
            created=int(time.time()),
            limits=self._limits,
        )
        if self._is_full(generation.sequences):
            self._runner.metrics.failed("overloaded")
            raise overloaded()
        return generation

    async def _invocations(self, request: web.Request) -> web.StreamResponse:
        """SageMaker's route: what the body looks like."""
        try:
            kind = invoked(await _fields_of(request))
        except EngineRefusal as refusal:
            return json_reply(refusal.body, refusal.status, self._headers(request))
        if kind in ("chat", "completions"):
            return await self._generate(request, is_chat=kind == "chat")
        return await self._pooled(request, kind=kind)

    def _is_full(self, sequences: int) -> bool:
        """Running and waiting sequences and the new ones are more than the limit."""
        engine = self._runner.engine
        wanted = engine.running + engine.waiting + sequences
        return 0 < self._queue_limit < wanted

    async def _stream(
        self, request: web.Request, generation: VllmGeneration, headers: dict[str, str]
    ) -> web.StreamResponse:
        model = self._limits.model
        events = [
            VllmEvents(generation, model, index)
            for index in range(generation.sequences)
        ]
        stream = await opened(request, events, headers)
        ticket = await self._runner.serve(generation, stream)
        if not ticket.is_ok:
            failure = refused(500, ENGINE_FAILED)
            return await stream.close(error_event(failure.body) + DONE)
        return await stream.close(closing_events(generation, model, ticket.truths))

    async def _whole(
        self, generation: VllmGeneration, headers: dict[str, str]
    ) -> web.Response:
        ticket = await self._runner.serve(generation, NoSink())
        if not ticket.is_ok:
            failure = refused(500, ENGINE_FAILED)
            return json_reply(failure.body, failure.status, headers)
        model = self._limits.model
        params = None
        is_whole = generation.finish_reason == "length"
        if generation.hands_over and is_whole and generation.sequences == 1:
            params = self._blocks.params(generation.reply_id, generation.prompt_tokens)
        body = unstreamed_reply(generation, model, ticket.words, ticket.truths, params)
        return json_reply(body, headers=headers)

    async def _tokenize(self, request: web.Request) -> web.Response:
        try:
            fields = await request.json()
            text = fields.get("prompt")
            if not isinstance(text, str):
                text = " ".join(str(m["content"]) for m in fields["messages"])
        except (ValueError, TypeError, KeyError, AttributeError):
            failure = refused(400, "needs a prompt or messages", "prompt")
            return json_reply(failure.body, 400)
        count = len(words_of(text))
        limit = self._limits.max_model_tokens
        body = {"count": count, "max_model_len": limit, "tokens": list(range(count))}
        return json_reply({**body, "token_strs": None})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, request: web.Request) -> web.Response:
        return json_reply({"version": VERSION})

    async def _models(self, request: web.Request) -> web.Response:
        limits = self._limits
        page = models_page(limits.model, limits.max_model_tokens, self._created)
        return json_reply(page)

    async def _metrics(self, request: web.Request) -> web.Response:
        page = self._runner.metrics.page(self._runner.gauges())
        return web.Response(text=page)


async def _fields_of(request: web.Request) -> Mapping[str, Any]:
    """The body's fields. Raises EngineRefusal for what is no JSON object."""
    if request.content_type != "application/json":
        message = "Unsupported Media Type: Only 'application/json' is allowed"
        message = f"1 validation error:\n  {message}"
        raise refused(400, message, kind="Bad Request")
    return read_object(await request.read())


@web.middleware
async def fastapi_errors(
    request: web.Request,
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> web.StreamResponse:
    """Answer unknown routes and methods with FastAPI's errors."""
    try:
        return await handler(request)
    except web.HTTPNotFound:
        return json_reply({"detail": "Not Found"}, 404)
    except web.HTTPMethodNotAllowed as error:
        allowed = {"allow": ", ".join(sorted(error.allowed_methods))}
        return json_reply({"detail": "Method Not Allowed"}, 405, allowed)
