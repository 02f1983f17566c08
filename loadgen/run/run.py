"""One run: plan, bring up what is needed, replay, join, judge, show."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console

from loadgen.analysis.schema import Summary
from loadgen.analysis.summary import RunInfo
from loadgen.analysis.verdict import EXIT_CODES
from loadgen.client.abilities import check_options, length_note, length_rule
from loadgen.client.backends import RequestOptions
from loadgen.energy.join import books_now
from loadgen.errors import PlanError, UsageError
from loadgen.plan.load import Load
from loadgen.plan.plan import PlanHeader, is_plan, make_plan, read_plan
from loadgen.replay.clock import SystemClock
from loadgen.replay.replay import RunStats, replay
from loadgen.report.terminal import render
from loadgen.results.measures import parse_goodput
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder
from loadgen.run.config import ReplayConfig
from loadgen.run.environment import Environment, bring_up
from loadgen.run.exporter import exporting
from loadgen.run.finish import PLAN, REPORT, REQUESTS, SUMMARY, begin_run, finish_run
from loadgen.run.live import live_view
from loadgen.run.stack import Stack
from loadgen.simulator.core.presets import GPUS
from proxy.process.files import PRIVATE, private_folder, whole_file

LOG_FOLDER = "logs"
EXIT_INTERRUPTED = 130
OF_A_PLAN = (
    "rate", "session_rate", "speed", "num_prompts", "duration", "max_model_len",
)  # fmt: skip
"""Decided when a plan was made, so they cannot be asked of an old one."""


def run(config: ReplayConfig, console: Console) -> int:
    """Do one run and show it; returns the exit code of `loadgen replay`.

    Raises LoadgenError for what prevents a run. Everything is written into the
    run folder as it happens, so an end at any moment keeps what there was.
    """
    goodput = parse_goodput(config.goodput)
    _length_rule(config)  # refuse before anything is written or started
    folder = _run_folder(config)
    progress = Progress()
    with _removing_if_empty(folder):
        header = _plan(config, folder, console)
    _show_plan(header, config, folder, console)
    with Stack(folder / LOG_FOLDER) as stack:
        environment = bring_up(config, stack, console)
        info = _run_info(config, environment, goodput)
        begin_run(folder, info)
        begun = books_now(environment.admin_url, environment.admin_token)
        stats = _replay(config, folder, header, environment, progress, console)
        info = msgspec.structs.replace(
            info,
            zero_unix_seconds=stats.zero_unix_seconds,
            loop_lag_p99_seconds=stats.loop_lag.p99_seconds,
            interrupted=stats.interrupted,
            failure=stats.failure,
        )
        with console.status("waiting for the energy of the last requests") as status:
            summary = finish_run(
                folder,
                info,
                admin_url=environment.admin_url,
                admin_token=environment.admin_token,
                begun=begun,
                waiting=lambda settled, expected: status.update(
                    f"waiting for energy: {settled} of {expected} requests settled"
                ),
            )
        gone = stack.gone()
    console.print(render(summary, folder / REPORT))
    if gone is not None:
        console.print(f"loadgen: {gone}", style="bold red")
    return _exit_code(stats, summary)


def _exit_code(stats: RunStats, summary: Summary) -> int:
    if stats.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_CODES[summary.verdict.status]


def _run_folder(config: ReplayConfig) -> Path:
    """An empty folder for this run. Raises UsageError when there cannot be one."""
    if config.out is not None:
        folder = config.out
    else:
        stem = config.trace.name.split(".")[0] or "trace"
        folder = Path("runs") / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{stem}"
    try:
        private_folder(folder)
        taken = [n for n in (REQUESTS, SUMMARY) if (folder / n).exists()]
    except OSError as error:
        raise UsageError(
            f"--out {folder} cannot be used: {error.strerror or error}; "
            "name a folder that can be written"
        ) from None
    if taken:
        raise UsageError(
            f"{folder} already holds a run ({', '.join(taken)}); "
            "name another folder with --out"
        )
    return folder


@contextmanager
def _removing_if_empty(folder: Path) -> Iterator[None]:
    """A run that never began leaves no folder behind."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _plan(config: ReplayConfig, folder: Path, console: Console) -> PlanHeader:
    """Write the run's plan, or take over the one that was given."""
    if is_plan(config.trace):
        asked = [name for name in OF_A_PLAN if getattr(config, name) is not None]
        if asked:
            option = asked[0].replace("_", "-")
            raise UsageError(
                f"{config.trace} is a plan and has its own timing; leave out --{option}"
                " or give the trace it was made from"
            )
        header, _ = read_plan(config.trace)
        _copy_plan(config.trace, folder / PLAN)
        return header
    load = Load(
        rate_per_second=config.rate,
        session_rate_per_second=config.session_rate,
        arrival=config.arrival,
        burstiness=config.burstiness,
        speed=config.speed,
        num_prompts=config.num_prompts,
        duration_seconds=config.duration,
        output_tokens=config.output_len,
        max_model_len=config.max_model_len,
        over_length=config.over_length,
        dejitter=config.dejitter,
        seed=config.seed,
    )
    with console.status(f"planning {config.trace}"):
        header, _ = make_plan(config.trace, load, folder / PLAN, config.format)
    return header


def _copy_plan(given: Path, plan: Path) -> None:
    try:
        with given.open("rb") as source, whole_file(plan, mode=PRIVATE) as copy:
            shutil.copyfileobj(source, copy)
    except OSError as error:
        raise PlanError(f"{plan}: cannot be written: {error.strerror}") from None


def _show_plan(
    header: PlanHeader, config: ReplayConfig, folder: Path, console: Console
) -> None:
    if config.quiet:
        return
    pace = "" if header.rate_per_second is None else f" at {header.rate_per_second:g}/s"
    console.print(
        f"plan: {header.requests} requests in {header.sessions} sessions, "
        f"{header.arrival} arrivals{pace} over {header.span_seconds:.0f} s, "
        f"seed {header.seed}, in {folder}"
    )
    for reason, count in header.dropped.items():
        console.print(f"  left out: {count} ({reason})")
    lengths = length_note(_length_rule(config), config.backend)
    for note in filter(None, [*header.notes, lengths]):
        console.print(f"  note: {note}")


def _replay(
    config: ReplayConfig,
    folder: Path,
    header: PlanHeader,
    environment: Environment,
    progress: Progress,
    console: Console,
) -> RunStats:
    """Send the plan; the first Ctrl-C ends it and keeps what there is."""
    _, sessions = read_plan(folder / PLAN)
    progress.planned = header.requests
    progress.offered_per_second = header.rate_per_second
    if header.rate_per_second is None and header.span_seconds > 0:
        progress.offered_per_second = header.requests / header.span_seconds
    options = replace(_options(config), hash_block_size=header.hash_block_size)
    check_options(environment.target, options)

    async def whole() -> RunStats:
        task = asyncio.ensure_future(
            replay(
                sessions,
                target=environment.target,
                options=options,
                recorder=recorder,
                progress=progress,
                clock=SystemClock(),
                max_concurrency=config.max_concurrency,
                timeout_seconds=config.timeout,
                seed=config.seed,
                max_errors=config.max_errors,
            )
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                loop.add_signal_handler(number, task.cancel)
        return await task

    with (
        Recorder(folder / REQUESTS) as recorder,
        exporting(config.metrics_port, progress),
        live_view(progress, environment, config.quiet, console),
    ):
        return uvloop.run(whole())


def _options(config: ReplayConfig) -> RequestOptions:
    return RequestOptions(
        output_tokens=config.output_len,
        ignore_eos=config.ignore_eos,
        temperature=config.temperature,
        top_p=config.top_p,
        n=config.n,
        extra_body=config.extra_body,
    )


def _length_rule(config: ReplayConfig) -> str:
    return length_rule(config.backend, _options(config))


def _run_info(
    config: ReplayConfig, environment: Environment, goodput: dict[str, float]
) -> RunInfo:
    return RunInfo(
        warmup_seconds=config.warmup,
        cooldown_seconds=config.cooldown,
        goodput=goodput,
        max_concurrency=config.max_concurrency,
        simulated=environment.is_simulated,
        metered=environment.admin_url is not None and config.power != "none",
        power=config.power,
        backend=config.backend,
        output_length_rule=_length_rule(config),
        model=environment.target.model,
        gpu=GPUS[config.sim_gpu].name if environment.is_simulated else None,
        gpus=config.sim_gpus if environment.is_simulated else None,
        metadata=dict(config.metadata),
    )
