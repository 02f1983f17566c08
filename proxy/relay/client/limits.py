"""The clients that are connected: how many in all, and how many from one address.

A connection beyond a limit gets a refusal and is closed. While it reads that, it
counts for no client; when too many are being refused, further ones are closed at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Iterator
from typing import Protocol

from proxy.relay.client.response import Refusal
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters

MAX_BEING_REFUSED = 200
IPV6_SITE_BITS = 64
"""A client with IPv6 has as many addresses as it likes within these."""


class Connected(Protocol):
    """A client's connection, as the relay as a whole sees it."""

    transport: asyncio.Transport

    def finish_and_close(self) -> None:
        """Close after the reply in progress."""

    def check_deadline(self, now_seconds: float) -> None:
        """Close if it was silent for too long."""


class Clients:
    """Every open connection of a client; iterates over a copy."""

    def __init__(self, config: RelayConfig, counters: RelayCounters) -> None:
        self._config = config
        self._counters = counters
        self._admitted: dict[Connected, str] = {}
        self._refused: set[Connected] = set()
        self._of_address: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Connected]:
        return iter([*self._admitted, *self._refused])

    def __len__(self) -> int:
        return len(self._admitted) + len(self._refused)

    def enter(self, client: Connected, peer_name: object) -> Refusal | None:
        """Count a new connection; why it may not stay, where it may not."""
        address = address_of(peer_name)
        refusal = self._refusal(address)
        if refusal is not None:
            self._refused.add(client)
            return refusal
        self._admitted[client] = address
        self._of_address[address] += 1
        self._counters.clients_open = len(self._admitted)
        return None

    def leave(self, client: Connected) -> None:
        """It is gone; a second call does nothing."""
        self._refused.discard(client)
        address = self._admitted.pop(client, None)
        if address is None:
            return
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
        self._counters.clients_open = len(self._admitted)

    @property
    def are_flooding(self) -> bool:
        """Whether there is no room even for connections that are being refused."""
        return len(self._refused) > MAX_BEING_REFUSED

    def _refusal(self, address: str) -> Refusal | None:
        limit = self._config.max_connections
        if len(self._admitted) >= limit:
            message = f"this proxy holds {limit} connections already; try again later"
            return Refusal(503, "too_many_connections", message)
        limit = self._config.max_connections_per_client
        if limit and self._of_address[address] >= limit:
            message = f"more than {limit} connections from your address"
            code = "too_many_connections_of_client"
            return Refusal(429, code, message)
        return None


def address_of(peer_name: object) -> str:
    """The client of a connection: an IPv4 address, or an IPv6 network of 64 bits."""
    if not isinstance(peer_name, tuple) or not peer_name:
        return ""
    text = str(peer_name[0])
    if ":" not in text:
        return text
    address = ipaddress.IPv6Address(text.partition("%")[0])
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, IPV6_SITE_BITS), strict=False))
