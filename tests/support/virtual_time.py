"""An event loop whose time jumps to the next timer: hours pass in no time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Asked to wait, it adds the wait to the time instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_seconds = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing left that could wake the loop: a deadlock")
        self.now_seconds += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_seconds


class VirtualClock:
    """The clock of a `VirtualLoop`; wall time is 1e9 s ahead of it."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def unix(self) -> float:
        return 1e9 + self.now()

    async def sleep_until(self, at_seconds: float) -> None:
        await asyncio.sleep(max(0.0, at_seconds - self.now()))

    async def sleep_about(self, until_seconds: float) -> None:
        await self.sleep_until(until_seconds)

    async def pause(self) -> None:
        await asyncio.sleep(0)


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
