"""The clients that are connected: how many in all, and how many from one address.

A connection beyond a limit gets a refusal and is closed. While it reads that, it
counts for no client; when too many are being refused, further ones are closed at once.
All that the relay holds of them, requests and replies, counts against one budget.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from operator import length_hint
from typing import Protocol

from proxy.relay.client.response import Refusal
from proxy.relay.config import RelayConfig
from proxy.relay.counters import RelayCounters

MAX_BEING_REFUSED = 200
MIN_COUNTED_BYTES = 4096
"""Held by a connection without being counted, or refused: an ordinary small request."""
MEMORY_RETRY_SECONDS = 2
COUNTED_PER_BEAT = 500
"""Connections counted per beat at most that may hold little: 0.5 ms."""
ROUND_BEATS = 16
"""Beats in which each of those is counted once: 0.8 s, as with 8,000 connections."""
IPV6_SITE_BITS = 64
"""A client with IPv6 has as many addresses as it likes within these."""


class Connected(Protocol):
    """A client's connection, as the relay as a whole sees it."""

    transport: asyncio.Transport

    def finish_and_close(self) -> None:
        """Close after the reply in progress."""

    def check_deadline(self, now_seconds: float) -> None:
        """Close if it was silent for too long."""

    @property
    def held_bytes(self) -> int:
        """Memory of its requests and its unread replies, now."""


class Clients:
    """Every open connection of a client; iterates over a copy."""

    def __init__(self, config: RelayConfig, counters: RelayCounters) -> None:
        self._config = config
        self._counters = counters
        self._admitted: dict[Connected, str] = {}
        self._refused: set[Connected] = set()
        self._of_address: Counter[str] = Counter()
        self._held: dict[Connected, int] = {}
        """Bytes counted for each; those with few are not in it."""
        self._held_of_address: Counter[str] = Counter()
        self._round: Iterator[Connected] = iter(())
        self.held_bytes = 0
        self._share_bytes = (
            config.max_buffered_bytes_per_client or config.max_buffered_bytes // 2
        )

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
        self._count(client, address, 0)
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
        self._counters.clients_open = len(self._admitted)

    def count(self, client: Connected) -> None:
        """Count anew what a client holds."""
        address = self._admitted.get(client)
        if address is None:
            return
        held = client.held_bytes
        if held < MIN_COUNTED_BYTES:
            held = 0
        if held or client in self._held:
            self._count(client, address, held)

    def recount(self, client: Connected) -> None:
        """Count anew what a client holds, if that was much."""
        if client in self._held:
            self.count(client)

    def _count(self, client: Connected, address: str, held: int) -> None:
        more = held - self._held.get(client, 0)
        if held:
            self._held[client] = held
        else:
            self._held.pop(client, None)
        self.held_bytes += more
        self._held_of_address[address] += more
        if not self._held_of_address[address]:
            del self._held_of_address[address]

    def refusal_of_memory(self, client: Connected, more_bytes: int) -> Refusal | None:
        """Why a client may not hold so many bytes more; None where it may."""
        address = self._admitted.get(client)
        if address is None or (more_bytes == 0 and client not in self._held):
            return None
        limit = self._config.max_buffered_bytes
        if more_bytes > min(limit, self._share_bytes):
            message = "the body is larger than this proxy's memory for one client"
            return Refusal(413, "body_too_large", message)
        is_mine = self._held_of_address[address] + more_bytes > self._share_bytes
        if not is_mine and self.held_bytes + more_bytes <= limit:
            return None
        whose = "your address's share of " if is_mine else ""
        return Refusal(
            503,
            "memory_full",
            f"{whose}the memory for waiting requests is full; try again later",
            retry_after_seconds=MEMORY_RETRY_SECONDS,
        )

    def relieve(self) -> None:
        """Count some anew, and cut who reads least while all is beyond the budget.

        Requests are refused before that; what grows beyond are unread replies.
        """
        for client in list(self._held):
            self.count(client)
        some = min(-(-len(self._admitted) // ROUND_BEATS), COUNTED_PER_BEAT)
        for client in islice(self._round, some):
            self.count(client)
        if length_hint(self._round) == 0:
            self._round = iter(list(self._admitted))
        limit = self._config.max_buffered_bytes
        if self.held_bytes <= limit and all(
            held <= self._share_bytes for held in self._held_of_address.values()
        ):
            return
        unread = {c: c.transport.get_write_buffer_size() for c in self._held}
        for client in sorted(unread, key=lambda c: -unread[c]):
            address = self._admitted[client]
            is_beyond = self._held_of_address[address] > self._share_bytes
            if unread[client] and (self.held_bytes > limit or is_beyond):
                self._counters.refusals[503, "memory_full"] += 1
                self._count(client, address, 0)
                client.transport.abort()

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
