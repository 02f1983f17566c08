"""How a change of upstreams reaches every process of a proxy, all or none.

Rule: a plan is offered to all, and each builds what is new in it and says whether it
can. Where one cannot, all go on with the plan that they have. Where all can they are
told to use it, the meter first: it has to know an upstream before a relay opens a
request there. An order has one answer; whoever ends owes none.
"""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from proxy.errors import ProxyError
from proxy.process.supervise import LoopErrors
from proxy.serve.plan import Changes, Plan

LENGTH_BYTES = 8
"""Before what is pickled, which only processes of one proxy write."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A plan that may be used: build what is new in it."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Use:
    """The plan to use from now on, and to forget any other that was offered."""

    plan: Plan
    reloads: Mapping[str, int] = field(default_factory=dict)
    """Files of `--config` read again until now, by what became of them."""


Order = Offer | Use
Answer = str | None
"""None: done. Else why it cannot be, in one line."""


def packed(content: object) -> bytes:
    """What one process writes to another."""
    data = pickle.dumps(content)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


async def _read(reader: asyncio.StreamReader) -> Any:
    length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
    return pickle.loads(await reader.readexactly(length))


class Orders:
    """The end of the process that gives them, to one other."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._asking = asyncio.Lock()

    @classmethod
    async def over(cls, ours: socket.socket) -> Orders:
        """Over this end of a pair of sockets."""
        return cls(*await asyncio.open_unix_connection(sock=ours))

    async def ready(self) -> None:
        """Once it waits for its first order. Raises EOFError when it has ended."""
        try:
            await _read(self._reader)
        except (EOFError, OSError):
            raise EOFError from None

    async def give(self, order: Order) -> Answer:
        """Its answer, which may take as long as sensors take to open.

        Raises EOFError when it has ended.
        """
        async with self._asking:
            try:
                self._writer.write(packed(order))
                await self._writer.drain()
                answer: Answer = await _read(self._reader)
            except (EOFError, OSError):
                raise EOFError from None
        return answer

    def close(self) -> None:
        """The other process has ended."""
        self._writer.close()


B = TypeVar("B")


class Follower(Generic[B]):
    """The end of a process that follows them."""

    def __init__(
        self,
        use: Use,
        build: Callable[[Plan, Changes], Awaitable[B]],
        take: Callable[[Changes, B], Awaitable[None]],
        errors: LoopErrors,
    ) -> None:
        """`build` makes what is new in a plan, and raises ProxyError where it cannot;
        `take` goes over to it."""
        self.use = use
        """What it was told last."""
        self._build = build
        self._take = take
        self._errors = errors
        self._offered: tuple[Plan, Changes, B] | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def begin(self, handle: int) -> None:
        """Ready to serve: do the first that is said over this socket.

        It is the plan of now, which may be another one than when this process was
        started. Raises ProxyError where nobody says it.
        """
        theirs = socket.socket(fileno=handle)
        theirs.set_inheritable(False)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=theirs)
        try:
            self._writer.write(packed(None))
            await self._follow_one()
        except (EOFError, OSError):
            self._writer.close()
            raise ProxyError("the process that started this one has ended") from None

    async def follow(self) -> None:
        """Do as is said, for as long as somebody may say something."""
        try:
            while True:
                await self._follow_one()
        except (EOFError, OSError):
            pass  # whoever gave orders is gone, and so is the lease
        finally:
            self._writer.close()

    async def _follow_one(self) -> None:
        order: Order = await _read(self._reader)
        self._writer.write(packed(await self.answer(order)))
        await self._writer.drain()

    async def answer(self, order: Order) -> Answer:
        """Do it; None, or why it cannot be done."""
        try:
            if isinstance(order, Offer):
                await self._take_offer(order.plan)
            else:
                await self._go_over(order)
        except ProxyError as error:
            return str(error)
        except Exception as error:  # the outermost loop: it must live on
            self._errors.note("reload", error)
            return f"an error in the proxy itself: {error!r}"
        return None

    async def _take_offer(self, plan: Plan) -> None:
        self._offered = None
        changes = plan.changes_from(self.use.plan)
        self._offered = (plan, changes, await self._build(plan, changes))

    async def _go_over(self, use: Use) -> None:
        plan = use.plan
        if plan != self.use.plan:
            if self._offered is None or self._offered[0] != plan:
                await self._take_offer(plan)
            assert self._offered is not None
            _, changes, built = self._offered
            await self._take(changes, built)
        self._offered = None
        self.use = use
