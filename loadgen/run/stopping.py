"""The signals that end a run, for whoever sends or watches it.

One that is ignored stays so: under `nohup` a run outlives its terminal.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _heeded() -> list[signal.Signals]:
    return [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]


def stop_at_signals(
    loop: asyncio.AbstractEventLoop, stop: Callable[[], object]
) -> None:
    """Call `stop` at each of them, on the loop."""
    for number in _heeded():
        loop.add_signal_handler(number, stop)


@contextmanager
def signals_told() -> Iterator[list[int]]:
    """The signals that came while the block ran."""
    told: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: told.append(number))
        for number in _heeded()
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
