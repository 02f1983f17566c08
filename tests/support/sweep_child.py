"""A run folder as a replay would leave it, of an engine whose load is known.

`python -m tests.support.sweep_child FOLDER RATE SEED`: requests come at the rate, one
server takes 0.1 s for each, so beyond 10 per second they queue; a request costs its
share of 60 W and 4 J. Rate 3 fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from loadgen.analysis.summary import RunInfo
from loadgen.results.results import EnergyPart
from loadgen.run.finish import finish_run
from tests.support.canned_run import made_results, write_run

REQUESTS = 300
SERVICE_SECONDS = 0.1
LIMIT_SECONDS = 1.0


def main(folder: Path, rate: float, seed: int) -> None:
    if rate == 3:
        sys.exit("loadgen: no GPU")
    results, free = [], 0.0
    draw = np.random.default_rng(seed)
    starts = np.cumsum(draw.exponential(1 / rate, REQUESTS)).tolist()
    for start, made in zip(starts, made_results(REQUESTS), strict=True):
        free = max(free, start) + SERVICE_SECONDS
        results.append(
            msgspec.structs.replace(
                made, planned_seconds=start, sent_seconds=start,
                session_id=made.request_id, first_token_seconds=free - 0.01,
                first_visible_seconds=free - 0.01, last_token_seconds=free,
                finished_seconds=free, chunk_seconds=[free - 0.01, free],
                chunk_tokens=[1, 1], output_tokens=2, requested_output_tokens=2,
                energy=EnergyPart(
                    prefill_joules=2, decode_joules=2, idle_share_joules=60 / rate,
                    energy_joules=4 + 60 / rate, policy="phase", quality="exact",
                ),
            )
        )  # fmt: skip
    write_run(folder, results, rate)
    finish_run(folder, RunInfo(goodput={"e2el": LIMIT_SECONDS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
