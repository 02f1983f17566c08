"""The simulated engine on real sockets: streams, aborts, overload, readings, truth."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, web
from prometheus_client.parser import text_string_to_metric_families

from loadgen.simulator.app import make_app, make_runner
from loadgen.simulator.config import ServerConfig
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.presets import GPUS
from loadgen.simulator.core.sensor import SensorConfig
from loadgen.simulator.realtime.runner import Runner
from loadgen.simulator.realtime.streams import NoSink
from loadgen.simulator.wire import Generation
from proxy.power.sources.dcgm import parse_dcgm

WAIT_SECONDS = 20
"""A bound on a hang, not an expectation."""


@dataclass(frozen=True, slots=True)
class Server:
    session: ClientSession
    runner: Runner

    async def stream(self, path: str, **body: object) -> list[Any]:
        """The data of every event; `[DONE]` stays a string."""
        async with self.session.post(path, json=body) as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            parts = (await response.read()).split(b"\n\n")
        data = [part.removeprefix(b"data: ") for part in parts if part]
        return [
            part.decode() if part == b"[DONE]" else json.loads(part) for part in data
        ]

    async def truths(self, count: int) -> list[dict[str, Any]]:
        """The truth of `count` finished requests, as soon as it is there."""
        while True:
            async with self.session.get("/simulator/truth") as response:
                lines = (await response.text()).splitlines()
            if len(lines) >= count:
                return [json.loads(line) for line in lines]

    async def state(self) -> dict[str, Any]:
        async with self.session.get("/simulator/state") as response:
            body: dict[str, Any] = await response.json()
            return body


@asynccontextmanager
async def serving(config: ServerConfig) -> AsyncIterator[Server]:
    runner = make_runner(config)
    server = web.AppRunner(
        make_app(config, runner), handler_cancellation=True, shutdown_timeout=0.1
    )
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    steps = asyncio.create_task(runner.run())
    try:
        base = f"http://127.0.0.1:{server.addresses[0][1]}"
        async with asyncio.timeout(WAIT_SECONDS), ClientSession(base) as session:
            yield Server(session, runner)
    finally:
        steps.cancel()
        await server.cleanup()


def talk(
    scene: Callable[[Server], Awaitable[None]],
    dialect: str = "vllm",
    queue_limit: int = 0,
    fail_every: int = 0,
    request_id_headers: bool = False,
    idle_gpus: int = 0,
    **engine: Any,
) -> None:
    """Play a scene against a server of its own."""
    config = ServerConfig(
        EngineConfig(gpu=GPUS["h200"], **engine), SensorConfig(0.02), dialect,
        ("127.0.0.1", 0), queue_limit=queue_limit, fail_every=fail_every,
        request_id_headers=request_id_headers, idle_gpus=idle_gpus,
    )  # fmt: skip

    async def play() -> None:
        async with serving(config) as server:
            await scene(server)

    asyncio.run(play())


def completion(**fields: object) -> dict[str, object]:
    body = {"prompt": "three little words", "max_tokens": 5, "ignore_eos": True}
    return {**body, **fields}


def text_of(events: list[Any]) -> str:
    choices = [event["choices"][0] for event in events[:-1] if event["choices"]]
    return "".join(
        c["text"] if "text" in c else c["delta"].get("content", "") for c in choices
    )


def test_a_chat_stream_has_its_role_first_one_word_per_token_and_exact_counts() -> None:
    async def scene(server: Server) -> None:
        events = await server.stream(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "three little words"}],
            max_completion_tokens=5,
            ignore_eos=True,
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
        assert len(text_of(events).split()) == 5
        assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
        assert counts == [0, 1, 2, 3, 4, 5, 5]
        assert events[-2]["usage"]["prompt_tokens"] == 3
        assert events[-3]["choices"][0]["finish_reason"] == "length"
        assert events[-2]["metrics"]["time_to_first_token_ms"] > 0
        assert events[-1] == "[DONE]"

    talk(scene)


def test_events_come_one_by_one_in_chunks_of_their_own() -> None:
    async def scene(server: Server) -> None:
        url = "/v1/completions"
        async with server.session.post(
            url, json=completion(stream=True), headers={"x-request-id": "abc"}
        ) as response:
            assert "x-request-id" not in response.headers
            parts = [
                part async for part, ends in response.content.iter_chunks() if ends
            ]
        assert len(parts) == 6
        assert all(
            part.startswith(b"data: ") and part.endswith(b"\n\n") for part in parts
        )
        assert json.loads(parts[0][6:])["id"] == "cmpl-abc"

    talk(scene)


def test_an_id_comes_back_as_a_header_only_with_the_option() -> None:
    async def scene(server: Server) -> None:
        for path, body in (
            ("/v1/completions", completion()),
            ("/v1/completions", {"prompt": ""}),
        ):
            async with server.session.post(
                path, json=body, headers={"x-request-id": "abc"}
            ) as response:
                assert response.headers["x-request-id"] == "abc"

    talk(scene, request_id_headers=True)


def test_streamed_and_whole_replies_to_the_same_id_are_the_same_text() -> None:
    async def scene(server: Server) -> None:
        headers = {"x-request-id": "same"}
        texts = []
        for stream in (True, False):
            async with server.session.post(
                "/v1/completions", json=completion(stream=stream), headers=headers
            ) as response:
                raw = await response.read()
            if stream:
                parts = [part[6:] for part in raw.split(b"\n\n")[:-1]]
                texts.append(text_of([*map(json.loads, parts[:-1]), "[DONE]"]))
            else:
                body = json.loads(raw)
                texts.append(body["choices"][0]["text"])
                assert body["usage"]["completion_tokens"] == 5
                assert body["metrics"]["generation_time_ms"] > 0
        assert texts[0] == texts[1]

    talk(scene)


def test_several_sequences_are_told_apart_and_summed() -> None:
    async def scene(server: Server) -> None:
        body = completion(n=3, stream=True, stream_options={"include_usage": True})
        events = await server.stream("/v1/completions", **body)
        by_index: dict[int, int] = {}
        for event in events[:-2]:
            index = event["choices"][0]["index"]
            by_index[index] = by_index.get(index, 0) + 1
        assert by_index == {0: 5, 1: 5, 2: 5}
        assert events[-2]["usage"]["completion_tokens"] == 15
        assert "metrics" not in events[-2]
        assert (await server.truths(1))[0]["output_tokens"] == 15

    talk(scene)


def test_a_repeated_prompt_is_cached_and_says_so() -> None:
    async def scene(server: Server) -> None:
        usage = {"include_usage": True}
        body = completion(prompt="word " * 100, stream=True, stream_options=usage)
        cached = []
        for _ in range(2):
            events = await server.stream("/v1/completions", **body)
            details = events[-2]["usage"]["prompt_tokens_details"]
            cached.append(details["cached_tokens"])
        assert cached == [0, 96]

    talk(scene)


def test_a_prompt_is_counted_with_its_first_token() -> None:
    names = [
        f"vllm:{name}_total"
        for name in ("prefix_cache_queries", "prompt_tokens", "generation_tokens")
    ]

    async def scene(server: Server) -> None:
        body = completion(prompt="word " * 40_000, max_tokens=3)
        request = asyncio.create_task(server.session.post("/v1/completions", json=body))
        pages: list[list[float]] = []
        while not pages or pages[-1][-1] < 3:
            async with server.session.get("/metrics") as page:
                families = text_string_to_metric_families(await page.text())
            values = {s.name: s.value for family in families for s in family.samples}
            pages.append([values[name] for name in names])
        (await request).close()
        # looked up in the prefix cache when it began: seconds before the first token
        assert [40_000, 0, 0] in pages
        assert pages[-1] == [40_000, 40_000, 3]

    talk(scene)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine_and_its_cost_is_kept(
    stream: bool,
) -> None:
    async def scene(server: Server) -> None:
        body = completion(max_tokens=100_000, stream=stream)
        request = asyncio.create_task(server.session.post("/v1/completions", json=body))
        if stream:
            response: ClientResponse = await request
            await response.content.readany()
            response.close()
        else:
            while not (await server.state())["requests_running"]:
                pass
            request.cancel()
        truth = (await server.truths(1))[0]
        assert truth["outcome"] == "aborted"
        assert truth["output_tokens"] < 100_000
        assert truth["energy_joules"] > 0
        assert (await server.state())["requests_running"] == 0
        async with server.session.get("/metrics") as page:
            lines = (await page.text()).splitlines()
        usage = next(li for li in lines if li.startswith("vllm:kv_cache_usage_perc"))
        assert float(usage.split()[-1]) == 0

    talk(scene)


def test_a_full_queue_refuses_by_status_and_inside_streams() -> None:
    async def scene(server: Server) -> None:
        long = completion(max_tokens=100_000, stream=True)
        async with server.session.post("/v1/completions", json=long) as running:
            await running.content.readany()
            waiting = asyncio.create_task(
                server.session.post("/v1/completions", json=long)
            )
            while not (await server.state())["requests_waiting"]:
                pass
            for _ in range(2):
                async with server.session.post(
                    "/v1/completions", json=completion()
                ) as whole:
                    assert whole.status == 503
                    assert (await whole.json())["error"]["code"] == 503
            seen = []
            for _ in range(4):
                async with server.session.post("/v1/completions", json=long) as refused:
                    seen.append(refused.status)
                    assert b'"code": 503' in await refused.read() or seen[-1] == 503
            assert seen == [503, 200, 503, 200]
            (await waiting).close()

    talk(scene, queue_limit=2, max_num_seqs=1)


def test_an_injected_failure_ends_a_stream_with_an_error_inside_the_200() -> None:
    async def scene(server: Server) -> None:
        good = await server.stream("/v1/completions", **completion(stream=True))
        bad = await server.stream("/v1/completions", **completion(stream=True))
        assert len(good) == 6
        assert len(bad) == 4
        assert bad[-2]["error"]["code"] == 500
        assert bad[-1] == "[DONE]"
        truths = await server.truths(2)
        assert [truth["outcome"] for truth in truths] == ["ok", "failed"]

    talk(scene, fail_every=2)


def test_all_energy_is_some_requests_or_idle() -> None:
    async def scene(server: Server) -> None:
        await asyncio.gather(
            *(
                server.stream(
                    "/v1/completions",
                    **completion(prompt="w " * (9 * i + 1), max_tokens=9, stream=True),
                )
                for i in range(12)
            )
        )
        truths = await server.truths(12)
        state = await server.state()
        charged = sum(truth["energy_joules"] for truth in truths)
        assert charged == pytest.approx(state["busy_joules"])
        assert state["busy_joules"] < state["total_joules"]
        for truth in truths:
            assert truth["arrived_unix_seconds"] <= truth["scheduled_unix_seconds"]
            assert truth["first_token_unix_seconds"] < truth["last_token_unix_seconds"]

    talk(scene)


def test_the_gpus_readings_are_dcgms_and_marked_as_simulated() -> None:
    async def scene(server: Server) -> None:
        async with server.session.get("/dcgm/metrics") as response:
            text = await response.text()
        page = parse_dcgm(text, frozenset())
        assert page.is_simulated
        assert [reading.device for reading in page.readings] == ["gpu0", "gpu1"]
        assert all(reading.watts == pytest.approx(120) for reading in page.readings)
        assert 'modelName="SIMULATED NVIDIA H200"' in text

    talk(scene, n_gpus=2)


def test_boards_that_nobody_uses_draw_less_than_the_engines_at_rest() -> None:
    async def scene(server: Server) -> None:
        pages = []
        for _ in range(2):
            async with server.session.get("/dcgm/metrics") as response:
                pages.append(parse_dcgm(await response.text(), frozenset()).readings)
        used, *idle = pages[1]
        assert [reading.device for reading in idle] == ["gpu1", "gpu2"]
        assert all(0 < (one.watts or 0) < (used.watts or 0) for one in idle)
        then, now = ([one.joules or 0 for one in page] for page in pages)
        assert now >= then

    talk(scene, idle_gpus=2)


def test_the_counter_covers_what_the_steps_cost() -> None:
    async def scene(server: Server) -> None:
        await server.stream("/v1/completions", **completion(stream=True))
        busy_joules = (await server.state())["busy_joules"]
        shown = 0.0
        while shown < busy_joules:  # the counter lags by one period
            async with server.session.get("/dcgm/metrics") as response:
                readings = parse_dcgm(await response.text(), frozenset()).readings
            shown = readings[0].joules or 0.0
            assert shown <= (await server.state())["total_joules"]

    talk(scene)


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/health", 200, ""),
        ("GET", "/version", 200, '{"version":"0.32.0+simulated"}'),
        ("GET", "/nowhere", 404, '{"detail":"Not Found"}'),
        ("GET", "/v1/completions", 405, '{"detail":"Method Not Allowed"}'),
    ],
)
def test_the_small_routes_of_vllm(
    method: str, path: str, status: int, body: str
) -> None:
    async def scene(server: Server) -> None:
        async with server.session.request(method, path) as response:
            assert (response.status, await response.text()) == (status, body)

    talk(scene)


def test_the_model_says_that_it_is_simulated_and_others_are_unknown() -> None:
    async def scene(server: Server) -> None:
        async with server.session.get("/v1/models") as response:
            model = (await response.json())["data"][0]
        assert model["id"] == "simulated-llama-3.1-8b"
        body = completion(model="gpt-4")
        async with server.session.post("/v1/completions", json=body) as response:
            assert response.status == 404
        body = completion(model=model["id"])
        async with server.session.post("/v1/completions", json=body) as response:
            assert response.status == 200

    talk(scene)


def test_a_body_that_is_not_json_is_refused() -> None:
    async def scene(server: Server) -> None:
        async with server.session.post("/v1/completions", data="text") as response:
            assert response.status == 400
            assert (
                "Unsupported Media Type" in (await response.json())["error"]["message"]
            )

    talk(scene)


def test_a_prompt_of_several_megabytes_is_read() -> None:
    async def scene(server: Server) -> None:
        body = BytesIO(json.dumps({"prompt": "word " * 600_000}).encode())
        headers = {"content-type": "application/json"}
        async with server.session.post(
            "/tokenize", data=body, headers=headers
        ) as response:
            assert (await response.json())["count"] == 600_000

    talk(scene)


def test_tgi_streams_tokens_and_ends_with_the_text() -> None:
    async def scene(server: Server) -> None:
        parameters = {"max_new_tokens": 6, "details": True}
        events = await server.stream(
            "/generate_stream", inputs="three little words", parameters=parameters
        )
        details = events[-1]["details"]
        assert details["generated_tokens"] == len(events) <= 6
        assert details["input_length"] == 3
        assert events[-1]["generated_text"] == "".join(
            event["token"]["text"] for event in events
        )

    talk(scene, "tgi")


def test_tgi_whole_replies_carry_counts_and_times_in_headers() -> None:
    async def scene(server: Server) -> None:
        parameters = {"max_new_tokens": 6, "details": True}
        body = {"inputs": "three little words", "parameters": parameters}
        async with server.session.post("/generate", json=body) as response:
            reply = await response.json()
            headers = response.headers
        words = len(reply["generated_text"].split())
        assert reply["details"]["generated_tokens"] == words
        assert headers["x-prompt-tokens"] == "3"
        assert headers["x-generated-tokens"] == str(words)
        assert int(headers["x-queue-time"]) + int(headers["x-inference-time"]) <= int(
            headers["x-total-time"]
        )
        async with server.session.post("/", json=body) as response:
            assert isinstance(await response.json(), list)

    talk(scene, "tgi")


def test_tgi_chat_streams_in_its_own_flavour() -> None:
    async def scene(server: Server) -> None:
        events = await server.stream(
            "/v1/chat/completions",
            model="tgi",
            messages=[{"role": "user", "content": "hi"}],
            max_tokens=4,
            stream=True,
            stream_options={"include_usage": True},
        )
        assert events[-1] == "[DONE]"
        assert events[-2]["usage"]["completion_tokens"] == len(events) - 2
        assert {event["id"] for event in events[:-1]} == {""}

    talk(scene, "tgi")


def test_tgi_reports_errors_by_status_and_inside_streams() -> None:
    async def scene(server: Server) -> None:
        bad = {"inputs": ""}
        async with server.session.post("/generate", json=bad) as response:
            assert response.status == 422
            assert (await response.json())["error_type"] == "validation"
        events = await server.stream("/generate_stream", **bad)
        assert events[0]["error_type"] == "validation"
        chat = await server.stream("/v1/chat/completions", messages=[], stream=True)
        assert chat[0]["error"]["http_status_code"] == 422
        async with server.session.get("/metrics") as page:
            text = await page.text()
        assert 'tgi_request_failure{err="validation"} 3.0\n' in text
        assert "tgi_batch_current_size" not in text  # nothing has set it yet

    talk(scene, "tgi")


def test_a_reply_in_parts_is_prefilled_anew_for_each_and_is_one_request() -> None:
    async def scene(server: Server) -> None:
        generation = Generation("r", ["a"] * 10, 8, "length", False, parts=(4, 4))
        ticket = await server.runner.serve(generation, NoSink())
        (truth,) = ticket.truths
        assert ticket.is_ok
        assert (truth.prompt_tokens, truth.output_tokens) == (10, 8)
        assert truth.prefilled_tokens == 10 + 14
        (record,) = server.runner.records
        assert record.output_tokens == 8
        assert record.energy_joules == pytest.approx(truth.energy_joules)
        assert server.runner.gauges().decoding == 0

    talk(scene, "tgi")


def test_tgi_refuses_when_its_queue_is_full() -> None:
    async def scene(server: Server) -> None:
        long = {"inputs": "a", "parameters": {"max_new_tokens": 100_000}}
        first = asyncio.create_task(server.session.post("/generate", json=long))
        while not (await server.state())["requests_running"]:
            pass
        second = asyncio.create_task(server.session.post("/generate", json=long))
        while not (await server.state())["requests_waiting"]:
            pass
        async with server.session.post("/generate", json=long) as refused:
            assert refused.status == 429
            assert (await refused.json())["error_type"] == "overloaded"
        first.cancel()
        second.cancel()

    talk(scene, "tgi", queue_limit=2, max_num_seqs=1)
