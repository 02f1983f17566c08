"""A folder goes with the last of its processes, or with the next start."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from proxy.serve.link_folder import PREFIX, LinkFolder, remove_left_over


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_one_that_is_held_stays_and_goes_once_nobody_holds_it(temporary: Path) -> None:
    one, other = LinkFolder.made(), LinkFolder.made()
    meter = LinkFolder.held(one.path)
    assert meter is not None
    (Path(one.path) / "meter-idle.json").write_text("{}")
    assert remove_left_over() == 0
    one.release()  # its first process was killed, the meter still works
    assert remove_left_over() == 0
    meter.release()
    assert remove_left_over() == 1
    assert [str(path) for path in temporary.iterdir()] == [other.path]
    other.remove()
    other.release()
    assert not list(temporary.iterdir())
    assert LinkFolder.held(one.path) is None


def test_only_this_user_may_open_it() -> None:
    folder = LinkFolder.made()
    assert os.stat(folder.path).st_mode & 0o777 == 0o700
    folder.remove()


def test_what_is_no_folder_of_ours_stays(temporary: Path) -> None:
    kept = temporary / "kept"
    (kept / "in").mkdir(parents=True)
    (temporary / f"{PREFIX}link").symlink_to(kept)
    (temporary / f"{PREFIX}file").write_text("")
    (temporary / "servewatt-other").mkdir()
    before = sorted(temporary.rglob("*"))
    assert remove_left_over() == 0
    assert sorted(temporary.rglob("*")) == before
