"""What one scrape is made of, and how series are read off it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from proxy.meter import MeterState
from proxy.relay.counters import RelayCounters
from proxy.sampler import SamplerStats
from proxy.settlement.calibration import CONSTANTS
from proxy.store.writer import StoreState

Sample = tuple[tuple[str, ...], float]
PHASES = ("prefill", "decode", "idle_share")
TOKEN_TYPES = ("prompt", "cached", "output")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one scrape is made of, taken at one moment on the event loop."""

    meter: MeterState
    relay: RelayCounters
    sampler: SamplerStats | None
    source: str
    loop_lag_seconds: float
    records_without_energy: int
    store: StoreState | None = None

    @property
    def boundary(self) -> str:
        """What is inside the joules."""
        return self.sampler.boundary if self.sampler else "none"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One line of the table: how a metric is called and where its figure is."""

    kind: str
    """`counter` or `gauge`."""
    help: str
    labels: tuple[str, ...]
    samples: Callable[[Snapshot], Iterable[Sample]]


def one(value: float | None) -> list[Sample]:
    """A metric without labels; unknown is absent, not 0."""
    return [] if value is None else [((), value)]


def accounts(snapshot: Snapshot) -> Iterator[Sample]:
    """Joules by account; nothing without a sensor."""
    if snapshot.sampler is None:
        return
    books = snapshot.meter.books
    for account, joules in (
        ("prefill", books.prefill_joules),
        ("decode", books.decode_joules),
        ("idle_share", books.idle_share_joules),
        ("idle", books.idle_joules),
        ("unattributed", sum(books.unattributed_joules.values())),
    ):
        yield (snapshot.boundary, account), joules


def unattributed(snapshot: Snapshot) -> Iterator[Sample]:
    """Joules of no request, by reason."""
    for reason, joules in snapshot.meter.books.unattributed_joules.items():
        yield (snapshot.boundary, reason), joules


def by_class(snapshot: Snapshot) -> Iterator[Sample]:
    """Joules of settled requests, by class and phase."""
    for labels, joules in snapshot.meter.class_joules.items():
        for phase, value in zip(PHASES, joules, strict=True):
            key = (labels.model, labels.kind, labels.tenant)
            yield (*key, phase, snapshot.meter.policy), value


def tokens(snapshot: Snapshot) -> Iterator[Sample]:
    """Tokens of settled requests, by class and type."""
    for labels, counts in snapshot.meter.class_tokens.items():
        for kind, count in zip(TOKEN_TYPES, counts, strict=True):
            yield (labels.model, labels.kind, labels.tenant, kind), count


def policies(snapshot: Snapshot) -> Iterator[Sample]:
    """Active joules under every policy, by phase."""
    for policy, joules in snapshot.meter.policy_joules.items():
        for phase, value in zip(PHASES, joules, strict=False):
            yield (policy, phase), value


def fitted(snapshot: Snapshot) -> list[Sample]:
    """1 while fitted constants are in use."""
    calibration = snapshot.meter.calibration
    return [] if calibration is None else [((), float(calibration.is_fitted))]


def constants(snapshot: Snapshot) -> Iterator[Sample]:
    """Fitted constants; nothing before the first fit."""
    calibration = snapshot.meter.calibration
    if calibration is not None and calibration.fit is not None:
        for name, joules in zip(CONSTANTS, calibration.fit.joules, strict=True):
            yield (name,), float(joules)


def stored(snapshot: Snapshot, figure: Callable[[StoreState], float]) -> list[Sample]:
    """A figure of the store; nothing without one."""
    return [] if snapshot.store is None else [((), float(figure(snapshot.store)))]


def by_device(values: Iterable[tuple[str, float]], boundary: str) -> list[Sample]:
    """One value per device."""
    return [((boundary, device), value) for device, value in values]
