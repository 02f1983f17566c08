"""How far off is the energy that `loadgen predict` says before a load is run?

    python benchmarks/prediction_error.py [--folder runs/prediction]

Fits the costs of the simulated stack to replays of traces/azure-conv.jsonl and
traces/azure-code.jsonl (6 requests/s, in real time, through proxy and sensor) and
predicts replays that it has not seen: other rates, another trace, of conversations
with several turns and a prefix cache. Then once more with the first run alone. What is
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
TRAINING = (
    ("conv-6", "azure-conv.jsonl", "6", "400"),
    ("code-6", "azure-code.jsonl", "6", "300"),
)
HELD_OUT = (
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
    for name, trace, rate, count in (*TRAINING, *HELD_OUT):
        if not (folder / name / "summary.json").is_file():
            loadgen(
                "replay", f"traces/{trace}", "--rate", rate, "--num-prompts", count,
                "--seed", "7", "--quiet", "--out", folder / name,
            )  # fmt: skip
    names = [run[0] for run in TRAINING]
    worst = shown(folder, names, [run[0] for run in HELD_OUT])
    shown(folder, names[:1], [*names[1:], *(run[0] for run in HELD_OUT)])
    print(
        f"worst with both {worst:.1%}, wanted {WANTED:.0%}; SIMULATED; "
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}, "
        f"{time.perf_counter() - began:.0f} s."
    )
    sys.exit(worst > WANTED)


def shown(folder: Path, training: list[str], held_out: list[str]) -> float:
    """The table of one fit; returns its worst error."""
    first, *more = training
    words = [word for name in more for word in ("--also", folder / name)]
    words += [word for name in held_out for word in ("--holdout", folder / name)]
    report = json.loads(
        loadgen("predict", folder / first, *words, "--reuse", "1", "--format", "json")
    )
    learnt = report["learnt"]
    print(
        f"fitted to {' and '.join(training)}: {learnt['requests']} requests, "
        "cross-validated error of a stretch "
        f"{learnt['energy_error_fraction']:.1%}\n"
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
    print()
    worst: float = max(abs(held["joules_error_fraction"]) for held in report["held"])
    return worst


if __name__ == "__main__":
    main()
