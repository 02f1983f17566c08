"""The admin API: every JSON object that it answers, for who writes it and who reads it.

Rule: base units, every instant in Unix seconds, and null for what is not known,
which is never 0. A reader passes over fields that it does not know, so that it may
be older than the proxy; what it cannot do without has no default here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

# -- joules --------------------------------------------------------------------


class Phases(Struct, frozen=True, kw_only=True):
    """Joules of requests beyond keeping the engine loaded."""

    prefill: float
    decode: float


class Accounts(Struct, frozen=True, kw_only=True):
    """Joules by account: `measured` is the sum of all the others."""

    source: str | None = None
    """The power source."""
    simulated: bool = False
    measured_joules: float | None = None
    attributed_joules: Phases | None = None
    idle_share_joules: float | None = None
    """Idle power while requests ran, shared among them."""
    attributed_low_joules: float | None = None
    """Prefill, decode and idle share together are no less, and no more than the next,
    with 90 %."""
    attributed_high_joules: float | None = None
    idle_joules: float | None = None
    """Nothing ran."""
    unattributed_joules: dict[str, float] | None = None
    """Joules of no request, by reason."""
    residual_joules: float | None = None
    """Measured less all accounts; anything but 0 is a defect."""

    def by_account(self) -> dict[str, float] | None:
        """Joules of `prefill`, `decode`, `idle_share`, `idle` and `unattributed`."""
        phases, unattributed = self.attributed_joules, self.unattributed_joules
        share, idle = self.idle_share_joules, self.idle_joules
        if phases is None or share is None or idle is None or unattributed is None:
            return None
        return {
            "prefill": phases.prefill,
            "decode": phases.decode,
            "idle_share": share,
            "idle": idle,
            "unattributed": sum(unattributed.values()),
        }


ATTRIBUTED = ("prefill", "decode", "idle_share")
"""Accounts of requests; the others are of nobody."""
JOULES = tuple(n for n in Accounts.__struct_fields__ if n.endswith("_joules"))
"""The figures of `Accounts`, which add up over engines and differ over time."""


def joules_of(accounts: Accounts) -> dict[str, Any]:
    """The figures alone, to make other accounts from."""
    return {name: getattr(accounts, name) for name in JOULES}


def summed(each: Sequence[Accounts]) -> dict[str, Any]:
    """The joules of all; null where those of one are unknown."""
    return _combined(each, [1] * len(each))


def difference(later: Accounts, sooner: Accounts) -> Accounts:
    """Joules booked from one moment to another; null where one is unknown."""
    return Accounts(**_combined([later, sooner], [1, -1]))


def _combined(each: Sequence[Accounts], signs: Sequence[int]) -> dict[str, Any]:
    return {
        name: _joules([getattr(accounts, name) for accounts in each], signs)
        for name in JOULES
    }


def _joules(values: Sequence[Any], signs: Sequence[int]) -> Any:
    """One figure of several accounts: a number, joules by phase or by reason."""
    if None in values:
        return None
    if isinstance(values[0], Phases):
        parts = _joules([msgspec.structs.asdict(value) for value in values], signs)
        return Phases(**parts)
    if isinstance(values[0], Mapping):
        names = dict.fromkeys(name for value in values for name in value)
        return {
            name: _joules([value.get(name, 0.0) for value in values], signs)
            for name in names
        }
    return sum(sign * value for sign, value in zip(signs, values, strict=True))


# -- /books --------------------------------------------------------------------


class BoundaryBooks(Accounts, frozen=True, kw_only=True):
    """One boundary of `/books`: its accounts so far, its sensor and its meter."""

    settled_unix_seconds: float | None = None
    """The accounts are those of this instant, or of the one asked for."""
    complete: bool
    """Whether everything up to the instant asked for is settled."""
    run: str | None = None
    """The process that answers: joules of two runs have no difference."""
    run_unix_seconds: float | None = None
    """When that process began."""
    boundary: str | None = None
    sensor_up: bool = True
    policy: str | None = None
    sample_interval_seconds: float | None = None
    window_seconds: float = 0.5
    """Length of the pieces in which energy is divided."""
    gap_seconds: float | None = None
    """Not measured so far."""
    drafted_tokens: float | None = None
    """Drafted by speculation, by the engine's count; null where it tells of none."""
    accepted_tokens: float | None = None
    """Of those, what became output."""
    joules_per_accepted_token: float | None = None
    """Decode joules over them: drafting and verifying all is what they took."""
    idle_accelerators_joules: float | None = None
    """Energy of the host's GPUs that are not the engine's; in no account."""
    idle_accelerators_watts: dict[str, float] = {}
    idle_watts: float | None = None
    """Loaded idle: weights resident, nothing running; at working clocks once seen."""
    idle_source: str | None = None
    rest_watts: float | None = None
    """The same long after the last work, when clocks are down."""
    bare_idle_watts: float | None = None
    """Idle power with no weights loaded, as configured."""
    model_idle_watts: float | None = None
    """Loaded less bare."""
    device_watts: dict[str, float] = {}
    gaps_total: int | None = None
    samples_total: int | None = None
    missed_total: int | None = None
    counter_period_seconds: float | None = None
    counter_power_ratio: float | None = None
    unsettled_seconds: float | None = None
    open_requests: int | None = None


class BoundaryRatio(Struct, frozen=True, kw_only=True):
    """Joules of one boundary over those of one around it."""

    inner: str
    """A boundary, or `idle_accelerators`: the host's GPUs that are not in use."""
    outer: str
    ratio: float | None
    """Null where not both were measured."""


class RatioReply(BoundaryRatio, frozen=True, kw_only=True):
    """The same with its parts, over all the time in which both were measured."""

    inner_joules: float
    outer_joules: float
    seconds: float


class BooksReply(BoundaryBooks, frozen=True, kw_only=True):
    """`/books` of one engine: the headline boundary's, and every boundary's."""

    boundaries: dict[str, BoundaryBooks] = {}
    ratios: list[RatioReply] = []
    instance: str | None = None
    """Name of the proxy that keeps them; null in one engine's of several."""

    @property
    def is_final(self) -> bool:
        """Whether waiting changes nothing: a sensor that is down settles nothing."""
        every = (self, *self.boundaries.values())
        return all(books.complete or not books.sensor_up for books in every)


class FleetBooks(BooksReply, frozen=True, kw_only=True):
    """`/books` of several engines: the sums, and each engine's own."""

    engines: dict[str, BooksReply]


# -- /totals -------------------------------------------------------------------


Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class ClassTotals(Struct, frozen=True, kw_only=True):
    """Settled requests of one model and tenant, inside the headline boundary."""

    model: str
    tenant: str
    requests: Count
    requests_without_energy: Count
    """Of those, what is in no joules here: they are unknown."""
    requests_without_tokens: Count
    """Of those, answered or cut off without the engine's count of its output."""
    prompt_tokens: Count
    output_tokens: Count
    prefill_joules: float | None
    """Null where nothing was measured, as the next two."""
    decode_joules: float | None
    idle_share_joules: float | None
    prefill_legs: Count = 0
    """Of the requests, halves of such as two engines serve; 0 in older proxies."""
    decode_legs: Count = 0


class EngineTotals(Struct, frozen=True, kw_only=True):
    """One engine since its proxy began, inside its headline boundary."""

    boundary: str
    simulated: bool
    account_joules: dict[str, float] | None
    """By account; their sum is all that was measured. Null: nothing was."""
    gap_seconds: float | None
    """Not measured so far; null: nothing was."""
    classes: list[ClassTotals]


class TotalsReply(Struct, frozen=True, kw_only=True):
    """`/totals`: what one proxy counted since it began, for sums over a fleet."""

    version: str
    run: str
    run_unix_seconds: float
    instance: str | None
    host: str | None
    engines: dict[str, EngineTotals]


# -- /requests -----------------------------------------------------------------


class BoundaryEnergy(Struct, frozen=True, kw_only=True):
    """Joules of a request inside one boundary; null unless known for all its time."""

    prefill_joules: float | None
    decode_joules: float | None
    idle_share_joules: float | None
    energy_joules: float | None
    """Sum of the three above."""
    quality: str
    """Deprecated: `timing`, with `exact` for `timed`."""
    low_joules: float | None = None
    """With 90 % the energy is no less, and no more than `high_joules`."""
    high_joules: float | None = None
    timing: str | None = None
    """`timed`, `estimated` or `unknown`: how well it is known who ran when. Null in
    records older than it, as the next."""
    grade: str | None = None
    """`good`, `fair`, `poor` or `unknown`: how far the joules can be trusted."""


class EnergyReply(BoundaryEnergy, frozen=True, kw_only=True, omit_defaults=True):
    """`energy` of a line of `/requests`: inside the headline boundary, and beside."""

    policy: str
    policy_joules: dict[str, float]
    """Active joules (prefill and decode) under every policy."""
    boundaries: dict[str, BoundaryEnergy] = {}
    """Energy inside the other boundaries; left out where there is none. Never added."""
    idle_share_by_time_joules: float | None = None
    """`idle_share_joules` under the other rule, part of no sum: each moment divided
    equally among those who ran. Left out where unknown, and in older records."""
    grade_reasons: tuple[str, ...] = ()
    """Why the grade is not `good`; left out where it is, and in older records."""


class RequestReply(Struct, frozen=True, kw_only=True, rename={"cursor": "sequence"}):
    """One settled request: a line of `/requests`, and `/requests/{request_id}`."""

    cursor: int
    """The position for `/requests?since=`."""
    request_id: str
    route: str | None = None
    engine: str | None = None
    """The upstream's name; null in records older than it."""
    model: str | None = None
    kind: str | None = None
    tenant: str | None = None
    outcome: str | None = None
    error: str | None = None
    status: int | None = None
    arrived_unix_seconds: float | None = None
    scheduled_unix_seconds: float | None = None
    first_token_unix_seconds: float | None = None
    last_token_unix_seconds: float | None = None
    finished_unix_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    """As the engine told of this request."""
    inferred_cached_tokens: int | None = None
    """Taken as cached where it did not tell, from its counters of all prompts."""
    output_tokens: int | None = None
    is_output_lower_bound: bool | None = None
    """The reply broke off: `output_tokens` are those seen until then, the engine may
    have made more. Null in records older than it."""
    leg: str | None = None
    """`prefill` or `decode`, its half of a request that two engines serve under one
    `request_id`; null for a whole one."""
    instance: str | None = None
    """Name of the proxy that recorded it; null in records older than it."""
    energy: EnergyReply


# -- /readyz -------------------------------------------------------------------


class ReadinessReply(Struct, frozen=True, kw_only=True):
    """`/readyz`: whether requests are served and their joules known; else why not."""

    ready: bool
    upstream: bool
    sensor: bool
    reasons: list[str]
    lacking: dict[str, str] | UnsetType = UNSET
    """Reasons of the boundaries beside the headline; requests do not wait for them."""


class FleetReadiness(ReadinessReply, frozen=True, kw_only=True):
    """`/readyz` of several engines: ready when each model has an engine that is."""

    models_without_engine: list[str]
    engines: dict[str, ReadinessReply]


# -- /upstreams, /info ---------------------------------------------------------


class UpstreamReply(Struct, frozen=True, kw_only=True):
    """One upstream: where it is, and whether it gets requests."""

    name: str
    url: str
    engine: str
    """Its dialect."""
    models: list[str] | None
    """Null: any."""
    state: str
    """`up`, `down` or `draining`."""
    up: bool
    draining: bool
    reason: str | None
    """Why it is down."""
    since_unix_seconds: float
    requests_in_flight: int
    rerouted_total: int


class UpstreamsReply(Struct, frozen=True, kw_only=True):
    """`/upstreams`."""

    upstreams: list[UpstreamReply]


class SensorState(Struct, frozen=True, kw_only=True):
    """The sensor of one boundary."""

    source: str
    up: bool
    simulated: bool
    last_error: str | None
    clock_offset_seconds: float | None
    rejected: dict[str, int] = {}
    """Figures that were not believed since start, by reason."""
    accuracy_fraction: float | None = None
    """What readings may be off by, all alike, as the maker states it: a part of every
    interval. Null: nobody states it."""


class EngineInfo(Struct, frozen=True, kw_only=True):
    """The sensors of one engine: the headline boundary's, and every boundary's."""

    sensor: SensorState
    sensors: dict[str, SensorState]


class StoreState(Struct, frozen=True, kw_only=True, rename={"is_up": "up"}):
    """The store of records, for `/info` and the metrics."""

    is_up: bool
    url: str
    """The database's URL without user and password."""
    last_error: str | None
    queue_records: int
    written_total: int
    dropped_total: int
    deleted_total: int
    """Records deleted by retention."""


class InfoReply(Struct, frozen=True, kw_only=True):
    """`/info`: what runs, and how it was configured."""

    version: str
    build: str | None = None
    """`compiled` where the hot modules run as C, else `pure`; null: an older proxy."""
    run: str | None = None
    """The process that answers; another one after a restart."""
    instance: str | None = None
    """Name of the proxy among others, kept over restarts; null where it is older."""
    host: str | None = None
    """Name of the machine that the proxy runs on."""
    interval_level: float = 0.9
    """Nominal probability that joules are between their bounds."""
    config: dict[str, Any] = {}
    """The configuration without secrets."""
    sensor: SensorState | UnsetType = UNSET
    """The only engine's; left out where there are several, as `sensors` is."""
    sensors: dict[str, SensorState] | UnsetType = UNSET
    engines: dict[str, EngineInfo]
    upstreams: list[UpstreamReply]
    store: StoreState | None
    """Null where records are kept in memory only."""


# -- /hardware -----------------------------------------------------------------


class BoardState(Struct, frozen=True, kw_only=True):
    """How one board works now; null is what it does not tell."""

    boundary: str
    device: str
    model: str | None = None
    driver: str | None = None
    """Version of its driver."""
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    temperature_celsius: float | None = None
    throttle_reasons: list[str] | None = None
    power_limit_watts: float | None = None
    corrected_ecc_errors: int | None = None
    uncorrected_ecc_errors: int | None = None
    last_xid: int | None = None
    """The driver's number of its last fault; 0: there was none."""
    process_ids: list[int] | None = None
    other_processes: int | None = None
    """Processes on it beside the engine's."""


class SpreadReply(Struct, frozen=True, kw_only=True):
    """Smallest, middle and largest of what was seen."""

    min: float
    median: float
    max: float


class BoardSummary(Struct, frozen=True, kw_only=True):
    """How one board worked in a window; null is what it never told."""

    boundary: str
    device: str
    seconds: float
    """Of the window in which it was observed."""
    model: str | None = None
    driver: str | None = None
    """Version of its driver."""
    sm_clock_hertz: SpreadReply | None = None
    """While it worked, where it tells that it idles."""
    memory_clock_hertz: SpreadReply | None = None
    temperature_celsius: SpreadReply | None = None
    throttled_seconds: float | None = None
    """Slower than its settings allow, for whatever reason."""
    throttled_seconds_by_reason: dict[str, float] = {}
    """Reasons come together, so these may be more than the seconds of all."""
    power_limit_watts: SpreadReply | None = None
    power_limit_changes: int | None = None
    corrected_ecc_errors: int | None = None
    """Errors of its memory in the window."""
    uncorrected_ecc_errors: int | None = None
    xids: list[int] | None = None
    """Faults that the driver noted in the window."""
    other_processes: int | None = None
    """The most that were on it at once beside the engine's."""
    shared_seconds: float | None = None
    """With another process on it."""
    process_ids: list[int] = []
    """All that were seen, the engine's too."""


class HardwareSeries(Struct, frozen=True, kw_only=True):
    """The slowest clock and the hottest board over time."""

    at_unix_seconds: list[float] = []
    sm_clock_hertz: list[float | None] = []
    temperature_celsius: list[float | None] = []


class EngineHardware(Struct, frozen=True, kw_only=True):
    """The boards of one engine."""

    simulated: bool = False
    observed_unix_seconds: float | None = None
    """When they were last observed; null: no source tells."""
    now: list[BoardState] = []
    window: list[BoardSummary] = []
    """From `from_unix` to `to_unix`, as far back as is kept; else the last 10 min."""
    series: HardwareSeries = HardwareSeries()


class HardwareReply(Struct, frozen=True, kw_only=True):
    """`/hardware`: clocks, temperature, throttling, limits, errors, processes."""

    from_unix_seconds: float | None = None
    to_unix_seconds: float | None = None
    engines: dict[str, EngineHardware] = {}


# -- /live ----------------------------------------------------------------------


class RunningRequest(Struct, frozen=True, kw_only=True):
    """A request that has not ended, and what it used so far."""

    request_id: str
    engine: str
    model: str
    kind: str
    tenant: str
    arrived_unix_seconds: float
    prompt_tokens: int | None = None
    output_tokens: float = 0.0
    """Seen so far."""
    energy_joules: float | None = None
    """An estimate until it is settled; null: not known."""


class LiveEngine(Struct, frozen=True, kw_only=True):
    """One engine now: its accounts, its sensor and where it is."""

    engine: str
    upstream: UpstreamReply | None
    sensor: SensorState
    """Of the headline boundary, as the accounts."""
    books: BoundaryBooks
    requests: int
    """Running."""
    power: list[PowerRow] = []
    """Mean watts by account of each second that was settled since the last message; in
    the first one those of the last minutes."""


class PowerRow(Struct, frozen=True, kw_only=True, array_like=True):
    """Mean watts of one second, ended at an instant; null where it was not measured."""

    at_unix_seconds: float
    prefill_watts: float | None = None
    decode_watts: float | None = None
    idle_share_watts: float | None = None
    idle_watts: float | None = None
    unattributed_watts: float | None = None


class LiveReply(Struct, frozen=True, kw_only=True):
    """A message of `/live`, and what the live page shows."""

    at_unix_seconds: float
    version: str
    run: str
    has_token: bool
    """The API asks for one: whoever looks on has logged in."""
    readiness: ReadinessReply
    engines: list[LiveEngine]
    running: list[RunningRequest]
    """The oldest; `requests` of an engine counts all."""
    recent: list[RequestReply]
    """Settled last, newest first."""
    store: StoreState | None


# -- /calibration --------------------------------------------------------------

CALIBRATION_VERSION = 2
"""1 had the five plain constants alone; its files are shown, and learnt anew."""


class SavedSums(Struct, frozen=True):
    """The sums that a fit is made from, in units of the constants' defaults."""

    rows: float
    squares: tuple[tuple[float, ...], ...]
    products: tuple[float, ...]
    work: tuple[float, ...]
    joules: float
    square_joules: float
    form: str = "plain"
    """The form of the cost model that was in use."""
    features: tuple[str, ...] = ()
    """What the sums are of, in order; empty in version 1: the five of `plain`."""
    spread: tuple[tuple[float, ...], ...] = ()
    """How differently requests use the features."""
    square_window_joules: float = 0.0


class FittedConstant(Struct, frozen=True):
    """One fitted constant."""

    joules: float
    standard_error_joules: float
    unit: str


class SavedCalibration(Struct, frozen=True):
    """The calibration of one engine and model; all else is derived from `sums`."""

    engine: str
    model: str | None
    is_fitted: bool
    reason: str | None = None
    """Why the constants are not trusted."""
    doubt: str | None = None
    """The kind of that reason, as metrics label it."""
    saved_unix_seconds: float | None = None
    rows: float = 0.0
    row_seconds: float = 0.0
    condition: float | None = None
    misfit: float | None = None
    form: str | None = None
    """The form of the cost model that is in use, see docs/attribution.md."""
    form_errors: dict[str, float] = {}
    """What each form missed two seconds by that it had not seen (root mean square), by
    their mean."""
    split_error: float | None = None
    """What the constants' standard errors move between requests, by their energy."""
    sensor_lag_seconds: float | None = None
    """How late the sensor shows power, where it is late."""
    constants: dict[str, FittedConstant] = {}
    sums: SavedSums | None = None


class CalibrationReply(Struct, frozen=True):
    """`/calibration`, and the file that `serve --calibration` keeps."""

    calibrations: tuple[SavedCalibration, ...]
    version: int = CALIBRATION_VERSION
