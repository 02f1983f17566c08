"""Runs by workers over NATS whose parts are killed at random instants.

    python -m benchmarks.worker_kills [--kills 10] [--seed 0] [--json]

Everything is on this host: a simulated engine, nats-server (on PATH, or in /usr/sbin),
four workers. First one and four workers send the same plan: the requests must be the
same, and the percentiles of the summary those of the merged raw records, bit for bit.
Then, so many times each, a worker, the coordinator or the bus is killed (SIGKILL) at a
random instant of a run; a coordinator is gone on with, a bus is started again a few
seconds later. No record may be there twice, records and requests that are told as lost
must add up to the plan, and only a killed worker may lose any.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nats_server import start_nats
from loadgen.results.parts import Copy, Piece
from loadgen.run.bus import PIECE_BYTES, BusOptions, Parcel, connected

ROOT = Path(__file__).parents[1]
SESSIONS = 60
RUN_SECONDS = 8.0
"""From the zero to the last planned start, about; a kill falls into it."""
BUS_AWAY_SECONDS = (0.0, 12.0)
VICTIMS = ("worker", "coordinator", "bus")


@dataclass(frozen=True)
class Outcome:
    """One run with a kill in it."""

    victim: str
    killed_after_seconds: float
    """From the run's zero."""
    recorded: int
    twice: int
    lost: int
    """Told as lost."""
    is_whole: bool
    """Recorded and lost are the plan, and only a worker lost any."""
    verdict: str


class Bench:
    """The engine, the bus and the workers, each of which can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._port = -1
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        engine = subprocess.Popen(
            [sys.executable, "-m", "loadgen", "simulate", "--listen", "127.0.0.1:0",
             "--announce"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._children["engine"] = engine
        assert engine.stdout is not None
        self.engine_url: str = json.loads(engine.stdout.readline())["url"]
        self.start_bus()
        for number in range(4):
            self.start_worker(number)

    @property
    def bus_url(self) -> str:
        """Of the bus, which keeps its port."""
        return f"nats://127.0.0.1:{self._port}"

    def start_bus(self) -> None:
        """Start it, the second time with what it had stored."""
        self._children["bus"], self._port = start_nats(self.folder, self._port)

    def start_worker(self, number: int) -> None:
        """Start one of the workers."""
        name = f"w{number}"
        with (self.folder / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", "loadgen", "worker", "--bus", self.bus_url,
                 "--name", name, "--spool", str(self.folder)], cwd=ROOT, stderr=log,
            )  # fmt: skip

    def start_replay(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a coordinator."""
        with (self.folder / "replay.log").open("ab") as log:
            self._children["replay"] = subprocess.Popen(
                [sys.executable, "-m", "loadgen", "replay", *words], cwd=ROOT,
                stdout=log, stderr=log,
            )  # fmt: skip
        return self._children["replay"]

    def kill(self, name: str) -> None:
        """As the kernel does when memory is short."""
        self._children[name].kill()
        self._children[name].wait()

    def close(self) -> None:
        """End all that was started."""
        for child in self._children.values():
            child.kill()
            child.wait()


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as folder:
        found = Bench(Path(folder))
        try:
            yield found
        finally:
            found.close()


def write_trace(path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"loadtrace": "loadtrace/1", "name": "kills", "kind": "conversation"}
    ]
    rows += [
        {"id": f"kills-{n}", "input_length": 50 + n, "output_length": 20 + n % 40}
        for n in range(SESSIONS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def words_of(found: Bench, out: Path, workers: int) -> list[str]:
    return [
        str(found.folder / "kills.jsonl"), "--rate", f"{SESSIONS / RUN_SECONDS:g}",
        "--arrival", "constant", "--workers", str(workers), "--bus", found.bus_url,
        "--url", found.engine_url, "--out", str(out),
    ]  # fmt: skip


def records(out: Path) -> list[dict[str, Any]]:
    lines = (out / "requests.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def killed(found: Bench, victim: str, number: int, moments: random.Random) -> Outcome:
    """One run, and what became of it."""
    out = found.folder / f"{victim}-{number}"
    run = found.start_replay(*words_of(found, out, 4))
    zero = wait_for_zero(out, run)
    at_seconds = moments.uniform(0.0, RUN_SECONDS)
    time.sleep(max(zero + at_seconds - time.time(), 0.0))
    name = f"w{moments.randrange(4)}" if victim == "worker" else victim
    found.kill("replay" if victim == "coordinator" else name)
    if victim == "bus":
        time.sleep(moments.uniform(*BUS_AWAY_SECONDS))
        found.start_bus()
    if victim == "coordinator":
        time.sleep(moments.uniform(0.0, RUN_SECONDS))
        run = found.start_replay("--resume", str(out))
    run.wait(180)
    if victim == "worker":
        found.start_worker(int(name[1:]))
    summary = json.loads((out / "summary.json").read_text())
    ids = [row["request_id"] for row in records(out)]
    lost = sum(row["lost_requests"] for row in summary["schedule"]["processes"])
    return Outcome(
        victim=victim,
        killed_after_seconds=round(at_seconds, 3),
        recorded=len(ids),
        twice=len(ids) - len(set(ids)),
        lost=lost,
        is_whole=len(ids) + lost == SESSIONS and (victim == "worker" or not lost),
        verdict=summary["verdict"]["status"],
    )


def wait_for_zero(out: Path, run: subprocess.Popen[bytes]) -> float:
    """The run's zero in Unix seconds, as its coordinator noted it."""
    while True:
        assert run.poll() is None, "the run ended before it began"
        with contextlib.suppress(FileNotFoundError):
            zero = json.loads((out / "bus.json").read_text())["zero_unix_seconds"]
            if zero is not None:
                return float(zero)
        time.sleep(0.01)


def compared(found: Bench) -> dict[str, Any]:
    """One worker against four."""
    asked = ("request_id", "session_id", "planned_seconds", "requested_prompt_tokens",
             "requested_output_tokens", "outcome")  # fmt: skip
    told = {}
    for workers in (1, 4):
        out = found.folder / f"by-{workers}"
        found.start_replay(*words_of(found, out, workers)).wait(180)
        told[workers] = sorted(tuple(row[key] for key in asked) for row in records(out))
    rows = records(found.folder / "by-4")
    summary = json.loads((found.folder / "by-4" / "summary.json").read_text())
    ttft = [row["first_token_seconds"] - row["sent_seconds"] for row in rows]
    e2el = [row["last_token_seconds"] - row["sent_seconds"] for row in rows]
    exact = {
        "p99_ttft_ms": float(np.percentile(ttft, 99)) * 1000,
        "median_ttft_ms": float(np.percentile(ttft, 50)) * 1000,
        "p99_e2el_ms": float(np.percentile(e2el, 99)) * 1000,
        "median_e2el_ms": float(np.percentile(e2el, 50)) * 1000,
    }
    return {
        "requests": len(rows),
        "same_requests": told[1] == told[4],
        "exact_percentiles": {key: summary[key] == exact[key] for key in exact},
        "clock_error_ms": [
            row["clock_error_ms"] for row in summary["schedule"]["processes"]
        ],
    }


async def carried(url: str, folder: Path, megabytes: int) -> dict[str, float]:
    """Records through the bus into a part, as a worker and a coordinator do it."""
    begun, cpu = time.monotonic(), time.process_time()
    bus, run = await connected(BusOptions(url=url), "carried", print), "0" * 16
    await bus.make_stream(run)
    copy, data = Copy(folder / "carried.jsonl"), os.urandom(PIECE_BYTES)
    pieces = megabytes * 10**6 // PIECE_BYTES
    for number in range(pieces):
        piece = Piece(offset=number * PIECE_BYTES, data=data)
        assert await bus.store(run, Parcel(number=1, piece=piece))
        parcel = await bus.read(run, number + 1)
        assert parcel is not None
        assert parcel.piece is not None
        copy.add(parcel.piece)
    assert copy.size == pieces * PIECE_BYTES
    copy.close()
    await bus.remove_stream(run)
    await bus.close()
    seconds = time.monotonic() - begun
    return {
        "megabytes_per_second": round(megabytes / seconds, 1),
        "cpu_seconds_per_100_megabytes": round(
            (time.process_time() - cpu) / megabytes * 100, 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="of each kind")
    parser.add_argument("--megabytes", type=int, default=100, help="over the bus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    moments = random.Random(options.seed)
    outcomes: list[Outcome] = []
    with bench() as found:
        write_trace(found.folder / "kills.jsonl")
        same = compared(found)
        if not options.json:
            print(f"{platform.machine()}, {os.cpu_count()} CPUs, seed {options.seed}")
            print(f"one worker and four: {same}", flush=True)
            carrying = carried(found.bus_url, found.folder, options.megabytes)
            print(f"over the bus: {asyncio.run(carrying)}", flush=True)
        for number in range(options.kills):
            for victim in VICTIMS:
                outcome = killed(found, victim, number, moments)
                outcomes.append(outcome)
                if not options.json:
                    print(outcome, flush=True)
    if options.json:
        print(json.dumps({"same": same, "kills": [asdict(each) for each in outcomes]}))
        return
    for victim in VICTIMS:
        of_it = [each for each in outcomes if each.victim == victim]
        print(
            f"{victim}: {len(of_it)} killed, {sum(each.twice for each in of_it)} "
            f"records twice, {sum(each.lost for each in of_it)} told as lost, "
            f"{sum(each.is_whole for each in of_it)} runs add up"
        )


if __name__ == "__main__":
    main()
