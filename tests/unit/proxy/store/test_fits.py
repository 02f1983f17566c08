"""Fitted constants that outlive the process, and the command that shows them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from proxy.cli import cli
from proxy.errors import ConfigError, ProxyError
from proxy.meter.attribution.fit import Calibration, CalibrationState, Learnt, spread_of
from proxy.meter.attribution.forms import PRIOR
from proxy.meter.attribution.policies import FEATURES
from proxy.store.fits import SAVE_SECONDS, CalibrationFile, decoded, encoded, saved_of
from proxy.wire.api import CALIBRATION_VERSION


def state_of(model: str, rows: int = 50, level: float = 1.0) -> CalibrationState:
    """What was learnt from a varied load, on an engine `level` times as hungry."""
    rng = np.random.default_rng(1)
    calibration = Calibration()
    calibration.serve(model)
    for _ in range(rows):
        work = rng.uniform(0.1, 1.0, len(FEATURES)) * 100 / PRIOR
        joules = level * float((work * PRIOR)[:5].sum()) + rng.normal()
        calibration.learn(Learnt(work, spread_of(work[np.newaxis])), joules, 2.0)
    return calibration.state


def test_what_was_saved_is_what_the_next_run_goes_on_from(tmp_path: Path) -> None:
    path = str(tmp_path / "fit.json")
    state = state_of("llama")
    CalibrationFile(path, "vllm").save(state)
    later = Calibration(saved=CalibrationFile(path, "vllm").by_model)
    later.serve("llama")
    assert later.fit is not None
    assert state.fit is not None
    assert later.fit.joules == pytest.approx(state.fit.joules)
    assert later.fit.constant_errors == pytest.approx(state.fit.constant_errors)
    assert later.state.is_fitted


def test_another_engine_or_model_is_kept_and_not_used(tmp_path: Path) -> None:
    path = str(tmp_path / "fit.json")
    CalibrationFile(path, "vllm").save(state_of("llama"))
    CalibrationFile(path, "tgi").save(state_of("llama"))
    CalibrationFile(path, "vllm").save(state_of("mistral"))
    CalibrationFile(path, "vllm").save(state_of("llama", rows=70))
    found = decoded(Path(path).read_bytes(), path)
    assert {(entry.engine, entry.model, entry.rows) for entry in found} == {
        ("vllm", "llama", 70.0),
        ("tgi", "llama", 50.0),
        ("vllm", "mistral", 50.0),
    }
    assert set(CalibrationFile(path, "tgi").by_model) == {"llama"}


def test_it_is_written_once_a_minute_at_most(tmp_path: Path) -> None:
    file = CalibrationFile(str(tmp_path / "fit.json"), "vllm")
    assert file.is_due(1e12)
    file.save(state_of("llama"))
    assert not file.is_due(file._due_seconds - 1.0)
    assert file.is_due(file._due_seconds)
    assert SAVE_SECONDS == 60.0


def test_without_a_path_nothing_is_due_or_written(tmp_path: Path) -> None:
    file = CalibrationFile(None, "vllm")
    file.save(state_of("llama"))
    assert not file.is_due(1e12)
    assert not file.by_model


def test_nothing_learnt_is_not_written_over_what_was(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    CalibrationFile(str(path), "vllm").save(state_of("llama"))
    before = path.read_bytes()
    CalibrationFile(str(path), "vllm").save(state_of("llama", rows=0))
    CalibrationFile(str(path), "vllm").save(None)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["fit.json"]


def test_a_disk_that_refuses_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = CalibrationFile(str(tmp_path / "missing" / "fit.json"), "vllm")
    with caplog.at_level(logging.WARNING):
        file.save(state_of("llama"))
        file.save(state_of("llama"))
    assert len(caplog.records) == 1
    assert "No such file" in caplog.text


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encoded([saved_of(state_of("m"), "vllm")]))
    return found


def with_sums(**changed: Any) -> bytes:
    found = document()
    found["calibrations"][0]["sums"] |= changed
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is no calibration"),
        (b'{"calibrations": 3}', "is no calibration"),
        (b'{"version": 3, "calibrations": []}', "version 3, expected 2 or 1"),
        (with_sums(products=[1.0]), "not of 12 features"),
        (with_sums(rows=-1.0), "negative"),
        (with_sums(squares=[[0.0, 9.0] + [0.0] * 10] + [[0.0] * 12] * 11), "squares"),
    ],
)
def test_a_file_that_does_not_hold_is_refused_and_not_overwritten(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "fit.json"
    path.write_bytes(content)
    with pytest.raises(ProxyError, match=reason):
        decoded(content, str(path))
    with pytest.raises(ConfigError, match="--calibration"):
        CalibrationFile(str(path), "vllm")
    assert path.read_bytes() == content


def test_a_file_of_the_first_version_is_shown_and_learnt_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = document()
    sums = found["calibrations"][0]["sums"]
    for name in ("form", "features", "spread", "square_window_joules"):
        del sums[name]
    sums["squares"] = [row[:5] for row in sums["squares"][:5]]
    for name in ("products", "work"):
        sums[name] = sums[name][:5]
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(found | {"version": 1}))
    with caplog.at_level(logging.WARNING):
        file = CalibrationFile(str(path), "vllm")
    assert not file.by_model
    assert "learnt anew" in caplog.text
    calibration = Calibration(None, file.by_model, file.stale_models)
    calibration.serve("m")
    assert calibration.doubt is not None
    assert calibration.doubt.kind == "rows"
    assert "of another version" in calibration.doubt.text
    shown = CliRunner().invoke(cli, ["calibrate", str(path)])
    assert shown.exit_code == 0
    assert "vllm, m: trusted" in shown.output
    file.save(state_of("m", rows=20))
    assert json.loads(path.read_bytes())["version"] == CALIBRATION_VERSION


def test_the_form_in_use_is_saved_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    state = state_of("llama")
    bent = replace(state, sums=replace(state.sums, form="experts"))
    CalibrationFile(str(path), "vllm").save(bent)
    later = Calibration(saved=CalibrationFile(str(path), "vllm").by_model)
    later.serve("llama")
    assert later.fit is not None
    assert later.fit.form == "experts"
    path.write_bytes(encoded([saved_of(later.state, "vllm")]))
    shown = CliRunner().invoke(cli, ["calibrate", str(path)]).output
    assert "form of the cost model: experts" in shown
    assert "experts_16_joules" in shown


def test_the_command_shows_constants_units_errors_and_trust(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    trusted = saved_of(state_of("llama"), "vllm")
    young = saved_of(state_of("mistral", rows=3), "vllm")
    path.write_bytes(encoded([trusted, young]))
    shown = CliRunner().invoke(cli, ["calibrate", str(path)]).output
    assert "vllm, llama: trusted" in shown
    assert "vllm, mistral: not trusted: 3 of 20 rows of load seen" in shown
    for unit in ("J per step", "J per prefill token", "J per KV token read"):
        assert unit in shown
    assert "+-" in shown


def test_the_command_gives_the_same_document_as_json(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_bytes(encoded([saved_of(state_of("llama"), "vllm")]))
    shown = CliRunner().invoke(cli, ["calibrate", "--json", str(path)]).output
    assert json.loads(shown) == json.loads(path.read_bytes())


def test_a_condition_without_end_is_left_out() -> None:
    state = state_of("llama")
    assert state.fit is not None
    endless = replace(state, fit=replace(state.fit, condition=np.inf))
    assert saved_of(endless, "vllm").condition is None
