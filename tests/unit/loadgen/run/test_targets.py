"""The file that names a run's port to Prometheus: there while the port is."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.run.targets import check_targets, listed

URL = "http://127.0.0.1:9465/metrics"


def targets(path: Path) -> list[str]:
    (group,) = json.loads(path.read_text())
    found: list[str] = group["targets"]
    return found


def test_the_port_is_named_while_it_is_open_and_not_after(tmp_path: Path) -> None:
    path = tmp_path / "loadgen.json"
    with listed(path, URL):
        assert targets(path) == ["127.0.0.1:9465"]
        assert path.stat().st_mode & 0o444 == 0o444
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://0.0.0.0:9465/metrics", f"{socket.gethostname()}:9465"),
        ("http://[::1]:9465/metrics", "[::1]:9465"),
        ("http://load.example:80/metrics", "load.example:80"),
    ],
    ids=["everywhere", "ipv6", "name"],
)
def test_the_address_is_one_that_another_machine_can_ask(
    tmp_path: Path, url: str, expected: str
) -> None:
    path = tmp_path / "loadgen.json"
    with listed(path, url):
        assert targets(path) == [expected]


def test_it_goes_with_a_run_that_fails(tmp_path: Path) -> None:
    path = tmp_path / "loadgen.json"
    with pytest.raises(ZeroDivisionError), listed(path, URL):
        raise ZeroDivisionError
    assert not path.exists()


def test_what_a_killed_run_left_is_replaced_and_the_next_runs_own_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "loadgen.json"
    path.write_text('[{"targets": ["gone:1"]}]')
    with listed(path, URL):
        assert targets(path) == ["127.0.0.1:9465"]
        path.write_text('[{"targets": ["next:2"]}]')
    assert targets(path) == ["next:2"]


@pytest.mark.parametrize("path", [None, Path("x.json")])
def test_without_a_file_or_a_port_nothing_is_written(
    tmp_path: Path, path: Path | None
) -> None:
    with listed(path and tmp_path / path, None if path else URL):
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "loadgen.json" / "inner.json"
    with (
        pytest.raises(UsageError, match=r"inner\.json cannot be written: .*; name"),
        listed(folder, URL),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "port", "expected"),
    [
        ("t.json", None, "give --metrics-port too"),
        ("t.txt", "9465", r"end with \.json"),
        ("no/t.json", "9465", "there is no folder .*no"),
    ],
)
def test_what_prometheus_would_not_read_is_refused_before_a_run(
    tmp_path: Path, name: str, port: str | None, expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        check_targets(tmp_path / name, port)


@pytest.mark.parametrize("name", ["t.json", "t.yml", "t.yaml", None])
def test_other_files_are_taken(tmp_path: Path, name: str | None) -> None:
    check_targets(tmp_path / name if name else None, "9465")
