"""How far off is the energy that `loadgen predict` says before a load is run?

    python benchmarks/prediction_error.py [--folder runs/prediction]

Fits the costs of the simulated stack to one replay of traces/azure-conv.jsonl (6
requests/s, in real time, through the proxy and its sensor) and predicts replays that it
has not seen: another trace, other rates, conversations of several turns. What is
compared is the energy that the sensor counted. SIMULATED. Runs that the folder holds
already are not repeated.
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
TRAINING = ("conv-6", "azure-conv.jsonl", "6", "400")
HELD_OUT = (
    ("code-6", "azure-code.jsonl", "6", "300"),
    ("code-12", "azure-code.jsonl", "12", "500"),
    ("conv-2", "azure-conv.jsonl", "2", "150"),
    ("conv-12", "azure-conv.jsonl", "12", "600"),
    ("sharegpt-4", "sharegpt.jsonl", "4", "350"),
)
WANTED = 0.05


INVALID = 3
"""Exit code of a run whose load was not the planned one, as on a busy machine."""


def loadgen(*words: str | Path) -> str:
    command = [sys.executable, "-m", "loadgen", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, INVALID):
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/prediction"))
    options = parser.parse_args()
    began = time.perf_counter()
    folder = options.folder.resolve()
    for name, trace, rate, count in (TRAINING, *HELD_OUT):
        if not (folder / name / "summary.json").is_file():
            loadgen(
                "replay", f"traces/{trace}", "--rate", rate, "--num-prompts", count,
                "--seed", "7", "--quiet", "--out", folder / name,
            )  # fmt: skip
    held_out = [word for run in HELD_OUT for word in ("--holdout", folder / run[0])]
    report = json.loads(
        loadgen("predict", folder / TRAINING[0], *held_out, "--format", "json")
    )
    learnt = report["learnt"]
    print(
        f"fitted to {learnt['requests']} requests, cross-validated error of a stretch "
        f"{learnt['energy_error_fraction']:.1%}; SIMULATED; {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, "
        f"{time.strftime('%Y-%m-%d')}, {time.perf_counter() - began:.0f} s.\n"
    )
    print("| held out | verdict | measured | predicted | error | in the interval |")
    print("|---|---|---:|---:|---:|---|")
    for held in report["held"]:
        summary = json.loads((folder / held["run"] / "summary.json").read_text())
        cells = (
            held["run"],
            summary["verdict"]["status"],
            f"{held['measured_joules'] / 1e3:.1f} kJ",
            f"{held['predicted_joules'] / 1e3:.1f} kJ",
            f"{held['joules_error_fraction']:+.1%}",
            "yes" if held["is_inside"] else "no",
        )
        print(f"| {' | '.join(cells)} |")
    worst = max(abs(held["joules_error_fraction"]) for held in report["held"])
    print(f"\nworst {worst:.1%}, wanted {WANTED:.0%}")
    sys.exit(worst > WANTED)


if __name__ == "__main__":
    main()
