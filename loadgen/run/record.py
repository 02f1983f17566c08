"""How a run was asked for, where and of what: what it takes to do it again.

Values that may be secrets (headers, the API key) are left out; everything else that
could change a figure is in.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadgen.analysis.schema import HostRecord, RunRecord, SamplingRecord
from loadgen.errors import TraceError, UsageError
from loadgen.run.config import OF_A_PLAN, ReplayConfig
from loadgen.traces.fixed import NAME as SYNTHETIC
from loadgen.traces.readers.open import sha256_of
from proxy.errors import ConfigError
from proxy.process.document import decode_settings, read_document
from proxy.process.options import settings_of

HIDDEN = "***"
SETTINGS = settings_of(ReplayConfig)
NOT_REPEATED = ("out", "quiet")
"""Of one run only."""


def run_record(
    config: ReplayConfig, url: str, model: str | None, engine: Mapping[str, str]
) -> RunRecord:
    """The record of a run that is about to begin; `url` is the engine's own."""
    is_simulated = config.url is None
    return RunRecord(
        command=config.command,
        folder=os.getcwd(),
        trace_path=str(config.trace),
        trace_sha256=trace_sha256(config.trace),
        options=options_of(config),
        url=None if is_simulated else url,
        sampling=SamplingRecord(
            temperature=config.temperature,
            top_p=config.top_p,
            n=config.n,
            output_tokens=config.output_len,
            ignore_eos=config.ignore_eos,
            beam_width=_beam_width(config.extra_body),
            extra_body=config.extra_body,
        ),
        engine=("simulated " if is_simulated else "") + config.backend,
        engine_version=engine.get("version"),
        engine_facts=dict(engine),
        model=model,
        host=host(),
    )


def options_of(config: ReplayConfig) -> dict[str, Any]:
    """Every option with a value, by its name, as a file may have it."""
    found: dict[str, Any] = {}
    for setting in SETTINGS:
        value = getattr(config, setting.field)
        if value is None or value == () or value == {} or setting.field in NOT_REPEATED:
            continue
        found[setting.key] = _written(setting.field, value)
    return found


def trace_sha256(trace: Path) -> str | None:
    """The trace file's hash; None where there is no file."""
    if str(trace) == SYNTHETIC:
        return None
    try:
        return sha256_of(trace)
    except (OSError, TraceError):
        return None


def host() -> HostRecord:
    """The machine that sends the load."""
    told = os.uname()  # `platform` would start a process to know more
    return HostRecord(
        name=told.nodename, cpu=_cpu_model(), cpu_count=os.cpu_count(),
        memory_bytes=_memory_bytes(),
        system=f"{told.sysname} {told.release} {told.machine}",
    )  # fmt: skip


def command_line(program: str, words: Sequence[str]) -> str:
    """A command as it can be typed again; what its headers hold is not shown."""
    shown: list[str] = []
    is_header = False
    for word in words:
        name, equals, value = word.partition("=")
        if is_header:
            word = f"{name}={HIDDEN}"
        elif name == "--header" and equals:
            word = f"{name}={value.partition('=')[0]}={HIDDEN}"
        is_header = word == "--header"
        shown.append(word)
    return shlex.join([program, *shown])


# -- the other way -------------------------------------------------------------


def from_file(path: str) -> dict[str, Any]:
    """Options of a TOML file by variable, `trace` too. Raises UsageError."""
    try:
        document = read_document(path)
        trace = document.pop("trace", None)
        found = decode_settings(document, SETTINGS, path, also=("trace",))
    except ConfigError as error:
        raise UsageError(str(error)) from None
    if trace is not None:
        if not isinstance(trace, str) or not trace:
            raise UsageError(f"{path}: trace is {trace!r}, expected a path")
        found["trace"] = Path(trace)
    return found


def from_run(folder: Path, record: RunRecord | None, given: set[str]) -> dict[str, Any]:
    """Options of an earlier run by variable, its trace, and its plan.

    Its plan is used as it is unless `given`, the variables that the command line
    sets, has one that a plan was made by. Raises UsageError for what cannot be
    done again.
    """
    where = str(folder / "summary.json")
    if record is None:
        raise UsageError(
            f"{where} does not hold the run's options: it is from a version before "
            "--from; give the trace and the options"
        )
    options = dict(record.options)
    headers = options.pop("header", [])
    if headers and "header" not in given:
        names = ", ".join(str(each).partition("=")[0] for each in headers)
        raise UsageError(
            f"{folder} was sent with --header {names}, whose value is not kept: give "
            "it again"
        )
    try:
        found = decode_settings(options, SETTINGS, where)
    except ConfigError as error:
        raise UsageError(str(error)) from None
    found["trace"] = Path(record.trace_path)
    changed = [name for name in OF_A_PLAN if name in given]
    plan = folder / "plan.jsonl"
    if not changed:
        if not plan.is_file():
            raise UsageError(f"{plan} is gone: give the trace and the options")
        found["plan"] = plan
    elif trace_sha256(found["trace"]) != record.trace_sha256:
        raise UsageError(
            f"--{changed[0].replace('_', '-')} makes another plan, and "
            f"{record.trace_path} is not the trace that {folder} was made from; leave "
            "it out, or give the trace"
        )
    return found


def _written(field: str, value: Any) -> Any:
    match field:
        case "headers":
            return [f"{name}={HIDDEN}" for name, _ in value]
        case "metadata":
            return [f"{name}={text}" for name, text in value]
        case "stages":
            return ",".join(f"{seconds:g}s@{rate:g}" for seconds, rate in value)
    if isinstance(value, float) and value == float("inf"):
        return "inf"
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _beam_width(body: Mapping[str, Any]) -> int | None:
    """vLLM's `use_beam_search` makes `n` the beam's width; HF has `num_beams`."""
    if body.get("use_beam_search"):
        width = body.get("best_of") or body.get("n")
        return width if isinstance(width, int) else None
    width = body.get("num_beams")
    return width if isinstance(width, int) else None


def _cpu_model() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in {"model name", "Model"}:
                    return value.strip()
    except OSError:
        pass
    return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
