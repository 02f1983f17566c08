"""Configuration of `loadgen simulate`: its fields are the options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

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
    announce: Annotated[
        bool,
        Option("Print one JSON line when listening; leave when standard input closes."),
    ] = False
