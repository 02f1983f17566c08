"""One dataclass as options and as a file's keys: names, defaults, bounds, mistakes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import click
import pytest
from click.testing import CliRunner
from msgspec import Meta

from proxy.errors import ConfigError
from proxy.process.command import Command, asks_for
from proxy.process.document import decode_settings, read_document
from proxy.process.options import Option, settings_of, split_names


@dataclass(frozen=True)
class Limits:
    wait_seconds: Annotated[
        float | None,
        Meta(ge=0, le=60),
        Option("How long.", "S", heading="Limits", zero_is_none=True),
    ] = None


@dataclass(frozen=True)
class Bakery:
    town: str
    """An argument."""
    loaves: Annotated[int, Meta(ge=1), Option("How many.", heading="Bread")] = 3
    kind: Annotated[str, Option("Which.", alias="sort", choices=("rye", "wheat"))] = (
        "rye"
    )
    names: Annotated[
        tuple[str, ...], Option("Whose.", parse=split_names, default="")
    ] = ()
    is_open: Annotated[bool, Option("Open.", name="open", has_opposite=True)] = True
    oven: Annotated[Path | None, Option("Where.")] = None
    limits: Limits = field(default_factory=Limits)
    license: str = "kept"
    """Nobody is asked for it."""


def refuse(text: str) -> str:
    raise ValueError(f"{text!r} will not do")


@dataclass(frozen=True)
class Refusing:
    name: Annotated[str | None, Option("Name.", parse=refuse)] = None


def called(*arguments: str) -> Bakery:
    kept: list[Bakery] = []

    @click.command(cls=Command)
    @click.argument("town")
    @asks_for(Bakery)
    def bake(config: Bakery) -> None:
        kept.append(config)

    result = CliRunner().invoke(bake, ["Ulm", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return kept[0]


def decoded(text: str, path: Path) -> dict[str, Any]:
    path.write_text(text)
    return decode_settings(read_document(str(path)), settings_of(Bakery), path.name)


def test_a_command_without_options_makes_the_defaults() -> None:
    assert called() == Bakery("Ulm")


def test_options_become_fields_also_those_of_a_part() -> None:
    made = called(
        "--loaves", "2", "--sort", "wheat", "--names", "a, b", "--no-open",
        "--oven", "/o", "--wait", "5",
    )  # fmt: skip
    assert made == Bakery("Ulm", 2, "wheat", ("a", "b"), False, Path("/o"), Limits(5.0))
    assert called("--wait", "0").limits == Limits(None)


def test_keys_of_a_file_are_options_with_either_dash(tmp_path: Path) -> None:
    text = 'loaves = "2"\nnames = ["a", 1]\nopen = false\noven = "/o"\nwait = 5\n'
    assert decoded(text, tmp_path / "f") == {
        "loaves": 2, "names": ("a", "1"), "open": False, "oven": Path("/o"),
        "wait": 5.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("loaf = 1", "f: unknown key 'loaf'; known: kind, loaves, names, open, oven"),
        ("loaves = 0", "f: loaves is 0, expected int >= 1"),
        ("loaves = 1.5", "f: loaves is 1.5, expected int, got float"),
        ("wait = 61", "f: wait is 61, expected float <= 60.0"),
        ("wait = true", "f: wait is True, expected float, got bool"),
        ("open = 1", "f: open is 1, expected true or false"),
        ("names = true", "f: names is True, expected text, a number or a list"),
        ("kind = 'oat'", "f: kind is 'oat': not one of rye, wheat"),
    ],
)
def test_a_mistake_names_file_key_value_and_what_is_expected(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        decoded(text, tmp_path / "f")
    assert str(caught.value).startswith(complaint)


def test_a_parser_that_refuses_is_a_usage_error() -> None:
    @click.command(cls=Command)
    @asks_for(Refusing)
    def command(config: Refusing) -> None:
        raise AssertionError

    result = CliRunner().invoke(command, ["--name", "x"])
    assert result.exit_code == 2
    assert "Invalid value for '--name': 'x' will not do" in result.output


def test_help_stands_under_headings_with_defaults() -> None:
    @click.command(cls=Command)
    @asks_for(Limits)
    def command(config: Limits) -> None:
        raise AssertionError

    text = CliRunner().invoke(command, ["-h"]).output
    assert "Limits:\n  --wait S  How long.  [default: 0; 0<=x<=60]" in text
