"""What the compiled form saves: CPU per read and per token event, without sockets.

    python benchmarks/compiled_cost.py --compiled VENV/bin/python [--rounds 5] [--json]

Both forms take turns, each time in a process of its own: this interpreter with the
`proxy` and `loadgen` that it finds, and the one of an environment that was installed
with SERVEWATT_COMPILE=1. Measured are the parts that are ours: a read taken by the
client's connection and by the relay's, with a transport that goes nowhere, and the
same events parsed afterwards, by the client into tokens and by the relay's beat for a
real meter. The event loop, the kernel and the schedule come on top and are the same
for both (client_honesty.py, relay_cost.py). A figure is the median of the rounds, each
the least of 20.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from loadgen.client.connection import Connection, Response
from loadgen.client.replies import read_in_steps
from loadgen.results.progress import Progress
from proxy.engines import DIALECTS
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.process.build import build_form
from proxy.relay.client.request import ClientRequest
from proxy.relay.config import RelayConfig
from proxy.relay.exchange import Exchange
from proxy.relay.server import RelayServer
from proxy.relay.upstream.connection import UpstreamConnection
from proxy.relay.upstream.upstream import open_upstream

STREAMS, EVENTS, REPEATS = 50, 100, 20
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
DATA = (
    b'data: {"id":"chatcmpl-00000000-0000-4000-8000-000000000000","object":'
    b'"chat.completion.chunk","created":1795211693,"model":"tiny","choices":[{"index":'
    b'0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":null}]}\n\n'
)
READ = b"%x\r\n%s\r\n" % (len(DATA), DATA)
BODY = b'{"model":"tiny","stream":true,"messages":[]}'


class Nowhere(asyncio.Transport):
    """A transport that takes all there is."""

    def write(self, data: Any) -> None:
        """Take it."""

    def abort(self) -> None:
        """Nothing to close."""

    def get_write_buffer_size(self) -> int:
        """Always empty."""
        return 0

    def is_closing(self) -> bool:
        """Never."""
        return False


def microseconds(work: Callable[[], object]) -> float:
    """CPU of one piece of work, by event."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / (STREAMS * EVENTS) * 1e6


async def client() -> tuple[float, float]:
    """A read, and its event parsed after the last one."""
    responses, connections = [], []
    for _ in range(STREAMS):
        connection = Connection(time.monotonic, Progress(), lambda _: None)
        connection.connection_made(Nowhere())
        responses.append(Response())
        connections.append(connection)
    asking = [
        asyncio.ensure_future(connection.perform(b"", response))
        for connection, response in zip(connections, responses, strict=True)
    ]
    await asyncio.sleep(0)
    for connection in connections:
        connection.data_received(HEAD)

    def reads() -> None:
        for _ in range(EVENTS):
            for connection in connections:
                connection.data_received(READ)

    def parse() -> None:
        for response in responses:
            steps = read_in_steps(
                DIALECTS["vllm"], response.status, response.headers,
                response.stamps, response.pieces,
            )  # fmt: skip
            for _ in steps:
                pass

    found = microseconds(reads), microseconds(parse)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    return found


async def relay() -> tuple[float, float]:
    """A read passed on, and the same one parsed on the beat and metered."""
    config = RelayConfig("http://127.0.0.1:1")
    meter = Meter(MeterConfig(has_sensor=False))
    upstream = open_upstream("vllm", config, meter, DIALECTS["vllm"], time.monotonic)
    server = RelayServer(config, [upstream], upstream.counters, time.monotonic)
    core = server._core
    connections = []
    for _ in range(STREAMS):
        connection = UpstreamConnection(time.monotonic, lambda _: None)
        connection.connection_made(Nowhere())
        connection.idle_since_seconds = time.monotonic()
        upstream.pool._idle[connection] = None
        request = ClientRequest(
            b"POST", b"/v1/chat/completions", [], BODY, False, True,
            time.monotonic(),
        )  # fmt: skip
        Exchange(core, request, Nowhere(), lambda _: None).start()
        connection.data_received(HEAD)
        connections.append(connection)
    read_us = parse_us = 0.0

    def reads() -> None:
        for connection in connections:
            connection.data_received(READ)

    def parse() -> None:
        while core.unparsed:
            core.unparsed.popleft().drain()

    for _ in range(EVENTS):
        read_us += microseconds(reads)
        parse_us += microseconds(parse)
    assert upstream.counters.events == STREAMS * EVENTS
    for exchange in list(core.exchanges):
        exchange.stop()
    await asyncio.sleep(0)
    return read_us, parse_us


def measured() -> dict[str, float]:
    """The least of all repeats in this process, by part."""
    found = {}
    for name, work in (("client", client), ("relay", relay)):
        costs = [asyncio.run(work()) for _ in range(REPEATS)]
        found[f"{name}, a read"] = min(read for read, _ in costs)
        found[f"{name}, an event parsed"] = min(parsed for _, parsed in costs)
    return found


def measure_in(python: str) -> tuple[str, dict[str, float]]:
    """The form that another process ran, and its figures."""
    environment = dict(os.environ)
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)  # else the checkout's sources run
    reply = subprocess.run(
        [python, __file__, "--measure"],
        stdout=subprocess.PIPE, check=True, env=environment,
    )  # fmt: skip
    form, found = json.loads(reply.stdout)
    return form, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--compiled", metavar="PYTHON", help="of that environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps([build_form(), measured()]))
        return
    if options.compiled is None:
        parser.error("--compiled PYTHON: an environment with the compiled form")
    rounds: dict[str, list[dict[str, float]]] = {"pure": [], "compiled": []}
    for _ in range(options.rounds):
        for python, expected in (
            (sys.executable, "pure"),
            (options.compiled, "compiled"),
        ):
            form, found = measure_in(python)
            if form != expected:
                parser.error(f"{python} runs the {form} form, expected {expected}")
            rounds[form].append(found)
    costs = {
        form: {name: statistics.median(r[name] for r in found) for name in found[0]}
        for form, found in rounds.items()
    }
    if options.json:
        print(json.dumps(costs))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}\n"
        f"{'us of CPU':26}    pure  compiled  ratio"
    )
    for name, pure in costs["pure"].items():
        compiled = costs["compiled"][name]
        print(f"{name:26}  {pure:6.2f}  {compiled:8.2f}  {compiled / pure:5.2f}")


if __name__ == "__main__":
    main()
