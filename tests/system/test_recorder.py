from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.errors import LoadgenError, UsageError
from loadgen.results.recorder import Recorder, read_results
from loadgen.results.results import Result
from tests.support.paths import ROOT


def result(name: str = "a", **changes: object) -> Result:
    fields: dict[str, object] = {
        "request_id": name,
        "session_id": "s",
        "turn": 0,
        "kind": "code",
        "planned_seconds": 1.0,
        "sent_seconds": 1.001,
        "finished_seconds": 2.5,
        "outcome": "ok",
    } | changes
    return Result(**fields)  # type: ignore[arg-type]


def test_what_was_recorded_is_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    records = [
        result("a", chunk_seconds=[1.25, 1.5], chunk_tokens=[1, 2], output_tokens=3),
        result("b", outcome="error", sent_seconds=None, error="a\nb “ü”"),
    ]
    with Recorder(path) as recorder:
        for record in records:
            recorder.record(record)
    assert list(read_results(path)) == records


def test_a_record_is_in_the_file_before_the_run_ends(tmp_path: Path) -> None:
    with Recorder(tmp_path / "requests.jsonl") as recorder:
        recorder.record(result("a"))
        assert [r.request_id for r in read_results(recorder.path)] == ["a"]


def test_an_earlier_run_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text("kept")
    with pytest.raises(UsageError, match="--out"):
        Recorder(path)
    assert path.read_text() == "kept"


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or directory"):
        Recorder(tmp_path / "absent" / "requests.jsonl")


def run_script(script: str) -> str:
    """Run in a process of its own: limits and kills must not hit pytest."""
    prelude = f"""
import os, resource, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.system.test_recorder import LoadgenError, Recorder, result
"""
    done = subprocess.run(
        [sys.executable, "-c", prelude + script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.stdout


def test_a_full_disk_stops_with_one_line_and_keeps_every_whole_record(
    tmp_path: Path,
) -> None:
    path = tmp_path / "requests.jsonl"
    message = run_script(f"""
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the file cannot grow past
recorder = Recorder({str(path)!r})
try:
    for number in range(100):
        recorder.record(result(f"r{{number}}"))
except LoadgenError as error:
    print(error, end="")
""")
    kept = [r.request_id for r in read_results(path)]
    assert kept
    assert kept == [f"r{n}" for n in range(len(kept))]
    assert path.read_bytes().endswith(b"\n")
    assert f"the {len(kept)} requests written before are kept" in message
    assert "\n" not in message


def test_a_killed_writer_leaves_the_records_it_finished(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    run_script(f"""
Recorder({str(path)!r}).record(result("a"))
os.kill(os.getpid(), signal.SIGKILL)
""")
    with path.open("a") as torn:
        torn.write('{"request_id": "b"')
    assert [r.request_id for r in read_results(path)] == ["a"]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    with Recorder(path) as recorder:
        recorder.record(result("a"))
    with path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(LoadgenError, match="line 2: not a request record"):
        list(read_results(path))
