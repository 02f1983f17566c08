"""Options and limits of the relay, and the address of its upstream."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from proxy.errors import ConfigError
from proxy.process.options import Option, split_names
from proxy.security.secrets import without_user
from proxy.security.tls import Identity, UpstreamTls

Size = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True, kw_only=True)
class RelayLimits:
    """What clients may take, and how long anything may last."""

    max_body_bytes: Annotated[
        Size,
        Option("A request's body, which is held in memory.", "N", heading="Limits"),
    ] = 32 * 1024 * 1024
    """As vLLM's Rust frontend; a prompt of 1M tokens is about 5 MB."""
    max_buffered_bytes: Annotated[
        Size,
        Option(
            "Memory for all requests that wait, and replies that are unread; beyond, "
            "a 503.",
            "N",
        ),
    ] = 512 * 1024 * 1024
    """A thousand prompts of 100k tokens."""
    max_buffered_bytes_per_client: Annotated[
        int,
        Meta(ge=0),
        Option("The same for one address (IPv6: /64); 0 is half of it.", "N"),
    ] = 0
    """A gateway is one address too: half is much, and never all."""
    max_head_bytes: Annotated[Size, Option("A request line and its headers.", "N")] = (
        64 * 1024
    )
    max_target_bytes: Annotated[Size, Option("A request's path and query.", "N")] = (
        16 * 1024
    )
    """No engine has a route of more than a few dozen."""
    max_headers: Annotated[Size, Option("Headers of a request.", "N")] = 200
    max_connections: Annotated[
        Size, Option("Connections of clients; the next one gets a 503.", "N")
    ] = 8192
    """More than any one engine serves at once."""
    max_connections_per_client: Annotated[
        int,
        Meta(ge=0),
        Option(
            "Connections from one address (IPv6: /64); 0 is no limit. In front of "
            "this proxy there may be one that is everybody's address.",
            "N",
        ),
    ] = 0
    header_timeout_seconds: Annotated[
        Seconds, Option("From a request's first byte to its blank line.", "S")
    ] = 30.0
    """Holds off slow senders."""
    body_timeout_seconds: Annotated[
        Seconds, Option("Between two reads of a request's body.", "S")
    ] = 60.0
    request_timeout_seconds: Annotated[
        Seconds, Option("From a request's first byte to its last.", "S")
    ] = 300.0
    """Holds off those who drip."""
    idle_timeout_seconds: Annotated[
        Seconds, Option("Between two requests of a connection.", "S")
    ] = 75.0
    """As nginx."""
    first_byte_timeout_seconds: Annotated[
        float | None,
        Meta(ge=0),
        Option(
            "Until the engine begins its reply; 0 is no limit.", "S", zero_is_none=True
        ),
    ] = 600.0
    """A full queue may hold a request for minutes; for ever means a dead engine."""
    read_timeout_seconds: Annotated[
        float | None,
        Meta(ge=0),
        Option("Between two reads of a reply; 0 is no limit.", "S", zero_is_none=True),
    ] = None
    """Reasoning models pause as long as they like."""
    write_timeout_seconds: Annotated[
        float | None,
        Meta(ge=0),
        Option(
            "Without one byte taken by a client; 0 is no limit.",
            "S",
            zero_is_none=True,
        ),
    ] = 60.0
    """For a client that is behind; its engine is freed then."""


def _paths(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Routes as sent, without query. Raises ValueError for what is none."""
    for text in texts:
        if not text.startswith("/") or not text.isprintable() or set(text) & set("?# "):
            raise ValueError(f"{text!r} is not a path, such as /start_profile")
    return texts


@dataclass(frozen=True, kw_only=True)
class RelayOptions:
    """How requests are labelled, routed and answered."""

    default_model: Annotated[
        str | None,
        Option(
            "Model of requests that name none, with several upstreams.",
            "NAME",
            heading="Requests",
            default_is="the first upstream's first",
        ),
    ] = None
    session_header: Annotated[
        str,
        Option("Requests with the same value of it go to the same replica.", "NAME"),
    ] = "x-session-id"
    """vLLM knows it too."""
    tenant_header: Annotated[
        str | None, Option("Request header that names the tenant.", "NAME")
    ] = None
    tenants: Annotated[
        tuple[str, ...],
        Option(
            "Tenants shown by name; any other is `other`.",
            "A,B",
            parse=split_names,
            default="",
        ),
    ] = ()
    allow_unknown_routes: Annotated[
        bool, Option("Pass routes on that are neither metered nor known.")
    ] = False
    """Off: engines have control routes (/pause, /abort_requests) without a guard."""
    allow_route: Annotated[
        tuple[str, ...],
        Option(
            "Pass this one route on as well, by any method, such as "
            "/reset_prefix_cache or /start_profile; may be repeated.",
            "PATH",
            parse=_paths,
            multiple=True,
        ),
    ] = ()
    usage_event: Annotated[
        str,
        Option(
            "The usage event of streams whose clients did not ask for it. drop: ask "
            "for it and take it out; keep: never ask, pass on what comes; auto: by "
            "what comes with the first such stream, which is sent as written.",
            choices=["auto", "drop", "keep"],
        ),
    ] = "auto"
    """An event that the engine sends unasked looks like one that was asked for."""
    stream_upstream: Annotated[
        bool,
        Option(
            "Ask vLLM for a stream where a client wants one whole reply, and put that "
            "together: so it is known when each token came.",
        ),
    ] = False
    """Off: the engine's own reply is the one that nobody can doubt."""
    energy_in_response: Annotated[
        bool,
        Option(
            "Tell clients the energy of each reply, in the reply; one asks or "
            "declines with `x-servewatt-energy: 1` or 0."
        ),
    ] = False
    energy_wait_seconds: Annotated[
        float,
        Meta(ge=0, le=60),
        Option("Hold the end of such a reply for settled figures.", "S"),
    ] = 0.0
    """0: the figures of a reply are an estimate."""
    access_log: Annotated[
        bool,
        Option("Log a line for each request: what, by whom, outcome, seconds."),
    ] = False


@dataclass(frozen=True)
class RelayConfig(RelayOptions, RelayLimits):
    """Configuration of one relay, fixed at its start."""

    upstream_url: str
    """The engine, `http://host:port[/prefix]`; never taken from a request."""
    host: str = "127.0.0.1"
    """Loopback: whoever opens the port to a network decides so."""
    port: int = 0
    """0 takes any free port."""
    identity: Identity | None = None
    """Shown to clients that speak TLS; None: plain HTTP."""
    upstream_tls: UpstreamTls = field(default_factory=UpstreamTls)
    """For an https upstream; by default the system's authorities are trusted."""
    tenant_hash_key: str | None = field(default=None, repr=False)
    """Secret under which a tenant without a name of its own is hashed."""
    write_buffer_bytes: int = 256 * 1024
    """Unread bytes of one client before its upstream is paused: 1,000 events."""
    connect_timeout_seconds: float = 10.0
    upstream_idle_seconds: float = 4.0
    """uvicorn closes idle connections at 5 s; be gone before."""
    beat_seconds: float = 0.05
    """How long a stamped read may wait to be parsed for the meter."""


def share_of(config: RelayConfig, relays: int) -> RelayConfig:
    """The limits of one of several relays that together have those of `config`.

    Connections and memory are divided. A client's connections are not: the kernel
    deals them out, and may give one relay all of a few. One address may always hold a
    whole body.
    """
    buffered = -(-config.max_buffered_bytes // relays)
    asked = config.max_buffered_bytes_per_client
    share = -(-asked // relays) if asked else buffered // 2
    return replace(
        config,
        max_connections=-(-config.max_connections // relays),
        max_buffered_bytes=buffered,
        max_buffered_bytes_per_client=max(share, min(config.max_body_bytes, buffered)),
    )


@dataclass(frozen=True, slots=True)
class UpstreamAddress:
    """Where requests go, taken apart once."""

    url: str
    """Without a `/v1` at its end, and without a slash."""
    host: str
    port: int
    is_tls: bool
    authority: bytes
    """Value of the Host header."""
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
    # The base URL of an OpenAI client ends in /v1; the routes asked for begin with it.
    prefix = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return UpstreamAddress(
        url=f"{parts.scheme}://{parts.netloc}{prefix}",
        host=parts.hostname,
        port=port or (443 if is_tls else 80),
        is_tls=is_tls,
        authority=parts.netloc.encode("ascii", "replace"),
        prefix=prefix.encode(),
    )
