"""Texts about a run, the same in the terminal and on the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from loadgen.analysis.schema import (
    EnergyBlock,
    HardwareBlock,
    LengthBlock,
    PerRequest,
    ProcessRow,
    Summary,
)
from loadgen.client.abilities import length_note
from loadgen.report import format as fmt
from proxy.wire.api import ATTRIBUTED, BoardSummary, SpreadReply

_SHOWN_PROCESSES = 8
_RAMP_FRACTION = 0.9  # below it, the difference needs a word
_FAR_FRACTION = 0.1  # of a length: beyond it, another tokenizer counted
_SAME_LENGTH_FRACTION = 0.01  # replies this close in length cost the same work
CALIBRATED, UNFITTED = "calibrated", "phase"
"""The policy of fitted constants, and what it is until they are trusted."""


def simulation(summary: Summary) -> str:
    """Which part of a simulated run is not real."""
    if summary.simulated_engine:
        return (
            "SIMULATED: engine, GPU and joules come from a model, not from a machine "
            "you own"
        )
    return (
        "SIMULATED: the sensor says that its joules come from a model, not from a "
        "machine"
    )


def counted(numbers: Mapping[str, int]) -> str:
    """Requests by a word, such as `90 good, 10 fair`."""
    return ", ".join(f"{fmt.count(number)} {word}" for word, number in numbers.items())


def constants_lines(energy: EnergyBlock) -> list[str]:
    """Whether the fitted constants are trusted, a line for each engine and model."""
    return [
        f"of {each.engine}, {each.model or 'no model yet'}: "
        + ("trusted" if each.is_trusted else f"not trusted, {each.reason}")
        for each in energy.constants
    ]


MEANINGS = {
    "prefill": "reading the prompts",
    "decode": "writing the replies",
    "idle_share": "standby power while requests ran",
    "idle": "nobody was served",
}


class Account(NamedTuple):
    """One line of the books, and what it means."""

    css: str
    """Its colour on the page."""
    name: str
    meaning: str
    joules: float
    shown: str
    """The joules in the unit of the whole, so that the lines add up as they stand."""


def accounts(energy: EnergyBlock) -> Iterator[Account]:
    """The parts that add up to what was measured; none when that is not known."""
    known = energy.by_account()
    if known is None:
        return
    lines = [
        (account.replace("_", "-"), account.replace("_", " "), meaning, known[account])
        for account, meaning in MEANINGS.items()
    ]
    unattributed = {r: j for r, j in (energy.unattributed_joules or {}).items() if j}
    lines += [
        ("unattributed", "unattributed", reason.replace("_", " "), joules)
        for reason, joules in (unattributed or {"nothing": 0.0}).items()
    ]
    _, shown = fmt.adding_up(energy.measured_joules, [line[-1] for line in lines])
    for line, joules in zip(lines, shown, strict=True):
        yield Account(*line, joules)


class BoundaryRow(NamedTuple):
    """One boundary, or the idle accelerators, beside the others."""

    name: str
    measured_joules: float | None
    of_node: float | None
    """Fraction of the node's joules."""
    mean_watts: float | None
    mean_joules: float | None
    """Joules of a request, its share of idle included."""
    mean_active_joules: float | None
    joules_per_output_token: float | None
    note: str


def boundary_rows(energy: EnergyBlock) -> Iterator[BoundaryRow]:
    """Every boundary that was metered; none where the headline was the only one."""
    shares = {ratio.inner: ratio.ratio for ratio in energy.boundary_ratios}
    for name, block in energy.boundaries.items():
        whole, active = block.joules_per_request, block.active_joules_per_request
        missing = block.requests_without_energy
        notes = [block.reason or ""]
        if missing:
            notes.append(f"{missing:,} answered requests without its joules")
        yield BoundaryRow(
            f"{name} ({block.source})", block.measured_joules, shares.get(name),
            block.mean_watts, whole.mean if whole else None,
            active.mean if active else None, block.joules_per_output_token,
            "; ".join(filter(None, notes)),
        )  # fmt: skip
    joules, seconds = energy.idle_accelerators_joules, energy.window_seconds
    if energy.boundaries and joules is not None:
        yield BoundaryRow(
            "other GPUs of the host", joules, shares.get("idle_accelerators"),
            joules / seconds if seconds else None, None, None, None,
            "not the engine's: in the node's joules, in no request's GPU joules",
        )  # fmt: skip


def speculation_text(energy: EnergyBlock) -> str:
    """What an accepted token of speculation took; empty without any."""
    joules, drafted = energy.joules_per_accepted_token, energy.drafted_tokens
    if joules is None or not drafted or energy.accepted_tokens is None:
        return ""
    return (
        f"{fmt.joules(joules)} of decode per accepted token; "
        f"{energy.accepted_tokens:,.0f} of {drafted:,.0f} drafted were accepted "
        f"({fmt.percent(energy.accepted_tokens / drafted)})"
    )


def idle_text(energy: EnergyBlock) -> str:
    """Loaded idle, and what of it is the model; empty when it is not known."""
    if energy.loaded_idle_watts is None:
        return ""
    text = f"{fmt.watts(energy.loaded_idle_watts)} with the model loaded"
    text += f" ({energy.idle_source})" if energy.idle_source else ""
    bare, model = energy.bare_idle_watts, energy.model_idle_watts
    if bare is None or model is None:
        return text
    if model < 0:
        return f"{text}, below the {fmt.watts(bare)} told for bare idle: one is wrong"
    return f"{text}, of which {fmt.watts(model)} because it is resident"


def records_text(energy: EnergyBlock) -> str:
    """The records of the window's requests beside its books; empty without either."""
    known = energy.by_account()
    if known is None or energy.joined_joules is None:
        return ""
    booked = sum(known[account] for account in ATTRIBUTED)
    if booked <= 0:
        return ""
    apart = energy.joined_joules / booked - 1.0
    return (
        f"{fmt.joules(energy.joined_joules)} in the records of its "
        f"{energy.requests_with_energy} requests, {fmt.joules(booked)} in its books "
        f"({100 * apart:+.1f} %): a request across an edge of the window has its whole "
        "energy in its record and a part of it in the books"
    )


class BoardRow(NamedTuple):
    """One board, and how it worked in the window."""

    name: str
    text: str


def board_rows(hardware: HardwareBlock) -> Iterator[BoardRow]:
    """What each board told; one that told nothing has no row."""
    for board in hardware.boards:
        parts = [
            board.model or "",
            f"driver {board.driver}" if board.driver else "",
            _spread(board.sm_clock_hertz, "SM clock {} MHz", 1e-6),
            _spread(board.memory_clock_hertz, "memory clock {} MHz", 1e-6),
            _spread(board.temperature_celsius, "{} °C"),
            _spread(board.power_limit_watts, "power limit {} W"),
            _throttled(board),
            _errors(board),
            _processes(board),
        ]
        text = "; ".join(filter(None, parts))
        if text:
            yield BoardRow(board.device, text)


def warm_up_rows(hardware: HardwareBlock) -> Iterator[BoardRow]:
    """Every figure that drifted at the beginning."""
    for found in hardware.warm_up:
        name, shown = _DRIFTS[found.signal]
        text = f"{name} {shown(found.before)} in the first "
        text += f"{fmt.seconds(found.seconds)}, "
        text += f"then {shown(found.after)}, at equal load"
        if not found.is_steady:
            text += ", and on to the end"
        yield BoardRow("warm-up" if found.is_steady else "drift", text)


_DRIFTS = {
    "ttft": ("TTFT", fmt.seconds),
    "power": ("power", fmt.watts),
    "sm_clock": ("SM clock", lambda hertz: f"{hertz / 1e6:,.0f} MHz"),
    "temperature": ("temperature", lambda celsius: f"{celsius:.0f} °C"),
}


def _spread(found: SpreadReply | None, form: str, factor: float = 1.0) -> str:
    """`1,980 (1,410 to 1,980)` in a form; one figure where all were the same."""
    if found is None:
        return ""
    low, middle, high = (
        f"{value * factor:,.0f}" for value in (found.min, found.median, found.max)
    )
    return form.format(middle if low == high else f"{middle} ({low} to {high})")


def _throttled(board: BoardSummary) -> str:
    if board.throttled_seconds is None:
        return ""
    if not board.throttled_seconds:
        return "never throttled"
    by = ", ".join(
        f"{fmt.seconds(seconds)} {reason}"
        for reason, seconds in board.throttled_seconds_by_reason.items()
    )
    part = fmt.percent(board.throttled_seconds / board.seconds)
    return f"throttled {part} of the time ({by})"


def _errors(board: BoardSummary) -> str:
    parts = []
    if board.corrected_ecc_errors or board.uncorrected_ecc_errors:
        parts.append(
            f"{board.corrected_ecc_errors or 0} corrected and "
            f"{board.uncorrected_ecc_errors or 0} uncorrected memory errors"
        )
    if board.xids:
        parts.append(f"XID {', '.join(map(str, board.xids))}")
    return "; ".join(parts)


def _processes(board: BoardSummary) -> str:
    if board.other_processes is None:
        return ""
    if not board.other_processes:
        return "no other process"
    return (
        f"up to {board.other_processes} other processes for "
        f"{fmt.seconds(board.shared_seconds)}"
    )


def headline(summary: Summary) -> str:
    """The answer in one sentence, with its error, boundary and hardware.

    Empty when no joules are known.
    """
    energy = summary.energy
    if energy.joules_per_request is None:
        return ""
    mean, p50 = energy.joules_per_request.mean, energy.joules_per_request.p50
    text = f"a request cost {fmt.joules(mean)} on average"
    if energy.interval is not None:
        low, high = energy.interval.low_joules, energy.interval.high_joules
        text += f" ({fmt.joules(low)} to {fmt.joules(high)} with 90 %)"
    text += f", half of them under {fmt.joules(p50)}; an output token "
    text += fmt.joules(energy.joules_per_output_token)
    if energy.mean_watts is not None:
        text += f"; {boundary_name(energy.boundary)} drew "
        text += f"{fmt.watts(energy.mean_watts)} on average"
    return f"{text}. {measured_text(summary)}"


def boundary_name(boundary: str | None) -> str:
    """What the headline's sensor measures, such as `the GPU`."""
    return "the GPU" if boundary in {"gpu", None} else f"the {boundary}"


def measured_text(summary: Summary) -> str:
    """Where the joules were measured and by which rule they were divided."""
    energy = summary.energy
    text = f"Boundary {energy.boundary or 'not told'}"
    text += f", {hardware_name(summary) or 'hardware not told'}"
    if energy.source is not None:
        text += f", sensor {energy.source}"
    if energy.policy is not None:
        text += f", policy {energy.policy}; a request's share of idle power is included"
    return text


def hardware_name(summary: Summary) -> str:
    """The boards, such as `2 x NVIDIA H100`; empty where nobody told."""
    models = Counter(board.model for board in summary.hardware.boards if board.model)
    if not models:
        gpu, gpus = summary.environment.get("gpu"), summary.environment.get("gpus")
        if gpu is None and summary.naive is not None:
            gpu, gpus = summary.naive.gpu, summary.naive.gpus
        if gpu is None:
            return ""
        models[str(gpu)] = int(gpus or 1)
    said = "SIMULATED " if summary.simulated else ""
    return ", ".join(
        f"{count} × {said}{model.removeprefix(said)}" for model, count in models.items()
    )


def policy_note(energy: EnergyBlock, policy: str) -> str:
    """That a fitted policy was another one under its name; empty otherwise."""
    if policy != CALIBRATED:
        return ""
    every = energy.policy_joules_per_request
    fitted, usual = every.get(CALIBRATED), every.get(UNFITTED)
    doubts = [each.reason for each in energy.constants if not each.is_trusted]
    why = f" ({doubts[0]})" if doubts and doubts[0] else ""
    if fitted and usual and _is_alike(fitted, usual):
        return f"not fitted in this run: it is {UNFITTED} under another name{why}"
    if doubts:
        return f"fitted in a part of the run, and not trusted at its end{why}"
    return ""


def _is_alike(one: PerRequest, other: PerRequest) -> bool:
    """Alike in every figure; totals alone are alike under every policy."""
    return all(
        math.isclose(getattr(one, name), getattr(other, name), rel_tol=1e-9)
        for name in PerRequest.__struct_fields__
    )


def outcomes_text(summary: Summary) -> str:
    """The number of requests that were due, and their outcomes."""
    due, planned = summary.schedule.planned, summary.schedule.plan_requests
    stopped = summary.outcomes.get("aborted", 0)
    parts = [f"{summary.completed:,} answered", f"{summary.failed - stopped:,} failed"]
    if stopped:
        parts.append(f"{stopped:,} stopped with the run")
    if summary.schedule.dropped:
        parts.append(f"{summary.schedule.dropped:,} never sent")
    text = f"{due:,} planned"
    if planned is not None and planned != due:
        text = f"{due:,} due of {planned:,} planned"
    return f"{text}: {', '.join(parts)}"


def rates_text(summary: Summary) -> str:
    """The rate that was asked for, and the one at which requests really left."""
    schedule = summary.schedule
    asked = fmt.rate(schedule.asked_per_second, "requests/s")
    if summary.request_rate == "inf":
        at_once = summary.max_concurrency
        asked = "all at once" if at_once is None else f"{at_once} in flight"
    achieved = fmt.rate(schedule.achieved_per_second, "requests/s")
    return f"{asked} asked, {achieved} achieved"


def run_rows(summary: Summary) -> Iterator[tuple[str, str]]:
    """What was run, and how to run it again; nothing for runs of earlier versions."""
    run = summary.run
    if run is None:
        return
    version = f" {run.engine_version}" if run.engine_version else ", version not told"
    yield "engine", f"{run.engine}{version}" + (f" at {run.url}" if run.url else "")
    sampling = run.sampling
    parts = [f"temperature {sampling.temperature:g}"]
    parts.append("top-p " + (f"{sampling.top_p:g}" if sampling.top_p else "as its own"))
    parts.append(f"n {sampling.n}")
    if sampling.beam_width is not None:
        parts.append(f"beam {sampling.beam_width}")
    if sampling.extra_body:
        parts.append(f"also {msgspec.json.encode(sampling.extra_body).decode()}")
    yield "decoding", ", ".join(parts)
    yield "host", f"{run.host.name}: {run.host.cpu}, {run.host.cpu_count} CPUs"
    if run.trace_sha256 is not None:
        yield "trace", f"{run.trace_path}, sha256 {run.trace_sha256[:16]}"
    if run.command is not None:
        yield "command", run.command


def per_joule_text(energy: EnergyBlock) -> str:
    """The measured joules turned round: what one of them bought."""
    tokens = fmt.rate(energy.output_tokens_per_joule, "output tokens per joule")
    good = energy.good_requests_per_joule
    if good is None:
        return f"{tokens}, of all that was measured"
    return (
        f"{tokens}; goodput per watt {fmt.digits(1000 * good)} requests per kJ "
        "within the limits"
    )


def ramp_note(summary: Summary) -> str:
    """Why conversations were planned below the rate asked; empty when they were not."""
    asked, offered = summary.request_rate, summary.schedule.offered_per_second
    if not isinstance(asked, float) or offered is None or len(summary.by_turn) < 2:
        return ""
    if offered > _RAMP_FRACTION * asked:
        return ""
    return (
        f"{fmt.digits(asked)} requests/s were asked for: later turns wait for the "
        "reply before, so a short run of conversations is all ramp-up and drain; take "
        "more of them, or cut both with --warmup and --cooldown"
    )


class LengthRow(NamedTuple):
    """Asked against served lengths, and what to make of the difference."""

    name: str
    text: str
    note: str


def late_processes(rows: Sequence[ProcessRow]) -> list[ProcessRow]:
    """Those to show: all of a few, else the dead and the latest of many."""
    if len(rows) <= _SHOWN_PROCESSES:
        return list(rows)

    def badness(row: ProcessRow) -> tuple[bool, float]:
        return row.death is not None, row.lag_ms.p99 if row.lag_ms else 0.0

    worst = sorted(rows, key=badness, reverse=True)[:_SHOWN_PROCESSES]
    return sorted(worst, key=lambda row: row.process)


def process_text(row: ProcessRow) -> str:
    """What one of several processes sent, and how late."""
    parts = [f"{row.requests:,} requests"]
    if row.lag_ms is not None:
        parts.append(f"schedule lag p99 {fmt.seconds(row.lag_ms.p99 / 1000)}")
    if row.cpu_seconds is not None:
        parts.append(f"{fmt.seconds(row.cpu_seconds)} of CPU")
    if row.clock_error_ms is not None:
        parts.append(f"clock within {fmt.seconds(row.clock_error_ms / 1000)}")
    if row.death is not None:
        parts.append(f"{row.death}, {row.lost_requests:,} lost")
    return ", ".join(parts)


def length_rows(summary: Summary) -> Iterator[LengthRow]:
    """One row for the prompts and one for the replies."""
    prompts, replies = summary.input_lengths, summary.output_lengths
    yield LengthRow(
        "prompt lengths",
        lengths_text(prompts),
        prompts_note(prompts),
    )
    notes = [
        length_note(summary.output_length_rule, summary.backend),
        replies_note(replies),
    ]
    yield LengthRow(
        "output lengths",
        lengths_text(replies),
        "; ".join(filter(None, notes)),
    )


def lengths_text(lengths: LengthBlock) -> str:
    """Both sums and how single requests differ from them."""
    if not lengths.requests:
        return "no length was asked for"
    asked, served = fmt.count(lengths.asked_tokens), fmt.count(lengths.served_tokens)
    if lengths.exact_fraction == 1:
        return f"{asked} tokens asked, {served} served: exact in every request"
    low, middle, high = (
        fmt.percent(ratio)
        for ratio in (lengths.ratio_p10, lengths.ratio_p50, lengths.ratio_p90)
    )
    return (
        f"{asked} tokens asked, {served} served "
        f"({fmt.percent(lengths.served_over_asked)}); "
        f"of a request p10 {low}, p50 {middle}, p90 {high}; "
        f"exact in {fmt.percent(lengths.exact_fraction)}"
    )


def prompts_note(lengths: LengthBlock) -> str:
    """A note on prompts: live conversations, another tokenizer; or empty."""
    notes = []
    if lengths.live_requests and lengths.exact_fraction != 1:
        notes.append(
            f"{lengths.live_requests:,} carry the replies really given; asked counts "
            "those of the trace"
        )
    middle = lengths.ratio_p50_without_live
    if middle is not None and abs(middle - 1) > _FAR_FRACTION:
        notes.append(
            "the engine's tokenizer and chat template count otherwise than the trace: "
            "its prefill is not the trace's"
        )
    return "; ".join(notes)


def replies_note(lengths: LengthBlock) -> str:
    """That the engine stopped by itself, and what may then be compared."""
    if not lengths.shorter_requests:
        return ""
    return (
        f"{lengths.shorter_requests:,} of {lengths.requests:,} replies ended early, "
        "the engine stopped by itself: compare joules per output token (of those "
        "served), not joules per request"
    )


def comparison_note(summaries: Sequence[Summary]) -> str:
    """Advice for runs with replies of different lengths; else empty."""
    lengths = [
        summary.total_output_tokens / summary.completed
        for summary in summaries
        if summary.completed
    ]
    if len(lengths) < 2:
        return ""
    is_capped = any(summary.output_length_rule == "cap" for summary in summaries)
    spread = max(lengths) - min(lengths)
    if not is_capped and spread <= _SAME_LENGTH_FRACTION * max(lengths):
        return ""
    return (
        "replies were not forced to one length, or differ in it: compare joules per "
        "output token (of tokens really served), not joules per request"
    )


def how_to_read(summary: Summary) -> str:
    """One line for somebody who sees such a table for the first time."""
    n = summary.completed
    text = "how to read this: p90 = nine of ten requests stayed below it; "
    if n < fmt.ENOUGH[99]:
        text += f"~ = rough, {n:,} requests are few for that percentile; "
    return text + "1 J = 1 W for 1 s; 3,600 J = 1 Wh."
