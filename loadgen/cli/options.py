"""What `loadgen replay` can be told: the options, their types and their defaults."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from loadgen.client.backends import BACKENDS
from loadgen.plan.arrivals import ARRIVALS
from loadgen.simulator.core.presets import GPUS, MODELS
from loadgen.traces.readers import READERS

LEDGER_TOKEN_VARIABLE = "SERVEWATT_ADMIN_TOKEN"
"""The same name that the proxy reads it from."""


def rate(text: str) -> float:
    """Requests per second: above 0, or `inf`."""
    try:
        value = float(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a rate, such as 4, 0.5 or inf"
        ) from None
    if not value > 0:
        raise click.BadParameter(f"{text} is not above 0")
    return value


def url(text: str) -> str:
    """A base URL of a server, without a slash at its end."""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise click.BadParameter(
            f"{text.rpartition('@')[2]!r} is not a base URL, such as http://127.0.0.1:8000"
        )
    if "@" in parts.netloc:
        raise click.BadParameter(
            f"the URL of {parts.hostname} holds a user or password, which would show "
            "in logs; use --api-key-env or --header"
        )
    return text.rstrip("/")


def pair(text: str) -> tuple[str, str]:
    """`K=V` as key and value."""
    key, separator, value = text.partition("=")
    if not key.strip() or not separator:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE")
    return key.strip(), value.strip()


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.BadParameter(f'{text!r} is not an object, such as {{"top_k": 1}}')
    return found


class SpreadCommand(click.Command):
    """Lets `--goodput ttft:200 tpot:50` take several words, as vLLM's does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before each further `name:number`."""
        spread: list[str] = []
        inside = False
        for word in args:
            if inside and re.fullmatch(r"[a-z0-9_]+:[^/\s]+", word):
                if spread[-1] != "--goodput":
                    spread.append("--goodput")
            else:
                inside = word == "--goodput"
            spread.append(word)
        return super().parse_args(ctx, spread)


def api_key(variable: str | None) -> str | None:
    """The key in the environment variable that `--api-key-env` names."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise click.BadParameter(
            f"environment variable {variable} is not set or empty",
            param_hint="--api-key-env",
        )
    return key


def ledger_token(path: str | None) -> str | None:
    """The token of the proxy's admin API: from a file, else from the environment."""
    if path is None:
        return os.environ.get(LEDGER_TOKEN_VARIABLE, "").strip() or None
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII text"
        raise click.BadParameter(
            f"{path}: {reason.lower()}", param_hint="--ledger-token-file"
        ) from None
    if not token or not token.isprintable():
        raise click.BadParameter(
            f"{path} is not one line of text", param_hint="--ledger-token-file"
        )
    return token


def sources(
    context: click.Context, option: click.Parameter, texts: tuple[str, ...]
) -> str | None:
    """One text for the proxy, which knows what separates sources."""
    return ",".join(text.strip(", ") for text in texts) or None


SECONDS = click.FloatRange(min=0, max=math.inf)
POSITIVE = click.IntRange(min=1)

OPTIONS: list[Callable[[Callable[..., Any]], Callable[..., Any]]] = [
    click.argument("trace", type=click.Path(path_type=Path)),
    # target
    click.option("--url", type=url, metavar="URL",
                 help="The server's base URL; without it the simulated stack starts."),
    click.option("--backend", type=click.Choice(sorted(BACKENDS)), default="vllm",
                 show_default=True, help="What the server speaks."),
    click.option("--endpoint", metavar="PATH", help="Another path than the backend's."),
    click.option("--model", help="Model name.  [default: the server's first]"),
    click.option("--api-key-env", metavar="VAR", help="Environment variable that "
                 "holds the API key."),
    click.option("--header", "headers", type=pair, metavar="K=V",
        multiple=True,
                 help="Extra request header; may be repeated."),
    # meter
    click.option("--power", metavar="SOURCE[,SOURCE]", multiple=True,
                 callback=sources, help="Start a metering proxy before --url with "
                 "these sensors, one per boundary: nvml, dcgm=URL, rapl, redfish=URL "
                 "or none. Without --url a bare dcgm is the simulated GPU."),
    click.option("--gpus", default="", metavar="0,1", help="The server's GPUs, with "
                 "--power.  [default: all visible]"),
    click.option("--idle-watts", type=click.FloatRange(0), metavar="W",
                 help="Loaded idle power of the GPUs, with --power.  [default: "
                 "measured]"),
    click.option("--bare-idle-watts", type=click.FloatRange(0), metavar="W",
                 help="Their power with no weights loaded, shown beside it."),
    click.option("--ledger", type=url, metavar="URL", help="Admin URL of a metering "
                 "proxy that already stands before --url."),
    click.option("--ledger-token-file", metavar="PATH", help="Token of that admin "
                 f"API, where it asks for one; else from {LEDGER_TOKEN_VARIABLE}."),
    click.option("--sim-gpu", type=click.Choice(sorted(GPUS)), default="h100",
                 show_default=True, help="GPU of the simulated stack."),
    click.option("--sim-model", type=click.Choice(sorted(MODELS)),
                 default="llama-3.1-8b", show_default=True,
                 help="Model of the simulated stack."),
    click.option("--sim-gpus", type=POSITIVE, default=1, show_default=True,
                 help="How many of them the simulated model is spread over."),
    # load
    click.option("--format", type=click.Choice(sorted(READERS)),
                 help="The trace's format.  [default: by its content]"),
    click.option("--rate", "--request-rate", "rate", type=rate, metavar="R",
                 help="Requests per second over all turns, or inf."),
    click.option("--session-rate", type=rate, metavar="R",
                 help="Sessions per second instead."),
    click.option("--arrival", type=click.Choice(["auto", *sorted(ARRIVALS)]),
                 default="auto", show_default=True, help="auto: the trace's own gaps "
                 "scaled to the rate if it has times, else poisson."),
    click.option("--burstiness", type=click.FloatRange(min=0, min_open=True),
                 default=1.0, show_default=True, help="Shape of gamma arrivals; "
                 "below 1 is burstier than Poisson."),
    click.option("--speed", type=click.FloatRange(min=0, min_open=True),
                 help="Play the trace's times faster: 2 is twice as fast."),
    click.option("--dejitter/--no-dejitter", default=True, show_default=True,
                 help="Spread arrivals that sit on a coarse time grid."),
    click.option("--max-concurrency", type=POSITIVE, help="Most requests in flight; "
                 "waiting for a place counts as schedule lag."),
    click.option("--num-prompts", type=POSITIVE, help="Only the first N requests."),
    click.option("--duration", type=SECONDS, metavar="S",
                 help="Only sessions that start before S seconds."),
    click.option("--max-model-len", type=POSITIVE, help="Context limit of the server."),
    click.option("--over-length", type=click.Choice(["drop", "truncate", "fail"]),
                 default="drop", show_default=True,
                 help="What to do with requests beyond --max-model-len."),
    click.option("--seed", type=int, default=0, show_default=True,
                 help="Of arrivals and generated prompts."),
    # request
    click.option("--output-len", type=POSITIVE, help="Output tokens of every request."),
    click.option("--ignore-eos/--no-ignore-eos", default=None,
                 help="Force the trace's output lengths.  [default: yes where the "
                 "backend can, else they are caps]"),
    click.option("--temperature", type=float, default=0.0, show_default=True),
    click.option("--top-p", type=float),
    click.option("--n", type=POSITIVE, default=1, show_default=True,
                 help="Completions per request."),
    click.option("--extra-body", type=json_object, default="{}", metavar="JSON",
                 help="Further fields of every request body."),
    # measure
    click.option("--warmup", type=SECONDS, default=0.0, show_default=True,
                 metavar="S", help="Left out of the window at its start."),
    click.option("--cooldown", type=SECONDS, default=0.0, show_default=True,
                 metavar="S", help="Left out before the last planned start."),
    click.option("--goodput", multiple=True, metavar="NAME:MS", help="Service level "
                 "in ms, as in --goodput ttft:200 tpot:50 e2el:5000."),
    click.option("--timeout", type=click.FloatRange(min=0, min_open=True),
                 default=600.0, show_default=True, metavar="S",
                 help="Longest a request may take."),
    # output
    click.option("--out", type=click.Path(path_type=Path, file_okay=False),
                 help="Run folder.  [default: runs/<utc>-<trace>]"),
    click.option("--metadata", type=pair, metavar="K=V",
        multiple=True,
                 help="Kept in summary.json; may be repeated."),
    click.option("--metrics-port", metavar="[HOST:]PORT", help="Export the load's own "
                 "metrics to Prometheus."),
    click.option("--quiet", is_flag=True, help="No progress, only the result."),
]  # fmt: skip


def replay_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command all of `OPTIONS`, in that order on its help page."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command
