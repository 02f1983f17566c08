"""The cells of a study's file: pure, from its points to options of `loadgen replay`."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.client.backends import BACKENDS
from loadgen.errors import UsageError
from loadgen.studies.cells import Cell, cell
from loadgen.studies.presets import (
    not_simulated,
    server_command,
    simulated_arguments,
)
from loadgen.studies.study_file import (
    AXES,
    GENERATED_REQUESTS,
    Load,
    Point,
    Spread,
    StudyFile,
    Workload,
    backend_of,
)

WORKLOADS = "workloads"
"""Traces of lengths, in the study's folder."""
FIXED_PORT = 0
"""Stands for the port in what makes a cell that cell: each start has another."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell of a study and where in the matrix it is."""

    cell: Cell
    point: Point
    repeat: int
    not_simulated: tuple[str, ...] = ()
    """What of its server and decoding the simulator does not know."""


def shown_axes(found: StudyFile) -> list[str]:
    """Axes that tell the cells apart: those with more than one entry."""
    return [axis for axis in AXES if len(found.axis(axis)) > 1] or ["servers"]


def planned_cells(
    found: StudyFile,
    out: Path,
    sha256: Callable[[Path], str],
    trace_of: Callable[[Workload], Path],
    *,
    is_simulated: bool,
    most_requests: int | None = None,
) -> list[Planned]:
    """Every cell of a file, in the order of its rows.

    `sha256` is asked for each trace once: another file is another run.
    """
    study = found.study
    axes = shown_axes(found)
    hashes: dict[str, tuple[Path, str]] = {}
    for name, workload in found.axis("workloads").items():
        if workload.trace is None:
            requests = _requests(found, workload, is_simulated, most_requests)
            text = generated_trace(name, workload, requests, study.seed)
            path = (out / WORKLOADS / f"{name}.jsonl").resolve()
            hashes[name] = path, hashlib.sha256(text).hexdigest()
        else:
            path = trace_of(workload).resolve()
            hashes[name] = path, sha256(path)
    planned = []
    for point in found.points():
        path, digest = hashes[point.names["workloads"]]
        for repeat in range(study.repeat):
            names = [point.names[axis] for axis in axes]
            if study.repeat > 1:
                names.append(f"r{repeat + 1}")
            options = _options(
                found, point, repeat,
                is_simulated=is_simulated, most_requests=most_requests,
            )  # fmt: skip
            context = {
                "server": _server_context(found, point, is_simulated),
                "trace_sha256": digest,
                "repeat": repeat,
            }
            planned.append(
                Planned(
                    cell("+".join(names), path, options, context),
                    point,
                    repeat,
                    tuple(_unknown_to_simulator(point)) if is_simulated else (),
                )
            )
    return planned


def only(
    planned: Sequence[Planned], found: StudyFile, wanted: Sequence[str]
) -> list[Planned]:
    """The cells of the entries that were named as `AXIS=NAME`. Raises UsageError."""
    by_axis: dict[str, set[str]] = {}
    for text in wanted:
        axis, _, name = text.partition("=")
        if axis not in AXES or name not in found.axis(axis):
            known = ", ".join(
                f"{one}={entry}"
                for one in shown_axes(found)
                for entry in found.axis(one)
            )
            raise UsageError(f"--only {text}: expected AXIS=NAME; known: {known}")
        by_axis.setdefault(axis, set()).add(name)
    return [
        each
        for each in planned
        if all(each.point.names[axis] in names for axis, names in by_axis.items())
    ]


def generated_trace(name: str, workload: Workload, requests: int, seed: int) -> bytes:
    """A trace of lengths, `loadtrace/1`; the same for the same arguments."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    header = {
        "loadtrace": "loadtrace/1",
        "name": name,
        "kind": workload.kind,
        "synthetic": {"scheme": "lengths", "seed": seed},
    }
    given = _lengths(workload.input, requests, rng)
    produced = _lengths(workload.output, requests, rng)
    rows = [
        {"id": f"{name}-{number}", "input_length": given[number],
         "output_length": produced[number], "kind": workload.kind}
        for number in range(requests)
    ]  # fmt: skip
    return "".join(json.dumps(row) + "\n" for row in [header, *rows]).encode()


def workload_files(
    found: StudyFile, *, is_simulated: bool, most_requests: int | None
) -> Mapping[str, bytes]:
    """The generated traces of a study, by the name of their file."""
    return {
        f"{name}.jsonl": generated_trace(
            name,
            workload,
            _requests(found, workload, is_simulated, most_requests),
            found.study.seed,
        )
        for name, workload in found.axis("workloads").items()
        if workload.trace is None
    }


def _lengths(
    wanted: Spread | int | None, requests: int, rng: np.random.Generator
) -> list[int]:
    """Log-normal around the mean with the deviation, or the mean for all."""
    assert wanted is not None
    if isinstance(wanted, int):
        return [wanted] * requests
    if wanted.sd == 0:
        return [min(round(wanted.mean), wanted.most)] * requests
    variance = math.log1p((wanted.sd / wanted.mean) ** 2)
    location = math.log(wanted.mean) - variance / 2
    drawn = rng.lognormal(location, math.sqrt(variance), requests)
    return [int(n) for n in np.clip(np.rint(drawn), 1, wanted.most)]


def _requests(
    found: StudyFile, workload: Workload, is_simulated: bool, most: int | None
) -> int:
    limits = [workload.requests or GENERATED_REQUESTS, most]
    if is_simulated:
        limits.append(found.study.simulate.requests)
    return min(limit for limit in limits if limit is not None)


def _options(
    found: StudyFile,
    point: Point,
    repeat: int,
    *,
    is_simulated: bool,
    most_requests: int | None,
) -> dict[str, Any]:
    study, workload, decoding = found.study, point.workload, point.decoding
    backend = backend_of(point.server)
    if is_simulated:
        backend = "tgi" if backend == "tgi" else "vllm"
    options: dict[str, Any] = {"backend": backend}
    if not is_simulated:
        if not BACKENDS[backend].lists_its_model or point.server.url is not None:
            options["model"] = point.server.model or study.model
        power = point.server.power or study.power
        if power != "none":
            options["power"] = power
            options["gpus"] = point.server.gpus or study.gpus
    options |= _load_options(point.load, workload)
    if workload.trace is not None:
        limits = [workload.requests, most_requests]
        limits += [study.simulate.requests] if is_simulated else []
        known = [limit for limit in limits if limit is not None]
        options["num-prompts"] = min(known) if known else None
    options["temperature"] = decoding.temperature
    options["top-p"] = decoding.top_p
    options["n"] = decoding.n
    extra = dict(decoding.extra_body)
    if decoding.beam is not None:
        if is_simulated:  # as many sequences: what a beam search costs, but its sorting
            options |= {"n": decoding.beam, "temperature": 1.0}
        else:
            extra |= {"use_beam_search": True, "n": decoding.beam}
    options["extra-body"] = extra or None
    options["seed"] = study.seed + repeat
    options["warmup"] = study.warmup or None
    options["cooldown"] = study.cooldown or None
    options["timeout"] = study.timeout
    options["quiet"] = True
    options["metadata"] = [
        f"study={study.study}",
        *(f"{axis}={name}" for axis, name in point.names.items()),
    ]
    return options


def _load_options(load: Load, workload: Workload) -> dict[str, Any]:
    rate = load.rate
    is_closed = load.concurrency is not None or workload.trace is None
    if rate is None and load.speed is None and is_closed:
        rate = "inf"
    return {
        "rate": rate,
        "max-concurrency": load.concurrency,
        "arrival": load.arrival,
        "burstiness": load.burstiness,
        "speed": load.speed,
        "duration": load.duration,
    }


def _server_context(
    found: StudyFile, point: Point, is_simulated: bool
) -> dict[str, Any]:
    """What a server is, without what each start has anew and without secrets."""
    server = point.server
    if is_simulated:
        return {"simulated": simulated_arguments(server, found.study.simulate)}
    if server.url is not None:
        return {"url": server.url}
    digests = {
        name: hashlib.sha256(value.encode()).hexdigest()[:8]
        for name, value in server.environment.items()
    }
    words = server_command(server, server.model or found.study.model, FIXED_PORT)
    return {"command": words, "environment": digests, "gpus": server.gpus}


def _unknown_to_simulator(point: Point) -> list[str]:
    found = not_simulated(point.server)
    decoding = point.decoding
    sampled = decoding.temperature or decoding.top_p is not None
    if sampled and not decoding.n and decoding.beam is None:
        found.append("sampling")
    if decoding.beam is not None:
        found.append("beam sorting")
    return found
