"""The shape of `summary.json`.

The flat keys of `Summary` are those that scripts for `vllm bench serve` parse,
with vLLM's meaning (milliseconds, answered requests, per second of the window).
Everything else is in base units. Null means "not known" or "did not happen".
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import field

from loadgen.analysis.distribution import Stats
from loadgen.analysis.verdict import Verdict
from loadgen.analysis.warmup import WarmUp
from proxy.wire.api import Accounts, BoardSummary, BoundaryRatio


class PerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Distribution of the joules of single requests."""

    n: int
    mean: float
    p50: float
    p90: float
    p99: float


class PowerSeries(msgspec.Struct, frozen=True, kw_only=True):
    """Mean watts by account in consecutive bins, from books at the bins' edges."""

    edges_seconds: list[float]
    """Seconds from the run's zero; one more than there are bins."""
    prefill_watts: list[float]
    decode_watts: list[float]
    idle_share_watts: list[float]
    idle_watts: list[float]
    unattributed_watts: list[float]


class BoundaryBlock(Accounts, frozen=True, kw_only=True):
    """Energy inside one boundary in the window; boundaries overlap: never add them."""

    mean_watts: float | None = None
    measured_joules_per_request: float | None = None
    """All measured joules over answered requests: idle included."""
    joules_per_request: PerRequest | None = None
    """Prefill, decode and idle share of answered requests."""
    active_joules_per_request: PerRequest | None = None
    """The same without the idle share."""
    joules_per_output_token: float | None = None
    requests_with_energy: int = 0
    requests_without_energy: int = 0
    loaded_idle_watts: float | None = None
    idle_source: str | None = None
    settlement_window_seconds: float | None = None
    """Joules are divided, and cut at the window's ends, in pieces so long."""
    counter_period_seconds: float | None = None
    settled: bool | None = None
    reason: str | None = None
    """Why joules are null, or not whole."""


class ConstantsTrust(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the fitted constants of one engine and model were trusted after a run."""

    engine: str
    model: str | None = None
    is_trusted: bool
    doubt: str | None = None
    """The kind of the reason why not, such as `rows`, `changed` or `shared`."""
    reason: str | None = None
    """It in a line."""
    form: str | None = None
    """The form of the cost model in use."""
    rows: float | None = None
    """Rows of load they were learnt from, those of a saved calibration included."""


class RequestInterval(msgspec.Struct, frozen=True, kw_only=True):
    """The 90 % interval of the mean request's joules, idle share included.

    Bounds of all requests are added up: errors of like requests are alike, so nothing
    is taken to cancel.
    """

    n: int
    mean_joules: float
    low_joules: float
    high_joules: float
    half_width_fraction: float


class EnergyBlock(Accounts, frozen=True, kw_only=True):
    """`energy` of `summary.json`; null where nothing is known, and then why."""

    boundary: str | None = None
    policy: str | None = None
    sample_interval_seconds: float | None = None
    window_seconds: float | None = None
    joules_per_request: PerRequest | None = None
    """Inclusive: prefill, decode and idle share."""
    active_joules_per_request: PerRequest | None = None
    """The same requests without their idle share."""
    joules_per_output_token: float | None = None
    joules_per_total_token: float | None = None
    measured_joules_per_output_token: float | None = None
    drafted_tokens: float | None = None
    """Drafted by speculation in the window; null where the engine tells of none."""
    accepted_tokens: float | None = None
    """Of those, what became output."""
    joules_per_accepted_token: float | None = None
    """Decode joules of the window over them."""
    output_tokens_per_joule: float | None = None
    """Of all measured joules."""
    good_requests_per_joule: float | None = None
    """Goodput per watt: requests within every --goodput limit over all measured
    joules."""
    energy_delay_joule_seconds: float | None = None
    """Energy-delay product, the mean over requests of joules times latency."""
    failed_request_joules: float | None = None
    mean_watts: float | None = None
    joined_joules: float | None = None
    """Sum over this run's requests; less than the books when others were served."""
    requests_with_energy: int = 0
    requests_without_energy: int = 0
    policy_joules: dict[str, dict[str, float]] = field(default_factory=dict)
    """Active joules by policy, then kind of request."""
    policy_joules_per_request: dict[str, PerRequest] = field(default_factory=dict)
    """Active joules of single answered requests, as each policy would have it."""
    quality: dict[str, int] = field(default_factory=dict)
    """Deprecated: `timing`, with `exact` for `timed`."""
    timing: dict[str, int] = field(default_factory=dict)
    """Requests by how well it is known who ran when."""
    grade: dict[str, int] = field(default_factory=dict)
    """Requests by how far their joules can be trusted."""
    grade_reasons: dict[str, int] = field(default_factory=dict)
    """Requests that are not `good`, by each reason, see docs/attribution.md."""
    constants: list[ConstantsTrust] = field(default_factory=list)
    """Of each engine and model: whether the fitted constants are trusted."""
    interval: RequestInterval | None = None
    """Of the mean request; that of all together is `attributed_low_joules`."""
    loaded_idle_watts: float | None = None
    idle_source: str | None = None
    bare_idle_watts: float | None = None
    """Idle power with no weights loaded, as configured at the proxy."""
    model_idle_watts: float | None = None
    """Loaded less bare: drawn because the model is resident."""
    readings: int | None = None
    """Readings of the sensor from the run's start to its end."""
    missed_readings: int | None = None
    """Failed or late ones, from the run's start to its end."""
    gap_seconds: float | None = None
    """Seconds of the window that were not measured."""
    counter_period_seconds: float | None = None
    counter_power_ratio: float | None = None
    settled: bool | None = None
    """False when the books were read before the window's end was final."""
    power: PowerSeries | None = None
    boundaries: dict[str, BoundaryBlock] = field(default_factory=dict)
    """Each one that was metered, the headline too; empty where it was the only one."""
    boundary_ratios: list[BoundaryRatio] = field(default_factory=list)
    idle_accelerators_joules: float | None = None
    """Energy of the host's GPUs that are not the engine's; in no account."""
    reason: str | None = None
    """Why joules are null."""
    definitions: dict[str, str] = field(default_factory=dict)


class HardwareBlock(msgspec.Struct, frozen=True, kw_only=True):
    """How the boards worked in the window; empty where the proxy could not observe."""

    simulated: bool = False
    boards: list[BoardSummary] = field(default_factory=list)
    warm_up: list[WarmUp] = field(default_factory=list)
    """Figures that drifted at the beginning, beyond what load explains."""


class NaiveEstimate(msgspec.Struct, frozen=True, kw_only=True):
    """One estimate that needs no measurement, beside the measurement."""

    name: str
    """`flops_dense_peak`, `flops_sparse_peak`, `tdp_runtime`, `utilization_tdp`,
    `tokens_ecologits`, `tokens_quoted` or `tokens_given`."""
    joules: float | None = None
    measured_over_naive: float | None = None
    formula: str | None = None
    """With its constants."""
    source: str | None = None
    """Of the constants."""
    reason: str | None = None
    """Why there is none, and which option would give it."""


class NaiveBlock(msgspec.Struct, frozen=True, kw_only=True):
    """What calculators would have said of this run."""

    gpu: str | None
    gpus: int | None
    model: str | None
    parameters: float | None
    """Those that a token uses."""
    boundary: str | None
    """Of the measurement; the estimates are of GPUs alone."""
    measured_joules: float | None
    """All of the window, idle included."""
    measured_reason: str | None = None
    estimates: list[NaiveEstimate]


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """Schedule lag in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


class ProcessRow(msgspec.Struct, frozen=True, kw_only=True):
    """One of several processes or workers that sent a run: its part in the window."""

    process: int
    """From 1."""
    worker: str | None = None
    """Its name, where it is a worker on the bus."""
    requests: int
    lag_ms: Lag | None
    loop_lag_p99_ms: float | None
    """Of its whole run."""
    cpu_seconds: float | None
    """Processor time of its whole replay."""
    death: str | None = None
    """How it ended before its time; null: it did not."""
    lost_requests: int = 0
    """Without a record, because it ended before its time."""
    clock_offset_seconds: float | None = None
    """Monotonic clock of the run less that of the worker's host, as it began."""
    clock_error_ms: float | None = None
    """The true offset was no further away."""
    clock_drift_ms: float | None = None
    """How far the clocks drifted apart in the run, beyond the errors of measuring it;
    null: not measured at its end."""


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """Was the plan kept? Rates in requests per second."""

    plan_requests: int | None = None
    """Requests of the whole plan; more than `planned` where the window is shorter."""
    planned: int
    """Due in the window."""
    sent: int
    dropped: int
    asked_per_second: float | None = None
    """The rate that was asked for, or else the plan's own; null when all at once."""
    offered_per_second: float | None
    """The rate of the planned starts, as chance and think times made it."""
    achieved_per_second: float | None
    """The rate at which requests really left."""
    lag_ms: Lag | None
    gap_p50_ms: float | None
    loop_lag_p99_ms: float | None
    mean_concurrency: float | None
    peak_concurrency: int | None
    processes: list[ProcessRow] = field(default_factory=list)
    """Each that sent a part of the plan; empty where one sent all of it."""


class WindowBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Which part of the run every figure is about."""

    start_seconds: float
    end_seconds: float
    warmup_seconds: float
    cooldown_seconds: float
    requests: int
    requests_outside: int
    run_seconds: float
    """Zero to the last request's end, warm-up and cool-down included."""
    started_unix_seconds: float | None


class GroupRow(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one kind or one turn; latencies in seconds, medians."""

    requests: int
    completed: int
    mean_prompt_tokens: float | None
    mean_output_tokens: float | None
    p50_ttft_seconds: float | None
    p50_tpot_seconds: float | None
    p50_e2el_seconds: float | None
    mean_joules: float | None
    p50_joules: float | None
    p90_joules: float | None
    joules_per_output_token: float | None


class LengthBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Asked against served tokens of answered requests, where both are known."""

    requests: int
    asked_tokens: int
    """Lengths by the trace, or by --output-len."""
    served_tokens: int
    """Lengths as the engine counted them."""
    served_over_asked: float | None
    exact_fraction: float | None
    ratio_p10: float | None = None
    """Served over asked of single requests."""
    ratio_p50: float | None = None
    ratio_p90: float | None = None
    shorter_requests: int = 0
    """Served less than asked."""
    live_requests: int = 0
    """Prompts that carry replies really given, where asked has the trace's."""
    ratio_p50_without_live: float | None = None
    """The other requests: the effect of tokenizer and chat template on the trace."""


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that met every limit; failures are misses."""

    limits: dict[str, float]
    """Base units: seconds, joules."""
    good: int
    fraction_of_attempted: float | None


class ErrorRow(msgspec.Struct, frozen=True, kw_only=True):
    """One failure text and how often it came."""

    error: str
    count: int


class SamplingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What every request asked of the decoding; null is the server's own."""

    temperature: float
    top_p: float | None
    n: int
    output_tokens: int | None
    """Of every request, in place of the trace's lengths."""
    ignore_eos: bool | None
    """null: where the backend can."""
    beam_width: int | None = None
    extra_body: dict[str, Any] = field(default_factory=dict)


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The machine that sent the load; that of the engine where they are one."""

    name: str
    cpu: str | None
    cpu_count: int | None
    memory_bytes: int | None
    system: str


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How a run was asked for, where and of what: `loadgen replay --from` reads it."""

    command: str | None
    """As it was typed; what headers held is hidden."""
    folder: str
    """The working folder, which paths of the command begin at."""
    trace_path: str
    trace_sha256: str | None
    options: dict[str, Any]
    """Every option with a value, defaults too, as `--config` takes them."""
    url: str | None
    """null: the simulated stack."""
    sampling: SamplingRecord
    engine: str
    engine_version: str | None
    """As the engine tells it."""
    engine_facts: dict[str, str] = field(default_factory=dict)
    """What else it tells of itself."""
    model: str | None
    host: HostRecord


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of `summary.json`."""

    servewatt: str = "summary/1"
    simulated: bool
    """The engine, the sensor or both."""
    simulated_engine: bool = False
    verdict: Verdict
    trace: str | None
    trace_format: str | None
    arrival: str | None
    seed: int | None
    backend: str | None
    model: str | None
    plan_sha256: str | None
    duration: float
    completed: int
    failed: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float | None
    output_throughput: float | None
    total_token_throughput: float | None
    request_goodput: float | None
    mean_ttft_ms: float | None
    median_ttft_ms: float | None
    std_ttft_ms: float | None
    p99_ttft_ms: float | None
    mean_tpot_ms: float | None
    median_tpot_ms: float | None
    std_tpot_ms: float | None
    p99_tpot_ms: float | None
    mean_itl_ms: float | None
    median_itl_ms: float | None
    std_itl_ms: float | None
    p99_itl_ms: float | None
    mean_e2el_ms: float | None
    median_e2el_ms: float | None
    std_e2el_ms: float | None
    p99_e2el_ms: float | None
    request_rate: float | str | None
    """The planned rate; "inf" for all at once, null for the trace's own."""
    burstiness: float | None
    max_concurrency: int | None
    schedule: Schedule
    energy: EnergyBlock
    measures: dict[str, Stats | None]
    window: WindowBlock
    hardware: HardwareBlock = field(default_factory=HardwareBlock)
    naive: NaiveBlock | None = None
    """None in summaries of before."""
    goodput: Goodput | None
    outcomes: dict[str, int]
    errors: list[ErrorRow]
    by_kind: dict[str, GroupRow]
    by_turn: dict[str, GroupRow]
    cached_tokens: int
    input_lengths: LengthBlock
    output_lengths: LengthBlock
    output_length_rule: str | None = None
    """`forced`: as many tokens as asked; `cap`: at most; null: none was asked."""
    environment: dict[str, str | int | None]
    metadata: dict[str, str]
    run: RunRecord | None = None
    """null in runs of earlier versions."""
