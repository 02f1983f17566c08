"""The traces tests read: small ones kept here, real ones beside the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.traces.readers.open import open_trace
from loadgen.traces.trace import Session, TraceInfo, Turn
from tests.support.paths import ROOT

SAMPLES = ROOT / "tests" / "data"
REAL = ROOT.parent / "shared" / "data"


def real_trace(name: str) -> Path:
    """A real trace, or a skip that says which file is missing."""
    path = REAL / name
    if not path.exists():
        pytest.skip(f"../shared/data/{name} is not there")
    return path


def read_all(path: Path, format: str | None = None) -> tuple[TraceInfo, list[Session]]:
    """A whole trace, for the small ones."""
    info, sessions = open_trace(path, format)
    return info, list(sessions)


def turns_of(sessions: list[Session]) -> list[Turn]:
    """All requests in order."""
    return [turn for session in sessions for turn in session.turns]
