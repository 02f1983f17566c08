"""How much memory can clients make a proxy take, beyond its budget?

    python -m benchmarks.attack_memory [--clients 2000] [--budget-mib 64] [--json FILE]

A whole `metering-proxy serve` before an engine that pours. Each attack is made by
`--clients` connections for ten seconds, on a proxy of its own: streams that nobody
reads, bodies that are never whole, heads that are never whole, requests pipelined
behind a reply. Printed is the proxy's largest resident memory less what it had before
and less `--max-buffered-bytes`. Exit status 1 where that is over 64 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.load_held import process
from proxy.process.host import raise_open_files

SECONDS = 10.0
ALLOWED_MIB = 64.0
POURED_BYTES = 4 * 1024 * 1024
OPENING = 64
"""Connections made at a time: the attack is on memory, not on the backlog."""

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n"
)
STREAM = b'{"model":"m","stream":true,"messages":[]}'
WHOLE = HEAD % len(STREAM) + STREAM
BODY_BYTES = 1024 * 1024
ATTACKS: dict[str, bytes] = {
    "streams that nobody reads": WHOLE,
    "bodies that are never whole": HEAD % (2 * BODY_BYTES) + b"a" * BODY_BYTES,
    "heads that are never whole": WHOLE[:40] + b"x: " + b"a" * 60_000,
    "requests behind an unread reply": 400 * WHOLE,
}
"""What each connection sends; it reads nothing."""


async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer any request with a stream as large as its client will have."""
    with contextlib.suppress(OSError, EOFError):
        while line := await reader.readuntil(b"\r\n\r\n"):
            if line.startswith(b"GET"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                continue
            event = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % (
                4000 * b"a"
            )
            kind = b"content-type: text/event-stream\r\n\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n" + kind)
            for _ in range(POURED_BYTES // len(event)):
                writer.write(event)
                await writer.drain()
            break
    writer.close()


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def attack(port: int, sent: bytes, clients: int, look: Callable[[], None]) -> int:
    """All connections until the time is up; how many were open at once."""
    writers: list[asyncio.StreamWriter] = []
    turns = asyncio.Semaphore(OPENING)

    async def one() -> None:
        async with turns:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                reader._transport.pause_reading()  # type: ignore[attr-defined]
                writers.append(writer)
                writer.write(sent)

    opening = asyncio.gather(*(one() for _ in range(clients)))
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends or not opening.done():
        look()
        await asyncio.sleep(0.05)
    for writer in writers:
        writer.transport.abort()
    return len(writers)


async def measure(sent: bytes, clients: int, budget_mib: int) -> dict[str, Any]:
    # at the end replies are cut in the middle, which is no news
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    server = await asyncio.start_server(pour, "127.0.0.1", 0, backlog=4096)
    engine = server.sockets[0].getsockname()[1]
    command = (
        "-m", "proxy", "serve", "--announce", "--power", "none", "--store", "none",
        "--upstream", f"http://127.0.0.1:{engine}", "--listen", "127.0.0.1:0",
        "--admin", "127.0.0.1:0", "--max-buffered-bytes", str(budget_mib * 1024 * 1024),
    )  # fmt: skip
    with process(*command) as (proxy, line):
        announced = json.loads(line)
        before = resident_mib(proxy.pid)
        peaks = [before]
        port = int(announced["url"].rpartition(":")[2])
        opened = await attack(
            port, sent, clients, lambda: peaks.append(resident_mib(proxy.pid))
        )
        proxy.kill()  # nothing of it is worth a drain
    server.close()
    over = max(peaks) - before - budget_mib
    return {
        "connections": opened,
        "before_mib": round(before, 1),
        "peak_mib": round(max(peaks), 1),
        "over_budget_mib": round(over, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--budget-mib", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    raise_open_files()
    found = {
        name: asyncio.run(measure(sent, options.clients, options.budget_mib))
        for name, sent in ATTACKS.items()
    }
    shown = {
        "machine": f"{os.cpu_count()} vCPU, Python {platform.python_version()}",
        "date": time.strftime("%Y-%m-%d"),
        "budget_mib": options.budget_mib,
        "attacks": found,
    }
    text = json.dumps(shown, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    over = max(each["over_budget_mib"] for each in found.values())
    sys.exit(1 if over > ALLOWED_MIB else 0)


if __name__ == "__main__":
    main()
