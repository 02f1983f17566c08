"""The client: connections kept warm, no limit on their number, no retries.

A failing server is data in the response, never an exception. There are no
cookies, redirects, proxies from the environment or compressed bodies: nothing
may stand between the server and the stamps. Built on the event loop and
httptools, since aiohttp costs more per token than the rest of the client
(benchmarks/client_honesty.py measures it).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from loadgen.client.backends import BACKENDS, Target, write_get
from loadgen.client.connection import Connection, Response
from loadgen.errors import StackError, UsageError
from loadgen.results.progress import Progress
from proxy.process.files import os_reason
from proxy.process.protocol import factory_of

# uvicorn, in front of vLLM, closes a connection that was idle for 5 s. A request
# sent into that closing would be lost, so ours are not used after 4 s.
IDLE_SECONDS = 4.0


class Client(Protocol):
    """A sender of requests, as the replay needs it; a fake one needs no socket."""

    async def reserve(self) -> None:
        """Have a connection ready for a request that is soon to be sent."""

    async def send(self, request: bytes, response: Response) -> None:
        """Send a request and fill `response`; returns when the reply ended."""

    async def close(self) -> None:
        """Close every connection."""

    @property
    def counts(self) -> ConnectionCounts:
        """Connections used so far."""


@dataclass(slots=True)
class ConnectionCounts:
    """Connections of a run."""

    opened: int = 0
    open: int = 0
    """Those not closed yet."""
    failed: int = 0
    """Attempts to connect that failed."""
    reused: int = 0
    """Requests sent over a connection that had served one before."""


class HttpClient:
    """HTTP/1.1 to one target, over plain TCP or TLS."""

    def __init__(
        self,
        target: Target,
        now: Callable[[], float],
        progress: Progress | None = None,
    ) -> None:
        parts = urlsplit(target.url)
        self._host = parts.hostname or ""  # Target checks that there is one
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._address: tuple[str, int] | None = None
        self._now = now
        self._progress = progress or Progress()
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening = 0
        self._expected = 0
        self._counts = ConnectionCounts()

    @property
    def counts(self) -> ConnectionCounts:
        """Connections used so far."""
        return self._counts

    async def reserve(self) -> None:
        """Have one more connection ready, so that no request waits for its own.

        A target that cannot be reached is no news yet: the request itself will
        find out when it is due.
        """
        self._expected += 1
        self._drop_stale()
        if len(self._idle) + self._opening >= self._expected:
            return
        self._opening += 1
        try:
            self._idle.append(await self._open())
        except OSError:
            pass
        finally:
            self._opening -= 1

    async def send(self, request: bytes, response: Response) -> None:
        """Send over the freshest idle connection, or over a new one."""
        self._expected = max(0, self._expected - 1)
        self._drop_stale()
        try:
            if self._idle:
                connection = self._idle.pop()
            else:
                asked_at = self._now()
                connection = await self._open()
                response.connect_seconds = self._now() - asked_at
        except OSError as error:
            response.failure = self._why_unreachable(error)
            response.finished_at = self._now()
            return
        self._counts.reused += connection.served > 0
        try:
            await connection.perform(request, response)
        except asyncio.CancelledError:
            connection.close()  # the server must stop generating
            raise
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()

    async def close(self) -> None:
        """Close every connection and let the loop notice."""
        for connection in list(self._all):
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)

    def _drop_stale(self) -> None:
        oldest = self._now() - IDLE_SECONDS
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.pop(0).close()

    async def _open(self) -> Connection:
        """A new connection. Raises OSError."""
        # Names are resolved once: a lookup per connection would be our delay.
        host, port = self._address or (self._host, self._port)
        connection = Connection(self._now, self._progress, self._forget)
        try:
            transport, _ = await asyncio.get_running_loop().create_connection(
                factory_of(connection),
                host,
                port,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        except OSError:
            self._counts.failed += 1
            raise
        self._address = transport.get_extra_info("peername")[:2]
        self._counts.opened += 1
        self._counts.open += 1
        self._all.add(connection)
        return connection

    def _forget(self, connection: Connection) -> None:
        self._counts.open -= 1
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _why_unreachable(self, error: OSError) -> str:
        where = f"{self._host}:{self._port}"
        match error:
            case ConnectionRefusedError():
                return f"connection refused by {where}"
            case socket.gaierror():
                return f"the host name {self._host} is not known"
            case ssl.SSLCertVerificationError():
                return f"the certificate of {where} is not valid"
            case ssl.SSLError():
                return f"no TLS with {where}: {error.reason}"
        return f"no connection to {where}: {os_reason(error)}"


async def discover_model(
    target: Target, now: Callable[[], float], timeout_seconds: float = 10.0
) -> str | None:
    """The name of the model a target serves, the first one it lists.

    None for a native TGI target, whose requests name no model, and for a backend
    that does not list what it serves: a server of one model takes that. Raises
    StackError when the target does not answer, UsageError when it lists none.
    """
    if target.path.endswith("/generate_stream"):
        return None
    if not BACKENDS[target.backend].lists_its_model:
        return None
    client = HttpClient(target, now)
    response = Response()
    try:
        async with asyncio.timeout(timeout_seconds):
            await client.send(write_get(target, "/v1/models"), response)
    except TimeoutError:
        response.failure = f"no answer within {timeout_seconds:g} s"
    finally:
        await client.close()
    if response.failure is not None:
        raise StackError(f"cannot ask {target.url} for its models: {response.failure}")
    listed = _model_names(b"".join(response.pieces))
    if response.status != 200 or not listed:
        raise UsageError(
            f"{target.url} lists no model at /v1/models (status {response.status}); "
            "name it with --model"
        )
    return listed[0]


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


def _model_names(body: bytes) -> list[str]:
    try:
        return [model.id for model in msgspec.json.decode(body, type=_ModelList).data]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return []
