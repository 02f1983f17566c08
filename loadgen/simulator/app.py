"""Puts the simulator on a port: the dialect's routes, the GPU's readings, the truth."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import uvloop
from aiohttp import ClientSession, ClientTimeout, TCPConnector, web

from loadgen.errors import LoadgenError
from loadgen.simulator.config import ServerConfig
from loadgen.simulator.exposition import Page
from loadgen.simulator.realtime.runner import Runner
from loadgen.simulator.router import make_router
from loadgen.simulator.tgi.metrics import TgiMetrics
from loadgen.simulator.tgi.routes import TgiApi
from loadgen.simulator.vllm.metrics import VllmMetrics
from loadgen.simulator.vllm.routes import VllmApi, fastapi_errors
from loadgen.simulator.wire import Limits
from proxy.process.host import stop_with_parent

BODY_BYTES = 32 * 1024 * 1024
"""As vLLM's Rust frontend; aiohttp's own 1 MiB refuses long prompts."""
STOP_SECONDS = 0.5
NO_TIMEOUT = ClientTimeout(total=None)
"""Of a router: a reply takes as long as it takes."""


def run_server(config: ServerConfig) -> None:
    """Serve until told to stop. Raises LoadgenError when it cannot listen."""
    serve = _serve_router if config.role == "router" else _serve
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(config))


async def _serve(config: ServerConfig) -> None:
    simulator = make_runner(config)
    async with _listening(make_app(config, simulator), config) as (url, stopped):
        steps = asyncio.create_task(simulator.run())
        _say(config, url)
        await asyncio.wait({steps, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if steps.done():
            steps.result()
        steps.cancel()


async def _serve_router(config: ServerConfig) -> None:
    async with (
        ClientSession(connector=TCPConnector(limit=0), timeout=NO_TIMEOUT) as session,
        _listening(make_router(config, session), config) as (url, stopped),
    ):
        print(
            f"router of {len(config.prefill)} prefill and {len(config.decode)} decode "
            f"engines at {url}",
            file=sys.stderr,
            flush=True,
        )
        if config.announce:
            print(json.dumps({"ready": True, "url": url}), flush=True)
        await stopped


@asynccontextmanager
async def _listening(
    app: web.Application, config: ServerConfig
) -> AsyncIterator[tuple[str, asyncio.Task[bool]]]:
    """The URL of an app on its port, and a task that ends when it is to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=STOP_SECONDS,
    )
    await server.setup()
    try:
        port = await _listen(server, config)
        if config.announce:
            stop_with_parent(loop, stop.set)
        yield f"http://{config.listen[0]}:{port}", asyncio.create_task(stop.wait())
    finally:
        await server.cleanup()


def make_runner(config: ServerConfig) -> Runner:
    """The engine in real time, counting as its dialect does; needs a running loop."""
    model = served_model(config)
    metrics = VllmMetrics(model) if config.dialect == "vllm" else TgiMetrics()
    engine, fail_every = config.engine, config.fail_every
    sensor = replace(config.sensor, seed=engine.seed)
    return Runner(engine, sensor, metrics, fail_every=fail_every)


def make_app(config: ServerConfig, runner: Runner) -> web.Application:
    """All routes, over one engine."""
    limits = Limits(
        served_model(config),
        config.engine.max_model_tokens,
        config.engine.seed,
        config.role,
    )
    middlewares = [fastapi_errors] if config.dialect == "vllm" else []
    app = web.Application(client_max_size=BODY_BYTES, middlewares=middlewares)
    api: VllmApi | TgiApi
    if config.dialect == "vllm":
        echoes_ids = config.request_id_headers
        api = VllmApi(runner, limits, config.queue_limit, echoes_ids=echoes_ids)
    else:
        api = TgiApi(runner, limits, config.queue_limit)
    app.add_routes(api.routes())
    readings = Readings(config, runner)
    app.add_routes(
        [
            web.get("/dcgm/metrics", readings.dcgm),
            web.get("/simulator/truth", readings.truth),
            web.get("/simulator/state", readings.state),
        ]
    )
    return app


def served_model(config: ServerConfig) -> str:
    """The model id that clients see."""
    return f"simulated-{config.engine.model.name}"


def gpu_name(config: ServerConfig) -> str:
    """The GPU's name as tools see it."""
    return f"SIMULATED {config.engine.gpu.name}"


class Readings:
    """What stands beside the engine's own API."""

    def __init__(self, config: ServerConfig, runner: Runner) -> None:
        self._config = config
        self._runner = runner
        self._uuid = f"GPU-SIMULATED-{uuid.uuid4().hex[:8]}"  # boards have one each

    async def dcgm(self, request: web.Request) -> web.Response:
        """Each GPU's power and counter, as dcgm-exporter writes them."""
        name = gpu_name(self._config)
        readings = [
            *self._runner.readings(),
            *self._runner.idle_readings(self._config.idle_gpus),
        ]
        labels = [
            {
                "gpu": str(index),
                "UUID": f"{self._uuid}-{index}",
                "device": f"nvidia{index}",
                "modelName": name,
                "Hostname": "simulated",
            }
            for index in range(len(readings))
        ]
        power = [
            (own, round(reading.watts, 3))
            for own, reading in zip(labels, readings, strict=True)
        ]
        energy = [
            (own, round(reading.joules * 1000))
            for own, reading in zip(labels, readings, strict=True)
        ]
        page = Page()
        families = [
            page.family("servewatt_simulated", "gauge", 1),
            page.family("DCGM_FI_DEV_POWER_USAGE", "gauge", power),
            page.family("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", energy),
        ]
        board = self._runner.board_reading()
        for field, value in (
            ("SM_CLOCK", round(board.sm_clock_hertz / 1e6)),
            ("MEM_CLOCK", round(board.memory_clock_hertz / 1e6)),
            ("GPU_TEMP", round(board.temperature_celsius)),
            ("CLOCK_THROTTLE_REASONS", board.reason_bits),
            ("POWER_MGMT_LIMIT", board.power_limit_watts),
            ("ECC_SBE_VOL_TOTAL", 0),
            ("ECC_DBE_VOL_TOTAL", 0),
            ("XID_ERRORS", 0),
        ):
            rows = [(own, value) for own in labels]
            families.append(page.family(f"DCGM_FI_DEV_{field}", "gauge", rows))
        return web.Response(text=page.text(families))

    async def truth(self, request: web.Request) -> web.Response:
        """What each finished request really cost, JSON lines, oldest first."""
        lines = msgspec.json.Encoder().encode_lines(self._runner.records)
        return web.Response(body=lines, content_type="application/x-ndjson")

    async def state(self, request: web.Request) -> web.Response:
        """Exact energy so far, and whether the simulation keeps up."""
        runner, engine = self._runner, self._config.engine
        total_joules, gauges = runner.total_joules(), runner.gauges()
        body = {
            "simulated": True,
            "gpu": gpu_name(self._config),
            "n_gpus": engine.n_gpus,
            "model": served_model(self._config),
            "dialect": self._config.dialect,
            "role": self._config.role,
            "idle_watts": engine.idle_watts,
            "total_joules": total_joules,
            "busy_joules": runner.busy_joules,
            "requests_running": gauges.running,
            "requests_waiting": gauges.waiting,
            "lag_seconds": runner.lag_seconds,
        }
        return web.Response(
            body=msgspec.json.encode(body), content_type="application/json"
        )


async def _listen(server: web.AppRunner, config: ServerConfig) -> int:
    host, wanted = config.listen
    site = web.TCPSite(server, host, wanted)
    try:
        await site.start()
    except OSError as error:
        # asyncio's own text repeats the address; resolver errors have negative numbers.
        number = error.errno or 0
        reason = os.strerror(number).lower() if number > 0 else str(error)
        raise LoadgenError(
            f"cannot listen on {host}:{wanted}: {reason}; choose another "
            "address with --listen, port 0 takes any free one"
        ) from None
    port: int = server.addresses[0][1]
    return port


def _say(config: ServerConfig, url: str) -> None:
    engine = config.engine
    print(
        f"{engine.n_gpus} x {gpu_name(config)}, model {served_model(config)}, "
        f"{config.dialect} API at {url}; all of its joules are simulated",
        file=sys.stderr,
        flush=True,
    )
    if config.announce:
        ready = {"ready": True, "url": url, "power_url": f"{url}/dcgm/metrics"}
        ready |= {"truth_url": f"{url}/simulator/truth", "simulated": True}
        print(json.dumps(ready), flush=True)
