"""The files in `studies/`: each is valid, and says how it is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from loadgen.cli.simulate import simulate
from loadgen.cli.study import study
from loadgen.studies.presets import simulated_arguments
from loadgen.studies.study_file import read_study
from tests.support.paths import ROOT

FILES = sorted((ROOT / "studies").glob("*.yaml"))
ASKED = {
    "frameworks", "decoding", "parallelism", "batch-size", "online-vs-offline",
    "nlp-tasks", "heterogeneous", "gpus",
}  # fmt: skip


def test_every_study_that_was_asked_for_is_there() -> None:
    assert {path.stem for path in FILES} >= ASKED


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("how", [[], ["--simulate"]], ids=["real", "simulated"])
def test_its_cells_are_listed(path: Path, how: list[str], tmp_path: Path) -> None:
    asked = [str(path), "--dry-run", *how, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(study, asked)
    assert result.exit_code == 0, result.output
    assert "nothing started" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_has_a_baseline_its_name_and_its_command(path: Path) -> None:
    found = read_study(path)
    assert found.study.study == path.stem
    assert found.baseline
    assert f"loadgen study studies/{path.name} --simulate" in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_simulator_takes_the_options_of_its_servers(path: Path) -> None:
    found = read_study(path)
    for server in found.study.servers.values():
        words = simulated_arguments(server, found.study.simulate)
        context = simulate.make_context("simulate", words)
        assert context.params["gpu"]
