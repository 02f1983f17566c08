"""Idle power that one meter's process leaves to the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.meter.config import MeterConfig
from proxy.meter.meter import Meter
from proxy.serve.idle_memory import IdleMemory
from tests.support.meter_scenes import counter


def idle_meter(watts: float) -> Meter:
    """One that has seen nobody run for some seconds."""
    meter = Meter(MeterConfig())
    for event in counter(5.0, watts):
        meter.feed(event)
        meter.settle(event.at_seconds)
    return meter


def test_the_next_meter_begins_with_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "idle.json"
    first = IdleMemory(path)
    assert first.last == {}
    first.keep({"vllm": Meter(MeterConfig())}, 1.0)
    assert not path.exists()
    first.keep({"vllm": idle_meter(90.0)}, 2.0)
    first.keep({"vllm": idle_meter(50.0)}, 2.5)  # within the same second
    last = IdleMemory(path).last
    assert last["vllm"]["gpu"] == pytest.approx(90.0)
    again = Meter(MeterConfig(last_idle_watts=last["vllm"]))
    assert again.state().idle_watts == last["vllm"]["gpu"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"vllm": 3}', b"\xff"])
def test_a_file_that_says_nothing_is_no_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "idle.json"
    path.write_bytes(content)
    assert IdleMemory(path).last == {}


def test_a_folder_that_is_gone_costs_nothing_but_the_memory(tmp_path: Path) -> None:
    memory = IdleMemory(tmp_path / "gone" / "idle.json")
    memory.keep({"vllm": idle_meter(90.0)}, 1.0)
