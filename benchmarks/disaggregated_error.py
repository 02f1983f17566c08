"""How well a pair of proxies tells what each leg of a request took: against the truth.

    python benchmarks/disaggregated_error.py --rate 4 --duration 60

Two simulated engines (`--role prefill` and `decode`), a metering proxy before each, a
router before both, and a replay of a trace through it, all of them processes on
loopback. `metering-proxy records legs` joins the records; each engine knows what a
request really cost it. Printed for each leg and for their sum: the median and p90 of
the relative error, its mean (bias), and how often the 90 % interval holds the truth.
All joules are SIMULATED.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.children import child, get, metering, simulating  # noqa: E402

ROLES = ("prefill", "decode")
SETTLE_SECONDS = "60"


def main() -> None:
    """Run the pair under load and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "trace", nargs="?", default=str(ROOT / "traces/azure-conv.jsonl")
    )
    parser.add_argument("--rate", default="4")
    parser.add_argument("--duration", default="60")
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines: dict[str, dict[str, Any]] = {}
        proxies: dict[str, dict[str, Any]] = {}
        for role in ROLES:
            engines[role] = stack.enter_context(simulating(folder, "--role", role))
            proxies[role] = stack.enter_context(metering(folder, engines[role]))
        router = stack.enter_context(
            child("loadgen", "simulate", "--role", "router", "--prefill",
                  proxies["prefill"]["url"], "--decode", proxies["decode"]["url"],
                  "--listen", "127.0.0.1:0", cwd=folder)
        )  # fmt: skip
        load = ["--rate", given.rate, "--duration", given.duration, "--seed", "1"]
        subprocess.run(
            [sys.executable, "-m", "loadgen", "replay", given.trace, *load, "--url",
             router["url"], "--out", str(folder / "run"), "--quiet"],
            cwd=ROOT, check=False, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        lines = folder / "legs.jsonl"
        shown = subprocess.run(
            [sys.executable, "-m", "proxy", "records", "legs", "--jsonl", str(lines),
             "--timeout", SETTLE_SECONDS, *(p["admin_url"] for p in proxies.values())],
            cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE,
        )  # fmt: skip
        requests = [json.loads(line) for line in lines.read_text().splitlines()]
        truths = {role: truth(engines[role]["url"]) for role in ROLES}
    print(shown.stdout)
    print(table(requests, truths))


def truth(url: str) -> dict[str, float]:
    """What each request really cost an engine, by id."""
    lines = get(f"{url}/simulator/truth").text.splitlines()
    found = map(json.loads, lines)
    return {each["request_id"]: each["energy_joules"] for each in found}


def table(requests: list[dict[str, Any]], truths: dict[str, dict[str, float]]) -> str:
    """Errors of each leg and of the sum, for requests of two legs."""
    pairs = [each for each in requests if each["energy_joules"] is not None]
    rows = ["| SIMULATED | requests | median error | p90 error | bias | truth inside |",
            "|---|---|---|---|---|---|"]  # fmt: skip
    for name in (*ROLES, "both"):
        parts = [each if name == "both" else each[name] for each in pairs]
        real = np.array(
            [
                sum(truths[role][each["request_id"]] for role in ROLES)
                if name == "both"
                else truths[name][each["request_id"]]
                for each in pairs
            ]
        )
        told = np.array([part["energy_joules"] for part in parts])
        low = np.array([part["low_joules"] for part in parts])
        high = np.array([part["high_joules"] for part in parts])
        errors = np.abs(told / real - 1)
        inside = float(np.mean((low <= real) & (real <= high)))
        rows.append(
            f"| {name} | {len(pairs)} | {np.median(errors):.1%} | "
            f"{np.quantile(errors, 0.9):.1%} | {told.sum() / real.sum() - 1:+.1%} | "
            f"{inside:.0%} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
