"""`python -m loadgen.studies.guard SECONDS CMD...`: a command that leaves nothing.

Runs a command in a process group of its own and ends it, and everything that it ever
started, when its standard input closes or it is told to end: so a server goes with the
study, also when that is killed, and so do workers that left its group. First they are
asked, SECONDS later they are killed. Its exit code is the command's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from loadgen.studies.launch import ends_with_parent
from proxy.process.files import os_reason

SET_CHILD_SUBREAPER = 36
"""prctl(2): what loses its parent becomes our child, so that it can be found."""
POLL_SECONDS = 0.05
KILL_SECONDS = 10.0
SIGNALLED = 128


def main(arguments: list[str]) -> int:
    """Run to the end of the command, or of whoever holds our standard input."""
    patience, *command = arguments
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)
    wake, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: told.append(number))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=ends_with_parent(),
        )
    except OSError as error:
        print(f"{command[0]}: {os_reason(error)}", file=sys.stderr)
        return 127
    while process.poll() is None and not told:
        ready, _, _ = select.select([wake, 0], [], [])
        if wake in ready:
            os.read(wake, 1024)
        if 0 in ready and not os.read(0, 4096):
            break
    _end(process, float(patience))
    code = process.wait()
    return code if code >= 0 else SIGNALLED - code


def _end(process: subprocess.Popen[bytes], patience: float) -> None:
    """Ask the group, wait for all that it started, then kill what is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    asked = time.monotonic()
    while (left := _left(process)) and time.monotonic() - asked < patience:
        time.sleep(POLL_SECONDS)
    killed = time.monotonic()
    while left and time.monotonic() - killed < KILL_SECONDS:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
        left = _left(process)


def _left(process: subprocess.Popen[bytes]) -> list[int]:
    """Processes that came from us and are not gone; what has ended is reaped.

    A process that ends while the list is made hands its children to us after ours were
    read, so a list in which one had ended says nothing of them: it is made again.
    """
    while found := _descendants():
        left = [pid for pid in found if not _reaped(pid, process)]
        if len(left) == len(found):
            return left
    no_proc_here = process.poll() is None  # then the group's leader stands for all
    return [process.pid] if no_proc_here else []


def _descendants() -> list[int]:
    found = [os.getpid()]
    for parent in found:  # grows while it is read
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found.extend(int(child) for child in tasks.read_text().split())
    return found[1:]


def _reaped(pid: int, process: subprocess.Popen[bytes]) -> bool:
    if pid == process.pid:
        return process.poll() is not None
    with contextlib.suppress(ChildProcessError):  # a grandchild is not ours to reap
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
