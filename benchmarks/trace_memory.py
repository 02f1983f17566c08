"""Does memory grow with what is finished, or with the length of the trace?

    python -m benchmarks.trace_memory [--lines 100000 1000000] [--requests 20000]

For each length a loadtrace file is generated, planned as a whole, and the first
`requests` of the plan are replayed as fast as 32 at a time allow against a scripted
server in another process. Each length runs in a fresh process, which samples its
own resident memory: before the plan, at its highest while planning, and at every
finished request.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.client_honesty import Setup, scripted_engine
from loadgen.client.backends import RequestOptions, Target
from loadgen.plan.load import Load
from loadgen.plan.plan import PlannedSession, make_plan, read_plan
from loadgen.replay.clock import SystemClock
from loadgen.replay.replay import RunStats, replay
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder

TARGET_BYTES_PER_REQUEST = 2048
AT_ONCE = 32
SETTLED = 0.25  # of the requests: by then pools, caches and the allocator are warm


def resident_bytes() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write_trace(path: Path, lines: int) -> None:
    with path.open("w") as out:
        out.write('{"loadtrace": "loadtrace/1", "name": "long"}\n')
        for number in range(lines):
            turn = {"timestamp": number * 5, "kind": "code", "output_length": 4}
            turn |= {"input_length": 50 + number % 100}
            out.write(json.dumps(turn) + "\n")


def growth_per_request(samples: array[int]) -> float:
    """Slope of resident bytes over finished requests, once things have settled."""
    settled = np.array(samples[int(len(samples) * SETTLED) :])
    return float(np.polyfit(np.arange(len(settled)), settled, 1)[0])


def measured(lines: int, requests: int, folder: Path) -> dict[str, Any]:
    """One length, in this process."""
    trace, plan = folder / "trace.jsonl", folder / "plan.jsonl"
    write_trace(trace, lines)
    before = resident_bytes()
    began = time.monotonic()
    header, _ = make_plan(trace, Load(rate_per_second=float("inf")), plan)
    planned = time.monotonic() - began
    planning_peak = peak_bytes()
    samples = array("q")
    progress = Progress(watchers=[lambda result: samples.append(resident_bytes())])
    _, sessions = read_plan(plan)
    sessions = itertools.islice(sessions, requests)
    stats = replayed(sessions, folder / "requests.jsonl", progress)
    return {
        "lines": lines,
        "planned_requests": header.requests,
        "planning_seconds": planned,
        "before_bytes": before,
        "planning_peak_bytes": planning_peak,
        "finished": progress.ok,
        "failed": progress.failed,
        "requests_per_second": progress.ok / stats.end_seconds,
        "growth_bytes_per_request": growth_per_request(samples),
        "replay_end_bytes": samples[-1],
    }


def replayed(
    sessions: Iterator[PlannedSession], out: Path, progress: Progress
) -> RunStats:
    """As fast as `AT_ONCE` requests in flight allow."""

    async def main(url: str) -> RunStats:
        with Recorder(out) as recorder:
            return await replay(
                sessions,
                target=Target(url, "vllm", model="scripted"),
                options=RequestOptions(),
                recorder=recorder,
                progress=progress,
                clock=SystemClock(),
                max_concurrency=AT_ONCE,
            )

    with scripted_engine(Setup(0, 0, tokens=4, first_ms=1, gap_ms=1, seed=0)) as url:
        return uvloop.run(main(url))


def in_fresh_process(lines: int, requests: int) -> dict[str, Any]:
    module = "benchmarks.trace_memory"
    command = [sys.executable, "-m", module, "--requests", str(requests)]
    done = subprocess.run(
        [*command, "--one", str(lines)], check=True, stdout=subprocess.PIPE, text=True
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def show(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        growth = row["growth_bytes_per_request"]
        verdict = "reached" if growth <= TARGET_BYTES_PER_REQUEST else "MISSED"
        print(
            f"{row['lines']:>9} lines: planned in {row['planning_seconds']:.1f} s, "
            f"resident {row['before_bytes'] / 1e6:.1f} MB before, at most "
            f"{row['planning_peak_bytes'] / 1e6:.1f} MB while planning; replayed "
            f"{row['finished']} ({row['failed']} failed) at "
            f"{row['requests_per_second']:.0f}/s, {growth:.0f} bytes more per finished "
            f"request (target <= {TARGET_BYTES_PER_REQUEST}: {verdict}), "
            f"{row['replay_end_bytes'] / 1e6:.1f} MB at the end"
        )
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        more = last["lines"] - first["lines"]
        for name in ("planning_peak_bytes", "replay_end_bytes"):
            per_line = (last[name] - first[name]) / more
            print(
                f"{name.replace('_', ' '):>19}: {per_line:+.1f} per line of the trace"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lines", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measured(given.one, given.requests, Path(folder))))
        return
    rows = [in_fresh_process(lines, given.requests) for lines in given.lines]
    show(rows)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
