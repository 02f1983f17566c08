"""One HTTP sensor: GET, the times around it, and one line for all that goes wrong."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from proxy.errors import SensorError

READ_TIMEOUT_SECONDS = 2.0
"""A slower answer is a gap: the curve does not integrate over longer holes."""


@dataclass(frozen=True, slots=True)
class SensorReply:
    """A good answer, with this host's monotonic seconds around the request."""

    url: str
    text: str
    begin_seconds: float
    end_seconds: float
    date_unix_seconds: float | None
    """The `Date` header, cut to whole seconds; None when absent or unreadable."""

    @property
    def at_seconds(self) -> float:
        """The middle of the request: the best guess of when it was answered."""
        return (self.begin_seconds + self.end_seconds) / 2


class HttpSensor:
    """A connection to one sensor, kept open between reads."""

    def __init__(
        self,
        source: str,
        *,
        unix_socket: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        is_verified: bool = True,
        timeout_seconds: float = READ_TIMEOUT_SECONDS,
        expected: str = "",
    ) -> None:
        self._source = source
        self._expected = f", expected {expected}" if expected else ""
        transport = httpx.HTTPTransport(uds=unix_socket) if unix_socket else None
        self._client = httpx.Client(
            timeout=timeout_seconds, trust_env=False, transport=transport,
            auth=basic_auth, headers=headers,
            # the system's authorities, or SSL_CERT_FILE
            verify=ssl.create_default_context() if is_verified else False,
        )  # fmt: skip

    def get(self, url: str) -> SensorReply:
        """The text at `url`. Raises SensorError naming address and fault."""
        begin = time.monotonic()
        try:
            reply = self._client.get(url)
            reply.raise_for_status()
        except httpx.HTTPStatusError as error:
            raise SensorError(
                f"{self._source} at {url} answered "
                f"{error.response.status_code}{self._expected}"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            reason = str(error) or type(error).__name__
            raise SensorError(f"{self._source} at {url}: {reason}") from None
        date = _unix_seconds(reply.headers.get("date"))
        return SensorReply(url, reply.text, begin, time.monotonic(), date)

    def get_json(self, url: str) -> tuple[dict[str, Any], SensorReply]:
        """The JSON object at `url`. Raises SensorError as `get` does."""
        reply = self.get(url)
        try:
            found = json.loads(reply.text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise SensorError(
                f"{self._source} at {url} answered {reply.text[:40]!r}, "
                "expected a JSON object"
            )
        return found, reply

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._client.close()


def _unix_seconds(date: str | None) -> float | None:
    try:
        parsed = parsedate_to_datetime(date) if date else None
    except (ValueError, OverflowError):
        return None
    # A zone of -0000 is read as no zone at all; HTTP knows GMT only.
    return parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp() if parsed else None
