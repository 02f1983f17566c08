"""A run sent by workers over NATS: the same requests, each once, the lost ones told."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadgen.errors import LoadgenError
from loadgen.run.bus import BusOptions, Clock, connected
from tests.support.certificates import authority
from tests.support.children import PATIENCE_SECONDS, simulating, wait_for
from tests.support.nats import NatsServer, nats_server
from tests.support.nats_accounts import Accounts, Identity
from tests.support.paths import ROOT
from tests.support.runs import (
    SMALL_TRACE,
    loadgen,
    planned,
    records,
    running,
    summary_of,
    write_trace,
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with simulating(tmp_path_factory.mktemp("engine")) as simulated:
        yield simulated["url"]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[NatsServer]:
    (tmp_path / "nats").mkdir()
    with nats_server(tmp_path / "nats") as server:
        yield server


@contextmanager
def command(
    *words: str, folder: Path, log: str, before: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A command of ours, by another one where it has to be; its words go to a file."""
    with (folder / log).open("wb") as said:
        process = subprocess.Popen(
            [*before, sys.executable, "-m", "loadgen", *words],
            cwd=folder, stdout=said, stderr=said,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def worker_words(number: int, bus: NatsServer, folder: Path) -> list[str]:
    return ["worker", "--bus", bus.url, "--name", f"w{number}", "--spool", str(folder)]


@contextmanager
def workers(
    count: int, bus: NatsServer, folder: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    with ExitStack() as ending:
        yield [
            ending.enter_context(
                command(
                    *worker_words(number, bus, folder),
                    folder=folder,
                    log=f"w{number}.log",
                )
            )
            for number in range(1, count + 1)
        ]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = summary_of(folder)["schedule"]["processes"]
    return rows


def test_the_same_plan_by_one_and_by_four_workers_is_the_same_requests(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    trace = write_trace(tmp_path)
    with workers(4, bus, tmp_path):
        for name, count in (("one", "1"), ("four", "4")):
            done = loadgen(
                "replay", trace, "--rate", "20", "--url", engine, "--out", name,
                "--workers", count, "--bus", bus.url,
                "--header", "authorization=Bearer s3cret-of-the-load", cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode in (0, 3), done.stdout + done.stderr  # a busy host
            assert "s3cret" not in done.stdout + done.stderr
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        assert b"s3cret" not in path.read_bytes(), path
    one, four = tmp_path / "one", tmp_path / "four"
    assert planned(four) == planned(one)
    assert summary_of(four)["plan_sha256"] == summary_of(one)["plan_sha256"]
    assert summary_of(four)["completed"] == 18
    assert len(rows_of(one)) == 1
    rows = rows_of(four)
    assert [row["worker"] for row in rows] == ["w1", "w2", "w3", "w4"]
    assert sum(row["requests"] for row in rows) == 18
    for row in rows:
        assert abs(row["clock_offset_seconds"]) <= row["clock_error_ms"] / 1000
    left = {path.name for path in four.iterdir()} - {"engine_metrics.jsonl"}
    assert left == {
        "logs", "plan.jsonl", "report.html", "requests.jsonl", "summary.json",
    }  # fmt: skip


@contextmanager
def replaying(
    engine: str,
    bus: NatsServer,
    folder: Path,
    *options: str,
    output_tokens: int = 1000,
    middle_tokens: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A run by three whose short replies have ended, the long ones on their way."""
    middle = output_tokens if middle_tokens is None else middle_tokens
    trace = [
        SMALL_TRACE[0],
        *(row | {"output_length": 4} for row in SMALL_TRACE[1:4]),  # one for each
        *(row | {"output_length": middle} for row in SMALL_TRACE[4:7]),
        *(row | {"output_length": output_tokens} for row in SMALL_TRACE[7:]),
    ]
    path = str(write_trace(folder, trace))
    words = ["replay", path, "--rate", "inf", "--url", engine, "--out", "run",
             "--workers", "3", "--bus", bus.url, *options]  # fmt: skip
    kept = folder / "run" / "requests.jsonl"
    with command(*words, folder=folder, log="replay.log") as run:
        wait_for(lambda: kept.is_file() and kept.read_bytes().count(b"\n") == 3)
        wait_for(lambda: running(engine) == 15)
        yield run


def assert_each_once(folder: Path, count: int) -> None:
    assert summary_of(folder)["outcomes"] == {"ok": count}
    assert len({row["request_id"] for row in records(folder)}) == count


def test_a_killed_worker_is_told_and_its_requests_are_sent_by_nobody(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    with workers(3, bus, tmp_path) as sending, replaying(engine, bus, tmp_path) as run:
        sending[1].kill()
        assert run.wait(PATIENCE_SECONDS) == 3
    summary = summary_of(tmp_path / "run")
    lost = "worker w2 (2 of 3) was not heard of for 15 s: 5 of its requests are lost"
    assert lost in summary["verdict"]["reasons"]
    assert "lost, and the run is invalid" in (tmp_path / "replay.log").read_text()
    assert_each_once(tmp_path / "run", 13)
    assert [row["lost_requests"] for row in rows_of(tmp_path / "run")] == [0, 5, 0]


def test_a_worker_that_is_told_to_end_keeps_what_it_has_and_says_so(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    with (
        workers(3, bus, tmp_path) as sending,
        replaying(engine, bus, tmp_path, "--allow-partial") as run,
    ):
        sending[0].send_signal(signal.SIGTERM)
        assert sending[0].wait(PATIENCE_SECONDS) == 0
        assert run.wait(PATIENCE_SECONDS) in (0, 3)  # a busy machine
    assert "lost, and the run is degraded" in (tmp_path / "replay.log").read_text()
    assert summary_of(tmp_path / "run")["outcomes"] == {"ok": 13, "aborted": 5}
    reasons = str(summary_of(tmp_path / "run")["verdict"]["reasons"])
    assert "worker w1 (1 of 3) was told to end: 0 of its requests are lost" in reasons


def test_an_interrupt_of_the_run_stops_all_workers_and_keeps_what_there_is(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    with workers(3, bus, tmp_path), replaying(engine, bus, tmp_path) as run:
        run.send_signal(signal.SIGINT)
        assert run.wait(PATIENCE_SECONDS) == 130
    assert summary_of(tmp_path / "run")["outcomes"] == {"aborted": 15, "ok": 3}


def test_a_killed_coordinator_is_gone_on_with_and_nothing_is_lost(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    with workers(3, bus, tmp_path):
        with replaying(engine, bus, tmp_path, output_tokens=4000) as run:
            busy = loadgen("replay", "--resume", "run", cwd=tmp_path)
            assert busy.returncode == 2
            assert "run is the folder of a run that goes on" in busy.stderr
            run.kill()
        done = loadgen("replay", "--resume", "run", cwd=tmp_path)
        assert done.returncode in (0, 3), done.stdout + done.stderr
        assert_each_once(tmp_path / "run", 18)
        assert [row["lost_requests"] for row in rows_of(tmp_path / "run")] == [0, 0, 0]
        again = loadgen("replay", "--resume", "run", cwd=tmp_path)
    assert again.returncode == 2
    assert "run has no bus.json" in again.stderr


def test_a_bus_that_was_away_has_lost_nothing(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    def are_told(text: str) -> bool:
        logs = [tmp_path / f"{name}.log" for name in ("w1", "w2", "w3", "replay")]
        return all(text in log.read_text() for log in logs)

    with workers(3, bus, tmp_path), replaying(engine, bus, tmp_path) as run:
        bus.kill()
        wait_for(lambda: are_told("is away"))
        wait_for(lambda: running(engine) == 0)  # no record of these is on the bus
        bus.start()
        assert run.wait(PATIENCE_SECONDS) in (0, 3)
        assert are_told("is back")
    assert_each_once(tmp_path / "run", 18)


def test_a_bus_that_lost_its_store_is_told_again_what_nobody_had_read(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    """The coordinator sleeps while records come, which go with the bus's disk."""
    with (
        workers(3, bus, tmp_path),
        replaying(engine, bus, tmp_path, output_tokens=1500, middle_tokens=300) as run,
    ):
        run.send_signal(signal.SIGSTOP)
        wait_for(lambda: running(engine) <= 12)
        bus.kill()
        bus.lose_store()
        wait_for(lambda: running(engine) == 0)
        bus.start()
        run.send_signal(signal.SIGCONT)
        assert run.wait(PATIENCE_SECONDS) in (0, 3)
    assert "stream is made anew" in (tmp_path / "replay.log").read_text()
    assert_each_once(tmp_path / "run", 18)
    assert [row["lost_requests"] for row in rows_of(tmp_path / "run")] == [0, 0, 0]


AHEAD_SECONDS = 123456


def other_clock() -> list[str]:
    """A command whose processes have a monotonic clock so far ahead, or a skip."""
    words = ["unshare", "--time", "--fork", "--kill-child",
             "--monotonic", str(AHEAD_SECONDS)]  # fmt: skip
    if os.geteuid() != 0:
        words[1:1] = ["--user", "--map-root-user"]
    try:
        done = subprocess.run([*words, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare of util-linux")
    if done.returncode:
        pytest.skip("may not make a time namespace here")
    return words


def test_a_host_whose_clock_is_far_off_begins_with_the_others(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    ahead = other_clock()
    trace = write_trace(tmp_path)
    with (
        workers(1, bus, tmp_path),
        command(
            *worker_words(2, bus, tmp_path),
            folder=tmp_path, log="w2.log", before=ahead,
        ),
    ):  # fmt: skip
        done = loadgen(
            "replay", trace, "--rate", "20", "--url", engine, "--out", "run",
            "--workers", "2", "--bus", bus.url, cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode in (0, 3), done.stdout + done.stderr  # a busy host
    near, far = rows_of(tmp_path / "run")
    for row, offset in ((near, 0), (far, -AHEAD_SECONDS)):
        wrong_by = abs(row["clock_offset_seconds"] - offset)
        assert wrong_by <= row["clock_error_ms"] / 1000 + 1e-6
        assert row["clock_drift_ms"] == 0
        assert row["requests"] == 9
    for row in records(tmp_path / "run"):
        assert row["planned_seconds"] - 0.001 <= row["sent_seconds"]
        assert row["sent_seconds"] < row["finished_seconds"]
    assert summary_of(tmp_path / "run")["duration"] < PATIENCE_SECONDS


def test_too_few_workers_are_said_and_the_others_set_free(
    engine: str, bus: NatsServer, tmp_path: Path
) -> None:
    trace = write_trace(tmp_path)
    words = ["--rate", "20", "--url", engine, "--bus", bus.url]
    with workers(1, bus, tmp_path):
        wait_for(lambda: "waits for runs" in (tmp_path / "w1.log").read_text())
        few = loadgen(
            "replay", trace, *words, "--out", "few", "--workers", "2",
            "--workers-timeout", "2", cwd=tmp_path,
        )  # fmt: skip
        assert few.returncode == 1
        assert "1 of 2 workers came within 2 s" in few.stderr.replace("\n", " ")
        assert not (tmp_path / "few").exists()
        done = loadgen(
            "replay", trace, *words, "--out", "run", "--workers", "1", cwd=tmp_path
        )
    assert done.returncode in (0, 3), done.stdout + done.stderr


async def reached(options: BusOptions) -> str:
    """Whether a question gets an answer over the bus, or why there is no bus."""
    try:
        bus = await connected(options, "test", print)
    except LoadgenError as error:
        return str(error)
    try:

        async def answer(_: Clock) -> Clock:
            return Clock(at_seconds=7.0)

        await bus.listen("loadgen.test", Clock, answer)
        found = await bus.ask("loadgen.test", Clock(at_seconds=0.0), Clock)
    finally:
        await bus.close()
    return "answered" if found == Clock(at_seconds=7.0) else "not answered"


def test_a_guarded_bus_is_entered_with_files_alone_and_no_secret_shows(
    tmp_path: Path,
) -> None:
    ours, theirs = authority(tmp_path, "ours"), authority(tmp_path, "theirs")
    leaf = ours.leaf("bus")
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("load:pa55\n")
    wrong.write_text("load:f4lse\n")
    guard = ["--tls", "--tlscert", str(leaf.cert), "--tlskey", str(leaf.key),
             "--user", "load", "--pass", "pa55"]  # fmt: skip
    with nats_server(tmp_path, *guard) as bus:
        said = {
            (creds, ca): asyncio.run(
                reached(BusOptions(url=bus.tls_url, credentials=creds, ca=ca))
            )
            for creds, ca in ((right, ours.cert), (wrong, ours.cert),
                              (right, theirs.cert))
        }  # fmt: skip
    assert said[right, ours.cert] == "answered"
    assert "cannot be reached: " in said[wrong, ours.cert]
    assert "authorization violation" in said[wrong, ours.cert]
    assert "certificate verify failed" in said[right, theirs.cert]
    assert not [text for text in said.values() if "pa55" in text or "f4lse" in text]


def test_a_creds_file_of_nats_lets_in_whom_the_account_knows(
    engine: str, tmp_path: Path
) -> None:
    accounts = Accounts(tmp_path)
    known = accounts.creds("known.creds")
    unknown = accounts.creds("unknown.creds", account=Identity("account"))
    with nats_server(tmp_path, "-c", str(accounts.config)) as bus:
        refused = asyncio.run(reached(BusOptions(url=bus.url, credentials=unknown)))
        assert "authorization violation" in refused
        with command(
            *worker_words(1, bus, tmp_path), "--bus-creds", str(known),
            folder=tmp_path, log="w1.log",
        ):  # fmt: skip
            done = loadgen(
                "replay", write_trace(tmp_path), "--rate", "20", "--url", engine,
                "--out", "run", "--workers", "1", "--bus", bus.url,
                "--bus-creds", str(known), cwd=tmp_path,
            )  # fmt: skip
    assert done.returncode in (0, 3), done.stdout + done.stderr  # a busy host
    assert summary_of(tmp_path / "run")["completed"] == 18


def test_a_bus_that_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("nats", reason="the bus needs nats-py")
    done = loadgen("worker", "--bus", "nats://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "loadgen: the bus nats://127.0.0.1:9 cannot be reached: connection refused\n"
    )
