"""Cells in processes of their own: failures, a retry, interruptions and kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadgen.errors import StudyError
from loadgen.studies.cells import FAILED, Cell, cell, run_of, unfinished
from loadgen.studies.launch import Study, open_study
from tests.support.children import is_alive, wait_for
from tests.support.paths import ROOT

ASKED = {"rate": [1, 2, 3]}
CELLS = [cell(f"rate={n}", "trace.jsonl", {"rate": n}) for n in (1, 2, 3)]
FINISHES = """
import pathlib, sys
folder, rate = pathlib.Path(sys.argv[1]), sys.argv[2]
with (folder.parent.parent / "ran").open("a") as ran:
    print(rate, file=ran)
(folder / "summary.json").write_text("{}")
"""


def program(text: str) -> Callable[[Cell, Path], list[str]]:
    def command(one: Cell, run: Path) -> list[str]:
        return [sys.executable, "-c", text, str(run), str(one.options["rate"])]

    return command


def ran(folder: Path) -> list[str]:
    return (folder / "ran").read_text().split()


def run_all(folder: Path, text: str) -> tuple[Study, list[str]]:
    said: list[str] = []
    with open_study(folder, "sweep", ASKED, CELLS, say=said.append) as study:
        study.run_all(program(text))
    return study, said


def test_every_cell_is_run_once_and_kept(tmp_path: Path) -> None:
    study, said = run_all(tmp_path / "s", FINISHES)
    assert study.exit_code == 0
    assert ran(tmp_path / "s") == ["1", "2", "3"]
    assert said[0] == "[1/3] rate=1 ..."
    assert said[2].startswith("[2/3] rate=2 ... about ")
    again, said = run_all(tmp_path / "s", FINISHES)
    assert ran(tmp_path / "s") == ["1", "2", "3"]
    assert [each.status for each in again.outcomes] == ["kept"] * 3
    assert said[1] == "[2/3] rate=2: kept, finished before"
    assert not list((tmp_path / "s" / "cells").glob(".*"))


def test_a_cell_that_fails_is_tried_twice_and_loses_no_other(tmp_path: Path) -> None:
    text = "import sys\nif sys.argv[2] == '2': print('a\\nno \\x1b[1mGPU', "
    text += "file=sys.stderr) or sys.exit(1)" + FINISHES
    study, said = run_all(tmp_path, text)
    assert study.exit_code == 1
    assert [each.status for each in study.outcomes] == [
        "finished", "failed", "finished",
    ]  # fmt: skip
    failed = study.outcomes[1]
    assert failed.attempts == 2
    assert failed.reason == "a\nno \\x1b[1mGPU"
    assert "[2/3] rate=2: failed: no \\x1b[1mGPU" in said
    assert "[2/3] rate=2: once more" in said
    assert (tmp_path / FAILED / "rate=2" / "errors.log").is_file()
    assert unfinished(tmp_path, CELLS) == [CELLS[1]]


def test_a_second_try_may_do(tmp_path: Path) -> None:
    text = "import pathlib, sys; ran = pathlib.Path(sys.argv[1]).parent.parent / 'once'"
    text += "\nif not ran.exists(): ran.touch(); sys.exit(1)" + FINISHES
    study, _ = run_all(tmp_path, text)
    assert [each.attempts for each in study.outcomes] == [2, 1, 1]
    assert study.exit_code == 0


def test_bad_options_are_not_tried_again(tmp_path: Path) -> None:
    study, _ = run_all(tmp_path, "import sys; sys.exit('x' and 2)")
    assert [each.attempts for each in study.outcomes] == [1, 1, 1]


def test_an_invalid_run_is_a_finished_one(tmp_path: Path) -> None:
    study, said = run_all(tmp_path, FINISHES + "sys.exit(3)")
    assert study.exit_code == 0
    assert [each.exit_code for each in study.outcomes] == [3, 3, 3]
    assert said[1].endswith("(verdict: invalid)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "left no summary and ended with code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended by SIGKILL"),
    ],
    ids=["no summary", "killed"],
)
def test_a_run_without_a_summary_has_failed(
    tmp_path: Path, text: str, said: str
) -> None:
    study, _ = run_all(tmp_path, text)
    assert study.outcomes[0].status == "failed"
    assert said in str(study.outcomes[0].reason)


def test_more_arguments_are_options_of_the_run(tmp_path: Path) -> None:
    one = cell("one", "-gone.jsonl", {"rate": 1})
    with open_study(tmp_path, "sweep", ASKED, [one], say=lambda _: None) as study:
        outcome = study.run(one, ["--header=x-a=s3cret", "--dry-run"])
    assert "-gone.jsonl" in str(outcome.reason)
    assert "Usage" not in str(outcome.reason)


def test_further_cells_are_planned_and_kept(tmp_path: Path) -> None:
    more = cell("rate=1.5", "trace.jsonl", {"rate": 1.5})
    with open_study(tmp_path, "sweep", ASKED, CELLS, say=lambda _: None) as study:
        study.add([more, CELLS[0]])
        study.run(more, command=program(FINISHES))
    with open_study(tmp_path, "sweep", ASKED, CELLS, say=lambda _: None) as study:
        assert study.cells == [*CELLS, more]
        assert study.run(more, command=program("")).status == "kept"


def test_a_run_of_other_options_makes_way(tmp_path: Path) -> None:
    run_all(tmp_path, FINISHES)
    other = cell("rate=1", "trace.jsonl", {"rate": 1}, {"trace_sha256": "new"})
    with open_study(tmp_path, "sweep", ASKED, [], say=lambda _: None) as study:
        assert study.run(other, command=program(FINISHES)).status == "finished"
    assert unfinished(tmp_path, [other]) == []


def test_two_studies_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        open_study(tmp_path, "sweep", ASKED, CELLS),
        pytest.raises(StudyError, match="another process is at work"),
        open_study(tmp_path, "sweep", ASKED, CELLS),
    ):
        pass


SLOW = """
import pathlib, signal, sys
folder, rate = pathlib.Path(sys.argv[1]), sys.argv[2]
if rate == "2":
    import os
    (folder.parent.parent / "pid").write_text(str(os.getpid()))
    signal.pause()
"""
STUDY = """
import sys
from pathlib import Path
from tests.system.test_study_launch import ASKED, CELLS, FINISHES, SLOW, program
from loadgen.studies.launch import open_study
with open_study(Path(sys.argv[1]), "sweep", ASKED, CELLS) as study:
    study.run_all(program(SLOW + FINISHES))
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name
)
def test_a_study_that_is_ended_leaves_no_process_and_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUDY, str(tmp_path)], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    pid = int(wait_for(lambda: (tmp_path / "pid").exists() and _text(tmp_path / "pid")))
    process.send_signal(number)
    process.wait(30)
    said = process.stderr.read()
    process.stderr.close()
    wait_for(lambda: not is_alive(pid))
    if number != signal.SIGKILL:
        assert "interrupted: 1 of 3 cells are finished" in said
        assert not list((tmp_path / "cells").glob(".*"))
    assert unfinished(tmp_path, CELLS) == CELLS[1:]
    study, _ = run_all(tmp_path, FINISHES)
    assert ran(tmp_path) == ["1", "2", "3"]
    assert [each.status for each in study.outcomes] == ["kept", "finished", "finished"]
    assert not list((tmp_path / "cells").glob(".*"))
    note = json.loads((run_of(tmp_path, CELLS[1]) / "cell.json").read_text())
    assert note["hash"] == CELLS[1].hash


def _text(path: Path) -> str:
    return path.read_text()
