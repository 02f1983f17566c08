"""What readings and records of a GPU say, in words; pure, for `gpu_validation`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.free_checks import (
    ClassCost,
    Spread,
    counter_edges,
    counter_period_seconds,
    counter_power_ratio,
    counter_watts,
    lag_seconds,
)

FloatArray = NDArray[np.float64]

Finding = dict[str, Any]

GRID_SECONDS = 0.02
BEGIN, END = "<!-- hardware: begin -->", "<!-- hardware: end -->"


@dataclass(frozen=True)
class Samples:
    """Readings of a group of GPUs, summed, at instants in Unix seconds, shape (n,)."""

    at_seconds: FloatArray
    joules: FloatArray | None
    """The counter; None where the board has none."""
    watts: FloatArray | None
    """As instantaneous as the driver gives it."""
    average_watts: FloatArray | None
    """The driver's 1 s average; None where there is no other figure."""


@dataclass(frozen=True)
class Sensor:
    """What the readings over alternating load and silence say; None: not known."""

    idle_watts: float | None
    loaded_watts: float | None
    period_seconds: float | None
    counter_by_instant: float | None
    counter_by_average: float | None
    lags_seconds: Mapping[str, float]
    """How late each figure follows the load."""


@dataclass(frozen=True)
class Division:
    """What the checks without a truth say of one policy."""

    policy: str
    alike: Sequence[Spread]
    classes: Sequence[ClassCost]
    split: Mapping[str, float]


def busy_on(
    grid_seconds: FloatArray, spans: Sequence[tuple[float, float]]
) -> FloatArray:
    """1 where any span covers the instant, else 0, shape of the grid."""
    busy = np.zeros(len(grid_seconds))
    for began, ended in spans:
        busy[(grid_seconds >= began) & (grid_seconds < ended)] = 1.0
    return busy


def sensor_of(samples: Samples, spans: Sequence[tuple[float, float]]) -> Sensor:
    """Judge the sensor by when requests ran, (scheduled, last token) each."""
    at = samples.at_seconds
    grid = np.arange(at[0] + 0.5, at[-1] - 0.5, GRID_SECONDS)
    busy = busy_on(grid, spans)
    figures: dict[str, FloatArray] = {}
    period = ratio = average_ratio = None
    if samples.joules is not None:
        period = counter_period_seconds(at, samples.joules)
        figures["counter"] = counter_watts(at, samples.joules, grid)
        if samples.watts is not None:
            ratio = counter_power_ratio(at, samples.joules, samples.watts)
        if samples.average_watts is not None:
            average_ratio = counter_power_ratio(
                at, samples.joules, samples.average_watts
            )
    if samples.watts is not None:
        figures["instant power"] = np.interp(grid, at, samples.watts)
    if samples.average_watts is not None:
        figures["average power"] = np.interp(grid, at, samples.average_watts)
    best = figures.get("counter", figures.get("instant power"))
    return Sensor(
        idle_watts=_mean_where(best, busy, 0.0),
        loaded_watts=_mean_where(best, busy, 1.0),
        period_seconds=period,
        counter_by_instant=ratio,
        counter_by_average=average_ratio,
        lags_seconds={
            name: lag_seconds(watts, busy, GRID_SECONDS)
            for name, watts in figures.items()
        },
    )


def division_lines(found: Sequence[Division]) -> list[str]:
    """A table of the checks, one line per policy."""
    lines = [
        "| policy | like requests, off E/n: median, p90 | regression: charged / "
        "regressed (standard error) | split runs: apart / together |",
        "|---|---|---|---|",
    ]
    for each in found:
        alike = "; ".join(f"{one.median:.1%}, {one.p90:.1%}" for one in each.alike)
        classes = ", ".join(
            f"{one.kind} {one.bias:.2f} ({one.error_joules / one.regressed_joules:.0%})"
            for one in each.classes
        )
        split = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in each.split.items())
        lines.append(f"| {each.policy} | {alike} | {classes} | {split} |")
    return lines


def joules_between(samples: Samples, begin: float, end: float) -> float | None:
    """What the counter rose by, lines between its changes; None outside of them."""
    if samples.joules is None:
        return None
    edges, values = counter_edges(samples.at_seconds, samples.joules)
    if len(edges) < 2 or begin < edges[0] or end > edges[-1]:
        return None
    first, last = np.interp([begin, end], edges, values)
    return float(last - first)


def phase_finding(
    name: str,
    span: tuple[float, float],
    samples: Samples,
    books: tuple[Finding, Finding],
    records: Sequence[Finding],
    summary: Finding,
) -> Finding:
    """One load between two silences: the counter and the books of the same time."""
    begin, end = span
    opening, closing = books

    def rose(key: str) -> float | None:
        before, after = opening[key], closing[key]
        return None if before is None or after is None else after - before

    counted, booked = joules_between(samples, begin, end), rose("measured_joules")
    idle = closing["idle_watts"]
    measured = counted if counted is not None else booked
    active = None
    if measured is not None and idle is not None:
        active = measured - idle * (end - begin)
    parts = [each["attributed_joules"] or {} for each in books]
    energies = [record["energy"] for record in records]
    whole = [energy["energy_joules"] for energy in energies]
    outputs = sum(record["output_tokens"] or 0 for record in records)
    prompts = sum(_computed(record) for record in records)
    return {
        "name": name,
        "seconds": end - begin,
        "requests": len(records),
        "prompt_tokens": prompts,
        "output_tokens": outputs,
        "in_flight": in_flight(records),
        "counter_joules": counted,
        "books_joules": booked,
        "counter_over_books": _over(counted, booked),
        "books_are_final": bool(opening["complete"] and closing["complete"]),
        "residual_joules": rose("residual_joules"),
        "idle_watts": idle,
        "active_joules": active,
        "mean_watts": _over(measured, end - begin),
        "prefill_joules": _rose(parts, "prefill"),
        "decode_joules": _rose(parts, "decode"),
        "active_joules_per_output_token": _over(active, outputs),
        "request_joules": spread_of(whole),
        "policies": {
            policy: spread_of([each["policy_joules"][policy] for each in energies])
            for policy in (energies[0]["policy_joules"] if energies else ())
        },
        "ttft_seconds": _over(summary["median_ttft_ms"], 1e3),
        "tpot_seconds": _over(summary["median_tpot_ms"], 1e3),
        "verdict": summary["verdict"],
    }


def spread_of(values: Sequence[float]) -> Finding | None:
    """Mean, and how far the extremes are from it."""
    if not values:
        return None
    return {
        "mean": float(np.mean(values)),
        "min": float(np.min(values)),
        "max": float(np.max(values)),
    }


def in_flight(records: Sequence[Finding]) -> float | None:
    """Mean number of requests that ran while any did."""
    spans = [
        (record["scheduled_unix_seconds"], record["last_token_unix_seconds"])
        for record in records
        if record["scheduled_unix_seconds"] and record["last_token_unix_seconds"]
    ]
    busy, until = 0.0, -np.inf
    for begin, end in sorted(spans):
        busy += max(end - max(begin, until), 0.0)
        until = max(until, end)
    return sum(end - begin for begin, end in spans) / busy if busy > 0 else None


def at_the_edges(
    samples: Samples, books: Callable[[float], Finding], records: Sequence[Finding]
) -> Finding:
    """Counter and books of one load, cut where it begins and ends.

    Between two settled instants the books are interpolated by time, which is half a
    second or more: a window in which power jumps gives some of what came after the
    jump to what was before it. Between silences the two have to agree; here they need
    not.
    """
    begin = min(float(record["arrived_unix_seconds"]) for record in records)
    end = max(float(record["last_token_unix_seconds"]) for record in records)
    opening, closing = books(begin), books(end)
    counted = joules_between(samples, begin, end)
    booked = closing["measured_joules"] - opening["measured_joules"]
    return {
        "seconds": end - begin,
        "counter_joules": counted,
        "books_joules": booked,
        "counter_over_books": _over(counted, booked),
        "window_seconds": closing["window_seconds"],
    }


def against_isolated(phases: Sequence[Finding], mixed: Finding) -> Finding:
    """The meter's split of a mixed load against what each phase cost by itself.

    A prompt token's joules are those of prefill alone. A batch's decoding is what is
    left of it without its prompts, per output token, and read off at the mean number
    of requests in flight. What both cost together is near what they cost apart, less
    the fixed part of the steps that they share; how it is split is the policy's doing.
    """
    alone = {phase["name"]: phase for phase in phases}
    prefill = alone["prefill alone"]
    per_prompt = prefill["active_joules"] / prefill["prompt_tokens"]
    sizes, costs = [], []
    for phase in phases:
        if phase["name"].startswith(("single", "batch")):
            left = phase["active_joules"] - per_prompt * phase["prompt_tokens"]
            sizes.append(float(phase["requests"]))
            costs.append(left / phase["output_tokens"])
    at_once = mixed["in_flight"] or 1.0
    per_output = float(np.interp(np.log(at_once), np.log(sizes), costs))
    prompts = per_prompt * mixed["prompt_tokens"]
    outputs = per_output * mixed["output_tokens"]
    return {
        "prefill_joules_per_prompt_token": per_prompt,
        "decode_joules_per_output_token": dict(
            zip(map(str, sizes), costs, strict=True)
        ),
        "in_flight": at_once,
        "expected_prefill_joules": prompts,
        "expected_decode_joules": outputs,
        "prefill_over_expected": _over(mixed["prefill_joules"], prompts),
        "decode_over_expected": _over(mixed["decode_joules"], outputs),
        "both_over_expected": _over(mixed["active_joules"], prompts + outputs),
    }


def coverage(
    alike: Mapping[str, Sequence[Finding]],
    mixed: Sequence[Finding],
    truths: Mapping[str, float],
) -> Finding:
    """How often the 90 % interval of a record holds what the request cost.

    Requests that are alike and begin together cost E/n each, by symmetry. `truths`
    are the simulator's, by request id. A meter without intervals gives no figure.
    """
    by_symmetry: list[bool] = []
    by_truth: list[bool] = []
    widths: list[float] = []
    for records in (*alike.values(), mixed):
        for record in records:
            energy = record["energy"]
            low, high = energy.get("low_joules"), energy.get("high_joules")
            if low is None or high is None:
                continue
            widths.append((high - low) / 2 / energy["energy_joules"])
            true = truths.get(record["request_id"])
            if true is not None:
                by_truth.append(low <= true <= high)
            if records is not mixed and len(records) > 1:
                share = np.mean([each["energy"]["energy_joules"] for each in records])
                by_symmetry.append(bool(low <= share <= high))
    return {
        "intervals": len(widths),
        "mean_half_width": float(np.mean(widths)) if widths else None,
        "covered_by_symmetry": float(np.mean(by_symmetry)) if by_symmetry else None,
        "covered_by_truth": float(np.mean(by_truth)) if by_truth else None,
    }


# -- the page ------------------------------------------------------------------


def page_of(known: Finding) -> str:
    """Everything that was found, for docs/validation.md; what was not, with why."""
    run = known.get("run", {})
    lines = [_title(known), ""]
    if run.get("simulated"):
        lines += [
            "**Pending: no GPU was available.** What follows is SIMULATED: the program "
            "ran whole on the simulated stack, and its figures are of no GPU.",
            "",
        ]
    for part in (_sensor_part, _phase_part, _split_part, _division_part):
        lines += part(known)
    for step, why in known.get("left_out", {}).items():
        lines.append(f"- Left out: {step}: {why}")
    return "\n".join(lines).rstrip() + "\n"


def _title(known: Finding) -> str:
    run, board, engine = (known.get(key, {}) for key in ("run", "board", "engine"))
    parts = [run.get("date", "")]
    names = board.get("names") or board.get("devices") or ["SIMULATED H100"]
    parts.append(f"{' and '.join(sorted(set(names)))} by `{run.get('power')}`")
    if "driver" in board:
        parts.append(f"driver {board['driver']}")
    if "limit_watts" in board:
        limits = ", ".join(f"{watts:g}" for watts in board["limit_watts"])
        parts.append(f"limit {limits} W")
    what = run.get("backend", "")
    if "shape" in engine:
        what += f" on random weights of a Llama {engine['shape']}"
    parts.append(what)
    parts.append(f"{run.get('machine')}, Python {run.get('python')}")
    quick = " A short try: no figures." if run.get("quick") else ""
    return f"{', '.join(parts)}; {run.get('seconds', 0):.0f} s in all.{quick}"


def _sensor_part(known: Finding) -> list[str]:
    rows: list[tuple[str, str]] = []
    bare, idle = known.get("bare"), known.get("idle", {})
    alone = bare or known.get("loaded_counter", {})
    if alone:
        rows.append(
            ("counter changes every (p95)",
             f"{_shown(_milli(alone.get('period_seconds')), 'ms')} "
             f"({_shown(_milli(alone.get('period_p95_seconds')), 'ms')})")
        )  # fmt: skip
        step = _shown(alone.get("least_step_joules"), "J", ".3f")
        rows.append(("smallest step", step))
    if bare:
        rows.append(("idle, no engine", _shown(bare.get("watts"), "W", ".1f")))
    if idle:
        rows.append(
            ("idle, engine loaded: read", _shown(idle["read_watts"], "W", ".1f"))
        )
        learnt = _shown(idle["learnt_watts"], "W", ".1f")
        rows.append((f"the same, learnt by the proxy ({idle['source']})", learnt))
        if idle.get("model_watts") is not None:
            model = _shown(idle["model_watts"], "W", ".1f")
            rows.append(("of which because the model is resident", model))
    sensor = known.get("sensor")
    if sensor:
        watts = sensor["idle_just_after_watts"]
        rows += [
            ("idle, within a second after load", _shown(watts, "W", ".1f")),
            ("idle between bursts", _shown(sensor["idle_watts"], "W", ".1f")),
            ("learnt after bursts", _shown(sensor["learnt_idle_watts"], "W", ".1f")),
            ("while requests ran", _shown(sensor["loaded_watts"], "W")),
            ("counter / integrated instant power",
             _shown(sensor["counter_by_instant"], "", ".3f")),
            ("counter / integrated average power",
             _shown(sensor["counter_by_average"], "", ".3f")),
        ]  # fmt: skip
        rows += [
            (f"{name} follows the load after", f"{lag * 1e3:.0f} ms")
            for name, lag in sensor["lags_seconds"].items()
        ]
    if not rows:
        return []
    table = [f"| {name} | {value} |" for name, value in rows]
    return ["| sensor | |", "|---|---:|", *table, ""]


def _phase_part(known: Finding) -> list[str]:
    phases = [value for name, value in known.items() if name.startswith("phase ")]
    phases += [known["mixed"]] if "mixed" in known else []
    if not phases:
        return []
    lines = [
        "| load | requests | TTFT, TPOT | mean power | active J per output token | "
        "counter / books | like requests, extremes by `phase` | clock, temperature |",
        "|---|---:|---|---:|---:|---:|---|---|",
    ]
    for each in phases:
        latency = f"{_shown(_milli(each['ttft_seconds']), 'ms')}, "
        latency += _shown(_milli(each["tpot_seconds"]), "ms", ".1f")
        cells = [
            each["name"], f"{each['requests']}", latency,
            _shown(each["mean_watts"], "W"),
            _shown(each["active_joules_per_output_token"], "", ".3f"),
            _shown(each["counter_over_books"], "", ".4f"),
            _extremes(each), _clocks(each),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    residual = max(abs(each["residual_joules"] or 0.0) for each in phases)
    lines += ["", f"Largest residual of the books: {residual:.1g} J."]
    if "edges" in known:
        edges = known["edges"]
        lines.append(
            "Cut where the load begins and ends instead of in the silence around it, "
            f"counter / books is {_shown(edges['counter_over_books'], '', '.4f')}: "
            "within a window the books are interpolated by time "
            f"({edges['window_seconds']:.2f} s), and power jumps in the first and last."
        )
    return [*lines, ""]


def _split_part(known: Finding) -> list[str]:
    lines = []
    if "split" in known:
        split = known["split"]
        per_prompt = _shown(split["prefill_joules_per_prompt_token"], "J", ".4f")
        lines.append(
            "The meter's split of the mixed load over what its phases cost alone "
            f"({per_prompt} per prompt token, decoding as in a batch of "
            f"{split['in_flight']:.1f}): prefill "
            f"{_shown(split['prefill_over_expected'], '', '.2f')}, decode "
            f"{_shown(split['decode_over_expected'], '', '.2f')}, both together "
            f"{_shown(split['both_over_expected'], '', '.2f')}."
        )
    covered = known.get("coverage")
    if covered and covered["intervals"]:
        inside = [
            f"{covered[key]:.0%} by {what}"
            for key, what in (
                ("covered_by_symmetry", "symmetry of like requests"),
                ("covered_by_truth", "the simulator's truth"),
            )
            if covered[key] is not None
        ]
        lines.append(
            f"Intervals of 90 % hold what {covered['intervals']} requests cost: "
            f"{', '.join(inside)}; mean half-width {covered['mean_half_width']:.1%}."
        )
    for each in known.get("calibration", []):
        constants = ", ".join(
            f"{one['joules']:.3g} {one['unit']}" for one in each["constants"].values()
        )
        trusted = each["reason"] or "trusted"
        lines.append(f"Constants ({trusted}): {constants or 'none yet'}.")
    return [*lines, ""] if lines else []


def _division_part(known: Finding) -> list[str]:
    return [*known["division"], ""] if "division" in known else []


def _extremes(phase: Finding) -> str:
    found = phase["policies"].get("phase")
    if found is None or phase["requests"] < 2 or phase["name"] == "mixed":
        return ""
    low, high = (found[key] / found["mean"] - 1 for key in ("min", "max"))
    return f"{low:+.1%}, {high:+.1%}"


def _clocks(phase: Finding) -> str:
    texts = []
    for board in phase["boards"]:
        clock, heat = board["sm_clock_hertz"], board["temperature_celsius"]
        if clock:
            texts.append(f"{clock['median'] / 1e6:.0f} MHz")
        if heat:
            texts.append(f"{heat['max']:.0f} °C")
        if board["throttled_seconds"]:
            texts.append(f"throttled {board['throttled_seconds']:.0f} s")
        if board["other_processes"]:
            texts.append("not alone on the board")
    return ", ".join(texts)


def _computed(record: Finding) -> int:
    return int((record["prompt_tokens"] or 0) - (record["cached_tokens"] or 0))


def _rose(parts: Sequence[Finding], key: str) -> float | None:
    before, after = (part.get(key) for part in parts)
    return None if before is None or after is None else float(after - before)


def _over(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def with_section(document: str, section: str) -> str:
    """The document with a new hardware section. Raises ValueError where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{section.strip()}\n{END}{after}"


def _mean_where(
    watts: FloatArray | None, busy: FloatArray, value: float
) -> float | None:
    """Mean power while the load is so, a second after any change of it."""
    if watts is None:
        return None
    margin = round(1.0 / GRID_SECONDS)
    changed = np.flatnonzero(np.diff(busy)) + 1
    settled = busy == value
    for at in changed.tolist():
        settled[max(at - 5, 0) : at + margin] = False
    return float(watts[settled].mean()) if settled.any() else None


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _shown(value: float | None, unit: str, spec: str = ".0f") -> str:
    return "unknown" if value is None else f"{value:{spec}} {unit}".strip()
