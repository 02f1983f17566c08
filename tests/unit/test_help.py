"""Every command's help page: grouped, with an example, and as wide as a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from loadgen.cli import cli as loadgen
from loadgen.plan.arrivals import ARRIVALS
from loadgen.run.config import ARRIVAL_NAMES, ReplayConfig
from loadgen.simulator.config import ServerConfig
from proxy.cli import cli as metering_proxy
from proxy.measure.config import MeasureConfig
from proxy.meter.attribution.policies import POLICIES
from proxy.process.options import configured, settings_of
from proxy.serve.config import POLICY_NAMES, ServeConfig, UpstreamConfig

COLUMNS = 80


def pages(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    """The words of every command below a group, itself included."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from pages(inner, *path, name)


PROGRAMS = {"loadgen": loadgen, "metering-proxy": metering_proxy}
PAGES = [path for name, group in PROGRAMS.items() for path in pages(group, name)]


def page(path: tuple[str, ...], asked: str = "--help") -> str:
    program, *words = path
    result = CliRunner().invoke(PROGRAMS[program], [*words, asked], prog_name=program)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("path", PAGES, ids=" ".join)
def test_a_page_has_an_example_and_fits_a_terminal(path: tuple[str, ...]) -> None:
    text = page(path)
    *_, examples = text.partition("Example")
    assert " ".join(path) in examples
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert page(path, "-h") == text


@pytest.mark.parametrize(
    ("path", "headings"),
    [
        (
            ("loadgen", "replay"),
            [
                "Target",
                "Meter",
                "Load",
                "Several hosts",
                "Request",
                "Measure",
                "Output",
                "Repeat",
                "Options",
            ],
        ),
        (("loadgen", "simulate"), ["Engine", "Sensor", "Server", "Options"]),
        (
            ("metering-proxy", "serve"),
            [
                "Upstream",
                "Energy",
                "Ports",
                "Requests",
                "Records",
                "Recording",
                "Limits",
                "Limits of the admin port",
                "Process",
                "Options",
            ],
        ),
        (("metering-proxy", "meter"), ["Meter", "Output", "Options"]),
    ],
)
def test_options_stand_under_headings(
    path: tuple[str, ...], headings: list[str]
) -> None:
    lines = page(path).splitlines()
    shown = [line[:-1] for line in lines if line.endswith(":") and line[0] != " "]
    assert shown == headings


def test_names_that_a_page_does_not_load_are_those_there_are() -> None:
    assert set(POLICY_NAMES) == set(POLICIES)
    assert set(ARRIVAL_NAMES) == {"auto", *ARRIVALS}


@pytest.mark.parametrize(
    "plain",
    [
        ReplayConfig(trace=Path("trace")),
        ServeConfig(upstreams=()),
        UpstreamConfig("a", "http://h"),
        MeasureConfig(command=("true",)),
        ServerConfig(),
    ],
    ids=lambda plain: type(plain).__name__,
)
def test_a_default_is_what_its_text_is_read_as(plain: Any) -> None:
    values = {
        setting.variable: setting.value(setting.default)
        for setting in settings_of(type(plain))
        if setting.option.default is not None and setting.name != "store"
    }
    assert values
    assert configured(type(plain), values, **required(plain)) == plain


def required(plain: Any) -> dict[str, Any]:
    """The fields that no default stands for."""
    return {
        field.name: getattr(plain, field.name)
        for field in fields(plain)
        if field.default is MISSING and field.default_factory is MISSING
    }
