"""A server in virtual time: it answers planned requests after as long as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loadgen.client.client import ConnectionCounts
from loadgen.client.connection import Response
from loadgen.plan.plan import PlannedSession, PlannedTurn
from tests.support.scripted import DONE, sse


def stream(text: str) -> bytes:
    """A whole vLLM reply of one token."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    return sse({"choices": [choice], "usage": usage}) + DONE


@dataclass
class Server:
    """Answers request k after `seconds(k)`; `fails(k)` answers 500."""

    seconds: Callable[[int], float] = lambda number: 0.1
    fails: Callable[[int], bool] = lambda number: False
    bodies: list[Any] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    counts: ConnectionCounts = field(default_factory=ConnectionCounts)
    reserved: int = 0
    is_closed: bool = False

    async def reserve(self) -> None:
        self.reserved += 1

    async def send(self, request: bytes, response: Response) -> None:
        clock = asyncio.get_running_loop().time
        number = len(self.bodies)
        self.bodies.append(json.loads(request.partition(b"\r\n\r\n")[2]))
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        response.sent_at = clock()
        try:
            await asyncio.sleep(self.seconds(number))
        finally:
            self.in_flight -= 1
        response.status = 500 if self.fails(number) else 200
        response.headers["content-type"] = "text/event-stream"
        response.stamps.append(clock())
        response.pieces.append(stream(f"reply {number}"))
        response.finished_at = clock()

    async def close(self) -> None:
        self.is_closed = True


def turn(name: str, **fields: Any) -> PlannedTurn:
    return PlannedTurn(request_id=name, **({"prompt": name} | fields))


def single(number: int, start_seconds: float) -> PlannedSession:
    return PlannedSession(
        session_id=f"s{number}",
        start_seconds=start_seconds,
        turns=[turn(f"r{number}")],
    )
