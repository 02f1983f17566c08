"""How boards work beside their power: what is believed, and what is kept of it.

The same suspicion as of readings: a blank, a number that no board can have or a text
is no figure, which costs nothing else. What is observed about once a second is kept
for a while, so that a run can ask for its own window; seconds of throttling are
counted from the start. An observation holds until the next one, or a little while.

Pure: time enters by argument. Facts: nvml.h (NvmlClocksEventReasons), dcgm_fields.h.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import TypeVar

from proxy.power.blanks import ANY, figure
from proxy.wire.api import BoardState, BoardSummary, HardwareSeries, SpreadReply
from proxy.wire.events import HardwareObserved
from proxy.wire.facts import HardwareState

_T = TypeVar("_T")

REASON_BITS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
"""One table for NVML and DCGM, which count alike."""
UNKNOWN_REASON = "unknown"
"""A bit of a newer driver."""
IDLE_REASON = "gpu_idle"
SETTINGS = frozenset(
    {IDLE_REASON, "applications_clocks_setting", "sync_boost", "display_clock_setting"}
)
"""Clocks are as somebody set them, or nothing runs: no slowdown."""

MAX_CLOCK_HERTZ = 1e10
CELSIUS = (-40.0, 150.0)
MAX_LIMIT_WATTS = 3_000.0
MAX_COUNT = 1e12
MAX_XID = 10_000

HOLD_SECONDS = 2.5
"""Nobody knows how a board worked longer than so after it was asked."""
MAX_STATES = 40_000
"""Of all boards together, about 10 MB: eleven hours of one board, 80 minutes of 8."""
MAX_TEXT = 96
MAX_PROCESSES = 64
MAX_SERIES = 600
"""Points of the reply's series."""


def clock_hertz(megahertz: object) -> float | None:
    """A clock that a board can have."""
    return _within(megahertz, 1.0, MAX_CLOCK_HERTZ / 1e6, 1e6)


def celsius(value: object) -> float | None:
    """A temperature at which a board can work."""
    return _within(value, *CELSIUS)


def limit_watts(watts: object) -> float | None:
    """A limit that somebody can set; 0 is none."""
    return _within(watts, 1.0, MAX_LIMIT_WATTS)


def error_count(value: object) -> int | None:
    """A count of errors."""
    number = _within(value, 0, MAX_COUNT)
    return None if number is None else int(number)


def xid_number(value: object) -> int | None:
    """The number of a fault; 0 is none."""
    number = _within(value, 0, MAX_XID)
    return None if number is None else int(number)


def board_text(value: object) -> str | None:
    """A name or a version that a board tells of itself."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(text, str) or not text.strip():
        return None
    return text.strip()[:MAX_TEXT]


def throttle_reasons(mask: object) -> tuple[str, ...] | None:
    """Names of the bits; those that nobody knows yet are one `unknown`."""
    number = figure(mask, ANY)
    if number is None or not 0 <= number < 2**53 or number != int(number):
        return None
    bits, names = int(number), []
    for bit, name in REASON_BITS.items():
        if bits & bit:
            names.append(name)
            bits &= ~bit
    return (*names, UNKNOWN_REASON) if bits else tuple(names)


def slowdowns(state: HardwareState) -> tuple[str, ...]:
    """Why a board is slower than its settings allow; empty where it is not."""
    return tuple(r for r in state.throttle_reasons or () if r not in SETTINGS)


@dataclass(slots=True)
class HardwareLog:
    """What was observed of the boards of one engine."""

    slowdown_seconds: defaultdict[tuple[str, str, str], float] = field(
        default_factory=lambda: defaultdict(float)
    )
    """Since the start, by boundary, device and reason."""
    limit_changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By boundary and device."""
    _latest: dict[str, HardwareObserved] = field(default_factory=dict)
    _limits: dict[tuple[str, str], float] = field(default_factory=dict)
    _kept: deque[HardwareObserved] = field(default_factory=deque)
    _n_states: int = 0

    def add(self, event: HardwareObserved) -> None:
        """Count what the last observation of this boundary was until now; keep this."""
        before = self._latest.get(event.boundary)
        if before is not None:
            for state in before.states:
                for reason in slowdowns(state):
                    key = (event.boundary, state.device, reason)
                    self.slowdown_seconds[key] += _held(before, event)
        self._latest[event.boundary] = event
        for state in event.states:
            if state.power_limit_watts is not None:
                key_ = (event.boundary, state.device)
                was = self._limits.get(key_, state.power_limit_watts)
                self.limit_changes[key_] += was != state.power_limit_watts
                self._limits[key_] = state.power_limit_watts
        self._kept.append(event)
        self._n_states += max(len(event.states), 1)
        while self._n_states > MAX_STATES:
            self._n_states -= max(len(self._kept.popleft().states), 1)

    def now(self) -> Iterator[tuple[str, HardwareState]]:
        """Boundary and state of every board, as last observed."""
        for boundary, event in self._latest.items():
            for state in event.states:
                yield boundary, state

    def observed_seconds(self) -> float | None:
        """When a board was last seen; None before."""
        seen = [event.at_seconds for event in self._latest.values() if event.states]
        return max(seen, default=None)

    def within(self, start_seconds: float, end_seconds: float) -> HardwareWindow:
        """What was observed in a window, to be looked at on any thread."""
        first = start_seconds - HOLD_SECONDS
        found: deque[HardwareObserved] = deque()
        for event in reversed(self._kept):
            if event.at_seconds < first:
                break
            if event.at_seconds <= end_seconds + HOLD_SECONDS:
                found.appendleft(event)
        return HardwareWindow(tuple(found), start_seconds, end_seconds)


@dataclass(frozen=True, slots=True)
class HardwareWindow:
    """How the boards worked in a stretch of time."""

    events: tuple[HardwareObserved, ...]
    """In order, with those around the window's ends that reach into it."""
    start_seconds: float
    end_seconds: float

    def boards(self) -> list[BoardSummary]:
        """How each board worked; empty where none told anything."""
        spans: dict[tuple[str, str], list[_Span]] = {}
        for event, until in self._spans():
            begin = max(event.at_seconds, self.start_seconds)
            lasted = min(until, self.end_seconds) - begin
            if lasted > 0:
                for state in event.states:
                    key = (event.boundary, state.device)
                    spans.setdefault(key, []).append((state, lasted))
        return [
            _summary(boundary, device, found)
            for (boundary, device), found in sorted(spans.items())
        ]

    def series(self, offset_seconds: float = 0.0) -> HardwareSeries:
        """The slowest clock and the hottest board over time, thinned out evenly."""
        shown = [
            event
            for event in self.events
            if event.states
            and self.start_seconds <= event.at_seconds <= self.end_seconds
        ]
        shown = shown[:: math.ceil(len(shown) / MAX_SERIES) or 1]
        return HardwareSeries(
            at_unix_seconds=[event.at_seconds + offset_seconds for event in shown],
            sm_clock_hertz=[_of(e, "sm_clock_hertz", min) for e in shown],
            temperature_celsius=[_of(e, "temperature_celsius", max) for e in shown],
        )

    def _spans(self) -> Iterator[tuple[HardwareObserved, float]]:
        """Every observation, and until when it holds."""
        by_boundary: dict[str, list[HardwareObserved]] = {}
        for event in self.events:
            by_boundary.setdefault(event.boundary, []).append(event)
        for events in by_boundary.values():
            for event, after in pairwise(events):
                yield event, event.at_seconds + _held(event, after)
            yield events[-1], events[-1].at_seconds + HOLD_SECONDS


def board_state(state: HardwareState, boundary: str) -> BoardState:
    """One board as the admin API shows it."""
    return BoardState(
        boundary=boundary,
        device=state.device,
        model=state.model,
        driver=state.driver,
        sm_clock_hertz=state.sm_clock_hertz,
        memory_clock_hertz=state.memory_clock_hertz,
        temperature_celsius=state.temperature_celsius,
        throttle_reasons=_list(state.throttle_reasons),
        power_limit_watts=state.power_limit_watts,
        corrected_ecc_errors=state.corrected_ecc_errors,
        uncorrected_ecc_errors=state.uncorrected_ecc_errors,
        last_xid=state.last_xid,
        process_ids=_list(state.process_ids),
        other_processes=state.other_processes,
    )


_Span = tuple[HardwareState, float]
"""A state and for how many seconds it held."""


def _summary(boundary: str, device: str, spans: Sequence[_Span]) -> BoardSummary:
    states = [state for state, _ in spans]
    # a board that idles lowers its clocks: that is not how it worked
    working = [s for s in states if IDLE_REASON not in (s.throttle_reasons or ())]
    tells = any(state.throttle_reasons is not None for state in states)
    by_reason: defaultdict[str, float] = defaultdict(float)
    throttled = 0.0
    for state, lasted in spans:
        reasons = slowdowns(state)
        throttled += lasted if reasons else 0.0
        for reason in reasons:
            by_reason[reason] += lasted
    limits = _known(states, "power_limit_watts")
    xids = _known(states, "last_xid")
    processes = [n for s in states if (n := s.other_processes) is not None]
    return BoardSummary(
        boundary=boundary,
        device=device,
        model=_last(state.model for state in states),
        driver=_last(state.driver for state in states),
        seconds=sum(lasted for _, lasted in spans),
        sm_clock_hertz=_spread(_known(working or states, "sm_clock_hertz")),
        memory_clock_hertz=_spread(_known(working or states, "memory_clock_hertz")),
        temperature_celsius=_spread(_known(states, "temperature_celsius")),
        throttled_seconds=throttled if tells else None,
        throttled_seconds_by_reason=dict(sorted(by_reason.items())),
        power_limit_watts=_spread(limits),
        power_limit_changes=sum(a != b for a, b in pairwise(limits))
        if limits
        else None,
        corrected_ecc_errors=_rise(_known(states, "corrected_ecc_errors")),
        uncorrected_ecc_errors=_rise(_known(states, "uncorrected_ecc_errors")),
        xids=[int(b) for a, b in pairwise(xids) if b and b != a] if xids else None,
        other_processes=max(processes, default=None),
        shared_seconds=(
            sum(lasted for state, lasted in spans if state.other_processes)
            if processes
            else None
        ),
        process_ids=sorted(
            {pid for state in states for pid in state.process_ids or ()}
        )[:MAX_PROCESSES],
    )


def _last(texts: Iterable[str | None]) -> str | None:
    known = [text for text in texts if text is not None]
    return known[-1] if known else None


def _known(states: Sequence[HardwareState], name: str) -> list[float]:
    return [v for state in states if (v := getattr(state, name)) is not None]


def _spread(values: Sequence[float]) -> SpreadReply | None:
    if not values:
        return None
    return SpreadReply(min=min(values), median=median(values), max=max(values))


def _rise(counts: Sequence[float]) -> int | None:
    """How far a count rose; one that fell began anew."""
    if not counts:
        return None
    return int(sum(b - a if b >= a else b for a, b in pairwise(counts)))


def _held(event: HardwareObserved, after: HardwareObserved) -> float:
    return min(max(after.at_seconds - event.at_seconds, 0.0), HOLD_SECONDS)


def _of(
    event: HardwareObserved, name: str, of: Callable[[list[float]], float]
) -> float | None:
    values = _known(event.states, name)
    return of(values) if values else None


def _list(values: Sequence[_T] | None) -> list[_T] | None:
    return None if values is None else list(values)


def _within(
    value: object, least: float, most: float, factor: float = 1.0
) -> float | None:
    number = figure(value, ANY)
    if number is None or not least <= number <= most:
        return None
    return number * factor
