"""Configuration of `loadgen replay`: its fields are the options."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from msgspec import Meta

from loadgen.client.backends import BACKENDS
from loadgen.energy.addresses import SEPARATOR, urls_of
from loadgen.simulator.core.presets import GPUS, MODELS
from loadgen.traces.readers import READERS
from proxy.process.options import Option

LEDGER_TOKEN_VARIABLE = "SERVEWATT_ADMIN_TOKEN"
"""The same name that the proxy reads it from."""
ARRIVAL_NAMES = ("auto", "constant", "gamma", "inf", "poisson", "trace")
"""`auto` and those of `loadgen.plan.arrivals`, which a help page does not load."""

Stages = tuple[tuple[float, float], ...]
"""Seconds and requests per second of each stage of a load."""
_STAGE = re.compile(r"(\d+(?:\.\d+)?)([smh]?)@(\d+(?:\.\d+)?)", re.ASCII)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
Watts = Annotated[float | None, Meta(ge=0)]


OF_A_PLAN = (
    "rate", "session_rate", "concurrency", "stages", "arrival", "burstiness", "speed",
    "dejitter", "num_prompts", "duration", "max_model_len", "over_length", "input_len",
    "seed", "format", "trace",
)  # fmt: skip
"""Variables of what a plan is made by, so that another value makes another plan."""


def _rate(text: str) -> float:
    """Requests per second: above 0, or `inf`."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a rate, such as 4, 0.5 or inf") from None
    if not value > 0:
        raise ValueError(f"{text} is not above 0")
    return value


def parse_stages(text: str) -> Stages:
    """`60s@2,2m@8`: seconds and requests per second, one after the other."""
    found = []
    for part in text.split(","):
        match = _STAGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(
                f"{part.strip()!r} is not DURATION@RATE, such as 60s@2 or 2m@8"
            )
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
        rate = float(match[3])
        if not (0 < seconds < math.inf and rate < math.inf):
            raise ValueError(f"{part.strip()!r} lasts no time, or for ever")
        found.append((seconds, rate))
    if not any(rate for _, rate in found):
        raise ValueError(f"{text!r} has no stage with a rate above 0")
    return tuple(found)


def parse_url(text: str) -> str:
    """A base URL of a server, without a slash at its end."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        shown = text.rpartition("@")[2]
        raise ValueError(f"{shown!r} is not a base URL, such as http://127.0.0.1:8000")
    if "@" in parts.netloc:
        raise ValueError(
            f"the URL of {parts.hostname} holds a user or password, which would show "
            "in logs; use --api-key-env or --header"
        )
    return text.rstrip("/")


def parse_bus(text: str) -> str:
    """A URL of a NATS server, without user and password. Raises ValueError."""
    try:
        parts = urlsplit(text if "://" in text else f"nats://{text}")
        port = parts.port
    except ValueError:
        port, parts = None, urlsplit("")
    if parts.scheme not in ("nats", "tls") or not parts.hostname or parts.path:
        shown = text.rpartition("@")[2]
        raise ValueError(f"{shown!r} is not a URL, such as nats://host:4222")
    if "@" in parts.netloc:
        raise ValueError(
            f"the URL of {parts.hostname} holds a user or a token, which would show in "
            "logs; put it into a file and name that with --bus-creds"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or 4222}"


WORKER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def parse_worker_name(text: str) -> str:
    """Letters, digits, dots, dashes and underscores. Raises ValueError."""
    if not WORKER_NAME.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a name of up to 64 letters, digits, '.', '_' and '-'"
        )
    return text


BusUrl = Annotated[
    str | None,
    Option("NATS server, with JetStream, that the workers are on.", "URL",
           parse=parse_bus),
]  # fmt: skip
BusFile = Annotated[
    Path | None,
    Option("Its credentials: a .creds file, or a line TOKEN or USER:PASSWORD.",
           "FILE"),
]  # fmt: skip
BusCa = Annotated[
    Path | None,
    Option("Certificates to trust for tls://.", "FILE",
           default_is="the system's"),
]  # fmt: skip


def parse_ledger(text: str) -> str:
    """Admin URLs, each a base URL, as `ledger_at` takes them."""
    urls = [parse_url(url) for url in urls_of(text)]
    if len(set(urls)) < len(urls):
        raise ValueError(f"{text!r} names one proxy twice")
    return SEPARATOR.join(urls)


def _pairs(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for text in texts:
        key, separator, value = text.partition("=")
        if not key.strip() or not separator:
            raise ValueError(f"{text!r} is not KEY=VALUE")
        found.append((key.strip(), value.strip()))
    return tuple(found)


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f'{text!r} is not an object, such as {{"top_k": 1}}')
    return found


def _sources(texts: tuple[str, ...]) -> str | None:
    """One text for the proxy, which knows what separates sources."""
    return ",".join(text.strip(", ") for text in texts) or None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """One run: what is sent where, who meters it, and what is kept."""

    trace: Path
    plan: Path | None = None
    """Plan of an earlier run of this trace, to be run again as it is."""
    command: str | None = None
    """The command line, secrets hidden, for the record."""
    url: Annotated[
        str | None,
        Option(
            "The server's base URL; without it the simulated stack starts.",
            "URL",
            heading="Target",
            parse=parse_url,
        ),
    ] = None
    backend: Annotated[str, Option("API of the server.", choices=sorted(BACKENDS))] = (
        "vllm"
    )
    endpoint: Annotated[
        str | None, Option("Another path than the backend's.", "PATH")
    ] = None
    model: Annotated[
        str | None, Option("Model name.", "NAME", default_is="the server's first")
    ] = None
    api_key_env: Annotated[
        str | None, Option("Environment variable that holds the API key.", "VAR")
    ] = None
    api_key: str | None = field(default=None, repr=False)
    headers: Annotated[
        tuple[tuple[str, str], ...],
        Option(
            "Extra request header; may be repeated.",
            "K=V",
            name="header",
            parse=_pairs,
            multiple=True,
            is_table=True,
        ),
    ] = field(default=(), repr=False)
    """May hold secrets, as the key does: neither is written into the run folder."""
    sim_gpu: Annotated[
        str, Option("GPU of the simulated stack.", choices=sorted(GPUS))
    ] = "h100"
    sim_model: Annotated[
        str, Option("Model of the simulated stack.", choices=sorted(MODELS))
    ] = "llama-3.1-8b"
    sim_gpus: Annotated[
        Positive, Option("GPUs that the simulated model is spread over.", "N")
    ] = 1
    power: Annotated[
        str | None,
        Option(
            "Start a metering proxy before --url with these sensors, one per "
            "boundary: nvml, dcgm=URL, rapl, redfish=URL or none. Without --url a "
            "bare dcgm is the simulated GPU.",
            "SOURCE[,SOURCE]",
            heading="Meter",
            parse=_sources,
            multiple=True,
        ),
    ] = None
    gpus: Annotated[
        str,
        Option("The server's GPUs, with --power.", "0,1", default_is="all visible"),
    ] = ""
    idle_watts: Annotated[
        Watts,
        Option(
            "Loaded idle power of the GPUs, with --power.", "W", default_is="measured"
        ),
    ] = None
    bare_idle_watts: Annotated[
        Watts, Option("Their power with no weights loaded, shown beside it.", "W")
    ] = None
    ledger: Annotated[
        str | None,
        Option(
            "Admin URL of a metering proxy that already stands before --url; of the "
            "two behind a router of prefill and decode engines: URL+URL.",
            "URL[+URL]",
            parse=parse_ledger,
        ),
    ] = None
    ledger_token_file: Annotated[
        str | None,
        Option(
            "Token of that admin API, where it asks for one; else from "
            f"{LEDGER_TOKEN_VARIABLE}.",
            "PATH",
        ),
    ] = None
    ledger_token: str | None = field(default=None, repr=False)
    format: Annotated[
        str | None,
        Option(
            "The trace's format.",
            heading="Load",
            choices=sorted(READERS),
            default_is="by its content",
        ),
    ] = None
    rate: Annotated[
        float | None,
        Option(
            "Requests per second over all turns, or inf.",
            "R",
            alias="request-rate",
            parse=_rate,
        ),
    ] = None
    session_rate: Annotated[
        float | None, Option("Sessions per second instead.", "R", parse=_rate)
    ] = None
    concurrency: Annotated[
        int | None,
        Meta(ge=1),
        Option("Closed loop instead: keep N requests in flight.", "N"),
    ] = None
    stages: Annotated[
        Stages,
        Option(
            "Rates one after the other instead, as in 60s@2,120s@8.",
            "S@R,...",
            parse=parse_stages,
        ),
    ] = ()
    arrival: Annotated[
        str,
        Option(
            "auto: the trace's own gaps scaled to the rate if it has times, else "
            "poisson.",
            choices=ARRIVAL_NAMES,
        ),
    ] = "auto"
    burstiness: Annotated[
        float,
        Meta(gt=0),
        Option("Shape of gamma arrivals; below 1 is burstier than Poisson.", "X"),
    ] = 1.0
    speed: Annotated[
        float | None,
        Meta(gt=0),
        Option("Play the trace's times faster: 2 is twice as fast.", "X"),
    ] = None
    dejitter: Annotated[
        bool,
        Option("Spread arrivals that sit on a coarse time grid.", has_opposite=True),
    ] = True
    max_concurrency: Annotated[
        int | None,
        Meta(ge=1),
        Option("Most requests in flight; waiting counts as schedule lag.", "N"),
    ] = None
    processes: Annotated[
        int,
        Meta(ge=1, le=256),
        Option("Send from N processes, where one core is not enough.", "N"),
    ] = 1
    num_prompts: Annotated[
        int | None, Meta(ge=1), Option("Only the first N requests.", "N")
    ] = None
    duration: Annotated[
        float | None,
        Meta(ge=0),
        Option("Only sessions that start before S seconds.", "S"),
    ] = None
    max_model_len: Annotated[
        int | None, Meta(ge=1), Option("Context limit of the server, in tokens.", "N")
    ] = None
    over_length: Annotated[
        str,
        Option(
            "Requests beyond --max-model-len.", choices=("drop", "truncate", "fail")
        ),
    ] = "drop"
    input_len: Annotated[
        int | None,
        Meta(ge=1),
        Option("Prompt tokens of every request of the trace `synthetic`.", "N"),
    ] = None
    seed: Annotated[int, Option("Seed of arrivals and of generated prompts.", "N")] = 0
    workers: Annotated[
        int | None,
        Meta(ge=1, le=256),
        Option(
            "Send from N `loadgen worker`s on other hosts, over --bus.",
            "N",
            heading="Several hosts",
        ),
    ] = None
    workers_timeout: Annotated[
        float, Meta(gt=0), Option("Longest to wait for the workers.", "S")
    ] = 300.0
    bus: BusUrl = None
    bus_creds: BusFile = None
    bus_ca: BusCa = None
    allow_partial: Annotated[
        bool,
        Option("A run that lost a process or a worker is degraded, not invalid."),
    ] = False
    output_len: Annotated[
        int | None,
        Meta(ge=1),
        Option("Output tokens of every request.", "N", heading="Request"),
    ] = None
    ignore_eos: Annotated[
        bool | None,
        Option(
            "Force the trace's output lengths.",
            has_opposite=True,
            default_is="yes where the backend can, else they are caps",
        ),
    ] = None
    temperature: Annotated[float, Option("Sampling temperature.", "X")] = 0.0
    top_p: Annotated[
        float | None, Option("Nucleus sampling.", "X", default_is="the server's")
    ] = None
    n: Annotated[Positive, Option("Completions per request.", "N")] = 1
    extra_body: Annotated[
        dict[str, Any],
        Option(
            "Further fields of every request body.",
            "JSON",
            parse=_json_object,
            default="{}",
            is_table=True,
        ),
    ] = field(default_factory=dict)
    warmup: Annotated[
        Seconds,
        Option("Left out of the window at its start.", "S", heading="Measure"),
    ] = 0.0
    cooldown: Annotated[
        Seconds, Option("Left out before the last planned start.", "S")
    ] = 0.0
    goodput: Annotated[
        tuple[str, ...],
        Option(
            "Service level in ms, as in --goodput ttft:200 tpot:50 e2el:5000.",
            "NAME:MS",
            parse=tuple,
            multiple=True,
        ),
    ] = ()
    timeout: Annotated[
        float, Meta(gt=0), Option("Longest a request may take.", "S")
    ] = 600.0
    max_errors: Annotated[
        int | None,
        Meta(ge=1),
        Option(
            "End the run, as invalid, once N requests have failed; it ends by itself "
            "where no engine answers for 30 s.",
            "N",
        ),
    ] = None
    out: Annotated[
        Path | None,
        Option(
            "Run folder.",
            "DIR",
            heading="Output",
            is_folder=True,
            default_is="runs/<utc>-<trace>",
        ),
    ] = None
    metadata: Annotated[
        tuple[tuple[str, str], ...],
        Option(
            "Kept in summary.json; may be repeated.",
            "K=V",
            parse=_pairs,
            multiple=True,
            is_table=True,
        ),
    ] = ()
    metrics_port: Annotated[
        str | None,
        Option("Export the load's own metrics to Prometheus.", "[HOST:]PORT"),
    ] = None
    metrics_targets: Annotated[
        Path | None,
        Option(
            "Name that port in this file of targets, for Prometheus' file_sd_configs, "
            "while it is open.",
            "FILE",
        ),
    ] = None
    quiet: Annotated[bool, Option("No progress, only the result.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One worker: where it waits, and under which name."""

    bus: Annotated[
        str,
        Option("NATS server, with JetStream, to wait on.", "URL", parse=parse_bus,
               default="nats://127.0.0.1:4222"),
    ] = "nats://127.0.0.1:4222"  # fmt: skip
    bus_creds: BusFile = None
    bus_ca: BusCa = None
    name: Annotated[
        str | None,
        Option("Name in the reports of runs.", "NAME", parse=parse_worker_name,
               default_is="the host's"),
    ] = None  # fmt: skip
    runs: Annotated[
        int | None,
        Meta(ge=1),
        Option("End after N runs.", "N", default_is="no end"),
    ] = None
    spool: Annotated[
        Path | None,
        Option("Folder for plan and records of a run, which are removed with it.",
               "DIR", is_folder=True, default_is="the system's temporary one"),
    ] = None  # fmt: skip
