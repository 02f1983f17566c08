"""Does metering hold on this GPU? The whole answer in under eight minutes, offline.

    python -m benchmarks.gpu_validation                  # starts an engine of its own
    python -m benchmarks.gpu_validation --url http://127.0.0.1:8000 --backend vllm
    python -m benchmarks.gpu_validation --simulated      # no GPU: the simulated stack

Needs an NVIDIA GPU, and PyTorch with transformers (4.57 or newer) for an engine of its
own: `transformers serve` with continuous batching on random weights of an 8B-class
shape, made by `benchmarks.gpu_engine`; nothing is downloaded and no setting of the card
is touched. A metering proxy stands before the engine and everything that is asked of
the engine goes through it, but for one request before it starts: work that nobody sees
would pass for idle power. The board's counter is read beside it, by itself.

Each finding is written when it is known (`findings.json`, `page.md` in --out), so a run
that is cut keeps what it has; a step that does not fit into --seconds is left out, and
said to be. `--write` puts the page into docs/validation.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.free_checks import (
    Run,
    class_mix_regression,
    counter_edges,
    counter_period_seconds,
    homogeneous_spread,
    split_ratios,
)
from benchmarks.gpu_findings import (
    Division,
    Samples,
    against_isolated,
    at_the_edges,
    coverage,
    division_lines,
    page_of,
    phase_finding,
    sensor_of,
    with_section,
)
from loadgen.run.stack import Stack
from proxy.errors import ProxyError
from proxy.meter.attribution.policies import POLICIES
from proxy.power.energy_source import EnergySource
from proxy.power.sources import source_opener
from proxy.process.files import write_whole

ROOT = Path(__file__).parent.parent
VALIDATION = ROOT / "docs" / "validation.md"
Finding = dict[str, Any]

MODEL_BYTES = 20e9
STARTED_SECONDS = 180.0
"""For weights, tokenizer, server and its first reply."""
SECOND_TRY_SECONDS = 200.0
"""Left at least, to try a smaller shape where the first one did not start."""
PATIENCE_SECONDS = 12.0
"""For records and books to be final."""
IN_FLIGHT = 8
"""Requests at once in the mixed load, by its rate and the engine's speed."""


@dataclass(frozen=True)
class Sizes:
    """How much is done: for a GPU, and for a test."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    prompt_tokens: int = 256
    most_output_tokens: int = 256
    phase_seconds: float = 4.0
    """Length of one batch's decoding, by the speed that was measured."""
    prefills: int = 10
    prefill_tokens: int = 3000
    bursts: int = 4
    burst_seconds: float = 4.0
    silence_seconds: float = 4.0
    mixed_seconds: float = 45.0
    mixed_prompts: tuple[int, int] = (400, 3000)
    mixed_outputs: tuple[int, int] = (100, 20)
    division_requests: int = 32
    bare_seconds: float = 4.0
    quiet_seconds: float = 1.2


QUICK = Sizes(
    batches=(1, 2), prompt_tokens=64, most_output_tokens=24, phase_seconds=0.5,
    prefills=2, prefill_tokens=600, bursts=2, burst_seconds=0.5, silence_seconds=1.5,
    mixed_seconds=3.0, mixed_prompts=(64, 400), mixed_outputs=(16, 4),
    division_requests=0, bare_seconds=1.0, quiet_seconds=0.6,
)  # fmt: skip


class Findings:
    """What is known so far, on disk at every moment."""

    def __init__(self, folder: Path, seconds: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.known: Finding = {}
        self._deadline = time.monotonic() + seconds
        self._began = time.monotonic()

    @property
    def left_seconds(self) -> float:
        """Time until the program has to be over."""
        return self._deadline - time.monotonic()

    def add(self, name: str, finding: object) -> None:
        """One more finding, and everything so far is written."""
        self.known[name] = finding
        run = self.known.setdefault("run", {})
        run["seconds"] = round(time.monotonic() - self._began, 1)
        text = json.dumps(self.known, indent=1, default=_plain)
        write_whole(self.folder / "findings.json", f"{text}\n".encode())
        write_whole(self.folder / "page.md", page_of(self.known).encode())
        print(f"{run['seconds']:6.1f} s  {name}", flush=True)

    def step(self, name: str, least_seconds: float, find: Callable[[], object]) -> None:
        """Find something, unless the time does not do; a fault ends no other step."""
        if self.left_seconds < least_seconds:
            reason = f"needs {least_seconds:.0f} s, {self.left_seconds:.0f} s were left"
        else:
            try:
                self.add(name, find())
                return
            except (Exception, SystemExit) as error:  # the next step may do
                reason = f"{type(error).__name__}: {error}"
        self.add("left_out", {**self.known.get("left_out", {}), name: reason[:300]})


class Watch(threading.Thread):
    """Reads the sensor beside the proxy, as fast as asked, and keeps every row."""

    def __init__(
        self, source: EnergySource, average: Callable[[], float | None], every: float
    ) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._average = average
        self._every = every
        self._rows: list[tuple[float, float | None, float | None, float | None]] = []
        self._done = threading.Event()

    def run(self) -> None:
        """One row per read; a failed one is left out."""
        while not self._done.wait(self._every):
            with suppress(ProxyError):
                begin = time.time()
                readings = self._source.read()
                at = (begin + time.time()) / 2
                joules = _sum([reading.joules for reading in readings])
                watts = _sum([reading.watts for reading in readings])
                self._rows.append((at, joules, watts, self._average()))

    def stop(self) -> None:
        """End; the rows stay."""
        self._done.set()
        self.join()

    def between(self, begin: float = 0.0, end: float = math.inf) -> Samples:
        """What was read between two instants; what any row lacks is unknown."""
        rows = [row for row in tuple(self._rows) if begin <= row[0] <= end]
        if not rows:
            raise ValueError("the sensor was not read in this time")
        at, *columns = zip(*rows, strict=True)
        joules, watts, average = (
            None if None in column else np.array(column, np.float64)
            for column in columns
        )
        return Samples(np.array(at, np.float64), joules, watts, average)


@dataclass(frozen=True)
class Engine:
    """What is metered, and how requests are sent to it."""

    url: str
    backend: str
    model: str | None
    power: str
    truth_url: str | None = None


class Bench:
    """The engine with a metering proxy before it."""

    def __init__(
        self, engine: Engine, gpus: str, folder: Path, stack: Stack, watch: Watch,
        quiet_seconds: float, bare_watts: float | None = None,
    ) -> None:  # fmt: skip
        self.quiet_seconds = quiet_seconds
        """Silence on both sides of a load: more than two windows of the books."""
        self.engine = engine
        self.watch = watch
        self._folder = folder
        self._cursor = 0
        self._runs = 0
        self.out_tokens = 32
        self.tpot_seconds = 0.03
        arguments = ["serve", "--upstream", engine.url, "--power", engine.power]
        arguments += ["--engine", engine.backend, "--store", "none"]
        arguments += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        if gpus:
            arguments += ["--gpus", gpus]
        if bare_watts is not None:
            arguments += ["--bare-idle-watts", f"{bare_watts:.3f}"]
        self.proxy = stack.start("proxy", "proxy", arguments)
        self.admin_url = str(self.proxy.announced["admin_url"])

    def ask(self, path: str) -> Any:
        """JSON of the proxy's admin API."""
        reply = httpx.get(self.admin_url + path, trust_env=False, timeout=10)
        return reply.json()

    def wait_ready(self, seconds: float = 30.0) -> list[str]:
        """Wait until energy is known; else why it is not."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(httpx.HTTPError):
                found = self.ask("/readyz")
                if found["ready"] or time.monotonic() > deadline:
                    return list(found["reasons"])
            time.sleep(0.25)

    def send(
        self, turns: Sequence[Finding], *how: str
    ) -> tuple[Finding, list[Finding]]:
        """Send these requests through the proxy: the run's summary, and its records."""
        self._runs += 1
        trace = self._folder / f"trace{self._runs}.jsonl"
        header = {"loadtrace": "loadtrace/1", "name": trace.stem, "kind": "other"}
        trace.write_text("".join(json.dumps(line) + "\n" for line in (header, *turns)))
        out = self._folder / f"run{self._runs}"
        command = [sys.executable, "-m", "loadgen", "replay", str(trace), *how]
        command += ["--url", self.proxy.url, "--ledger", self.admin_url, "--quiet"]
        command += ["--backend", self.engine.backend, "--seed", str(self._runs)]
        command += ["--out", str(out)]
        if self.engine.model:
            command += ["--model", self.engine.model]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode not in {0, 3}:
            raise RuntimeError(ended.stderr.strip()[-300:] or "loadgen replay failed")
        summary = json.loads((out / "summary.json").read_text())
        if not summary["completed"]:
            raise RuntimeError(f"no request was answered: {summary['errors'][:1]}")
        records: list[Finding] = []
        deadline = time.monotonic() + PATIENCE_SECONDS
        while len(records) < summary["completed"] and time.monotonic() < deadline:
            records += self._settled()
            time.sleep(0.1)
        known = [r for r in records if r["energy"]["energy_joules"] is not None]
        known.sort(key=lambda record: float(record["arrived_unix_seconds"]))
        return summary, known

    def _settled(self) -> list[Finding]:
        """Records settled since they were last asked for."""
        reply = httpx.get(
            f"{self.admin_url}/requests?since={self._cursor}&limit=10000",
            trust_env=False, timeout=30,
        )  # fmt: skip
        found = [json.loads(line) for line in reply.text.splitlines()]
        if found:
            self._cursor = found[-1]["sequence"]
        return found

    def books(self, at_unix: float) -> Finding:
        """The books of an instant, once they are final."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            found: Finding = self.ask(f"/books?at={at_unix:.6f}")
            if found["complete"] or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def load(
        self, name: str, turns: Sequence[Finding], *how: str
    ) -> tuple[Finding, list[Finding]]:
        """One load between silences: counter, books, records, clocks of that time."""
        quiet_seconds = self.quiet_seconds
        time.sleep(quiet_seconds)
        begin = time.time()
        time.sleep(quiet_seconds)
        summary, records = self.send(turns, *how)
        time.sleep(quiet_seconds)
        end = time.time()
        time.sleep(quiet_seconds)
        books = (self.books(begin), self.books(end))
        boards = self.ask(f"/hardware?from_unix={begin:.3f}&to_unix={end:.3f}")
        finding = phase_finding(
            name, (begin, end), self.watch.between(), books, records, summary
        )
        finding["boards"] = [
            board for each in boards["engines"].values() for board in each["window"]
        ]
        return finding, records


# -- steps ---------------------------------------------------------------------


def speed(bench: Bench, sizes: Sizes) -> Finding:
    """How fast the engine is: everything after it is cut to fit."""
    turns = [turn(sizes.prompt_tokens, 32)] * 2
    summary, _ = bench.send(turns, "--rate", "inf", "--max-concurrency", "1")
    bench.tpot_seconds = max(float(summary["median_tpot_ms"] or 30.0) / 1e3, 1e-4)
    fitting = sizes.phase_seconds / bench.tpot_seconds
    bench.out_tokens = int(min(max(fitting, 16), sizes.most_output_tokens))
    return {
        "tpot_seconds": bench.tpot_seconds,
        "ttft_seconds": float(summary["median_ttft_ms"] or 0.0) / 1e3,
        "output_tokens_of_a_phase": bench.out_tokens,
    }


def idle(bench: Bench) -> Finding:
    """Power with the model loaded and nothing running, read and learnt."""
    reasons = bench.wait_ready()
    begin = time.time()
    time.sleep(3 * bench.quiet_seconds)
    watts = _mean_watts(bench.watch.between(begin))
    books = bench.ask("/books")
    return {
        "read_watts": watts,
        "learnt_watts": books["idle_watts"],
        "source": books["idle_source"],
        "model_watts": books["model_idle_watts"],
        "not_ready": reasons,
    }


def phases(
    bench: Bench, sizes: Sizes, findings: Findings
) -> tuple[list[Finding], dict[str, list[Finding]]]:
    """Single stream, batches, prefill alone and decode alone; written one by one."""
    found: list[Finding] = []
    records: dict[str, list[Finding]] = {}

    def run(name: str, turns: Sequence[Finding], *how: str) -> None:
        def find() -> Finding:
            finding, records[name] = bench.load(name, turns, *how)
            found.append(finding)
            return finding

        findings.step(f"phase {name}", sizes.phase_seconds + 12, find)

    alone = ("--rate", "inf", "--max-concurrency", "1")
    for batch in sizes.batches:
        turns = [turn(sizes.prompt_tokens, bench.out_tokens)] * batch
        name = "single stream" if batch == 1 else f"batch {batch}"
        run(name, turns, "--rate", "inf")
    run("prefill alone", [turn(sizes.prefill_tokens, 1)] * sizes.prefills, *alone)
    at_once = sizes.batches[len(sizes.batches) // 2]
    run("decode alone", [turn(16, 2 * bench.out_tokens)] * at_once, "--rate", "inf")
    return found, records


def bursts(bench: Bench, sizes: Sizes, tpot_seconds: float) -> Finding:
    """Load and silence in turn, each as long as it says at this engine's speed."""
    tokens = int(min(max(sizes.burst_seconds / tpot_seconds, 16), 600))
    period = 1.2 * tokens * tpot_seconds + sizes.silence_seconds
    turns = [
        turn(200, tokens, burst * period) for burst in range(sizes.bursts)
        for _ in range(IN_FLIGHT)
    ]  # fmt: skip
    begin = time.time()
    time.sleep(bench.quiet_seconds)
    _, records = bench.send(turns, "--arrival", "trace", "--no-dejitter")
    time.sleep(2 * bench.quiet_seconds)
    spans = spans_of(records)
    found = asdict(sensor_of(bench.watch.between(begin), spans))
    watts = bench.watch.between(begin)
    settled = max(end for _, end in spans)
    found["idle_just_after_watts"] = _mean_watts(watts, settled + 0.2, settled + 1.2)
    found["bursts"], found["tokens"] = sizes.bursts, tokens
    found["learnt_idle_watts"] = bench.ask("/books")["idle_watts"]
    return found


def mixed(
    bench: Bench, sizes: Sizes, tpot_seconds: float
) -> tuple[Finding, list[Finding]]:
    """Short and long prompts at random, about as many at once as a small service."""
    service_seconds = float(np.mean(sizes.mixed_outputs)) * tpot_seconds
    rate = min(IN_FLIGHT / service_seconds, 6.0)
    count = max(int(rate * sizes.mixed_seconds), 8)
    kinds = np.random.default_rng(7).integers(0, 2, count).tolist()
    turns = [
        turn(sizes.mixed_prompts[kind], sizes.mixed_outputs[kind]) for kind in kinds
    ]
    finding, records = bench.load(
        "mixed", turns, "--rate", f"{rate:.3f}", "--arrival", "poisson"
    )
    finding["rate_per_second"] = rate
    return finding, records


def division(bench: Bench, sizes: Sizes, rate: float) -> list[str]:
    """Checks that need no truth, for every policy on the same runs."""
    kinds = ("conversation", "code")

    def steady(names: Sequence[str], arrival: str) -> list[Finding]:
        turns = [
            turn(sizes.mixed_prompts[n == "code"], sizes.mixed_outputs[n == "code"])
            | {"kind": n}
            for n in names
        ]
        _, records = bench.send(turns, "--rate", f"{rate:.3f}", "--arrival", arrival)
        return records

    def mix(count: int, *parts: int) -> list[str]:
        one = [
            kind for kind, part in zip(kinds, parts, strict=True) for _ in range(part)
        ]
        order = np.random.default_rng(7).permutation(count)
        return [one[int(index) % len(one)] for index in order]

    count = sizes.division_requests
    alike = [steady([kind] * count, "constant") for kind in kinds]
    mixes = [steady(mix(count, *p), "poisson") for p in ((3, 1), (1, 1), (1, 3))]
    mixes += alike
    whole = steady(mix(2 * count, 1, 1), "poisson")
    halves = [steady(mix(count, 1, 1), "poisson") for _ in range(2)]
    return division_lines(
        [
            Division(
                policy,
                [
                    homogeneous_spread(run_of(records, policy).joules)
                    for records in alike
                ],
                class_mix_regression([run_of(each, policy) for each in mixes], kinds),
                split_ratios(
                    run_of(whole, policy), [run_of(half, policy) for half in halves]
                ),
            )
            for policy in POLICIES
        ]
    )


def counter(watch: Watch, seconds: float) -> Finding:
    """The counter by itself: how often it moves, and by how little."""
    begin = time.time()
    time.sleep(seconds)
    samples = watch.between(begin)
    found: Finding = {
        "reads_per_second": len(samples.at_seconds) / seconds,
        "watts": _mean_watts(samples),
        "instant_watts": None if samples.watts is None else float(samples.watts.mean()),
        "average_watts": None
        if samples.average_watts is None
        else float(samples.average_watts.mean()),
    }
    if samples.joules is not None:
        edges, values = counter_edges(samples.at_seconds, samples.joules)
        steps = np.diff(values)
        found["least_step_joules"] = float(steps.min()) if len(steps) else None
        with suppress(ValueError):
            found["period_seconds"] = counter_period_seconds(
                samples.at_seconds, samples.joules
            )
            found["period_p95_seconds"] = float(np.quantile(np.diff(edges), 0.95))
    return found


def truths(engine: Engine, records: Sequence[Finding]) -> dict[str, float]:
    """What the simulator knows that requests cost; empty on a machine."""
    if engine.truth_url is None:
        return {}
    reply = httpx.get(engine.truth_url, trust_env=False, timeout=30)
    known = [json.loads(line) for line in reply.text.splitlines()]
    # the simulator's ids have the dialect's own start
    by_id = {str(each["request_id"]): float(each["energy_joules"]) for each in known}
    return {
        record["request_id"]: by_id[name]
        for record in records
        for name in by_id
        if name.endswith(record["request_id"])
    }


def everything(
    options: argparse.Namespace,
    findings: Findings,
    folder: Path,
    stack: Stack,
    engines: ExitStack,
) -> None:
    """All steps, in order of value."""
    sizes = QUICK if options.quick else Sizes()
    findings.add("run", run_facts(options))
    if options.simulated:
        engine = simulated_engine(stack)
        source = opened(engine.power, options.gpus)
    else:
        source = opened(options.power, options.gpus)
        findings.step("board", 0, lambda: board_facts(source, options.gpus))
    every = 0.02 if options.simulated else 0.005
    watch = Watch(source, average_reader(source, options.gpus), every)
    watch.start()
    try:
        name = "loaded_counter" if options.simulated or options.url else "bare"
        findings.step(name, 5, lambda: counter(watch, sizes.bare_seconds))
        if not options.simulated:
            engine = named_or_own(options, findings, folder, engines)
        bare_watts = findings.known.get("bare", {}).get("watts")
        bench = Bench(
            engine, options.gpus, folder, stack, watch, sizes.quiet_seconds, bare_watts
        )
        findings.step("idle", 10, lambda: idle(bench))
        measured(bench, sizes, findings)
    finally:
        watch.stop()
        source.close()


def named_or_own(
    options: argparse.Namespace, findings: Findings, folder: Path, engines: ExitStack
) -> Engine:
    """The engine that was named, or one of our own, which ends with `engines`."""
    if options.url is not None:
        return Engine(options.url, options.backend, options.model, options.power)
    shapes = [options.shape, *(["3b"] if options.shape == "8b" else [])]
    reasons: list[str] = []
    for shape in shapes:
        if reasons and findings.left_seconds < SECOND_TRY_SECONDS:
            break
        trying = ExitStack()
        try:
            engine, facts = own_engine(
                options, shape, folder, findings.left_seconds, trying
            )
        except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
            trying.close()
            reasons.append(f"{shape}: {error}")
            left_out = findings.known.get("left_out", {})
            findings.add("left_out", {**left_out, f"engine {shape}": str(error)[-300:]})
            continue
        engines.push(trying.pop_all())
        findings.add("engine", facts)
        return engine
    sys.exit(f"gpu_validation: {'; '.join(reasons)}")


def measured(bench: Bench, sizes: Sizes, findings: Findings) -> None:
    """The loads, and what they say together."""
    findings.step("speed", 10, lambda: speed(bench, sizes))
    found, records = phases(bench, sizes, findings)
    batches = {each["name"]: each for each in found}
    busy = batches.get("batch 8") or (found[-1] if found else None)
    tpot = (busy or {}).get("tpot_seconds") or bench.tpot_seconds
    if busy is not None and records.get(busy["name"]):
        alike = records[busy["name"]]
        findings.step(
            "edges", 1,
            lambda: at_the_edges(bench.watch.between(), bench.books, alike),
        )  # fmt: skip
    together: list[Finding] = []

    def mix() -> Finding:
        finding, kept = mixed(bench, sizes, tpot)
        together.append(finding)
        records["mixed"] = kept
        return finding

    findings.step("mixed", sizes.mixed_seconds + 15, mix)
    if together:
        findings.step("split", 1, lambda: against_isolated(found, together[0]))

    def covered() -> Finding:
        alike = {name: kept for name, kept in records.items() if name != "mixed"}
        known = truths(bench.engine, [r for each in records.values() for r in each])
        return coverage(alike, records.get("mixed", []), known)

    findings.step("coverage", 1, covered)
    seconds = sizes.bursts * 2.5 * (sizes.burst_seconds + sizes.silence_seconds)
    findings.step("sensor", seconds / 2 + 10, lambda: bursts(bench, sizes, tpot))
    findings.step("calibration", 1, lambda: bench.ask("/calibration")["calibrations"])
    if sizes.division_requests:
        rate = together[0]["rate_per_second"] if together else 2.0
        least = 9 * sizes.division_requests / rate + 8 * 6
        findings.step("division", least, lambda: division(bench, sizes, rate))


# -- what it runs on -----------------------------------------------------------


def simulated_engine(stack: Stack) -> Engine:
    """The simulated stack."""
    arguments = ["simulate", "--listen", "127.0.0.1:0", "--gpu", "h100"]
    child = stack.start("simulator", "loadgen", arguments)
    power = f"dcgm={child.announced['power_url']}"
    return Engine(child.url, "vllm", None, power, str(child.announced["truth_url"]))


def own_engine(
    options: argparse.Namespace,
    shape: str,
    folder: Path,
    seconds: float,
    engines: ExitStack,
) -> tuple[Engine, Finding]:
    """`transformers serve` on random weights, after its first reply.

    That one request goes past the proxy, which starts later: no proxy may learn the
    idle power of an engine that it does not know to be at work. Raises RuntimeError.
    """
    begin = time.monotonic()
    deadline = begin + min(STARTED_SECONDS, seconds - 60)
    model, python = folder / f"random-{shape}", Path(options.engine_python)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    make: list[str | Path] = [
        python,
        "-m",
        "benchmarks.gpu_engine",
        model,
        "--shape",
        shape,
    ]
    made = subprocess.run(
        [*make, "--device", options.device], env=environment, cwd=ROOT,
        capture_output=True, text=True, timeout=STARTED_SECONDS, check=False,
    )  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"no model: {made.stderr.strip()[-300:]}")
    facts = json.loads(made.stdout.splitlines()[-1])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    beside = python.parent / "transformers"
    script = str(beside) if beside.exists() else "transformers"
    serve = [script, "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    serve += ["--device", options.device, "--continuous-batching"]
    serve += ["--cb-block-size", "128", "--cb-num-blocks", "1024"]
    serve += ["--cb-max-batch-tokens", "4096"]
    log = engines.enter_context((folder / "engine.log").open("wb"))
    process = subprocess.Popen(
        serve, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    engines.callback(_end, process)
    url = f"http://127.0.0.1:{port}"
    _first_reply(url, str(model), process, deadline, folder / "engine.log")
    facts |= {"shape": shape, "ready_seconds": time.monotonic() - begin}
    return Engine(url, "transformers", str(model), options.power), facts


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then insist."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()


def _first_reply(
    url: str, model: str, process: subprocess.Popen[bytes], deadline: float, log: Path
) -> None:
    body = {
        "model": model, "max_tokens": 8, "stream": True,
        "messages": [{"role": "user", "content": "the first request"}],
        "generation_config": json.dumps({"eos_token_id": -1, "do_sample": False}),
    }  # fmt: skip
    while True:
        with suppress(httpx.HTTPError):
            reply = httpx.post(
                f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=120
            )
            if reply.status_code == 200:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no engine: {log.read_text(errors='replace')[-300:]}")
        time.sleep(0.5)


def run_facts(options: argparse.Namespace) -> Finding:
    """When and with what; nothing that names a machine or a person."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "simulated": bool(options.simulated),
        "quick": bool(options.quick),
        "power": "dcgm" if options.simulated else options.power.partition("=")[0],
        "backend": "vllm" if options.simulated else options.backend,
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} CPUs {platform.machine()}",
    }


def board_facts(source: EnergySource, gpus: str) -> Finding:
    """Name, driver and limits of the boards, where NVML tells."""
    devices = [reading.device for reading in source.read()]
    if source.name != "nvml":
        return {"devices": devices}
    import pynvml  # only where its library was found

    found: Finding = {"devices": devices, "names": []}
    found["driver"] = str(pynvml.nvmlSystemGetDriverVersion())
    for handle in _handles(gpus):
        found["names"].append(str(pynvml.nvmlDeviceGetName(handle)))
        with suppress(pynvml.NVMLError):
            limit = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)
            found.setdefault("limit_watts", []).append(limit / 1000)
    return found


def average_reader(source: EnergySource, gpus: str) -> Callable[[], float | None]:
    """The driver's average power of all boards together; None without NVML."""
    if source.name != "nvml":
        return lambda: None
    import pynvml  # only where its library was found

    handles = _handles(gpus)

    def read() -> float | None:
        try:
            return float(sum(map(pynvml.nvmlDeviceGetPowerUsage, handles))) / 1000
        except pynvml.NVMLError:
            return None

    return read


def _handles(gpus: str) -> list[Any]:
    import pynvml  # only where its library was found

    chosen = [int(each) for each in gpus.split(",") if each.isdigit()]
    indices = chosen or range(pynvml.nvmlDeviceGetCount())
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in indices]


def opened(power: str, gpus: str) -> EnergySource:
    """The sensor, read once; without one there is nothing to do here."""
    try:
        source = source_opener(power, tuple(filter(None, gpus.split(","))))()
        source.read()
    except ProxyError as error:
        sys.exit(f"gpu_validation: no GPU to validate on: {error}")
    return source


# -- pieces --------------------------------------------------------------------


def turn(prompt: int, output: int, at_seconds: float | None = None) -> Finding:
    """One line of a trace."""
    line: Finding = {"input_length": prompt, "output_length": output, "kind": "other"}
    return line if at_seconds is None else {"timestamp": at_seconds * 1e3, **line}


def run_of(records: Sequence[Finding], policy: str) -> Run:
    """What a policy charged."""
    return Run(
        [record["kind"] for record in records],
        [record["energy"]["policy_joules"][policy] for record in records],
    )


def spans_of(records: Sequence[Finding]) -> list[tuple[float, float]]:
    """When requests ran, in Unix seconds."""
    return [
        (record["scheduled_unix_seconds"], record["last_token_unix_seconds"])
        for record in records
        if record["scheduled_unix_seconds"] and record["last_token_unix_seconds"]
    ]


def _mean_watts(
    samples: Samples, begin: float = 0.0, end: float = math.inf
) -> float | None:
    """By the counter where there is one, else by the mean reading."""
    inside = (samples.at_seconds >= begin) & (samples.at_seconds <= end)
    at = samples.at_seconds[inside]
    if samples.joules is not None:
        edges, values = counter_edges(at, samples.joules[inside])
        if len(edges) > 1:
            return float((values[-1] - values[0]) / (edges[-1] - edges[0]))
    if samples.watts is None or not len(at):
        return None
    return float(samples.watts[inside].mean())


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) and values else None


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


@contextmanager
def _room(wanted: str | None) -> Iterator[Path]:
    """A folder for traces, runs and weights; in memory where there is room for them."""
    if wanted is not None:
        yield Path(wanted)
        return
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > MODEL_BYTES
    with tempfile.TemporaryDirectory(dir=memory if has_room else None) as folder:
        yield Path(folder)


LEAST_SECONDS = 30.0
"""In less not even the bare board and an idle engine are looked at."""


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not LEAST_SECONDS <= seconds < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected {LEAST_SECONDS:.0f} or more"
        )
    return seconds


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulated", action="store_true", help="the simulated stack")
    parser.add_argument("--url", help="an engine that runs, instead of one of our own")
    parser.add_argument("--backend", default="transformers", help="of --url")
    parser.add_argument("--model", help="its model, where it has several")
    parser.add_argument("--power", default="nvml", help="another sensor, as for serve")
    parser.add_argument("--gpus", default="", help="the engine's GPUs, such as 0,1")
    parser.add_argument("--shape", default="8b", help="8b, 3b or tiny")
    parser.add_argument("--device", default="cuda:0", help="for the engine of our own")
    parser.add_argument("--engine-python", default=sys.executable, metavar="PATH",
                        help="Python with PyTorch and transformers")  # fmt: skip
    parser.add_argument("--seconds", type=_seconds, default=450.0, help="time in all")
    parser.add_argument("--quick", action="store_true", help="a short try, no figures")
    parser.add_argument("--out", help="folder of the findings; gpu-validation-DATE")
    parser.add_argument("--room", help="folder for weights and runs, kept")
    parser.add_argument("--write", action="store_true", help="into docs/validation.md")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """One line and a non-zero exit where there is nothing to validate."""
    options = parsed(arguments)
    out = Path(options.out or time.strftime("gpu-validation-%Y%m%dT%H%M%S"))
    if not options.simulated:
        opened(options.power, options.gpus).close()
    findings = Findings(out, options.seconds)
    with (
        _room(options.room) as folder,
        ExitStack() as engines,
        Stack(folder / "logs") as stack,
    ):
        everything(options, findings, folder, stack, engines)
    page = page_of(findings.known)
    print(f"\n{page}\nfindings: {out}")
    if options.write:
        VALIDATION.write_text(with_section(VALIDATION.read_text(), page))


if __name__ == "__main__":
    main()
