"""CPU per streamed chunk: the relay beside nginx, same run, same engine, same client.

    python benchmarks/relay_cost.py [--rounds 5] [--json]
    python benchmarks/relay_cost.py --scrape [--rounds 30] [--kinds 2]

An engine that only plays a script (own process), nginx from Debian's package with
`proxy_buffering off` (one worker) and the relay with the real meter (own process)
take turns. `relay` meters every event but has no sensor; `relay+books` has one, made
up, at 20 Hz, and settles on its beat: what `metering-proxy serve` does in one process.
`bare pump` passes bytes on over the same event loop and looks at none of them: the
floor of any relay on it.
The client opens N streams, each a chat reply of M events of about 230 bytes, asks for
no usage (so the relay asks, and filters), and counts events. CPU is what the kernel
charged to the process, so the cores may be shared by all. `steady` has one event per
read; `saturated` offers more than one core can pass, so several events share a read.
Time to first byte is taken apart, one request at a time on a warm connection.

`--scrape` asks something else: how much later chunks arrive while Prometheus reads
`/metrics`. A whole `metering-proxy serve` (sensor at 50 Hz, so many kinds of requests,
two of which make a page of more than 1,000 series) relays the steady load, and another
process scrapes it at the start of every other second. The figure is by how much the
time between two chunks of a stream exceeds the engine's 20 ms; the p99 of each second
with a scrape is set against that of the second after, so that what else the machine
does falls on both.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import uvloop

from proxy.engines import DIALECTS
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.metrics.collector import Metrics
from proxy.metrics.samples import EngineSnapshot, Measured, Snapshot
from proxy.power.sampler import SamplerStats
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.server import start_relay
from proxy.serve.app import SWITCH_SECONDS
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading

TARGET_RATIO = 2.5
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"server: uvicorn\r\ntransfer-encoding: chunked\r\n\r\n"
)
DATA = (
    b'data: {"id":"chatcmpl-00000000-0000-4000-8000-000000000000","object":'
    b'"chat.completion.chunk","created":1795211693,"model":"tiny","choices":[{"index":'
    b'0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":null}]}\n\n'
)
USAGE = (
    b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d,'
    b'"total_tokens":%d}}\n\n'
)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


EVENT = framed(DATA)


@dataclass(frozen=True)
class Load:
    """One way of asking: `streams` at once, events `gap_seconds` apart."""

    name: str
    streams: int
    events: int
    gap_seconds: float


LOADS = [
    Load("steady", streams=100, events=150, gap_seconds=0.02),
    Load("saturated", streams=200, events=300, gap_seconds=0.002),
]


# --- the engine: plays what the request asks for ------------------------------


class EngineConnection(asyncio.Protocol):
    """Answers each request with the events and the gap that its body names."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.buffer = b""
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Start a reply once its request is whole."""
        self.buffer += data
        head, mark, body = self.buffer.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if not mark or len(body) < int(length or 0):
            return
        self.buffer = b""
        if not head.startswith(b"POST"):  # a proxy that looks for the engine's gauges
            self.transport.write(b"HTTP/1.1 404 None\r\ncontent-length: 0\r\n\r\n")
            return
        asked = json.loads(body)
        self.transport.write(HEAD)
        self.speak(asked["max_tokens"], asked["gap_seconds"], self.loop.time())

    def speak(self, events: int, gap_seconds: float, due: float) -> None:
        """Write the event that is due, or the end."""
        if events:
            self.transport.write(EVENT)
            due += gap_seconds
            self.loop.call_at(due, self.speak, events - 1, gap_seconds, due)
        else:
            end = framed(USAGE % (1, 10)) + framed(b"data: [DONE]\n\n")
            self.transport.write(end + b"0\r\n\r\n")


async def engine() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EngineConnection, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


# --- the relay, with the real meter -------------------------------------------


async def relay(upstream_port: int, has_sensor: bool) -> None:
    meter = Meter(MeterConfig(has_sensor=has_sensor))
    server = await start_relay(
        RelayConfig(f"http://127.0.0.1:{upstream_port}"), meter, DIALECTS["vllm"]
    )
    print(server.port, flush=True)
    while True:
        now = time.monotonic()
        if has_sensor:
            meter.feed(
                PowerSampled(
                    "gpu", now, (Reading("gpu0", joules=300.0 * now, watts=300.0),)
                )
            )
        meter.settle(now)
        await asyncio.sleep(0.05)


class Pump(asyncio.Protocol):
    """One side of a connection whose bytes go to the other side as they are."""

    def __init__(self, upstream_port: int | None = None) -> None:
        self.upstream_port = upstream_port
        self.other: asyncio.Transport | None = None
        self.waiting = b""
        """What came before the other side was there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the other side, if this is the client's."""
        self.transport = cast(asyncio.Transport, transport)
        if self.upstream_port is not None:
            self.opening = asyncio.ensure_future(self.connect(self.upstream_port))

    async def connect(self, port: int) -> None:
        """The other side, and what was waiting for it."""
        loop = asyncio.get_running_loop()
        self.other, back = await loop.create_connection(Pump, "127.0.0.1", port)
        back.other = self.transport
        self.other.write(self.waiting)

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self.other is None:
            self.waiting += data
        else:
            self.other.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        """End the other side too."""
        if self.other is not None:
            self.other.abort()


async def pump(upstream_port: int) -> None:
    """What the event loop itself costs: a read, a write, and nothing looked at."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Pump(upstream_port), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


# --- the client ---------------------------------------------------------------


class ClientConnection(asyncio.Protocol):
    """One stream: sends its request, counts events, tells when it ended."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.events = 0
        self.sent_at = 0.0
        self.first_at: float | None = None
        self.tail = b""
        self.transport: asyncio.Transport
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        """Send the request, now."""
        self.sent_at = time.perf_counter()
        self.first_at = None
        self.tail = b""
        self.done = asyncio.get_running_loop().create_future()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
        )
        self.transport.write(head % len(self.body) + self.body)

    def data_received(self, data: bytes) -> None:
        """Count events, notice the end."""
        if self.first_at is None:
            self.first_at = time.perf_counter()
        self.events += data.count(b'" word"')
        self.tail = (self.tail + data)[-32:]
        if self.tail.endswith(b"0\r\n\r\n") and b"[DONE]" in self.tail:
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the stream if it was not over."""
        if not self.done.done():
            self.done.set_exception(ConnectionError("a stream was cut"))


C = TypeVar("C", bound="ClientConnection")


class StampedConnection(ClientConnection):
    """One that remembers when each read came."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.stamps: list[float] = []

    def data_received(self, data: bytes) -> None:
        """Stamp first."""
        self.stamps.append(time.perf_counter())
        super().data_received(data)


async def connections(port: int, count: int, body: bytes, kind: type[C]) -> list[C]:
    loop = asyncio.get_running_loop()
    return [
        (await loop.create_connection(lambda: kind(body), "127.0.0.1", port))[1]
        for _ in range(count)
    ]


def body_of(events: int, gap_seconds: float) -> bytes:
    return json.dumps(
        {
            "model": "tiny",
            "stream": True,
            "messages": [{"role": "user", "content": "hello " * 20}],
            "max_tokens": events,
            "gap_seconds": gap_seconds,
        }
    ).encode()


async def drive(port: int, load: Load, kind: type[C]) -> list[C]:
    """Bring `load` through `port`, starts spread over one gap; the clients after it."""
    body = body_of(load.events, load.gap_seconds)
    clients = await connections(port, load.streams, body, kind)
    for client in clients:
        client.ask()
        await asyncio.sleep(load.gap_seconds / load.streams)
    await asyncio.gather(*(client.done for client in clients))
    for client in clients:
        client.transport.abort()
    return clients


async def first_bytes(port: int, requests: int) -> list[float]:
    """Milliseconds to the first byte, one request at a time on a warm connection."""
    (client,) = await connections(port, 1, body_of(1, 0.0), ClientConnection)
    milliseconds = []
    for _ in range(requests):
        await asyncio.sleep(0.004)  # a busy engine's rate, not a race
        client.ask()
        await client.done
        assert client.first_at is not None
        milliseconds.append((client.first_at - client.sent_at) * 1000)
    client.transport.abort()
    return milliseconds[requests // 10 :]  # the first open connections


# --- processes ----------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads, from the scheduler, in nanosecond steps."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((t / "schedstat").read_text().split()[0]) for t in tasks) / 1e9


@contextlib.contextmanager
def child(*arguments: str, stderr: IO[str] | None = None) -> Iterator[tuple[int, int]]:
    """This program in another role: its pid and port."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--role", *arguments],
        stdout=subprocess.PIPE, stderr=stderr,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


NGINX_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server 127.0.0.1:{upstream}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout 1h;
    }}
  }}
}}
"""


@contextlib.contextmanager
def nginx(upstream_port: int) -> Iterator[tuple[int, int]]:
    """nginx in front of the engine: its worker's pid and its port."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = Path(folder, "nginx.conf")
        config.write_text(
            NGINX_CONFIG.format(folder=folder, upstream=upstream_port, port=port)
        )
        process = subprocess.Popen(["nginx", "-p", folder, "-c", str(config)])
        try:
            yield _nginx_worker(process), port
        finally:
            process.terminate()
            process.wait()


def _nginx_worker(master: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{master.pid}/task/{master.pid}/children")
    for _ in range(500):
        if pids := children.read_text().split():
            return int(pids[0])
        time.sleep(0.01)
    raise SystemExit("nginx did not start a worker")


# --- the comparison -----------------------------------------------------------


@dataclass
class Target:
    """What is measured, and its figures by load."""

    name: str
    pid: int
    port: int
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    events_per_second: dict[str, list[float]] = field(default_factory=dict)
    first_ms: list[float] = field(default_factory=list)

    def measure(self, load: Load) -> None:
        """One round of `load` through this target."""
        began, spent = time.perf_counter(), cpu_seconds(self.pid)
        clients = uvloop.run(drive(self.port, load, ClientConnection))
        events = sum(client.events for client in clients)
        time.sleep(0.2)  # what is parsed on the beat belongs to these events
        cost = (cpu_seconds(self.pid) - spent) / events * 1e6
        elapsed = time.perf_counter() - began - 0.2
        if events != load.streams * load.events:
            raise SystemExit(f"{self.name} passed {events} events of {load}")
        self.cpu_us.setdefault(load.name, []).append(cost)
        self.events_per_second.setdefault(load.name, []).append(events / elapsed)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def compare(targets: list[Target], direct_port: int, options: Any) -> dict[str, Any]:
    direct = Target("direct", os.getpid(), direct_port)
    for number in range(options.rounds + 1):
        for load in LOADS:
            for target in targets:
                target.measure(load)
        for target in [direct, *targets]:
            target.first_ms += uvloop.run(first_bytes(target.port, options.requests))
        if number == 0:  # warm-up: caches, connection pools, the page cache
            for target in [direct, *targets]:
                target.cpu_us.clear()
                target.events_per_second.clear()
                target.first_ms.clear()
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} vCPU {_processor()}, Python "
        f"{platform.python_version()}, uvloop {version('uvloop')}",
        "date": time.strftime("%Y-%m-%d"),
        "rounds": options.rounds,
        "event_bytes": len(DATA),
        "loads": {load.name: load.__dict__ for load in LOADS},
        "targets": {},
    }
    for target in [direct, *targets]:
        result["targets"][target.name] = {
            "cpu_us_per_event": {
                name: round(statistics.median(values), 2)
                for name, values in target.cpu_us.items()
            },
            "events_per_second": {
                name: round(statistics.median(values))
                for name, values in target.events_per_second.items()
            },
            "first_byte_ms": {
                "p50": round(percentile(target.first_ms, 0.5), 3),
                "p99": round(percentile(target.first_ms, 0.99), 3),
            },
        }
    return result


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def report(result: dict[str, Any]) -> None:
    print(f"{result['machine']}, {result['date']}, median of {result['rounds']} rounds")
    for name, load in result["loads"].items():
        print(
            f"\n{name}: {load['streams']} streams, {load['events']} events of "
            f"{result['event_bytes']} bytes, every {load['gap_seconds'] * 1000:g} ms"
        )
        base = result["targets"].get("nginx", {}).get("cpu_us_per_event", {}).get(name)
        for target, figures in result["targets"].items():
            if (cost := figures["cpu_us_per_event"].get(name)) is None:
                continue
            ratio = f"{cost / base:5.2f} x nginx" if base else ""
            rate = figures["events_per_second"][name]
            print(f"  {target:12} {cost:7.2f} us CPU/event {rate:8} events/s  {ratio}")
    print("\ntime to first byte, one request at a time")
    direct = result["targets"]["direct"]["first_byte_ms"]
    for target, figures in result["targets"].items():
        p50, p99 = (figures["first_byte_ms"][name] for name in ("p50", "p99"))
        added = f"  added p50 {p50 - direct['p50']:+.3f} p99 {p99 - direct['p99']:+.3f}"
        print(f"  {target:12} p50 {p50:.3f} ms  p99 {p99:.3f} ms{added}")
    print(f"\ntarget: relay at most {TARGET_RATIO} x nginx, steady")


# --- chunks while Prometheus scrapes ------------------------------------------

KINDS = ("conversation", "code", "reasoning", "summarization", "embedding", "other")


def scraper(url: str) -> None:
    """Read `url` at every even second, as Prometheus does; say how long it took."""
    print(0, flush=True)
    wanted = urllib.request.Request(
        url, headers={"accept": "application/openmetrics-text"}
    )
    while True:
        time.sleep(2 - time.perf_counter() % 2)
        began = time.perf_counter()
        with urllib.request.urlopen(wanted) as reply:
            lines = reply.read().splitlines()
        spent = time.perf_counter() - began
        series = sum(not line.startswith(b"#") for line in lines)
        print(f"{series} {spent * 1000:.1f}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def whole_proxy(engine_port: int) -> Iterator[dict[str, str]]:
    """`metering-proxy serve` with a recorded sensor; its addresses."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder, "power.csv")
        rows = (f"{at / 10:.1f},gpu0,{30 * at},300" for at in range(6000))
        recording.write_text("seconds,device,joules,watts\n" + "\n".join(rows) + "\n")
        process = subprocess.Popen(
            [
                sys.executable, "-m", "proxy", "serve", "--announce", "--store", "none",
                "--upstream", f"http://127.0.0.1:{engine_port}",
                "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
                "--power", f"csv={recording}#boundary=gpu",
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()


def fill_classes(url: str, kinds: int) -> None:
    """One request of each of so many kinds: each is a class with some 330 series."""
    for kind in KINDS[:kinds]:
        headers = {"x-servewatt-kind": kind, "content-type": "application/json"}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", body_of(3, 0.0), headers
        )
        with urllib.request.urlopen(request) as reply:
            reply.read()
    time.sleep(3)  # until all of them are settled and on the page


def late_ms(port: int, load: Load) -> dict[int, list[float]]:
    """How much later than the engine's gap each chunk came, by second of the clock."""
    found: dict[int, list[float]] = {}
    for client in uvloop.run(drive(port, load, StampedConnection)):
        for earlier, later in pairwise(client.stamps):
            late = (later - earlier - load.gap_seconds) * 1000
            found.setdefault(int(later), []).append(late)
    return found


def beside_a_renderer(seconds: float = 3.0) -> None:
    """How late a loop wakes up while a thread makes one page after the other.

    A median, so that it holds on a machine that others use; as many chunks wait as
    long as scrapes take of the time.
    """
    engines = [
        EngineSnapshot(
            f"engine-{number}",
            [Measured("gpu", "nvml", Meter().state(), SamplerStats())],
            RelayCounters(),
        )
        for number in range(7)
    ]
    metrics = Metrics()
    metrics.show(Snapshot(engines, RelayCounters()))
    series = sum(b"{" in line for line in metrics.render(True).splitlines())
    ended, pages = threading.Event(), [0.0]

    def work() -> None:
        while not ended.is_set():
            began = time.perf_counter()
            metrics.render(True)
            pages.append(time.perf_counter() - began)

    async def wake_up() -> float:
        late, end = [], time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            await asyncio.sleep(0.001)
            late.append((time.perf_counter() - began - 0.001) * 1000)
        return statistics.median(late)

    sys.setswitchinterval(SWITCH_SECONDS)
    alone = uvloop.run(wake_up())
    thread = threading.Thread(target=work)
    thread.start()
    beside = uvloop.run(wake_up())
    ended.set()
    thread.join()
    page_ms = statistics.median(pages[1:]) * 1000
    print(
        f"a loop wakes up {alone:.2f} ms late, beside a thread that makes pages of "
        f"{series} series ({page_ms:.0f} ms each) {beside:.2f} ms (medians)"
    )


def scrape(engine_port: int, rounds: int, kinds: int) -> None:
    """Pairs of seconds, with a scrape and without; how their percentiles differ."""
    load = replace(LOADS[0], events=int((2 * rounds + 2) / LOADS[0].gap_seconds))
    with whole_proxy(engine_port) as addresses:
        port = int(addresses["url"].rpartition(":")[2])
        fill_classes(addresses["url"], kinds)
        late_ms(port, LOADS[0])  # warm-up
        with tempfile.TemporaryFile("w+") as said:
            with child("scraper", addresses["admin_url"] + "/metrics", stderr=said):
                late = late_ms(port, load)
            said.seek(0)
            scrapes = [line.split() for line in said]
    series = max(int(count) for count, _ in scrapes)
    took = statistics.median(float(ms) for _, ms in scrapes)
    print(f"{len(scrapes)} scrapes of {series} series, median {took:.1f} ms each")
    p99 = {second: percentile(values, 0.99) for second, values in late.items()}
    first, last = min(p99) + 1, max(p99) - 1  # whole seconds only
    pairs = [(p99[at], p99[at + 1]) for at in range(first, last) if at % 2 == 0]
    for name, column in (("with a scrape", 0), ("without", 1)):
        value = statistics.median(pair[column] for pair in pairs)
        print(
            f"  {name:13} p99 of added delay {value:6.2f} ms, median of {len(pairs)} s"
        )
    added = [scraped - alone for scraped, alone in pairs]
    chance = random.Random(1)
    medians = sorted(
        statistics.median(chance.choices(added, k=len(added))) for _ in range(2000)
    )
    print(
        f"  a scrape adds {statistics.median(added):+.2f} ms to the p99 of its second "
        f"(95 %: {medians[50]:+.2f} to {medians[1949]:+.2f}); target: at most 0.1 ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scrape", action="store_true")
    parser.add_argument("--kinds", type=int, default=2)
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, *port = options.role
        if role == "engine":
            uvloop.run(engine())
        elif role == "bare pump":
            uvloop.run(pump(int(port[0])))
        elif role == "scraper":
            scraper(port[0])
        else:
            uvloop.run(relay(int(port[0]), has_sensor=role == "relay+books"))
        return
    with contextlib.ExitStack() as stack:
        _, engine_port = stack.enter_context(child("engine"))
        if options.scrape:
            beside_a_renderer()
            scrape(engine_port, options.rounds, options.kinds)
            return
        targets = []
        if shutil.which("nginx"):
            targets.append(Target("nginx", *stack.enter_context(nginx(engine_port))))
        else:
            print("nginx is not installed (apt install nginx-light): no comparison")
        for name in ("bare pump", "relay", "relay+books"):
            pid_and_port = stack.enter_context(child(name, str(engine_port)))
            targets.append(Target(name, *pid_and_port))
        result = compare(targets, engine_port, options)
    print(json.dumps(result)) if options.json else report(result)


if __name__ == "__main__":
    main()
