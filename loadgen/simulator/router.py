"""The router of disaggregated serving, as vLLM's example proxy: two legs per request.

The first leg asks a prefill engine for one token, the second one asks a decode engine
for the reply, with the `kv_transfer_params` of the first. Both have the `X-Request-Id`
of the client, or one made here where it sent none. A refusal of either engine is the
client's reply, and what is no generation goes to a decode engine as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any
from uuid import uuid4

from aiohttp import ClientError, ClientResponse, ClientSession, hdrs, web
from multidict import CIMultiDict

from loadgen.simulator.config import ServerConfig
from loadgen.simulator.realtime.streams import SERVER, json_reply, request_id_of
from loadgen.simulator.vllm.dialect import read_object, refused
from loadgen.simulator.wire import EngineRefusal
from proxy.wire.headers import MAX_REQUEST_ID_BYTES

BODY_BYTES = 32 * 1024 * 1024
"""As the engines behind it."""
KV_PARAMS = "kv_transfer_params"
ONE_TOKEN = ("max_tokens", "max_completion_tokens", "max_output_tokens")
NOT_KNOWN_YET = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
NOT_FOR_PREFILL = ("stream_options", "min_tokens", "min_completion_tokens")
"""Options that a reply of one token, in one piece, must not have."""
PASSED_BACK = (hdrs.CONTENT_TYPE, hdrs.RETRY_AFTER, "X-Request-Id")
PASSED_ON = (hdrs.AUTHORIZATION, hdrs.ACCEPT, hdrs.CONTENT_TYPE)
TENANT_PREFIX = "x-"
"""Headers of users' own, such as a tenant or a session, go to both engines."""


def prefill_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The request of the first leg."""
    left = {
        name: value for name, value in fields.items() if name not in NOT_FOR_PREFILL
    }
    given = [name for name in ONE_TOKEN if name in fields]
    one_token = dict.fromkeys(given or ONE_TOKEN[:1], 1)
    params: dict[str, Any] = dict.fromkeys(NOT_KNOWN_YET)
    params |= {"do_remote_decode": True, "do_remote_prefill": False}
    return {**left, **one_token, "stream": False, KV_PARAMS: params}


def decode_fields(fields: Mapping[str, Any], reply: object) -> dict[str, Any]:
    """The request of the second leg, after this reply to the first.

    Without `kv_transfer_params` in it the second engine serves the request whole.
    """
    params = reply.get(KV_PARAMS) if isinstance(reply, dict) else None
    left = {name: value for name, value in fields.items() if name != KV_PARAMS}
    return {**left, KV_PARAMS: params} if params else left


def make_router(config: ServerConfig, session: ClientSession) -> web.Application:
    """The routes of a router over engines that take turns."""
    app = web.Application(client_max_size=BODY_BYTES)
    router = Router(config, session)
    app.add_routes(
        [
            web.post("/v1/chat/completions", router.two_legs),
            web.post("/v1/completions", router.two_legs),
            web.get("/health", router.health),
            web.route("*", "/{path:.*}", router.one_leg),
        ]
    )
    return app


class Router:
    """Sends the legs; engines of one role take turns."""

    def __init__(self, config: ServerConfig, session: ClientSession) -> None:
        self._session = session
        self._makes_ids = config.own_request_ids
        self._urls = (*config.prefill, *config.decode)
        self._prefill, self._decode = cycle(config.prefill), cycle(config.decode)

    async def two_legs(self, request: web.Request) -> web.StreamResponse:
        """A generation: its prompt here, its reply there."""
        headers = _headers(request, self._makes_ids)
        try:
            fields = read_object(await request.read())
        except EngineRefusal as refusal:
            return json_reply(refusal.body, refusal.status)
        first = f"{next(self._prefill)}{request.path}"
        body = prefill_fields(fields)
        try:
            async with self._session.post(first, json=body, headers=headers) as reply:
                if reply.status != 200:
                    return await _passed(request, reply)
                found = await reply.json()
        except (ClientError, ValueError) as error:
            return _away(first, error)
        second = f"{next(self._decode)}{request.path}"
        body = decode_fields(fields, found)
        try:
            async with self._session.post(second, json=body, headers=headers) as reply:
                return await _passed(request, reply)
        except ClientError as error:
            return _away(second, error)

    async def one_leg(self, request: web.Request) -> web.StreamResponse:
        """Anything else, by a decode engine."""
        url = f"{next(self._decode)}{request.rel_url}"
        data, headers = await request.read(), _headers(request, self._makes_ids)
        try:
            async with self._session.request(
                request.method, url, data=data, headers=headers
            ) as reply:
                return await _passed(request, reply)
        except ClientError as error:
            return _away(url, error)

    async def health(self, request: web.Request) -> web.Response:
        """Healthy where every engine is."""
        for url in self._urls:
            try:
                async with self._session.get(f"{url}/health") as reply:
                    if reply.status != 200:
                        return web.Response(status=503, text=f"{url}: {reply.status}")
            except ClientError as error:
                return web.Response(status=503, text=f"{url}: {error}")
        return web.Response()


def _headers(request: web.Request, makes_ids: bool) -> CIMultiDict[str]:
    """Headers of both legs; the id by which they belong together among them."""
    sent: CIMultiDict[str] = CIMultiDict(
        (name, value)
        for name, value in request.headers.items()
        if name.lower().startswith(TENANT_PREFIX) or name in PASSED_ON
    )
    request_id = request_id_of(request)
    # of a longer one a proxy would make two
    if makes_ids or len(request_id) > MAX_REQUEST_ID_BYTES:
        request_id = uuid4().hex
    sent["X-Request-Id"] = request_id
    return sent


async def _passed(request: web.Request, reply: ClientResponse) -> web.StreamResponse:
    """The engine's reply, piece by piece as it comes."""
    headers = {n: reply.headers[n] for n in PASSED_BACK if n in reply.headers}
    passed = web.StreamResponse(status=reply.status, headers={**SERVER, **headers})
    await passed.prepare(request)
    try:
        async for piece in reply.content.iter_any():
            await passed.write(piece)
        await passed.write_eof()
    except (ClientError, ConnectionResetError):
        # the engine went away in the middle: so does this end, without a proper end
        if request.transport is not None:
            request.transport.abort()
    return passed


def _away(url: str, error: Exception) -> web.Response:
    message = f"{url} does not answer: {error or type(error).__name__}"
    refusal = refused(502, message, kind="BadGatewayError")
    return json_reply(refusal.body, refusal.status)
