"""Runs the cells of a study, each with a server of its own.

Every cell gets a fresh server: what one cell left in a prefix cache, or in the clocks
of a warm engine, would be a gift to the next. One that does not come up is tried once
more; then its other cells are given up at once, and those of other servers go on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from loadgen.errors import StackError, StudyError
from loadgen.studies.cells import FAILED, Cell, note_of, run_of
from loadgen.studies.launch import (
    Outcome,
    Study,
    open_study,
    replay_command,
)
from loadgen.studies.matrix import WORKLOADS, Planned, workload_files
from loadgen.studies.presets import (
    preset_defaults,
    server_command,
    simulated_arguments,
    simulator_command,
)
from loadgen.studies.servers import Launch, RunningServer, last_lines, running
from loadgen.studies.study_file import StudyFile
from proxy.process.files import PRIVATE, os_reason, private_folder, whole_file

LOGS = "logs"
SIMULATOR_SECONDS = 30.0
STARTS = 2


def run_study(
    found: StudyFile,
    planned: Sequence[Planned],
    out: Path,
    *,
    is_simulated: bool,
    most_requests: int | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Run what is not finished; one outcome per cell, in order.

    Raises StudyError where the folder is another study's or cannot be written.
    """
    asked = {"study": found.study.study, "simulate": is_simulated}
    cells = [each.cell for each in planned]
    with open_study(out, "study", asked, cells, say=say) as study:
        study.replan(cells)
        _write_workloads(
            out / WORKLOADS,
            workload_files(
                found, is_simulated=is_simulated, most_requests=most_requests
            ),
        )
        runner = _Runner(found, out, study, is_simulated)
        return [runner.run(each) for each in planned]


class _Runner:
    """Cells one after the other; remembers servers that never came up."""

    def __init__(
        self, found: StudyFile, out: Path, study: Study, is_simulated: bool
    ) -> None:
        self._found = found
        self._out = out
        self._study = study
        self._is_simulated = is_simulated
        self._lost: dict[str, str] = {}
        """Servers that did not come up: the first line of the reason."""

    def run(self, planned: Planned) -> Outcome:
        """One cell, unless it is finished."""
        study, one = self._study, planned.cell
        name = planned.point.names["servers"]
        if note_of(self._out, one) is not None:
            return study.run(one)
        if planned.point.server.url is not None and not self._is_simulated:
            return study.run(one, ["--url", planned.point.server.url])
        if name in self._lost:
            return study.failed(one, f"{self._lost[name]} (as before)")
        for attempt in range(1, STARTS + 1):
            try:
                return self._with_server(planned)
            except StackError as error:
                reason = str(error)
                if attempt < STARTS:
                    study.say(f"{one.name}: {reason}\n    once more")
        self._lost[name] = reason.splitlines()[0]
        return study.failed(one, reason)

    def _with_server(self, planned: Planned) -> Outcome:
        """Run a cell, each attempt with a fresh server. Raises StackError."""
        launch = self._launch(planned)
        servers: list[RunningServer] = []
        with ExitStack() as stack:

            def command(one: Cell, run: Path) -> list[str]:
                stack.close()
                server = stack.enter_context(running(launch, self._study.say))
                servers.append(server)
                more = [f"--url={server.url}"]
                if self._is_simulated:
                    more.append(f"--power=dcgm={server.url}/dcgm/metrics")
                    if planned.point.server.simulate.get("idle-gpus"):
                        more.append(f"--gpus={_used_gpus(launch)}")
                return [*replay_command(one, run), *more]

            for attempt in range(1, STARTS + 1):
                outcome = self._study.run(planned.cell, command=command)
                if servers[-1].is_alive:
                    return outcome
                # a server that died is data in the run, and no result of a study
                tail = last_lines(launch.log_path)
                reason = f"the server {launch.name} ended during the run: " + (
                    tail[-1] if tail else "its log is empty"
                )
                if outcome.status == "failed":  # tried again by the study
                    self._study.say(f"    {reason}")
                    return replace(outcome, reason=reason)
                left = self._dismiss(planned.cell)
                if attempt < STARTS:
                    self._study.say(f"{planned.cell.name}: {reason}\n    once more")
        return self._study.failed(planned.cell, f"{reason}\n    what is left: {left}")

    def _dismiss(self, one: Cell) -> Path:
        """Take a run out of the finished ones, and keep it to be looked at."""
        left = self._out / FAILED / one.name
        try:
            left.parent.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                shutil.rmtree(left)
            run_of(self._out, one).rename(left)
        except OSError as error:
            raise StudyError(f"cannot write {left}: {os_reason(error)}") from None
        return left

    def _launch(self, planned: Planned) -> Launch:
        server, study = planned.point.server, self._found.study
        log_path = self._out / LOGS / f"{planned.cell.name}.log"
        name = planned.point.names["servers"]
        if self._is_simulated:
            words = simulated_arguments(server, study.simulate)
            return Launch(
                name,
                lambda port: simulator_command(words, port),
                {},
                "/health",
                SIMULATOR_SECONDS,
                None,
                log_path,
            )
        health, start_seconds = preset_defaults(server)
        model = server.model or study.model
        return Launch(
            name,
            lambda port: server_command(server, model, port),
            server.environment,
            server.health or health,
            server.start_seconds or start_seconds,
            server.gpus or study.gpus,
            log_path,
        )


def _used_gpus(launch: Launch) -> str:
    """The simulated boards that serve: the first ones."""
    words = launch.command(0)
    count = int(words[words.index("--n-gpus") + 1]) if "--n-gpus" in words else 1
    return ",".join(map(str, range(count)))


def _write_workloads(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        if files:
            private_folder(folder)
        for name, content in files.items():
            with whole_file(folder / name, mode=PRIVATE) as file:
                file.write(content)
    except OSError as error:
        reason = os_reason(error)
        raise StudyError(f"cannot write {folder}: {reason}") from None
