"""The meter of one engine: events in, settled records out.

Several sensors may be around one engine, each with its boundary: `gpu`, `host`,
`node`. They overlap, so joules of one are never added to another's. Who ran when is
kept once, in the engine's timeline; each boundary divides its own joules over it. The
first boundary, the headline, makes the records; what the others measured is put beside
it.

Pure: time enters by argument. The relay, the sensors, the watch of the hardware and
the scrape of the engine's gauges `feed` it; a beat calls `settle`. All calls come from
one thread (the event loop's); instants are monotonic seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from proxy.meter.activity.request import RequestTimeline
from proxy.meter.activity.speculation import Speculation
from proxy.meter.activity.timeline import EngineTimeline
from proxy.meter.boundary import Boundary
from proxy.meter.config import MeterConfig
from proxy.meter.deadlines import Deadlines
from proxy.meter.estimate import EnergySoFar, estimated_energy
from proxy.meter.ledger import Books, RequestEnergy, RequestRecord, unknown_energy
from proxy.meter.state import MeterState
from proxy.wire.events import (
    Event,
    HardwareObserved,
    PowerSampled,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)
from proxy.wire.facts import UNMETERED, Labels

IDLE_ACCELERATORS = "idle_accelerators"
"""GPUs that the source sees and the engine does not use: inside the node's joules,
outside the engine's."""
WHOLE = "node"
"""The boundary that contains all the others; those are beside each other."""

NOTE_SECONDS = 0.05
"""A record that comes sooner needs no note: without a sensor it does."""

FINAL_ENERGIES = 4096
"""Newest records kept: a reply that waits for its energy asks for it afterwards."""


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


@dataclass(slots=True, eq=False)
class _Request:
    """A request that some boundary has yet to settle."""

    opened: RequestOpened
    timeline: RequestTimeline
    closed: RequestClosed | None = None
    energies: dict[str, RequestEnergy] = field(default_factory=dict)
    """By boundary, as they are settled or given up."""
    settled_at_seconds: float = math.inf
    """When the headline's was: the record waits for the others since."""
    is_handed_out: bool = False
    is_noted: bool = False
    """A note of it was handed out: what is known before its energy is."""

    @property
    def labels(self) -> Labels:
        """Final once the request is closed."""
        final = None if self.closed is None else self.closed.labels
        return final or self.opened.labels


class Meter:
    """The boundaries of one engine; what is asked without naming one is the first's."""

    def __init__(self, config: MeterConfig | None = None) -> None:
        self.config = config = config or MeterConfig()
        self._timeline = EngineTimeline(has_sensor=config.has_sensor)
        # idle watts are given, and fits were saved, for the headline
        beside = replace(
            config, idle_watts=None, calibrations={}, stale_models=frozenset()
        )
        self.headline, *others = config.boundaries
        self._head = Boundary(config, self._timeline, self.headline)
        self._others = {name: Boundary(beside, self._timeline, name) for name in others}
        self._boundaries = {self.headline: self._head, **self._others}
        self._outside: dict[str, Boundary] = {}
        self._nobody = EngineTimeline()
        """Who runs on the devices outside: not this engine's business."""
        self._requests: dict[int, _Request] = {}
        self._ended: dict[int, _Request] = {}
        """Those of them that are closed."""
        self._final: dict[int, RequestEnergy] = {}
        self._unrecorded = 0
        self._ratios: dict[str, Ratio] = {}
        self.unjoined_total = dict.fromkeys(others, 0)
        """Records handed out without the joules of this boundary."""
        self.legs_total: Counter[str] = Counter()
        """Records of halves of requests that two engines serve, by leg."""
        self.leg_joules: dict[str, float] = {}
        """The known energy of those."""

    @property
    def names(self) -> tuple[str, ...]:
        """The boundaries, the headline first."""
        return tuple(self._boundaries)

    def feed(self, event: Event) -> None:
        """Something was seen; what is said of a request that is not open is ignored.

        Raises KeyError for a reading of a boundary that is not metered, ValueError
        for a request whose key is in use.
        """
        if isinstance(event, TokensReceived):  # first, as most are
            self._timeline.receive(event)
        elif isinstance(event, PowerSampled):
            self._sample(event)
        elif isinstance(event, RequestOpened):
            self._open(event)
        elif isinstance(event, RequestClosed):
            self._close(event)
        elif isinstance(event, HardwareObserved):
            self._boundaries[event.boundary].shared_because = event.shared_because
        elif self.config.has_sensor:
            self._timeline.observe(event)

    def settle(
        self, now_seconds: float, late_seconds: float = 0.0
    ) -> list[RequestRecord]:
        """Close every window whose facts are known; the records now final.

        `late_seconds` is how long after it was due this call comes: so late were reads
        that came meanwhile.
        A record waits for the joules of the other boundaries, each for so long as its
        sensor needs and within bounds; a sensor that is down is not waited for. What
        has not come by then is unknown in the record.
        """
        timeline, boundaries = self._timeline, self._boundaries.values()
        timeline.lateness.beat(now_seconds, late_seconds)
        for each in (timeline, self._nobody):
            each.advance(now_seconds, self._head.waits.asked.straggler_seconds)
        for boundary in (*boundaries, *self._outside.values()):
            boundary.settle(now_seconds)
        timeline.forget(
            min(boundary.settled_seconds for boundary in boundaries),
            now_seconds
            - max(boundary.waits.current.forget_seconds for boundary in boundaries),
        )
        self._compare()
        return self._records(now_seconds)

    def notes(self, now_seconds: float) -> list[RequestRecord]:
        """Requests that ended and still wait for their energy, each once.

        A process that is killed then leaves the note instead of a record.
        """
        noted: list[RequestRecord] = []
        for key, request in self._ended.items():
            closed = request.closed
            if closed is None or request.is_noted or request.is_handed_out:
                continue
            if now_seconds >= closed.at_seconds + NOTE_SECONDS:
                request.is_noted = True
                note = self.note_of(key)
                if note is not None:
                    noted.append(note)
        return noted

    def note_of(self, key: int) -> RequestRecord | None:
        """All but the energy of a request that ended; None: it has its record."""
        request = self._ended.get(key)
        if request is None or request.closed is None or request.is_handed_out:
            return None
        unknown = unknown_energy(self.config.policy)
        return self._record_with(request, request.closed, unknown)

    def stop(self, now_seconds: float) -> float:
        """No request will come any more; how long the last record takes at most."""
        return max(
            boundary.waits.stop(now_seconds) for boundary in self._boundaries.values()
        )

    def estimate(self, key: int, at_seconds: float) -> EnergySoFar:
        """What a request has consumed so far; no side effects, and never a wait."""
        request = self._requests.get(key)
        if request is not None and self.headline in request.energies:
            return EnergySoFar(request.energies[self.headline], is_settled=True)
        is_cut = (
            request is not None
            and request.closed is not None
            and request.closed.is_partly_unseen
        )
        if request is None or is_cut or not self.config.has_sensor:
            unknown = unknown_energy(self.config.policy)
            return EnergySoFar(self._final.get(key, unknown), is_settled=True)
        energy = estimated_energy(
            request.timeline, self._timeline, self._head, at_seconds=at_seconds
        )
        return EnergySoFar(energy, is_settled=False)

    def running(self) -> list[tuple[RequestOpened, RequestTimeline]]:
        """The requests that have not ended, oldest first."""
        return [
            (request.opened, request.timeline)
            for key, request in self._requests.items()
            if key not in self._ended
        ]

    def books_at(self, at_seconds: float | None = None) -> Books:
        """Accounts up to an instant (None: all that is settled); no side effects."""
        return self._head.books_at(at_seconds)

    def state(self) -> MeterState:
        """One consistent picture; a record that waits for the others is unsettled."""
        return replace(self._head.state(), unsettled_requests=self._unrecorded)

    def books_of(self, boundary: str, at_seconds: float | None = None) -> Books:
        """The accounts of one boundary. Raises KeyError for another name."""
        return self._boundaries[boundary].books_at(at_seconds)

    def speculation_at(self, at_seconds: float | None = None) -> Speculation | None:
        """Tokens that the engine drafted and accepted; None where it tells of none."""
        return self._timeline.speculation.totals_at(at_seconds)

    def shared_because(self, boundary: str) -> str | None:
        """Why a boundary's joules are not the engine's alone. Raises KeyError."""
        return self._boundaries[boundary].shared_because

    def oldest_of(self, boundary: str) -> float | None:
        """The earliest instant whose accounts are known. Raises KeyError."""
        return self._boundaries[boundary].ledger.oldest_seconds

    def state_of(self, boundary: str) -> MeterState:
        """The picture of one boundary. Raises KeyError for another name."""
        return self._boundaries[boundary].state()

    def deadlines_of(self, boundary: str) -> Deadlines:
        """The waits of one boundary. Raises KeyError for another name."""
        return self._boundaries[boundary].waits.deadlines()

    def outside_books(
        self, boundary: str, at_seconds: float | None = None
    ) -> Books | None:
        """What the source's other devices used; None where it showed none."""
        outside = self._outside.get(boundary)
        return None if outside is None else outside.books_at(at_seconds)

    def outside_state(self, boundary: str) -> MeterState | None:
        """The picture of the source's other devices; None where it showed none."""
        outside = self._outside.get(boundary)
        return None if outside is None else outside.state()

    def ratios(self) -> Sequence[Ratio]:
        """Each boundary inside the node's, over the node's."""
        return tuple(replace(ratio) for ratio in self._ratios.values())

    # what is seen

    def _open(self, event: RequestOpened) -> None:
        if event.facts.route == UNMETERED:
            self._timeline.unmetered.open(event.key, event.at_seconds)
            return
        timeline = self._timeline.open(event)
        self._requests[event.key] = _Request(event, timeline)
        self._unrecorded += 1
        for boundary in self._boundaries.values():
            boundary.open(event.key, event.labels)

    def _close(self, event: RequestClosed) -> None:
        request = self._requests.get(event.key)
        if request is None:
            self._timeline.unmetered.close(event.key, event.at_seconds)
            return
        if request.closed is not None:
            return
        request.closed = event
        if request.opened.labels.is_provisional:
            for boundary in self._boundaries.values():
                boundary.classify(event.key, request.labels)
        self._ended[event.key] = request
        self._timeline.close(event)

    def _sample(self, event: PowerSampled) -> None:
        """The devices of the engine and those outside it are metered apart."""
        name, reason = event.boundary, event.gap_reason
        outside = tuple(r for r in event.readings if r.is_outside)
        if not outside:
            self._boundaries[name].sample(event)
            if reason is not None and name in self._outside:
                self._outside[name].sample(event)
            return
        if name not in self._outside:
            self._outside[name] = Boundary(MeterConfig(), self._nobody)
        at_seconds = event.at_seconds
        self._outside[name].sample(PowerSampled(name, at_seconds, outside))
        inside = tuple(r for r in event.readings if not r.is_outside)
        if inside:
            self._boundaries[name].sample(PowerSampled(name, at_seconds, inside))

    # what is final

    def _records(self, now_seconds: float) -> list[RequestRecord]:
        """Records that need not wait any more, in order of settlement."""
        if not self._ended:
            return []
        waits = {n: b.waits.join_seconds(now_seconds) for n, b in self._others.items()}
        records: list[tuple[float, float, RequestRecord]] = []
        boundaries = tuple(self._boundaries.items())
        for key, request in list(self._ended.items()):
            energies = request.energies
            for name, boundary in boundaries:  # ask those that have not told yet
                if name not in energies and boundary.is_done(
                    request.timeline, now_seconds
                ):
                    energy = boundary.finish(request.timeline)
                    if request.closed is not None and request.closed.is_partly_unseen:
                        energy = unknown_energy(self.config.policy)
                    energies[name] = energy
                    if boundary is self._head:
                        request.settled_at_seconds = now_seconds
            if not energies:
                continue  # no boundary has told yet
            since = request.settled_at_seconds
            if not request.is_handed_out and all(
                name in energies or now_seconds >= since + wait
                for name, wait in waits.items()
            ):
                record = self._record_of(request)
                if record is not None:
                    request.is_handed_out = True
                    records.append((since, record.finished_seconds, record))
            if request.is_handed_out and len(energies) == len(self._boundaries):
                self._timeline.leave(request.timeline)
                del self._ended[key], self._requests[key]
        records.sort(key=lambda each: each[:2])
        return [record for *_, record in records]

    def _record_of(self, request: _Request) -> RequestRecord | None:
        """The record of a request that the headline has settled, or given up."""
        energy, closed = request.energies.get(self.headline), request.closed
        if energy is None or closed is None:
            return None
        self._unrecorded -= 1
        self._final[closed.key] = energy
        if len(self._final) > FINAL_ENERGIES:
            del self._final[next(iter(self._final))]
        leg = request.opened.facts.leg
        if leg is not None:
            self.legs_total[leg] += 1
            self.leg_joules[leg] = self.leg_joules.get(leg, 0.0) + (
                energy.energy_joules or 0.0
            )
        if self._others:
            energy = replace(energy, boundaries=self._beside(request))
        return self._record_with(request, closed, energy)

    def _record_with(
        self, request: _Request, closed: RequestClosed, energy: RequestEnergy
    ) -> RequestRecord:
        opened, timeline = request.opened, request.timeline
        labels = request.labels
        return RequestRecord(
            request_id=opened.request_id,
            route=opened.facts.route,
            model=labels.model,
            kind=labels.kind,
            tenant=labels.tenant,
            stored_model=labels.stored_model,
            stored_tenant=labels.stored_tenant,
            outcome=closed.outcome,
            error=closed.error,
            status=closed.status,
            arrived_seconds=timeline.arrived_seconds,
            scheduled_seconds=timeline.scheduled_seconds,
            first_token_seconds=timeline.first_token_seconds,
            last_token_seconds=timeline.last_token_seconds,
            finished_seconds=closed.at_seconds,
            prompt_tokens=timeline.prompt_tokens,
            cached_tokens=timeline.cached_tokens,
            inferred_cached_tokens=_whole(timeline.inferred_cached_tokens),
            output_tokens=timeline.recorded_output_tokens,
            is_output_lower_bound=timeline.is_output_lower_bound,
            energy=energy,
            engine=self.config.engine,
            leg=opened.facts.leg,
            key=closed.key,
        )

    def _beside(self, request: _Request) -> dict[str, RequestEnergy]:
        """What the other boundaries measured; unknown where it has not come."""
        beside: dict[str, RequestEnergy] = {}
        for name in self._others:
            beside[name] = request.energies.get(name) or unknown_energy(
                self.config.policy
            )
            if beside[name].energy_joules is None:
                self.unjoined_total[name] += 1
        return beside

    def _compare(self) -> None:
        """Add what inner and outer boundaries measured since they were compared."""
        if WHOLE not in self._boundaries:
            return
        inner = {name: b for name, b in self._boundaries.items() if name != WHOLE}
        for outside in self._outside.values():
            inner[IDLE_ACCELERATORS] = outside
        for name, boundary in inner.items():
            ratio = self._ratios.setdefault(name, Ratio(name, WHOLE))
            _advance(ratio, boundary, self._boundaries[WHOLE])


def _whole(tokens: float | None) -> int | None:
    return None if tokens is None else round(tokens)


def _advance(ratio: Ratio, inner: Boundary, outer: Boundary) -> None:
    """Count what both measured, up to where both are settled.

    A gap of either is left out: what one sensor missed must not look like a share.
    """
    both = (inner, outer)
    end = min(boundary.settled_seconds for boundary in both)
    if end == -math.inf:
        return
    if ratio.until_seconds == -math.inf:  # where the later of the two begins
        ratio.until_seconds = max(boundary.measured_from_seconds for boundary in both)
    if end <= ratio.until_seconds:
        return
    starts = [boundary.books_at(ratio.until_seconds) for boundary in both]
    ends = [boundary.books_at(end) for boundary in both]
    if all(a.gap_seconds == b.gap_seconds for a, b in zip(starts, ends, strict=True)):
        ratio.inner_joules += ends[0].measured_joules - starts[0].measured_joules
        ratio.outer_joules += ends[1].measured_joules - starts[1].measured_joules
        ratio.seconds += end - ratio.until_seconds
    ratio.until_seconds = end
