"""Is the client's own measurement true, and what does it cost?

    python benchmarks/client_honesty.py [--rate 200] [--seconds 20] [--json FILE]
    python benchmarks/client_honesty.py --processes 2 [--turns 3] [--rate 200]

A scripted server in a process of its own answers after a known delay and keeps its
own stamps (same machine, same monotonic clock). Printed: how late requests were
sent against their schedule, how much the client's time to first token exceeds the
server's own, the client's CPU per token event, and beside it what bare reads on
the same event loop cost and, where the `vllm` command is installed, what
`vllm bench serve` costs against the same server. With `--processes` the same load is
sent by one process and by several in turns, and nothing else is run: the lag is that
of the worst process, the CPU that of all, the process that reads their records apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import uvloop

from loadgen.client.backends import RequestOptions, Target
from loadgen.plan.plan import PlanHeader, PlannedSession, PlannedTurn
from loadgen.plan.shards import Shard
from loadgen.replay.clock import SystemClock
from loadgen.replay.replay import RunStats, replay
from loadgen.results.parts import order_by_end
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder, read_results
from loadgen.results.results import Result
from loadgen.run.processes import replay_in_processes
from loadgen.run.sender import Job
from loadgen.run.together import Tracking

REFERENCE_VLLM_US = 14.0  # measured elsewhere, on an idle 2-vCPU AMD EPYC VM
TARGET_LAG_P99_MS = 5.0
TARGET_BIAS_P50_MS = 1.0


@dataclass(frozen=True)
class Setup:
    """The load and the script, the same for everything compared."""

    rate_per_second: float
    seconds: float
    tokens: int
    first_ms: float
    gap_ms: float
    seed: int

    def starts_seconds(self) -> list[float]:
        """Poisson arrivals, drawn once for everything that is compared."""
        generator = np.random.default_rng(self.seed)
        gaps = generator.exponential(
            1 / self.rate_per_second, int(self.rate_per_second * self.seconds)
        )
        return [float(start) for start in np.cumsum(gaps)]


@contextlib.contextmanager
def scripted_engine(setup: Setup) -> Iterator[str]:
    """The server's URL, while its process runs."""
    command = [sys.executable, str(Path(__file__).with_name("scripted_engine.py"))]
    command += ["--tokens", str(setup.tokens), "--first-ms", str(setup.first_ms)]
    command += ["--gap-ms", str(setup.gap_ms)]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
    finally:
        server.stdin.close()
        server.wait()


def stamps_of(url: str) -> dict[str, tuple[float, float]]:
    """Server side: id -> when the request was read, when its first token went."""
    with urllib.request.urlopen(f"{url}/stamps") as reply:
        lines = [json.loads(line) for line in reply]
    return {line[0]: (line[1], line[2]) for line in lines}


def sessions(setup: Setup) -> Iterator[PlannedSession]:
    for number, start in enumerate(setup.starts_seconds()):
        turn = PlannedTurn(
            request_id=f"r{number}", input_tokens=100, output_tokens=setup.tokens
        )
        yield PlannedSession(session_id=f"s{number}", start_seconds=start, turns=[turn])


def our_client(setup: Setup) -> dict[str, Any]:
    with scripted_engine(setup) as url, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.jsonl"

        async def main() -> tuple[RunStats, float]:
            with Recorder(path) as recorder:
                before = time.process_time()
                stats = await replay(
                    sessions(setup),
                    target=Target(url, "vllm", model="scripted"),
                    options=RequestOptions(),
                    recorder=recorder,
                    progress=Progress(),
                    clock=SystemClock(),
                )
                return stats, time.process_time() - before

        stats, cpu_seconds = uvloop.run(main())
        results = list(read_results(path))
        stamps = stamps_of(url)
    return our_figures(setup, stats, cpu_seconds, results, stamps)


def our_processes(setup: Setup, processes: int) -> dict[str, Any]:
    """The same load by `loadgen replay --processes`, without the start of each."""
    with scripted_engine(setup) as url, tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = [
            Job(
                plan=str(written_plan(setup, folder / "plan.jsonl")),
                shard=Shard(number, (1,) * processes),
                records=str(folder / f"requests-{number + 1}.jsonl"),
                target=Target(url, "vllm", model="scripted"),
                options=RequestOptions(),
                max_concurrency=None,
                is_closed_loop=False,
                timeout_seconds=600.0,
                seed=0,
            )
            for number in range(processes)
        ]
        before = time.process_time()
        with Recorder(folder / "requests.jsonl") as recorder:
            stats, parts = replay_in_processes(
                jobs,
                log_folder=folder,
                tracking=Tracking(
                    plan=folder / "plan.jsonl",
                    recorder=recorder,
                    progress=Progress(),
                    max_errors=None,
                    warn=print,
                ),
            )
        order_by_end(recorder.path)
        reading_seconds = time.process_time() - before
        results = list(read_results(recorder.path))
        stamps = stamps_of(url)
    cpu_seconds = sum(part.cpu_seconds or 0.0 for part in parts)
    lags = [float(np.percentile(part.lag_seconds, 99)) * 1000 for part in parts]
    return our_figures(setup, stats, cpu_seconds, results, stamps) | {
        "worst_lag_p99_ms": max(lags),
        "reading_core_share": reading_seconds / stats.end_seconds,
    }


def written_plan(setup: Setup, path: Path) -> Path:
    """The load as a plan."""
    every = list(sessions(setup))
    header = PlanHeader(
        trace="scripted", trace_format="loadtrace", arrival="poisson",
        rate_per_second=setup.rate_per_second, burstiness=None, seed=setup.seed,
        sessions=len(every), requests=len(every),
        span_seconds=every[-1].start_seconds,
    )  # fmt: skip
    path.write_bytes(msgspec.json.Encoder().encode_lines([header, *every]))
    return path


def in_turns(setup: Setup, processes: int, turns: int) -> list[dict[str, Any]]:
    """One process and several, one after the other, so that both meet the same host."""
    print(
        "processes  tokens/s  lag p99 (worst)  TTFT bias p50  us/token  cores  reading"
    )
    found = []
    for count in (1, processes) * turns:
        figures = our_processes(setup, count) | {"processes": count}
        found.append(figures)
        print(
            f"{count:9}  {figures['tokens_per_second']:8.0f}  "
            f"{figures['worst_lag_p99_ms']:12.2f} ms  "
            f"{figures['ttft_bias_ms']['p50']:10.3f} ms  "
            f"{figures['cpu_us_per_token_event']:8.1f}  {figures['core_share']:5.2f}  "
            f"{figures['reading_core_share']:7.2f}",
            flush=True,
        )
    return found


def our_figures(
    setup: Setup,
    stats: RunStats,
    cpu_seconds: float,
    results: list[Result],
    stamps: dict[str, tuple[float, float]],
) -> dict[str, Any]:
    ok = [r for r in results if r.outcome == "ok"]
    lags, ttfts, biases = [], [], []
    for result in ok:
        assert result.sent_seconds is not None
        assert result.first_token_seconds is not None
        read_at, first_at = stamps[result.request_id]
        lags.append(result.sent_seconds - result.planned_seconds)
        ttfts.append(result.first_token_seconds - result.sent_seconds)
        biases.append(ttfts[-1] - (first_at - read_at))
    sent = sorted(r.sent_seconds for r in ok if r.sent_seconds is not None)
    tokens = sum(r.output_tokens or 0 for r in ok)
    return {
        "requests": len(results),
        "failed": len(results) - len(ok),
        "tokens": tokens,
        "offered_per_second": setup.rate_per_second,
        "planned_per_second": len(results) / setup.starts_seconds()[-1],
        "achieved_per_second": len(sent) / sent[-1],
        "tokens_per_second": tokens / stats.end_seconds,
        "schedule_lag_ms": percentiles(lags),
        "ttft_ms": percentiles(ttfts),
        "ttft_bias_ms": percentiles(biases),
        "loop_lag_p99_ms": (stats.loop_lag.p99_seconds or 0.0) * 1000,
        "connections": stats.connections.opened,
        "cpu_us_per_token_event": cpu_seconds / tokens * 1e6,
        "core_share": cpu_seconds / stats.end_seconds,
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    values = np.percentile(np.array(seconds) * 1000, [50, 90, 99, 100])
    return dict(zip(("p50", "p90", "p99", "max"), map(float, values), strict=True))


class BareReader(asyncio.Protocol):
    """Counts reads and nothing else: what the event loop itself costs."""

    reads = 0

    def __init__(self) -> None:
        self.ended: asyncio.Future[None]
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """One read."""
        BareReader.reads += 1
        if data.endswith(b"0\r\n\r\n"):
            self.ended.set_result(None)


def bare_reads(setup: Setup) -> dict[str, Any]:
    """The same load, received by a protocol that looks at nothing."""
    body = b"x" * 600
    head = b"POST / HTTP/1.1\r\nx-request-id: a\r\ncontent-length: 600\r\n\r\n"

    async def main(port: int) -> float:
        loop = asyncio.get_running_loop()
        idle: list[BareReader] = []

        async def one(due: float) -> None:
            await asyncio.sleep(due - time.monotonic())
            if idle:
                reader = idle.pop()
            else:
                connecting = loop.create_connection(BareReader, "127.0.0.1", port)
                reader = (await connecting)[1]
            reader.ended = loop.create_future()
            reader.transport.write(head + body)
            await reader.ended
            idle.append(reader)

        zero = time.monotonic() + 0.1
        before = time.process_time()
        async with asyncio.TaskGroup() as group:
            for start in setup.starts_seconds():
                group.create_task(one(zero + start))
        return time.process_time() - before

    with scripted_engine(setup) as url:
        cpu_seconds = uvloop.run(main(int(url.rpartition(":")[2])))
    return {"cpu_us_per_read": cpu_seconds / BareReader.reads * 1e6}


def vllm_bench(setup: Setup, tokenizer: Path | None) -> dict[str, Any] | None:
    """`vllm bench serve` against the same server, None where it cannot run.

    Its CPU is that of the whole process less that of a run of one request, which
    takes off the start (importing torch) but not the summary.
    """
    command = shutil.which("vllm")
    if command is None or tokenizer is None:
        return None
    bench = [command, "bench", "serve", "--tokenizer", str(tokenizer)]
    few = vllm_cpu_seconds(bench, setup, 1)[0]
    count = len(setup.starts_seconds())
    cpu_seconds, figures = vllm_cpu_seconds(bench, setup, count)
    return {
        "cpu_us_per_token_event": (cpu_seconds - few) / (count * setup.tokens) * 1e6,
        "median_ttft_ms": figures["median_ttft_ms"],
        "p99_ttft_ms": figures["p99_ttft_ms"],
        "completed": figures["completed"],
    }


def vllm_cpu_seconds(
    bench: list[str], setup: Setup, count: int
) -> tuple[float, dict[str, Any]]:
    with scripted_engine(setup) as url, tempfile.TemporaryDirectory() as folder:
        arguments = [*bench, "--backend", "openai-chat", "--model", "scripted"]
        arguments += ["--base-url", url, "--endpoint", "/v1/chat/completions"]
        arguments += ["--dataset-name", "random", "--random-input-len", "100"]
        arguments += ["--random-output-len", str(setup.tokens), "--disable-tqdm"]
        arguments += ["--num-prompts", str(count), "--seed", str(setup.seed)]
        arguments += ["--request-rate", str(setup.rate_per_second)]
        arguments += ["--save-result", "--result-dir", folder]
        arguments += ["--result-filename", "r.json"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(arguments, check=True, stdout=sys.stderr)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        figures = json.loads((Path(folder) / "r.json").read_text())
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return used, figures


def show(figures: dict[str, Any]) -> None:
    ours, bare, vllm = figures["ours"], figures["bare"], figures["vllm"]
    lag, bias = ours["schedule_lag_ms"], ours["ttft_bias_ms"]
    print(
        f"requests        {ours['requests']} sent, {ours['failed']} failed, "
        f"{ours['connections']} connections\n"
        f"rate            planned {ours['planned_per_second']:.2f}/s, achieved "
        f"{ours['achieved_per_second']:.2f}/s, {ours['tokens_per_second']:.0f} tokens/s"
    )
    for name, values, key, target in (
        ("schedule lag", lag, "p99", TARGET_LAG_P99_MS),
        ("TTFT bias", bias, "p50", TARGET_BIAS_P50_MS),
    ):
        verdict = "reached" if values[key] <= target else "MISSED"
        spread = ", ".join(f"{k} {v:.3f}" for k, v in values.items())
        print(f"{name:15} {spread} ms (target {key} <= {target:g} ms: {verdict})")
    print(
        f"loop lag        p99 {ours['loop_lag_p99_ms']:.3f} ms\n"
        f"CPU             {ours['cpu_us_per_token_event']:.1f} us per token event, "
        f"{ours['core_share']:.0%} of a core; everything included: schedule, prompts, "
        "sending, parsing, records\n"
        f"  bare reads    {bare['cpu_us_per_read']:.1f} us per read on the same loop, "
        "looking at nothing: the floor"
    )
    if vllm is None:
        print(
            f"  vllm bench    not run (it needs `vllm` on the PATH and --tokenizer); "
            f"reference {REFERENCE_VLLM_US:g} us per token event, from another machine"
        )
    else:
        print(
            f"  vllm bench    {vllm['cpu_us_per_token_event']:.1f} us per token event "
            f"against the same server; TTFT p50 {vllm['median_ttft_ms']:.2f}, p99 "
            f"{vllm['p99_ttft_ms']:.2f} ms, ours p50 {ours['ttft_ms']['p50']:.2f}, "
            f"p99 {ours['ttft_ms']['p99']:.2f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=200.0, metavar="PER_SECOND")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--first-ms", type=float, default=50.0)
    parser.add_argument("--gap-ms", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="for `vllm bench serve`"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--processes", type=int, metavar="N", help="1 and N in turns")
    parser.add_argument("--turns", type=int, default=3, help="with --processes")
    given = parser.parse_args()
    setup = Setup(
        given.rate,
        given.seconds,
        given.tokens,
        given.first_ms,
        given.gap_ms,
        given.seed,
    )
    if given.processes is not None:
        rows = in_turns(setup, given.processes, given.turns)
        if given.json is not None:
            given.json.write_text(json.dumps(rows, indent=2) + "\n")
        return
    figures = {
        "ours": our_client(setup),
        "bare": bare_reads(setup),
        "vllm": vllm_bench(setup, given.tokenizer),
        "vllm_reference_us": REFERENCE_VLLM_US,
    }
    show(figures)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
