"""Starts the simulator and the proxy as child processes, and ends them for certain.

A child prints one JSON line when it listens and leaves when its standard input
closes: so it goes with its parent even when the parent is killed. It runs in a
session of its own, so that Ctrl-C reaches only the parent, which then still
has a proxy to ask for the books.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from loadgen.energy.ledgers import ledger_at
from loadgen.errors import StackError
from proxy.admin.client import AdminError
from proxy.process.files import private_folder
from proxy.wire.api import ReadinessReply

START_SECONDS = 30.0
STOP_SECONDS = 5.0
READY_SECONDS = 30.0
SENSOR_SECONDS = 8.0
"""Ten updates of a slow counter and a second of idle; a dead sensor costs no more."""


@dataclass(frozen=True, slots=True)
class Child:
    """One running process and what it announced."""

    name: str
    process: subprocess.Popen[bytes]
    announced: dict[str, Any]
    log_path: Path

    @property
    def url(self) -> str:
        """Where it serves."""
        return str(self.announced["url"])


class Stack:
    """Child processes that live as long as the `with` block."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._children: list[Child] = []

    def __enter__(self) -> Stack:
        private_folder(self._log_folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def moved(self, log_folder: Path) -> None:
        """The folder of the logs has another name now."""
        self._log_folder = log_folder
        self._children = [
            replace(child, log_path=log_folder / child.log_path.name)
            for child in self._children
        ]

    def start(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        """Run `python -m module arguments --announce` and wait until it listens.

        Raises StackError with the last line of its log when it does not.
        """
        log_path = self._log_folder / f"{name}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments, "--announce"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        try:
            announced = _announcement(name, process, log_path)
        except BaseException:
            end(process)
            raise
        child = Child(name, process, announced, log_path)
        self._children.append(child)
        return child

    def stop(self) -> None:
        """End the children, the last started first; a second call does nothing."""
        while self._children:
            end(self._children.pop().process)

    def gone(self) -> str | None:
        """Which child ended unasked, and the last line of its log; None: none did."""
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                line = last_line(child.log_path)
                return f"{child.name} ended with code {code}: {line}"
        return None


def wait_until_ready(
    admin_url: str,
    waiting: Callable[[str], None],
    seconds: float = READY_SECONDS,
    *,
    token: str | None = None,
) -> str | None:
    """Wait for a proxy: None when ready, else why its energy is not (yet) known.

    Boundaries beside the headline are waited for too, as long as a sensor is.
    `waiting` is told the current reason. A proxy whose upstream does not answer
    raises StackError; a sensor that does not come up only costs the energy.
    """
    deadline = time.monotonic() + seconds
    patience = min(SENSOR_SECONDS, seconds)
    found: ReadinessReply | None = None
    reasons = ["no answer"]
    with ledger_at(admin_url, token=token) as admin:
        while (now := time.monotonic()) < deadline:
            is_patient = now < deadline - seconds + patience
            if found is not None and found.upstream and not is_patient:
                break
            try:
                found = admin.readiness()
                reasons = found.reasons
            except AdminError as error:
                _check_access(error, token)
                found, reasons = None, [str(error)]
            lacking = found.lacking or {} if found else {}
            if found is not None and found.ready and not (lacking and is_patient):
                return _lacking_text(lacking)
            waiting("; ".join(reasons) or _lacking_text(lacking) or "")
            time.sleep(0.1)
    reason = "; ".join(reasons)
    if found is None or not found.upstream:
        raise StackError(f"the target did not answer in {seconds:g} s: {reason}")
    return reason or "no answer"


def _check_access(error: AdminError, token: str | None) -> None:
    """Raises StackError for a proxy that will never answer us."""
    if error.status == 401:
        problem = "wants a token" if token is None else "does not accept this token"
        raise StackError(
            f"the admin API {problem}; give --ledger-token-file PATH or set "
            f"SERVEWATT_ADMIN_TOKEN ({error})"
        )
    if error.status in (403, 421):
        raise StackError(f"the admin API refuses: {error}")


def _lacking_text(lacking: dict[str, str]) -> str | None:
    """What is not known yet of the boundaries beside the headline."""
    parts = [f"of the {name}: {reason}" for name, reason in lacking.items()]
    return "; ".join(parts) or None


def _announcement(
    name: str, process: subprocess.Popen[bytes], log_path: Path
) -> dict[str, Any]:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_SECONDS):
            raise StackError(
                f"{name} did not listen within {START_SECONDS:g} s: "
                f"{last_line(log_path)}"
            )
    line = process.stdout.readline()
    if not line:
        process.wait(STOP_SECONDS)
        raise StackError(f"{name} did not start: {last_line(log_path)}")
    try:
        announced = json.loads(line)
    except ValueError:
        raise StackError(f"{name} announced {line!r}, expected JSON") from None
    if not isinstance(announced, dict) or not announced.get("ready"):
        raise StackError(f"{name} announced {line!r}, expected a ready object")
    return announced


def last_line(log_path: Path) -> str:
    """The last line of a child's log, to say why it ended."""
    lines = log_path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def end(process: subprocess.Popen[bytes]) -> None:
    """Close its standard input, then ask, then insist."""
    if process.stdin is not None:
        process.stdin.close()
    for insist in (process.terminate, process.kill):
        try:
            process.wait(STOP_SECONDS)
            break
        except subprocess.TimeoutExpired:
            insist()
    process.wait(STOP_SECONDS)
    if process.stdout is not None:
        process.stdout.close()
