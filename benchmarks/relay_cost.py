"""What the relay costs beside nginx and HAProxy: same run, same engine, same client.

    python -m benchmarks.relay_cost [--rounds 5] [--json]
    python -m benchmarks.relay_cost --scrape [--rounds 30] [--kinds 2]

An engine that only plays a script, nginx, HAProxy (`benchmarks/reverse_proxies.py`)
and the relay with the real meter, each in a process of its own, take turns. `relay`
meters every event but has no sensor; `relay+books` has one, made up, at 20 Hz, and
settles on its beat: what `metering-proxy serve` does in one process. `bare pump` passes
bytes on over the same event loop and looks at none of them: the floor of any relay on
it. `+tls` is the same with TLS 1.3 towards the client.
The client opens N streams, each a chat reply of M events of about 230 bytes, asks for
no usage (so the relay asks, and filters), and counts events. CPU is what the kernel
charged to the process, so cores may be shared: while streams ran, and, apart,
while connections were opened. `steady` has one event per read; `saturated` offers more
than one core can pass, so several events share a read.
Each event carries the instant at which the engine wrote it, so its delay is known; what
`direct` has of it is the client's and the kernel's own. Time to first byte is taken
apart, one request at a time on a warm connection.

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
import re
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import uvloop

from benchmarks.reverse_proxies import INSTALLED, certificate
from proxy.engines import DIALECTS
from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.metrics.collector import Metrics
from proxy.metrics.samples import EngineSnapshot, Measured, Snapshot
from proxy.power.sampler import SamplerStats
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters
from proxy.relay.server import start_relay
from proxy.security.tls import ServerTls
from proxy.serve.app import SWITCH_SECONDS
from proxy.wire.events import PowerSampled
from proxy.wire.facts import Reading

TARGET_RATIO = 1.5
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"server: uvicorn\r\ntransfer-encoding: chunked\r\n\r\n"
)
DATA = (
    b'data: {"id":"chatcmpl-00000000-0000-4000-8000-000000000000","object":'
    b'"chat.completion.chunk","created":%d,"model":"tiny","choices":[{"index":'
    b'0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":null}]}\n\n'
)
USAGE = (
    b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d,'
    b'"total_tokens":%d}}\n\n'
)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


EVENT_BYTES = len(DATA % 10**9)
EVENT = b"%x\r\n%s\r\n" % (EVENT_BYTES, DATA)
WRITTEN = re.compile(rb'"created":(\d{10})')


def microseconds() -> int:
    """Of a clock that all processes share, from 1e9 to 2e9: always ten digits."""
    return 10**9 + time.perf_counter_ns() // 1000 % 10**9


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
            self.transport.write(EVENT % microseconds())
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


async def relay(upstream_port: int, has_sensor: bool, tls: ServerTls) -> None:
    meter = Meter(MeterConfig(has_sensor=has_sensor))
    config = RelayConfig(f"http://127.0.0.1:{upstream_port}", identity=tls.identity())
    server = await start_relay(config, meter, DIALECTS["vllm"])
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


class DelayedConnection(ClientConnection):
    """One that remembers how long each event took since the engine wrote it."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.delays_ms: list[float] = []

    def data_received(self, data: bytes) -> None:
        """Stamp first."""
        now = microseconds()
        for written in WRITTEN.findall(data):
            self.delays_ms.append((now - int(written)) % 10**9 / 1000)
        super().data_received(data)


class StampedConnection(ClientConnection):
    """One that remembers when each read came."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.stamps: list[float] = []

    def data_received(self, data: bytes) -> None:
        """Stamp first."""
        self.stamps.append(time.perf_counter())
        super().data_received(data)


async def connections(
    port: int, count: int, body: bytes, kind: type[C], tls: ssl.SSLContext | None = None
) -> list[C]:
    loop = asyncio.get_running_loop()
    opened = []
    for _ in range(count):
        _, client = await loop.create_connection(
            lambda: kind(body), "127.0.0.1", port, ssl=tls
        )
        opened.append(client)
    return opened


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


async def drive(
    port: int,
    load: Load,
    kind: type[C],
    tls: ssl.SSLContext | None = None,
    on_open: Callable[[], None] = lambda: None,
) -> list[C]:
    """Bring `load` through `port`, starts spread over one gap; the clients after it.

    `on_open` is called once all connections are open, before the first request.
    """
    body = body_of(load.events, load.gap_seconds)
    clients = await connections(port, load.streams, body, kind, tls)
    on_open()
    for client in clients:
        client.ask()
        await asyncio.sleep(load.gap_seconds / load.streams)
    await asyncio.gather(*(client.done for client in clients))
    for client in clients:
        client.transport.abort()
    return clients


async def first_bytes(
    port: int, requests: int, tls: ssl.SSLContext | None = None
) -> list[float]:
    """Milliseconds to the first byte, one request at a time on a warm connection."""
    (client,) = await connections(port, 1, body_of(1, 0.0), ClientConnection, tls)
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
        [sys.executable, "-m", "benchmarks.relay_cost", "--role", *arguments],
        stdout=subprocess.PIPE, stderr=stderr,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()


# --- the comparison -----------------------------------------------------------


@dataclass
class Target:
    """What is measured, and its figures by load."""

    name: str
    pid: int
    port: int
    tls: ssl.SSLContext | None = None
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    events_per_second: dict[str, list[float]] = field(default_factory=dict)
    handshake_us: list[float] = field(default_factory=list)
    delays_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)

    def measure(self, load: Load) -> None:
        """One round of `load` through this target."""
        marks = [(time.perf_counter(), cpu_seconds(self.pid))]

        def mark() -> None:
            marks.append((time.perf_counter(), cpu_seconds(self.pid)))

        clients = uvloop.run(drive(self.port, load, ClientConnection, self.tls, mark))
        ended = time.perf_counter()
        events = sum(client.events for client in clients)
        time.sleep(0.2)  # what is parsed on the beat belongs to these events
        mark()
        if events != load.streams * load.events:
            raise SystemExit(f"{self.name} passed {events} events of {load}")
        (_, before), (began, opened), (_, after) = marks
        self.cpu_us.setdefault(load.name, []).append((after - opened) / events * 1e6)
        self.events_per_second.setdefault(load.name, []).append(
            events / (ended - began)
        )
        self.handshake_us.append((opened - before) / load.streams * 1e6)

    def measure_latency(self, requests: int) -> None:
        """One round of delays of events, and of first bytes one by one."""
        load = replace(LOADS[0], events=50)
        for client in uvloop.run(drive(self.port, load, DelayedConnection, self.tls)):
            self.delays_ms += client.delays_ms
        self.first_ms += uvloop.run(first_bytes(self.port, requests, self.tls))

    def forget(self) -> None:
        """Drop what the warm-up measured."""
        for figures in (self.cpu_us, self.events_per_second):
            figures.clear()
        for values in (self.handshake_us, self.delays_ms, self.first_ms):
            values.clear()

    def figures(self) -> dict[str, Any]:
        """Medians over the rounds; percentiles over all events and requests."""

        def medians(figures: dict[str, list[float]], digits: int) -> dict[str, float]:
            return {
                name: round(statistics.median(values), digits)
                for name, values in figures.items()
            }

        def percentiles(values: list[float]) -> dict[str, float]:
            return {
                "p50": round(percentile(values, 0.5), 3),
                "p99": round(percentile(values, 0.99), 3),
            }

        return {
            "cpu_us_per_event": medians(self.cpu_us, 2),
            "events_per_second": medians(self.events_per_second, 0),
            "cpu_us_per_connection": round(statistics.median(self.handshake_us), 1)
            if self.handshake_us
            else None,
            "event_delay_ms": percentiles(self.delays_ms),
            "first_byte_ms": percentiles(self.first_ms),
        }


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def compare(targets: list[Target], direct_port: int, options: Any) -> dict[str, Any]:
    everything = [Target("direct", os.getpid(), direct_port), *targets]
    for number in range(options.rounds + 1):
        for target in targets:
            for load in LOADS[:1] if target.tls else LOADS:
                target.measure(load)
        for target in everything:
            target.measure_latency(options.requests)
        if number == 0:  # caches, connection pools, the page cache
            for target in everything:
                target.forget()
    return {
        "machine": f"{os.cpu_count()} vCPU {_processor()}, Python "
        f"{platform.python_version()}, uvloop {version('uvloop')}",
        "date": time.strftime("%Y-%m-%d"),
        "rounds": options.rounds,
        "event_bytes": EVENT_BYTES,
        "loads": {load.name: load.__dict__ for load in LOADS},
        "targets": {target.name: target.figures() for target in everything},
    }


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
            print(f"  {target:15} {cost:7.2f} us CPU/event {rate:8.0f} /s  {ratio}")
    for key, what in (
        ("event_delay_ms", "from the engine's write of an event to its read, steady"),
        ("first_byte_ms", "time to first byte, one request at a time"),
    ):
        print(f"\n{what}")
        direct = result["targets"]["direct"][key]
        for target, figures in result["targets"].items():
            p50, p99 = (figures[key][name] for name in ("p50", "p99"))
            print(
                f"  {target:15} p50 {p50:.3f} ms  p99 {p99:.3f} ms"
                f"  added p50 {p50 - direct['p50']:+.3f} p99 {p99 - direct['p99']:+.3f}"
            )
    print("\na new connection, the handshake included")
    for target, figures in result["targets"].items():
        if (cost := figures["cpu_us_per_connection"]) is not None:
            print(f"  {target:15} {cost:7.1f} us CPU")
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
def whole_proxy(
    engine_port: int, *options: str
) -> Iterator[tuple[int, int, dict[str, str]]]:
    """`metering-proxy serve` with a recorded sensor: its pid, port and addresses."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder, "power.csv")
        rows = (f"{at / 10:.1f},gpu0,{30 * at},300" for at in range(12000))
        recording.write_text("seconds,device,joules,watts\n" + "\n".join(rows) + "\n")
        process = subprocess.Popen(
            [
                sys.executable, "-m", "proxy", "serve", "--announce", "--store", "none",
                "--upstream", f"http://127.0.0.1:{engine_port}",
                "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
                "--power", f"csv={recording}#boundary=gpu", *options,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            addresses = json.loads(process.stdout.readline())
            port = int(addresses["url"].rpartition(":")[2])
            yield process.pid, port, addresses
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
    with whole_proxy(engine_port) as (_, port, addresses):
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
        role, *values = options.role
        if role == "engine":
            uvloop.run(engine())
        elif role == "bare pump":
            uvloop.run(pump(int(values[0])))
        elif role == "scraper":
            scraper(values[0])
        else:
            has_sensor = role == "relay+books"
            uvloop.run(relay(int(values[0]), has_sensor, ServerTls(*values[1:])))
        return
    with contextlib.ExitStack() as stack:
        _, engine_port = stack.enter_context(child("engine"))
        if options.scrape:
            beside_a_renderer()
            scrape(engine_port, options.rounds, options.kinds)
            return
        made = certificate(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        trusts = ssl.create_default_context(cafile=str(made.cert))
        targets = []
        if not INSTALLED:
            print("neither nginx nor HAProxy is installed: no comparison")
        for name, start in INSTALLED.items():
            plain, encrypted = start(engine_port), start(engine_port, made)
            targets.append(Target(name, *stack.enter_context(plain)))
            targets.append(
                Target(f"{name}+tls", *stack.enter_context(encrypted), trusts)
            )
        port = str(engine_port)
        for name in ("bare pump", "relay", "relay+books"):
            targets.append(Target(name, *stack.enter_context(child(name, port))))
        encrypted = child("relay+books", port, str(made.cert), str(made.key))
        targets.append(
            Target("relay+books+tls", *stack.enter_context(encrypted), trusts)
        )
        result = compare(targets, engine_port, options)
    print(json.dumps(result)) if options.json else report(result)


if __name__ == "__main__":
    main()
