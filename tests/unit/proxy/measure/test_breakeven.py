"""When a resident model is worth its watts, and where the figures come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from proxy.cli import cli
from proxy.errors import ConfigError
from proxy.measure.breakeven import Breakeven, as_text

KNOWN = ("--loaded-watts", "72")


def test_it_is_the_silence_that_costs_as_much_as_a_load() -> None:
    found = Breakeven(72.0, 48.0, 9000.0, 40.0)
    assert found.idle_seconds == 375.0
    assert found.model_watts == 24.0
    assert "375 s" in as_text(found)


@given(
    loaded=st.floats(50.0, 200.0),
    joules=st.floats(100.0, 1e5),
    silence=st.floats(0.0, 1e5),
)
def test_unloading_then_costs_at_most_twice_the_best(
    loaded: float, joules: float, silence: float
) -> None:
    found = Breakeven(loaded, 40.0, joules)
    never = found.model_watts * silence
    best = min(never, joules)
    assert never - found.saved_joules(silence) <= 2.0 * best * (1 + 1e-9)


@pytest.mark.parametrize(
    ("loaded", "bare", "joules"),
    [(48.0, 48.0, 9e3), (40.0, 48.0, 9e3), (72.0, -1.0, 9e3), (72.0, 48.0, 0.0)],
)
def test_figures_that_cannot_be_are_refused(
    loaded: float, bare: float, joules: float
) -> None:
    with pytest.raises(ConfigError, match="expected more"):
        Breakeven(loaded, bare, joules)


def report(folder: Path, **source: float | None) -> str:
    path = folder / "load.json"
    path.write_text(json.dumps({"duration_seconds": 40.0, "sources": [source]}))
    return str(path)


def test_a_metered_start_of_the_engine_tells_bare_idle_and_the_load(
    tmp_path: Path,
) -> None:
    path = report(tmp_path, baseline_watts=48.0, above_baseline_joules=9000.0)
    shown = CliRunner().invoke(cli, ["breakeven", path, *KNOWN, "--json"])
    told = json.loads(shown.output)
    assert told["breakeven_seconds"] == 375.0
    assert told["load_seconds"] == 40.0


def test_what_is_stated_comes_before_what_was_measured(tmp_path: Path) -> None:
    path = report(tmp_path, baseline_watts=48.0, above_baseline_joules=9000.0)
    asked = ["breakeven", path, *KNOWN, "--bare-watts", "62", "--json"]
    told = json.loads(CliRunner().invoke(cli, asked).output)
    assert told["breakeven_seconds"] == 900.0


@pytest.mark.parametrize(
    ("asked", "lacking"),
    [
        (["--bare-watts", "40", "--load-joules", "9"], "--loaded-watts"),
        ([*KNOWN, "--load-joules", "9"], "--bare-watts"),
        ([*KNOWN, "--bare-watts", "40"], "--load-joules"),
    ],
    ids=["loaded", "bare", "load"],
)
def test_a_figure_that_is_nowhere_is_asked_for(asked: list[str], lacking: str) -> None:
    failed = CliRunner().invoke(cli, ["breakeven", *asked], standalone_mode=False)
    assert lacking in str(failed.exception.message)  # type: ignore[union-attr]


def test_a_report_without_a_baseline_has_no_figures(tmp_path: Path) -> None:
    path = report(tmp_path, baseline_watts=None, above_baseline_joules=None)
    failed = CliRunner().invoke(cli, ["breakeven", path, *KNOWN], standalone_mode=False)
    assert "--bare-watts" in str(failed.exception.message)  # type: ignore[union-attr]


@pytest.mark.parametrize("text", ["", "[]", '{"sources": []}', "{"])
def test_what_is_no_report_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "load.json"
    path.write_text(text)
    failed = CliRunner().invoke(cli, ["breakeven", str(path), *KNOWN])
    assert isinstance(failed.exception, ConfigError)
    assert str(path) in str(failed.exception)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"baseline_watts": "48"}, "no report"),
        ({"above_baseline_joules": [1]}, "no report"),
        ({"baseline_watts": -3.0}, "bare idle"),
        ({"above_baseline_joules": -1.0}, "more than 0"),
    ],
    ids=["text", "list", "negative-watts", "negative-joules"],
)
def test_figures_that_cannot_be_are_one_line(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    figures = {"baseline_watts": 48.0, "above_baseline_joules": 9000.0} | changed
    failed = CliRunner().invoke(cli, ["breakeven", report(tmp_path, **figures), *KNOWN])
    assert isinstance(failed.exception, ConfigError)
    assert said in str(failed.exception)


@pytest.mark.parametrize("option", ["--loaded-watts", "--bare-watts", "--load-joules"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_what_is_no_number_is_refused(option: str, value: str) -> None:
    stated = {"--loaded-watts": "72", "--bare-watts": "48", "--load-joules": "9000"}
    stated[option] = value
    asked = [word for pair in stated.items() for word in pair]
    failed = CliRunner().invoke(cli, ["breakeven", *asked])
    assert isinstance(failed.exception, ConfigError)


def test_an_engine_that_did_not_start_tells_nothing_of_loading(tmp_path: Path) -> None:
    path = Path(report(tmp_path, baseline_watts=48.0, above_baseline_joules=9000.0))
    document = json.loads(path.read_text()) | {"exit_code": 3}
    path.write_text(json.dumps(document))
    failed = CliRunner().invoke(cli, ["breakeven", str(path), *KNOWN])
    assert "ended with code 3" in str(failed.exception)


def test_simulated_joules_are_called_so(tmp_path: Path) -> None:
    path = Path(report(tmp_path, baseline_watts=48.0, above_baseline_joules=9000.0))
    document = json.loads(path.read_text()) | {"simulated": True}
    path.write_text(json.dumps(document))
    shown = CliRunner().invoke(cli, ["breakeven", str(path), *KNOWN])
    assert shown.output.startswith("SIMULATED")
    told = CliRunner().invoke(cli, ["breakeven", str(path), *KNOWN, "--json"])
    assert json.loads(told.output)["is_simulated"] is True
