"""The command itself: its own streams, its signals, its exit code.

It stays in our process group, so the terminal's Ctrl-C and Ctrl-Z reach it as
if we were not there; we outlive them to print the figures. Signals sent to us
alone are passed on.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from proxy.errors import CommandError

NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128
"""Exit codes as shells give them."""

PASSED_ON = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP,
    signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
FROM_KEYS = (signal.SIGINT, signal.SIGQUIT)
"""The terminal sends these to the whole group: passed on, they would come twice."""


class MeteredCommand:
    """The command once it runs; before, signals for it are kept."""

    def __init__(self, wakeup: int) -> None:
        self._wakeup = wakeup
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: list[int] = []

    def run(
        self,
        command: Sequence[str],
        *,
        started: Callable[[], None],
        ended: Callable[[], None],
    ) -> int:
        """Run it to its end; returns its exit code, or -n when signal n ended it.

        `started` is called just before, `ended` just after. Raises CommandError
        when it cannot be started.
        """
        started()
        try:
            # Inherited descriptors too: `meter -- tar cf /dev/fd/63 ...` must work.
            self._process = subprocess.Popen(command, close_fds=False)
        except OSError as error:
            raise _cannot_start(command[0], error) from None
        for number in self._kept:
            self._process.send_signal(number)
        # A signal just before a blocking wait() would be handled after it: too late.
        while (code := self._process.poll()) is None:
            select.select([self._wakeup], [], [])
            os.read(self._wakeup, 1024)
        ended()
        return code

    def signal(self, number: int) -> None:
        """Pass a signal on, now or as soon as it runs; after its end, to nobody."""
        if self._process is None:
            self._kept.append(number)
        else:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


@contextmanager
def metered_child() -> Iterator[MeteredCommand]:
    """Within, no signal ends us; what only we have received reaches the child."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    child = MeteredCommand(reader)

    def handle(number: int, frame: FrameType | None) -> None:
        if number not in FROM_KEYS or not _is_in_foreground():
            child.signal(number)

    # What we were told to ignore (nohup, a shell's `&`), the command ignores too:
    # a handler would be reset to the default in it.
    mine = [n for n in PASSED_ON if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in mine}
    before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _only_wake)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield child
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


def _only_wake(number: int, frame: FrameType | None) -> None:
    """Being there makes the signal write to the wakeup pipe."""


def check_command(name: str) -> None:
    """Fail before anything is measured. Raises CommandError."""
    if shutil.which(name) is None:
        error = PermissionError() if os.path.exists(name) else FileNotFoundError()
        raise _cannot_start(name, error)


def _cannot_start(name: str, error: OSError) -> CommandError:
    if isinstance(error, FileNotFoundError):
        return CommandError(f"cannot run {name!r}: command not found", NOT_FOUND)
    why = error.strerror or "not executable"
    return CommandError(f"cannot run {name!r}: {why.lower()}", NOT_EXECUTABLE)


def _is_in_foreground() -> bool:
    """Is ours the group that the terminal's keys speak to?"""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
