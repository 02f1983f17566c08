"""NVML through the real pynvml, on a library with a scripted counter."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from proxy.errors import ConfigError, ProxyError, SensorError
from proxy.meter.curve import DeviceCurve
from proxy.power.energy_source import EnergySource
from proxy.power.sampler import Sampler
from proxy.wire.events import PowerSampled
from proxy.wire.facts import HardwareState
from tests.support.power_benches import ChildSource, child, compile_nvml

PATIENCE_SECONDS = 60

Read = list[tuple[str, float | None, float | None]] | str


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_nvml(tmp_path_factory.mktemp("nvml"))


def environment(library: Path, script: Sequence[int]) -> dict[str, str]:
    path = library / f"script-{'-'.join(map(str, script))}"
    path.write_text("\n".join(map(str, script)))
    return {
        "LD_LIBRARY_PATH": str(library),
        "SERVEWATT_NVML_SCRIPT": str(path),
    }


def read_nvml(
    library: Path, script: Sequence[int], *gpus: str, **more: str
) -> list[Read]:
    """Three reads; an error as its text. Opening errors are raised."""
    with child(**environment(library, script) | more) as process:
        source = ChildSource(process, " ".join(("nvml", *gpus)))
        reads: list[Read] = []
        for _ in range(3):
            try:
                reads.append([(r.device, r.joules, r.watts) for r in source.read()])
            except ProxyError as error:
                reads.append(str(error))
        source.close()
        source.close()
    return reads


def test_it_gives_joules_and_instant_watts(library: Path) -> None:
    assert read_nvml(library, [1000, 1500, 2250]) == [
        [("gpu0", 1.0, 300.0)], [("gpu0", 1.5, 300.0)], [("gpu0", 2.25, 300.0)],
    ]  # fmt: skip


def test_old_drivers_are_asked_by_the_power_call(library: Path) -> None:
    first = read_nvml(library, [1000], SERVEWATT_NVML_OLD="1")[0]
    assert first == [("gpu0", 1.0, 301.0)]


def test_a_board_without_a_counter_has_power_only(library: Path) -> None:
    assert read_nvml(library, [-3])[0] == [("gpu0", None, 300.0)]
    old = read_nvml(library, [-3], SERVEWATT_NVML_OLD="1")[0]
    assert old == [("gpu0", None, 301.0)]


@pytest.mark.parametrize(("code", "reason"), [(-15, "GPU is lost"), (-1, "Uninit")])
def test_a_void_handle_stays_void_until_the_source_is_opened_again(
    library: Path, code: int, reason: str
) -> None:
    first, second, third = read_nvml(library, [1000, code, 1200])
    assert first == [("gpu0", 1.0, 300.0)]
    assert f"nvml energy of gpu0: {reason}" in second
    assert third == second


def sampled(library: Path, script: Sequence[int]) -> list[PowerSampled]:
    """What the sampler delivers while the script is played to its last line."""
    events: list[PowerSampled] = []
    done = threading.Event()
    with child(**environment(library, script)) as process:

        def open_source() -> EnergySource:
            return ChildSource(process, "nvml")

        def deliver(event: PowerSampled) -> None:
            events.append(event)
            if event.gap_reason is None and (
                event.readings[0].joules == script[-1] / 1000
            ):
                done.set()

        sampler = Sampler(open_source, 0.001, deliver)
        sampler.start()
        assert done.wait(PATIENCE_SECONDS), sampler.stats.last_error
        sampler.stop()
    return events


def curve_of(events: Sequence[PowerSampled]) -> DeviceCurve:
    curve = DeviceCurve()
    for event in events:
        if event.gap_reason is not None:
            curve.interrupt("sensor_gap")
        else:
            (reading,) = event.readings
            curve.observe(event.at_seconds, reading.joules, reading.watts)
    return curve


def test_a_gpu_that_was_lost_is_a_gap_and_then_measured_again(library: Path) -> None:
    events = sampled(library, [1000, 2000, 3000, -15, 9000, 9500, 9900])
    reasons = [event.gap_reason for event in events if event.gap_reason is not None]
    assert reasons == ["nvml energy of gpu0: GPU is lost"]
    curve = curve_of(events)
    # 3 -> 9.5 J: true, but nobody saw when; a span of its own, marked
    assert curve.total_joules == pytest.approx(7.9)
    assert [reason for reason in curve.reasons if reason] == [1]


def test_a_reloaded_driver_is_a_reset_and_no_energy(library: Path) -> None:
    events = sampled(library, [8000, 9000, 9500, -1, 10, 500, 700, 900])
    curve = curve_of(events)
    assert curve.resets == 1
    assert curve.total_joules == pytest.approx(0.5 + 0.4)
    assert any(curve.reasons)


def test_several_gpus_are_one_group_and_visible_devices_count(library: Path) -> None:
    def devices(*gpus: str, **more: str) -> list[str]:
        reads = read_nvml(library, [5], *gpus, SERVEWATT_NVML_BOARDS="2", **more)
        assert not isinstance(reads[0], str)
        return [row[0] for row in reads[0]]

    assert devices() == ["gpu0", "gpu1"]
    assert devices(CUDA_VISIBLE_DEVICES="1") == ["gpu1"]
    assert devices(CUDA_VISIBLE_DEVICES="1,0") == ["gpu1", "gpu0"]
    assert devices(CUDA_VISIBLE_DEVICES="1,-1,0") == ["gpu1"]
    assert devices(CUDA_VISIBLE_DEVICES="GPU-stub-1") == ["GPU-stub-1"]
    assert devices("0", CUDA_VISIBLE_DEVICES="1") == ["gpu0"]
    assert devices("0", CUDA_VISIBLE_DEVICES="") == ["gpu0"]
    assert devices("GPU-stub-0") == ["GPU-stub-0"]


@pytest.mark.parametrize(
    ("chosen", "device"), [("nvml 0", "gpu0"), ("nvml GPU-stub-0", "GPU-stub-0")]
)
def test_boards_that_are_not_chosen_are_shown_as_outside(
    library: Path, chosen: str, device: str
) -> None:
    script = environment(library, [1000, 2000, 3000])
    with child(**script, SERVEWATT_NVML_BOARDS="2") as process:
        source = ChildSource(process, chosen, verb="open-all")
        first, second = source.read(), source.read()
        source.close()
    assert [(r.device, r.joules, r.is_outside) for r in first] == [
        (device, 1.0, False), ("gpu1", 1.0, True),
    ]  # fmt: skip
    # and not as often: nobody divides them
    assert [r.is_outside for r in second] == [False]


def test_a_board_outside_that_fails_takes_nothing_from_the_chosen(
    library: Path,
) -> None:
    # MIG, and lost on its first read: neither is the engine's concern
    script = environment(library, [1000, 2000])
    more = {"SERVEWATT_NVML_BOARDS": "2", "SERVEWATT_NVML_MIG": "1"}
    with child(**script, **more, SERVEWATT_NVML_LOST="1") as process:
        source = ChildSource(process, "nvml 0", verb="open-all")
        reads = [source.read(), source.read()]
        source.close()
    assert [[(r.device, r.joules) for r in read] for read in reads] == [
        [("gpu0", 1.0)], [("gpu0", 2.0)],
    ]  # fmt: skip


def refusal(library: Path, *gpus: str, **more: str) -> ProxyError:
    with pytest.raises(ProxyError) as caught:
        read_nvml(library, [5], *gpus, SERVEWATT_NVML_BOARDS="2", **more)
    return caught.value


@pytest.mark.parametrize("value", ["", "-1", "-1,0"])
def test_an_engine_that_sees_no_gpu_is_a_sensor_error(
    library: Path, value: str
) -> None:
    error = refusal(library, CUDA_VISIBLE_DEVICES=value)
    assert isinstance(error, SensorError)
    assert "hides every GPU" in str(error)


def test_a_mig_instance_and_a_board_split_by_mig_are_refused(library: Path) -> None:
    instance = refusal(library, "MIG-1234")
    board = refusal(library, "1", SERVEWATT_NVML_MIG="1")
    for error in (instance, board):
        assert isinstance(error, ConfigError)
        assert "energy is only known for the whole board" in str(error)
    reads = read_nvml(
        library, [5], "0", SERVEWATT_NVML_BOARDS="2", SERVEWATT_NVML_MIG="1"
    )
    assert reads[0] == [("gpu0", 0.005, 300.0)]


def test_a_gpu_that_is_not_here_or_not_one_is_refused(library: Path) -> None:
    assert "expected an index below 2" in str(refusal(library, "7"))
    assert "names 2 boards" in str(refusal(library, "GPU-stub"))
    assert "names 0 boards" in str(refusal(library, "GPU-other"))
    assert "would count double" in str(refusal(library, "0", "GPU-stub-0"))


def test_indices_of_cuda_and_nvml_may_differ_between_models(library: Path) -> None:
    mixed = {"SERVEWATT_NVML_MIXED": "1", "CUDA_VISIBLE_DEVICES": "0"}
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in str(refusal(library, **mixed))
    reads = read_nvml(
        library, [5], SERVEWATT_NVML_BOARDS="2", CUDA_DEVICE_ORDER="PCI_BUS_ID", **mixed
    )
    assert reads[0] == [("gpu0", 0.005, 300.0)]


def test_without_a_driver_it_says_what_is_missing() -> None:
    if any(Path(p).exists() for p in ("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",)):
        pytest.skip("this host has an NVIDIA driver, so its absence cannot be shown")
    with child() as process, pytest.raises(SensorError, match="nvml cannot start"):
        ChildSource(process, "nvml")


def test_a_board_tells_the_highest_limit_it_can_be_set_to(library: Path) -> None:
    more = {"SERVEWATT_NVML_BOARDS": "2"}
    with child(**environment(library, [1000]) | more) as process:
        assert ChildSource(process, "nvml").max_watts() == {"gpu0": 750, "gpu1": 500}


def test_all_ones_are_no_figure(library: Path) -> None:
    reads = read_nvml(library, [4294967295], SERVEWATT_NVML_MILLIWATTS="-1")
    assert reads[0] == [("gpu0", None, None)]


def test_a_name_and_a_uuid_may_mean_one_board(library: Path) -> None:
    code = (
        "from proxy.power.boards import board_of as b;"
        "print(b('nvml', '1'), b('nvml', 'GPU-stub-1'), b('nvml', '7'), b('rapl', '0'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True,
        env=os.environ | environment(library, [1]) | {"SERVEWATT_NVML_BOARDS": "2"},
    )  # fmt: skip
    assert done.stdout.split() == ["GPU-stub-1", "GPU-stub-1", "None", "None"]


STATE = """\
sm 1980
memory 2619
celsius 61
reasons 5
limit 700000
corrected 2
uncorrected 0
pids 4711 12
"""


def stated(library: Path, state: str) -> dict[str, str]:
    path = library / "state"
    path.write_text(state)
    return {"SERVEWATT_NVML_STATE": str(path)}


def state_of(library: Path, state: str, **more: str) -> HardwareState:
    script = environment(library, [1000])
    with child(**script, **stated(library, state), **more) as process:
        source = ChildSource(process, "nvml")
        assert [r.joules for r in source.read()] == [1.0]
        (found,) = source.hardware()
        source.close()
    return found


def test_a_board_tells_how_it_works_beside_its_power(library: Path) -> None:
    expected = HardwareState(
        "gpu0", 1.98e9, 2.619e9, 61.0, ("gpu_idle", "sw_power_cap"), 700.0, 2, 0,
        None, (12, 4711), "Stub A", "000.00-stub",
    )  # fmt: skip
    assert state_of(library, STATE) == expected
    # the same by the older name of the reasons
    assert state_of(library, STATE, SERVEWATT_NVML_OLD="1") == expected


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("sm -3", "sm_clock_hertz"),
        ("sm 4294967295", "sm_clock_hertz"),
        ("celsius 4294967295", "temperature_celsius"),
        ("celsius 9000", "temperature_celsius"),
        ("reasons -3", "throttle_reasons"),
        ("corrected -3", "corrected_ecc_errors"),
        ("pids -4", "process_ids"),  # no permission
    ],
)
def test_what_a_board_does_not_tell_costs_nothing_else(
    library: Path, line: str, field: str
) -> None:
    name = line.split()[0]
    lines = [
        line if kept.startswith(f"{name} ") else kept for kept in STATE.split("\n")
    ]
    found = state_of(library, "\n".join(lines))
    told = {name for name in found.__struct_fields__ if getattr(found, name) is None}
    assert told == {field, "last_xid"}


def test_a_board_that_tells_nothing_is_no_failed_reading(library: Path) -> None:
    assert state_of(library, "") == HardwareState(
        "gpu0", power_limit_watts=700.0, model="Stub A", driver="000.00-stub"
    )


def test_a_lost_board_has_no_state(library: Path) -> None:
    script = environment(library, [1000, -15])
    with child(**script, **stated(library, STATE)) as process:
        source = ChildSource(process, "nvml")
        source.read()
        with pytest.raises(SensorError, match="GPU is lost"):
            source.read()
        with pytest.raises(SensorError, match="nvml state of gpu0: GPU is lost"):
            source.hardware()


HANGING = """
import queue, sys, time
from proxy.power.sensors import Sensors, plan_sensors
from proxy.wire.events import HardwareObserved
events = queue.Queue()
sensors = Sensors(plan_sensors(["nvml"], ()), 0.01)
sensors.start(events.put)
readings, deadline = 0, time.monotonic() + float(sys.argv[1])
while readings < 300 and time.monotonic() < deadline:
    readings += not isinstance(events.get(timeout=60), HardwareObserved)
sensors.check(time.monotonic() + 60)  # a minute later, as its clock would have it
stats = sensors.stats_of("gpu")
print(readings, stats.errors, stats.samples >= 300)
sensors.stop()
"""


def test_a_question_that_hangs_takes_no_reading_with_it(library: Path) -> None:
    more = environment(library, [1000]) | stated(library, f"{STATE}hang 1\n")
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(PATIENCE_SECONDS)], check=True,
        capture_output=True, text=True, env=os.environ | more, timeout=60,
    )  # fmt: skip
    # the check's one gap is of power, which did not hang and was read in time
    assert done.stdout.split() == ["300", "1", "True"]
