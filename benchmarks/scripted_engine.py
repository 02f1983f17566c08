"""A scripted vLLM-style server for benchmarks: fixed delays, known stamps.

    python benchmarks/scripted_engine.py [--first-ms 50] [--gap-ms 10] [--tokens 100]
                                         [--port 0] [--bad-readings]

Prints its port on the first line and ends when its stdin does. Every chat request
gets `tokens` events, the first `first-ms` after the request was read, each as one
HTTP chunk with running usage, as vLLM sends them. `GET /stamps` returns what
really happened, one line per request: id, when it was read, when its first and
last token were written, on the machine's monotonic clock. `GET /dcgm/metrics` shows a
SIMULATED GPU that draws 400 W at all times; with `--bad-readings` each of some
seconds shows nonsense instead. A model whose name begins with `junk-` is a 404. Built
to cost little: both sides of a measurement share two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import cast

import uvloop

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
WATTS = 400
SENSOR = """\
servewatt_simulated 1
DCGM_FI_DEV_POWER_USAGE{{gpu="0",modelName="SIMULATED"}} {watts}
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{gpu="0",modelName="SIMULATED"}} {millijoules}
"""
NONSENSE = (
    ("NaN", "NaN"),
    ("-400", "-5"),
    ("1e12", "{millijoules}"),
    ("9223372036854775794", "9223372036854775794"),
    ("400", "18446744073709551615"),
    ("+Inf", "{millijoules}"),
    ("140737488355328.0", "140737488355328.0"),
    ("watts", "joules"),
    ("400", "1"),
)
"""Watts and millijoules as broken sensors show them; DCGM's blanks among them."""
JUNK = b'"junk-'
NO_MODEL = (
    b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\n"
    b"content-length: 60\r\n\r\n"
    b'{"error": {"message": "model_is_junk", "code": 404}}        '
)
COMMON = (
    '{"id":"chatcmpl-00000000-0000-4000-8000-000000000000",'
    '"object":"chat.completion.chunk","created":1795211693,"model":"scripted",'
)


def chunk(event: str) -> bytes:
    data = f"data: {event}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def token_event(number: int, tokens: int) -> bytes:
    finish = '"length"' if number == tokens else "null"
    usage = f'{{"prompt_tokens":9,"total_tokens":{9 + number},'
    return chunk(
        f'{COMMON}"choices":[{{"index":0,"delta":{{"content":" word"}},'
        f'"logprobs":null,"finish_reason":{finish},"token_ids":null}}],'
        f'"usage":{usage}"completion_tokens":{number}}}}}'
    )


class Script:
    """The replies, encoded once."""

    def __init__(
        self,
        first_seconds: float,
        gap_seconds: float,
        tokens: int,
        *,
        has_bad_readings: bool = False,
    ) -> None:
        self.has_bad_readings = has_bad_readings
        self.first_seconds = first_seconds
        self.gap_seconds = gap_seconds
        role = chunk(
            f'{COMMON}"choices":[{{"index":0,"delta":{{"role":"assistant",'
            '"content":""},"logprobs":null,"finish_reason":null}],'
            '"usage":{"prompt_tokens":9,"total_tokens":9,"completion_tokens":0}}'
        )
        usage = chunk(
            f'{COMMON}"choices":[],"usage":{{"prompt_tokens":9,'
            f'"total_tokens":{9 + tokens},"completion_tokens":{tokens}}}}}'
        )
        self.events = [token_event(n, tokens) for n in range(1, tokens + 1)]
        self.events[0] = HEAD + role + self.events[0]
        self.events[-1] += usage + chunk("[DONE]") + b"0\r\n\r\n"
        self.stamps: list[tuple[str, float, float, float]] = []


class Connection(asyncio.Protocol):
    """One connection: whole requests in, scripted replies out."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.is_lost = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody listens: say no more."""
        self.is_lost = True

    def data_received(self, data: bytes) -> None:
        """Take in requests, without pipelining."""
        read_at = time.monotonic()
        self.buffer += data
        head, mark, rest = self.buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(rest) < int(headers.get(b"content-length", 0)):
            return
        self.buffer = b""
        if JUNK in rest[:100]:
            self.transport.write(NO_MODEL)
            return
        if head.startswith(b"GET"):
            self.answer(head.split(b" ")[1])
            return
        request_id = headers.get(b"x-request-id", b"").decode()
        due = read_at + self.script.first_seconds
        self.later(due, self.speak, request_id, read_at, due, 0.0, 0)

    def later(self, due: float, *call: object) -> None:
        """Call at an instant of the monotonic clock."""
        self.loop.call_later(due - time.monotonic(), *call)  # type: ignore[arg-type]

    def speak(
        self, request_id: str, read_at: float, due: float, first_at: float, number: int
    ) -> None:
        """Write the token that is due, and every one that is late."""
        script = self.script
        if self.is_lost:
            return
        now = time.monotonic()
        first_at = first_at or now
        self.transport.write(script.events[number])
        if number + 1 == len(script.events):
            script.stamps.append((request_id, read_at, first_at, now))
            return
        due += script.gap_seconds
        self.later(due, self.speak, request_id, read_at, due, first_at, number + 1)

    def answer(self, path: bytes) -> None:
        """What else can be asked for."""
        if path == b"/dcgm/metrics":
            body = self.sensor(time.monotonic())
        elif path == b"/stamps":
            body = "".join(json.dumps(line) + "\n" for line in self.script.stamps)
            self.script.stamps.clear()
        else:
            body = '{"object":"list","data":[{"id":"scripted","object":"model"}]}'
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n"
        kind = "content-type: application/json\r\n\r\n"
        self.transport.write((head + kind + body).encode())

    def sensor(self, now: float) -> str:
        """The GPU's page; every fourth second of it may be nonsense."""
        watts, millijoules = str(WATTS), str(int(now * WATTS * 1000))
        second = int(now)
        if self.script.has_bad_readings and second % 4 == 0:
            watts, counter = NONSENSE[second // 4 % len(NONSENSE)]
            millijoules = counter.format(millijoules=millijoules)
        return SENSOR.format(watts=watts, millijoules=millijoules)


async def serve(script: Script, port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(script), "127.0.0.1", port, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    await ended.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first-ms", type=float, default=50)
    parser.add_argument("--gap-ms", type=float, default=10)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bad-readings", action="store_true")
    options = parser.parse_args()
    script = Script(
        options.first_ms / 1000,
        options.gap_ms / 1000,
        options.tokens,
        has_bad_readings=options.bad_readings,
    )
    uvloop.run(serve(script, options.port))


if __name__ == "__main__":
    main()
