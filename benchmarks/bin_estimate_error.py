"""How far off is an energy that is summed from bins, against a replay of the trace?

    python benchmarks/bin_estimate_error.py

`loadgen estimate --validate` for the shipped Azure traces on two simulated engines, in
virtual time: bins measured at the mean lengths of their requests, and at their upper
ends as Fernandez et al. 2025 measure them. SIMULATED.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRACES = ("azure-conv", "azure-code")
GPUS = ("h100", "a6000")
BATCHES = ("32", None)
"""None: the largest that fits."""
WANTED = 0.10


def estimated(trace: str, gpu: str, batch: str | None) -> dict[str, float]:
    words = [
        "estimate", f"traces/{trace}.jsonl", "--gpu", gpu, "--validate",
        "--format", "json", *(("--batch", batch) if batch else ()),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "loadgen", *words],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    began = time.perf_counter()
    print("| trace | GPU | batch | full replay | by bins | error | rounded up |")
    print("|---|---|---|---:|---:|---:|---:|")
    worst = 0.0
    for trace in TRACES:
        for gpu in GPUS:
            for batch in BATCHES:
                found = estimated(trace, gpu, batch)
                worst = max(worst, abs(found["error_fraction"]))
                cells = (
                    trace,
                    gpu,
                    batch or "largest",
                    f"{found['measured_joules'] / 1e3:.1f} kJ",
                    f"{found['joules'] / 1e3:.1f} kJ",
                    f"{found['error_fraction']:+.1%}",
                    f"{found['edge_error_fraction']:+.1%}",
                )
                print(f"| {' | '.join(cells)} |")
    print(
        f"\nworst {worst:.1%}, wanted {WANTED:.0%}; SIMULATED; {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}, {time.perf_counter() - began:.0f} s."
    )
    sys.exit(worst > WANTED)


if __name__ == "__main__":
    main()
