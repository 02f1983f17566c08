"""Does metering hold on this GPU? Sensor and division, judged without a truth.

    python -m benchmarks.gpu_validation [--url URL] [--backend vllm] [--gpus 0]

Needs a machine with an NVIDIA GPU and an engine on it (vLLM, TGI or `transformers
serve`; without --url the usual local ports are tried). A metering proxy is put before
the engine, `loadgen replay` sends two classes of requests: bursts with silence between
(counter period, instant, average and counter beside each other, idle levels, lag),
varied load to fit constants from, each class alone, mixes of both, and one mix whole
and in halves. About ten minutes. The
result replaces the hardware section of docs/validation.md. With --power dcgm=URL of a
simulator the same is exercised without a GPU; then nothing is written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.free_checks import (
    Run,
    class_mix_regression,
    homogeneous_spread,
    split_ratios,
)
from benchmarks.gpu_findings import (
    Division,
    Samples,
    division_lines,
    sensor_lines,
    sensor_of,
    with_section,
)
from loadgen.run.stack import Stack
from proxy.errors import ProxyError
from proxy.meter.attribution.policies import POLICIES
from proxy.power.energy_source import EnergySource
from proxy.power.sources import source_opener

ROOT = Path(__file__).parent.parent
TRACES = ROOT / "traces"
VALIDATION = ROOT / "docs" / "validation.md"
USUAL_URLS = (
    ("http://127.0.0.1:8000", "vllm"),  # and `transformers serve`, same routes
    ("http://127.0.0.1:8080", "tgi"),
    ("http://127.0.0.1:3000", "tgi"),
)
CLASSES = {"conversation": (400, 100), "code": (3000, 20), "reasoning": (200, 600)}
"""Prompt and output tokens: one mostly decodes, one mostly prefills; the third is
for bursts, long enough for every sensor to follow."""
VARIED = ("azure-conv", "azure-code")
"""Shipped traces: classes of one length each teach `calibrated` too little."""
KINDS = ("conversation", "code")
MIXES = ((1, 0), (3, 1), (1, 1), (1, 3), (0, 1))
SAMPLE_SECONDS = 0.005
BURSTS, BURST_REQUESTS, BURST_SECONDS = 5, 8, 10.0
QUIET_SECONDS = 8.0


class Bench:
    """The engine with a metering proxy before it."""

    def __init__(self, options: argparse.Namespace, folder: Path, stack: Stack) -> None:
        self.options = options
        self.folder = folder
        self._cursor = 0
        self._runs = 0
        arguments = ["serve", "--upstream", options.url, "--power", options.power]
        arguments += ["--engine", options.backend, "--store", "none"]
        arguments += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        if options.gpus:
            arguments += ["--gpus", options.gpus]
        self.proxy = stack.start("proxy", "proxy", arguments)
        self.admin_url = str(self.proxy.announced["admin_url"])

    def ask(self, path: str) -> Any:
        """JSON of the proxy's admin API."""
        reply = httpx.get(self.admin_url + path, trust_env=False, timeout=10)
        return reply.json()

    def replay(
        self, turns: Sequence[dict[str, Any]], *how: str
    ) -> list[dict[str, Any]]:
        """Send these requests; their records, in order of arrival."""
        trace = self.folder / f"trace{self._runs}.jsonl"
        header = {"loadtrace": "loadtrace/1", "name": trace.stem, "kind": "other"}
        trace.write_text("".join(json.dumps(line) + "\n" for line in (header, *turns)))
        return self.replay_file(trace, *how)

    def replay_file(self, trace: Path, *how: str) -> list[dict[str, Any]]:
        """As `replay`, of a trace that exists."""
        self._runs += 1
        command = [sys.executable, "-m", "loadgen", "replay", str(trace), *how]
        command += ["--url", self.proxy.url, "--ledger", self.admin_url, "--quiet"]
        command += ["--backend", self.options.backend, "--seed", str(self._runs)]
        command += ["--out", str(self.folder / f"run{self._runs}")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode not in {0, 3}:
            raise SystemExit(f"gpu_validation: {ended.stderr.strip()}")
        reply = httpx.get(
            f"{self.admin_url}/requests?since={self._cursor}&limit=10000",
            trust_env=False,
            timeout=30,
        )
        records = [json.loads(line) for line in reply.text.splitlines()]
        if records:
            self._cursor = records[-1]["sequence"]
        known = [r for r in records if r["energy"]["energy_joules"] is not None]
        return sorted(known, key=lambda record: float(record["arrived_unix_seconds"]))

    def steady(self, kinds: Sequence[str], arrival: str) -> list[dict[str, Any]]:
        """These requests at the steady rate asked for."""
        rate = f"{self.options.rate:g}"
        turns = [turn(kind) for kind in kinds]
        return self.replay(turns, "--rate", rate, "--arrival", arrival)


class Probe(threading.Thread):
    """Reads the sensor as fast as asked, beside the proxy."""

    def __init__(self, source: EnergySource, average: Any) -> None:
        super().__init__(daemon=True)
        self._source = source
        self._average = average
        self._rows: list[tuple[float, float | None, float | None, float | None]] = []
        self._done = threading.Event()

    def run(self) -> None:
        """One row per read; a failed one is left out."""
        while not self._done.wait(SAMPLE_SECONDS):
            with suppress(ProxyError):
                readings = self._source.read()
                joules = _sum([reading.joules for reading in readings])
                watts = _sum([reading.watts for reading in readings])
                self._rows.append((time.time(), joules, watts, self._average()))

    def finish(self) -> Samples:
        """Stop, and what was read."""
        self._done.set()
        self.join()
        at, *columns = zip(*self._rows, strict=True)
        joules, watts, average = (
            None if None in column else np.array(column, np.float64)
            for column in columns
        )
        return Samples(np.array(at, np.float64), joules, watts, average)


def turn(kind: str, at_seconds: float | None = None) -> dict[str, Any]:
    """One line of a trace."""
    prompt, output = CLASSES[kind]
    line: dict[str, Any] = {
        "input_length": prompt,
        "output_length": output,
        "kind": kind,
    }
    return line if at_seconds is None else {"timestamp": at_seconds * 1e3, **line}


def mixed(count: int, parts: tuple[int, int]) -> list[str]:
    """So many kinds in these proportions, well mixed."""
    one = [kind for kind, part in zip(KINDS, parts, strict=True) for _ in range(part)]
    order = np.random.default_rng(7).permutation(count)
    return [one[int(index) % len(one)] for index in order]


def run_of(records: Sequence[dict[str, Any]], policy: str) -> Run:
    """What a policy charged."""
    return Run(
        [record["kind"] for record in records],
        [record["energy"]["policy_joules"][policy] for record in records],
    )


def spans_of(records: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """When requests ran, in Unix seconds."""
    return [
        (record["scheduled_unix_seconds"], record["last_token_unix_seconds"])
        for record in records
        if record["scheduled_unix_seconds"] and record["last_token_unix_seconds"]
    ]


def sensor_report(bench: Bench, source: EnergySource) -> list[str]:
    """Bursts and silence, seen by a probe of its own."""
    probe = Probe(source, _average_reader(source, bench.options.gpus))
    probe.start()
    time.sleep(QUIET_SECONDS)
    bursts = [
        turn("reasoning", burst * BURST_SECONDS)
        for burst in range(BURSTS)
        for _ in range(BURST_REQUESTS)
    ]
    records = bench.replay(bursts, "--arrival", "trace", "--no-dejitter")
    time.sleep(QUIET_SECONDS)
    return sensor_lines(sensor_of(probe.finish(), spans_of(records)))


def division_report(bench: Bench) -> list[str]:
    """All checks of the division, for every policy on the same runs."""
    count = bench.options.requests
    for name in VARIED:
        limits = ("--num-prompts", str(2 * count), "--max-model-len", "4096")
        rate = ("--rate", f"{bench.options.rate:g}", "--over-length", "drop")
        bench.replay_file(TRACES / f"{name}.jsonl", *limits, *rate)
    alike = [bench.steady([kind] * count, "constant") for kind in KINDS]
    mixes = [bench.steady(mixed(count, parts), "poisson") for parts in MIXES]
    even = mixed(count, (1, 1))
    whole = bench.steady(even + even, "poisson")
    halves = [bench.steady(even, "poisson") for _ in range(2)]
    found = [
        Division(
            policy,
            [homogeneous_spread(run_of(records, policy).joules) for records in alike],
            class_mix_regression([run_of(mix, policy) for mix in mixes], KINDS),
            split_ratios(
                run_of(whole, policy), [run_of(half, policy) for half in halves]
            ),
        )
        for policy in POLICIES
    ]
    return division_lines(found)


def find_engine() -> tuple[str, str] | None:
    """URL and backend of an engine on the usual ports."""
    for url, backend in USUAL_URLS:
        with suppress(httpx.HTTPError):
            path = "/info" if backend == "tgi" else "/v1/models"
            reply = httpx.get(url + path, trust_env=False, timeout=2)
            if reply.status_code == 200:
                return url, backend
    return None


def parsed() -> argparse.Namespace:
    """What was asked for, with the engine found where none was named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="base URL of the engine")
    parser.add_argument("--backend", default="vllm")
    parser.add_argument("--power", default="nvml", help="another sensor, as for serve")
    parser.add_argument("--gpus", default="", help="the engine's GPUs, such as 0,1")
    parser.add_argument("--rate", type=float, default=4.0, help="requests/s")
    parser.add_argument("--requests", type=int, default=120, help="per run")
    return parser.parse_args()


def opened(options: argparse.Namespace) -> EnergySource:
    """The sensor, read once; without one there is nothing to do here."""
    gpus = tuple(filter(None, options.gpus.split(",")))
    try:
        source = source_opener(options.power, gpus)()
        source.read()
    except ProxyError as error:
        sys.exit(f"gpu_validation: no GPU to validate on: {error}")
    return source


def section_of(options: argparse.Namespace, source: EnergySource) -> tuple[str, bool]:
    """The hardware section, and whether its joules are simulated."""
    names = ", ".join(reading.device for reading in source.read())
    with tempfile.TemporaryDirectory() as text, Stack(Path(text)) as stack:
        bench = Bench(options, Path(text), stack)
        sensor = sensor_report(bench, source)
        division = division_report(bench)
        (fit,) = bench.ask("/calibration")["calibrations"]
        is_simulated = bool(bench.ask("/books")["simulated"])
    constants = ", ".join(
        f"{each['joules']:.3g} +- {each['standard_error_joules']:.1g} {each['unit']}"
        for each in fit["constants"].values()
    )
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {names} by `{options.power.partition('=')[0]}`, "
        f"{options.backend}, {fit['model']}, {options.rate:g} requests/s, "
        f"{options.requests} requests a run.",
        "",
        *sensor,
        "",
        *division,
        "",
        f"Constants ({fit['reason'] or 'trusted'}): {constants}.",
    ]
    return "\n".join(lines), is_simulated


def main() -> None:
    """One line and a non-zero exit where there is nothing to validate."""
    options = parsed()
    source = opened(options)
    if options.url is None:
        engine = find_engine()
        if engine is None:
            sys.exit("gpu_validation: no engine on the usual ports; give --url")
        options.url, options.backend = engine
    section, is_simulated = section_of(options, source)
    source.close()
    if is_simulated:
        print(f"SIMULATED, not written to {VALIDATION.name}\n\n{section}")
        return
    VALIDATION.write_text(with_section(VALIDATION.read_text(), section))
    print(section)


def _average_reader(source: EnergySource, gpus: str) -> Any:
    """The driver's 1 s average of all boards together; None without NVML."""
    if source.name != "nvml":
        return lambda: None
    import pynvml  # only where its library was found

    count = pynvml.nvmlDeviceGetCount()
    indices = [int(each) for each in gpus.split(",") if each.isdigit()]
    handles = [
        pynvml.nvmlDeviceGetHandleByIndex(index) for index in indices or range(count)
    ]

    def read() -> float | None:
        try:
            return float(sum(map(pynvml.nvmlDeviceGetPowerUsage, handles))) / 1000
        except pynvml.NVMLError:
            return None

    return read


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) and values else None


if __name__ == "__main__":
    main()
