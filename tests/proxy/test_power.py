"""Every power source against its real counterpart: HTTP, the pynvml module, nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import ConfigError, SensorError
from proxy.power import SOURCES, source_opener
from proxy.power.dcgm import DcgmSource, parse_dcgm
from proxy.power.reading import Reading, SourceOptions

DCGM_TEXT = """\
# HELP DCGM_FI_DEV_POWER_USAGE Power draw (in W).
# TYPE DCGM_FI_DEV_POWER_USAGE gauge
DCGM_FI_DEV_POWER_USAGE{gpu="0",UUID="GPU-a",modelName="NVIDIA A100"} 301.5
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-b",modelName="NVIDIA A100"} 60.25
# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="0",UUID="GPU-a"} 5000500
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="1",UUID="GPU-b"} 1000
DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-a"} 44
"""


def test_dcgm_text_becomes_joules_and_watts_per_gpu() -> None:
    readings, simulated = parse_dcgm(DCGM_TEXT, frozenset())
    assert readings == [Reading("gpu0", 5000.5, 301.5), Reading("gpu1", 1.0, 60.25)]
    assert not simulated


@pytest.mark.parametrize("chosen", ["1", "GPU-b"])
def test_dcgm_gpus_are_chosen_by_index_or_uuid(chosen: str) -> None:
    readings, _ = parse_dcgm(DCGM_TEXT, frozenset({chosen}))
    assert [reading.device for reading in readings] == ["gpu1"]


def test_a_missing_counter_is_unknown_and_not_zero() -> None:
    readings, _ = parse_dcgm('DCGM_FI_DEV_POWER_USAGE{gpu="0"} 70\n', frozenset())
    assert readings == [Reading("gpu0", joules=None, watts=70.0)]


def test_a_simulator_says_so() -> None:
    _, simulated = parse_dcgm(DCGM_TEXT + "servewatt_simulated 1\n", frozenset())
    assert simulated


def test_text_of_something_else_is_refused() -> None:
    with pytest.raises(SensorError, match="not Prometheus text"):
        parse_dcgm("DCGM_FI_DEV_POWER_USAGE{gpu= nonsense", frozenset())


@pytest.fixture
def exporter() -> Iterator[tuple[str, dict[str, Any]]]:
    reply: dict[str, Any] = {"status": 200, "text": DCGM_TEXT}

    class Exporter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(reply["status"])
            self.end_headers()
            self.wfile.write(reply["text"].encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Exporter)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics", reply
    server.shutdown()
    thread.join()
    server.server_close()


def test_dcgm_is_read_over_http_and_says_what_is_wrong(
    exporter: tuple[str, dict[str, Any]],
) -> None:
    url, reply = exporter
    source = SOURCES["dcgm"](SourceOptions(argument=url))
    try:
        assert [reading.joules for reading in source.read()] == [5000.5, 1.0]
        reply["status"] = 500
        with pytest.raises(SensorError, match="answered 500"):
            source.read()
        reply.update(status=200, text="up 1\n")
        with pytest.raises(SensorError, match="shows neither"):
            source.read()
    finally:
        source.close()
        source.close()


def test_a_dcgm_that_is_not_there_is_a_sensor_error() -> None:
    source = DcgmSource("http://127.0.0.1:9/metrics")
    with pytest.raises(SensorError, match=r"dcgm at http://127\.0\.0\.1:9/metrics"):
        source.read()
    source.close()


def test_no_source_reads_no_device() -> None:
    source = SOURCES["none"](SourceOptions())
    assert list(source.read()) == []
    source.close()
    source.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("wattmeter", "unknown power source 'wattmeter'; known: dcgm, none, nvml"),
        ("dcgm", "dcgm=http://host:9400/metrics"),
        ("none=x", "takes neither"),
        ("nvml=x", "takes no address"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(text: str, complaint: str) -> None:
    def choose_and_open() -> None:
        source_opener(text, ())()

    with pytest.raises(ConfigError) as caught:
        choose_and_open()
    assert complaint in str(caught.value)


READ_TWICE = """
import json, sys
from proxy.errors import ProxyError
from proxy.power import SOURCES
from proxy.power.reading import SourceOptions
out = []
try:
    source = SOURCES["nvml"](SourceOptions(gpus=tuple(sys.argv[1:])))
    for _ in range(3):
        try:
            out.append([[r.device, r.joules, r.watts] for r in source.read()])
        except ProxyError as error:
            out.append(str(error))
    source.close()
    source.close()
except ProxyError as error:
    out.append(f"{type(error).__name__}: {error}")
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is missing: install gcc to test the NVML source")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml_stub.c")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", source],
        check=True,
    )
    return folder


def read_nvml(
    library: Path | None, script: list[int], *gpus: str, **environment: str
) -> Any:
    """Three reads through the real pynvml, in a process that finds our library."""
    env = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    if library is not None:
        path = library / f"script-{'-'.join(map(str, script))}"
        path.write_text("\n".join(map(str, script)))
        env["LD_LIBRARY_PATH"] = str(library)
        env["SERVEWATT_NVML_SCRIPT"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", READ_TWICE, *gpus],
        env=env | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_nvml_gives_joules_and_instant_watts(nvml_library: Path) -> None:
    assert read_nvml(nvml_library, [1000, 1500, 2250]) == [
        [["gpu0", 1.0, 300.0]], [["gpu0", 1.5, 300.0]], [["gpu0", 2.25, 300.0]],
    ]  # fmt: skip


def test_nvml_falls_back_to_the_power_call_of_old_drivers(nvml_library: Path) -> None:
    first = read_nvml(nvml_library, [1000], SERVEWATT_NVML_OLD="1")[0]
    assert first == [["gpu0", 1.0, 301.0]]


def test_a_board_without_a_counter_has_power_only(nvml_library: Path) -> None:
    assert read_nvml(nvml_library, [-3])[0] == [["gpu0", None, 300.0]]


def test_a_lost_gpu_is_an_error_and_then_reads_again(nvml_library: Path) -> None:
    first, second, third = read_nvml(nvml_library, [1000, -15, 1200])
    assert first == [["gpu0", 1.0, 300.0]]
    assert "nvml energy of gpu0: GPU is lost" in second
    assert third == [["gpu0", 1.2, 300.0]]


def test_several_gpus_are_one_group_and_visible_devices_count(
    nvml_library: Path,
) -> None:
    def devices(*gpus: str, **environment: str) -> list[str]:
        reads = read_nvml(
            nvml_library, [5], *gpus, SERVEWATT_NVML_BOARDS="2", **environment
        )
        return [row[0] for row in reads[0]]

    assert devices() == ["gpu0", "gpu1"]
    assert devices(CUDA_VISIBLE_DEVICES="1") == ["gpu1"]
    assert devices("0", CUDA_VISIBLE_DEVICES="1") == ["gpu0"]
    assert devices("GPU-stub-0") == ["GPU-stub-0"]


def test_a_mig_instance_or_unknown_gpu_is_refused_with_the_reason(
    nvml_library: Path,
) -> None:
    assert "whole board" in read_nvml(nvml_library, [5], "MIG-1234")[0]
    assert "expected an index below 1" in read_nvml(nvml_library, [5], "7")[0]


def test_without_a_driver_nvml_says_what_is_missing() -> None:
    if any(Path(p).exists() for p in ("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",)):
        pytest.skip("this host has an NVIDIA driver, so its absence cannot be shown")
    (message,) = read_nvml(None, [])
    assert message.startswith("SensorError: nvml cannot start")
