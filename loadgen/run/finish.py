"""The end of a run: its folder is joined, tallied, summarised and written.

A run folder holds `plan.jsonl` and `requests.jsonl` from the run itself, then
`summary.json` and `report.html` from here. Only while a run goes on there is
`run.json`, so that a killed run keeps how it was asked for. Everything is
read line by line: a million requests take no more memory than their counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from loadgen.analysis.naive import Work
from loadgen.analysis.schema import Summary
from loadgen.analysis.summary import (
    RunInfo,
    read_summary,
    summarise,
    work_of,
    write_summary,
)
from loadgen.analysis.tally import Extent, RunWindow, Tally
from loadgen.energy.join import (
    PATIENCE,
    Patience,
    Waiting,
    awaited,
    books_now,
    join,
    margin_seconds,
    read_metering,
    wait_for_energies,
)
from loadgen.energy.ledgers import Ledger, ledger_at
from loadgen.errors import LoadgenError
from loadgen.plan.plan import MAX_LINE_BYTES, PlanHeader
from loadgen.report.html import write_html
from loadgen.results.parts import Part
from loadgen.results.recorder import read_results
from loadgen.results.results import Metering, Result
from loadgen.run.records import (
    PLAN,
    REQUESTS,
    SUMMARY,
    cut_parts,
    has_records,
    records_of,
    remove_parts,
)
from loadgen.traces.readers.open import sha256_of
from proxy.admin.client import AdminError
from proxy.process.files import os_reason
from proxy.wire.api import BooksReply

REPORT = "report.html"
STARTED = "run.json"


def begin_run(folder: Path, info: RunInfo) -> None:
    """Note how a run was asked for; `finish_run` replaces the note by a summary."""
    try:
        (folder / STARTED).write_bytes(msgspec.json.encode(info))
    except OSError as error:
        raise _unwritable(folder, error) from None


def finish_run(
    folder: Path,
    info: RunInfo,
    *,
    admin_url: str | None = None,
    admin_token: str | None = None,
    begun: BooksReply | None = None,
    parts: Sequence[Part] = (),
    waiting: Waiting | None = None,
    patience: Patience = PATIENCE,
) -> Summary:
    """Join, tally, judge and write a run that has just ended; the caller shows it.

    `parts` are those of the processes, where several sent it. `waiting` hears of
    settlement (settled, expected). Energy that cannot be
    had is null with a reason; `begun` are the books of the run's start: what the
    proxy counted is counted from there. LoadgenError only when the folder cannot be
    read or written.
    """
    requests = folder / REQUESTS
    extent = extent_of(read_results(requests))
    window = extent.window(info.warmup_seconds, info.cooldown_seconds)
    metering = Metering(reason="no metering proxy in front of the engine")
    ended = None if begun is None else books_now(admin_url, admin_token)
    if admin_url is not None:
        with ledger_at(admin_url, token=admin_token) as admin:
            metering = _meter(requests, info, window, extent, admin, waiting, patience)
        metering = msgspec.structs.replace(metering, begun=begun, ended=ended)
    records = read_results(requests)
    summary = summary_of(folder, records, info, window, metering, extent, parts)
    try:
        write_summary(folder / SUMMARY, summary)
        write_html(folder / REPORT, summary, read_results(requests))
        (folder / STARTED).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from None
    remove_parts(folder, len(parts))
    return summary


def load_run(folder: Path) -> Summary:
    """The summary of a run folder; computed anew when the run left none.

    Raises LoadgenError when this is no run folder or its files are broken.
    """
    try:
        return _loaded(folder)
    except OSError as error:
        reason = os_reason(error)
        raise LoadgenError(f"cannot read the run folder {folder}: {reason}") from None


def _loaded(folder: Path) -> Summary:
    if (folder / SUMMARY).is_file():
        try:
            return read_summary(folder / SUMMARY)
        except _NOT_OURS as error:
            raise LoadgenError(f"cannot read {folder / SUMMARY}: {error}") from None
    if not has_records(folder):
        raise LoadgenError(
            f"{folder} is not a run folder: it has neither {SUMMARY} nor {REQUESTS}"
        )
    extent = extent_of(records_of(folder))
    metering = Metering(reason="the run ended before its books were read")
    info = _as_started(folder)
    window = extent.window(info.warmup_seconds, info.cooldown_seconds)
    parts = cut_parts(folder, info, plan_header(folder / PLAN))
    records = records_of(folder)
    return summary_of(folder, records, info, window, metering, extent, parts)


_NOT_OURS = (ValueError, RecursionError)
"""Errors of decoding a file that was cut, spoilt or written by something else."""


def extent_of(records: Iterable[Result]) -> Extent:
    """The number of records and the ends of the run."""
    extent = Extent()
    for result in records:
        extent.add(result)
    return extent


def summary_of(
    folder: Path,
    records: Iterable[Result],
    info: RunInfo,
    window: RunWindow,
    metering: Metering,
    extent: Extent,
    parts: Sequence[Part] = (),
) -> Summary:
    """One pass over the records, and the plan's header and hash."""
    tally = Tally(window, info.goodput).add_all(records)
    return summarise(
        tally,
        info=info,
        header=plan_header(folder / PLAN),
        plan_sha256=sha256_of(folder / PLAN) if (folder / PLAN).is_file() else None,
        metering=metering,
        run_seconds=extent.last_finished_seconds,
        parts=parts,
    )


def work_of_run(folder: Path, summary: Summary) -> Work:
    """The facts for naive estimates that a summary does not hold, from the records.

    Raises LoadgenError where the records are gone.
    """
    window = RunWindow(summary.window.start_seconds, summary.window.end_seconds)
    return work_of(Tally(window, {}).add_all(records_of(folder)))


def plan_header(path: Path) -> PlanHeader | None:
    """First line of a plan; None when there is no plan, or not a readable one."""
    try:
        with path.open("rb") as lines:
            return msgspec.json.decode(lines.readline(MAX_LINE_BYTES), type=PlanHeader)
    except (OSError, *_NOT_OURS):
        return None


def started(folder: Path) -> RunInfo:
    """The facts that `begin_run` noted of a run; none where they cannot be read."""
    try:
        return msgspec.json.decode((folder / STARTED).read_bytes(), type=RunInfo)
    except (OSError, *_NOT_OURS):
        return RunInfo()


def _as_started(folder: Path) -> RunInfo:
    """Of a run that never finished."""
    return msgspec.structs.replace(started(folder), interrupted=True)


def _unwritable(folder: Path, error: OSError) -> LoadgenError:
    reason = os_reason(error)
    return LoadgenError(f"cannot write into the run folder {folder}: {reason}")


def _meter(
    requests: Path,
    info: RunInfo,
    window: RunWindow,
    extent: Extent,
    admin: Ledger,
    waiting: Waiting | None,
    patience: Patience,
) -> Metering:
    zero, run_seconds = info.zero_unix_seconds, extent.last_finished_seconds
    if zero is None:
        return Metering(reason="the run never started")
    try:
        margin = margin_seconds(admin)
    except AdminError as error:
        return Metering(reason=str(error))
    energies = wait_for_energies(
        admin, awaited(requests), zero + run_seconds + margin,
        begin_unix_seconds=zero, waiting=waiting, patience=patience,
    )  # fmt: skip
    join(requests, energies)
    return read_metering(
        admin,
        zero,
        start_seconds=window.start_seconds - (0.0 if info.warmup_seconds else margin),
        end_seconds=window.end_seconds + (0.0 if info.cooldown_seconds else margin),
        run_seconds=run_seconds,
        reason=energies.reason,
    )
