"""The records of a run folder: one file, and beside it a part of each who sends.

The parts are there until the run has its summary. Of a run that was cut off, the one
file has what had been put together and the parts have what each had written: they are
read as one, and left as they are, since a run on the bus may still be gone on with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from loadgen.analysis.summary import RunInfo
from loadgen.errors import PlanError, RunError
from loadgen.plan.plan import PlanHeader, requests_of_shards
from loadgen.plan.shards import weights_of
from loadgen.results.parts import Part, Tail, lines_by_end
from loadgen.results.recorder import read_results, result_of
from loadgen.results.results import Result
from loadgen.run.state import STATE, State, read_state

PLAN, REQUESTS = "plan.jsonl", "requests.jsonl"
SUMMARY = "summary.json"
PART = "requests-{}.jsonl"
"""Records of one of several processes or workers, from 1."""
_NUMBERED = re.compile(r"requests-([1-9][0-9]{0,5})\.jsonl")
CUT_OFF = "was cut off with the run"


def records_of(folder: Path) -> Iterator[Result]:
    """Every record of a run in order of its end, also of one that was cut off.

    Raises LoadgenError where there are none, or what there is are no records.
    """
    parts = parts_left(folder)
    if not parts:
        yield from read_results(folder / REQUESTS)
        return
    whole = folder / REQUESTS
    paths = [whole, *parts] if whole.is_file() else parts
    decoder = msgspec.json.Decoder(Result)
    for line in lines_by_end(paths):
        yield result_of(line, decoder, str(folder))


def has_records(folder: Path) -> bool:
    """Whether there is anything to read."""
    return (folder / REQUESTS).is_file() or bool(parts_left(folder))


def parts_left(folder: Path) -> list[Path]:
    """The parts of a run that was cut off; none of one that has its summary."""
    if (folder / SUMMARY).is_file():
        return []
    numbers = [
        int(match[1])
        for path in folder.glob(PART.format("*"))
        if (match := _NUMBERED.fullmatch(path.name)) and path.is_file()
    ]
    return [folder / PART.format(number) for number in sorted(numbers)]


def remove_parts(folder: Path, count: int) -> None:
    """Delete the parts of a run that has its summary: its records are in one file."""
    for number in range(1, count + 1):
        with suppress(OSError):
            (folder / PART.format(number)).unlink()


def cut_parts(folder: Path, info: RunInfo, header: PlanHeader | None) -> list[Part]:
    """Each who sent a run that was cut off, and how many of its requests are lost.

    Whoever lacks a record, or stopped before its replies had ended, was cut off too.

    Empty where one process sent it, and where the folder no longer says how it was
    shared out.
    """
    paths, state = parts_left(folder), _state(folder)
    weights = _weights(info, header) if state is None else state.weights
    if not paths or weights is None or len(paths) != len(weights):
        return []
    try:
        sizes = requests_of_shards(folder / PLAN, tuple(weights))
    except (OSError, PlanError):
        return []
    names = [each.name for each in state.workers] if state else [None] * len(paths)
    parts = []
    for number, (path, size, name) in enumerate(
        zip(paths, sizes, names, strict=True), 1
    ):
        part = Part(number=number, worker=name)
        has_stopped = _read(path, part)
        part.lost = size - len(part.planned_seconds)
        if part.lost or has_stopped:
            part.death = CUT_OFF
        parts.append(part)
    return parts


def _read(path: Path, part: Part) -> bool:
    """Take the records of one; whether it was stopped."""
    tail, has_stopped = Tail(path), False
    try:
        while some := tail.results():
            for _, result in some:
                part.add(result)
                has_stopped |= result.outcome in ("aborted", "dropped")
    finally:
        tail.close()
    return has_stopped


def can_go_on(folder: Path) -> bool:
    """Whether `--resume` may find the rest of a run on its bus."""
    return not (folder / SUMMARY).is_file() and (folder / STATE).is_file()


def _state(folder: Path) -> State | None:
    if not (folder / STATE).is_file():
        return None
    with suppress(RunError):
        return read_state(folder)
    return None


def _weights(info: RunInfo, header: PlanHeader | None) -> Sequence[int] | None:
    """The shares of processes, as the run that noted its options dealt them."""
    if info.run is None or header is None:
        return None
    count = info.run.options.get("processes")
    if not isinstance(count, int):
        return None
    return weights_of(count, info.max_concurrency, header.sessions)
