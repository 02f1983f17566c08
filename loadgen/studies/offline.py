"""Batches of one length at controlled sizes: in process, or at a server by closed loop.

In process the engine is a program of its own under `metering-proxy meter`, which gives
the energy of each batch between its own times: loading and compilation are in none. A
server gets all requests of a batch at once, so many times, through a metering proxy.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from loadgen.analysis.offline import BatchRow, with_energy
from loadgen.errors import LoadgenError, StackError, StudyError
from loadgen.run.finish import load_run
from loadgen.studies import offline_worker
from loadgen.studies.batch_search import Probe, largest_batch
from loadgen.studies.cells import cell
from loadgen.studies.launch import (
    Study,
    end_group,
    ends_with_parent,
    replay_command,
)
from loadgen.studies.matrix import generated_trace
from loadgen.studies.servers import last_lines
from loadgen.studies.study_file import Workload
from proxy.engines.gauges import read_gauges
from proxy.process.files import PRIVATE, os_reason, private_folder, whole_file
from proxy.process.http_get import GetError, Getter

LARGEST = "largest"
KILLED = 137
"""Exit code of what SIGKILL ended: so the kernel ends what takes too much memory."""
POLL_SECONDS = 0.02
REPORT_SECONDS = 60.0
NAME, PHASES, LOG = "meter.json", "phases.jsonl", "engine.log"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Shape:
    """One length of requests."""

    input_tokens: int
    output_tokens: int
    requests: int | None = None

    @property
    def name(self) -> str:
        """For messages, and for cells."""
        return f"in={self.input_tokens},out={self.output_tokens}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Which batch sizes are measured, and for how long."""

    asked: tuple[int, ...]
    with_largest: bool
    most: int
    seconds: float
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """An engine as a program of its own."""

    engine: str
    model: str
    python: str
    compile: bool = False
    eager: bool = False
    dtype: str = "auto"
    device: str = "auto"
    tensor_parallel: int = 1
    temperature: float = 0.0
    beam: int = 1
    engine_args: dict[str, Any] = field(default_factory=dict)
    power: str = "nvml"
    gpus: str | None = None
    seed: int = 0
    start_seconds: float = 1800.0
    batch_seconds: float = 3600.0
    """Longest wait for one answer."""


@dataclass(slots=True)
class Found:
    """All that was learnt of one engine."""

    rows: list[BatchRow] = field(default_factory=list)
    version: str | None = None
    device: str | None = None
    boundary: str | None = None
    simulated: bool = False


class BatchFailedError(Exception):
    """A batch that ended in an error which is not about memory."""


Ask = Callable[[Shape, int, bool], dict[str, Any]]
"""Run a batch of a size, measured or only to see whether it fits: `fits`, `reason`."""


def measured_shape(
    shape: Shape, sizes: Sizes, ask: Ask, say: Say
) -> Iterator[tuple[BatchRow, dict[str, Any]]]:
    """The rows of one length, each with the answer that it was made of.

    A size that does not fit is a row too; an error ends the length, not the others.
    """
    empty = BatchRow(
        input_tokens=shape.input_tokens,
        output_tokens=shape.output_tokens,
        requests=shape.requests,
        batch=None,
    )
    wanted: list[tuple[int, str | None, bool]]
    wanted = [(size, None, False) for size in sizes.asked]
    try:
        if sizes.with_largest:
            largest, tried = largest_batch(_probe(shape, ask, say), sizes.most)
            refused = [p for p in tried if not p.fits]
            why = min(refused, key=lambda p: p.batch).reason if refused else None
            if largest is None:
                yield (
                    msgspec.structs.replace(empty, status="too large", reason=why),
                    {},
                )
                return
            wanted.append((largest, why, True))
        for size, why, is_largest in sorted(wanted, key=lambda one: one[0]):
            row = msgspec.structs.replace(
                empty, batch=size, is_largest=is_largest, next_fails=why
            )
            found = ask(shape, size, True)
            if not found["fits"]:
                row = msgspec.structs.replace(
                    row, status="too large", reason=found["reason"]
                )
                yield row, {}
                continue
            say(f"{shape.name}: batch {size} measured")
            yield (
                msgspec.structs.replace(
                    row,
                    batches=found["batches"],
                    seconds_per_batch=found["seconds"] / found["batches"],
                    output_tokens_per_second=found["output_tokens"] / found["seconds"],
                    peak_running=found.get("peak_running"),
                ),
                found,
            )
    except BatchFailedError as error:
        yield msgspec.structs.replace(empty, status="failed", reason=str(error)), {}


def _probe(shape: Shape, ask: Ask, say: Say) -> Callable[[int], Probe]:
    def probe(batch: int) -> Probe:
        found = ask(shape, batch, False)
        fits = bool(found["fits"])
        reason = found.get("reason")
        say(f"{shape.name}: batch {batch} {'fits' if fits else f'no: {reason}'}")
        return Probe(batch, fits, reason, bool(found.get("final")))

    return probe


# -- in process ----------------------------------------------------------------


def measure_in_process(
    shapes: Sequence[Shape], sizes: Sizes, asked: InProcess, folder: Path, say: Say
) -> Found:
    """Batches of every length in one engine after the other, as they die.

    Raises StackError where the engine cannot be loaded.
    """
    found = Found()
    sessions = _Sessions(asked, sizes, folder, say)
    pending: list[tuple[BatchRow, dict[str, Any]]] = []
    try:
        for shape in shapes:
            pending += measured_shape(shape, sizes, sessions.ask, say)
    finally:
        sessions.close()
    reports = [_report(path) for path in sessions.reports]
    for row, answered in pending:
        if not answered:
            found.rows.append(row)
            continue
        joules, uncertainty, why = _energy_of(
            reports[answered["session"]], answered["name"]
        )
        found.rows.append(with_energy(row, joules, uncertainty, why))
    found.version, found.device = sessions.version, sessions.device
    for report in reports:
        for source in (report or {}).get("sources", [])[:1]:
            found.boundary = source["boundary"]
            found.simulated = source["simulated"]
    return found


class _Sessions:
    """The engine's process, started anew after it was killed."""

    def __init__(self, asked: InProcess, sizes: Sizes, folder: Path, say: Say) -> None:
        self._asked = asked
        self._sizes = sizes
        self._folder = folder
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._questions = 0
        self.reports: list[Path] = []
        self.version: str | None = None
        self.device: str | None = None

    def ask(self, shape: Shape, batch: int, is_measured: bool) -> dict[str, Any]:
        """One answer of the engine; that it was killed for its memory is one."""
        if self._process is None:
            self._start()
        assert self._process is not None
        self._questions += 1
        name = f"{shape.name},batch={batch},{self._questions}"
        question = {
            "name": name,
            "input": shape.input_tokens,
            "output": shape.output_tokens,
            "batch": batch,
            "seconds": self._sizes.seconds if is_measured else 0,
            "rounds": self._sizes.rounds,
            "seed": self._asked.seed,
        }
        found = self._exchange(question, self._asked.batch_seconds)
        if found is None:
            code = self._ended()
            if code == KILLED:
                return {
                    "fits": False,
                    "reason": "killed by SIGKILL, as the kernel does without memory",
                }
            raise BatchFailedError(f"the engine ended with code {code}: {self._tail()}")
        if found["fits"] is None:
            raise BatchFailedError(found["reason"])
        return found | {"name": name, "session": len(self.reports) - 1}

    def close(self) -> None:
        """Let the engine end, so that its meter writes its report."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(REPORT_SECONDS)
        end_group(process)
        assert process.stdout is not None
        process.stdout.close()

    def _start(self) -> None:
        number = len(self.reports)
        folder = self._folder / f"engine-{number}"
        try:
            private_folder(folder)
            for name in (PHASES, NAME):
                (folder / name).unlink(missing_ok=True)
            log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE)
        except OSError as error:
            raise StudyError(f"cannot write {folder}: {os_reason(error)}") from None
        asked = self._asked
        self.reports.append(folder / NAME)
        command = [
            sys.executable, "-m", "proxy", "meter", "--power", asked.power,
            *(["--gpus", asked.gpus] if asked.gpus else []),
            "--json", str(folder / NAME), "--phases", str(folder / PHASES), "--quiet",
            "--", asked.python, offline_worker.__file__,
        ]  # fmt: skip
        environment = dict(os.environ)
        if asked.gpus:
            environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
            environment["CUDA_VISIBLE_DEVICES"] = asked.gpus
        self._say(f"{asked.engine}: loading {asked.model}")
        with os.fdopen(log, "wb") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                env=environment, start_new_session=True, preexec_fn=ends_with_parent(),
            )  # fmt: skip
        options = {
            "engine": asked.engine,
            "model": asked.model,
            "compile": asked.compile,
            "eager": asked.eager,
            "dtype": asked.dtype,
            "device": asked.device,
            "tensor_parallel": asked.tensor_parallel,
            "temperature": asked.temperature,
            "beam": asked.beam,
            "most": max(self._sizes.most, *self._sizes.asked, 1) * asked.beam,
            "engine_args": asked.engine_args,
            "phases": str((folder / PHASES).resolve()),
        }
        found = self._exchange(options, asked.start_seconds)
        if found is None or not found["ready"]:
            code = self._ended() if found is None else None
            reason = (
                f"ended with code {code}: {self._tail()}"
                if found is None
                else found["reason"]
            )
            self.close()
            raise StackError(f"{asked.engine} did not load {asked.model}: {reason}")
        self.version, self.device = found["version"], found["device"]

    def _exchange(
        self, question: dict[str, Any], seconds: float
    ) -> dict[str, Any] | None:
        """A question and its answer; None where the engine ended instead."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                end_group(process)
                raise StackError(f"the engine gave no answer in {seconds:g} s")
        line = process.stdout.readline()
        if not line:
            return None
        found: dict[str, Any] = json.loads(line)
        return found

    def _ended(self) -> int:
        """The exit code of an engine that is gone, once its meter has written."""
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(REPORT_SECONDS)
        code = self._process.poll()
        self.close()
        return -1 if code is None else code

    def _tail(self) -> str:
        lines = last_lines(self.reports[-1].with_name(LOG))
        return lines[-1] if lines else "its log is empty"


def _report(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found


def _energy_of(
    report: dict[str, Any] | None, name: str
) -> tuple[float | None, float | None, str | None]:
    """Joules of a phase inside the first source's boundary, their error, or why not."""
    if report is None:
        return None, None, "the meter left no report"
    phase = next((p for p in report["phases"] if p["name"] == name), None)
    if phase is None:
        return None, None, report["phases_failure"] or "its times are not in the report"
    for source in report["sources"]:
        energy = phase["sources"][source["source"]]
        because = energy["unknown_because"]
        why = because.replace("_", " ") if because else source["failure"]
        return energy["joules"], energy["uncertainty_joules"], why
    return None, None, "no sensor was asked (--power none)"


# -- at a server ---------------------------------------------------------------


def measure_server(
    shapes: Sequence[Shape],
    sizes: Sizes,
    url: str,
    options: dict[str, Any],
    meter: Sequence[str],
    study: Study,
    say: Say,
) -> Found:
    """Batches of every length at a server.

    `options` are those of each replay, `meter` the arguments that have it metered.
    """
    found = Found()

    def ask(shape: Shape, batch: int, is_measured: bool) -> dict[str, Any]:
        rounds = sizes.rounds if is_measured else 1
        more = [f"--url={url}", *(meter if is_measured else ())]
        return _replayed(shape, batch, rounds, is_measured, url, options, more, study)

    for shape in shapes:
        for row, answered in measured_shape(shape, sizes, ask, say):
            if not answered:
                found.rows.append(row)
                continue
            found.boundary = answered["boundary"]
            found.simulated = answered["simulated"]
            found.rows.append(
                with_energy(row, answered["joules"], None, answered["why"])
            )
    return found


def _replayed(
    shape: Shape,
    batch: int,
    rounds: int,
    is_measured: bool,
    url: str,
    options: dict[str, Any],
    more: Sequence[str],
    study: Study,
) -> dict[str, Any]:
    path = _trace_of(study.folder, shape, batch * rounds)
    name = f"{shape.name},batch={batch}{'' if is_measured else ',probe'}"
    one = cell(
        name, path, {"rate": "inf", "max-concurrency": batch, "quiet": True, **options}
    )
    study.add([one])
    peak_path = study.folder / "peaks" / f"{one.name}.json"
    with _peak_running(url) as peak:
        outcome = study.run(
            one, command=lambda c, run: [*replay_command(c, run), *more]
        )
    if outcome.status == "failed":
        reason = (outcome.reason or "").splitlines()
        raise BatchFailedError(reason[-1] if reason else "the replay failed")
    running = _kept_peak(peak_path, peak, is_new=outcome.status == "finished")
    summary = load_run(outcome.folder)
    if summary.failed or not summary.completed:
        text = summary.errors[0].error if summary.errors else "no request was answered"
        return {"fits": False, "reason": f"{summary.failed} requests failed: {text}"}
    if not is_measured:
        if running is not None and running < batch:
            return {
                "fits": False,
                "reason": f"the engine ran at most {running} at once",
            }
        return {"fits": True}
    energy = summary.energy
    each = energy.joules_per_request
    return {
        "fits": True,
        "batches": rounds,
        "seconds": summary.duration,
        "output_tokens": summary.total_output_tokens,
        "peak_running": running,
        "joules": None if each is None else each.mean * batch * rounds,
        "why": energy.reason,
        "boundary": energy.boundary,
        "simulated": summary.simulated,
    }


def _trace_of(folder: Path, shape: Shape, requests: int) -> Path:
    workload = Workload(input=shape.input_tokens, output=shape.output_tokens)
    path = folder / "workloads" / f"{shape.name}-{requests}.jsonl"
    try:
        private_folder(path.parent)
        with whole_file(path, mode=PRIVATE) as file:
            file.write(generated_trace(shape.name, workload, requests, requests))
    except OSError as error:
        reason = os_reason(error)
        raise StudyError(f"cannot write {path}: {reason}") from None
    return path.resolve()


@contextmanager
def _peak_running(url: str) -> Iterator[list[int]]:
    """Most requests that the server said it ran; empty where it does not tell."""
    peak: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        with Getter() as getter:
            while not stop.wait(POLL_SECONDS):
                with suppress(GetError):
                    gauges = read_gauges(getter.get(f"{url}/metrics").text)
                    if gauges is not None:
                        peak[:] = [max(gauges.running, *peak, 0)]

    thread = threading.Thread(target=watch, name="running", daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _kept_peak(path: Path, peak: Sequence[int], *, is_new: bool) -> int | None:
    """The peak of a run that has just ended, or that of one which was kept."""
    try:
        if is_new:
            private_folder(path.parent)
            with whole_file(path, mode=PRIVATE) as file:
                file.write(json.dumps(list(peak)).encode())
        known: list[int] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        if is_new:
            raise LoadgenError(f"cannot write {path}: {error}") from None
        return None
    return known[0] if known else None
