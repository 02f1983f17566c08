"""`loadgen traces fetch`: it tells how to cite what it fetched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from loadgen.cli.traces import traces
from loadgen.errors import LoadgenError
from loadgen.traces.catalogue import Original


def run(*words: Any, obj: Any = None) -> Result:
    result = CliRunner().invoke(traces, [str(word) for word in words], obj=obj)
    if isinstance(result.exception, LoadgenError):
        raise result.exception
    return result


def test_fetch_says_how_to_cite(tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    out.write_bytes(b"rows")
    known = Original(
        "http://127.0.0.1:9/t.csv", hashlib.sha256(b"rows").hexdigest(),
        "CC-BY-4.0", "Nobody et al., 2023", "rows",
    )  # fmt: skip
    output = run("fetch", "mine", "-o", out, obj={"mine": known}).output
    assert f"{out}: already there, sha256 is right" in output
    assert "licence: CC-BY-4.0" in output
    assert "cite: Nobody et al., 2023" in output
