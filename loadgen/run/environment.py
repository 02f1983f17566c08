"""Where the load of a run goes and who meters it; starts what is not there yet."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

import uvloop
from rich.console import Console

from loadgen.client.backends import Target
from loadgen.client.client import discover_model
from loadgen.client.identity import engine_facts
from loadgen.errors import UsageError
from loadgen.replay.clock import SystemClock
from loadgen.run.config import ReplayConfig
from loadgen.run.exporter import check_free
from loadgen.run.stack import Stack, wait_until_ready
from loadgen.run.targets import check_targets


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the load goes and who meters it."""

    target: Target
    engine_url: str
    """The engine itself, without a proxy before it."""
    admin_url: str | None
    is_simulated: bool
    admin_token: str | None = field(default=None, repr=False)


def check_settings(config: ReplayConfig) -> None:
    """What can be known to fail before anything is planned, written or started.

    Raises UsageError, and StackError where nobody answers at the URL.
    """
    idle = [config.idle_watts, config.bare_idle_watts]
    has_proxy = config.power is not None or config.url is None
    if not has_proxy and any(watts is not None for watts in idle):
        raise UsageError(
            "--idle-watts and --bare-idle-watts are for a proxy that --power starts; "
            "give them to `metering-proxy serve` where it runs already"
        )
    if config.power is not None and config.ledger is not None:
        raise UsageError("--power starts a proxy and --ledger names one: give one")
    check_free(config.metrics_port)
    check_targets(config.metrics_targets, config.metrics_port)
    if config.url is not None:
        engine_facts(target_of(config, config.url))


def check_workers(config: ReplayConfig) -> None:
    """Raises UsageError for what workers on other hosts cannot do, or do not have."""
    if config.workers is None:
        if config.bus is not None:
            raise UsageError("--bus is where --workers N are: say how many")
        return
    if config.bus is None:
        raise UsageError(
            f"--workers {config.workers} needs --bus URL, the NATS server that they "
            "wait on"
        )
    if config.processes > 1:
        raise UsageError(
            "--workers and --processes both given: start more workers on a host, each "
            "sends from a process"
        )
    if config.url is None:
        raise UsageError(
            "--workers needs --url: a simulated stack would listen on this host alone; "
            "start `loadgen simulate --listen HOST:PORT` where all reach it"
        )
    if config.power is not None:
        raise UsageError(
            "--workers does not go with --power, whose proxy listens on this host "
            "alone: start `metering-proxy serve` where all reach it, give it as --url "
            "and its admin API as --ledger"
        )


def bring_up(config: ReplayConfig, stack: Stack, console: Console) -> Environment:
    """Start the simulator and the proxy as asked, and wait until energy is known."""
    url, power, admin_url = config.url, config.power, config.ledger
    if url is None:
        simulator = stack.start("simulator", "loadgen", _simulator_arguments(config))
        url = simulator.url
        own = f"dcgm={simulator.announced['power_url']}"
        power = re.sub(r"(?<![^,])\s*dcgm\s*(?![^,])", own, power) if power else own
    engine_url = url
    if power is not None:
        proxy = stack.start("proxy", "proxy", _proxy_arguments(url, power, config))
        url, admin_url = proxy.url, str(proxy.announced["admin_url"])
    if admin_url is not None:
        with console.status("starting") as status:
            lacking = wait_until_ready(
                admin_url,
                lambda reason: status.update(f"starting: {reason}"),
                token=config.ledger_token,
            )
        if lacking is not None:
            console.print(f"energy will be unknown: {lacking}", style="bold yellow")
    target = target_of(config, url)
    if target.model is None:
        model = uvloop.run(discover_model(target, SystemClock().now))
        target = replace(target, model=model)
    return Environment(
        target,
        engine_url,
        admin_url,
        config.url is None,
        admin_token=config.ledger_token,
    )


def target_of(config: ReplayConfig, url: str) -> Target:
    """The server under load, at this URL."""
    return Target(
        url=url,
        backend=config.backend,
        model=config.model,
        endpoint=config.endpoint,
        api_key=config.api_key,
        headers=dict(config.headers),
    )


def _simulator_arguments(config: ReplayConfig) -> list[str]:
    dialect = "tgi" if config.backend == "tgi" else "vllm"
    return [
        "simulate", "--listen", "127.0.0.1:0", "--dialect", dialect,
        "--gpu", config.sim_gpu, "--model", config.sim_model,
        "--n-gpus", str(config.sim_gpus),
        "--seed", str(config.seed),
    ]  # fmt: skip


def _proxy_arguments(url: str, power: str, config: ReplayConfig) -> list[str]:
    arguments = [
        "serve", "--upstream", url, "--listen", "127.0.0.1:0",
        "--admin", "127.0.0.1:0", "--engine", config.backend, "--power", power,
        "--gpus", config.gpus, "--store", "none",
    ]  # fmt: skip
    if config.idle_watts is not None:
        arguments += ["--idle-watts", f"{config.idle_watts:g}"]
    if config.bare_idle_watts is not None:
        arguments += ["--bare-idle-watts", f"{config.bare_idle_watts:g}"]
    return arguments
