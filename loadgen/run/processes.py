"""One run sent by several processes of this host, where one core is not enough.

The plan's sessions are dealt to them, they share one zero on the host's monotonic
clock, and each appends its records to a part of its own, which `loadgen.run.together`
puts together as they grow.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from loadgen.errors import StackError, UsageError
from loadgen.plan.plan import PlanHeader
from loadgen.plan.shards import weights_of
from loadgen.replay.replay import LEAD_SECONDS, RunStats
from loadgen.results.parts import Part, Tail
from loadgen.run.config import ReplayConfig
from loadgen.run.sender import Job, Message
from loadgen.run.stack import end, last_line
from loadgen.run.stopping import signals_told
from loadgen.run.together import TICK_SECONDS, Member, SharedRun, Tracking
from proxy.process.files import PRIVATE, os_reason

START_SECONDS = 60.0
"""Each starts an interpreter; several on a busy host take their time."""


def check_processes(config: ReplayConfig) -> None:
    """Raises UsageError for more senders than may have a request in flight."""
    sender, count = "--processes", config.processes
    if config.workers is not None:
        sender, count = "--workers", config.workers
    for name in ("concurrency", "max_concurrency"):
        slots = getattr(config, name)
        if slots is not None and count > slots:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{sender} {count} is more than {option} {slots}: some could send "
                f"nothing; give at most {slots}"
            )


def shares_of(config: ReplayConfig, header: PlanHeader) -> tuple[int, ...]:
    """The share of each who sends a plan."""
    slots = config.concurrency or config.max_concurrency
    return weights_of(config.workers or config.processes, slots, header.sessions)


@dataclass(slots=True, kw_only=True)
class Sender(Member):
    """One process that sends."""

    process: subprocess.Popen[bytes]
    log_path: Path
    is_ready: bool = False
    rest: bytes = b""
    """Of a line that it has not finished."""

    def hear(self) -> bool:
        """Read what it says; False once it has ended."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 65536)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            message = msgspec.json.decode(line, type=Message)
            self.is_ready |= message.is_ready
            self.note(message)
        return bool(data)

    def begin(self, zero_seconds: float) -> None:
        """Give it the run's zero, on this host's monotonic clock."""
        self.tell(b"%r\n" % zero_seconds)

    def tell(self, line: bytes) -> None:
        """Write to its standard input; one that is gone is found out later."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(line)

    def stop(self) -> None:
        """Have it end as at Ctrl-C."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def give_up(self) -> None:
        """Kill it."""
        self.process.kill()

    def how_it_ended(self) -> str:
        """In words, for one that did not say so itself."""
        code = self.process.returncode
        if code < 0:
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
        return f"ended with code {code}: {last_line(self.log_path)}"


def replay_in_processes(
    jobs: Sequence[Job],
    *,
    log_folder: Path,
    tracking: Tracking,
) -> tuple[RunStats, list[Part]]:
    """Send the shards of a plan, each from a process; the parts tell of each of them.

    The first SIGINT, SIGTERM or SIGHUP stops all and keeps what there is, the second
    raises KeyboardInterrupt. Raises StackError when one does not start, LoadgenError
    when records cannot be written.
    """
    with ExitStack() as ending:
        senders = [start_sender(job, log_folder, ending) for job in jobs]
        selector = ending.enter_context(selectors.DefaultSelector())
        for sender in senders:
            assert sender.process.stdout is not None
            selector.register(sender.process.stdout, selectors.EVENT_READ, sender)
        _await_ready(senders, selector)
        now = time.monotonic()
        zero, zero_unix = now + LEAD_SECONDS, time.time() + LEAD_SECONDS
        tracking.progress.zero_seconds = zero
        run = SharedRun(senders, tracking)
        with signals_told() as told:
            for sender in senders:
                sender.begin(zero)
            _watch(run, selector, told)
        return run.finish(jobs[0].shard.weights, zero_unix, is_told=bool(told))


def _watch(
    run: SharedRun, selector: selectors.BaseSelector, told: Sequence[int]
) -> None:
    """Until every process has ended and all their records are taken."""
    while selector.get_map():
        for key, _ in selector.select(TICK_SECONDS):
            sender: Sender = key.data
            if not sender.hear():
                selector.unregister(key.fileobj)
                sender.process.wait()
                run.note_end(sender, sender.how_it_ended)
        run.tick(told)
    run.take()


def start_sender(job: Job, log_folder: Path, ending: ExitStack) -> Sender:
    """Start a process and give it its job; it ends with `ending`."""
    number = job.shard.number + 1
    log_path = log_folder / f"load-{number}.log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with os.fdopen(os.open(log_path, flags, PRIVATE), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "loadgen.run.sender"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,  # what a dead process did not read is not kept
                start_new_session=True,
            )
    except OSError as error:
        raise StackError(
            f"load process {number} cannot be started: {os_reason(error)}; "
            "give a smaller --processes"
        ) from None
    ending.callback(end, process)
    tail = Tail(Path(job.records))
    ending.callback(tail.close)
    sender = Sender(
        process=process, tail=tail, part=Part(number=number), log_path=log_path
    )
    sender.tell(msgspec.json.encode(job) + b"\n")
    return sender


def _await_ready(senders: Sequence[Sender], selector: selectors.BaseSelector) -> None:
    """Until all can begin. Raises StackError, or LoadgenError with their own words."""
    deadline = time.monotonic() + START_SECONDS
    while waiting := [sender for sender in senders if not sender.is_ready]:
        number = waiting[0].part.number
        events = selector.select(max(deadline - time.monotonic(), 0.0))
        if not events:
            raise StackError(
                f"load process {number} was not ready within {START_SECONDS:g} s: "
                f"{last_line(waiting[0].log_path)}"
            )
        for key, _ in events:
            sender: Sender = key.data
            if not sender.hear():
                sender.process.wait()
                raise StackError(
                    f"load process {sender.part.number} did not start: "
                    f"{sender.failure or sender.how_it_ended()}"
                )
