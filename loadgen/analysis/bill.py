"""The bill of a run: energy by what it was for, then CO2, price and carbon intensity.

One stack per answered request: work, share of idle power, idle time, host, overhead of
the building (PUE). Carbon by the Software Carbon Intensity specification (ISO/IEC
21031:2024): SCI = (O + M) per R, O = E x I (energy times the grid's intensity), M = TE
x TS x RS (embodied emissions, the part of the hardware's life, the part of it that was
reserved). What is not known is left out by name, never taken as 0 in silence, and
every constant comes with its source.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

import msgspec

from loadgen.analysis.datasheets import gpu_sheet
from loadgen.analysis.schema import EnergyBlock, Summary
from loadgen.analysis.tally import RunWindow
from loadgen.errors import RunError, UsageError
from loadgen.results import measures
from loadgen.results.results import Result

JOULES_PER_KWH = 3.6e6
SECONDS_PER_YEAR = 365.25 * 86_400
DEFAULT_PUE = 1.56
PUE_SOURCE = "Uptime Institute Global Data Center Survey 2024, industry average"
DEFAULT_GRAMS_PER_KWH = 436.0
CARBON_SOURCE = (
    "Ember Global Electricity Review 2023, world average of 2022; your grid's is "
    "--carbon G or --carbon-series FILE"
)
DEFAULT_LIFESPAN_YEARS = 4.0
LIFESPAN_SOURCE = "assumed"
EMBODIED_KILOGRAMS = {
    "NVIDIA A100-SXM4-80GB": (
        318.0,
        "Chien et al. 2023 (HotCarbon, 10.1145/3604930.3605705): an eighth of a server "
        "with 8 A100, its CPUs, memory and disks included",
    ),
}
"""Per GPU with its part of the server, by the name of the data sheet."""


class BillTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bill is made with: options of the command, keys of its file."""

    pue: float | None = None
    carbon: float | None = None
    """g CO2e per kWh."""
    carbon_series: str | None = None
    price: float | None = None
    """Per kWh."""
    currency: str | None = None
    host_watts: float | None = None
    embodied: float | None = None
    """kg CO2e per GPU, with its part of the server."""
    lifespan_years: float | None = None
    reserved: float | None = None
    """Part of the hardware that was the engine's: RS of the specification."""
    gpu: str | None = None
    gpus: int | None = None


BOUNDS = {
    "pue": (1.0, 10.0, "1.2"), "carbon": (0.0, 5000.0, "380"),
    "price": (0.0, 1e6, "0.30"), "host_watts": (0.0, 1e7, "250"),
    "embodied": (0.0, 1e6, "150"), "lifespan_years": (0.01, 100.0, "4"),
    "reserved": (0.0, 1.0, "1"), "gpus": (1, 100_000, "8"),
}  # fmt: skip


class Constant(msgspec.Struct, frozen=True, kw_only=True):
    """One constant of a bill, and where it is from."""

    name: str
    value: float
    unit: str
    source: str


class BillPart(msgspec.Struct, frozen=True, kw_only=True):
    """One part of the stack."""

    part: str
    """`work`, `idle_share`, `idle`, `unattributed`, `host` or `overhead`."""
    joules: float | None
    joules_per_request: float | None
    fraction: float | None
    """Of the whole."""
    basis: str
    """Measured inside what, or by which rule; why it is not known."""


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """One run's bill, over its window."""

    run: str
    simulated: bool
    boundary: str | None
    seconds: float
    requests: int
    """Answered."""
    output_tokens: int
    parts: tuple[BillPart, ...]
    joules: float
    """Sum of the parts that are known."""
    joules_per_request: float | None
    joules_per_output_token: float | None
    sessions: int
    goals: int
    """Sessions in which every turn was answered in the end."""
    failed_requests: int
    retried_requests: int
    """Attempts beyond the first at the same turn."""
    joules_per_session: float | None
    joules_per_goal: float | None
    """All joules, of failures and retries too, over the goals that were reached."""
    grams_per_kwh: float
    operational_grams: float
    """O of the specification."""
    embodied_grams: float | None
    """M; None where the embodied emissions are not known."""
    sci_grams_per_request: float | None
    sci_grams_per_output_token: float | None
    price: float | None
    price_per_request: float | None
    price_per_million_output_tokens: float | None
    currency: str
    constants: tuple[Constant, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CarbonSeries:
    """Carbon intensity over time: each value holds until the next one."""

    name: str
    at_unix_seconds: tuple[float, ...]
    grams_per_kwh: tuple[float, ...]

    def mean(self, begin: float, end: float) -> float:
        """The mean from one instant to another. Raises UsageError outside of it."""
        if begin < self.at_unix_seconds[0]:
            first = datetime.fromtimestamp(self.at_unix_seconds[0], UTC)
            asked = datetime.fromtimestamp(begin, UTC)
            raise UsageError(
                f"{self.name} begins at {first:%Y-%m-%dT%H:%M}Z, the run at "
                f"{asked:%Y-%m-%dT%H:%M}Z: give a series that covers it"
            )
        edges = [begin, *(at for at in self.at_unix_seconds if begin < at < end), end]
        if end <= begin:
            return self._value(begin)
        parts = (self._value(low) * (high - low) for low, high in pairwise(edges))
        return sum(parts) / (end - begin)

    def _value(self, at: float) -> float:
        return self.grams_per_kwh[bisect_right(self.at_unix_seconds, at) - 1]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the sessions of a run's window."""

    sessions: int
    goals: int
    failed: int
    retried: int


def carbon_series(name: str, lines: Iterable[str]) -> CarbonSeries:
    """A series of csv lines: an instant (ISO 8601 or unix seconds), g CO2e per kWh.

    Raises UsageError that names the line.
    """
    at: list[float] = []
    grams: list[float] = []
    for number, row in enumerate(csv.reader(lines), 1):
        if not row or (number == 1 and _instant(row[0]) is None):
            continue
        instant = _instant(row[0])
        value = _finite(row[1]) if len(row) > 1 else None
        if instant is None or value is None or value < 0:
            raise UsageError(
                f"{name}, line {number}: {','.join(row)[:60]!r}, expected an instant "
                "and g CO2e per kWh, such as 2026-01-01T00:00Z,380"
            )
        if at and instant <= at[-1]:
            raise UsageError(f"{name}, line {number}: not after the line before")
        at.append(instant)
        grams.append(value)
    if not at:
        raise UsageError(f"{name}: no line with an instant and g CO2e per kWh")
    return CarbonSeries(name, tuple(at), tuple(grams))


def outcomes_of(results: Iterable[Result], window: RunWindow) -> Outcomes:
    """Sessions and goals among the records of the window."""
    answered: dict[str, dict[int, bool]] = {}
    failed = retried = 0
    for result in results:
        if not window.holds(result):
            continue
        turns = answered.setdefault(result.session_id, {})
        is_ok = measures.is_ok(result)
        failed += not is_ok
        retried += result.turn in turns
        turns[result.turn] = turns.get(result.turn, False) or is_ok
    goals = sum(all(turns.values()) for turns in answered.values())
    return Outcomes(len(answered), goals, failed, retried)


def bill_of(
    run: str,
    summary: Summary,
    outcomes: Outcomes,
    terms: BillTerms,
    series: CarbonSeries | None = None,
) -> Bill:
    """The bill. Raises RunError for a run without joules, UsageError for terms."""
    check_terms(terms)
    energy = summary.energy
    known = energy.by_account()
    if energy.measured_joules is None or known is None:
        raise RunError(
            f"{run} has no energy ({energy.reason or 'not measured'}): there is "
            "nothing to bill"
        )
    seconds = energy.window_seconds or summary.duration
    parts, notes = _parts(energy, known, terms, seconds)
    constants: list[Constant] = []
    pue = _constant(constants, "PUE", terms.pue, DEFAULT_PUE, "", PUE_SOURCE)
    inside = sum(part.joules or 0.0 for part in parts)
    parts.append(
        BillPart(
            part="overhead", joules=(pue - 1) * inside, joules_per_request=None,
            fraction=None, basis=f"cooling and power supply, PUE {pue:g}",
        )
    )  # fmt: skip
    total = pue * inside
    requests, tokens = summary.completed, summary.total_output_tokens
    stack = tuple(
        msgspec.structs.replace(
            part,
            joules_per_request=_per(part.joules, requests),
            fraction=_per(part.joules, total),
        )
        for part in parts
    )
    grams_per_kwh = _intensity(constants, summary, terms, series)
    operational = total / JOULES_PER_KWH * grams_per_kwh
    embodied = _embodied(constants, notes, summary, terms, seconds)
    carbon = None if embodied is None else operational + embodied
    price = None
    if terms.price is not None:
        constants.append(
            Constant(
                name="price", value=terms.price, unit=f"{_currency(terms)} per kWh",
                source="as given",
            )
        )  # fmt: skip
        price = total / JOULES_PER_KWH * terms.price
    else:
        notes.append("price: not known, give --price per kWh")
    return Bill(
        run=run,
        simulated=summary.simulated,
        boundary=energy.boundary,
        seconds=seconds,
        requests=requests,
        output_tokens=tokens,
        parts=stack,
        joules=total,
        joules_per_request=_per(total, requests),
        joules_per_output_token=_per(total, tokens),
        sessions=outcomes.sessions,
        goals=outcomes.goals,
        failed_requests=outcomes.failed,
        retried_requests=outcomes.retried,
        joules_per_session=_per(total, outcomes.sessions),
        joules_per_goal=_per(total, outcomes.goals),
        grams_per_kwh=grams_per_kwh,
        operational_grams=operational,
        embodied_grams=embodied,
        sci_grams_per_request=_per(carbon, requests),
        sci_grams_per_output_token=_per(carbon, tokens),
        price=price,
        price_per_request=_per(price, requests),
        price_per_million_output_tokens=_per(price, tokens / 1e6),
        currency=_currency(terms),
        constants=tuple(constants),
        notes=tuple(notes),
    )


def check_terms(terms: BillTerms) -> None:
    """Raises UsageError for a figure that cannot be."""
    for name, (low, high, like) in BOUNDS.items():
        value = getattr(terms, name)
        if value is not None and not low <= value <= high:
            option = name.replace("_", "-")
            raise UsageError(
                f"--{option} {value:g}: expected {low:g} to {high:g}, such as {like}"
            )
    if terms.carbon is not None and terms.carbon_series is not None:
        raise UsageError("--carbon and --carbon-series both given, expected one")
    if terms.gpu is not None and gpu_sheet(terms.gpu) is None:
        raise UsageError(
            f"--gpu {terms.gpu}: unknown; loadgen naive --help has the names"
        )


# -- parts ---------------------------------------------------------------------


def _parts(
    energy: EnergyBlock, known: dict[str, float], terms: BillTerms, seconds: float
) -> tuple[list[BillPart], list[str]]:
    """What was drawn inside the headline boundary, and the host beside it."""
    inside = f"measured inside {energy.boundary or 'the device'}"
    joules = {
        "work": known["prefill"] + known["decode"],
        "idle_share": known["idle_share"],
        "idle": known["idle"],
        "unattributed": sum((energy.unattributed_joules or {}).values()),
    }
    meanings = {
        "work": "prefill and decode",
        "idle_share": "idle power while requests ran",
        "idle": "nobody was served",
        "unattributed": "measured, and no request's",
    }
    parts = [
        BillPart(
            part=name, joules=joules[name], joules_per_request=None, fraction=None,
            basis=f"{meanings[name]}, {inside}",
        )
        for name in joules
        if joules[name] or name != "unattributed"
    ]  # fmt: skip
    host, basis = _host(energy, terms, seconds)
    parts.append(
        BillPart(
            part="host", joules=host, joules_per_request=None, fraction=None,
            basis=basis,
        )
    )  # fmt: skip
    notes = [] if host is not None else [f"host: left out, {basis}"]
    return parts, notes


def _host(
    energy: EnergyBlock, terms: BillTerms, seconds: float
) -> tuple[float | None, str]:
    """Joules of the machine around the GPUs, by the best that is known."""
    if energy.boundary == "node":
        return 0.0, "inside the node's own joules"
    node = energy.boundaries.get("node")
    if node is not None and node.measured_joules is not None and node.reason is None:
        rest = node.measured_joules - (energy.measured_joules or 0.0)
        if rest >= 0:
            return rest, "the node less its GPUs, both measured"
    host = energy.boundaries.get("host")
    if host is not None and host.measured_joules is not None and host.reason is None:
        return host.measured_joules, "CPU and memory, measured inside host"
    if terms.host_watts is not None:
        return terms.host_watts * seconds, f"{terms.host_watts:g} W as given"
    return None, "not measured: meter it (--power nvml,rapl) or give --host-watts W"


def _intensity(
    constants: list[Constant],
    summary: Summary,
    terms: BillTerms,
    series: CarbonSeries | None,
) -> float:
    """g CO2e per kWh of the run's energy."""
    name, unit = "carbon intensity", "g CO2e per kWh"
    if series is None:
        return _constant(
            constants, name, terms.carbon, DEFAULT_GRAMS_PER_KWH, unit, CARBON_SOURCE
        )
    begin = summary.window.started_unix_seconds
    if begin is None:
        raise UsageError(
            f"{series.name}: it is not known when the run began; give --carbon G"
        )
    found = _weighted(summary, series, begin)
    constants.append(
        Constant(name=name, value=found, unit=unit, source=f"{series.name}, over the "
                 "run by its power")
    )  # fmt: skip
    return found


def _weighted(summary: Summary, series: CarbonSeries, begin: float) -> float:
    """The series' mean over the run, weighted with its power where that is known."""
    window, power = summary.window, summary.energy.power
    zero = begin - window.start_seconds
    if power is None:
        return series.mean(begin, begin + summary.duration)
    grams = joules = 0.0
    accounts = (
        power.prefill_watts, power.decode_watts, power.idle_share_watts,
        power.idle_watts, power.unattributed_watts,
    )  # fmt: skip
    for at, (low, high) in enumerate(pairwise(power.edges_seconds)):
        low, high = max(low, window.start_seconds), min(high, window.end_seconds)
        if high <= low:
            continue
        spent = sum(each[at] for each in accounts) * (high - low)
        joules += spent
        grams += spent * series.mean(zero + low, zero + high)
    return grams / joules if joules > 0 else series.mean(begin, begin + 1)


def _embodied(
    constants: list[Constant],
    notes: list[str],
    summary: Summary,
    terms: BillTerms,
    seconds: float,
) -> float | None:
    """M = TE x TS x RS in grams; None where TE or the number of GPUs is not known."""
    name = terms.gpu or summary.metadata.get("gpu") or summary.environment.get("gpu")
    sheet = gpu_sheet(str(name)) if name is not None else None
    kilograms, source = terms.embodied, "as given"
    if kilograms is None and sheet is not None:
        kilograms, source = EMBODIED_KILOGRAMS.get(sheet.name, (None, ""))
    boards = terms.gpus
    if boards is None and summary.naive is not None:
        boards = summary.naive.gpus
    if kilograms is None or boards is None:
        lacking = "--embodied KG per GPU" if kilograms is None else "--gpus N"
        notes.append(
            f"embodied emissions (M): not known, give {lacking}; without them there "
            "is O and no SCI"
        )
        return None
    constants.append(
        Constant(name="embodied emissions (TE)", value=kilograms,
                 unit="kg CO2e per GPU", source=source)
    )  # fmt: skip
    years = _constant(
        constants, "lifespan (EL)", terms.lifespan_years, DEFAULT_LIFESPAN_YEARS,
        "years", LIFESPAN_SOURCE,
    )  # fmt: skip
    reserved = _constant(
        constants, "reserved part (RS)", terms.reserved, 1.0, "",
        "the run had its GPUs for itself",
    )  # fmt: skip
    share = seconds / (years * SECONDS_PER_YEAR)
    return kilograms * 1000 * boards * share * reserved


def _constant(
    constants: list[Constant], name: str, given: float | None, usual: float, unit: str,
    source: str,
) -> float:  # fmt: skip
    value = usual if given is None else given
    told = source if given is None else "as given"
    constants.append(Constant(name=name, value=value, unit=unit, source=told))
    return value


def _currency(terms: BillTerms) -> str:
    return terms.currency or "EUR"


def _per(amount: float | None, whole: float) -> float | None:
    return amount / whole if amount is not None and whole > 0 else None


def _instant(text: str) -> float | None:
    """Unix seconds of an instant; None for anything else."""
    number = _finite(text)
    if number is not None:
        return number
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def merged(file: BillTerms, given: BillTerms) -> BillTerms:
    """The terms of a file, and over them those of the command line."""
    options = {
        name: value
        for name, value in msgspec.structs.asdict(given).items()
        if value is not None
    }
    if "carbon" in options:
        file = msgspec.structs.replace(file, carbon_series=None)
    if "carbon_series" in options:
        file = msgspec.structs.replace(file, carbon=None)
    return msgspec.structs.replace(file, **options)


def boundaries_note(bills: Sequence[Bill]) -> str:
    """That bills of different boundaries are not to be compared; else empty."""
    inside = sorted({str(bill.boundary) for bill in bills})
    if len(inside) < 2:
        return ""
    return (
        f"the runs were measured inside {' and '.join(inside)}: their bills stand for "
        "themselves, do not compare or add them"
    )
