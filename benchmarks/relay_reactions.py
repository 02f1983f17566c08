"""How fast the relay reacts: to clients that leave, and to connections that grew old.

    python benchmarks/relay_reactions.py [--tries 200] [--idle-tries 100] [--json]

Client, relay (`start_relay`, with the real meter) and engine are one process on
uvloop and loopback, so the stamps of both ends are one clock's; what the kernel and
the loop need is inside the figures, the network is not. For each of four points of a
reply the client leaves, by FIN or by RST in turn, and the figure is the time from its
leaving to the engine seeing its own connection closed. Then connections idle between
3.8 and 6.5 s before an engine that closes them after 5 s, as uvicorn does, and each is
used again with a POST: it must be answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

from proxy.engines import DIALECTS
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.relay.config import RelayConfig
from proxy.relay.server import start_relay

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
POINTS = {
    "before the head": (b"", True),
    "after the head": (HEAD, True),
    "in the stream": (HEAD + 5 * CHUNK, True),
    "not streamed": (b"", False),
}
ENGINE_IDLE_SECONDS = 5.0
TARGET_MS = 100.0


@dataclass
class Scene:
    """What the engine shall send now, and what it saw."""

    reply: bytes = b""
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    gone_at: float = 0.0


class Engine(asyncio.Protocol):
    """Answers with the scene's bytes; closes a connection that idles too long."""

    def __init__(self, scene: Scene, closes_idle: bool) -> None:
        self.scene = scene
        self.closes_idle = closes_idle
        self.timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Requests here fit in one read."""
        if self.timer is not None:
            self.timer.cancel()
        self.transport.write(self.scene.reply)
        self.scene.asked.set()
        if self.closes_idle:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(ENGINE_IDLE_SECONDS, self.transport.close)

    def connection_lost(self, error: Exception | None) -> None:
        """The other side left."""
        self.scene.gone_at = time.perf_counter()
        self.scene.gone.set()


class Client(asyncio.Protocol):
    """One connection; tells when bytes came."""

    def __init__(self) -> None:
        self.received = b""
        self.arrived = asyncio.Event()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Collect."""
        self.received += data
        self.arrived.set()

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing more will come."""
        self.arrived.set()


def request(is_stream: bool) -> bytes:
    body = json.dumps({"model": "m", "stream": is_stream, "messages": []}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    ) + body


async def connect(port: int) -> Client:
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(Client, "127.0.0.1", port))[1]


async def leaving_ms(scene: Scene, port: int, point: str, by_reset: bool) -> float:
    """From the client's leaving to the engine's connection being closed."""
    scene.reply, is_stream = POINTS[point]
    scene.asked.clear()
    scene.gone.clear()
    client = await connect(port)
    client.transport.write(request(is_stream))
    await scene.asked.wait()
    while len(client.received) < len(scene.reply):
        client.arrived.clear()
        await client.arrived.wait()
    left_at = time.perf_counter()
    client.transport.abort() if by_reset else client.transport.close()
    await scene.gone.wait()
    return (scene.gone_at - left_at) * 1000


async def idle_then_post(port: int, seconds: float) -> bool:
    """Whether a POST after so long is answered; the first one warms the way."""
    client = await connect(port)
    for pause in (0.0, seconds):
        await asyncio.sleep(pause)
        client.received = b""
        client.arrived.clear()
        client.transport.write(request(False))
        await client.arrived.wait()
    client.transport.abort()
    return client.received.startswith(b"HTTP/1.1 200")


async def measure(tries: int, idle_tries: int) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    scene = Scene()
    found: dict[str, Any] = {}
    for closes_idle in (False, True):
        server = await loop.create_server(
            lambda closes=closes_idle: Engine(scene, closes),  # type: ignore[misc]
            "127.0.0.1", 0, backlog=4096,
        )  # fmt: skip
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        meter = Meter(MeterConfig(has_sensor=False))
        relay = await start_relay(RelayConfig(url), meter, DIALECTS["vllm"])
        if closes_idle:
            scene.reply = WHOLE
            step = (6.5 - 3.8) / max(1, idle_tries - 1)
            pauses = [3.8 + number * step for number in range(idle_tries)]
            answers = await asyncio.gather(
                *(idle_then_post(relay.port, seconds) for seconds in pauses)
            )
            found["idle"] = {
                "posts": len(answers),
                "answered": sum(answers),
                "sent_again": relay.counters.upstream_retries,
            }
        else:
            for point in POINTS:
                await leaving_ms(scene, relay.port, point, False)  # warm-up
                found[point] = [
                    await leaving_ms(scene, relay.port, point, number % 2 == 1)
                    for number in range(tries)
                ]
        await relay.close()
        server.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--idle-tries", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = uvloop.run(measure(options.tries, options.idle_tries))
    idle = found.pop("idle")
    result = {
        "machine": f"{os.cpu_count()} vCPU, load {os.getloadavg()[0]:.0f}, "
        f"Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "tries": options.tries,
        "leaving_ms": {
            point: {
                "p50": round(statistics.median(values), 3),
                "p99": round(sorted(values)[int(len(values) * 0.99) - 1], 3),
                "max": round(max(values), 3),
            }
            for point, values in found.items()
        },
        "idle": idle,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['date']}, {result['machine']}; {options.tries} tries of each")
    for point, figures in result["leaving_ms"].items():
        print(
            f"  a client leaves {point:16} the engine knows after p50 "
            f"{figures['p50']:.2f}, p99 {figures['p99']:.2f}, max {figures['max']:.2f} "
            f"ms (target {TARGET_MS:g})"
        )
    print(
        f"  POST after 3.8 to 6.5 s idle: {idle['answered']} of {idle['posts']} "
        f"answered, {idle['sent_again']} sent again"
    )


if __name__ == "__main__":
    main()
