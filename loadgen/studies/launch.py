"""The cells of a study are run one by one, each in a process group of its own.

A cell's run is written to a folder with a temporary name, which becomes the cell's
when it has ended well: whatever kills the study, no half run is taken for a whole one.
A process that fails is tried once more; if it fails again the others go on without it.
Nothing of a cell outlives the study, also when that is killed (on Linux).

    with open_study(folder, "sweep", asked, cells) as study:
        for each in study.cells:
            study.run(each)                       # or study.run(each, ["--url", url])
        sys.exit(study.exit_code)
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.errors import StudyError, UsageError
from loadgen.studies.cells import (
    CELLS,
    FAILED,
    SUMMARY,
    Cell,
    CellNote,
    StudyPlan,
    arguments,
    check_names,
    note_of,
    plain,
    plan_of,
    run_of,
    unfinished,
    write_note,
    write_plan,
)
from proxy.process.files import os_reason, private_folder
from proxy.process.terminal import echo, escaped

ATTEMPTS = 2
STOP_SECONDS = 20.0
"""A replay that is told to end still reads the books and writes its report."""
KILL_SECONDS = 5.0
FINISHED_CODES = (0, 3)
"""3: the run is there, and its verdict is `invalid`."""
USAGE_CODE = 2
"""The same options fail the same way: not tried again."""
CONSOLE, ERRORS = "console.log", "errors.log"
"""Of a run folder: what its process showed, and its standard error."""
SHOWN_LINES = 5
LOCK = ".lock"

Command = Callable[[Cell, Path], list[str]]
"""The command line that runs a cell into a folder that exists and holds no run."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one cell."""

    cell: Cell
    status: Literal["finished", "kept", "failed"]
    """`kept`: it was finished before."""
    folder: Path
    """Its run folder, or what is left of the last attempt."""
    seconds: float = 0.0
    attempts: int = 0
    exit_code: int = 0
    reason: str | None = None
    """Why it failed: the last lines of its standard error."""


def replay_command(cell: Cell, run: Path) -> list[str]:
    """`loadgen replay` of a cell's trace with a cell's options; more may follow."""
    trace = f"./{cell.trace}" if cell.trace.startswith("-") else cell.trace
    return [
        sys.executable, "-m", "loadgen", "replay", trace, *arguments(cell.options),
        f"--out={run}",
    ]  # fmt: skip


class Study:
    """An open study: its folder is locked, its cells are run here."""

    def __init__(
        self, folder: Path, plan: StudyPlan, say: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.outcomes: list[Outcome] = []
        self._say = say
        self._numbers: dict[str, int] = {}
        self._number()

    @property
    def cells(self) -> list[Cell]:
        """All cells of the plan, finished ones too."""
        return self.plan.cells

    @property
    def exit_code(self) -> int:
        """1 where a cell failed, else 0."""
        return int(any(each.status == "failed" for each in self.outcomes))

    def add(self, cells: Iterable[Cell]) -> None:
        """Plan further cells, such as the next of a search; known names stay."""
        known = {each.name for each in self.cells}
        more = [each for each in cells if each.name not in known]
        if more:
            together = [*self.cells, *more]
            check_names(together)
            plan = msgspec.structs.replace(self.plan, cells=together)
            write_plan(self.folder, plan)
            self.plan = plan
            self._number()

    def replan(self, cells: Sequence[Cell]) -> None:
        """Plan these instead; runs of cells that are the same stay."""
        if list(cells) != self.cells:
            check_names(cells)
            plan = msgspec.structs.replace(self.plan, cells=list(cells))
            write_plan(self.folder, plan)
            self.plan = plan
            self._number()

    def run_all(self, command: Command = replay_command) -> list[Outcome]:
        """Run every cell that is not finished; one that fails loses no other."""
        return [self.run(each, command=command) for each in self.cells]

    def run(
        self,
        cell: Cell,
        more: Sequence[str] = (),
        *,
        command: Command = replay_command,
        label: str | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Run one cell, unless it is finished.

        `more` are arguments that make no other cell of it, such as the URL of a
        server that was started for it; `label` names it in the progress instead of
        its name; `before` is called unless the cell is finished, such as to let an
        engine settle. Raises StudyError when the study's folder cannot be written.
        """
        if note_of(self.folder, cell) is None:
            before()
        outcome = self._outcome(cell, more, command, label or cell.name)
        self.outcomes.append(outcome)
        return outcome

    def failed(self, cell: Cell, reason: str) -> Outcome:
        """Note a cell that failed before it could be run, such as for its server."""
        self._say(f"{self._place(cell)} {cell.name}: failed: {reason}")
        found = Outcome(cell, "failed", self.folder / FAILED / cell.name, reason=reason)
        self.outcomes.append(found)
        return found

    def say(self, text: str) -> None:
        """A line of progress, on standard error."""
        self._say(text)

    def _outcome(
        self, cell: Cell, more: Sequence[str], command: Command, label: str
    ) -> Outcome:
        place = self._place(cell)
        note = note_of(self.folder, cell)
        if note is not None:
            self._say(f"{place} {label}: kept, finished before")
            return Outcome(
                cell, "kept", run_of(self.folder, cell),
                note.seconds, note.attempts, note.exit_code,
            )  # fmt: skip
        self._say(f"{place} {label} ...{self._eta()}")
        for attempt in range(1, ATTEMPTS + 1):
            part = self._part(cell)
            begun = time.monotonic()
            try:
                code = _process([*command(cell, part), *more], part)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            seconds = time.monotonic() - begun
            is_there = (part / SUMMARY).is_file()
            if code in FINISHED_CODES and is_there:
                break
            reason = _reason(code, part, is_there)
            is_last = attempt == ATTEMPTS or code == USAGE_CODE
            left = self._kept_for_a_look(cell, part)
            self._say(f"{place} {label}: failed: {reason.splitlines()[-1]}")
            if is_last:
                for line in reason.splitlines()[:-1]:
                    self._say(f"    {line}")
                self._say(f"    what is left of it: {left}")
                return Outcome(cell, "failed", left, seconds, attempt, code, reason)
            self._say(f"{place} {label}: once more")
        note = CellNote(
            hash=cell.hash, cell=cell, seconds=seconds, attempts=attempt, exit_code=code
        )
        write_note(part, note)
        self._take(part, run_of(self.folder, cell))
        verdict = " (verdict: invalid)" if code else ""
        self._say(f"{place} {label}: finished in {duration(seconds)}{verdict}")
        return Outcome(
            cell, "finished", run_of(self.folder, cell), seconds, attempt, code
        )

    def _part(self, cell: Cell) -> Path:
        """An empty folder for one attempt; those of attempts that were killed go."""
        parent = self.folder / CELLS
        for left in parent.glob(f".{cell.name}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        part = parent / f".{cell.name}.{secrets.token_hex(4)}.part"
        try:
            private_folder(part)
        except OSError as error:
            raise _unwritable(part, error) from None
        return part

    def _take(self, part: Path, run: Path) -> None:
        """Give a run its name; a run of other options that had it goes."""
        try:
            if run.exists():
                shutil.rmtree(run)
            part.rename(run)
        except OSError as error:
            raise _unwritable(run, error) from None

    def _kept_for_a_look(self, cell: Cell, part: Path) -> Path:
        left = self.folder / FAILED / cell.name
        with suppress(OSError):
            left.parent.mkdir(exist_ok=True)
            shutil.rmtree(left, ignore_errors=True)
            part.rename(left)
            return left
        return part

    def _number(self) -> None:
        self._numbers = {each.name: n for n, each in enumerate(self.cells, start=1)}

    def _place(self, cell: Cell) -> str:
        return f"[{self._numbers.get(cell.name, '+')}/{len(self.cells)}]"

    def _eta(self) -> str:
        """Time left, from the cells that are finished; nothing where none is."""
        left = unfinished(self.folder, self.cells)
        notes = (note_of(self.folder, each) for each in self.cells)
        spent = [note.seconds for note in notes if note is not None]
        if not spent or not left:
            return ""
        return f" about {duration(sum(spent) / len(spent) * len(left))} left"


@contextmanager
def open_study(
    folder: Path,
    kind: str,
    asked: Mapping[str, Any],
    cells: Sequence[Cell],
    *,
    say: Callable[[str], None] | None = None,
) -> Iterator[Study]:
    """The study of a folder: begun there, or gone on with where it was begun before.

    `asked` are the options that must be the same to go on. While it is open SIGTERM
    ends it as Ctrl-C does (KeyboardInterrupt). Raises StudyError and UsageError.
    """
    check_names(cells)
    found = plan_of(folder, kind, asked)  # refuse before anything is written
    try:
        private_folder(folder)
        (folder / CELLS).mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out {folder} cannot be used: {os_reason(error)}; "
            "name a folder that can be written"
        ) from None
    with _locked(folder), _signals_interrupt():
        if found is None:
            found = StudyPlan(kind=kind, asked=plain(dict(asked)), cells=list(cells))
            write_plan(folder, found)
        study = Study(folder, found, say or (lambda text: echo(text, err=True)))
        study.add(cells)
        try:
            yield study
        except KeyboardInterrupt:
            left = len(unfinished(folder, study.cells))
            study.say(
                f"interrupted: {len(study.cells) - left} of {len(study.cells)} cells "
                f"are finished in {folder}; the same command goes on from there"
            )
            raise


def duration(seconds: float) -> str:
    """Seconds as a person says them: `48 s`, `3 min`, `2 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, then insist; nothing of its group is left."""
    try:
        if process.poll() is None:
            process.terminate()
            process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)


def ends_with_parent() -> Callable[[], None] | None:
    """For `preexec_fn`: the child is told to end when its parent is gone.

    Linux tells a child (prctl(2), PR_SET_PDEATHSIG); elsewhere None.
    """
    if not sys.platform.startswith("linux"):
        return None
    parent = os.getpid()
    libc = ctypes.CDLL(None)  # looked up here: after the fork as little as can be

    def ask() -> None:
        libc.prctl(1, signal.SIGTERM)
        if os.getppid() != parent:  # gone before it was asked
            os._exit(1)

    return ask


def _process(command: Sequence[str], part: Path) -> int:
    """Run a command to its end; its exit code."""
    with (part / CONSOLE).open("wb") as shown, (part / ERRORS).open("wb") as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=shown,
                stderr=errors,
                start_new_session=True,
                preexec_fn=ends_with_parent(),
            )
        except OSError as error:
            errors.write(f"{command[0]}: {error.strerror or error}\n".encode())
            return 127
    try:
        return process.wait()
    finally:
        end_group(process)


def _reason(code: int, part: Path, is_there: bool) -> str:
    """Last lines of the standard error, and how the process ended."""
    text = (part / ERRORS).read_text(errors="replace").strip()
    lines = [escaped(line.strip()) for line in text.splitlines()[-SHOWN_LINES:]]
    if code < 0:
        with suppress(ValueError):
            lines.append(f"ended by {signal.Signals(-code).name}")
    if not lines:
        ended = "left no summary" if not is_there and not code else "said nothing"
        lines.append(f"it {ended} and ended with code {code}; see {part / CONSOLE}")
    return "\n".join(lines)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One study at a time in a folder; the lock goes with the process."""
    try:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unwritable(folder / LOCK, error) from None
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"another process is at work in {folder}; wait for it, or name another "
                "folder with --out"
            ) from None
        yield
    finally:
        os.close(file)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, unless they are ignored."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _unwritable(path: Path, error: OSError) -> StudyError:
    reason = os_reason(error)
    return StudyError(f"cannot write {path}: {reason}")
