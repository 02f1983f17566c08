"""What it takes to put the records of several processes into one file.

    python benchmarks/merge_cost.py [--records 1000000] [--parts 4] [--tokens 20]

Writes the parts of a made-up run, then reads, appends and orders them with the code
of `loadgen replay --processes`, in a process of its own; prints its seconds, its CPU
and its peak memory, which must not grow with the records beyond 16 bytes for each.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from loadgen.results.parts import Part, Tail, order_by_end
from loadgen.results.recorder import Recorder
from loadgen.results.results import Result


def write_parts(folder: Path, records: int, parts: int, tokens: int) -> int:
    """Poisson requests, dealt in turn; the bytes of all parts."""
    draw = np.random.default_rng(1)
    starts = np.cumsum(draw.exponential(0.001, records))
    took = draw.exponential(0.5, records) + 0.02
    gaps = np.linspace(0.01, 1.0, tokens)
    recorders = [Recorder(folder / f"part-{number}.jsonl") for number in range(parts)]
    for part, recorder in enumerate(recorders):
        mine = np.arange(part, records, parts)
        for number in mine[np.argsort((starts + took)[mine])].tolist():
            start, long = float(starts[number]), float(took[number])
            stamps = np.round(start + gaps * long, 6).tolist()
            recorder.record(
                Result(
                    request_id=f"r{number}", session_id=f"s{number}", turn=0,
                    kind="code", planned_seconds=round(start, 6),
                    sent_seconds=round(start, 6), first_token_seconds=stamps[0],
                    last_token_seconds=stamps[-1],
                    finished_seconds=round(start + long, 6),
                    prompt_tokens=100, output_tokens=tokens, chunk_seconds=stamps,
                    chunk_tokens=[1] * tokens, outcome="ok", status=200,
                )
            )  # fmt: skip
        recorder.close()
    return sum(recorder.path.stat().st_size for recorder in recorders)


def merge(folder: Path) -> None:
    """The merge, and its cost."""
    started = time.monotonic()
    paths = sorted(folder.glob("part-*.jsonl"))
    tails = [Tail(path) for path in paths]
    parts = [Part(number=number) for number in range(len(paths))]
    with Recorder(folder / "requests.jsonl") as out:
        for tail, part in zip(tails, parts, strict=True):
            while rows := tail.results():
                for line, result in rows:
                    out.append(line)
                    part.add(result)
            tail.close()
    read = time.monotonic()
    order_by_end(folder / "requests.jsonl")
    ended = time.monotonic()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{out.written:,} records of {len(parts)} parts: read and appended in "
        f"{read - started:.1f} s, put in order in {ended - read:.1f} s; "
        f"{used.ru_utime + used.ru_stime:.1f} s of CPU, peak memory "
        f"{used.ru_maxrss / 1024:.0f} MB"
    )


def main() -> None:
    """Write the parts here, merge them in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder is not None:
        merge(given.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        written = write_parts(Path(folder), given.records, given.parts, given.tokens)
        print(f"{written / 1e6:,.0f} MB in {given.parts} parts")
        subprocess.run([sys.executable, __file__, "--folder", folder], check=True)


if __name__ == "__main__":
    main()
