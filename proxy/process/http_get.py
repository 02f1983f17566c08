"""One GET, bounded in bytes and in total time, for whatever is asked at intervals.

Rule: sensors, engines' pages and health checks may answer with anything: one byte a
second, without end, or with 2 MB that unpack to 2 GB. A reply that is not whole
within `total_seconds` from the question on, or that has over `max_bytes` (as sent, or
unpacked), is a `GetError` and its connection is closed. Redirects are not followed,
and no proxy of the environment is used.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx

MAX_BYTES = 4 * 1024 * 1024
"""A dcgm-exporter with 16 boards writes 0.2 MB, an engine 60 kB, a busy Prometheus'
`/federate` 1 MB."""
TOTAL_SECONDS = 2.0

ASK_PLAIN = {"accept-encoding": "identity"}
"""Packing costs the host that is measured more than it saves between neighbours."""
UNPACKED = {"", "identity"}
PACKED = {"gzip", "x-gzip", "deflate"}


class GetError(Exception):
    """No whole reply, and why, in one line."""

    def __init__(self, reason: str, *, is_unreachable: bool = False) -> None:
        super().__init__(reason)
        self.is_unreachable = is_unreachable
        """No connection could be made: nobody listens there."""


@dataclass(frozen=True, slots=True)
class GetReply:
    """A whole reply, whatever its status."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; of a repeated one the last."""
    body: bytes

    @property
    def text(self) -> str:
        """The body as UTF-8, which all these pages are; other bytes are replaced."""
        return self.body.decode("utf-8", errors="replace")


class BoundedBody:
    """A body as it arrives: unpacked, and never longer than `max_bytes`."""

    def __init__(self, encoding: str, max_bytes: int) -> None:
        """Raises GetError for a packing that was not asked for and is not known."""
        encoding = encoding.strip().lower()
        if encoding not in UNPACKED | PACKED:
            raise GetError(f"content-encoding {encoding[:40]!r} was not asked for")
        self._unpack = zlib.decompressobj(47) if encoding in PACKED else None
        self._max_bytes = max_bytes
        self._received = 0
        self._parts: list[bytes] = []
        self._length = 0

    def feed(self, data: bytes) -> None:
        """Some more of it. Raises GetError past the bound, or on damaged packing."""
        self._received += len(data)
        if self._received > self._max_bytes:
            raise self._too_long()
        if self._unpack is None:
            self._add(data)
            return
        while data:
            try:
                part = self._unpack.decompress(data, self._max_bytes - self._length + 1)
            except zlib.error:
                raise GetError("its packed body is damaged") from None
            self._add(part)
            data = self._unpack.unused_data
            if self._unpack.eof and data:  # another member follows
                self._unpack = zlib.decompressobj(47)

    def whole(self) -> bytes:
        """All of it. Raises GetError where the packing has no end."""
        if self._unpack is not None and self._received and not self._unpack.eof:
            raise GetError("its packed body is cut off")
        return b"".join(self._parts)

    def _add(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > self._max_bytes:
            raise self._too_long()
        self._parts.append(part)

    def _too_long(self) -> GetError:
        return GetError(f"its body has over {self._max_bytes} bytes")


class AsyncGetter:
    """A connection kept open between questions, on the event loop."""

    def __init__(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | bool = True,
        total_seconds: float = TOTAL_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._headers = {**ASK_PLAIN, **(headers or {})}
        # made once: 30 ms
        self._tls: ssl.SSLContext | bool = (
            httpx.create_ssl_context() if tls is True else tls
        )
        self._total_seconds = total_seconds
        self._max_bytes = max_bytes
        self._client = self._new_client()

    async def get(self, url: str) -> GetReply:
        """The reply at `url`. Raises GetError without a whole one."""
        keeps_client = False
        try:
            async with (
                asyncio.timeout(self._total_seconds),
                self._client.stream(
                    "GET", _address(url), headers=self._headers
                ) as reply,
            ):
                packing = reply.headers.get("content-encoding", "")
                body = BoundedBody(packing, self._max_bytes)
                async for data in reply.aiter_raw():
                    body.feed(data)
                found = GetReply(reply.status_code, dict(reply.headers), body.whole())
            keeps_client = True
        except TimeoutError:
            raise _too_slow(self._total_seconds) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            keeps_client = is_away = isinstance(error, httpx.ConnectError)
            raise GetError(_line(error), is_unreachable=is_away) from None
        finally:
            if not keeps_client:
                # httpcore's pool keeps a connection that was cancelled while it was
                # made, open and never used, until there is no room for another one
                spent, self._client = self._client, self._new_client()
                await spent.aclose()
        return found

    async def use_tls(self, context: ssl.SSLContext | bool) -> None:
        """Ask with this from now on, over a new connection where it is another."""
        if context not in (True, self._tls):
            self._tls = context
            await self.close()
            self._client = self._new_client()

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        """Closed at the end of the block."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self.close()

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            trust_env=False, timeout=self._total_seconds, verify=self._tls
        )


class Getter:
    """A connection kept open between questions, for a thread of its own."""

    def __init__(
        self,
        *,
        unix_socket: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        total_seconds: float = TOTAL_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._headers = {**ASK_PLAIN, **(headers or {})}
        self._total_seconds = total_seconds
        self._max_bytes = max_bytes
        self._network = _Network()
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls, uds=unix_socket, max_connections=1,
            network_backend=self._network,
        )  # fmt: skip

    def get(self, url: str) -> GetReply:
        """The reply at `url`. Raises GetError without a whole one."""
        self._network.deadline_seconds = time.monotonic() + self._total_seconds
        try:
            target = _address(url)
            address = httpcore.URL(
                scheme=target.raw_scheme, host=target.raw_host, port=target.port,
                target=target.raw_path,
            )  # fmt: skip
            host = target.netloc.decode("ascii")
            headers = {"host": host, **self._headers}
            with self._pool.stream("GET", address, headers=[*headers.items()]) as reply:
                found = {
                    name.decode("latin-1").lower(): value.decode("latin-1")
                    for name, value in reply.headers
                }
                body = BoundedBody(found.get("content-encoding", ""), self._max_bytes)
                for data in reply.iter_stream():
                    body.feed(data)
                return GetReply(reply.status, found, body.whole())
        except httpcore.TimeoutException:
            raise _too_slow(self._total_seconds) from None
        except (*HTTPCORE_ERRORS, httpx.InvalidURL) as error:
            is_away = isinstance(error, httpcore.ConnectError)
            raise GetError(_line(error), is_unreachable=is_away) from None

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._pool.close()

    def __enter__(self) -> Self:
        """Closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()


HTTPCORE_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
)


class _Network(httpcore.NetworkBackend):
    """Sockets whose every wait ends at one deadline: httpcore's own are per wait."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()
        self.deadline_seconds = 0.0

    def left_seconds(self) -> float:
        """Time left; raises httpcore.ReadTimeout when it is over."""
        left = self.deadline_seconds - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("deadline")
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection made within the deadline."""
        stream = self._inner.connect_tcp(
            host, port, self.left_seconds(), local_address, socket_options
        )
        return _Stream(stream, self)

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection made within the deadline."""
        stream = self._inner.connect_unix_socket(
            path, self.left_seconds(), socket_options
        )
        return _Stream(stream, self)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, network: _Network) -> None:
        self._inner = inner
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._network.left_seconds())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._network.left_seconds())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._network.left_seconds()
        inner = self._inner.start_tls(ssl_context, server_hostname, left)
        return _Stream(inner, self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _address(url: str) -> httpx.URL:
    """The address, with what a person may have typed quoted. Raises GetError."""
    address = httpx.URL(url)
    if address.port is not None and not 0 < address.port < 65536:
        raise GetError(f"port {address.port} is not between 1 and 65535")
    return address


def _too_slow(total_seconds: float) -> GetError:
    return GetError(f"no whole reply within {total_seconds:g} s")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
