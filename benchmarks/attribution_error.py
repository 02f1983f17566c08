"""How wrong is a request's energy? Every policy against the simulator's truth.

    python benchmarks/attribution_error.py [--requests 1000] [--json] [--markdown FILE]

Virtual time, no sockets. The simulator's core decides which step computes whom and
what it costs; its truth is the Shapley share of the real, non-linear step energy.
The real `Meter` sees what a proxy sees: arrivals, token reads (late by up to
`--jitter-ms`), usage, and a counter that updates every 100 ms, polled every 20 ms.
It knows neither the simulator's constants nor its steps. Relative error is
|attributed - true| / true per request; bias is attributed / true over a kind.
`active` leaves the idle share out on both sides, `inclusive` takes it in. The truth
shares idle by the duration that each request causes, the meter by running time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.engine import Trace, simulate
from loadgen.simulator.core.presets import GPUS, MODELS, PRESETS
from loadgen.simulator.core.roofline import roofline
from loadgen.simulator.core.scheduler import SimRequest
from loadgen.simulator.core.sensor import GpuSensor, PowerCurve, SensorConfig
from proxy.meter.attribution.fit import Sums
from proxy.meter.attribution.policies import (
    POLICIES,
    CostModel,
    Policy,
    by_calibration,
    by_phase,
)
from proxy.meter.config import MeterConfig
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Meter
from proxy.wire.events import PowerSampled, RequestClosed, RequestOpened, TokensReceived
from proxy.wire.facts import Labels, PhaseSeconds, Reading, RequestFacts, Update, Usage

# Input and output tokens as (mean, median): Azure traces, arXiv 2504.17674 Table 1, 2.
LENGTHS = {
    "conversation": ((1631.58, 928), (105.51, 41)),
    "code": ((2511.28, 1930), (22.69, 8)),
    "reasoning": ((200.0, 150), (600.0, 400)),  # made up: little in, much out
    "talk": ((400.0, 400.0), (100.0, 100.0)),  # two classes without any spread
    "paste": ((3000.0, 3000.0), (20.0, 20.0)),
}
LONGEST_TOKENS = 8192
QUIET_SECONDS = 5.0  # before the first arrival: loaded idle is measured here
POLL_SECONDS = 0.02
SETTLE_SECONDS = 0.5
NETWORK_SECONDS = 0.0005


@dataclass(frozen=True)
class Scenario:
    """One run: load, hardware, what the sensor and the engine tell."""

    name: str
    rate_per_second: float = 8.0
    kinds: tuple[str, ...] = ("conversation", "code")
    preset: str = "h100-8b"
    counter_seconds: float = 0.1
    has_counter: bool = True
    averaging_seconds: float = 0.0
    has_phase_times: bool = False
    repeat_fraction: float = 0.0
    """Requests whose prompt repeats an earlier one: the prefix cache has it."""
    kv_blocks: int | None = None
    is_regular: bool = False
    """Arrivals one like the other, for checks that need steady load."""
    seed: int = 1


@dataclass(frozen=True)
class Row:
    """What one policy got wrong in one scenario."""

    scenario: str
    policy: str
    view: str
    """`active`, or `inclusive` of the idle share."""
    requests: int
    median_error: float
    p90_error: float
    bias: Mapping[str, float]
    residual_joules: float
    recomputed_fraction: float
    trusted_fraction: float
    """Of the busy time: how long `calibrated` used constants of its own."""


@dataclass(frozen=True)
class Event:
    """One call of the meter."""

    at_seconds: float
    order: int
    what: str
    key: int = -1
    updates: tuple[Update, ...] = ()


@dataclass
class Load:
    """Requests of a scenario, and what the simulator made of them."""

    requests: list[SimRequest] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    trace: Trace | None = None

    @property
    def recomputed_fraction(self) -> float:
        """Prompt tokens computed again after preemption, by prompt tokens."""
        assert self.trace is not None
        truths = self.trace.truth.values()
        asked = sum(truth.prompt_tokens - truth.cached_tokens for truth in truths)
        return sum(truth.prefilled_tokens for truth in truths) / asked - 1


def lognormal(
    rng: np.random.Generator, mean: float, median: float, low: int, high: int
) -> int:
    sigma = np.sqrt(2 * np.log(mean / median))
    return int(np.clip(rng.lognormal(np.log(median), sigma), low, high))


def engine_config(scenario: Scenario) -> EngineConfig:
    gpu, model, count = PRESETS[scenario.preset]
    return EngineConfig(
        gpu=GPUS[gpu],
        model=MODELS[model],
        n_gpus=count,
        kv_blocks=scenario.kv_blocks,
        prefix_cache=scenario.repeat_fraction > 0,
    )


@cache
def load(scenario: Scenario, count: int) -> Load:
    """Poisson arrivals, kinds drawn evenly; the simulator's run of them."""
    rng = np.random.default_rng(scenario.seed)
    made = Load()
    at_seconds = QUIET_SECONDS
    for number in range(count):
        gap = 1.0 if scenario.is_regular else rng.exponential()
        at_seconds += gap / scenario.rate_per_second
        kind = scenario.kinds[int(rng.integers(len(scenario.kinds)))]
        given, produced = LENGTHS[kind]
        prompt = lognormal(rng, *given, 8, LONGEST_TOKENS)
        output = lognormal(rng, *produced, 1, 2048)
        origin = number
        if number and rng.random() < scenario.repeat_fraction:
            origin = int(rng.integers(max(number - 40, 0), number))
            prompt = made.requests[origin].prompt_tokens
            origin = made.requests[origin].block_hashes[0] >> 20
        hashes = tuple((origin << 20) + block for block in range(prompt // 16))
        made.requests.append(
            SimRequest(
                f"r{number}",
                at_seconds + NETWORK_SECONDS,
                prompt,
                output,
                hashes or ((origin << 20),),
            )
        )
        made.kinds.append(kind)
    made.trace = simulate(made.requests, engine_config(scenario))
    return made


def sensor_of(trace: Trace, scenario: Scenario) -> GpuSensor:
    """A sensor on the whole group's curve."""
    curve = PowerCurve(trace.power.idle_watts)
    sensor = GpuSensor(
        curve,
        SensorConfig(
            period_seconds=scenario.counter_seconds,
            averaging_seconds=scenario.averaging_seconds,
            initial_joules=1234.567,
        ),
    )
    for step in trace.steps:
        curve.extend(step.start_seconds, step.end_seconds, step.joules)
    return sensor


def events_of(made: Load, scenario: Scenario, jitter_seconds: float) -> list[Event]:
    """Everything the meter is told, in order of time."""
    trace = made.trace
    assert trace is not None
    rng = np.random.default_rng([scenario.seed, 7])
    events: list[Event] = []
    for key, request in enumerate(made.requests):
        truth = trace.truth[request.request_id]
        arrived = request.arrived_seconds - NETWORK_SECONDS
        events.append(Event(arrived, 0, "opened", key))
        stamps = trace.token_seconds[request.request_id]
        reads = stamps + NETWORK_SECONDS + rng.random(len(stamps)) * jitter_seconds
        reads = np.maximum.accumulate(reads)
        prompt = request.prompt_tokens
        for number, at in enumerate(reads.tolist(), start=1):
            usage = Usage(prompt, number)
            updates = (Update(carries_token=True, usage=usage),)
            events.append(Event(at, 1, "received", key, updates))
        phases = None
        if scenario.has_phase_times:
            assert truth.first_token_seconds is not None
            assert truth.scheduled_seconds is not None
            prefill = truth.first_token_seconds - truth.scheduled_seconds
            phases = PhaseSeconds(prefill_seconds=prefill)
        cached = truth.cached_tokens if scenario.repeat_fraction else None
        last = Update(
            usage=Usage(prompt, len(stamps), cached), phases=phases, is_usage_only=True
        )
        events.append(Event(float(reads[-1]), 2, "received", key, (last,)))
        events.append(Event(float(reads[-1]), 3, "closed", key))
    end_seconds = trace.end_seconds + 3.0
    for at in np.arange(0.0, end_seconds, POLL_SECONDS).tolist():
        events.append(Event(at, 4, "sampled"))
    for at in np.arange(SETTLE_SECONDS / 2, end_seconds, SETTLE_SECONDS).tolist():
        events.append(Event(at, 5, "settled"))
    events.append(Event(end_seconds + 60.0, 6, "settled"))
    return sorted(events, key=lambda event: (event.at_seconds, event.order))


def play(
    made: Load, scenario: Scenario, meter: Meter, jitter_seconds: float
) -> tuple[list[RequestRecord], float]:
    """Make all calls; the settled records, and since when constants were trusted.

    The latter as a part of the busy time, 0..1.
    """
    assert made.trace is not None
    trusted: list[bool] = []
    sensor = sensor_of(made.trace, scenario)
    facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
    records: list[RequestRecord] = []
    for event in events_of(made, scenario, jitter_seconds):
        at, key = event.at_seconds, event.key
        if event.what == "received":
            meter.feed(TokensReceived(key, at, event.updates))
        elif event.what == "sampled":
            shown = sensor.read(at)
            joules = shown.joules if scenario.has_counter else None
            meter.feed(PowerSampled("gpu", at, (Reading("gpu0", joules, shown.watts),)))
        elif event.what == "settled":
            records += meter.settle(at)
            calibration = meter.state().calibration
            if calibration is not None and QUIET_SECONDS < at < made.trace.end_seconds:
                trusted.append(calibration.is_fitted)
        elif event.what == "opened":
            labels = Labels(kind=made.kinds[key])
            meter.feed(
                RequestOpened(key, at, made.requests[key].request_id, facts, labels)
            )
        else:
            meter.feed(RequestClosed(key, at, "ok", status=200))
    return records, float(np.mean(trusted))


def rows_of(
    scenario: Scenario,
    count: int,
    jitter_seconds: float,
    policies: Mapping[str, Policy] = POLICIES,
    calibrations: Mapping[str, Sums] | None = None,
) -> Iterator[Row]:
    """One scenario through the meter; a row per policy, and one inclusive."""
    made = load(replace_sensor(scenario), count)
    assert made.trace is not None
    config = MeterConfig(
        policy=list(policies)[-1], policies=policies, calibrations=calibrations or {}
    )
    meter = Meter(config)
    records, trusted_fraction = play(made, scenario, meter, jitter_seconds)
    truths = [made.trace.truth[record.request_id] for record in records]
    idle = np.array([truth.idle_share_joules for truth in truths])
    active = np.array([truth.prefill_joules + truth.decode_joules for truth in truths])
    shares = np.array([record.energy.idle_share_joules for record in records], float)
    residual = abs(meter.books_at().residual_joules)
    for policy in policies:
        joules = np.array([record.energy.policy_joules[policy] for record in records])
        for view, got, true in (
            ("active", joules, active),
            ("inclusive", joules + shares, active + idle),
        ):
            errors = np.abs(got - true) / true
            yield Row(
                scenario.name,
                policy,
                view,
                len(records),
                float(np.median(errors)),
                float(np.quantile(errors, 0.9)),
                _bias(records, got, true),
                residual,
                made.recomputed_fraction,
                trusted_fraction,
            )


def scenario_rows(count: int, jitter_seconds: float, scenario: Scenario) -> list[Row]:
    """As `rows_of`, for another process."""
    return list(rows_of(scenario, count, jitter_seconds))


def replace_sensor(scenario: Scenario) -> Scenario:
    """The same load whatever the sensor shows: simulated once."""
    return replace(
        scenario,
        name="",
        counter_seconds=0.1,
        has_counter=True,
        averaging_seconds=0.0,
        has_phase_times=False,
    )


def _bias(
    records: Sequence[RequestRecord], got: np.ndarray, true: np.ndarray
) -> dict[str, float]:
    kinds = np.array([record.kind for record in records])
    return {
        kind: float(got[kinds == kind].sum() / true[kinds == kind].sum())
        for kind in LENGTHS
        if (kinds == kind).any()
    }


def wrong_constants() -> dict[str, Policy]:
    """`phase` with one group of constants wrong by a factor of two.

    And with the simulator's own for the first row's hardware (additive parts only):
    what is left then is the method's error, not that of the constants.
    """
    right = CostModel()
    groups = {
        "step": ("step_joules",),
        "prefill": ("prefill_token_joules", "prefill_context_joules"),
        "decode": ("step_joules", "decode_token_joules", "kv_token_joules"),
        "kv": ("kv_token_joules",),
    }
    made: dict[str, Policy] = {"phase": by_phase}
    for group, names in groups.items():
        for factor in (0.5, 2.0):
            changed = {name: factor * getattr(right, name) for name in names}
            cost = replace(right, **changed)
            made[f"phase, {group} x{factor:g}"] = partial(by_phase, cost=cost)
    made["phase, the simulator's own constants"] = partial(by_phase, cost=own_cost())
    return made


def constants_rows(count: int, jitter_seconds: float) -> list[Row]:
    """What constants matter, fitted ones beside wrong ones."""
    default = Scenario("mixed, 8 req/s, constants")
    rows = list(rows_of(default, count, jitter_seconds, wrong_constants()))
    fitted = {"calibrated, from nothing": by_calibration}
    rows += rows_of(default, count, jitter_seconds, fitted)
    resumed = {"calibrated, going on from a saved run": by_calibration}
    calibrations = learnt(replace(default, seed=2), count, jitter_seconds)
    rows += rows_of(default, count, jitter_seconds, resumed, calibrations)
    return rows


def learnt(scenario: Scenario, count: int, jitter_seconds: float) -> Mapping[str, Sums]:
    """What a run of other requests leaves for the next one."""
    meter = Meter()
    play(load(replace_sensor(scenario), count), scenario, meter, jitter_seconds)
    calibration = meter.state().calibration
    assert calibration is not None
    assert calibration.model is not None
    return {calibration.model: calibration.sums}


def own_cost() -> CostModel:
    """The simulator's constants for an H100 and 8B, where memory-bound or not."""
    cost = roofline(engine_config(Scenario("own")))
    joules_per_flop = cost.joules_per_flop + cost.active_watts / cost.flops_per_second
    joules_per_byte = cost.joules_per_byte + cost.active_watts / cost.bytes_per_second
    return CostModel(
        step_joules=joules_per_byte * cost.weight_bytes,
        prefill_token_joules=joules_per_flop * cost.flops_per_token,
        prefill_context_joules=joules_per_flop * cost.attention_flops_per_pair,
        decode_token_joules=cost.joules_per_flop * cost.flops_per_token,
        kv_token_joules=joules_per_byte * cost.kv_bytes_per_token,
    )


SCENARIOS = [
    *(Scenario(f"mixed, {rate} req/s", rate) for rate in (2, 8, 14)),
    Scenario("mixed, 24 req/s (saturated)", 24),
    Scenario("conversation, 8 req/s", kinds=("conversation",)),
    Scenario("code, 8 req/s", kinds=("code",)),
    Scenario("mixed, 8 req/s, phase times", has_phase_times=True),
    Scenario("mixed, 8 req/s, half the prompts cached", repeat_fraction=0.5),
    Scenario("mixed, 14 req/s, KV cache too small", 14, kv_blocks=4000),
    Scenario("reasoning, 8 req/s", kinds=("reasoning",)),
    Scenario("reasoning, 8 req/s, KV too small", kinds=("reasoning",), kv_blocks=1000),
    Scenario("mixed, 8 req/s, 20 ms counter", counter_seconds=0.02),
    Scenario("mixed, 8 req/s, 50 ms counter", counter_seconds=0.05),
    Scenario("mixed, 8 req/s, power only", has_counter=False),
    Scenario(
        "mixed, 8 req/s, power only, 1 s average",
        has_counter=False,
        averaging_seconds=1.0,
    ),
    Scenario("mixed, 3 req/s, A100", 3, preset="a100-8b"),
    Scenario("mixed, 1 req/s, A6000", 1, preset="a6000-8b"),
    Scenario("mixed, 8 req/s, H200", preset="h200-8b"),
    Scenario("mixed, 3 req/s, 70B on 4 H100", 3, preset="h100-70b"),
]


def table(rows: Sequence[Row]) -> list[str]:
    """One line per scenario: every policy's median, more of the last two."""
    lines = [
        f"| scenario | {' | '.join(POLICIES)} | p90: phase, calibrated | bias of "
        "conversation, code: phase | calibrated | inclusive: phase, calibrated "
        "| trusted | computed twice | residual |",
        f"|---|{'---:|' * len(POLICIES)}---:|---|---|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(row.scenario for row in rows):
        own = {(row.policy, row.view): row for row in rows if row.scenario == name}
        medians = [own[policy, "active"].median_error for policy in POLICIES]
        phase, fitted = own["phase", "active"], own["calibrated", "active"]
        inclusive = [
            own[policy, "inclusive"].median_error for policy in ("phase", "calibrated")
        ]
        lines.append(
            f"| {name} | {' | '.join(f'{median:.1%}' for median in medians)} "
            f"| {phase.p90_error:.1%}, {fitted.p90_error:.1%} "
            f"| {_bias_text(phase)} | {_bias_text(fitted)} "
            f"| {inclusive[0]:.1%}, {inclusive[1]:.1%} "
            f"| {phase.trusted_fraction:.0%} | {phase.recomputed_fraction:.0%} "
            f"| {phase.residual_joules * 1e3:.1g} mJ |"
        )
    return lines


def constants_table(rows: Sequence[Row]) -> list[str]:
    """One line per set of constants."""
    return [
        "| constants | median | p90 | bias: conversation, code |",
        "|---|---:|---:|---|",
        *(
            f"| {row.policy} | {row.median_error:.1%} | {row.p90_error:.1%} "
            f"| {_bias_text(row)} |"
            for row in rows
            if row.view == "active"
        ),
    ]


def _bias_text(row: Row) -> str:
    kinds = ("conversation", "code")
    return ", ".join(f"{row.bias[k]:.2f}" if k in row.bias else "-" for k in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000, metavar="N")
    parser.add_argument("--jitter-ms", type=float, default=1.0)
    parser.add_argument("--only", default="", help="scenarios whose name has this")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args()
    began = time.perf_counter()
    jitter_seconds = options.jitter_ms / 1e3
    count = options.requests
    chosen = [scenario for scenario in SCENARIOS if options.only in scenario.name]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        constants = None
        if not options.only:
            constants = pool.submit(constants_rows, count, jitter_seconds)
        found = pool.map(partial(scenario_rows, count, jitter_seconds), chosen)
        rows = [row for some in found for row in some]
        wrong = constants.result() if constants else []
    seconds = time.perf_counter() - began
    note = (
        f"Median and p90 of the relative error per request, {count} requests each; "
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}, {seconds:.0f} s."
    )
    text = "\n".join([note, "", *table(rows), ""])
    if wrong:
        text += "\n".join(["", *constants_table(wrong), ""])
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        shown = [asdict(row) for row in (*rows, *wrong)]
        print(json.dumps({"note": note, "rows": shown}))
    else:
        print(text)


if __name__ == "__main__":
    main()
