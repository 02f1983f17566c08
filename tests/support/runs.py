"""`loadgen` as a user starts it, a small trace for it, and what a run left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.children import get
from tests.support.paths import ROOT

PATIENCE_SECONDS = 120
SMALL_TRACE: list[dict[str, Any]] = [
    {"loadtrace": "loadtrace/1", "name": "small", "kind": "conversation"},
    *(
        {
            "id": f"small-{n}",
            "input_length": 60 + 40 * n,
            "output_length": 12 + 2 * n,
            "kind": "code" if n % 3 == 0 else "conversation",
        }
        for n in range(18)
    ),
]


def loadgen(
    *arguments: str | Path, cwd: Path, seconds: float = PATIENCE_SECONDS
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadgen", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, timeout=seconds,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )  # fmt: skip


def write_trace(folder: Path, lines: list[dict[str, Any]] | None = None) -> Path:
    path = folder / "small.jsonl"
    rows = SMALL_TRACE if lines is None else lines
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "requests.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def summary_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return loaded


def planned(folder: Path) -> list[tuple[Any, ...]]:
    """What a run's plan made of each request, whoever sent it and when."""
    keys = ("request_id", "session_id", "planned_seconds", "requested_prompt_tokens",
            "requested_output_tokens", "outcome")  # fmt: skip
    return sorted(tuple(row[key] for key in keys) for row in records(folder))


def running(engine: str) -> float:
    """Requests in flight at the engine."""
    lines = get(f"{engine}/metrics").text.splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))
