"""`python -m loadgen.run.sender`: one process of several that send a run's load.

It reads its job, says that it is ready, reads the run's zero, replays its shard of the
plan and appends the records to a file of its own. Its standard input is its lease: when
that closes it stops as at Ctrl-C, so no load goes on without the process that asked for
it. What it counts goes to standard output, and is left out while nobody reads it: the
load never waits for whoever watches.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

import msgspec
import uvloop

from loadgen.client.backends import RequestOptions, Target
from loadgen.errors import LoadgenError
from loadgen.plan.plan import read_plan
from loadgen.plan.shards import Shard
from loadgen.replay.clock import SystemClock
from loadgen.replay.replay import RunStats, replay
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder
from loadgen.run.stopping import stop_at_signals
from proxy.process.host import stop_with_parent

TELL_SECONDS = 0.2


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What one process is to send; the first line of its standard input."""

    plan: str
    shard: Shard
    records: str
    """File that its records are appended to."""
    target: Target
    options: RequestOptions
    max_concurrency: int | None
    """Its own part of the limit."""
    is_closed_loop: bool
    timeout_seconds: float
    seed: int


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What records do not tell: counts of requests that are not finished too."""

    sent: int = 0
    in_flight: int = 0
    tokens: int = 0
    first_sent_seconds: float | None = None
    newest_sent_seconds: float | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of its standard output."""

    is_ready: bool = False
    counts: Counts | None = None
    stats: RunStats | None = None
    """The last line of a replay that ended well."""
    cpu_seconds: float | None = None
    failure: str | None = None
    """The last line of one that could not go on."""


def main() -> int:
    """One job, from standard input to its end."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    with open(0, "rb", buffering=0, closefd=False) as asked:
        first = asked.readline()
        if not first:
            return 0
        job = msgspec.json.decode(first, type=Job)
        try:
            with Recorder(job.records) as recorder:
                _say(answers, Message(is_ready=True))
                zero = asked.readline()
                if zero:
                    last = uvloop.run(_send(job, float(zero), recorder, answers))
                    _say(answers, last)
        except LoadgenError as error:
            _say(answers, Message(failure=str(error)))
            return 1
        except BrokenPipeError:  # nobody waits for us any more
            return 1
    return 0


async def _send(
    job: Job, zero_seconds: float, recorder: Recorder, answers: int
) -> Message:
    """Replay the shard; the last message of its process."""
    progress = Progress()
    _, sessions = read_plan(job.plan, job.shard)
    begun_cpu_seconds = time.process_time()
    task = asyncio.ensure_future(
        replay(
            sessions,
            target=job.target,
            options=job.options,
            recorder=recorder,
            progress=progress,
            clock=SystemClock(),
            max_concurrency=job.max_concurrency,
            is_closed_loop=job.is_closed_loop,
            timeout_seconds=job.timeout_seconds,
            seed=job.seed,
            ends_itself=False,
            zero_seconds=zero_seconds,
        )
    )
    loop = asyncio.get_running_loop()
    stop_with_parent(loop, task.cancel)
    stop_at_signals(loop, task.cancel)
    telling = asyncio.ensure_future(_tell(progress, answers))
    try:
        stats = await task
    finally:
        telling.cancel()
        os.set_blocking(answers, True)
    return Message(
        counts=_counts(progress),
        stats=stats,
        cpu_seconds=time.process_time() - begun_cpu_seconds,
    )


async def _tell(progress: Progress, answers: int) -> None:
    os.set_blocking(answers, False)
    while True:
        await asyncio.sleep(TELL_SECONDS)
        try:
            _say(answers, Message(counts=_counts(progress)))
        except BlockingIOError:
            continue  # a line is shorter than PIPE_BUF: it is written whole or not
        except BrokenPipeError:
            return  # standard input closes too


def _counts(progress: Progress) -> Counts:
    return Counts(
        sent=progress.sent,
        in_flight=progress.in_flight,
        tokens=progress.tokens,
        first_sent_seconds=progress.first_sent_seconds,
        newest_sent_seconds=progress.newest_sent_seconds,
    )


def _say(answers: int, message: Message) -> None:
    os.write(answers, msgspec.json.encode(message) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
