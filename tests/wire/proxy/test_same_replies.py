"""A reply through the proxy is the reply without it, in every dialect.

The simulated engines sample by the request's seed and all fields that shape the text,
so a proxy that changed one of them would show in the words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from loadgen.simulator.app import make_app, make_runner
from loadgen.simulator.config import ServerConfig
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.presets import GPUS
from loadgen.simulator.core.sensor import SensorConfig
from proxy.meter.activity.request import RequestTimeline, TokenLog
from tests.support.relaying import RecordingMeter, serving

MODEL = "simulated-llama-3.1-8b"
SPOKEN_SECONDS = 30.0
OF_THE_MOMENT = re.compile(
    rb'"created":\d+|"created_at":[\d.]+|"completed_at":[\d.]+'
    rb'|,"metrics":(?:null|\{[^}]*\})|,"system_fingerprint":"[^"]*"'
)
"""What tells the time, and the fingerprint, which vLLM puts on the usage event."""


@dataclass
class Ways:
    """One engine, asked directly, and through proxies in front of it."""

    loop: asyncio.Runner
    direct: str
    proxied: str
    streamed: str
    """A proxy that asks for streams where whole replies are wanted."""
    meters: list[RecordingMeter]

    def ask(self, url: str, path: str, body: Any) -> tuple[int, str, bytes]:
        async def post() -> httpx.Response:
            async with httpx.AsyncClient(timeout=SPOKEN_SECONDS) as client:
                headers = {"x-request-id": "same"}
                return await client.post(f"{url}{path}", json=body, headers=headers)

        reply = self.loop.run(post())
        kind = reply.headers.get("content-type", "")
        return reply.status_code, kind, OF_THE_MOMENT.sub(b"", reply.content)


@contextlib.contextmanager
def engine_of(dialect: str) -> Iterator[Ways]:
    config = ServerConfig(
        EngineConfig(gpu=GPUS["h200"], prefix_cache=False, step_overhead_seconds=0.0),
        SensorConfig(0.02), dialect, ("127.0.0.1", 0),
    )  # fmt: skip

    async def opened() -> tuple[contextlib.AsyncExitStack, list[str]]:
        stack = contextlib.AsyncExitStack()
        simulator = make_runner(config)
        server = web.AppRunner(make_app(config, simulator), shutdown_timeout=0.1)
        await server.setup()
        stack.push_async_callback(server.cleanup)
        await web.TCPSite(server, "127.0.0.1", 0).start()
        steps = asyncio.create_task(simulator.run())
        stack.callback(steps.cancel)
        url = f"http://127.0.0.1:{server.addresses[0][1]}"
        urls = [url]
        ways: list[dict[str, Any]] = [
            {"usage_event": "drop"},
            {"stream_upstream": True},
        ]
        for meter, more in zip(meters, ways, strict=True):
            relay = await stack.enter_async_context(
                serving(url, meter, dialect, **more)
            )
            urls.append(f"http://127.0.0.1:{relay.port}")
        return stack, urls

    meters = [RecordingMeter(), RecordingMeter()]
    with asyncio.Runner() as loop:
        stack, urls = loop.run(opened())
        try:
            direct, proxied, streamed = urls
            yield Ways(loop, direct, proxied, streamed, meters)
        finally:
            loop.run(stack.aclose())


@pytest.fixture(scope="module")
def vllm() -> Iterator[Ways]:
    with engine_of("vllm") as ways:
        yield ways


@pytest.fixture(scope="module")
def tgi() -> Iterator[Ways]:
    with engine_of("tgi") as ways:
        yield ways


same = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TEXTS = st.sampled_from(["one", "a few words", 'quotes " and \\ and é', "%b %s"])
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
SAMPLED: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 3),
    "temperature": st.sampled_from([0.5, 1.0]),
}
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "top_p": st.sampled_from([0.5, 0.9]),
    "stop": st.sampled_from(["time", ["year", "day"]]),
    "frequency_penalty": st.sampled_from([0, 0.5, 1e-7]),
    "user": TEXTS,
}
OPENAI: dict[str, st.SearchStrategy[Any]] = {
    "model": st.just(MODEL), "max_tokens": st.integers(1, 6), **SAMPLED,
}  # fmt: skip
STREAMING: dict[str, st.SearchStrategy[Any]] = {
    "stream": st.booleans(),
    "stream_options": st.sampled_from(
        [
            {"include_usage": True},
            {"include_usage": False},
            {"include_usage": True, "continuous_usage_stats": True},
        ]
    ),
}
VLLM_OPTIONS = OPTIONS | {
    "n": st.integers(1, 3),
    "ignore_eos": st.booleans(),
    "min_tokens": st.integers(0, 2),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
}
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.just("user"), "content": TEXTS}),
    min_size=1, max_size=2,
)  # fmt: skip
CHAT = st.fixed_dictionaries(
    {**OPENAI, "messages": MESSAGES},
    optional={
        **VLLM_OPTIONS,
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(0, 2),
        "tools": st.just([TOOL]),
    },
).flatmap(
    lambda body: (
        st.fixed_dictionaries(
            {}, optional={"tool_choice": st.sampled_from(["auto", "required"])}
        ).map(lambda more: body | more)
        if "tools" in body
        else st.just(body)
    )
)
COMPLETIONS = st.fixed_dictionaries(
    {
        **OPENAI,
        "prompt": TEXTS | st.lists(TEXTS, min_size=1, max_size=3) | st.just([1, 2, 3]),
    },
    optional={**VLLM_OPTIONS, "logprobs": st.integers(0, 2)},
)
ASKED = st.one_of(
    CHAT.map(lambda body: ("/v1/chat/completions", body)),
    COMPLETIONS.map(lambda body: ("/v1/completions", body)),
)


@same
@given(asked=ASKED, more=st.fixed_dictionaries({}, optional=STREAMING))
@example(
    asked=("/v1/completions", {"prompt": "a", "max_tokens": 0}), more={"stream": True}
)
def test_vllm_replies_the_same_with_the_proxy_and_without(
    vllm: Ways, asked: tuple[str, Any], more: Any
) -> None:
    path, body = asked[0], asked[1] | more
    assert vllm.ask(vllm.proxied, path, body) == vllm.ask(vllm.direct, path, body)


@same
@given(asked=ASKED)
@example(asked=("/v1/chat/completions", {"messages": [], "max_tokens": 1}))
@example(asked=("/v1/completions", {"prompt": "a", "best_of": 1, "max_tokens": 1}))
def test_a_whole_reply_made_from_a_stream_is_the_engines_own(
    vllm: Ways, asked: tuple[str, Any]
) -> None:
    path, body = asked
    whole = vllm.ask(vllm.direct, path, body)
    for _ in range(2):  # the first may be the one that is learnt from
        assert vllm.ask(vllm.streamed, path, body) == whole


def test_the_first_whole_reply_of_a_kind_is_learnt_from_and_others_are_streams() -> (
    None
):
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    with engine_of("vllm") as ways:
        for _ in range(3):
            ways.ask(ways.streamed, "/v1/chat/completions", body)
        ways.ask(ways.streamed, "/v1/chat/completions", body | {"logprobs": True})
        ways.ask(ways.streamed, "/v1/chat/completions", body | {"echo": True})
        requests = list(ways.meters[1].requests.values())
    asked_for_streams = [request.facts.is_stream for request in requests]
    assert asked_for_streams == [False, True, True, False, False]
    assert {request.outcome for request in requests} == {"ok"}
    ends = [request.updates[-2].usage for request in requests[1:3]]
    assert [end and end.output_tokens for end in ends] == [3, 3]


NATIVE = st.fixed_dictionaries(
    {"inputs": TEXTS},
    optional={
        "parameters": st.fixed_dictionaries(
            {"max_new_tokens": st.integers(1, 6)},
            optional={
                **SAMPLED,
                "top_p": st.sampled_from([0.5, 1.0]),
                "do_sample": st.booleans(),
                "details": st.booleans(),
                "return_full_text": st.booleans(),
                "best_of": st.integers(1, 2),
                "stop": st.just(["a"]),
            },
        ),
        "stream": st.booleans(),
    },
)
TGI_CHAT = st.fixed_dictionaries(
    {**OPENAI, "messages": MESSAGES},
    optional={
        **OPTIONS, **STREAMING, "tools": st.just([TOOL]),
        "tool_choice": st.sampled_from(["auto", "none", {"function": {"name": "g"}}]),
    },
)  # fmt: skip
TGI_COMPLETIONS = st.fixed_dictionaries(
    {**OPENAI, "prompt": TEXTS | st.lists(TEXTS, min_size=1, max_size=5)},
    optional={**OPTIONS, "stream": st.booleans(), "suffix": st.just("z")},
)
TGI_ASKED = st.one_of(
    st.tuples(
        st.sampled_from(["/", "/generate", "/generate_stream", "/invocations"]), NATIVE
    ),
    TGI_CHAT.map(lambda body: ("/v1/chat/completions", body)),
    TGI_COMPLETIONS.map(lambda body: ("/v1/completions", body)),
)


def without_details(told: tuple[int, str, bytes]) -> tuple[int, str, bytes]:
    """`details` of a native stream's last event are filled where the proxy asked."""
    status, kind, content = told
    if b'"token":' in content:
        content = re.sub(rb'"details":(?:null|\{[^}]*\})', b"", content)
    return status, kind, content


@same
@given(asked=TGI_ASKED)
@example(asked=("/generate_stream", {"inputs": "a"}))
@example(asked=("/generate_stream", {"inputs": "a", "parameters": None}))
@example(asked=("/v1/chat/completions", {"messages": [], "stream_options": None}))
def test_tgi_replies_the_same_with_the_proxy_and_without(
    tgi: Ways, asked: tuple[str, Any]
) -> None:
    path, body = asked
    direct = tgi.ask(tgi.direct, path, body)
    assert without_details(tgi.ask(tgi.proxied, path, body)) == without_details(direct)


def test_the_comparison_sees_a_changed_option(tgi: Ways) -> None:
    """The check itself: sampled is not greedy, and one seed is not another."""
    asked = {"inputs": "a", "parameters": {"max_new_tokens": 6, "do_sample": True}}
    greedy = {"inputs": "a", "parameters": {"max_new_tokens": 6}}
    first = tgi.ask(tgi.direct, "/generate", asked)
    assert first != tgi.ask(tgi.direct, "/generate", greedy)
    assert json.loads(first[2])["generated_text"]


# --- APIs beside chat and completions -----------------------------------------------

PAIRS = st.lists(TEXTS, min_size=1, max_size=3)
OTHERS = st.one_of(
    st.fixed_dictionaries(
        {"input": TEXTS | st.just([{"role": "user", "content": "a b"}]), **SAMPLED},
        optional={
            "max_output_tokens": st.integers(1, 6),
            "instructions": TEXTS,
            "stream": st.booleans(),
        },
    ).map(lambda body: ("/v1/responses", {"max_output_tokens": 6} | body)),
    st.fixed_dictionaries(
        {"messages": MESSAGES, "max_tokens": st.integers(1, 6), **SAMPLED},
        optional={"system": TEXTS, "stream": st.booleans()},
    ).map(lambda body: ("/v1/messages", body)),
    st.fixed_dictionaries(
        {
            "messages": st.lists(MESSAGES, min_size=1, max_size=3),
            "max_tokens": st.integers(1, 4),
        }
    ).map(lambda body: ("/v1/chat/completions/batch", body)),
    st.fixed_dictionaries({"input": TEXTS | PAIRS | st.just([1, 2])}).map(
        lambda body: ("/v1/embeddings", body)
    ),
    st.fixed_dictionaries({"query": TEXTS, "documents": PAIRS}).map(
        lambda body: ("/v1/rerank", body)
    ),
    st.fixed_dictionaries({"text_1": TEXTS, "text_2": TEXTS | PAIRS}).map(
        lambda body: ("/v1/score", body)
    ),
    CHAT.map(lambda body: ("/invocations", body)),
    st.just(("/invocations", {"odd": 1})),
)


@same
@given(asked=OTHERS)
@example(asked=("/v1/messages", {"messages": []}))
@example(asked=("/v1/responses", {"input": [], "stream": True}))
def test_other_apis_of_vllm_reply_the_same(vllm: Ways, asked: tuple[str, Any]) -> None:
    path, body = asked
    assert vllm.ask(vllm.proxied, path, body) == vllm.ask(vllm.direct, path, body)


COUNTED: dict[str, tuple[str, Any, str, int, int | None]] = {
    "responses": (
        "/v1/responses", {"input": "a b c", "max_output_tokens": 4}, "responses", 3, 4,
    ),
    "messages": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 4},
        "messages", 2, 4,
    ),
    "embeddings": ("/v1/embeddings", {"input": ["a b", "c"]}, "embeddings", 3, 0),
    "rerank": ("/rerank", {"query": "q", "documents": ["a", "b c"]}, "rerank", 5, 0),
    "score": ("/score", {"text_1": "q", "text_2": ["a", "b c"]}, "score", 5, 0),
    "batch": (
        "/v1/chat/completions/batch",
        {"messages": [[{"role": "user", "content": "a"}]] * 2, "max_tokens": 3},
        "chat_batch", 2, 6,
    ),
    "invocations": (
        "/invocations", {"prompt": "a b", "max_tokens": 3}, "invocations", 2, 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "is_stream"),
    [*((name, False) for name in COUNTED), ("responses", True), ("messages", True)],
)
def test_each_api_is_recorded_with_its_counts(
    vllm: Ways, name: str, is_stream: bool
) -> None:
    path, body, route, prompt_tokens, output_tokens = COUNTED[name]
    asked = body | {"stream": is_stream, "ignore_eos": True}
    status, _, _ = vllm.ask(vllm.proxied, path, asked)
    request = list(vllm.meters[0].requests.values())[-1]
    timeline = RequestTimeline(0, request.opened_seconds, request.facts)
    for at_seconds, updates in request.reads:
        timeline.receive(at_seconds, updates, TokenLog())
    timeline.finish()
    assert (status, request.outcome, request.facts.route) == (200, "ok", route)
    assert timeline.prompt_tokens == prompt_tokens
    assert timeline.output_tokens == output_tokens
    if is_stream:
        assert sum(update.carries_token for update in request.updates) == 4


@pytest.mark.parametrize("seconds", [1, 10])
@pytest.mark.parametrize("is_stream", [False, True])
def test_sound_of_any_size_is_recorded_with_its_model(
    vllm: Ways, seconds: int, is_stream: bool
) -> None:
    """A form beyond 128 KiB is read by its two ends."""

    async def post(url: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=SPOKEN_SECONDS) as client:
            return await client.post(
                f"{url}/v1/audio/transcriptions",
                headers={"x-request-id": "same"},
                data={"model": MODEL, "stream": str(is_stream).lower()},
                files={"file": ("a.wav", b"\0" * 32_000 * seconds)},
            )

    direct, proxied = (vllm.loop.run(post(url)) for url in (vllm.direct, vllm.proxied))
    assert OF_THE_MOMENT.sub(b"", proxied.content) == OF_THE_MOMENT.sub(
        b"", direct.content
    )
    request = list(vllm.meters[0].requests.values())[-1]
    assert (request.outcome, request.facts.route) == ("ok", "audio")
    assert (request.facts.model, request.facts.is_stream) == (MODEL, is_stream)
