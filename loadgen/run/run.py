"""One run: plan, bring up what is needed, replay, join, judge, show."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import uvloop
from rich.console import Console
from rich.markup import escape

from loadgen.analysis.dry_run import DryRun, dry_run_of
from loadgen.analysis.schema import Summary
from loadgen.analysis.summary import RunInfo
from loadgen.analysis.verdict import EXIT_CODES
from loadgen.client.abilities import check_options, length_note, length_rule
from loadgen.client.backends import RequestOptions
from loadgen.client.identity import engine_facts
from loadgen.energy.join import books_now
from loadgen.errors import PlanError, RunError, UsageError
from loadgen.plan.plan import (
    PlanHeader,
    PlannedSession,
    is_plan,
    make_plan,
    plan_of,
    read_plan,
)
from loadgen.plan.shards import Shard
from loadgen.replay.clock import SystemClock
from loadgen.replay.replay import RunStats, replay
from loadgen.report import format as fmt
from loadgen.report.console import console as output
from loadgen.report.terminal import render
from loadgen.results.measures import parse_goodput
from loadgen.results.parts import Part, order_by_end
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder
from loadgen.run.bus import BusOptions
from loadgen.run.config import ReplayConfig
from loadgen.run.engine_metrics import BACKENDS as METRICS_BACKENDS
from loadgen.run.engine_metrics import FILE as ENGINE_METRICS
from loadgen.run.engine_metrics import scraping
from loadgen.run.environment import (
    Environment,
    bring_up,
    check_settings,
    check_workers,
    target_of,
)
from loadgen.run.exporter import check_free, exporting
from loadgen.run.finish import (
    REPORT,
    begin_run,
    finish_run,
    started,
)
from loadgen.run.forecast import Forecast, forecast
from loadgen.run.live import live_view
from loadgen.run.load import (
    is_synthetic,
    load_of,
    synthetic_lengths,
    synthetic_requests,
)
from loadgen.run.processes import check_processes, replay_in_processes, shares_of
from loadgen.run.record import run_record
from loadgen.run.records import PART, PLAN, REQUESTS, SUMMARY
from loadgen.run.sender import Job
from loadgen.run.stack import Stack
from loadgen.run.state import read_state
from loadgen.run.stopping import stop_at_signals
from loadgen.run.targets import check_targets
from loadgen.run.together import Tracking
from loadgen.run.workers import Crew, only_coordinator
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.presets import GPUS, MODELS
from loadgen.traces.fixed import NAME as SYNTHETIC
from loadgen.traces.fixed import fixed_lengths
from loadgen.traces.readers.open import sha256_of
from proxy.process.files import PRIVATE, private_folder, whole_file
from proxy.process.terminal import echo_json
from proxy.wire.api import BooksReply

LOG_FOLDER = "logs"
EXIT_INTERRUPTED = 130
NOT_OF_A_PLAN = (
    "rate", "session_rate", "concurrency", "stages", "speed", "num_prompts",
    "duration", "max_model_len", "input_len",
)  # fmt: skip
"""Decided when a plan was made, so they cannot be asked of an old one."""


def run(config: ReplayConfig, console: Console, *, as_json: bool = False) -> int:
    """Do one run and show it; returns the exit code of `loadgen replay`.

    `console` is for progress; the result, with `as_json` as summary.json, goes to
    standard output.
    Raises LoadgenError for what prevents a run. The run folder appears once all that
    can be checked is; from then on everything is written into it as it happens, so an
    end at any moment keeps what there was.
    """
    goodput = parse_goodput(config.goodput)
    _length_rule(config)  # refuse before anything is written or started
    check_processes(config)
    check_workers(config)
    check_settings(config)
    folder = _run_folder(config)
    progress = Progress()
    with ExitStack() as ending:
        starting = ending.enter_context(_starting_folder(folder))
        header = _plan(config, starting, console)
        _show_plan(header, config, folder, console)
        stack = ending.enter_context(Stack(starting / LOG_FOLDER))
        environment = bring_up(config, stack, console)
        engine = engine_facts(replace(environment.target, url=environment.engine_url))
        crew = _crew(config, console, ending)
        if crew is not None:
            crew.gather(len(shares_of(config, header)), config.workers_timeout)
        info = _run_info(config, environment, goodput, engine)
        _appear(starting, folder)
        stack.moved(folder / LOG_FOLDER)
        if crew is not None:
            ending.enter_context(only_coordinator(folder))
        begin_run(folder, info)
        begun = books_now(environment.admin_url, environment.admin_token)
        with exporting(
            config.metrics_port,
            progress,
            run=folder.resolve().name,
            targets=config.metrics_targets,
        ):
            with scraping(_metrics_url(environment), folder / ENGINE_METRICS):
                stats, parts = _replay(
                    config, folder, header, environment, progress, console, crew
                )
            summary = _finish(folder, info, stats, parts, environment, begun, console)
            if crew is not None:
                crew.remove(folder)
        gone = stack.gone()
    _show(summary, folder, as_json)
    if gone is not None:
        console.print(f"loadgen: {gone}", style="bold red")
    return _exit_code(stats, summary)


def resume(config: ReplayConfig, console: Console, *, as_json: bool = False) -> int:
    """Go on with the run in `--out`, whose coordinator was killed; as `run` otherwise.

    Its records are those in the folder and those that are on the bus. Raises RunError
    where there is nothing to go on with.
    """
    folder = config.out
    assert folder is not None
    state = read_state(folder)
    with ExitStack() as ending:
        ending.enter_context(only_coordinator(folder))
        header, _ = read_plan(folder / PLAN)
        info = started(folder)
        environment = Environment(
            target_of(config, config.url or ""), config.url or "", config.ledger, False,
            admin_token=config.ledger_token,
        )  # fmt: skip
        crew = _crew(config, console, ending)
        assert crew is not None
        if state.zero_seconds is None:
            crew.forget(state, folder)
            raise RunError(
                f"the run in {folder} was killed before it began: start it anew, in "
                "another folder"
            )
        (folder / REQUESTS).unlink(missing_ok=True)  # made anew from the parts
        progress = Progress()
        _expect(progress, config, header)
        with (
            exporting(
                config.metrics_port, progress, run=folder.resolve().name,
                targets=config.metrics_targets,
            ),
            Recorder(folder / REQUESTS) as recorder,
            live_view(progress, environment, config.quiet, console),
        ):  # fmt: skip
            stats, parts = crew.go_on(
                state,
                parts=[
                    folder / PART.format(number + 1)
                    for number in range(len(state.workers))
                ],
                tracking=_tracking(config, folder, recorder, progress, console),
            )
        order_by_end(folder / REQUESTS)
        summary = _finish(folder, info, stats, parts, environment, None, console)
        crew.remove(folder)
    _show(summary, folder, as_json)
    return _exit_code(stats, summary)


def _crew(config: ReplayConfig, console: Console, ending: ExitStack) -> Crew | None:
    """The workers that are to send, where they are asked for."""
    if config.workers is None or config.bus is None:
        return None
    bus = BusOptions(url=config.bus, credentials=config.bus_creds, ca=config.bus_ca)

    def say(text: str) -> None:
        if not config.quiet:
            console.print(escape(text), highlight=False)

    return ending.enter_context(Crew(bus, say))


def _finish(
    folder: Path,
    info: RunInfo,
    stats: RunStats,
    parts: Sequence[Part],
    environment: Environment,
    begun: BooksReply | None,
    console: Console,
) -> Summary:
    """Join, judge and write a run whose records are all there."""
    info = msgspec.structs.replace(
        info,
        zero_unix_seconds=stats.zero_unix_seconds,
        loop_lag_p99_seconds=stats.loop_lag.p99_seconds,
        interrupted=stats.interrupted,
        failure=stats.failure,
    )
    with console.status("waiting for the energy of the last requests") as status:
        return finish_run(
            folder,
            info,
            admin_url=environment.admin_url,
            admin_token=environment.admin_token,
            begun=begun,
            parts=parts,
            waiting=lambda settled, expected: status.update(
                f"waiting for energy: {settled} of {expected} requests settled"
            ),
        )


def _show(summary: Summary, folder: Path, as_json: bool) -> None:
    if as_json:
        echo_json(msgspec.json.format(msgspec.json.encode(summary), indent=2))
    else:
        output().print(render(summary, folder / REPORT))


def dry_run(config: ReplayConfig, console: Console) -> DryRun:
    """The plan of a run and what it would take, with nothing sent and nothing kept."""
    parse_goodput(config.goodput)
    rule = _length_rule(config)
    check_processes(config)
    check_workers(config)
    check_free(config.metrics_port)
    check_targets(config.metrics_targets, config.metrics_port)
    _run_folder(config)
    with tempfile.TemporaryDirectory(prefix="servewatt-") as folder:
        header = _plan(config, Path(folder), console)
        _show_plan(header, config, None, console)
        header, sessions = read_plan(Path(folder) / PLAN)
        found = dry_run_of(
            header,
            sessions,
            plan_sha256=sha256_of(Path(folder) / PLAN),
            output_tokens=config.output_len,
            copies=config.n,
            length_rule=rule,
            target=config.url or f"simulated {config.sim_model} on {config.sim_gpu}",
        )
        if config.url is not None:
            return found
        with console.status("simulating"):
            _, sessions = read_plan(Path(folder) / PLAN)
            cost = _forecast(config, sessions)
        if cost is None:
            return found
        return msgspec.structs.replace(
            found, simulated_seconds=cost.run_seconds, simulated_joules=cost.joules
        )


def _forecast(
    config: ReplayConfig, sessions: Iterator[PlannedSession]
) -> Forecast | None:
    engine = EngineConfig(
        gpu=GPUS[config.sim_gpu], model=MODELS[config.sim_model],
        n_gpus=config.sim_gpus, prefix_cache=False, track_truth=False,
    )  # fmt: skip
    return forecast(
        sessions, engine, output_tokens=config.output_len,
        max_concurrency=config.concurrency or config.max_concurrency,
    )  # fmt: skip


def _exit_code(stats: RunStats, summary: Summary) -> int:
    if stats.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_CODES[summary.verdict.status]


def _run_folder(config: ReplayConfig) -> Path:
    """The folder of this run, not made yet. Raises UsageError when it cannot be one."""
    if config.out is not None:
        folder = config.out
    else:
        stem = config.trace.name.split(".")[0] or "trace"
        folder = Path("runs") / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{stem}"
    try:
        taken = [n for n in (REQUESTS, SUMMARY) if (folder / n).exists()]
    except OSError as error:
        raise _unusable(folder, error) from None
    if taken:
        raise UsageError(
            f"{folder} already holds a run ({', '.join(taken)}); "
            "name another folder with --out"
        )
    return folder


@contextmanager
def _starting_folder(folder: Path) -> Iterator[Path]:
    """Where a run is made ready, on the file system of its folder; gone at the end."""
    name = f".{folder.name}.{secrets.token_hex(4)}.starting"
    starting = folder / name if folder.is_dir() else folder.with_name(name)
    try:
        private_folder(starting)
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        yield starting
    finally:
        shutil.rmtree(starting, ignore_errors=True)


def _appear(starting: Path, folder: Path) -> None:
    """Give what was made ready its place in the run folder."""
    try:
        private_folder(folder)
        for path in starting.iterdir():
            path.rename(folder / path.name)
    except OSError as error:
        raise _unusable(folder, error) from None


def _unusable(folder: Path, error: OSError) -> UsageError:
    return UsageError(
        f"--out {folder} cannot be used: {error.strerror or error}; "
        "name a folder that can be written"
    )


def _metrics_url(environment: Environment) -> str | None:
    if environment.target.backend not in METRICS_BACKENDS:
        return None
    return environment.engine_url.removesuffix("/v1") + "/metrics"


def _plan(config: ReplayConfig, folder: Path, console: Console) -> PlanHeader:
    """Write the run's plan, or take over the one that was given."""
    if config.plan is not None:
        header, _ = read_plan(config.plan)
        _copy_plan(config.plan, folder / PLAN)
        return header
    if is_plan(config.trace):
        asked = [name for name in NOT_OF_A_PLAN if getattr(config, name)]
        if asked:
            option = asked[0].replace("_", "-")
            raise UsageError(
                f"{config.trace} is a plan and has its own timing; leave out --{option}"
                " or give the trace it was made from"
            )
        header, _ = read_plan(config.trace)
        _copy_plan(config.trace, folder / PLAN)
        return header
    load = load_of(config)
    with console.status(f"planning {config.trace}"):
        if is_synthetic(config):
            requests, lengths = synthetic_requests(config), synthetic_lengths(config)
            header, _ = plan_of(
                lambda: fixed_lengths(requests, *lengths), SYNTHETIC, load,
                folder / PLAN,
            )  # fmt: skip
        else:
            header, _ = make_plan(config.trace, load, folder / PLAN, config.format)
    return header


def _copy_plan(given: Path, plan: Path) -> None:
    try:
        with given.open("rb") as source, whole_file(plan, mode=PRIVATE) as copy:
            shutil.copyfileobj(source, copy)
    except OSError as error:
        raise PlanError(f"{plan}: cannot be written: {error.strerror}") from None


def _show_plan(
    header: PlanHeader, config: ReplayConfig, folder: Path | None, console: Console
) -> None:
    if config.quiet:
        return
    senders, asked = len(shares_of(config, header)), config.workers or config.processes
    pace = "" if header.rate_per_second is None else f" at {header.rate_per_second:g}/s"
    console.print(
        f"plan: {header.requests} requests in {header.sessions} sessions, "
        f"{header.arrival} arrivals{pace} over {fmt.duration(header.span_seconds)}, "
        f"seed {header.seed}" + ("" if folder is None else f", in {folder}")
    )
    for reason, count in header.dropped.items():
        console.print(f"  left out: {count} ({reason})")
    lengths = length_note(_length_rule(config), config.backend)
    several = None
    if senders < asked:
        kind = "processes" if config.workers is None else "workers"
        several = f"{senders} of {asked} {kind}: no more sessions"
    for note in filter(None, [*header.notes, lengths, several]):
        console.print(f"  note: {note}")


def _replay(
    config: ReplayConfig,
    folder: Path,
    header: PlanHeader,
    environment: Environment,
    progress: Progress,
    console: Console,
    crew: Crew | None,
) -> tuple[RunStats, list[Part]]:
    """Send the plan; the first Ctrl-C ends it and keeps what there is.

    The parts are those of several processes or workers, none where this process sends
    it all.
    """
    _, sessions = read_plan(folder / PLAN)
    _expect(progress, config, header)
    options = replace(_options(config), hash_block_size=header.hash_block_size)
    check_options(environment.target, options)

    weights = shares_of(config, header)
    if len(weights) > 1 or crew is not None:
        jobs = _jobs(config, folder, weights, environment, options)
        with (
            Recorder(folder / REQUESTS) as recorder,
            live_view(progress, environment, config.quiet, console),
        ):
            tracking = _tracking(config, folder, recorder, progress, console)
            if crew is None:
                logs = folder / LOG_FOLDER
                stats, parts = replay_in_processes(
                    jobs, log_folder=logs, tracking=tracking
                )
            else:
                stats, parts = crew.replay(jobs, folder=folder, tracking=tracking)
        order_by_end(folder / REQUESTS)
        return stats, parts

    async def whole() -> RunStats:
        task = asyncio.ensure_future(
            replay(
                sessions,
                target=environment.target,
                options=options,
                recorder=recorder,
                progress=progress,
                clock=SystemClock(),
                max_concurrency=config.concurrency or config.max_concurrency,
                is_closed_loop=config.concurrency is not None,
                timeout_seconds=config.timeout,
                seed=config.seed,
                max_errors=config.max_errors,
            )
        )
        stop_at_signals(asyncio.get_running_loop(), task.cancel)
        return await task

    with (
        Recorder(folder / REQUESTS) as recorder,
        live_view(progress, environment, config.quiet, console),
    ):
        return uvloop.run(whole()), []


def _tracking(
    config: ReplayConfig,
    folder: Path,
    recorder: Recorder,
    progress: Progress,
    console: Console,
) -> Tracking:
    return Tracking(
        plan=folder / PLAN,
        recorder=recorder,
        progress=progress,
        max_errors=config.max_errors,
        warn=lambda text: console.print(f"loadgen: {text}", style="bold red"),
        allows_partial=config.allow_partial,
    )


def _expect(progress: Progress, config: ReplayConfig, header: PlanHeader) -> None:
    """What the plan says of the run to come."""
    progress.planned = header.requests
    progress.offered_per_second = header.rate_per_second
    if header.arrival != "inf" and config.concurrency is None:
        progress.span_seconds = header.span_seconds
    if header.rate_per_second is None and header.span_seconds > 0:
        progress.offered_per_second = header.requests / header.span_seconds


def _jobs(
    config: ReplayConfig,
    folder: Path,
    weights: tuple[int, ...],
    environment: Environment,
    options: RequestOptions,
) -> list[Job]:
    """What each of several processes or workers sends."""
    is_limited = (config.concurrency or config.max_concurrency) is not None
    return [
        Job(
            plan=str(folder / PLAN),
            shard=Shard(number, weights),
            records=str(folder / PART.format(number + 1)),
            target=environment.target,
            options=options,
            max_concurrency=weight if is_limited else None,  # its slots
            is_closed_loop=config.concurrency is not None,
            timeout_seconds=config.timeout,
            seed=config.seed,
        )
        for number, weight in enumerate(weights)
    ]


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
    config: ReplayConfig,
    environment: Environment,
    goodput: dict[str, float],
    engine: dict[str, str],
) -> RunInfo:
    return RunInfo(
        warmup_seconds=config.warmup,
        cooldown_seconds=config.cooldown,
        goodput=goodput,
        max_concurrency=config.concurrency or config.max_concurrency,
        simulated=environment.is_simulated,
        metered=environment.admin_url is not None and config.power != "none",
        power=config.power,
        backend=config.backend,
        output_length_rule=_length_rule(config),
        model=environment.target.model,
        gpu=GPUS[config.sim_gpu].name if environment.is_simulated else None,
        gpus=config.sim_gpus if environment.is_simulated else None,
        metadata=dict(config.metadata),
        allows_partial=config.allow_partial,
        run=run_record(
            config, environment.engine_url, environment.target.model, engine
        ),
    )
