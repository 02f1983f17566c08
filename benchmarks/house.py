"""What the structure of the two packages costs who reads, changes or runs them.

    python -m benchmarks.house [--only FIGURE ...] [--periods S ...] [--json]

Every figure is defined here and nowhere else, so that it can be taken before and after
files move; only `What this program knows of the inside`, below, follows a move. A
module is a source file of `proxy` or `loadgen`. It is *entered* when a function that
is written in it runs; methods that `dataclass` generates and whatever an import runs
do not count.

`request`: one streamed request of 40 tokens through `metering-proxy serve` before
`loadgen simulate`, over loopback; the proxy runs in the watching process, the engine in
another, and both are ready before the watch begins.
Watched from the client's connect until the record is settled; without store and
engine metrics.
- relay: modules entered below what the event loop calls only when a client is there,
  that is, below a function (of the project, the outermost of its stack) that was
  never seen at the bottom of a stack in three idle seconds before.
- with settlement: those, and modules entered below the meter's `settle`.
- joules: modules entered on the sensor's thread, below the meter's taking of a
  reading, and below its `settle`: from the sensor to a request's joules.
`trace`: modules entered by `loadgen replay traces/sharegpt.jsonl --num-prompts 1 --url`
from the first opening of the trace file until a server has read the first line of the
first POST. No meter, no live view.
`loose`: source files that lie directly in `proxy`, `loadgen` and `proxy/relay`, without
`cli`, `errors` and dunders.
`files`: source files; those that exactly one other source file imports; both with
dunders, by the `import` statements anywhere in a file (`from package import module` is
an import of the module).
`classes`: names of classes at the top level of two modules or more.
`lines`: lines of source files.
`meter`: CPU of the meter by token event, in microseconds, with one, two and three
boundaries: 64 streams, each a token per 10 ms and 200 tokens long, counters read every
20 ms, windows of 0.5 s, a beat per 50 ms; virtual time. Everything is in it: openings,
readings, settlement, closings. Best of `--repeats` runs.
`stop`: records lost at stop, by how often the sensor's counter changes. A proxy with a
SQLite store and a dcgm-exporter that changes once per period; when it is ready, one
request; SIGTERM as soon as the reply has ended; then its row is looked for. Lost is a
record without a row, or without joules; which of the two is said. Idle watts are given,
and ready is `/readyz`, at the latest after eight periods and five seconds. The sensor
is read five times a period, at most 50 and at least 10 times a second. All periods run
at once.
"""

from __future__ import annotations

import argparse
import ast
import http.client
import importlib
import io
import json
import math
import os
import platform
import re
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from urllib.parse import urlsplit

from proxy.meter.config import MeterConfig

# --- What this program knows of the inside: follows when files move -----------
from proxy.meter.meter import Meter
from proxy.wire.events import (
    PowerSampled,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)
from proxy.wire.facts import Labels, Reading, RequestFacts, Update, Usage

TAKES_READING = Meter._sample.__code__
SETTLES = Meter.settle.__code__


class Fed:
    """A meter of several boundaries, as the relay, the sensors and the beat feed it."""

    def __init__(self, boundaries: Sequence[str], output_tokens: int) -> None:
        self.meter = Meter(
            MeterConfig(
                boundaries=tuple(boundaries), idle_watts=80.0, window_seconds=0.5
            )
        )
        self._facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
        self._labels = Labels()
        self._updates = [
            (Update(carries_token=True, usage=Usage(200, count)),)
            for count in range(output_tokens + 1)
        ]

    def open(self, key: int, at_seconds: float) -> None:
        """A request was forwarded."""
        self.meter.feed(
            RequestOpened(key, at_seconds, f"r{key}", self._facts, self._labels)
        )

    def token(self, key: int, at_seconds: float, count: int) -> None:
        """Its token number `count` arrived."""
        self.meter.feed(TokensReceived(key, at_seconds, self._updates[count]))

    def close(self, key: int, at_seconds: float) -> None:
        """Its reply ended."""
        self.meter.feed(RequestClosed(key, at_seconds, "ok", 200))

    def read(self, boundary: str, at_seconds: float, joules: float) -> None:
        """The counter of a boundary was read."""
        readings = (Reading("gpu0", joules, 400.0),)
        self.meter.feed(PowerSampled(boundary, at_seconds, readings))

    def settle(self, now_seconds: float) -> int:
        """A beat; how many records are now final."""
        return len(self.meter.settle(now_seconds))


# ------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("proxy", "loadgen")
LOOSE = ("proxy", "loadgen", "proxy/relay")
PERIODS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BOUNDARIES = ("gpu", "host", "node")
TRACE = ROOT / "traces" / "sharegpt.jsonl"
IDLE_SECONDS = 3.0
PATIENCE_SECONDS = 60.0
"""For what takes seconds; a proxy that stops may wait for its meter."""
REQUEST_ID = "house-1"


# --- the source as text -------------------------------------------------------


def source_files(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Every module of the packages by its dotted name, in order."""
    found: dict[str, Path] = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """By module, which of the others its import statements name."""
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = _origin(node, package)
                for alias in node.names:
                    module = f"{origin}.{alias.name}"
                    named.add(module if module in files else origin)
        found[name] = {other for other in named if other in files and other != name}
    return found


def _origin(node: ast.ImportFrom, package: str) -> str:
    """The module that a `from` statement names, relative ones made absolute."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def imported_once(files: Mapping[str, Path]) -> list[str]:
    """Modules that exactly one other imports."""
    importers: dict[str, int] = defaultdict(int)
    for named in imports(files).values():
        for name in named:
            importers[name] += 1
    return sorted(name for name, count in importers.items() if count == 1)


def loose_files(folder: Path) -> list[str]:
    """Files directly in a package that no room holds."""
    return sorted(
        path.name
        for path in folder.glob("*.py")
        if path.stem not in {"cli", "errors"} and not path.name.startswith("__")
    )


def shared_class_names(files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Names that mean two classes or more, with the modules of each."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, path in files.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return {name: where for name, where in sorted(found.items()) if len(where) > 1}


def count_lines(files: Mapping[str, Path]) -> int:
    """All lines, blank ones and comments included."""
    return sum(len(path.read_text().splitlines()) for path in files.values())


# --- which modules are entered ------------------------------------------------

LOOPS = {"asyncio.runners", "asyncio.base_events", "asyncio.events", "uvloop"}
"""What calls a callback or a task: a stack begins above it."""
LIBRARY = sysconfig.get_path("stdlib")
SITE = sysconfig.get_path("purelib")


@dataclass(frozen=True, slots=True)
class Entry:
    """A function of the project ran: where it is written, and who called it first."""

    module: str
    bottom: str
    """Outermost function of the stack that is not of the standard library."""
    is_project: bool
    """Whether that one is the project's: a server or client library is not."""
    is_main_thread: bool
    below: frozenset[str]
    """Which of the marked functions are on the stack."""


class Watch:
    """A profile function for every thread; notes entries while `is_on`."""

    def __init__(
        self,
        packages: Iterable[str] = PACKAGES,
        marks: Mapping[CodeType, str] | None = None,
    ) -> None:
        self.packages = frozenset(packages)
        self.is_on = False
        self.entries: set[Entry] = set()
        self.marks = dict(marks or {})

    def start(self) -> None:
        """Watch this thread and those that begin from now on."""
        threading.setprofile(self)
        sys.setprofile(self)

    def stop(self) -> None:
        """Watch no more."""
        self.is_on = False
        sys.setprofile(None)
        threading.setprofile(None)

    def take(self) -> set[Entry]:
        """What was entered since the last time."""
        taken, self.entries = self.entries, set()
        return taken

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """A function was called or resumed."""
        if not self.is_on or event != "call":
            return
        code = frame.f_code
        module = str(frame.f_globals.get("__name__", ""))
        if not self._is_project(module):
            return
        if code.co_filename.startswith("<"):
            return
        bottom = frame
        below: set[str] = set()
        current: FrameType | None = frame
        while current is not None:
            name = str(current.f_globals.get("__name__", ""))
            if name in LOOPS:
                break
            if self._is_project(name) and not current.f_code.co_flags & CO_OPTIMIZED:
                return  # a module is being imported, or a class made
            if current.f_code in self.marks:
                below.add(self.marks[current.f_code])
            if not _is_library(current.f_code.co_filename):
                bottom = current
            current = current.f_back
        where = str(bottom.f_globals.get("__name__", ""))
        self.entries.add(
            Entry(
                module,
                f"{where}.{bottom.f_code.co_qualname}",
                self._is_project(where),
                threading.current_thread() is threading.main_thread(),
                frozenset(below),
            )
        )

    def _is_project(self, module: str) -> bool:
        return module.partition(".")[0] in self.packages


def _is_library(file_name: str) -> bool:
    if file_name.startswith("<"):
        return True
    return file_name.startswith(LIBRARY) and not file_name.startswith(SITE)


def modules_of(entries: Iterable[Entry]) -> list[str]:
    """The distinct modules, in order."""
    return sorted({entry.module for entry in entries})


# --- processes ----------------------------------------------------------------


def command(name: str) -> Callable[[], None]:
    """The function behind a console script, as pyproject.toml names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"][name].partition(":")
    found: Callable[[], None] = getattr(importlib.import_module(module), function)
    return found


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@contextmanager
def announced(
    *arguments: str,
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`python -m ... --announce`, and what it announced; it ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--announce"], cwd=ROOT, text=True,
        env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(arguments)} did not start")
        yield process, json.loads(line)
    finally:
        process.stdin.close()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()


def engine_arguments() -> tuple[str, ...]:
    """A simulated engine at any free port."""
    return ("loadgen", "simulate", "--listen", "127.0.0.1:0")


def proxy_arguments(upstream: str, power: str, store: str) -> list[str]:
    """A metering proxy at any free ports."""
    return [
        "serve", "--upstream", upstream, "--power", power, "--store", store,
        "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        "--engine-metrics", "none",
    ]  # fmt: skip


def ask(
    url: str, path: str, body: Mapping[str, Any] | None = None, **headers: str
) -> tuple[int, bytes]:
    """One request on a connection of its own; returns when the reply has ended."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    client = http.client.HTTPConnection(
        parts.hostname, parts.port, timeout=PATIENCE_SECONDS
    )
    try:
        if body is None:
            client.request("GET", path)
        else:
            client.request("POST", path, json.dumps(body), headers)
        reply = client.getresponse()
        return reply.status, reply.read()
    finally:
        client.close()


def wait_until(claim: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    """Poll; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def stream_one(url: str, model: str, tokens: int) -> None:
    """A streamed chat request, read to its end. Raises RuntimeError if it failed."""
    body = {
        "model": model, "stream": True, "max_tokens": tokens, "ignore_eos": True,
        "messages": [{"role": "user", "content": "how warm is a house"}],
    }  # fmt: skip
    headers = {"content-type": "application/json", "x-request-id": REQUEST_ID}
    status, reply = ask(url, "/v1/chat/completions", body, **headers)
    if status != 200 or b"[DONE]" not in reply:
        raise RuntimeError(f"the request failed: {status} {reply[:200]!r}")


def model_of(engine_url: str) -> str:
    """The engine's only model."""
    listed = json.loads(ask(engine_url, "/v1/models")[1])
    return str(listed["data"][0]["id"])


# --- figure: request ----------------------------------------------------------


class _Announcement(io.StringIO):
    """Standard output of a command run inside this process."""

    def __init__(self) -> None:
        super().__init__()
        self.is_here = threading.Event()
        self.fields: dict[str, Any] = {}

    def write(self, text: str) -> int:
        """Keep the line that says where the command serves."""
        if text.startswith("{"):
            self.fields = json.loads(text)
            self.is_here.set()
        return len(text)


def watch_request() -> dict[str, list[str]]:
    """A proxy in this process, one request through it; modules by figure."""
    watch = Watch(marks={TAKES_READING: "reads", SETTLES: "settles"})
    output = _Announcement()
    found: dict[str, list[str]] = {}
    failures: list[BaseException] = []

    def drive(engine_url: str) -> None:
        try:
            if not output.is_here.wait(PATIENCE_SECONDS):
                raise RuntimeError("the proxy did not start")
            found.update(_modules_by_figure(watch, engine_url, output.fields))
        except BaseException as error:  # handed to the main thread below
            failures.append(error)
        finally:
            watch.is_on = False
            os.kill(os.getpid(), signal.SIGTERM)

    with announced(*engine_arguments()) as (_, engine):
        power = f"dcgm={engine['power_url']}"
        arguments = proxy_arguments(engine["url"], power, "none")
        driver = threading.Thread(target=drive, args=(engine["url"],))
        driver.start()
        _run_command(watch, "metering-proxy", [*arguments, "--announce"], output)
        driver.join()
    if failures:
        raise failures[0]
    return found


def _modules_by_figure(
    watch: Watch, engine_url: str, proxy: Mapping[str, Any]
) -> dict[str, list[str]]:
    admin = str(proxy["admin_url"])
    model = model_of(engine_url)
    if not wait_until(partial(_is_ready, admin)):
        raise RuntimeError("the proxy never was ready")
    watch.is_on = True
    time.sleep(IDLE_SECONDS)
    idle = {entry.bottom for entry in watch.take()}
    stream_one(str(proxy["url"]), model, tokens=40)
    if not wait_until(lambda: ask(admin, f"/requests/{REQUEST_ID}")[0] == 200):
        raise RuntimeError("the request never was settled")
    watch.is_on = False
    return by_figure(watch.take(), idle)


def by_figure(entries: set[Entry], idle: set[str]) -> dict[str, list[str]]:
    """The three figures of `request`; `idle` are the bottoms seen before."""
    ours = [entry for entry in entries if entry.is_project]
    relay = [e for e in ours if e.is_main_thread and e.bottom not in idle]
    settlement = [e for e in ours if "settles" in e.below]
    sensor = [
        e
        for e in ours
        if not e.is_main_thread or ("reads" in e.below and e.bottom in idle)
    ]
    return {
        "relay": modules_of(relay),
        "settled": modules_of([*relay, *settlement]),
        "joules": modules_of([*sensor, *settlement]),
    }


def _run_command(
    watch: Watch, name: str, arguments: Sequence[str], output: io.StringIO
) -> None:
    """A console script in this process, to its end, with this thread watched."""
    main = command(name)
    arguments_before, output_before = sys.argv, sys.stdout
    sys.argv, sys.stdout = [name, *arguments], output
    watch.start()
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{name} ended with code {end.code}") from None
    finally:
        watch.stop()
        sys.argv, sys.stdout = arguments_before, output_before


# --- figure: trace ------------------------------------------------------------


class _Answerer(BaseHTTPRequestHandler):
    """A server of one model and one token; the first POST ends the watch."""

    protocol_version = "HTTP/1.1"
    watch: Watch

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The models."""
        self._reply("application/json", b'{"object":"list","data":[{"id":"m"}]}')

    def do_POST(self) -> None:
        """A stream of one token."""
        self.watch.is_on = False
        self.rfile.read(int(self.headers["content-length"]))
        choice = b'{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}'
        event = b'data: {"id":"x","choices":[%s]}\n\ndata: [DONE]\n\n' % choice
        self._reply("text/event-stream", event)

    def _reply(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def watch_trace() -> list[str]:
    """`loadgen replay` in this process; modules from the trace to the first request."""
    watch = Watch()
    is_begun = False

    def on_open(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal is_begun
        if event == "open" and str(arguments[0]) == str(TRACE) and not is_begun:
            is_begun = watch.is_on = True

    sys.addaudithook(on_open)
    answerer = type("Answerer", (_Answerer,), {"watch": watch})
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), answerer) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        arguments = [
            "replay", str(TRACE), "--num-prompts", "1", "--rate", "4",
            "--url", url, "--quiet", "--out", f"{folder}/run",
        ]  # fmt: skip
        _run_command(watch, "loadgen", arguments, io.StringIO())
        server.shutdown()
    return modules_of(watch.take())


def inside(figure: str) -> Any:
    """A watch in a process of its own, so that nothing else is in it."""
    ours, theirs = os.pipe()  # a proxy stops when its standard input ends
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.house", "--inside", figure], cwd=ROOT,
            env=_environment(), stdin=ours, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(theirs)
    if done.returncode:
        raise RuntimeError(f"{figure}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# --- figure: meter ------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Streams in steady state."""

    seconds: float = 20.0
    streams: int = 64
    output_tokens: int = 200
    token_seconds: float = 0.01
    sample_seconds: float = 0.02
    beat_seconds: float = 0.05


def microseconds_per_event(boundaries: Sequence[str], load: Load) -> float:
    """CPU by token event. Raises RuntimeError where nothing was settled."""
    fed = Fed(boundaries, load.output_tokens)
    # as far apart as can be: openings and closings are spread over time
    counts = {
        key: 1 + key * load.output_tokens // load.streams for key in range(load.streams)
    }
    keys, records, events = load.streams, 0, 0
    ticks = round(load.seconds / load.token_seconds)
    per_sample = round(load.sample_seconds / load.token_seconds)
    per_beat = round(load.beat_seconds / load.token_seconds)
    began = time.process_time()
    for key in counts:
        fed.open(key, 0.0)
    for tick in range(1, ticks + 1):
        at = tick * load.token_seconds
        if tick % per_sample == 0:
            for boundary in boundaries:
                fed.read(boundary, at - 0.001, 400.0 * (at - 0.001))
        for key, count in list(counts.items()):
            fed.token(key, at, count)
            counts[key] = count + 1
            if count == load.output_tokens:
                fed.close(key, at)
                del counts[key]
                fed.open(keys, at)
                counts[keys] = 1
                keys += 1
        events += load.streams
        if tick % per_beat == 0:
            records += fed.settle(at)
    took = time.process_time() - began
    if not records:
        raise RuntimeError(f"nothing was settled in {load.seconds:g} s")
    return took / events * 1e6


def meter_costs(load: Load, repeats: int) -> list[float]:
    """Least of several runs, by number of boundaries; runs take turns."""
    best = [math.inf] * len(BOUNDARIES)
    for _ in range(repeats):
        for index in range(len(BOUNDARIES)):
            cost = microseconds_per_event(BOUNDARIES[: index + 1], load)
            best[index] = min(best[index], cost)
    return best


# --- figure: stop -------------------------------------------------------------


class _Exporter(BaseHTTPRequestHandler):
    """A dcgm-exporter of one GPU whose figures change once per period."""

    protocol_version = "HTTP/1.1"
    period_seconds: float

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """The page."""
        updates = math.floor(time.monotonic() / self.period_seconds)
        body = (
            'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0"} '
            f"{round(updates * self.period_seconds * 400_000)}\n"
            'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 400\n'
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@dataclass(frozen=True, slots=True)
class Stopped:
    """What was left of one request after a stop right at its end."""

    period_seconds: float
    has_row: bool
    has_joules: bool
    was_ready: bool
    stop_seconds: float | None
    """From SIGTERM to the end of the process; None where it had to be killed."""

    @property
    def outcome(self) -> str:
        """In words."""
        lost = "0 of 1 lost"
        if not self.has_joules:
            kept = "its row kept without joules" if self.has_row else "no row"
            lost = f"1 of 1 lost ({kept})"
        if self.stop_seconds is None:
            lost += ", had to be killed"
        else:
            lost += f", stopped in {self.stop_seconds:.1f} s"
        return lost if self.was_ready else f"{lost}, never was ready"


def stop_after_one(period_seconds: float, engine_url: str, folder: Path) -> Stopped:
    """A proxy, one request, SIGTERM at the end of its reply."""
    page = type("Exporter", (_Exporter,), {"period_seconds": period_seconds})
    store = folder / f"{period_seconds:g}.sqlite"
    with ThreadingHTTPServer(("127.0.0.1", 0), page) as exporter:
        threading.Thread(target=exporter.serve_forever, daemon=True).start()
        power = f"dcgm=http://127.0.0.1:{exporter.server_port}/metrics"
        arguments = [
            *proxy_arguments(engine_url, power, f"sqlite:///{store}"),
            "--sample-interval", str(min(max(period_seconds / 5, 0.02), 0.1)),
            "--idle-watts", "80",
        ]  # fmt: skip
        with announced("proxy", *arguments) as (process, proxy):
            was_ready = wait_until(
                partial(_is_ready, str(proxy["admin_url"])), 8 * period_seconds + 5
            )
            stream_one(str(proxy["url"]), model_of(engine_url), tokens=20)
            process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            try:
                process.wait(PATIENCE_SECONDS + 12 * period_seconds)
                took: float | None = time.monotonic() - began
            except subprocess.TimeoutExpired:
                process.kill()
                took = None
        exporter.shutdown()
    rows = stored_joules(store, REQUEST_ID)
    has_joules = any(joules is not None for joules in rows)
    return Stopped(period_seconds, bool(rows), has_joules, was_ready, took)


def _is_ready(admin_url: str) -> bool:
    return ask(admin_url, "/readyz")[0] == 200


def stored_joules(store: Path, request_id: str) -> list[float | None]:
    """Energy of the request's rows, in whichever table holds requests."""
    found: list[float | None] = []
    with closing(sqlite3.connect(store)) as database:
        tables = database.execute("select name from sqlite_master where type = 'table'")
        for (table,) in tables.fetchall():
            described = database.execute(f"pragma table_info({table})").fetchall()
            if {"request_id", "energy_joules"} <= {column[1] for column in described}:
                query = f"select energy_joules from {table} where request_id = ?"
                found += [row[0] for row in database.execute(query, (request_id,))]
    return found


def stops(periods: Sequence[float]) -> list[Stopped]:
    """One stop for each period, each with a proxy of its own, side by side."""
    with (
        tempfile.TemporaryDirectory() as folder,
        announced(*engine_arguments()) as (_, engine),
        ThreadPoolExecutor(max_workers=len(periods)) as pool,
    ):
        stop = partial(stop_after_one, engine_url=engine["url"], folder=Path(folder))
        return list(pool.map(stop, periods))


# --- the table ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table, and what is behind it."""

    name: str
    value: str
    details: Any


def rows_of_request() -> list[Row]:
    """Modules entered by one request, and on the way to its joules."""
    found: dict[str, list[str]] = inside("request")
    names = {
        "relay": "modules entered by one streamed request, relay only",
        "settled": "  with settlement",
        "joules": "modules from a sensor reading to a request's joules",
    }
    return [Row(names[key], str(len(found[key])), found[key]) for key in names]


def rows_of_trace() -> list[Row]:
    """Modules between a trace and the wire."""
    found: list[str] = inside("trace")
    return [Row("modules from a trace line to sent bytes", str(len(found)), found)]


def rows_of_loose() -> list[Row]:
    """Files without a room."""
    found = {folder: loose_files(ROOT / folder) for folder in LOOSE}
    counts = " / ".join(str(len(names)) for names in found.values())
    return [Row(f"loose files in {' / '.join(LOOSE)}", counts, found)]


def rows_of_files() -> list[Row]:
    """How small the pieces are."""
    files = source_files(ROOT)
    once = imported_once(files)
    return [
        Row("source files", str(len(files)), list(files)),
        Row("  imported by exactly one other", str(len(once)), once),
    ]


def rows_of_classes() -> list[Row]:
    """One name for two things."""
    found = shared_class_names(source_files(ROOT))
    return [Row("class names used for two things", str(len(found)), found)]


def rows_of_lines() -> list[Row]:
    """All of it."""
    lines = count_lines(source_files(ROOT))
    return [Row("lines of proxy and loadgen", f"{lines:,}", lines)]


def rows_of_meter(repeats: int) -> list[Row]:
    """What a boundary more costs."""
    costs = meter_costs(Load(), repeats)
    ratios = " : ".join(f"{cost / costs[0]:.2f}" for cost in costs)
    values = ", ".join(f"{cost:.1f}" for cost in costs)
    return [
        Row("us per event of the meter with 1, 2 and 3 boundaries", values, costs),
        Row("  ratio", ratios, [cost / costs[0] for cost in costs]),
    ]


def rows_of_stop(periods: Sequence[float]) -> list[Row]:
    """Who is forgotten at stop."""
    return [
        Row(
            f"records lost at stop, sensor of {stop.period_seconds:g} s",
            stop.outcome,
            asdict(stop),
        )
        for stop in stops(periods)
    ]


FIGURES: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
    "request": lambda _: rows_of_request(),
    "trace": lambda _: rows_of_trace(),
    "loose": lambda _: rows_of_loose(),
    "files": lambda _: rows_of_files(),
    "classes": lambda _: rows_of_classes(),
    "lines": lambda _: rows_of_lines(),
    "meter": lambda options: rows_of_meter(options.repeats),
    "stop": lambda options: rows_of_stop(options.periods),
}


def definition(figure: str) -> str:
    """What a figure is, from this program's docstring."""
    found = re.search(rf"^`{figure}`:.*?(?=^`\w+`:|\Z)", __doc__ or "", re.M | re.S)
    return found[0].rstrip() if found else ""


def main() -> None:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument(
        "--periods", nargs="+", type=float, default=PERIODS, metavar="S"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--json", action="store_true", help="with every module's name")
    parser.add_argument(
        "--inside", choices=("request", "trace"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.inside is not None:
        watched = watch_request() if options.inside == "request" else watch_trace()
        print(json.dumps(watched))
        return
    rows = [row for figure in options.only for row in FIGURES[figure](options)]
    if options.json:
        print(json.dumps({row.name.strip(): row.details for row in rows}))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}\n"
    )
    for row in rows:
        print(f"{row.name:<56}  {row.value}")
    print("\nwhere")
    for figure in options.only:
        print(definition(figure))


if __name__ == "__main__":
    main()
