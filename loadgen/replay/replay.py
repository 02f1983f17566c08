"""Open loop between sessions, closed loop inside one.

Every session starts at its planned instant after one recorded zero, however
slow the server is: nothing is re-anchored, and a late start stays late in the
record. Inside a session a turn waits for the previous reply and its think time.
Texts, bodies and connections are made before they are due.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from loadgen.client.abilities import check_options
from loadgen.client.backends import RequestOptions, Target
from loadgen.client.client import Client, ConnectionCounts, HttpClient
from loadgen.plan.plan import PlannedSession
from loadgen.replay.clock import Clock, LoopLag, LoopMonitor
from loadgen.replay.limits import ErrorLimit
from loadgen.replay.turns import AHEAD_SECONDS, Run, run_session
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder
from loadgen.results.results import Result
from proxy.process.host import raise_open_files

LEAD_SECONDS = AHEAD_SECONDS + 0.1
"""From the call to the zero: the first requests are prepared in it."""

PREPARED_SESSIONS = 512
"""Ready at a time, at most: bounds the memory of a burst and of rate inf."""


@dataclass(frozen=True, slots=True)
class RunStats:
    """Statistics of a replay; seconds count from the run's zero."""

    zero_unix_seconds: float
    zero_monotonic_seconds: float
    end_seconds: float
    """When everything had ended."""
    sent: int
    dropped: int
    loop_lag: LoopLag
    connections: ConnectionCounts
    interrupted: bool
    """Stopped before the plan's end; what had been recorded is kept."""
    failure: str | None = None
    """Why the run ended itself, with most of its plan unsent perhaps; None: not so."""


async def replay(
    sessions: Iterator[PlannedSession],
    *,
    target: Target,
    options: RequestOptions,
    recorder: Recorder,
    progress: Progress,
    clock: Clock,
    max_concurrency: int | None = None,
    is_closed_loop: bool = False,
    timeout_seconds: float = 600.0,
    seed: int = 0,
    max_errors: int | None = None,
    ends_itself: bool = True,
    zero_seconds: float | None = None,
    connect: Callable[[Target, Clock, Progress], Client] | None = None,
) -> RunStats:
    """Send a plan's sessions on time and record every request.

    `sessions` come in order of start and are read as they fall due. At most
    `max_concurrency` requests are in flight; waiting for a slot counts as
    schedule lag, unless the loop is closed: then a request is meant to start when a
    slot is free. Cancelling the call is how to stop it: requests in flight are
    recorded as aborted and the stats so far are returned. So it ends when
    `max_errors` requests have failed, or nobody answers any more, unless it is not to
    end itself: whoever sees the records of all processes decides then. The run's zero
    is soon, or `zero_seconds` on the clock where it is not ours to choose. Raises
    LoadgenError when records cannot be written or the plan has a turn nobody can send.
    """
    check_options(target, options)
    client = (connect or _over_http)(target, clock, progress)
    monitor = LoopMonitor(clock)
    with _settled_heap():
        now = clock.now()
        zero = now + LEAD_SECONDS if zero_seconds is None else zero_seconds
        zero_unix = clock.unix() + (zero - now)
        progress.zero_seconds = zero
        run = Run(
            target=target,
            options=options,
            recorder=recorder,
            progress=progress,
            clock=clock,
            client=client,
            zero=zero,
            slots=asyncio.Semaphore(max_concurrency) if max_concurrency else None,
            is_closed_loop=is_closed_loop,
            prepared=asyncio.Semaphore(PREPARED_SESSIONS),
            timeout_seconds=timeout_seconds,
            seed=seed,
        )
        limit = ErrorLimit(max_errors)
        watcher = _ending(limit, asyncio.current_task())
        if ends_itself:
            progress.watchers.append(watcher)
        try:
            is_interrupted = await _run_all(run, sessions, monitor)
        finally:
            if ends_itself:
                progress.watchers.remove(watcher)
            await client.close()
    return _stats(run, zero_unix, monitor.lag(), is_interrupted, limit.reason)


def _ending(
    limit: ErrorLimit, task: asyncio.Task[object] | None
) -> Callable[[Result], None]:
    """A watcher that cancels the replay once the limit is reached."""

    def watch(result: Result) -> None:
        if limit.reason is None:
            limit.note(result)
            if limit.reason is not None and task is not None:
                task.cancel()

    return watch


def _stats(
    run: Run,
    zero_unix: float,
    loop_lag: LoopLag,
    is_interrupted: bool,
    failure: str | None,
) -> RunStats:
    return RunStats(
        zero_unix_seconds=zero_unix,
        zero_monotonic_seconds=run.zero,
        end_seconds=run.clock.now() - run.zero,
        sent=run.progress.sent,
        dropped=run.progress.dropped,
        loop_lag=loop_lag,
        connections=run.client.counts,
        interrupted=is_interrupted and failure is None,
        failure=failure,
    )


@contextmanager
def _settled_heap() -> Iterator[None]:
    """Keep the collector from what was loaded so far, which stays to the end.

    Each such look would be a pause of milliseconds.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def _run_all(
    run: Run, sessions: Iterator[PlannedSession], monitor: LoopMonitor
) -> bool:
    """Run every session while the monitor watches; True if stopped before the end.

    Raises what the first failing session raised, without the group around it.
    """
    try:
        async with asyncio.TaskGroup() as watching:
            watch = watching.create_task(monitor.watch())
            async with asyncio.TaskGroup() as group:
                for session in sessions:
                    if not session.turns:
                        continue
                    ahead = run.zero + session.start_seconds - AHEAD_SECONDS
                    await run.clock.sleep_about(ahead)
                    await run.prepared.acquire()
                    group.create_task(run_session(run, session))
                    await run.clock.pause()
            watch.cancel()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()
        return True
    except BaseExceptionGroup as failures:
        raise _first(failures) from None
    return False


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _over_http(target: Target, clock: Clock, progress: Progress) -> Client:
    raise_open_files()
    return HttpClient(target, clock.now, progress)
