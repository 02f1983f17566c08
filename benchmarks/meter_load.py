"""What settlement costs under load: CPU, memory and lag of the real meter.

    python benchmarks/meter_load.py [--concurrent 10000] [--seconds 60] [--json]

Virtual time, no sockets. The first run keeps `--concurrent` streams open for
`--seconds`: each gets a token every step, steps last 100 ms, a stream that ends is
followed by another. The second is an hour of 20 Hz samples and five requests a
second. Readings, reads and beats come as they do in the proxy. Printed: CPU by token
read and by settled window, the longest single beat (it holds up the event loop), peak
of memory allocated by the meter (tracemalloc, in a run of its own, as tracing is
slow), and the longest that settled time was behind the newest reading.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import tracemalloc
from dataclasses import asdict, dataclass

from proxy.process.arithmetic import import_numpy_on_one_thread

import_numpy_on_one_thread()  # as the proxy does
# ruff: noqa: E402 (the imports below import numpy, and only the first one counts)

import numpy as np

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.wire.events import (
    EngineObserved,
    Event,
    PowerSampled,
    RequestClosed,
    RequestOpened,
    TokensReceived,
)
from proxy.wire.facts import EngineGauges, Labels, Reading, RequestFacts, Update, Usage

BEAT_SECONDS = 0.05
WATTS = 400.0
PROMPT_TOKENS = 200


@dataclass(frozen=True)
class Load:
    """Streams in steady state."""

    concurrent: int
    seconds: float
    step_seconds: float = 0.1
    output_tokens: int = 100
    sample_seconds: float = 0.05


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    concurrent: int
    seconds: float
    records: int
    token_reads: int
    windows: int
    read_microseconds: float
    """CPU by token read, the meter's side alone: without what makes the message."""
    window_milliseconds: float
    """CPU by settled window, all beats included."""
    longest_beat_milliseconds: float
    busy_fraction: float
    """CPU of the meter by virtual time: part of a core in real time."""
    lag_seconds: float
    """Longest that settled time was behind the newest reading."""
    peak_bytes: int | None
    """Allocated by the meter; None where it was not traced."""
    residual_joules: float


def run(load: Load, *, is_traced: bool = False) -> Cost:
    """Play a load and settle it; `is_traced` measures memory instead of time."""
    meter = Meter(MeterConfig(idle_watts=80.0))
    streams = _Streams(load, meter)
    beats = round(load.seconds / BEAT_SECONDS)
    ends: list[float] = []
    settle_seconds = longest = lag = 0.0
    records = 0
    if is_traced:
        tracemalloc.start()
    for beat in range(1, beats + 1):
        now = beat * BEAT_SECONDS
        streams.advance(now)
        began = time.process_time()
        records += len(meter.settle(now))
        took = time.process_time() - began
        settle_seconds += took
        longest = max(longest, took)
        settled = meter.books_at().settled_seconds
        if not ends or settled > ends[-1]:
            ends.append(settled)
        if now > 2.0:
            lag = max(lag, meter.state().unsettled_seconds)
    peak = tracemalloc.get_traced_memory()[1] if is_traced else None
    if is_traced:
        tracemalloc.stop()
    return Cost(
        load.concurrent,
        load.seconds,
        records,
        streams.reads,
        len(ends) - 1,
        streams.read_seconds / max(streams.reads, 1) * 1e6,
        settle_seconds / max(len(ends) - 1, 1) * 1e3,
        longest * 1e3,
        (streams.read_seconds + settle_seconds) / load.seconds,
        lag,
        peak,
        abs(meter.books_at().residual_joules),
    )


class _Streams:
    """Clients, engine and sensor: whatever calls the meter between two beats."""

    def __init__(self, load: Load, meter: Meter) -> None:
        self.load = load
        self.meter = meter
        self.reads = 0
        self.read_seconds = 0.0
        self._facts = RequestFacts("chat", is_stream=True, has_running_usage=True)
        self._counts: dict[int, int] = {}
        self._keys = 0
        self._steps = self._samples = self._scrapes = 0
        self._rng = np.random.default_rng(1)
        self._updates = [
            (Update(carries_token=True, usage=Usage(PROMPT_TOKENS, count)),)
            for count in range(load.output_tokens + 1)
        ]

    def advance(self, now_seconds: float) -> None:
        """Everything up to an instant, in order of time."""
        load = self.load
        while (self._steps + 1) * load.step_seconds <= now_seconds:
            self._steps += 1
            self._step(self._steps * load.step_seconds - 0.01)
        while self._samples * load.sample_seconds <= now_seconds:
            at = self._samples * load.sample_seconds
            joules = WATTS * np.floor(at / 0.1) * 0.1
            self.meter.feed(
                PowerSampled("gpu", at, (Reading("gpu0", float(joules), WATTS),))
            )
            self._samples += 1
        if now_seconds >= self._scrapes + 1:
            self._scrapes += 1
            gauges = EngineGauges(len(self._counts), 0, 0, float(self._steps))
            self.meter.feed(EngineObserved(now_seconds - 0.005, gauges))

    def _step(self, at_seconds: float) -> None:
        load, meter = self.load, self.meter
        events: list[Event] = []
        for key, count in list(self._counts.items()):
            events.append(TokensReceived(key, at_seconds, self._updates[count]))
            self._counts[key] = count + 1
            if count == load.output_tokens:
                events.append(RequestClosed(key, at_seconds, "ok", status=200))
                del self._counts[key]
        began = time.process_time()
        for event in events:
            meter.feed(event)
        self.read_seconds += time.process_time() - began
        self.reads += len(self._counts)
        while len(self._counts) < load.concurrent:
            self._keys += 1
            meter.feed(
                RequestOpened(
                    self._keys, at_seconds, f"r{self._keys}", self._facts, Labels()
                )
            )
            # the first ones are as far as any, else all would end at once
            ahead = load.output_tokens if self._steps == 1 else 1
            self._counts[self._keys] = int(self._rng.integers(1, ahead + 1))


def hour(seconds: float = 3600.0) -> Load:
    """Five requests a second with 20 tokens each, read every 50 ms."""
    return Load(10, seconds, step_seconds=0.1, output_tokens=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concurrent", type=int, default=10_000, metavar="N")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S")
    parser.add_argument("--hour-seconds", type=float, default=3600.0, metavar="S")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    for load in (
        Load(options.concurrent, options.seconds),
        hour(options.hour_seconds),
    ):
        timed, traced = run(load), run(load, is_traced=True)
        found.append(asdict(timed) | {"peak_bytes": traced.peak_bytes})
    if options.json:
        print(json.dumps(found))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )
    for row in found:
        print(
            f"\n{row['concurrent']} streams at once for {row['seconds']:.0f} s: "
            f"{row['records']} records, {row['token_reads']} token reads, "
            f"{row['windows']} windows\n"
            f"  CPU by token read       {row['read_microseconds']:8.2f} us\n"
            f"  CPU by settled window   {row['window_milliseconds']:8.2f} ms\n"
            f"  longest beat            {row['longest_beat_milliseconds']:8.2f} ms\n"
            f"  part of one core        {row['busy_fraction']:8.1%}\n"
            f"  longest settlement lag  {row['lag_seconds']:8.2f} s\n"
            f"  peak memory             {row['peak_bytes'] / 2**20:8.1f} MiB\n"
            f"  residual                {row['residual_joules']:8.1g} J"
        )


if __name__ == "__main__":
    main()
