"""Several sensors around one engine, metered side by side: `gpu`, `host`, `node`.

Rule: boundaries overlap, so joules of one are never added to another's. Each has
a meter of its own; all hear the same requests. The first one, the headline, makes
the records; what the others measured is put beside it. Pure, like the meter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from proxy.meter.config import MeterConfig
from proxy.meter.estimate import EnergySoFar
from proxy.meter.ledger.accounts import Books, RequestEnergy, RequestRecord
from proxy.meter.meter import Meter
from proxy.meter.state import MeterState
from proxy.wire.events import Event, PowerSampled, RequestOpened

IDLE_ACCELERATORS = "idle_accelerators"
"""GPUs that the source sees and the engine does not use: inside the node's joules,
outside the engine's."""
WHOLE = "node"
"""The boundary that contains all the others; those are beside each other."""


@dataclass(slots=True)
class Ratio:
    """Joules of one boundary over those of one around it, over the same time."""

    inner: str
    outer: str
    inner_joules: float = 0.0
    outer_joules: float = 0.0
    seconds: float = 0.0
    """How long both were measured."""
    until_seconds: float = -math.inf
    """Compared up to here."""

    @property
    def ratio(self) -> float | None:
        """None until both have measured something."""
        return self.inner_joules / self.outer_joules if self.outer_joules > 0 else None


@dataclass(slots=True)
class _Pending:
    """A request whose record is not handed out yet."""

    record: RequestRecord | None = None
    held_since_seconds: float = math.inf
    energies: dict[str, RequestEnergy] = field(default_factory=dict)


class Boundaries:
    """The meters of one engine; what is asked of it as a meter is the headline's."""

    def __init__(self, configs: Mapping[str, MeterConfig]) -> None:
        """By boundary, at least one; the first is the headline."""
        self._meters = {name: Meter(config) for name, config in configs.items()}
        self.headline = next(iter(self._meters))
        self._others = {n: m for n, m in self._meters.items() if n != self.headline}
        self._outside: dict[str, Meter] = {}
        self._pending: dict[int, _Pending] = {}
        self._serials = 0
        self._ratios: dict[str, Ratio] = {}
        self.unjoined_total = dict.fromkeys(self._others, 0)
        """Records handed out without the joules of this boundary."""

    @property
    def names(self) -> tuple[str, ...]:
        """The boundaries, the headline first."""
        return tuple(self._meters)

    def books_of(self, boundary: str, at_seconds: float | None = None) -> Books:
        """The accounts of one boundary. Raises KeyError for another name."""
        return self._meters[boundary].books_at(at_seconds)

    def state_of(self, boundary: str) -> MeterState:
        """The picture of one boundary. Raises KeyError for another name."""
        return self._meters[boundary].state()

    def outside_books(
        self, boundary: str, at_seconds: float | None = None
    ) -> Books | None:
        """What the source's other devices used; None where it showed none."""
        meter = self._outside.get(boundary)
        return None if meter is None else meter.books_at(at_seconds)

    def outside_state(self, boundary: str) -> MeterState | None:
        """The picture of the source's other devices; None where it showed none."""
        meter = self._outside.get(boundary)
        return None if meter is None else meter.state()

    def ratios(self) -> Sequence[Ratio]:
        """Each boundary inside the node's, over the node's."""
        return tuple(replace(ratio) for ratio in self._ratios.values())

    def feed(self, event: Event) -> None:
        """One of the five messages: a reading is its boundary's, the rest is all's.

        Raises KeyError for a reading of a boundary that is not metered.
        """
        if isinstance(event, PowerSampled):
            self._sample(event)
            return
        if isinstance(event, RequestOpened):
            self._serials += 1
            self._pending[self._serials] = _Pending()
        for meter in self._meters.values():
            meter.feed(event)

    def _sample(self, event: PowerSampled) -> None:
        """The devices of the engine and those outside it are metered apart."""
        name = event.boundary
        inside = tuple(r for r in event.readings if not r.is_outside)
        outside = tuple(r for r in event.readings if r.is_outside)
        is_failed = event.gap_reason is not None
        if inside or not outside:
            self._meters[name].feed(msgspec.structs.replace(event, readings=inside))
        if outside:
            self._outside.setdefault(name, Meter())
        if outside or (is_failed and name in self._outside):
            self._outside[name].feed(msgspec.structs.replace(event, readings=outside))

    def settle(self, now_seconds: float) -> list[RequestRecord]:
        """Close what is final at every boundary; the records to be filed now.

        A record waits for the others' joules, each for so long as that sensor
        needs and at most `MAX_JOIN_SECONDS`; a sensor that is down is not
        waited for. What has not come by then is unknown in the record.
        """
        for record in self._meters[self.headline].settle(now_seconds):
            pending = self._pending[record.serial]
            pending.record, pending.held_since_seconds = record, now_seconds
        for name, meter in self._others.items():
            for record in meter.settle(now_seconds):
                if record.serial in self._pending:  # else it came too late
                    self._pending[record.serial].energies[name] = record.energy
        for meter in self._outside.values():
            meter.settle(now_seconds)
        self._compare()
        return self._joined(now_seconds)

    def stop(self, now_seconds: float) -> float:
        """No request will come any more; how long the last records take at most."""
        for meter in self._meters.values():
            meter.stop(now_seconds)
        return max(meter.deadlines.stop_seconds for meter in self._meters.values())

    def estimate(self, key: int, at_seconds: float) -> EnergySoFar:
        """What a request has consumed so far, inside the headline's boundary."""
        return self._meters[self.headline].estimate(key, at_seconds)

    def books_at(self, at_seconds: float | None = None) -> Books:
        """The headline's accounts."""
        return self.books_of(self.headline, at_seconds)

    def state(self) -> MeterState:
        """The headline's picture; a record that waits for the others is unsettled."""
        state = self.state_of(self.headline)
        return replace(state, unsettled_requests=len(self._pending))

    def _joined(self, now_seconds: float) -> list[RequestRecord]:
        """Records that need not wait any more, in order of settlement."""
        if not self._pending:
            return []
        waits = {n: m.join_seconds(now_seconds) for n, m in self._others.items()}
        done = [
            pending.record
            for pending in self._pending.values()
            if pending.record is not None
            and all(
                name in pending.energies
                or now_seconds >= pending.held_since_seconds + seconds
                for name, seconds in waits.items()
            )
        ]
        done.sort(key=lambda record: record.sequence)
        return [self._handed_out(record) for record in done]

    def _handed_out(self, record: RequestRecord) -> RequestRecord:
        pending = self._pending.pop(record.serial)
        if not self._others:
            return record
        beside: dict[str, RequestEnergy] = {}
        for name in self._others:
            energy = pending.energies.get(name)
            if energy is None:
                policy = record.energy.policy
                energy = RequestEnergy(None, None, None, None, policy, "unknown")
            if energy.energy_joules is None:
                self.unjoined_total[name] += 1
            beside[name] = energy
        return replace(record, energy=replace(record.energy, boundaries=beside))

    def _compare(self) -> None:
        """Add what inner and outer boundaries measured since they were compared."""
        if WHOLE not in self._meters:
            return
        inner: dict[str, Meter] = {
            name: meter for name, meter in self._meters.items() if name != WHOLE
        }
        for meter in self._outside.values():
            inner[IDLE_ACCELERATORS] = meter
        for name, meter in inner.items():
            ratio = self._ratios.setdefault(name, Ratio(name, WHOLE))
            _advance(ratio, meter, self._meters[WHOLE])


def _advance(ratio: Ratio, inner: Meter, outer: Meter) -> None:
    """Count what both measured, up to where both are settled.

    A gap of either is left out: what one sensor missed must not look like a share.
    """
    meters = (inner, outer)
    end = min(meter.books_at().settled_seconds for meter in meters)
    if end == -math.inf:
        return
    if ratio.until_seconds == -math.inf:  # where the later of the two begins
        ratio.until_seconds = max(m.books_at(-math.inf).settled_seconds for m in meters)
    if end <= ratio.until_seconds:
        return
    starts = [meter.books_at(ratio.until_seconds) for meter in meters]
    ends = [meter.books_at(end) for meter in meters]
    if all(a.gap_seconds == b.gap_seconds for a, b in zip(starts, ends, strict=True)):
        ratio.inner_joules += ends[0].measured_joules - starts[0].measured_joules
        ratio.outer_joules += ends[1].measured_joules - starts[1].measured_joules
        ratio.seconds += end - ratio.until_seconds
    ratio.until_seconds = end
