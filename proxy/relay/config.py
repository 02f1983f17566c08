"""What the relay can be told, once, at start; and where it sends requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from proxy.errors import ConfigError
from proxy.security.secrets import without_user
from proxy.security.tls import Identity, UpstreamTls


@dataclass(frozen=True, slots=True)
class RelayConfig:
    """Every limit of the relay, with the reason for its default."""

    upstream_url: str
    """The engine, `http://host:port[/prefix]`; never taken from a request."""
    host: str = "127.0.0.1"
    """Loopback: whoever opens the port to a network decides so."""
    port: int = 0
    """0 takes any free port."""
    identity: Identity | None = None
    """What clients meet TLS with; None: plain HTTP."""
    upstream_tls: UpstreamTls = field(default_factory=UpstreamTls)
    """Of an https upstream; by default the system's authorities are trusted."""
    asks_for_usage: bool = True
    """Ask for the usage event where the client did not, and drop it again."""
    energy_in_response: bool = False
    """Tell each request its energy in its own reply, unless it declines."""
    energy_wait_seconds: float = 0.0
    """How long the end of such a reply may wait for settlement; 0: an estimate."""
    allow_unknown_routes: bool = False
    """Off: engines have control routes (/pause, /abort_requests) without a guard."""
    tenant_header: str | None = None
    tenants: frozenset[str] = frozenset()
    """The values that become labels; any other is `other`, or a keyed hash."""
    tenant_hash_key: str | None = field(default=None, repr=False)
    """Secret under which any other value is hashed."""
    default_model: str | None = None
    """Of a request that names none; None: the first upstream's first. With several
    upstreams only, as is the next."""
    session_header: str = "x-session-id"
    """Requests with the same value go to the same replica; vLLM knows it too."""
    max_body_bytes: int = 32 * 1024 * 1024
    """As vLLM's Rust frontend; a prompt of 1M tokens is about 5 MB."""
    max_head_bytes: int = 64 * 1024
    max_target_bytes: int = 16 * 1024
    """Of the path and query; no engine has a route of more than a few dozen."""
    max_headers: int = 200
    max_connections: int = 8192
    """More than any one engine serves at once; beyond, a new one gets a 503."""
    max_connections_per_client: int = 0
    """0 is no limit: a proxy in front may be everybody's address."""
    write_buffer_bytes: int = 256 * 1024
    """Unread bytes of one client before its upstream is paused: 1,000 events."""
    connect_timeout_seconds: float = 10.0
    first_byte_timeout_seconds: float | None = 600.0
    """A full queue may hold a request for minutes; for ever means a dead engine."""
    read_timeout_seconds: float | None = None
    """Between two reads of a reply; reasoning models pause as long as they like."""
    write_timeout_seconds: float | None = 60.0
    """Without one byte taken by a client that is behind; its engine is freed then."""
    upstream_idle_seconds: float = 4.0
    """uvicorn closes idle connections at 5 s; be gone before."""
    header_timeout_seconds: float = 30.0
    """From a request's first byte to its blank line: holds off slow senders."""
    body_timeout_seconds: float = 60.0
    """Between two reads of a request's body."""
    request_timeout_seconds: float = 300.0
    """From a request's first byte to its last: holds off those who drip."""
    idle_timeout_seconds: float = 75.0
    """Between two requests of a client, as nginx."""
    beat_seconds: float = 0.05
    """How long a stamped read may wait to be parsed for the meter."""


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """Where requests go, taken apart once."""

    url: str
    host: str
    port: int
    is_tls: bool
    authority: bytes
    """What the Host header says."""
    prefix: bytes
    """Put before every path; empty or `/like/this`."""


def parse_upstream(url: str) -> UpstreamAddress:
    """The parts of `--upstream`. Raises ConfigError for what is not an http URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        shown = without_user(url)
        raise ConfigError(f"upstream {shown!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"upstream {without_user(url)!r} is not http://host:port or https://host"
        )
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(  # which is not quoted: it may hold a password
            f"the upstream URL of {parts.hostname} has a query, fragment or user; "
            "give only host and path"
        )
    is_tls = parts.scheme == "https"
    return UpstreamAddress(
        url=url.rstrip("/"),
        host=parts.hostname,
        port=port or (443 if is_tls else 80),
        is_tls=is_tls,
        authority=parts.netloc.encode("ascii", "replace"),
        prefix=parts.path.rstrip("/").encode(),
    )
