"""One run sent by several processes of this host, where one core is not enough.

The plan's sessions are dealt to them, they share one zero on the host's monotonic
clock, and each appends its records to a part of its own. This process reads the parts
as they grow: it shows the run, counts failures over all of them, appends every record
to `requests.jsonl` as one process would, and decides when the run ends. A process that
dies takes its own requests with it and nothing else: nobody sends them in its place,
which would be another load.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from loadgen.client.client import ConnectionCounts
from loadgen.errors import LoadgenError, StackError, UsageError
from loadgen.plan.plan import PlanHeader, requests_of_shards
from loadgen.plan.shards import split
from loadgen.replay.clock import LoopLag
from loadgen.replay.limits import ErrorLimit
from loadgen.replay.replay import LEAD_SECONDS, RunStats
from loadgen.results.parts import Part, Tail
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder
from loadgen.run.config import ReplayConfig
from loadgen.run.sender import Counts, Job, Message
from loadgen.run.stack import end, last_line
from proxy.process.files import PRIVATE, os_reason

START_SECONDS = 60.0
"""Each starts an interpreter; several on a busy host take their time."""
STOP_SECONDS = 30.0
"""From being told to stop to being killed: the records of all in flight are written."""
TICK_SECONDS = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def check_processes(config: ReplayConfig) -> None:
    """Raises UsageError for more processes than may have a request in flight."""
    for name in ("concurrency", "max_concurrency"):
        slots = getattr(config, name)
        if slots is not None and config.processes > slots:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"--processes {config.processes} is more than {option} {slots}: some "
                f"could send nothing; give at most {slots}"
            )


def weights_of(config: ReplayConfig, header: PlanHeader) -> tuple[int, ...]:
    """The share of each process: its slots where they are limited, else all alike.

    No more than there are sessions.
    """
    count = max(min(config.processes, header.sessions), 1)
    slots = config.concurrency or config.max_concurrency
    return (1,) * count if slots is None else split(slots, count)


@dataclass(slots=True)
class Sender:
    """One process, as far as it is known here."""

    process: subprocess.Popen[bytes]
    tail: Tail
    part: Part
    log_path: Path
    is_ready: bool = False
    counts: Counts = field(default_factory=Counts)
    stats: RunStats | None = None
    failure: str | None = None
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
            self.counts = message.counts or self.counts
            self.stats = message.stats or self.stats
            self.failure = message.failure or self.failure
            self.part.cpu_seconds = message.cpu_seconds or self.part.cpu_seconds
        return bool(data)

    def tell(self, line: bytes) -> None:
        """Write to its standard input; one that is gone is found out later."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(line)

    def stop(self) -> None:
        """Have it end as at Ctrl-C."""
        assert self.process.stdin is not None
        self.process.stdin.close()

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
    recorder: Recorder,
    progress: Progress,
    max_errors: int | None,
    warn: Callable[[str], None],
) -> tuple[RunStats, list[Part]]:
    """Send the shards of a plan, each from a process; the parts tell of each of them.

    The first SIGINT, SIGTERM or SIGHUP stops all and keeps what there is, the second
    raises KeyboardInterrupt. `warn` hears at once of a process that died. Raises
    StackError when one does not start, LoadgenError when records cannot be written.
    """
    with ExitStack() as ending:
        senders = [_start(job, log_folder, ending) for job in jobs]
        selector = ending.enter_context(selectors.DefaultSelector())
        for sender in senders:
            assert sender.process.stdout is not None
            selector.register(sender.process.stdout, selectors.EVENT_READ, sender)
        _await_ready(senders, selector)
        now = time.monotonic()
        zero, zero_unix = now + LEAD_SECONDS, time.time() + LEAD_SECONDS
        progress.zero_seconds = zero
        run = _Run(senders, recorder, progress, ErrorLimit(max_errors), warn)
        with _told() as told:
            for sender in senders:
                sender.tell(b"%r\n" % zero)
            run.watch(selector, told)
        failures = [
            f"process {sender.part.number} of {len(senders)}: {sender.failure}"
            for sender in senders
            if sender.failure is not None
        ]
        if failures:
            raise LoadgenError(failures[0])
        run.count_lost(jobs[0])
        for sender in senders:
            with suppress(OSError):  # its records are in requests.jsonl
                sender.tail.path.unlink()
        stats = run.stats(zero_unix, is_told=bool(told))
        return stats, [sender.part for sender in senders]


class _Run:
    """The run while its processes send it."""

    def __init__(
        self,
        senders: Sequence[Sender],
        recorder: Recorder,
        progress: Progress,
        limit: ErrorLimit,
        warn: Callable[[str], None],
    ) -> None:
        self._senders = senders
        self._recorder = recorder
        self._progress = progress
        self._limit = limit
        self._warn = warn
        self._sent = 0
        self._stopped_at_seconds: float | None = None

    def watch(self, selector: selectors.BaseSelector, told: Sequence[int]) -> None:
        """Until every process has ended and all their records are taken."""
        taken_at_seconds = 0.0
        while selector.get_map():
            for key, _ in selector.select(TICK_SECONDS):
                sender: Sender = key.data
                if not sender.hear():
                    selector.unregister(key.fileobj)
                    self._note_end(sender)
            if len(told) > 1:
                for sender in self._senders:
                    sender.process.kill()
                raise KeyboardInterrupt
            now = time.monotonic()
            if now - taken_at_seconds >= TICK_SECONDS:
                taken_at_seconds = now
                self._take()
            is_stopping = self._stopped_at_seconds is not None
            if told or is_stopping or self._limit.reason is not None:
                self._stop(now)
        self._take()

    def _stop(self, now_seconds: float) -> None:
        """Tell all to stop; those that do not are killed later."""
        if self._stopped_at_seconds is None:
            self._stopped_at_seconds = now_seconds
            for sender in self._senders:
                sender.stop()
        elif now_seconds - self._stopped_at_seconds > STOP_SECONDS:
            for sender in self._senders:
                sender.process.kill()

    def _note_end(self, sender: Sender) -> None:
        sender.process.wait()
        counts = msgspec.structs.replace(sender.counts, in_flight=0)
        sender.counts = counts
        if sender.failure is not None:
            self._stop(time.monotonic())
            return
        stats, is_stopped = sender.stats, self._stopped_at_seconds is not None
        if stats is not None:
            sender.part.loop_lag_p99_seconds = stats.loop_lag.p99_seconds
        if stats is None:
            sender.part.death = sender.how_it_ended()
        elif stats.interrupted and not is_stopped:
            sender.part.death = "was told to end"
        if sender.part.death is not None:
            self._warn(
                f"process {sender.part.number} of {len(self._senders)} "
                f"{sender.part.death}: its other requests are lost, and the run is "
                "invalid"
            )

    def _take(self) -> None:
        """Take the new records, in order of their ends, and the counts."""
        while new := [
            (result.finished_seconds, line, result, sender.part)
            for sender in self._senders
            for line, result in sender.tail.results()
        ]:
            new.sort(key=lambda each: each[:2])
            for _, line, result, part in new:
                self._recorder.append(line)
                part.add(result)
                self._sent += result.sent_seconds is not None
                self._limit.note(result)
                self._progress.note_end(result)
        counts = [sender.counts for sender in self._senders]
        progress = self._progress
        # records are newer than counts: nothing is done that was not sent
        progress.sent = max(sum(each.sent for each in counts), self._sent)
        progress.in_flight = sum(each.in_flight for each in counts)
        progress.tokens = sum(each.tokens for each in counts)
        first = [each.first_sent_seconds for each in counts]
        newest = [each.newest_sent_seconds for each in counts]
        progress.first_sent_seconds = min(_known(first), default=None)
        progress.newest_sent_seconds = max(_known(newest), default=None)

    def count_lost(self, job: Job) -> None:
        """How many requests of each dead process have no record."""
        if all(sender.part.death is None for sender in self._senders):
            return
        sizes = requests_of_shards(Path(job.plan), job.shard.weights)
        for sender, size in zip(self._senders, sizes, strict=True):
            if sender.part.death is not None:
                sender.part.lost = size - len(sender.part.planned_seconds)

    def stats(self, zero_unix: float, *, is_told: bool) -> RunStats:
        """Of the whole run; its loop lag is that of the worst process."""
        zero = self._progress.zero_seconds or 0.0
        known = [each.stats for each in self._senders if each.stats is not None]
        is_cut = any(each.interrupted for each in known) or len(known) < len(
            self._senders
        )
        lags = [each.loop_lag for each in known]
        connections = ConnectionCounts()
        for each in known:
            connections.opened += each.connections.opened
            connections.open += each.connections.open
            connections.failed += each.connections.failed
            connections.reused += each.connections.reused
        return RunStats(
            zero_unix_seconds=zero_unix,
            zero_monotonic_seconds=zero,
            end_seconds=time.monotonic() - zero,
            sent=self._progress.sent,
            dropped=self._progress.dropped,
            loop_lag=max(
                lags,
                key=lambda lag: lag.p99_seconds or 0.0,
                default=LoopLag(0, None, None, None),
            ),
            connections=connections,
            interrupted=is_told and is_cut and self._limit.reason is None,
            failure=self._limit.reason,
        )


def _start(job: Job, log_folder: Path, ending: ExitStack) -> Sender:
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
    sender = Sender(process, tail, Part(number=number), log_path)
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


@contextmanager
def _told() -> Iterator[list[int]]:
    """The signals that came while the block ran, but for those that are ignored."""
    told: list[int] = []
    before = {}
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            before[number] = signal.signal(
                number, lambda number, _: told.append(number)
            )
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
