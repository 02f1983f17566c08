"""How often is a difference called real where there is none? Runs in virtual time.

    python benchmarks/comparison_error.py [--pairs 200] [--requests 400] [--rate 6]

Each pair is the same engine under two loads of the same kind: other arrivals, other
lengths (`apart`), or other arrivals of the same sessions (`paired`). Energies are the
simulator's truth, latencies its stamps; nothing differs but chance. SIMULATED. The
intervals promise that 5 % of such differences are called real.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from loadgen.analysis.compare import FIGURES
from loadgen.analysis.resampling import Column, Sample, blocks_of, change
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import simulate
from loadgen.simulator.core.presets import GPUS, MODELS, PRESETS
from loadgen.simulator.core.scheduler import SimRequest


def sample_of(arrivals_seed: int, lengths_seed: int, count: int, rate: float) -> Sample:
    """One simulated run: a request a session, Poisson arrivals, lognormal lengths."""
    rng = np.random.default_rng(lengths_seed)
    prompts = np.clip(rng.lognormal(6.8, 1.0, count), 8, 8192).astype(int).tolist()
    outputs = np.clip(rng.lognormal(4.0, 1.0, count), 2, 1024).astype(int).tolist()
    gaps = np.random.default_rng([arrivals_seed, 1]).exponential(1 / rate, count)
    starts = np.cumsum(gaps).tolist()
    requests = [
        SimRequest(f"r{n}", starts[n], prompts[n], outputs[n], (n << 20,))
        for n in range(count)
    ]
    gpu, model, boards = PRESETS["h100-8b"]
    config = EngineConfig(gpu=GPUS[gpu], model=MODELS[model], n_gpus=boards)
    trace = simulate(requests, config)
    truths = [trace.truth[request.request_id] for request in requests]
    stamps = [trace.token_seconds[request.request_id] for request in requests]
    active = np.array([t.prefill_joules + t.decode_joules for t in truths])
    first = np.array([s[0] for s in stamps])
    last = np.array([s[-1] for s in stamps])
    tokens = np.array(outputs, float)
    values = {
        "joules": active + np.array([t.idle_share_joules for t in truths]),
        "active_joules": active,
        "output_tokens": tokens,
        "all_tokens": tokens + np.array(prompts, float),
        "ttft": first - np.array(starts),
        "tpot": (last - first) / np.maximum(tokens - 1, 1),
        "e2el": last - np.array(starts),
    }
    blocks = blocks_of(count)
    places = np.arange(count) * blocks // count
    columns = {name: Column(column, places) for name, column in values.items()}
    return Sample(columns, blocks, {})


def called_real(count: int, rate: float, pair: int) -> dict[str, list[bool]]:
    """Whether each figure of one pair was called different, by kind of pair."""
    base = sample_of(2 * pair, 2 * pair, count, rate)
    others = {
        "apart": sample_of(2 * pair + 1, 2 * pair + 1, count, rate),
        "paired": sample_of(2 * pair + 1, 2 * pair, count, rate),
    }
    found: dict[str, list[bool]] = {}
    for kind, other in others.items():
        calls = []
        for figure in FIGURES.values():
            moved = change(base, other, figure.statistic, is_paired=kind == "paired")
            assert moved is not None
            assert moved.low is not None
            assert moved.high is not None
            calls.append(moved.low > 0 or moved.high < 0)
        found[kind] = calls
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200, metavar="N")
    parser.add_argument("--requests", type=int, default=400, metavar="N")
    parser.add_argument("--rate", type=float, default=6.0, help="requests per second")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.perf_counter()
    work = partial(called_real, options.requests, options.rate)
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        pairs = list(pool.map(work, range(options.pairs), chunksize=5))
    rows = {
        name: {kind: sum(p[kind][at] for p in pairs) / len(pairs) for kind in pairs[0]}
        for at, name in enumerate(FIGURES)
    }
    note = (
        f"{options.pairs} pairs of {options.requests} requests at {options.rate:g}/s, "
        f"SIMULATED; {platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}, "
        f"{time.perf_counter() - began:.0f} s."
    )
    if options.json:
        print(json.dumps({"note": note, "called_real": rows}))
        return
    print(f"{note}\n\n| figure | apart | paired |\n|---|---:|---:|")
    for name, kinds in rows.items():
        print(f"| `{name}` | {kinds['apart']:.1%} | {kinds['paired']:.1%} |")


if __name__ == "__main__":
    main()
