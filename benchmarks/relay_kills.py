"""Kills of relays and of the meter at random instants: what is lost, and is it said?

    python benchmarks/relay_kills.py [--kills 10] [--seed 1]

A simulated engine (SIMULATED), `metering-proxy serve --relays 2` with a store, and
streams without a pause meanwhile. Relays and the meter are killed in turn with SIGKILL.
Afterwards every request that the client sent is looked for in the store: it must be
there once at most, a reply that came whole must have its record or be among those that
the proxy says it has not seen, and the last books must close.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.relays import processes_of

STREAMS = 12
TOKENS = 60
QUIET_SECONDS = (0.5, 4.0)
"""Between two kills, from whenever all was ready again."""
MODEL = "simulated-llama-3.1-8b"


def started(*command: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """A process that announces itself, and what it announced."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "--announce"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


class Client:
    """Sends streams for as long as the run lasts."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.ends: dict[str, str] = {}
        self.is_over = False

    async def keep(self, lane: int) -> None:
        """One stream after another, each on a connection of its own."""
        number = 0
        while not self.is_over:
            number += 1
            name = f"{lane}-{number}"
            self.ends[name] = await self.ask(name)

    async def ask(self, name: str) -> str:
        """Send one; how it ended."""
        body = {
            "model": MODEL, "stream": True, "max_tokens": TOKENS, "ignore_eos": True,
            "messages": [{"role": "user", "content": f"hello {name}"}],
        }  # fmt: skip
        try:
            # certificates take longer to read than a request
            async with httpx.AsyncClient(
                timeout=60, trust_env=False, verify=False
            ) as client:
                reply = await client.post(
                    f"{self.url}/v1/chat/completions",
                    json=body, headers={"x-request-id": name},
                )  # fmt: skip
        except httpx.ConnectError:
            await asyncio.sleep(0.01)
            return "no connection"
        except httpx.HTTPError:
            return "cut"
        return "whole" if "[DONE]" in reply.text else "cut"


async def figures(admin: str) -> dict[str, float]:
    """The page of metrics; empty while nobody answers."""
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            text = (await client.get(f"{admin}/metrics")).text
            ready = (await client.get(f"{admin}/readyz")).status_code == 200
    except httpx.HTTPError:
        return {}
    lines = [line.rpartition(" ") for line in text.splitlines() if line[0] != "#"]
    return {series: float(value) for series, _, value in lines} | {"ready": ready}


def unseen_of(found: dict[str, float]) -> float:
    """Requests that the meter did not see to their end, as told now."""
    return sum(v for s, v in found.items() if "unseen_requests" in s)


async def until_whole(admin: str) -> dict[str, float]:
    """Wait until every process is there and energy is known."""
    while True:
        found = await figures(admin)
        up = [v for s, v in found.items() if s.startswith("servewatt_relay_up")]
        if up == [1, 1] and found["ready"]:
            return found
        await asyncio.sleep(0.1)


async def run(options: Any, addresses: dict[str, Any], pid: int) -> dict[str, Any]:
    chance = random.Random(options.seed)
    admin, client = addresses["admin_url"], Client(addresses["url"])
    await until_whole(admin)
    lanes = [asyncio.create_task(client.keep(lane)) for lane in range(STREAMS)]
    killed: list[str] = []
    seen: list[float] = [0.0]
    away_seconds: list[float] = []
    for number in range(options.kills):
        await asyncio.sleep(chance.uniform(*QUIET_SECONDS))
        seen.append(unseen_of(await figures(admin)))
        name = ("meter", "relay-1", "relay-2")[number % 3]
        os.kill(processes_of(pid)[name], signal.SIGKILL)
        killed.append(name)
        began = time.monotonic()
        await until_whole(admin)
        away_seconds.append(time.monotonic() - began)
        print(f"{name}: whole again after {away_seconds[-1]:.1f} s", file=sys.stderr)
    await asyncio.sleep(1)
    client.is_over = True
    await asyncio.gather(*lanes)
    await asyncio.sleep(2)
    last = await until_whole(admin)
    seen.append(unseen_of(last))
    # counters of relays that ended are gone with the next meter
    unseen = sum(max(0.0, after - before) for before, after in pairwise(seen))
    residual = sum(abs(v) for s, v in last.items() if "books_residual" in s)
    restarts = {
        s.partition('"')[2].partition('"')[0]: int(v)
        for s, v in last.items()
        if s.startswith("servewatt_process_restarts_total")
    }
    return {
        "killed": Counter(killed), "restarts": restarts, "ends": client.ends,
        "unseen": unseen, "residual": residual,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "records.sqlite")
        engine, simulated = started("loadgen", "simulate", "--listen", "127.0.0.1:0")
        proxy, addresses = started(
            "proxy", "serve", "--upstream", simulated["url"], "--relays", "2",
            "--power", f"dcgm={simulated['power_url']}", "--store",
            f"sqlite:///{store}", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        )  # fmt: skip
        try:
            found = asyncio.run(run(options, addresses, proxy.pid))
            proxy.send_signal(signal.SIGTERM)
            proxy.wait()
        finally:
            for process in (proxy, engine):
                assert process.stdin is not None
                process.stdin.close()
                process.wait()
        connection = sqlite3.connect(store)
        rows = connection.execute(
            "select request_id, outcome, energy_joules from servewatt_records"
        ).fetchall()
        connection.close()
    report(found, rows, options, time.monotonic() - began)


def report(
    found: dict[str, Any], rows: list[Any], options: Any, seconds: float
) -> None:
    ends = found["ends"]
    times = Counter(name for name, *_ in rows)
    twice = [name for name, count in times.items() if count > 1]
    whole = {name for name, end in ends.items() if end == "whole"}
    missing = whole - times.keys()
    otherwise = [n for n, outcome, _ in rows if n in whole and outcome != "ok"]
    unknown = sum(joules is None for *_, joules in rows)
    print(
        f"SIMULATED, {os.cpu_count()} vCPU {platform.machine()}, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}, seed "
        f"{options.seed}, {seconds:.0f} s"
    )
    print(f"killed: {dict(found['killed'])}; started again: {found['restarts']}")
    print(f"{len(ends)} requests: {dict(Counter(ends.values()))}")
    print(f"{len(rows)} records: {dict(Counter(outcome for _, outcome, _ in rows))}")
    print(f"without energy: {unknown} records; recorded twice: {len(twice)}")
    print(
        f"whole replies without a record: {len(missing)}; with another outcome than "
        f"ok: {len(otherwise)}; requests that the meter did "
        f"not see to their end: {found['unseen']:.0f}"
    )
    print(f"residual of the last books: {found['residual']:.2g} J")
    if twice or len(missing) > found["unseen"] or found["residual"] > 1e-3:
        raise SystemExit("something is counted twice, or lost and not said")


if __name__ == "__main__":
    main()
