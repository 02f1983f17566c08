"""Sensors over HTTP: timed requests, the remote clock, samples of Prometheus text."""

from __future__ import annotations

import json
import math
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from prometheus_client.samples import Sample

from proxy.errors import SensorError
from proxy.process.http_get import GetError, Getter
from proxy.wire.exposition import samples_named

TOTAL_SECONDS = 2.0
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
    """A connection to one sensor, kept open between reads, each of them bounded."""

    def __init__(
        self,
        source: str,
        *,
        unix_socket: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        is_verified: bool = True,
        total_seconds: float = TOTAL_SECONDS,
        expected: str = "",
    ) -> None:
        self._source = source
        self._expected = f", expected {expected}" if expected else ""
        # the system's authorities, or SSL_CERT_FILE
        tls = ssl.create_default_context()
        if not is_verified:
            tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        self._getter = Getter(
            unix_socket=unix_socket, tls=tls, total_seconds=total_seconds,
            headers={**_authorization(basic_auth), **(headers or {})},
        )  # fmt: skip

    def get(self, url: str) -> SensorReply:
        """The text at `url`. Raises SensorError naming address and fault."""
        begin = time.monotonic()
        try:
            reply = self._getter.get(url)
        except GetError as error:
            raise SensorError(f"{self._source} at {url}: {error}") from None
        if not 200 <= reply.status < 300:
            raise SensorError(
                f"{self._source} at {url} answered {reply.status}{self._expected}"
            )
        date = _unix_seconds(reply.headers.get("date"))
        return SensorReply(url, reply.text, begin, time.monotonic(), date)

    def get_json(self, url: str) -> tuple[dict[str, Any], SensorReply]:
        """The JSON object at `url`. Raises SensorError as `get` does."""
        reply = self.get(url)
        try:
            found = json.loads(reply.text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise SensorError(
                f"{self._source} at {url} answered {reply.text[:40]!r}, "
                "expected a JSON object"
            )
        return found, reply

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self._getter.close()


def _authorization(basic_auth: tuple[str, str] | None) -> dict[str, str]:
    if basic_auth is None:
        return {}
    encoded = b64encode(":".join(basic_auth).encode()).decode("ascii")
    return {"authorization": f"Basic {encoded}"}


def _unix_seconds(date: str | None) -> float | None:
    try:
        parsed = parsedate_to_datetime(date) if date else None
    except (ValueError, OverflowError):
        return None
    # A zone of -0000 is read as no zone at all; HTTP knows GMT only.
    return parsed.replace(tzinfo=parsed.tzinfo or UTC).timestamp() if parsed else None


class RemoteClock:
    """Offset of a remote Unix clock, from stamps seen inside requests.

    As in NTP, the remote stamp was taken between the start and the end of the
    request, so each exchange bounds the offset; bounds of many exchanges are
    intersected, which also makes whole-second stamps (HTTP's `Date`) useful. While
    an offset of zero fits all bounds the clocks are taken as synchronised.
    `unix_origin_seconds` is Unix minus monotonic.
    """

    def __init__(self, unix_origin_seconds: float) -> None:
        self._origin = unix_origin_seconds
        self._low = -math.inf
        self._high = math.inf

    def observe(
        self,
        begin_seconds: float,
        end_seconds: float,
        remote_unix_seconds: float,
        resolution_seconds: float,
    ) -> None:
        """A stamp, cut down to its resolution, from between two local instants."""
        low = remote_unix_seconds - self._origin - end_seconds
        high = remote_unix_seconds + resolution_seconds - self._origin - begin_seconds
        if low > self._high or high < self._low:  # a clock was set, or has drifted
            self._low, self._high = low, high
        else:
            self._low, self._high = max(low, self._low), min(high, self._high)

    @property
    def offset_seconds(self) -> float | None:
        """Remote minus local, above 0 when it is ahead; None before any exchange."""
        if math.isinf(self._low) or math.isinf(self._high):
            return None
        return 0.0 if self._low <= 0 <= self._high else (self._low + self._high) / 2

    def local_seconds(self, remote_unix_seconds: float) -> float:
        """A remote stamp on our monotonic clock."""
        return remote_unix_seconds - (self.offset_seconds or 0.0) - self._origin


SIMULATED = "servewatt_simulated"
"""A sample of this name with value 1 marks the whole page as not measured."""


def read_samples(text: str, names: Sequence[str]) -> tuple[list[Sample], bool]:
    """Samples with one of these names, and whether a simulator made the page.

    Raises SensorError on lines that are not in Prometheus' format.
    """
    try:
        found = samples_named(text, (*names, SIMULATED))
    except ValueError as error:
        raise SensorError(f"not Prometheus text: {error}") from None
    is_simulated = any(s.name == SIMULATED and s.value == 1 for s in found)
    return [sample for sample in found if sample.name in names], is_simulated
