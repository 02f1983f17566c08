"""Configuration of `metering-proxy serve`: its fields are options and file keys."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from msgspec import Meta

from proxy.admin.limits import AdminLimits
from proxy.engines import DIALECTS
from proxy.power.sources import SOURCES, split_sources
from proxy.process.files import private_folder, readable_name
from proxy.process.logs import FORMATS, LEVELS
from proxy.process.options import Option, split_names
from proxy.recording.config import RecordOptions
from proxy.relay.config import RelayLimits, RelayOptions
from proxy.security.secrets import ADMIN_TOKEN_VARIABLE, without_user
from proxy.security.tls import ServerTls, UpstreamTls
from proxy.store.address import Retention, parse_retention, shown_url, sqlite_url
from proxy.store.address import store_url as parse_store_url
from proxy.wire.facts import LEGS

POLICY_NAMES = ("calibrated", "equal", "phase", "tokens")
"""Keys of `POLICIES`, whose module a help page does not load."""

MAX_INSTANCE_CHARACTERS = 200
MAX_RELAYS = 64
"""More than one meter's process can follow: by chunks it follows four or five."""


def base_url(text: str) -> str:
    """An http(s) URL without a slash at its end. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(
            f"{without_user(text)!r} is not a base URL, such as http://127.0.0.1:8000"
        )
    if "@" in parts.netloc:
        raise ValueError(
            f"the URL of {parts.hostname} holds a user or password, which would show "
            "in logs; give only host, port and path"
        )
    return text.rstrip("/")


def _address(text: str) -> tuple[str, int]:
    """`host:port`, `:port` or `port`; port 0 is any free one."""
    host, _, port = text.rpartition(":")
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8080")
    return host.strip("[]") or "127.0.0.1", int(port)


def _engine_metrics(text: str) -> str:
    return text if text in {"auto", "none"} else base_url(text)


def _path(text: str) -> str:
    if not text.startswith("/") or not text.isascii() or len(text.split()) != 1:
        raise ValueError(f"{text!r} is no path, such as /health")
    return text


def _power(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Sources in order; commas separate them, and the option may be repeated."""
    found = tuple(source for text in texts for source in split_sources(text))
    if texts and not found:
        raise ValueError("names no source; `none` meters no energy")
    return found


def _idle_watts(text: str) -> float | None:
    """Watts, or None for `auto`: measured while nothing runs."""
    if text == "auto":
        return None
    try:
        watts = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither watts nor auto") from None
    if watts < 0:
        raise ValueError(f"{watts:g} is below 0")
    return watts


def state_folder() -> Path | None:
    """Where this user's programs keep what they know; None without a home."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError:  # as in some containers
        return None
    return Path(state) / "servewatt"


def _store(text: str) -> str | None:
    """A database URL; by default a file in the user's state folder."""
    if text == "none":
        return None
    if text == "default":
        folder = state_folder()
        if folder is None:
            raise ValueError("no home folder; name a database, or none")
        with suppress(OSError):  # the store reports what it cannot open, and goes on
            private_folder(folder)
        return sqlite_url(folder / "records.sqlite")
    parse_store_url(text)
    return text


def _instance(text: str) -> str:
    if not text or len(text) > MAX_INSTANCE_CHARACTERS or not text.isprintable():
        raise ValueError(
            f"{text[:80]!r} is no name, such as proxy-a, of at most "
            f"{MAX_INSTANCE_CHARACTERS} characters"
        )
    return text


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """One upstream: where it is, its dialect, and the sensors that are its own."""

    name: str
    """As in its `[[upstream]]` table; a single upstream has the name of its dialect."""
    url: Annotated[
        str,
        Option(
            "Base URL of the engine.",
            "URL",
            heading="Upstream",
            name="upstream",
            key="url",
            parse=base_url,
        ),
    ]
    engine: Annotated[
        str, Option("Dialect of the upstream.", choices=sorted(DIALECTS))
    ] = "vllm"
    power: Annotated[
        tuple[str, ...],
        Option(
            f"Sensors: {', '.join(SOURCES)}; `metering-proxy sources` shows which "
            "this host has. One per boundary (gpu, host, node), the first is the "
            "headline. Several hosts of one engine: dcgm=URL+URL.",
            "SOURCE[,SOURCE]",
            heading="Energy",
            parse=_power,
            multiple=True,
        ),
    ] = ()
    gpus: Annotated[
        tuple[str, ...],
        Option(
            "The engine's GPUs: indices or UUIDs.",
            "0,1",
            parse=split_names,
            default="",
            default_is="all",
        ),
    ] = ()
    models: tuple[str, ...] = ()
    """Those it serves, by the `[[upstream]]` table; empty: as it lists them itself."""
    health_path: Annotated[
        str | None,
        Option(
            "Where the upstream tells, by any status below 500, that it is up; such "
            "as /health/liveliness of LiteLLM.",
            "PATH",
            parse=_path,
            default_is="/health; /v1/models for openai",
        ),
    ] = None
    role: Annotated[
        str | None,
        Option(
            "Leg that it serves of requests on two engines; else the "
            "kv_transfer_params of each request tell it.",
            choices=LEGS,
        ),
    ] = None
    engine_metrics: Annotated[
        str,
        Option(
            "The engine's own gauges of running and waiting requests.",
            "URL|auto|none",
            parse=_engine_metrics,
            default="auto",
        ),
    ] = "auto"
    idle_watts: Annotated[
        float | None,
        Option(
            "Loaded idle power; auto measures it while nothing runs.",
            "W|auto",
            parse=_idle_watts,
            default="auto",
        ),
    ] = None
    bare_idle_watts: Annotated[
        float | None,
        Meta(ge=0),
        Option("Idle power with no weights loaded, shown beside loaded idle.", "W"),
    ] = None
    calibration: Annotated[
        str | None, Option("Keep the fitted constants in this JSON file.", "PATH")
    ] = None
    tls: UpstreamTls = field(default_factory=UpstreamTls)


@dataclass(frozen=True, slots=True)
class MeterOptions:
    """How every upstream is metered."""

    policy: Annotated[
        str,
        Option(
            "Headline attribution policy; all run side by side.",
            heading="Energy",
            choices=POLICY_NAMES,
        ),
    ] = "phase"
    sample_interval_seconds: Annotated[
        float,
        Meta(ge=0.001, le=60),
        Option("Seconds between two reads of a sensor.", "S"),
    ] = 0.02
    window_seconds: Annotated[
        float,
        Meta(ge=0.05, le=60),
        Option("Reconcile the model with the counter over this long.", "S"),
    ] = 0.5


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """One proxy: its upstreams, its ports, and everything that is set once."""

    upstreams: tuple[UpstreamConfig, ...]
    """At least one."""
    metering: MeterOptions = field(default_factory=MeterOptions)
    listen: Annotated[
        tuple[str, int],
        Option(
            "Where clients connect.",
            "HOST:PORT",
            heading="Ports",
            parse=_address,
            default="127.0.0.1:8080",
        ),
    ] = ("127.0.0.1", 8080)
    admin: Annotated[
        tuple[str, int],
        Option(
            "Metrics, books and records.",
            "HOST:PORT",
            parse=_address,
            default="127.0.0.1:9464",
        ),
    ] = ("127.0.0.1", 9464)
    admin_token_file: Annotated[
        str | None,
        Option(
            "Secret that the admin port asks for, needed beyond loopback; else from "
            f"{ADMIN_TOKEN_VARIABLE}.",
            "PATH",
        ),
    ] = None
    """Its path; the token itself is never part of what may be shown."""
    tls: ServerTls = field(default_factory=ServerTls)
    relay: RelayOptions = field(default_factory=RelayOptions)
    tenant_hash_key_file: Annotated[
        str | None,
        Option(
            "Show any other tenant as a hash under this secret; then the header may "
            "be a secret too, such as authorization.",
            "PATH",
            heading="Requests",
        ),
    ] = None
    store: Annotated[
        str | None,
        Option(
            "Database of finished requests: sqlite:///PATH, "
            "postgresql://USER@HOST/NAME, or none.",
            "URL|none",
            heading="Records",
            parse=_store,
            default="default",
            default_is="a SQLite file in ~/.local/state/servewatt",
        ),
    ] = None
    """None: records are kept in memory only."""
    retention: Annotated[
        Retention,
        Option(
            "Keep records for 12h, 30d, 8w; at most so many; forever.",
            "AGE,ROWS",
            name="retain",
            parse=parse_retention,
            default="30d",
        ),
    ] = field(default_factory=Retention)
    instance: Annotated[
        str | None,
        Option(
            "Name of this proxy among those that share a store, kept over restarts; "
            "no two may have the same at one time.",
            "NAME",
            default_is="host:port",
            parse=_instance,
        ),
    ] = None
    recording: RecordOptions = field(default_factory=RecordOptions)
    limits: RelayLimits = field(default_factory=RelayLimits)
    admin_limits: AdminLimits = field(default_factory=AdminLimits)
    relays: Annotated[
        int,
        Meta(ge=1, le=MAX_RELAYS),
        Option(
            "Processes that relay, where one core is too few; beyond 1 the meter is a "
            "process of its own.",
            "N",
            heading="Process",
        ),
    ] = 1
    drain_timeout_seconds: Annotated[
        float,
        Meta(ge=0),
        Option(
            "After SIGTERM: for requests to finish; the rest is cut, and recorded.",
            "S",
        ),
    ] = 30.0
    """As long as Kubernetes gives a pod by default."""
    drain_delay_seconds: Annotated[
        float,
        Meta(ge=0),
        Option(
            "After SIGTERM: for whoever balances to see an unready /readyz, before "
            "new connections are refused.",
            "S",
        ),
    ] = 1.0

    log_level: Annotated[
        str, Option("Least severe lines that are logged.", choices=LEVELS)
    ] = "info"
    log_format: Annotated[
        str, Option("Form of a line on standard error.", choices=FORMATS)
    ] = "text"

    def shown(self) -> dict[str, Any]:
        """The whole of it for the admin API, without a password."""
        shown = asdict(self)
        for part in ("metering", "tls", "relay", "recording"):
            shown |= shown.pop(part)
        for upstream in shown["upstreams"]:
            upstream |= upstream.pop("tls")
            upstream["url"] = url_without_user(upstream["url"])
        if self.store is not None:
            shown["store"] = shown_url(parse_store_url(self.store))
        return {name: _readable(value) for name, value in shown.items()}


def _readable(value: Any) -> Any:
    """The value with texts that any reader of JSON takes."""
    if isinstance(value, str):
        return readable_name(value)
    if isinstance(value, dict):
        return {name: _readable(each) for name, each in value.items()}
    if isinstance(value, tuple | list):
        return [_readable(each) for each in value]
    return value


def url_without_user(url: str) -> str:
    """An upstream's URL, as records name it in a store that proxies share."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def differences(new: ServeConfig, old: ServeConfig) -> list[str]:
    """Names of the fields that differ, beside the upstreams."""
    names = [each.name for each in fields(new) if each.name != "upstreams"]
    return [name for name in names if getattr(new, name) != getattr(old, name)]
