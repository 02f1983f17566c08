"""The thread that asks how boards work: what it hands on when they answer, or not."""

from __future__ import annotations

import queue
from collections.abc import Sequence

import pytest

from proxy.errors import SensorError
from proxy.power.hardware_watch import OVERDUE_SECONDS, HardwareWatch
from proxy.wire.events import HardwareObserved
from proxy.wire.facts import HardwareState, Reading

PATIENCE_SECONDS = 20
STATE = HardwareState("gpu0", sm_clock_hertz=1.98e9)


class Board:
    """A source that answers from a list, then raises what stands at its end."""

    name, boundary, is_simulated = "board", "gpu", False

    def __init__(self, *answers: HardwareState | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def read(self) -> Sequence[Reading]:
        return ()

    def hardware(self) -> Sequence[HardwareState]:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return [answer]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("end", [SensorError("lost"), RuntimeError("a defect")])
def test_a_board_that_stops_answering_is_unknown_once(end: Exception) -> None:
    board, events = Board(STATE, STATE, end), queue.Queue[HardwareObserved]()
    watch = HardwareWatch("gpu", lambda: board, events.put, every_seconds=0.001)
    watch.start()
    found = [events.get(timeout=PATIENCE_SECONDS) for _ in range(3)]
    while board.asked < 10:
        watch.check(0.0)
    watch.stop()
    assert [event.states for event in found] == [(STATE,), (STATE,), ()]
    assert events.empty()


def test_a_board_that_hangs_is_unknown_after_a_while() -> None:
    events = queue.Queue[HardwareObserved]()
    watch = HardwareWatch("gpu", lambda: Board(STATE), events.put, every_seconds=0.001)
    watch.start()
    heard = events.get(timeout=PATIENCE_SECONDS).at_seconds
    watch.stop()
    while not events.empty():
        heard = events.get().at_seconds
    watch.check(heard + OVERDUE_SECONDS)
    assert events.empty()
    for later in (1.0, 2.0):
        watch.check(heard + OVERDUE_SECONDS + later)
    assert events.get_nowait().states == ()
    assert events.empty()


def test_a_source_that_knows_nothing_of_it_is_not_asked() -> None:
    class Meter:
        name, boundary, is_simulated = "meter", "node", False
        reads = 0

        def read(self) -> Sequence[Reading]:
            return ()

        def close(self) -> None:
            pass

    events, calls = queue.Queue[HardwareObserved](), iter(range(10**9))
    seen: list[int] = []

    def source() -> Meter:
        seen.append(next(calls))
        return Meter()

    watch = HardwareWatch("node", source, events.put, every_seconds=0.001)
    watch.start()
    while len(seen) < 5:
        watch.check(0.0)
    watch.stop()
    assert events.empty()
