"""The files of a recording: private, bounded, each with a header, no half lines."""

from __future__ import annotations

import gzip
import os
import stat
from pathlib import Path

import pytest
import zstandard

from proxy.recording.files import RecordingFiles, compressor

HEADER = b'{"loadtrace":"loadtrace/1"}\n'
LINE = b'{"x":1}\n'


def files(path: Path, *, max_bytes: int = 4096, max_files: int = 3) -> RecordingFiles:
    return RecordingFiles(
        str(path), lambda: HEADER,
        max_bytes=max_bytes, max_files=max_files, compress=compressor(str(path)),
    )  # fmt: skip


def content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".zst":
        return data
    with zstandard.ZstdDecompressor().stream_reader(
        data, read_across_frames=True
    ) as reader:
        return reader.read()


@pytest.fixture(params=["trace.jsonl", "trace.jsonl.zst"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_lines_follow_a_header_in_a_private_file(path: Path) -> None:
    recording = files(path)
    recording.write([LINE, LINE])
    recording.write([LINE])
    recording.close()
    assert content(path) == HEADER + 3 * LINE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_one_makes_way_and_the_oldest_go(path: Path) -> None:
    recording = files(path, max_bytes=60, max_files=3)
    for number in range(20):
        recording.write([b'{"n":%d}\n' % number])
    found = sorted(path.parent.iterdir(), key=lambda each: (each == path, each.name))
    assert len(found) == 3
    assert found[-1] == path
    whole = [content(each) for each in found]
    assert all(each.startswith(HEADER) for each in whole)
    assert whole[-1].endswith(b'{"n":19}\n')
    lines = [line for each in whole for line in each.splitlines()[1:]]
    assert lines == [b'{"n":%d}' % n for n in range(20 - len(lines), 20)]


def test_what_an_earlier_process_left_is_put_away(path: Path) -> None:
    files(path).write([b"old\n"])
    files(path).write([b"new\n"])
    (old,) = set(path.parent.iterdir()) - {path}
    assert content(old) == HEADER + b"old\n"
    assert content(path) == HEADER + b"new\n"


@pytest.mark.parametrize("away", [lambda p: p.rename(f"{p}.1"), Path.unlink])
def test_one_that_was_moved_or_removed_is_begun_anew(path: Path, away: object) -> None:
    recording = files(path)
    recording.write([LINE])
    assert callable(away)
    away(path)
    recording.write([b"later\n"])
    assert content(path) == HEADER + b"later\n"


def test_a_folder_that_comes_later_is_used(tmp_path: Path) -> None:
    path = tmp_path / "later" / "trace.jsonl"
    recording = files(path)
    with pytest.raises(OSError, match="No such file"):
        recording.write([LINE])
    path.parent.mkdir()
    recording.write([LINE])
    assert content(path) == HEADER + LINE


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    os.mkfifo(path)
    with pytest.raises(OSError, match="no regular file"):
        files(path).write([LINE])
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target, path = tmp_path / "precious", tmp_path / "trace.jsonl"
    target.write_text("mine")
    path.symlink_to(target)
    with pytest.raises(OSError, match="no regular file"):
        files(path).write([LINE])
    assert target.read_text() == "mine"


def test_files_of_others_stay(tmp_path: Path) -> None:
    others = ["trace-old.jsonl", "trace-20260101T000000-000.jsonl.gz", "a.txt"]
    for name in others:
        (tmp_path / name).write_bytes(gzip.compress(b"x"))
    recording = files(tmp_path / "trace.jsonl", max_bytes=40, max_files=1)
    for _ in range(5):
        recording.write([LINE])
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == sorted([*others, "trace.jsonl"])
