"""The same client straight at an engine and through the proxy: what each way gave.

The simulator draws a reply from the request's id, so a request that is repeated with
its id gets the same words, and anything that differs was changed by the proxy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.children import metering, record_of, simulating

MODEL = "simulated-llama-3.1-8b"
OF_THE_MOMENT = ("created", "metrics")
"""Fields that tell the time: no two replies agree in them."""

Ask = Callable[[str, str], Any]
"""Base URL and request id; gives everything the client saw, as plain data."""


@dataclass(frozen=True)
class Ways:
    """One simulated engine, and one proxy in front of it."""

    direct: str
    proxied: str
    admin: str


@dataclass(frozen=True)
class Asked:
    """What a client saw on either way, and what the ledger says of it."""

    direct: Any
    proxied: Any
    record: dict[str, Any]


@contextlib.contextmanager
def both_ways(folder: Path, dialect: str, *simulate: str) -> Iterator[Ways]:
    """Both as real processes; nothing is cached, so the second time is as the first."""
    simulated = ("--dialect", dialect, "--no-prefix-cache", *simulate)
    if dialect == "vllm":
        simulated += ("--enable-request-id-headers",)
    metered = ("--engine", dialect, "--idle-watts", "105", "--usage-event", "drop")
    with (
        simulating(folder, *simulated) as engine,
        metering(folder, engine, *metered) as proxy,
    ):
        yield Ways(engine["url"], proxy["url"], proxy["admin_url"])


def ask_both(ways: Ways, asks: Mapping[str, Ask]) -> dict[str, Asked]:
    """Every request both ways, then their records, by name, which is their id."""
    seen = {
        name: (ask(ways.direct, name), ask(ways.proxied, name))
        for name, ask in asks.items()
    }
    return {
        name: Asked(direct, proxied, record_of(ways.admin, name))
        for name, (direct, proxied) in seen.items()
    }


def plain(value: Any) -> Any:
    """A client's models as dicts and lists, without what tells the time."""
    if hasattr(value, "model_dump"):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k not in OF_THE_MOMENT}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value


def failure_of(error: Exception) -> dict[str, Any]:
    """An exception as data: its class, its text, and its status where it has one."""
    kind = type(error)
    return {
        "type": f"{kind.__module__}.{kind.__qualname__}",
        "text": str(error),
        "status": getattr(error, "status_code", None),
    }


def assert_as_recorded(asked: Asked, **expected: Any) -> None:
    """The ledger has the request, with these fields, and joules for what ran."""
    found = {name: asked.record[name] for name in expected}
    assert found == expected
    if asked.record["output_tokens"]:
        joules = asked.record["energy"]["energy_joules"]
        assert joules is not None
        assert joules > 0


def missing(package: str) -> Any:
    """The package, or a skip that says how to get it."""
    return pytest.importorskip(package, reason=f"{package}: pip install '.[test]'")
