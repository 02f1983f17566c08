"""CPU per request of a whole proxy with `--record` and without, in one run.

    python benchmarks/recording_cost.py [--rounds 5] [--requests 200] [--json]

Two `metering-proxy serve` before one engine that plays a script take turns at the same
requests: a prompt of so many words, half of them shared with the others, and a reply of
so many events. CPU is what the kernel charged to the process, all threads together; the
time to the first byte is the client's. A ratio of the two is what a recording costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from loadgen.plan.prompts import WORDS

ENGINE = (
    "import asyncio; from benchmarks.relay_cost import engine; asyncio.run(engine())"
)
LOADS = ((200, 100), (2000, 100), (2000, 400), (10_000, 400))
"""Words of the prompt, events of the reply."""
CLIENTS = 20
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cost:
    """Medians over the rounds of one load."""

    words: int
    events: int
    plain_ms: float
    """CPU per request without a recording."""
    recording_ms: float
    ratio: float
    """Median of the rounds' own ratios."""
    first_byte_plain_ms: float
    first_byte_recording_ms: float


@contextlib.contextmanager
def started(*command: str, folder: Path) -> Iterator[tuple[int, str]]:
    """A process and the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        out: IO[str] | None = process.stdout
        assert out is not None
        yield process.pid, out.readline()
    finally:
        process.kill()
        process.communicate()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def bodies(words: int, events: int, count: int, seed: int) -> list[bytes]:
    """Requests that begin alike, on half of their words."""
    draw = random.Random(seed)
    shared = " ".join(random.Random(0).choices(WORDS, k=words // 2))
    return [
        json.dumps(
            {
                "model": "tiny", "stream": True, "max_tokens": events,
                "gap_seconds": 0.001,
                "messages": [
                    {"role": "system", "content": shared},
                    {"role": "user",
                     "content": " ".join(draw.choices(WORDS, k=words - words // 2))},
                ],
            }
        ).encode()
        for _ in range(count)
    ]  # fmt: skip


async def ask_all(port: int, waiting: list[bytes]) -> list[float]:
    """Send all of these, some at a time; seconds to each first byte."""
    first: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while waiting:
            body = waiting.pop()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            began, tail = time.perf_counter(), b""
            while not tail.endswith(b"0\r\n\r\n"):
                data = await reader.read(65536)
                assert data, "the proxy left"
                if not tail:
                    first.append(time.perf_counter() - began)
                tail = (tail + data)[-5:]
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(CLIENTS):
            tasks.create_task(client())
    return first


def measure(rounds: int, requests: int, folder: Path) -> list[Cost]:
    """The costs of every load."""
    found: list[Cost] = []
    with contextlib.ExitStack() as stack:
        _, port = stack.enter_context(started("-c", ENGINE, folder=folder))
        serve = (
            "-m", "proxy", "serve", "--upstream", f"http://127.0.0.1:{port.strip()}",
            "--power", "none", "--store", "none", "--engine-metrics", "none",
            "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--announce",
        )  # fmt: skip
        record = ("--record", str(folder / "trace.jsonl"))
        proxies: list[tuple[int, int]] = []
        for more in ((), record):
            pid, line = stack.enter_context(started(*serve, *more, folder=folder))
            proxies.append((pid, urlsplit(json.loads(line)["url"]).port or 0))
        for words, events in LOADS:
            costs: list[list[float]] = [[], []]
            firsts: list[list[float]] = [[], []]
            for number in range(rounds + 1):
                for which in (0, 1) if number % 2 else (1, 0):
                    pid, relay_port = proxies[which]
                    sent = bodies(words, events, requests, number)
                    before = cpu_seconds(pid)
                    first = asyncio.run(ask_all(relay_port, sent))
                    time.sleep(0.5)  # what is recorded after the last reply
                    used = cpu_seconds(pid) - before
                    if number:  # the first one warms up
                        costs[which].append(1000 * used / requests)
                        firsts[which].append(1000 * statistics.median(first))
            plain, recording = costs
            pairs = zip(plain, recording, strict=True)
            found.append(
                Cost(
                    words,
                    events,
                    statistics.median(plain),
                    statistics.median(recording),
                    statistics.median(more / less for less, more in pairs),
                    statistics.median(firsts[0]),
                    statistics.median(firsts[1]),
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        costs = measure(options.rounds, options.requests, Path(folder))
    if options.json:
        print(json.dumps([asdict(cost) for cost in costs], indent=2))
        return
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python "
          f"{platform.python_version()}; per request:")  # fmt: skip
    print("words  events  CPU plain  recording  ratio  first byte plain  recording")
    for cost in costs:
        cells = (
            f"{cost.words:5d}", f"{cost.events:6d}", f"{cost.plain_ms:6.2f} ms",
            f"{cost.recording_ms:6.2f} ms", f"{cost.ratio:5.2f}",
            f"{cost.first_byte_plain_ms:13.2f} ms",
            f"{cost.first_byte_recording_ms:6.2f} ms",
        )  # fmt: skip
        print("  ".join(cells))


if __name__ == "__main__":
    main()
