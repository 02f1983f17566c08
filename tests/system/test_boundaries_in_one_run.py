"""GPU, host and node metered side by side, as a user starts it: real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

PATIENCE_SECONDS = 120
HOST_WATTS = 180.0
NODE_WATTS = 900.0


@contextmanager
def processors(sysfs: Path) -> Iterator[None]:
    """A made-up RAPL package whose counter runs at `HOST_WATTS`."""
    zone = sysfs / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(f"{10**12}\n")
    counter, stop, begin = zone / "energy_uj", threading.Event(), time.monotonic()

    def write() -> None:
        microjoules = int((time.monotonic() - begin) * HOST_WATTS * 1e6)
        fresh = zone / "fresh"
        fresh.write_text(f"{microjoules}\n")
        fresh.replace(counter)  # a reader never meets half a number

    def run() -> None:
        while not stop.wait(0.005):
            write()

    write()
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def recording(path: Path, *, seconds: int) -> Path:
    """The node's sensor: once a second, power only, as a BMC measures."""
    rows = "".join(f"{second},psu0,{NODE_WATTS}\n" for second in range(seconds))
    path.write_text(f"# boundary=node\nseconds,device,watts\n{rows}")
    return path


def replayed(folder: Path, power: list[str], *more: str) -> dict[str, Any]:
    """One run through the embedded stack: its summary, `text` and `requests`."""
    trace = folder / "small.jsonl"
    rows = [
        {"input_length": 60 + 40 * n, "output_length": 12 + 2 * n, "kind": "code"}
        for n in range(18)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    powers = [word for text in power for word in ("--power", text)]
    done = subprocess.run(
        [sys.executable, "-m", "loadgen", "replay", trace, "--rate", "6", "--seed",
         "3", "--out", folder / "run", *powers, *more],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary: dict[str, Any] = json.loads((folder / "run/summary.json").read_text())
    lines = (folder / "run/requests.jsonl").read_text().splitlines()
    summary["requests"] = [json.loads(line) for line in lines]
    summary["text"] = done.stdout
    summary["page"] = (folder / "run/report.html").read_text()
    return summary


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("three")
    node = recording(folder / "node.csv", seconds=600)
    with processors(folder / "sysfs"):
        return replayed(
            folder, [f"dcgm,rapl={folder / 'sysfs'}", f"csv={node}"],
            "--sim-gpus", "2", "--gpus", "0", "--bare-idle-watts", "30",
        )  # fmt: skip


def test_the_books_of_every_boundary_close(three: dict[str, Any]) -> None:
    blocks = three["energy"]["boundaries"]
    assert list(blocks) == ["gpu", "host", "node"]
    for block in blocks.values():
        accounts = (
            sum(block["attributed_joules"].values())
            + block["idle_share_joules"]
            + block["idle_joules"]
            + sum(block["unattributed_joules"].values())
        )
        assert block["measured_joules"] == pytest.approx(accounts, abs=1e-3)
        assert abs(block["residual_joules"]) <= 1e-3
        assert block["settled"]
        assert block["reason"] is None
    assert blocks["host"]["mean_watts"] == pytest.approx(HOST_WATTS, rel=0.05)
    assert blocks["node"]["mean_watts"] == pytest.approx(NODE_WATTS, rel=0.01)
    assert blocks["node"]["settlement_window_seconds"] == pytest.approx(5.0, rel=0.1)
    assert blocks["gpu"]["settlement_window_seconds"] == 0.5
    assert three["energy"]["measured_joules"] == blocks["gpu"]["measured_joules"]


def test_shares_of_the_node_are_of_measured_joules(three: dict[str, Any]) -> None:
    blocks = three["energy"]["boundaries"]
    shares = {r["inner"]: r["ratio"] for r in three["energy"]["boundary_ratios"]}
    node = blocks["node"]["measured_joules"]
    assert shares["gpu"] == pytest.approx(blocks["gpu"]["measured_joules"] / node)
    assert shares["host"] == pytest.approx(HOST_WATTS / NODE_WATTS, rel=0.05)
    idle = three["energy"]["idle_accelerators_joules"]
    assert idle > 0
    assert shares["idle_accelerators"] == pytest.approx(idle / node)


def test_every_request_has_its_joules_at_every_boundary(three: dict[str, Any]) -> None:
    for row in three["requests"]:
        beside = row["energy"]["boundaries"]
        assert set(beside) == {"host", "node"}
        for part in (row["energy"], *beside.values()):
            assert part["energy_joules"] == pytest.approx(
                part["prefill_joules"]
                + part["decode_joules"]
                + part["idle_share_joules"]
            )
            assert part["energy_joules"] > 0
    for block in three["energy"]["boundaries"].values():
        inclusive, active = (
            block[f"{which}joules_per_request"] for which in ("", "active_")
        )
        assert inclusive["n"] == active["n"] == 18
        for name in ("mean", "p50", "p90"):
            assert 0 <= active[name] <= inclusive[name]


def test_active_and_inclusive_energy_stand_side_by_side(three: dict[str, Any]) -> None:
    energy = three["energy"]
    shares = [row["energy"]["idle_share_joules"] for row in three["requests"]]
    difference = (
        energy["joules_per_request"]["mean"]
        - energy["active_joules_per_request"]["mean"]
    )
    assert difference == pytest.approx(sum(shares) / len(shares))
    assert energy["bare_idle_watts"] == 30.0
    rest_watts = three["books"]["rest_watts"] if "books" in three else None
    assert energy["model_idle_watts"] == pytest.approx(
        (rest_watts or energy["loaded_idle_watts"]) - 30.0, rel=0.01
    )
    for text in (three["text"], three["page"]):
        assert "because it is resident" in text
        assert "node (csv)" in text
        assert "other GPUs of the host" in text


def test_a_node_whose_sensor_fails_takes_nothing_from_the_gpu(tmp_path: Path) -> None:
    node = recording(tmp_path / "node.csv", seconds=4)  # it ends before the run does
    summary = replayed(tmp_path, [f"dcgm,csv={node}"], "--idle-watts", "90")
    energy = summary["energy"]
    assert (energy["loaded_idle_watts"], energy["idle_source"]) == (90.0, "given")
    assert energy["requests_without_energy"] == 0
    assert abs(energy["residual_joules"]) <= 1e-3
    block = energy["boundaries"]["node"]
    assert block["requests_without_energy"] > 0
    assert block["reason"]
    (share,) = energy["boundary_ratios"]
    assert share["ratio"] is None  # a part of the node's joules is no whole
    late = summary["requests"][-1]["energy"]["boundaries"]["node"]
    assert (late["energy_joules"], late["quality"]) == (None, "unknown")


def test_two_sensors_of_one_boundary_are_refused_before_anything_runs(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--upstream", "http://127.0.0.1:9",
         "--power", "nvml", "--power", "dcgm=http://127.0.0.1:9/metrics"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "metering-proxy: --power nvml and dcgm both measure the boundary 'gpu': two "
        "figures of the same joules are never mixed, nor added; name one of them"
    ]


def test_idle_watts_for_a_proxy_that_runs_already_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "one.jsonl"
    trace.write_text('{"input_length": 10, "output_length": 5}\n')
    done = subprocess.run(
        [sys.executable, "-m", "loadgen", "replay", trace, "--rate", "4", "--url",
         "http://127.0.0.1:9", "--ledger", "http://127.0.0.1:9", "--idle-watts", "90"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_SECONDS,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "are for a proxy that --power starts" in done.stderr + done.stdout
