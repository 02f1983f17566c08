"""A client of the admin API: for commands, and for loadgen, which imports it too.

Rule: it asks directly, following no redirect and no proxy of the environment, and
whatever goes wrong is an AdminError in one line with the URL.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Self, TypeVar

import httpx
import msgspec

from proxy.errors import ProxyError
from proxy.process.http_get import AsyncGetter, GetError
from proxy.wire.api import (
    BooksReply,
    HardwareReply,
    ReadinessReply,
    RequestReply,
    TotalsReply,
    UpstreamReply,
    UpstreamsReply,
)

T = TypeVar("T")

TIMEOUT_SECONDS = 5.0
PAGE_RECORDS = 5000
"""Records asked for at once: about 3 MB."""


class AdminError(ProxyError):
    """The admin API did not answer, or not as this client understands it."""

    def __init__(
        self, url: str, reason: str, *, status: int | None = None, detail: str = ""
    ) -> None:
        super().__init__(f"{url}: {reason}")
        self.status = status
        """Status of a reply that refuses."""
        self.detail = detail
        """The reason given in the reply."""


class AdminClient:
    """The admin API of one proxy; every call may raise AdminError.

    An https URL is checked by `tls`, else against the system's authorities, or
    `SSL_CERT_FILE`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        is_tls = url.startswith("https:")
        self._client = httpx.Client(
            trust_env=False,
            timeout=timeout_seconds,
            verify=(tls or ssl.create_default_context()) if is_tls else True,
            headers={} if token is None else {"authorization": f"Bearer {token}"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def books(self, at_unix_seconds: float | None = None) -> BooksReply:
        """The accounts up to an instant, or up to now."""
        at = {} if at_unix_seconds is None else {"at": f"{at_unix_seconds:.6f}"}
        return self._get("/books", BooksReply, at)

    def requests(
        self, cursor: int, from_unix_seconds: float = 0.0
    ) -> Iterator[RequestReply]:
        """Every request settled after this one, oldest first.

        And none settled before an instant: a store may hold a year of others.
        """
        decoder = msgspec.json.Decoder(RequestReply)
        query = {
            "from_unix": f"{from_unix_seconds:.6f}",
            "limit": str(PAGE_RECORDS),
        }
        while True:
            page = self._ask("GET", "/requests", {**query, "since": str(cursor)})
            try:
                found = decoder.decode_lines(page)
            except msgspec.MsgspecError as error:
                raise self._not_understood("/requests", error) from None
            yield from found
            if len(found) < PAGE_RECORDS:
                return
            cursor = found[-1].cursor

    def totals(self) -> TotalsReply:
        """What it counted since it began."""
        return self._get("/totals", TotalsReply)

    def readiness(self) -> ReadinessReply:
        """Whether requests are served and their joules known; 503 is an answer.

        Without the token `/readyz` says only yes or no, to spare probes one: then
        this raises AdminError with status 401, as every other path does.
        """
        body = self._ask("GET", "/readyz", accepted=(200, 503))
        try:
            return msgspec.json.decode(body, type=ReadinessReply)
        except msgspec.MsgspecError as error:
            self._ask("GET", "/info")
            raise self._not_understood("/readyz", error) from None

    def upstreams(self) -> list[UpstreamReply]:
        """Every upstream, and whether it gets requests."""
        return self._get("/upstreams", UpstreamsReply).upstreams

    def set_draining(self, upstream: str, is_draining: bool) -> UpstreamReply:
        """Give an upstream no new requests, or give it some again."""
        path = f"/upstreams/{upstream}/{'drain' if is_draining else 'resume'}"
        return self._decoded(path, self._ask("POST", path), UpstreamReply)

    def hardware(
        self, from_unix_seconds: float, to_unix_seconds: float
    ) -> HardwareReply:
        """How the boards worked between two instants."""
        query = {
            "from_unix": f"{from_unix_seconds:.6f}",
            "to_unix": f"{to_unix_seconds:.6f}",
        }
        return self._get("/hardware", HardwareReply, query)

    def calibration(self) -> bytes:
        """The document of all calibrations, to be read by `store.fits.decoded`."""
        return self._ask("GET", "/calibration")

    def _get(
        self,
        path: str,
        of: type[T],
        query: dict[str, str] | None = None,
        accepted: tuple[int, ...] = (200,),
    ) -> T:
        return self._decoded(path, self._ask("GET", path, query, accepted), of)

    def _decoded(self, path: str, body: bytes, of: type[T]) -> T:
        try:
            return msgspec.json.decode(body, type=of)
        except msgspec.MsgspecError as error:
            raise self._not_understood(path, error) from None

    def _not_understood(self, path: str, error: Exception) -> AdminError:
        return AdminError(f"{self.url}{path}", f"is not understood: {error}")

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        accepted: tuple[int, ...] = (200,),
    ) -> bytes:
        url = f"{self.url}{path}"
        try:
            reply = self._client.request(method, url, params=query)
        except httpx.ConnectError as error:
            raise AdminError(
                url,
                f"nobody answers there ({_first_line(error)}); is `metering-proxy "
                "serve` running, and is this its --admin address?",
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AdminError(url, _first_line(error)) from None
        if reply.status_code not in accepted:
            raise _refused(url, reply.status_code, reply.content)
        return reply.content


async def totals_at(
    url: str,
    *,
    token: str | None,
    total_seconds: float,
    tls: ssl.SSLContext | None = None,
) -> TotalsReply:
    """What a proxy counted; its whole reply within this time. Raises AdminError."""
    asked = f"{url.rstrip('/')}/totals"
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    if tls is None and url.startswith("https:"):
        tls = ssl.create_default_context()
    async with AsyncGetter(
        headers=headers, tls=tls or True, total_seconds=total_seconds
    ) as getter:
        try:
            reply = await getter.get(asked)
        except GetError as error:
            raise AdminError(url, f"{error}"[:200].lower()) from None
    if reply.status != 200:
        raise _refused(url, reply.status, reply.body)
    try:
        return msgspec.json.decode(reply.body, type=TotalsReply)
    except msgspec.MsgspecError as error:
        reason = f"its /totals is not understood: {error}"
        raise AdminError(url, reason) from None


class _Refusal(msgspec.Struct):
    error: str


def _refused(url: str, status: int, body: bytes) -> AdminError:
    detail = _detail(body)
    reason = f"answered {status}{': ' if detail else ''}{detail}"
    return AdminError(url, reason, status=status, detail=detail)


def _detail(body: bytes) -> str:
    """The error of a JSON reply, else the start of the text."""
    try:
        return msgspec.json.decode(body, type=_Refusal).error
    except msgspec.MsgspecError:
        return " ".join(body.decode("utf-8", "replace")[:200].split())


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].lower()
