"""How the boards worked in a run's window, and whether it was still warming up.

Pure. What the proxy could not observe is null; that no warm-up was found is an empty
list, and says nothing where there was too little to judge.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np

from loadgen.analysis.schema import HardwareBlock, PowerSeries
from loadgen.analysis.tally import Tally
from loadgen.analysis.warmup import (
    CLOCK,
    POWER,
    TEMPERATURE,
    TTFT,
    Signal,
    WarmUp,
    warm_up,
)
from loadgen.results.results import Metering
from proxy.wire.api import BoardSummary, EngineHardware


def hardware_block(
    metering: Metering,
    tally: Tally,
    power: PowerSeries | None,
    zero_unix_seconds: float | None,
) -> HardwareBlock:
    """The boards of all engines, and what drifted at the window's beginning."""
    engines = metering.hardware.engines if metering.hardware else {}
    boards = [
        board if len(engines) < 2 else _named(board, name)
        for name, engine in engines.items()
        for board in engine.window
    ]
    found = [*_first_tokens(tally), *_power(tally, power)]
    if len(engines) == 1 and zero_unix_seconds is not None:
        (engine,) = engines.values()
        found += _series(tally, engine, zero_unix_seconds)
    return HardwareBlock(
        simulated=any(engine.simulated for engine in engines.values()),
        boards=boards,
        warm_up=[each for each in found if each is not None],
    )


def _named(board: BoardSummary, engine: str) -> BoardSummary:
    return msgspec.structs.replace(board, device=f"{engine}/{board.device}")


def _first_tokens(tally: Tally) -> list[WarmUp | None]:
    if not tally.completed:
        return []
    sent, ttft, prompts = tally.first_tokens()
    sizes = np.log1p(prompts).tolist()
    at = [each - tally.window.start_seconds for each in sent]
    return [warm_up(TTFT, at, ttft, [sizes, tally.in_flight(sent)])]


def _power(tally: Tally, power: PowerSeries | None) -> list[WarmUp | None]:
    if power is None:
        return []
    accounts = (
        power.prefill_watts, power.decode_watts, power.idle_share_watts,
        power.idle_watts, power.unattributed_watts,
    )  # fmt: skip
    watts = np.sum(accounts, axis=0).tolist()
    middles = [(begin + end) / 2 for begin, end in pairwise(power.edges_seconds)]
    return [_in_window(tally, POWER, middles, watts)]


def _series(
    tally: Tally, engine: EngineHardware, zero_unix_seconds: float
) -> list[WarmUp | None]:
    at = [each - zero_unix_seconds for each in engine.series.at_unix_seconds]
    return [
        _in_window(tally, CLOCK, at, engine.series.sm_clock_hertz),
        _in_window(tally, TEMPERATURE, at, engine.series.temperature_celsius),
    ]


def _in_window(
    tally: Tally,
    signal: Signal,
    at: list[float],
    values: list[float] | list[float | None],
) -> WarmUp | None:
    window = tally.window
    known = [
        (each, value)
        for each, value in zip(at, values, strict=True)
        if value is not None and window.start_seconds <= each <= window.end_seconds
    ]
    load = tally.in_flight([each for each, _ in known])
    return warm_up(
        signal,
        [each - window.start_seconds for each, _ in known],
        [value for _, value in known],
        [load, np.sqrt(load).tolist()],
    )
