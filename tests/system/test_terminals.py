"""Both programs where the terminal is gone, full, closed or knows ASCII alone."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import get, wait_for
from tests.support.paths import ROOT

TRACE = str(ROOT / "traces" / "sharegpt.jsonl")
LOADGEN = f"{sys.executable} -m loadgen"
PROXY = f"{sys.executable} -m proxy"
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
REPLAY = f"{LOADGEN} replay {TRACE} --rate 20 --num-prompts 3 --output-len 4"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One line of bash; its exit code is the last failure of the pipe."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip


COMMANDS = [
    f"{LOADGEN} traces stats {TRACE}",
    f"{LOADGEN} traces stats {TRACE} --json",
    f"{LOADGEN} replay --help",
    f"{PROXY} --version",
    f"{PROXY} sources none",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_device_is_one_line_and_an_exit_code(command: str) -> None:
    done = shell(f"{command} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(
        ": cannot write to standard output: no space left on device\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "2>&-", "2>/dev/full"])
def test_closed_descriptors_are_no_traceback(command: str, closed: str) -> None:
    done = shell(f"{command} {closed}")
    assert done.returncode == 0
    assert done.stderr == ""


def test_a_command_that_is_measured_ends_as_itself_or_tells_of_the_loss() -> None:
    measured = f"{PROXY} meter --power none --json - -- bash -c 'exit 7'"
    assert shell(f"{measured} >&- 2>&-").returncode == 7
    done = shell(f"{measured} >/dev/full")
    assert done.returncode == 7
    assert "cannot write to standard output" in done.stderr


def test_a_reader_that_had_enough_ends_the_command_quietly() -> None:
    done = shell(f"{LOADGEN} traces stats {TRACE} | true")
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_an_error_that_nobody_can_read_keeps_its_exit_code() -> None:
    for gone in ("2>&-", "2>/dev/full", ">&- 2>&-", ""):
        done = shell(f"{LOADGEN} traces stats nothing.jsonl {gone}")
        assert done.returncode == 2
    assert done.stderr == "loadgen: nothing.jsonl: no such file\n"


def test_a_run_whose_terminal_is_full_is_whole(tmp_path: Path) -> None:
    done = shell(f"{REPLAY} --out {tmp_path / 'run'} >/dev/full")
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("name", ["ascii", "latin-1"])
def test_letters_that_the_locale_lacks_are_spelled(tmp_path: Path, name: str) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(
        '{"loadtrace":"loadtrace/1","name":"Grüße 世界\\u202e"}\n'
        '{"timestamp":0,"input_length":5,"output_length":2,"日本":1}\n'
    )
    for more in ("", "--json"):
        done = shell(
            f"{LOADGEN} traces stats {trace} {more}", PYTHONIOENCODING=name, **ASCII
        )
        assert done.returncode == 0
        assert "Traceback" not in done.stderr
        assert done.stdout.isascii()


def test_a_file_whose_name_is_no_text_is_named_all_the_same(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\x1b[2J[bold].jsonl"
    Path(os.fsdecode(path)).write_text('{"input_length":5,"a[/b]":1}\n')
    for name in (path, path + b"x"):
        done = subprocess.run(
            [sys.executable, "-m", "loadgen", "traces", "stats", name],
            capture_output=True, timeout=60, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == (0 if name == path else 2)
        assert b"\x1b" not in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr


def test_what_holds_prompts_is_its_owners(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = shell(f"umask 022; {REPLAY} --out {run} --quiet")
    assert done.returncode in (0, 3), done.stderr
    modes = {p.name: p.stat().st_mode & 0o777 for p in [run, *run.iterdir()]}
    assert modes["run"] == modes["logs"] == 0o700
    assert modes["plan.jsonl"] == modes["requests.jsonl"] == 0o600


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serving(folder: Path, redirected: str, **environment: str) -> list[Any]:
    """Serve under it, one request, SIGTERM: its codes, the store's records, /info."""
    ports = [free_port(), free_port()]
    store = folder / "gr\u00fc\u00dfe.sqlite"
    served = subprocess.Popen(
        ["bash", "-c",
         f"exec {PROXY} serve --upstream http://127.0.0.1:1 --power none "
         f"--listen 127.0.0.1:{ports[0]} --admin 127.0.0.1:{ports[1]} --access-log "
         f"--store 'sqlite:///{store}' --drain-delay 0 {redirected}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)} | environment, cwd=folder,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        admin = f"http://127.0.0.1:{ports[1]}"
        wait_for(lambda: served.poll() is not None or is_answering(admin))
        reply = httpx.post(
            f"http://127.0.0.1:{ports[0]}/v1/chat/completions",
            json={"model": "\u4e16\u754c\u202e", "messages": []},
        )
        info = get(f"{admin}/info").json()
        served.terminate()
        _, said = served.communicate(timeout=60)
    finally:
        served.kill()
        served.communicate()
    connection = sqlite3.connect(store)
    records = connection.execute("select model from servewatt_records").fetchall()
    connection.close()
    assert "Traceback" not in said
    return [reply.status_code, served.returncode, records, info["store"]["url"]]


def is_answering(admin: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return get(f"{admin}/healthz").status_code == 200
    return False


@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), ("2>/dev/full", 0),
        (">/dev/full", 1), (">/dev/full 2>/dev/full", 1),
    ],
)  # fmt: skip
def test_a_proxy_serves_and_records_whatever_its_output_is(
    tmp_path: Path, redirected: str, code: int
) -> None:
    found = serving(tmp_path, redirected)
    assert found[:3] == [502, code, [("\u4e16\u754c\u202e",)]]


@pytest.mark.parametrize("name", ["ascii", "latin-1"])
def test_a_proxy_in_a_locale_without_letters_serves_and_records(
    tmp_path: Path, name: str
) -> None:
    found = serving(tmp_path, "", PYTHONIOENCODING=name, **ASCII)
    assert found[:3] == [502, 0, [("\u4e16\u754c\u202e",)]]
    assert "gr%C3%BC%C3%9Fe.sqlite" in found[3]
