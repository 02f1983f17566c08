"""Does the proxy hold a load: nothing failed, nothing leaked, nothing lost?

    python -m benchmarks.load_held [--streams 1000] [--seconds 600] [--json FILE]
    python -m benchmarks.load_held --faults       1 % of clients leave, one restart
    python -m benchmarks.load_held --faults all   and all that is below

A scripted engine (5 tokens a second in each stream, streams of 15 s), a SIMULATED
sensor and a whole `metering-proxy serve` with its SQLite store run as processes of
their own. `--streams` clients ask one after another, each at least once and as soon as
its last stream ended, for `--seconds`; streams under way then end by themselves. With
`--faults` one request in a hundred is left at a random moment, and half-way the engine
is killed and started again on its port a second later.

With `--faults all` everything goes wrong at once: the sensor shows nonsense every
fourth second (`scripted_engine.NONSENSE`), one request in twenty names a model of its
own invention, `benchmarks.hostile_clients` attack relay and admin port, and in the
first third of the time proxy and engine are ended and started again, in turn by SIGTERM
and by SIGKILL (`RESTARTS`). Then every answered request must be in the store once; of
a proxy that was killed, those answered in its last second may be missing, and are
counted.

Afterwards every request that the clients sent is looked up in the proxy's ledger, by
id: same outcome, same tokens. Printed too: the proxy's resident memory minute by
minute and its trend after warm-up, the residual of the books, what the proxy still
holds (requests, connections, files) once all clients have gone, its CPU, and by how
much gaps between tokens exceed the engine's 200 ms. Exit status 1 if any of that is
not as it should be. Tables of figures are in docs/validation.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.hostile_clients import JUNK, PREFIX
from benchmarks.relay_cost import cpu_seconds
from loadgen.client.backends import RequestOptions, Target, write_request
from loadgen.client.client import HttpClient
from loadgen.client.connection import Response
from proxy.process.host import raise_open_files
from proxy.store.stored_record import KILLED as LEFT

FIRST_MS = 200
GAP_MS = 200
LEAVE_SHARE = 0.01
JUNK_SHARE = 0.05
RESTART_SECONDS = 1.0
RESTARTS: tuple[tuple[float, str, int], ...] = (
    (0.03, "proxy", signal.SIGKILL),
    (0.06, "engine", signal.SIGKILL),
    (0.09, "proxy", signal.SIGTERM),
    (0.12, "engine", signal.SIGTERM),
    (0.15, "proxy", signal.SIGKILL),
    (0.18, "engine", signal.SIGKILL),
)
"""When, as a part of the time, who is ended how, with `--faults all`."""
DRAIN_SECONDS = 3.0
KILL_LOSS_SECONDS = 1.0
"""Requests answered so long before a `kill -9` may be without record."""
RETRY_SECONDS = 0.5
"""A client whose engine is away does not hammer."""
PATIENCE_SECONDS = 60.0
MAX_TREND_MIB_PER_MINUTE = 0.5
WARM_SECONDS = 120.0
"""Until then caches and histories fill."""
SAME_OUTCOME = {
    "ok": {"ok"},
    # the last byte, or the engine's end, and the leave may cross on their way
    "left": {"aborted", "ok", "upstream_error"},
    # by the engine's end, or by the proxy's
    "failed": {"upstream_error", "aborted"},
    # by the engine, or by the proxy while it had none
    "refused": {"error", "upstream_error"},
}
FAULTS = ("none", "some", "all")


@dataclass(frozen=True)
class Scale:
    """How much load, how long, and what goes wrong."""

    streams: int = 1000
    seconds: float = 600.0
    tokens: int = 75
    faults: str = "none"
    """One of `FAULTS`."""
    restarts: tuple[tuple[float, str, int], ...] = RESTARTS
    """Of proxy and engine, with all faults."""

    @property
    def has_faults(self) -> bool:
        """Whether clients leave and the engine is restarted."""
        return self.faults != "none"

    @property
    def has_all_faults(self) -> bool:
        """Whether everything goes wrong."""
        return self.faults == "all"

    @property
    def stream_seconds(self) -> float:
        """How long one stream lasts."""
        return (FIRST_MS + (self.tokens - 1) * GAP_MS) / 1000


@dataclass
class Seen:
    """What the clients saw, by request id, and the proxy's memory meanwhile."""

    outcomes: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Outcome and tokens of every request that was sent whole."""
    ended_seconds: dict[str, float] = field(default_factory=dict)
    """When it ended for its client, monotonic."""
    ends: list[tuple[float, float, int]] = field(default_factory=list)
    """From when to when the proxy was away, and the signal that ended it."""
    calm_seconds: float = 0.0
    """When the last restart was over, from the beginning."""
    residuals: list[float] = field(default_factory=list)
    """Joules that the books of a proxy missed before it was ended."""
    hostile: dict[str, Any] = field(default_factory=dict)
    """The hostile clients' own account."""
    unsent: int = 0
    late_ms: Counter[int] = field(default_factory=Counter)
    """Gaps between reads of a stream over the engine's gap, in whole milliseconds."""
    resident_kib: list[tuple[float, int]] = field(default_factory=list)


@dataclass
class Held:
    """The figures of one run."""

    scale: dict[str, Any]
    machine: str
    date: str
    clients: dict[str, int]
    records: dict[str, int]
    mismatches: list[str]
    failed_without_fault: int
    late_p50_ms: int
    late_p99_ms: int
    late_max_ms: int
    proxy_cpu_share: float
    resident_mib_by_minute: list[float]
    trend_mib_per_minute: float | None
    residual_joules: float
    measured_joules: float
    records_without_energy: int
    """Unknown, not none: the sensor could not be read while they ran."""
    gap_seconds: float
    left_over: dict[str, float]
    restarts: list[str] = field(default_factory=list)
    twice: int = 0
    """Requests with two records."""
    lost_by_kill: int = 0
    """Answered in the last second of a proxy that was killed, and without record."""
    unread: int = 0
    """Sent into the end of a proxy, and never read by it."""
    hostile_answered: int = 0
    attacks: dict[str, int] = field(default_factory=dict)
    rejected_readings: dict[str, float] = field(default_factory=dict)
    """By reason, since the last start of the proxy."""
    models: list[str] = field(default_factory=list)
    """Labels of the metrics."""
    faults: list[str] = field(default_factory=list)
    """What is not as it should be; empty in a good run."""


@contextlib.contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A child that ends with its standard input, and the first line that it says."""
    child = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child, child.stdout.readline()
    finally:
        with contextlib.suppress(OSError):  # it was ended before
            child.stdin.close()
        child.wait()
        child.stdout.close()


def engine_command(scale: Scale, port: int = 0) -> list[str]:
    script = str(Path(__file__).with_name("scripted_engine.py"))
    command = [script, "--tokens", str(scale.tokens), "--port", str(port)]
    bad = ["--bad-readings"] if scale.has_all_faults else []
    return [*command, "--first-ms", str(FIRST_MS), "--gap-ms", str(GAP_MS), *bad]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Restartable:
    """A child that is ended and started again on its ports."""

    def __init__(self, stack: contextlib.ExitStack, *command: str) -> None:
        self._stack = stack
        self._command = command
        self.child, self.line = stack.enter_context(process(*command))

    def end(self, number: int) -> None:
        """Blocks until it is gone."""
        self.child.send_signal(number)
        self.child.wait()

    def start(self) -> None:
        """Blocks until it says that it is there."""
        self.child, self.line = self._stack.enter_context(process(*self._command))


class Crowd:
    """The clients."""

    def __init__(self, url: str, scale: Scale, seen: Seen) -> None:
        self._scale = scale
        self._seen = seen
        self._target = Target(url, "openai", model="scripted")
        self._client = HttpClient(self._target, time.monotonic)
        self._junk = itertools.count()
        self._random = random.Random(scale.streams)
        self._ends = time.monotonic() + scale.seconds

    async def stay(self) -> None:
        """All of them, until the time is up and the last stream has ended."""
        await asyncio.gather(*(self._ask(n) for n in range(self._scale.streams)))
        await self._client.close()

    async def _ask(self, client: int) -> None:
        # spread over one stream's length, else all streams would end at once
        await asyncio.sleep(client / self._scale.streams * self._scale.stream_seconds)
        for asked in itertools.count(1):
            outcome = await self._stream(f"c{client}-{asked}")
            if outcome in ("failed", "refused"):
                await asyncio.sleep(RETRY_SECONDS)
            if time.monotonic() >= self._ends:
                return

    async def _stream(self, request_id: str) -> str:
        target = self._target
        if self._scale.has_all_faults and self._random.random() < JUNK_SHARE:
            target = replace(target, model=f"{JUNK}{next(self._junk)}")
        request = write_request(
            target,
            RequestOptions(),
            [{"role": "user", "content": "hello " * 20}],
            request_id=request_id,
            kind="conversation",
            output_tokens=self._scale.tokens,
        )
        response = Response()
        sending = self._client.send(request, response)
        leaves = self._scale.has_faults and self._random.random() < LEAVE_SHARE
        if leaves:
            patience = self._random.random() * self._scale.stream_seconds
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sending, patience)
        else:
            await sending
        return self._note(request_id, response)

    def _note(self, request_id: str, response: Response) -> str:
        if response.sent_at is None:
            self._seen.unsent += 1
            return "failed"
        said = b"".join(response.pieces)
        if response.finished_at is None:
            outcome = "left"
        elif response.failure is None and b"[DONE]" in said:
            outcome = "ok"
        else:
            outcome = "failed"
        if self._scale.has_all_faults and (response.status or 200) >= 400:
            outcome = "refused"
        self._seen.outcomes[request_id] = (outcome, said.count(b'" word"'))
        self._seen.ended_seconds[request_id] = time.monotonic()
        gaps = np.diff(np.unique(response.stamps)) * 1000 - GAP_MS
        self._seen.late_ms.update(np.maximum(gaps, 0).astype(int).tolist())
        return outcome


async def watch_memory(proxy: Restartable, seen: Seen) -> None:
    """Once a second, until cancelled; nothing while the proxy is away."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError, IndexError):
            path = Path(f"/proc/{proxy.child.pid}/status")
            status = path.read_text()  # noqa: ASYNC240  no disk
            kib = int(status.partition("VmRSS:")[2].split()[0])
            seen.resident_kib.append((time.monotonic() - began, kib))
        await asyncio.sleep(1.0)


async def restart_half_way(engine: Restartable, scale: Scale, seen: Seen) -> None:
    """Kill the engine as a crash would, start it again on its port."""
    await asyncio.sleep(scale.seconds / 2)
    await asyncio.to_thread(engine.end, signal.SIGKILL)
    await asyncio.sleep(RESTART_SECONDS)
    await asyncio.to_thread(engine.start)
    seen.calm_seconds = scale.seconds / 2


async def restart_all(
    proxy: Restartable, engine: Restartable, scale: Scale, seen: Seen, admin_url: str
) -> None:
    """End and start again whoever is due, and note when the proxy was away."""
    began = time.monotonic()
    for part, name, number in scale.restarts:
        await asyncio.sleep(began + part * scale.seconds - time.monotonic())
        if name == "engine":
            await asyncio.to_thread(engine.end, number)
            await asyncio.sleep(RESTART_SECONDS)
            await asyncio.to_thread(engine.start)
            continue
        books = json.loads(await asyncio.to_thread(get, f"{admin_url}/books"))
        seen.residuals.append(books["residual_joules"] or 0.0)
        gone = time.monotonic()
        await asyncio.to_thread(proxy.end, number)
        await asyncio.sleep(RESTART_SECONDS)
        await asyncio.to_thread(proxy.start)
        seen.ends.append((gone, time.monotonic(), number))
    seen.calm_seconds = time.monotonic() - began


def proxy_command(
    scale: Scale, engine_port: int, sensor_port: int, folder: str
) -> list[str]:
    """The proxy, on ports that stay the same where it is started again."""
    command = [
        "-m", "proxy", "serve", "--announce",
        "--upstream", f"http://127.0.0.1:{engine_port}",
        "--power", f"dcgm=http://127.0.0.1:{sensor_port}/dcgm/metrics",
        "--store", f"sqlite:///{folder}/records.sqlite",
    ]  # fmt: skip
    ports = [free_port(), free_port()] if scale.has_all_faults else [0, 0]
    for option, port in zip(("--listen", "--admin"), ports, strict=True):
        command += [option, f"127.0.0.1:{port}"]
    if scale.has_all_faults:
        command += ["--drain-timeout", str(DRAIN_SECONDS), "--drain-delay", "0.2"]
    return command


def run(scale: Scale) -> Held:
    """Hold the load, then ask everybody what happened."""
    raise_open_files()
    seen = Seen()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _, sensor = stack.enter_context(process(*engine_command(scale)))
        engine_port = free_port()
        engine = Restartable(stack, *engine_command(scale, engine_port))
        command = proxy_command(scale, engine_port, int(sensor), folder)
        proxy = Restartable(stack, *command)
        urls = json.loads(proxy.line)
        wait_until_ready(urls["admin_url"])
        files = open_files(proxy.child.pid)
        ports = [url.rpartition(":")[2] for url in (urls["url"], urls["admin_url"])]

        async def hold() -> float:
            watching = asyncio.create_task(watch_memory(proxy, seen))
            crowd = asyncio.create_task(Crowd(urls["url"], scale, seen).stay())
            if scale.has_all_faults:
                await restart_all(proxy, engine, scale, seen, urls["admin_url"])
            elif scale.has_faults:
                await restart_half_way(engine, scale, seen)
            spent, began = cpu_seconds(proxy.child.pid), time.monotonic()
            await crowd
            watching.cancel()
            return (cpu_seconds(proxy.child.pid) - spent) / (time.monotonic() - began)

        with hostile(ports, seen) if scale.has_all_faults else contextlib.nullcontext():
            share = uvloop.run(hold())
        return figures(scale, seen, share, urls["admin_url"], (proxy.child.pid, files))


@contextlib.contextmanager
def hostile(ports: list[str], seen: Seen) -> Iterator[None]:
    """Hostile clients while others are served, and what they say afterwards."""
    with process("-m", "benchmarks.hostile_clients", *ports) as (child, _):
        yield
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        seen.hostile = json.loads(child.stdout.readline())


# --- what the proxy says ------------------------------------------------------


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as reply:
        body: bytes = reply.read()
    return body


def wait_until_ready(admin_url: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            get(f"{admin_url}/readyz")
        except urllib.error.HTTPError as error:
            error.close()
            time.sleep(0.05)
        else:
            return
    raise SystemExit("the proxy did not become ready")


def open_files(pid: int) -> Counter[str]:
    """Open files by kind, but for the store's, of which a pool keeps a few."""
    kinds = Counter[str]()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            kinds[str(link.readlink()).partition(":")[0]] += 1
    return Counter({k: n for k, n in kinds.items() if "records.sqlite" not in k})


def ledger(admin_url: str) -> Iterator[dict[str, Any]]:
    since = 0
    while lines := get(f"{admin_url}/requests?since={since}&limit=10000").splitlines():
        for line in lines:
            record = json.loads(line)
            since = record["sequence"]
            yield record


def left_over(admin_url: str, pid: int, files: Counter[str]) -> dict[str, float]:
    """What is still held, once the time for idle connections is over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        # subtraction leaves out what there are fewer of
        more = open_files(pid) - files
        held: dict[str, float] = {f"files: {kind}": n for kind, n in more.items()}
        for family in text_string_to_metric_families(
            get(f"{admin_url}/metrics").decode()
        ):
            if family.name in (
                "servewatt_requests_in_flight",
                "servewatt_upstream_connections",
                "servewatt_client_connections",
            ):
                held[family.name.removeprefix("servewatt_")] = sum(
                    sample.value for sample in family.samples
                )
        if not any(value > 0 for value in held.values()):
            return held
        if time.monotonic() > deadline:
            return held
        time.sleep(0.5)


def settled_books(admin_url: str) -> dict[str, Any]:
    at = time.time()
    while True:
        books: dict[str, Any] = json.loads(get(f"{admin_url}/books?at={at}"))
        if books["complete"] or time.time() > at + PATIENCE_SECONDS:
            return books
        time.sleep(0.2)


# --- figures ------------------------------------------------------------------


def figures(
    scale: Scale,
    seen: Seen,
    share: float,
    admin_url: str,
    proxy: tuple[int, Counter[str]],
) -> Held:
    books = settled_books(admin_url)
    held = left_over(admin_url, *proxy)
    found = list(ledger(admin_url))
    records = {record["request_id"]: record for record in found}
    late = sorted(seen.late_ms.elements())
    minutes, trend = memory(seen, scale)
    clients = Counter(outcome for outcome, _ in seen.outcomes.values())
    differences = list(mismatches(seen, records))
    families = list(
        text_string_to_metric_families(get(f"{admin_url}/metrics").decode())
    )
    result = Held(
        scale=asdict(scale),
        machine=f"{os.cpu_count()} vCPU, Python {platform.python_version()}",
        date=time.strftime("%Y-%m-%d"),
        clients={**clients, "unsent": seen.unsent},
        records=dict(Counter(str(r["outcome"]) for r in records.values())),
        mismatches=[why for why in differences if why not in EXCUSES],
        failed_without_fault=0 if scale.has_faults else clients["failed"],
        late_p50_ms=late[len(late) // 2],
        late_p99_ms=late[int(len(late) * 0.99)],
        late_max_ms=late[-1],
        proxy_cpu_share=round(share, 3),
        resident_mib_by_minute=minutes,
        trend_mib_per_minute=trend,
        residual_joules=max(
            [books["residual_joules"] or 0.0, *seen.residuals], key=abs
        ),
        measured_joules=books["measured_joules"] or 0.0,
        records_without_energy=sum(
            record["energy"]["energy_joules"] is None
            for record in records.values()
            if record["output_tokens"]
        ),
        gap_seconds=round(books["gap_seconds"] or 0.0, 3),
        left_over=held,
        restarts=[
            f"{signal.Signals(number).name}, away for {back - gone:.1f} s"
            for gone, back, number in seen.ends
        ],
        twice=len(found) - len(records),
        lost_by_kill=differences.count(KILLED),
        unread=differences.count(UNREAD),
        hostile_answered=len(seen.hostile.get("answered", ())),
        attacks=seen.hostile.get("attacks", {}),
        rejected_readings={
            sample.labels["reason"]: sample.value
            for family in families
            if family.name == "servewatt_readings_rejected"
            for sample in family.samples
            if sample.value and sample.name.endswith("_total")
        },
        models=sorted(
            {
                sample.labels["model"]
                for family in families
                for sample in family.samples
                if "model" in sample.labels
            }
        ),
    )
    result.faults += [
        f"a hostile client: {why}" for why in seen.hostile.get("failed", ())
    ]
    result.faults += faults(result, may_lack_energy=scale.has_all_faults)
    return result


KILLED = "answered in the last second before a kill, or cut by it"
UNREAD = "sent into the end of a proxy that never read it"
REFUSED = "refused by the proxy"
EXCUSES = (KILLED, UNREAD, REFUSED)


def mismatches(seen: Seen, records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Requests that clients and ledger tell differently; or an excuse for one."""
    for request_id, (outcome, tokens) in seen.outcomes.items():
        record = records.get(request_id)
        if record is None:
            yield (
                excuse(seen, outcome, tokens, seen.ended_seconds[request_id])
                or f"{request_id}: {outcome} for its client, not in the ledger"
            )
        elif record["error"] == LEFT and excuse(
            seen, outcome, tokens, seen.ended_seconds[request_id]
        ):
            yield KILLED
        elif record["outcome"] not in SAME_OUTCOME[outcome]:
            yield f"{request_id}: {outcome} for its client, {record['outcome']}"
        elif outcome == "ok" and record["output_tokens"] != tokens:
            yield f"{request_id}: {tokens} tokens came, {record['output_tokens']}"
        elif tokens and record["energy"]["energy_joules"] == 0:
            yield f"{request_id}: {tokens} tokens for no energy"
    for request_id in records.keys() - seen.outcomes.keys():
        if not request_id.startswith(PREFIX):
            yield f"{request_id}: in the ledger, sent by nobody"
    for request_id, ended_seconds in seen.hostile.get("answered", {}).items():
        if request_id not in records:
            yield (
                excuse(seen, "ok", 0, ended_seconds)
                or f"{request_id}: answered, not in the ledger"
            )


def excuse(seen: Seen, outcome: str, tokens: int, ended_seconds: float) -> str | None:
    """Why a request may be without record; None where it may not."""
    for gone, back, number in seen.ends:
        slack = KILL_LOSS_SECONDS if number == signal.SIGKILL else 0.0
        if not gone - slack <= ended_seconds <= back + RETRY_SECONDS:
            continue
        if number == signal.SIGKILL:
            return KILLED
        if outcome in ("failed", "left") and not tokens:
            return UNREAD
    return REFUSED if outcome == "refused" else None


def memory(seen: Seen, scale: Scale) -> tuple[list[float], float | None]:
    """MiB at each minute, and MiB a minute by least squares once it is warm.

    The end is left out too: there, streams end and are not followed by others. Runs
    that end before they are warm have no trend.
    """
    by_minute = {int(at // 60): kib / 1024 for at, kib in seen.resident_kib}
    # a thousand failures at once are held by other objects: warm up again after them
    warm_seconds = WARM_SECONDS + seen.calm_seconds
    flat = [x for x in seen.resident_kib if warm_seconds <= x[0] <= scale.seconds]
    trend = None
    if scale.seconds >= warm_seconds + WARM_SECONDS:
        at, kib = np.array(flat, dtype=float).T
        trend = round(float(np.polyfit(at / 60, kib / 1024, 1)[0]), 3)
    return [round(mib, 1) for mib in by_minute.values()], trend


def faults(held: Held, *, may_lack_energy: bool) -> Iterator[str]:
    if held.mismatches:
        yield f"{len(held.mismatches)} requests told differently"
    if held.failed_without_fault:
        yield f"{held.failed_without_fault} requests failed"
    if held.twice:
        yield f"{held.twice} requests have two records"
    if set(held.models) - {"scripted", "other", "unknown"}:
        yield f"labels of models: {held.models[:10]}"
    if (held.trend_mib_per_minute or 0.0) > MAX_TREND_MIB_PER_MINUTE:
        yield f"memory grows by {held.trend_mib_per_minute} MiB a minute"
    may_lack_energy = may_lack_energy or held.gap_seconds > 0
    if held.records_without_energy and not may_lack_energy:
        yield f"{held.records_without_energy} records lack their energy"
    if not held.measured_joules:
        yield "nothing was measured"
    if abs(held.residual_joules) > 1e-3:
        yield f"the books are open by {held.residual_joules} J"
    yield from (f"{what} left: {n:g}" for what, n in held.left_over.items() if n > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--tokens", type=int, default=75)
    parser.add_argument(
        "--faults", nargs="?", const="some", default="none", choices=FAULTS
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    held = run(Scale(options.streams, options.seconds, options.tokens, options.faults))
    shown = asdict(held)
    shown["mismatches"] = [*held.mismatches[:20], f"{len(held.mismatches)} in all"]
    text = json.dumps(shown, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(1 if held.faults else 0)


if __name__ == "__main__":
    main()
