"""`metering-proxy calibrate` asks a proxy or reads a file."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from proxy.cli import cli
from proxy.errors import ProxyError


@pytest.mark.parametrize("where", ["/nowhere/fit.json", "http://127.0.0.1:9"])
def test_a_place_without_a_calibration_is_named(where: str) -> None:
    failed = CliRunner().invoke(cli, ["calibrate", where])
    assert isinstance(failed.exception, ProxyError)
    assert str(failed.exception).startswith(where)
