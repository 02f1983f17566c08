"""Joins timeline, energy, attribution and ledger: events in, settled records out.

Pure: time enters by argument. The relay, the sensors and the scrape of the engine's
gauges `feed` it events; a beat calls `settle`. All calls come from one thread (the
event loop's); instants are monotonic seconds.
"""

from __future__ import annotations

import math

from proxy.meter.activity.orphans import LEFT
from proxy.meter.activity.request import RequestTimeline, TokenLog
from proxy.meter.attribution.fit import Calibration
from proxy.meter.config import MeterConfig
from proxy.meter.curve.device import GAP_REASONS, SENSOR_GAP
from proxy.meter.deadlines import Deadlines
from proxy.meter.entry import Entry
from proxy.meter.estimate import EnergySoFar, estimated_energy, unknown_energy
from proxy.meter.ledger.accounts import Books, Ledger, RequestEnergy, RequestRecord
from proxy.meter.ledger.records import Request, first_model, is_settled, record_of
from proxy.meter.settle import Settlement
from proxy.meter.state import MeterState
from proxy.wire.events import (
    Event,
    PowerSampled,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)
from proxy.wire.facts import Labels

__all__ = ["Meter", "MeterConfig", "MeterState"]

NO_BOOKS = Books(-math.inf, 0.0, 0.0, 0.0, 0.0, 0.0, {}, 0.0)
"""Before the first edge."""

REFUSALS = frozenset(range(400, 500)) | {503}
"""The engine turned the request away: it never computed anything for it."""

FINAL_ENERGIES = 4096
"""Of the newest records: a reply that waits for its energy asks for it afterwards."""


class Meter:
    """The meter of one engine and one boundary."""

    def __init__(self, config: MeterConfig | None = None) -> None:
        self.config = config or MeterConfig()
        self._ledger = Ledger(list(self.config.policies), self.config.policy)
        self._settlement = Settlement(
            self._ledger,
            self.config.policies,
            idle_watts=self.config.idle_watts,
            window_seconds=self.config.window_seconds,
            wait_seconds=self.config.wait_seconds,
            calibration=Calibration(self.config.fit_rules, self.config.calibrations),
        )
        self._log = TokenLog()
        self._open: dict[int, RequestTimeline] = {}
        self._requests: dict[int, Request] = {}
        self._by_key: dict[int, Request] = {}
        self._final: dict[int, RequestEnergy] = {}
        self._serials = 0
        self._sequence = 0
        self._samples_total = 0
        self._gaps_total = 0
        self._late_reads_total = 0
        self._settled_seconds = float("-inf")
        self._newest_seconds: float | None = None
        self._quality_requests = {"exact": 0, "estimated": 0, "unknown": 0}

    def feed(self, event: Event) -> None:
        """One of the five messages; those of a request nobody knows are ignored."""
        if isinstance(event, TokensReceived):
            self._receive(event)
        elif isinstance(event, PowerSampled):
            self._sample(event)
        elif isinstance(event, RequestOpened):
            self._open_request(event)
        elif isinstance(event, RequestClosed):
            self._close_request(event)
        elif self.config.has_sensor:
            entries = [request.entry for request in self._requests.values()]
            self._settlement.gauged(event.at_seconds, event.gauges, entries, self._log)

    def _receive(self, event: TokensReceived) -> None:
        timeline = self._open.get(event.key)
        if timeline is None:
            return
        at_seconds = event.at_seconds
        if at_seconds <= self._settled_seconds:
            self._late_reads_total += 1
            at_seconds = math.nextafter(self._settled_seconds, math.inf)
        timeline.receive(at_seconds, event.updates, self._log)

    def _open_request(self, event: RequestOpened) -> None:
        self._serials += 1
        key, labels = event.key, event.labels
        timeline = RequestTimeline(self._serials, event.at_seconds, event.facts)
        slot = self._ledger.open((labels.model, labels.kind, labels.tenant))
        entry = Entry(timeline, slot)
        self._requests[timeline.serial] = self._by_key[key] = Request(
            entry, event.request_id, event.facts.route, labels, key=key
        )
        self._open[key] = timeline

    def _close_request(self, event: RequestClosed) -> None:
        timeline = self._open.pop(event.key, None)
        if timeline is None:
            return
        request = self._requests[timeline.serial]
        request.outcome, request.error = event.outcome, event.error
        request.status = event.status
        is_refused = event.status in REFUSALS
        timeline.close(event.at_seconds, is_refused=is_refused)
        if not timeline.is_streamed and self.config.has_sensor:
            self._settlement.spread(timeline, self._log)
        if event.outcome in LEFT and not is_refused:
            self._settlement.client_left(timeline, event.at_seconds)
        if timeline.has_late_facts:
            self._settlement.engine_tells_late = True

    def _sample(self, event: PowerSampled) -> None:
        reason = event.gap_reason
        if reason is not None:
            self._gaps_total += 1
            self._settlement.is_up = False
            known = reason if reason in GAP_REASONS else SENSOR_GAP
            self._settlement.curve.interrupt(known)
            return
        self._samples_total += 1
        self._settlement.is_up = True
        self._newest_seconds = event.at_seconds
        self._settlement.curve.observe(
            event.at_seconds,
            [(one.device, one.joules, one.watts) for one in event.readings],
        )

    def settle(self, now_seconds: float) -> list[RequestRecord]:
        """Close every interval whose facts are known; the records now final."""
        settlement = self._settlement
        if self.config.has_sensor:
            entries = (request.entry for request in self._requests.values())
            if self._requests:
                settlement.calibration.serve(first_model(self._requests.values()))
            settlement.advance(entries, self._log, now_seconds)
            if settlement.settled_seconds is not None:
                self._settled_seconds = settlement.settled_seconds
        else:
            self._log.clear()
        done = [
            request
            for request in self._requests.values()
            if self._is_done(request, now_seconds)
        ]
        done.sort(key=lambda request: request.entry.timeline.closed_seconds or 0.0)
        return [self._finish(request) for request in done]

    def stop(self, now_seconds: float) -> None:
        """No request will come any more: settle what there is as soon as it can be."""
        self._settlement.stop(now_seconds)

    def join_seconds(self, now_seconds: float) -> float:
        """How long another boundary's record may wait for this one's joules."""
        settlement = self._settlement
        if not settlement.is_up or settlement.is_stop_over(now_seconds):
            return 0.0
        return settlement.deadlines.join_seconds

    @property
    def deadlines(self) -> Deadlines:
        """Every wait, for the sensor as it is known now."""
        return self._settlement.deadlines

    def estimate(self, key: int, at_seconds: float) -> EnergySoFar:
        """What a request has consumed so far; no side effects, and never a wait."""
        request = self._by_key.get(key)
        if request is None or not self.config.has_sensor:
            unknown = unknown_energy(self.config.policy)
            return EnergySoFar(self._final.get(key, unknown), is_settled=True)
        energy = estimated_energy(
            request,
            list(self._requests.values()),
            settlement=self._settlement,
            ledger=self._ledger,
            log=self._log,
            policy=self._settlement.calibration.bound(
                self.config.policies[self.config.policy]
            ),
            at_seconds=at_seconds,
        )
        return EnergySoFar(energy, is_settled=False)

    def books_at(self, at_seconds: float | None = None) -> Books:
        """Accounts up to an instant (None: all that is settled); no side effects."""
        return self._ledger.books_at(at_seconds) or NO_BOOKS

    def state(self) -> MeterState:
        """One consistent picture; no side effects."""
        curve = self._settlement.curve
        devices = curve.devices
        newest = self._newest_seconds
        lag = 0.0
        if newest is not None and self._settled_seconds > float("-inf"):
            lag = max(newest - float(self._settled_seconds), 0.0)
        return MeterState(
            books=self.books_at(),
            idle_watts=self._settlement.idle.watts,
            idle_source=self._settlement.idle.source,
            open_requests=len(self._open),
            unsettled_seconds=lag,
            device_joules={name: d.total_joules for name, d in devices.items()},
            device_watts={
                name: d.watts for name, d in devices.items() if d.watts is not None
            },
            counter_period_seconds=curve.period_seconds,
            counter_power_ratio=curve.counter_power_ratio,
            samples_total=self._samples_total,
            gaps_total=self._gaps_total + curve.resets,
            policy=self.config.policy,
            class_joules={
                Labels(*labels): joules
                for labels, joules in self._ledger.class_joules.items()
            },
            class_tokens={
                Labels(*labels): tokens
                for labels, tokens in self._ledger.class_tokens.items()
            },
            policy_joules=self._ledger.policy_joules,
            window_seconds=self._settlement.deadlines.window_seconds,
            quality_requests=dict(self._quality_requests),
            unsettled_requests=len(self._requests),
            late_reads_total=self._late_reads_total,
            counter_resets_total=curve.resets,
            external_requests=None
            if newest is None
            else self._settlement.gauges.external_at(newest),
            calibration=self._settlement.calibration.state,
        )

    def _is_done(self, request: Request, now_seconds: float) -> bool:
        """Settled, or it can not be: nobody waits for energy that never comes."""
        timeline = request.entry.timeline
        closed_seconds = timeline.closed_seconds
        if closed_seconds is None:
            return False
        if not self.config.has_sensor:
            return True
        if is_settled(request, self._settlement.settled_seconds):
            # the next scrape may tell of a preemption: then it was not exact
            return not timeline.is_scheduled_exact or self._settlement.gauges.covers(
                timeline.end_seconds, now_seconds
            )
        return self._settlement.is_given_up(closed_seconds, now_seconds)

    def _finish(self, request: Request) -> RequestRecord:
        """Write the record and let the request go."""
        self._sequence += 1
        settlement = self._settlement
        record = record_of(
            request,
            self._sequence,
            self._ledger,
            measured_from_seconds=settlement.measured_from_seconds,
            settled_seconds=settlement.settled_seconds,
            engine=self.config.engine,
        )
        timeline = request.entry.timeline
        settlement.left(timeline)
        self._ledger.count_tokens(
            request.entry.slot,
            (record.prompt_tokens, record.cached_tokens, record.output_tokens),
        )
        self._ledger.release(request.entry.slot)
        del self._requests[timeline.serial]
        self._by_key.pop(request.key, None)
        self._final[request.key] = record.energy
        if len(self._final) > FINAL_ENERGIES:
            del self._final[next(iter(self._final))]
        self._quality_requests[record.energy.quality] += 1
        return record
