"""Does the proxy hold a load: nothing failed, nothing leaked, nothing lost?

    python -m benchmarks.load_held [--streams 1000] [--seconds 600] [--json FILE]
    python -m benchmarks.load_held --faults       1 % of clients leave, one restart

A scripted engine (5 tokens a second in each stream, streams of 15 s), a SIMULATED
sensor and a whole `metering-proxy serve` with its SQLite store run as processes of
their own. `--streams` clients ask one after another, each as soon as its last stream
ended, for `--seconds`; streams under way then end by themselves. With `--faults` one
request in a hundred is left at a random moment, and half-way the engine is killed and
started again on its port a second later.

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
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.relay_cost import cpu_seconds
from loadgen.client.backends import RequestOptions, Target, write_request
from loadgen.client.client import HttpClient
from loadgen.client.connection import Response
from proxy.process.host import raise_open_files

FIRST_MS = 200
GAP_MS = 200
LEAVE_SHARE = 0.01
RESTART_SECONDS = 1.0
RETRY_SECONDS = 0.5
"""A client whose engine is away does not hammer."""
PATIENCE_SECONDS = 60.0
MAX_TREND_MIB_PER_MINUTE = 0.5
WARM_SECONDS = 120.0
"""Until then caches and histories fill."""
SAME_OUTCOME = {
    "ok": {"ok"},
    # the last byte and the leave may cross on their way
    "left": {"aborted", "ok"},
    "failed": {"upstream_error"},
}


@dataclass(frozen=True)
class Scale:
    """How much load, how long, and what goes wrong."""

    streams: int = 1000
    seconds: float = 600.0
    tokens: int = 75
    has_faults: bool = False

    @property
    def stream_seconds(self) -> float:
        """How long one stream lasts."""
        return (FIRST_MS + (self.tokens - 1) * GAP_MS) / 1000


@dataclass
class Seen:
    """What the clients saw, by request id, and the proxy's memory meanwhile."""

    outcomes: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Outcome and tokens of every request that was sent whole."""
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
        child.stdin.close()
        child.wait()
        child.stdout.close()


def engine_command(scale: Scale, port: int = 0) -> list[str]:
    script = str(Path(__file__).with_name("scripted_engine.py"))
    command = [script, "--tokens", str(scale.tokens), "--port", str(port)]
    return [*command, "--first-ms", str(FIRST_MS), "--gap-ms", str(GAP_MS)]


class Crowd:
    """The clients."""

    def __init__(self, url: str, scale: Scale, seen: Seen) -> None:
        self._scale = scale
        self._seen = seen
        self._target = Target(url, "openai", model="scripted")
        self._client = HttpClient(self._target, time.monotonic)
        self._random = random.Random(scale.streams)
        self._ends = time.monotonic() + scale.seconds

    async def stay(self) -> None:
        """All of them, until the time is up and the last stream has ended."""
        await asyncio.gather(*(self._ask(n) for n in range(self._scale.streams)))
        await self._client.close()

    async def _ask(self, client: int) -> None:
        # spread over one stream's length, else all streams would end at once
        await asyncio.sleep(client / self._scale.streams * self._scale.stream_seconds)
        asked = 0
        while time.monotonic() < self._ends:
            asked += 1
            outcome = await self._stream(f"c{client}-{asked}")
            if outcome == "failed":
                await asyncio.sleep(RETRY_SECONDS)

    async def _stream(self, request_id: str) -> str:
        request = write_request(
            self._target,
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
        self._seen.outcomes[request_id] = (outcome, said.count(b'" word"'))
        gaps = np.diff(np.unique(response.stamps)) * 1000 - GAP_MS
        self._seen.late_ms.update(np.maximum(gaps, 0).astype(int).tolist())
        return outcome


async def watch_memory(pid: int, seen: Seen) -> None:
    """Once a second, until cancelled."""
    began = time.monotonic()
    while True:
        status = Path(f"/proc/{pid}/status").read_text()  # noqa: ASYNC240  no disk
        kib = int(status.partition("VmRSS:")[2].split()[0])
        seen.resident_kib.append((time.monotonic() - began, kib))
        await asyncio.sleep(1.0)


async def restart_half_way(
    engine: subprocess.Popen[str],
    port: int,
    scale: Scale,
    stack: contextlib.ExitStack,
) -> None:
    """Kill the engine as a crash would, start it again on its port."""
    await asyncio.sleep(scale.seconds / 2)
    engine.kill()
    await asyncio.to_thread(engine.wait)
    await asyncio.sleep(RESTART_SECONDS)
    stack.enter_context(process(*engine_command(scale, port)))


def run(scale: Scale) -> Held:
    """Hold the load, then ask everybody what happened."""
    raise_open_files()
    seen = Seen()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        _, sensor = stack.enter_context(process(*engine_command(scale)))
        engine, line = stack.enter_context(process(*engine_command(scale)))
        port = int(line)
        proxy, announced = stack.enter_context(
            process(
                "-m", "proxy", "serve", "--announce",
                "--upstream", f"http://127.0.0.1:{port}",
                "--power", f"dcgm=http://127.0.0.1:{int(sensor)}/dcgm/metrics",
                "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
                "--store", f"sqlite:///{folder}/records.sqlite",
            )
        )  # fmt: skip
        urls = json.loads(announced)
        wait_until_ready(urls["admin_url"])
        files = count_files(proxy.pid)
        spent, began = cpu_seconds(proxy.pid), time.monotonic()

        async def hold() -> None:
            watching = asyncio.create_task(watch_memory(proxy.pid, seen))
            crowd = asyncio.create_task(Crowd(urls["url"], scale, seen).stay())
            if scale.has_faults:
                await restart_half_way(engine, port, scale, stack)
            await crowd
            watching.cancel()

        uvloop.run(hold())
        share = (cpu_seconds(proxy.pid) - spent) / (time.monotonic() - began)
        return figures(scale, seen, share, urls["admin_url"], (proxy.pid, files))


# --- what the proxy says ------------------------------------------------------


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as reply:
        body: bytes = reply.read()
    return body


def wait_until_ready(admin_url: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.HTTPError):
            get(f"{admin_url}/readyz")
            return
        time.sleep(0.05)
    raise SystemExit("the proxy did not become ready")


def count_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def ledger(admin_url: str) -> Iterator[dict[str, Any]]:
    since = 0
    while lines := get(f"{admin_url}/requests?since={since}&limit=10000").splitlines():
        for line in lines:
            record = json.loads(line)
            since = record["sequence"]
            yield record


def left_over(admin_url: str, pid: int, files: int) -> dict[str, float]:
    """What is still held, once the time for idle connections is over."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        held: dict[str, float] = {"files": float(count_files(pid) - files)}
        for family in text_string_to_metric_families(
            get(f"{admin_url}/metrics").decode()
        ):
            if family.name in (
                "servewatt_requests_in_flight",
                "servewatt_upstream_connections",
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
    scale: Scale, seen: Seen, share: float, admin_url: str, proxy: tuple[int, int]
) -> Held:
    books = settled_books(admin_url)
    held = left_over(admin_url, *proxy)
    records = {record["request_id"]: record for record in ledger(admin_url)}
    late = sorted(seen.late_ms.elements())
    minutes, trend = memory(seen.resident_kib, scale)
    clients = Counter(outcome for outcome, _ in seen.outcomes.values())
    result = Held(
        scale=asdict(scale),
        machine=f"{os.cpu_count()} vCPU, Python {platform.python_version()}",
        date=time.strftime("%Y-%m-%d"),
        clients={**clients, "unsent": seen.unsent},
        records=dict(Counter(str(r["outcome"]) for r in records.values())),
        mismatches=list(mismatches(seen, records)),
        failed_without_fault=0 if scale.has_faults else clients["failed"],
        late_p50_ms=late[len(late) // 2],
        late_p99_ms=late[int(len(late) * 0.99)],
        late_max_ms=late[-1],
        proxy_cpu_share=round(share, 3),
        resident_mib_by_minute=minutes,
        trend_mib_per_minute=trend,
        residual_joules=books["residual_joules"],
        measured_joules=books["measured_joules"],
        records_without_energy=sum(
            record["energy"]["energy_joules"] is None
            for record in records.values()
            if record["output_tokens"]
        ),
        gap_seconds=round(books["gap_seconds"], 3),
        left_over=held,
    )
    result.faults += faults(result)
    return result


def mismatches(seen: Seen, records: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Requests that clients and ledger tell differently."""
    for request_id, (outcome, tokens) in seen.outcomes.items():
        record = records.get(request_id)
        if record is None:
            yield f"{request_id}: {outcome} for its client, not in the ledger"
        elif record["outcome"] not in SAME_OUTCOME[outcome]:
            yield f"{request_id}: {outcome} for its client, {record['outcome']}"
        elif outcome == "ok" and record["output_tokens"] != tokens:
            yield f"{request_id}: {tokens} tokens came, {record['output_tokens']}"
        elif tokens and record["energy"]["energy_joules"] == 0:
            yield f"{request_id}: {tokens} tokens for no energy"
    for request_id in records.keys() - seen.outcomes.keys():
        yield f"{request_id}: in the ledger, sent by nobody"


def memory(
    resident: list[tuple[float, int]], scale: Scale
) -> tuple[list[float], float | None]:
    """MiB at each minute, and MiB a minute by least squares once it is warm.

    The end is left out too: there, streams end and are not followed by others. Runs
    that end before they are warm have no trend.
    """
    by_minute = {int(at // 60): kib / 1024 for at, kib in resident}
    # a thousand failures at once are held by other objects: warm up again after them
    warm_seconds = WARM_SECONDS + (scale.seconds / 2 if scale.has_faults else 0.0)
    flat = [x for x in resident if warm_seconds <= x[0] <= scale.seconds]
    trend = None
    if scale.seconds >= warm_seconds + WARM_SECONDS:
        at, kib = np.array(flat, dtype=float).T
        trend = round(float(np.polyfit(at / 60, kib / 1024, 1)[0]), 3)
    return [round(mib, 1) for mib in by_minute.values()], trend


def faults(held: Held) -> Iterator[str]:
    if held.mismatches:
        yield f"{len(held.mismatches)} requests told differently"
    if held.failed_without_fault:
        yield f"{held.failed_without_fault} requests failed"
    if (held.trend_mib_per_minute or 0.0) > MAX_TREND_MIB_PER_MINUTE:
        yield f"memory grows by {held.trend_mib_per_minute} MiB a minute"
    if held.records_without_energy and not held.gap_seconds:
        yield f"{held.records_without_energy} records lack their energy"
    if abs(held.residual_joules) > 1e-3:
        yield f"the books are open by {held.residual_joules} J"
    yield from (f"{what} left: {n:g}" for what, n in held.left_over.items() if n > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    held = run(Scale(options.streams, options.seconds, has_faults=options.faults))
    shown = asdict(held)
    shown["mismatches"] = [*held.mismatches[:20], f"{len(held.mismatches)} in all"]
    text = json.dumps(shown, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    sys.exit(1 if held.faults else 0)


if __name__ == "__main__":
    main()
