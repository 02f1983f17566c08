"""Clients that mean harm: what a proxy must live with while others are served.

    python -m benchmarks.hostile_clients PORT ADMIN_PORT

Each `attack` is one way to take memory, files, turns of the event loop or series of
metrics from others; one of each runs, again and again, until standard input ends.
Connections that are refused or cut are what they deserve: nothing they do may raise
here. Then the ids of the requests that were answered whole are printed as JSON, with
the monotonic second of each, and how often each attack was made.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import count

PREFIX = "hostile-"
"""Ids of their requests begin so."""
JUNK = "junk-"
"""Names of models that no engine serves begin so."""
REST_SECONDS = 1.0
HOLD_SECONDS = 15.0
BIG_BYTES = 4 * 1024 * 1024
RESET = struct.pack("ii", 1, 0)


class Villain:
    """The attacks, and what came of them."""

    def __init__(self, port: int, admin_port: int) -> None:
        self._port = port
        self._admin_port = admin_port
        self._random = random.Random(666)
        self._ids = count()
        self.answered: dict[str, float] = {}
        """When, by id."""
        self.attacks: Counter[str] = Counter()

    async def go_on(self, attack: Callable[[], Awaitable[None]], name: str) -> None:
        """The same attack again and again, until cancelled."""
        while True:
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
                async with asyncio.timeout(2 * HOLD_SECONDS):
                    await attack()
            self.attacks[name] += 1
            await asyncio.sleep(REST_SECONDS * self._random.uniform(0.5, 1.5))

    # attacks

    async def pipeline(self) -> None:
        """Two hundred requests at once, replies read one by one."""
        ids = [self._new_id() for _ in range(200)]
        reader, writer = await self._open(self._port)
        with contextlib.closing(writer):
            writer.write(b"".join(self._request(name) for name in ids))
            for name in ids:
                await self._read_reply(reader, name)

    async def read_nothing(self) -> None:
        """Streams that nobody reads, twenty of them."""
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                _, writer = await self._open(self._port, receive_bytes=4096)
                stack.callback(writer.close)
                writer.write(self._request(self._new_id(), model="scripted"))
            await asyncio.sleep(HOLD_SECONDS)

    async def send_much(self) -> None:
        """A prompt of millions of token ids."""
        ids = b",".join(b"%d" % (n % 30_000) for n in range(BIG_BYTES // 6))
        body = b'{"model": "junk-big", "max_tokens": 1, "prompt": [' + ids + b"]}"
        name = self._new_id()
        reader, writer = await self._open(self._port)
        with contextlib.closing(writer):
            writer.write(self._head(name, len(body), path=b"/v1/completions") + body)
            await writer.drain()
            await self._read_reply(reader, name)

    async def nest(self) -> None:
        """Brackets in brackets, which a recursive reader would not survive."""
        body = b'{"model": "junk-nested", "messages": ' + b"[" * 1_000_000
        reader, writer = await self._open(self._port)
        with contextlib.closing(writer):
            writer.write(self._head(self._new_id(), len(body)) + body)
            await reader.read(65_536)

    async def drip(self) -> None:
        """Thirty heads, a byte a second."""
        async with contextlib.AsyncExitStack() as stack:
            writers = []
            for _ in range(30):
                _, writer = await self._open(self._port)
                stack.callback(writer.close)
                writers.append(writer)
            for byte in b"POST /v1/chat/co":
                for writer in writers:
                    writer.write(bytes([byte]))
                await asyncio.sleep(1.0)

    async def garble(self) -> None:
        """What is no HTTP, or two things at once."""
        twice = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n"
        for data in (
            self._random.randbytes(4096),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            twice + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            twice + b"content-length: 4\r\n\r\nabcd",
            b"GET /" + b"a" * 100_000,
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 50_000,
        ):
            reader, writer = await self._open(self._port)
            with contextlib.closing(writer):
                writer.write(data)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(65_536), 1.0)

    async def reset(self) -> None:
        """Gone in the middle of a body, and of a stream, without a goodbye."""
        for size, model in (100_000, JUNK + "gone"), (0, "scripted"):
            _, writer = await self._open(self._port)
            request = self._request(self._new_id(), model=model, promised=size)
            writer.write(request)
            await writer.drain()
            await asyncio.sleep(0.5)
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    async def invent(self) -> None:
        """Names of models, kinds and tenants that would each be a series."""
        name = self._new_id()
        reader, writer = await self._open(self._port)
        with contextlib.closing(writer):
            for _ in range(20):
                name = self._new_id()
                model = JUNK + "\x1b]0;owned\x07\u202e" + str(self._random.random())
                writer.write(self._request(name, model=model))
                await self._read_reply(reader, name)

    async def crowd_the_admin(self) -> None:
        """Connections to the admin port that ask nothing, or far too much."""
        async with contextlib.AsyncExitStack() as stack:
            for number in range(60):
                _, writer = await self._open(self._admin_port)
                stack.callback(writer.close)
                if number % 3 == 0:
                    writer.write(
                        b"GET /requests?limit=10000 HTTP/1.1\r\nhost: a\r\n\r\n"
                    )
                elif number % 3 == 1:
                    writer.write(b"GET /requests?limit=-1&x=1 HTTP/1.1\r\nhost:")
            await asyncio.sleep(HOLD_SECONDS)

    # means

    async def _open(
        self, port: int, receive_bytes: int | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raw = socket.socket()
        raw.setblocking(False)
        if receive_bytes is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
            return await asyncio.open_connection(sock=raw, limit=1024)
        except BaseException:
            raw.close()
            raise

    def _new_id(self) -> str:
        return f"{PREFIX}{next(self._ids)}"

    def _head(
        self, name: str, size: int, path: bytes = b"/v1/chat/completions"
    ) -> bytes:
        lines = (
            b"POST %s HTTP/1.1" % path,
            b"host: a",
            b"x-request-id: " + name.encode(),
        )
        kind = b"x-servewatt-kind: " + JUNK.encode() + name.encode()
        return b"\r\n".join((*lines, kind, b"content-length: %d" % size, b"", b""))

    def _request(
        self, name: str, *, model: str = JUNK + "model", promised: int = 0
    ) -> bytes:
        """A request; of a body of `promised` bytes only the beginning is sent."""
        messages = [{"role": "user", "content": "hello"}]
        asked = {"model": model, "messages": messages, "stream": True}
        body = json.dumps(asked).encode()
        return self._head(name, max(len(body), promised)) + body

    async def _read_reply(self, reader: asyncio.StreamReader, name: str) -> None:
        """One reply that has a length; answered is one that is the engine's."""
        head = await reader.readuntil(b"\r\n\r\n")
        size = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        body = await reader.readexactly(int(size or 0))
        if b"model_is_junk" in body:
            self.answered[name] = time.monotonic()


async def harm(port: int, admin_port: int) -> None:
    """Every attack until standard input ends; then the account of them."""
    villain = Villain(port, admin_port)
    attacks = (
        villain.pipeline, villain.read_nothing, villain.send_much, villain.nest,
        villain.drip, villain.garble, villain.reset, villain.invent,
        villain.crowd_the_admin,
    )  # fmt: skip
    tasks = [
        asyncio.create_task(villain.go_on(attack, attack.__name__))
        for attack in attacks
    ]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    print("ready", flush=True)
    await ended.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    failed = [str(task.exception()) for task in tasks if not task.cancelled()]
    print(
        json.dumps(
            {
                "answered": villain.answered,
                "attacks": villain.attacks,
                "failed": failed,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    asyncio.run(harm(int(sys.argv[1]), int(sys.argv[2])))
