"""What it takes to put the records of several processes into one file.

    python -m benchmarks.merge_cost [--records 1000000] [--parts 4] [--tokens 20]
    python -m benchmarks.merge_cost --bus

Writes the parts of a made-up run, then reads, appends and orders them with the code
of `loadgen replay --processes`, in a process of its own; prints its seconds, its CPU
and its peak memory, which must not grow with the records beyond 16 bytes for each.
`--bus` has each part sent by a process of its own through a real nats-server, all at
once, as workers whose records waited for a bus that was away; its seconds are those
from the first piece on.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.nats_server import start_nats
from loadgen.results.parts import Copy, Part, Piece, Tail, order_by_end
from loadgen.results.recorder import Recorder
from loadgen.results.results import Result
from loadgen.run.bus import PIECE_BYTES, BusOptions, Parcel, connected

RUN = "0123456789abcdef"
MAX_TRIES = 10


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


def merge(folder: Path, port: int | None) -> None:
    """The merge, and its cost; of parts that come over the bus at `port`, if any."""
    started = time.monotonic()
    paths = sorted(folder.glob("part-*.jsonl"))
    sizes = [path.stat().st_size for path in paths]
    if port is not None:
        paths = [folder / f"copy-{path.name}" for path in paths]
    copies = [Copy(path) for path in paths]
    tails = [Tail(path) for path in paths]
    parts = [Part(number=number) for number in range(len(paths))]
    with Recorder(folder / "requests.jsonl") as out:

        def take() -> None:
            for tail, part in zip(tails, parts, strict=True):
                while rows := tail.results():
                    for line, result in rows:
                        out.append(line)
                        part.add(result)

        if port is not None:
            asyncio.run(receive(port, copies, sizes, take))
        take()
    for tail, copy in zip(tails, copies, strict=True):
        tail.close()
        copy.close()
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


# --- over the bus -------------------------------------------------------------


async def receive(
    port: int, copies: list[Copy], sizes: list[int], take: Callable[[], None]
) -> None:
    """Every piece of the stream into the copy of its part, records taken as they come.

    As the coordinator of a run does.
    """
    bus = await connected(BusOptions(url=f"nats://127.0.0.1:{port}"), "merge", print)
    sequence = 1
    while any(copy.size < size for copy, size in zip(copies, sizes, strict=True)):
        parcel = await bus.read(RUN, sequence)
        if parcel is None:
            await asyncio.sleep(0.01)
            continue
        sequence += 1
        assert parcel.piece is not None
        copies[parcel.number - 1].add(parcel.piece)
        take()
    await bus.close()


async def send(port: int, number: int, path: Path) -> None:
    """One part, piece by piece, each until the bus has it. As a worker does."""
    bus = await connected(BusOptions(url=f"nats://127.0.0.1:{port}"), "part", print)
    with path.open("rb") as records:
        offset = 0
        while data := records.read(PIECE_BYTES):
            parcel = Parcel(number=number, piece=Piece(offset=offset, data=data))
            for _ in range(MAX_TRIES):
                if await bus.store(RUN, parcel):
                    break
            else:
                raise SystemExit(f"the bus does not store: {bus.refusal}")
            offset += len(data)
    await bus.close()


async def make_stream(port: int) -> None:
    """The stream of the run."""
    bus = await connected(BusOptions(url=f"nats://127.0.0.1:{port}"), "merge", print)
    await bus.make_stream(RUN)
    await bus.close()


def merge_over_bus(folder: Path, parts: int) -> None:
    """Senders, bus and merge, each a process."""
    server, port = start_nats(folder)
    try:
        asyncio.run(make_stream(port))
        senders = [
            multiprocessing.Process(
                target=lambda number: asyncio.run(
                    send(port, number + 1, folder / f"part-{number}.jsonl")
                ),
                args=[number],
            )
            for number in range(parts)
        ]
        for sender in senders:
            sender.start()
        again("--folder", str(folder), "--port", str(port))
        for sender in senders:
            sender.join()
    finally:
        server.terminate()
        server.wait()


def again(*arguments: str) -> None:
    """This program in another role."""
    command = [sys.executable, "-m", "benchmarks.merge_cost", *arguments]
    subprocess.run(command, check=True)


def main() -> None:
    """Write the parts here, merge them in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--bus", action="store_true")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder is not None:
        merge(given.folder, given.port)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = write_parts(folder, given.records, given.parts, given.tokens)
        print(f"{written / 1e6:,.0f} MB in {given.parts} parts")
        if given.bus:
            merge_over_bus(folder, given.parts)
        else:
            again("--folder", name)


if __name__ == "__main__":
    main()
