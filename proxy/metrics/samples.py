"""A snapshot of everything that one scrape shows, and how series are read off it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from proxy.meter.attribution.evidence import DOUBTS
from proxy.meter.ledger import RequestRecord
from proxy.meter.meter import Ratio
from proxy.meter.state import MeterState
from proxy.power.engine_load import GaugeStats
from proxy.power.gate import REASONS
from proxy.power.sampler import SamplerStats
from proxy.process.tally import Tally, coarse_edges
from proxy.recording.recorder import RecordingState
from proxy.relay.counters import RelayCounters
from proxy.wire.api import StoreState
from proxy.wire.facts import HardwareState

Sample = tuple[tuple[str, ...], float]
PHASES = ("prefill", "decode", "idle_share")
TOKEN_TYPES = ("prompt", "cached", "output")
DELAY_EDGES = coarse_edges(-4, 5)


@dataclass(frozen=True, slots=True)
class Measured:
    """One boundary at one moment, as the metrics and the admin API show it."""

    boundary: str
    source: str
    meter: MeterState
    sampler: SamplerStats | None
    """None where there is no sensor, and so no energy."""
    outside: MeterState | None = None
    """The GPUs of the host that are not the engine's; None where none is seen."""
    bare_idle_watts: float | None = None
    """With no weights loaded, as told."""
    settle_limit_seconds: float = math.inf
    """Unsettled for longer than this, something is wrong."""

    @property
    def is_settling(self) -> bool:
        """Whether windows are closed in time: energy reaches requests."""
        return self.meter.unsettled_seconds <= self.settle_limit_seconds

    @property
    def model_idle_watts(self) -> float | None:
        """Loaded less bare idle, at rest if that was seen: the resident weights."""
        rest_watts = self.meter.rest_watts
        loaded_watts = self.meter.idle_watts if rest_watts is None else rest_watts
        if loaded_watts is None or self.bare_idle_watts is None:
            return None
        return loaded_watts - self.bare_idle_watts


@dataclass(frozen=True, slots=True)
class EngineSnapshot:
    """One engine as a scrape shows it, taken at one moment on the event loop."""

    engine: str
    """The upstream's name."""
    measured: Sequence[Measured]
    """Every boundary; the first is the headline, whose joules requests have."""
    relay: RelayCounters
    in_flight: int = 0
    is_up: bool = True
    is_draining: bool = False
    records_without_energy: int = 0
    ratios: Sequence[Ratio] = ()
    unjoined_records: Mapping[str, int] = field(default_factory=dict)
    legs: Mapping[str, int] = field(default_factory=dict)
    """Settled halves of requests that two engines serve, by leg."""
    leg_joules: Mapping[str, float] = field(default_factory=dict)
    """Their energy."""
    gauges: GaugeStats | None = None
    is_health_asked: bool = True
    """The watch of its health asks in time."""
    boards: Sequence[tuple[str, HardwareState]] = ()
    """Boundary and state of every board that tells one."""
    slowdown_seconds: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """By boundary, device and reason."""
    limit_changes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By boundary and device."""
    at_seconds: float | None = None
    """When it was taken, on the monotonic clock; None: the ages of things are not
    asked for."""
    bin_requests: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Requests answered in full whose energy is known, by length bins."""
    bin_joules: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Their energy."""

    @property
    def meter(self) -> MeterState:
        """The headline's."""
        return self.measured[0].meter


@dataclass(frozen=True, slots=True)
class ProcessStates:
    """The processes of one proxy, where its relays are some of their own."""

    up: Sequence[int]
    """Numbers of the relays that are connected."""
    relay_restarts: Mapping[int, int]
    """Of each relay, by its number, from 1."""
    meter_restarts: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one scrape shows: each engine, and what they share."""

    engines: Sequence[EngineSnapshot]
    relay: RelayCounters
    """Counts of clients and refusals; an engine's are in its snapshot."""
    instance: str = ""
    """Name of the proxy among others."""
    host: str = ""
    """Name of the machine."""
    loop_lag_seconds: float = 0.0
    loop_delay_seconds: Tally = field(default_factory=lambda: Tally(DELAY_EDGES))
    """Lateness of every beat."""
    store: StoreState | None = None
    recording: RecordingState | None = None
    """None: the traffic is not recorded."""
    loop_errors: Mapping[str, int] = field(default_factory=dict)
    """Errors by loop that went on."""
    dropped_log_lines: int = 0
    """Lines of the log that nobody took in time."""
    admin_refused: Mapping[str, int] = field(default_factory=dict)
    """Requests to the admin API that were refused, by why."""
    admin_changes: Mapping[str, int] = field(default_factory=dict)
    """Upstreams drained and resumed."""
    reloads: Mapping[str, int] = field(default_factory=dict)
    """Files of `--config` read again on SIGHUP, by what became of them."""
    processes: ProcessStates | None = None
    """None: there is one."""


EngineSamples = Callable[[EngineSnapshot], Iterable[Sample]]
Samples = Callable[[Snapshot], Iterable[Sample]]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One line of the table: how a metric is called and where its figure is."""

    kind: str
    """`counter` or `gauge`."""
    help: str
    labels: tuple[str, ...]
    samples: Samples


@dataclass(frozen=True, slots=True)
class RequestMetric:
    """A histogram observed once for every settled request that has the figure."""

    help: str
    edges: tuple[float, ...]
    value: Callable[[RequestRecord], float | None]
    labels: tuple[str, ...] = ("engine", "model", "kind", "tenant", "outcome")
    kind: str = "histogram"


@dataclass(frozen=True, slots=True)
class TallyMetric:
    """A histogram that something else counts, all the time."""

    help: str
    labels: tuple[str, ...]
    tallies: Callable[[Snapshot], Iterable[tuple[tuple[str, ...], Tally]]]
    kind: str = "histogram"


@dataclass(frozen=True, slots=True)
class EngineMetric:
    """The same, for a figure that each engine has."""

    kind: str
    help: str
    labels: tuple[str, ...]
    """Labels beside `engine`."""
    samples: EngineSamples

    def of_all(self) -> MetricSpec:
        """The metric with the engine's name as its first label."""

        def samples(snapshot: Snapshot) -> Iterator[Sample]:
            for engine in snapshot.engines:
                for labels, value in self.samples(engine):
                    yield (engine.engine, *labels), value

        return MetricSpec(self.kind, self.help, ("engine", *self.labels), samples)


def one(value: float | None) -> list[Sample]:
    """A metric without labels; unknown is absent, not 0."""
    return [] if value is None else [((), value)]


def by_boundary(figure: Callable[[Measured], float | None]) -> EngineSamples:
    """One value for each boundary that has a sensor; unknown is absent."""

    def samples(snapshot: EngineSnapshot) -> Iterator[Sample]:
        for measured in _with_sensor(snapshot):
            value = figure(measured)
            if value is not None:
                yield (measured.boundary,), value

    return samples


def by_sensor(figure: Callable[[SamplerStats], float]) -> EngineSamples:
    """One value for each sensor."""

    def samples(snapshot: EngineSnapshot) -> Iterator[Sample]:
        for measured in snapshot.measured:
            if measured.sampler is not None:
                labels = (measured.boundary, measured.source)
                yield labels, float(figure(measured.sampler))

    return samples


def rejections(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Figures that were not believed, by every reason there is: a rate needs its 0."""
    for measured in snapshot.measured:
        if measured.sampler is not None:
            for reason in REASONS:
                count = measured.sampler.rejected.get(reason, 0)
                yield (measured.boundary, measured.source, reason), float(count)


def by_device(figures: Callable[[Measured], Mapping[str, float]]) -> EngineSamples:
    """One value for each device of each boundary."""

    def samples(snapshot: EngineSnapshot) -> Iterator[Sample]:
        for measured in _with_sensor(snapshot):
            for device, value in figures(measured).items():
                yield (measured.boundary, device), value

    return samples


def by_board(figure: Callable[[HardwareState], float | None]) -> EngineSamples:
    """One value for each board that tells this one."""

    def samples(snapshot: EngineSnapshot) -> Iterator[Sample]:
        for boundary, state in snapshot.boards:
            value = figure(state)
            if value is not None:
                yield (boundary, state.device), float(value)

    return samples


def ecc_errors(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Errors of memory by board, corrected and not."""
    for boundary, state in snapshot.boards:
        for kind, count in (
            ("corrected", state.corrected_ecc_errors),
            ("uncorrected", state.uncorrected_ecc_errors),
        ):
            if count is not None:
                yield (boundary, state.device, kind), float(count)


def slowdowns(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Seconds of slowdown by board; 0 by the commonest reason on one that tells."""
    told = {
        (boundary, state.device, "sw_power_cap"): 0.0
        for boundary, state in snapshot.boards
        if state.throttle_reasons is not None
    }
    yield from sorted({**told, **snapshot.slowdown_seconds}.items())


def limit_changes(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """How often a board's power limit was another one."""
    for key, count in sorted(snapshot.limit_changes.items()):
        yield key, float(count)


def accounts(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Joules by boundary and account; nothing without a sensor."""
    for measured in _with_sensor(snapshot):
        books = measured.meter.books
        for account, joules in (
            ("prefill", books.prefill_joules),
            ("decode", books.decode_joules),
            ("idle_share", books.idle_share_joules),
            ("idle", books.idle_joules),
            ("unattributed", sum(books.unattributed_joules.values())),
        ):
            yield (measured.boundary, account), joules


def unattributed(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Joules of no request, by boundary and reason."""
    for measured in _with_sensor(snapshot):
        for reason, joules in measured.meter.books.unattributed_joules.items():
            yield (measured.boundary, reason), joules


def idle_watts(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Loaded idle by boundary, and where the figure is from."""
    for measured in _with_sensor(snapshot):
        if measured.meter.idle_watts is not None:
            labels = (measured.boundary, measured.meter.idle_source)
            yield labels, measured.meter.idle_watts


def ratios(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Inner over outer joules; nothing before both were measured."""
    for ratio in snapshot.ratios:
        if ratio.ratio is not None:
            yield (ratio.inner, ratio.outer), ratio.ratio


def refusals(snapshot: Snapshot) -> Iterator[Sample]:
    """Replies of the relay itself; the reasons are its own, and few."""
    for (status, reason), count in sorted(snapshot.relay.refusals.items()):
        yield (str(status), reason), float(count)


def _with_sensor(snapshot: EngineSnapshot) -> Iterator[Measured]:
    return (measured for measured in snapshot.measured if measured.sampler is not None)


def by_class(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Joules of settled requests, by class and phase."""
    for labels, joules in snapshot.meter.class_joules.items():
        for phase, value in zip(PHASES, joules, strict=True):
            key = (labels.model, labels.kind, labels.tenant)
            yield (*key, phase, snapshot.meter.policy), value


def tokens(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Tokens of settled requests, by class and type."""
    for labels, counts in snapshot.meter.class_tokens.items():
        for kind, count in zip(TOKEN_TYPES, counts, strict=True):
            yield (labels.model, labels.kind, labels.tenant, kind), count


def policies(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Active joules under every policy, by phase."""
    for policy, joules in snapshot.meter.policy_joules.items():
        for phase, value in zip(PHASES, joules, strict=False):
            yield (policy, phase), value


def sensor_age(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Time since each sensor last answered; nothing of one that never did."""
    for measured in snapshot.measured:
        stats = measured.sampler
        if stats is not None and snapshot.at_seconds is not None:
            age_seconds = snapshot.at_seconds - stats.heard_seconds
            if math.isfinite(age_seconds):
                labels = (measured.boundary, measured.source)
                yield labels, max(age_seconds, 0.0)


def relays_up(snapshot: Snapshot) -> Iterator[Sample]:
    """Whether each relay is connected; nothing where there is one process."""
    processes = snapshot.processes
    if processes is not None:
        for relay in sorted(processes.relay_restarts):
            yield (str(relay),), float(relay in processes.up)


def restarts(snapshot: Snapshot) -> Iterator[Sample]:
    """How often each process was started again; nothing where there is one."""
    processes = snapshot.processes
    if processes is not None:
        yield ("meter",), float(processes.meter_restarts)
        for relay, count in sorted(processes.relay_restarts.items()):
            yield (f"relay-{relay}",), float(count)


def overheads(snapshot: Snapshot) -> Iterator[tuple[tuple[str, ...], Tally]]:
    """What the relay itself adds, on the way to each engine and back."""
    for engine in snapshot.engines:
        yield (engine.engine, "request"), engine.relay.request_seconds
        yield (engine.engine, "reply"), engine.relay.reply_seconds


def is_simulated(snapshot: Snapshot) -> str:
    """Whether any joule comes from a simulator, as a label."""
    found = any(
        measured.sampler is not None and measured.sampler.is_simulated
        for engine in snapshot.engines
        for measured in engine.measured
    )
    return "true" if found else "false"


def fitted(snapshot: EngineSnapshot) -> list[Sample]:
    """1 while fitted constants are in use."""
    calibration = snapshot.meter.calibration
    return [] if calibration is None else [((), float(calibration.is_fitted))]


def doubts(snapshot: EngineSnapshot) -> list[Sample]:
    """1 for the reason why they are not trusted, 0 for the others."""
    calibration = snapshot.meter.calibration
    if calibration is None:
        return []
    kind = calibration.doubt.kind if calibration.doubt else None
    return [((reason,), float(reason == kind)) for reason in DOUBTS]


def constants(snapshot: EngineSnapshot) -> Iterator[Sample]:
    """Fitted constants; nothing before the first fit."""
    calibration = snapshot.meter.calibration
    if calibration is not None and calibration.fit is not None:
        for name, (joules, _, _) in calibration.fit.constants.items():
            yield (name,), joules


def recorded(
    snapshot: Snapshot, samples: Callable[[RecordingState], list[Sample]]
) -> list[Sample]:
    """Samples of the recording; nothing without one."""
    return [] if snapshot.recording is None else samples(snapshot.recording)


def stored(snapshot: Snapshot, figure: Callable[[StoreState], float]) -> list[Sample]:
    """A figure of the store; nothing without one."""
    return [] if snapshot.store is None else [((), float(figure(snapshot.store)))]
