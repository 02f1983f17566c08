"""A file that is written whole: what readers see, and what is left of a failure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.process.files import (
    PRIVATE,
    private_file,
    private_folder,
    whole_file,
    write_whole,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "summary.json"


@pytest.fixture
def umask() -> Iterator[None]:
    former = os.umask(0o027)
    yield
    os.umask(former)


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(path: Path) -> None:
    path.write_bytes(b"old")
    with whole_file(path, is_durable=True) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    path: Path, error: BaseException
) -> None:
    path.write_bytes(b"old")

    def write_half() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_two_writers_of_one_file_do_not_meet(path: Path) -> None:
    with whole_file(path) as first, whole_file(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize(("asked", "mode"), [(None, 0o640), (0o644, 0o644)])
def test_permissions_are_as_asked_or_as_the_umask_leaves_them(
    path: Path, asked: int | None, mode: int
) -> None:
    with whole_file(path, mode=asked) as file:
        file.write(b"x")
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.usefixtures("umask")
def test_what_is_private_is_so_from_its_first_byte(path: Path) -> None:
    with whole_file(path, mode=PRIVATE) as file:
        file.write(b"prompt")
        file.flush()
        (part,) = path.parent.iterdir()
        assert part.stat().st_mode & 0o777 == 0o600
    folder = path.parent / "a" / "b"
    private_folder(folder)
    private_file(folder / "store")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "store").stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    private_file(path)
    assert path.read_bytes() == b"prompt"


def test_a_device_is_written_and_never_replaced() -> None:
    write_whole(Path(os.devnull), b"x")
    assert not Path(os.devnull).is_file()
