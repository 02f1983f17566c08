"""Configuration of `loadgen simulate`: its fields are the options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from loadgen.errors import UsageError
from loadgen.simulator.core.config import EngineConfig
from loadgen.simulator.core.sensor import SensorConfig
from proxy.process.options import Option


def _address(text: str) -> tuple[str, int]:
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen is {text!r}, expected HOST:PORT")
    return host.strip("[]"), int(port)


def _urls(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        parts = urlsplit(text)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                f"{text!r} is not a base URL, such as http://127.0.0.1:8100"
            )
        if "@" in parts.netloc:
            raise UsageError(f"the URL of {parts.hostname} holds a user or password")
    return tuple(text.rstrip("/").removesuffix("/v1") for text in texts)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A simulated engine with its GPUs, as a server."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    sensor: SensorConfig = field(default_factory=SensorConfig)
    """Its seed is the engine's."""
    dialect: Annotated[
        str,
        Option("Whose API it speaks.", heading="Server", choices=("vllm", "tgi")),
    ] = "vllm"
    listen: Annotated[
        tuple[str, int],
        Option(
            "Port 0 takes any free one.",
            "HOST:PORT",
            parse=_address,
            default="127.0.0.1:8000",
        ),
    ] = ("127.0.0.1", 8000)
    queue_limit: Annotated[
        int,
        Meta(ge=0),
        Option(
            "Refuse requests beyond this many, running and waiting; 0 is no limit.",
            "N",
            name="max-num-queued",
        ),
    ] = 0
    fail_every: Annotated[
        int, Meta(ge=0), Option("Break every Nth request half-way; 0 is none.", "N")
    ] = 0
    idle_gpus: Annotated[
        int,
        Meta(ge=0, le=64),
        Option("Boards of the host beside the engine's, with nothing to do.", "N"),
    ] = 0
    request_id_headers: Annotated[
        bool,
        Option(
            "Send a request's id back, as vLLM does with this option.",
            name="enable-request-id-headers",
        ),
    ] = False
    own_request_ids: Annotated[
        bool,
        Option("A router gives requests ids of its own, as vLLM's example proxy does."),
    ] = False
    announce: Annotated[
        bool,
        Option("Print one JSON line when listening; leave when standard input closes."),
    ] = False
    role: Annotated[
        str | None,
        Option(
            "Half of requests that two engines serve, as with vLLM's NixlConnector; "
            "or the router that sends them to both.",
            choices=("prefill", "decode", "router"),
        ),
    ] = None
    """None: it serves whole requests."""
    prefill: Annotated[
        tuple[str, ...],
        Option(
            "Of a router: where prompts are computed; may be repeated.",
            "URL",
            parse=_urls,
            multiple=True,
        ),
    ] = ()
    decode: Annotated[
        tuple[str, ...],
        Option(
            "Of a router: where replies are written; may be repeated.",
            "URL",
            parse=_urls,
            multiple=True,
        ),
    ] = ()

    def __post_init__(self) -> None:
        if self.role is not None and self.dialect != "vllm":
            raise UsageError(f"--role is of vLLM; {self.dialect} serves whole requests")
        if self.role == "router" and not (self.prefill and self.decode):
            raise UsageError(
                "a router needs --prefill URL and --decode URL, such as "
                "http://127.0.0.1:8100"
            )
        if self.role != "router" and (self.prefill or self.decode):
            raise UsageError("--prefill and --decode are of --role router")
        if self.role != "router" and self.own_request_ids:
            raise UsageError("--own-request-ids is of --role router")
