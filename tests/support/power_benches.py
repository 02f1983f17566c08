"""Counterparts of every power source, whose joules and watts a test sets.

A bench is what the source talks to in life: an HTTP server, a tree of files, a
program on PATH, a shared library. Sources that load a library live in a child
process, so that the library of this one stays what it is.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec
import pytest

from proxy.errors import ConfigError, SensorError
from proxy.power.energy_source import EnergySource
from proxy.power.sources import source_opener
from proxy.power.sources.csv import CsvSource, parse_recording
from proxy.wire.facts import HardwareState, Reading
from tests.support.paths import ROOT

Route = Callable[[], "tuple[int, str, dict[str, str]]"]


class Bench(Protocol):
    """One source's counterpart."""

    boundary: str
    has_counter: bool
    has_watts: bool

    def open(self) -> EnergySource: ...

    def show(self, joules: float, watts: float) -> None:
        """What the sensor says from now on."""

    def fail(self) -> None:
        """The sensor answers no more."""


@contextmanager
def serving(
    routes: dict[str, Route],
    seen: list[tuple[str, dict[str, str]]] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """A local HTTP server's base URL; routes by path, query left out.

    `seen` collects each request's path with query, and its headers.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            if seen is not None:
                seen.append((self.path, dict(self.headers.items())))
            route = routes.get(urlsplit(self.path).path)
            status, text, headers = route() if route else (404, "", {})
            self.send_response_only(status)
            headers = {"date": formatdate(usegmt=True)} | headers
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class HttpBench:
    """A page or an API that shows what was set, until it fails with 500."""

    has_counter = True
    has_watts = True

    def __init__(self, boundary: str, power: str) -> None:
        self.boundary = boundary
        self.power = power
        self.joules, self.watts, self.is_up = 0.0, 0.0, True

    def open(self) -> EnergySource:
        self.is_up = True
        return source_opener(self.power, ())()

    def show(self, joules: float, watts: float) -> None:
        self.joules, self.watts = joules, watts

    def fail(self) -> None:
        self.is_up = False

    def route(self, render: Callable[[], object]) -> Route:
        def answer() -> tuple[int, str, dict[str, str]]:
            body = render()
            text = body if isinstance(body, str) else json.dumps(body)
            return (200, text, {}) if self.is_up else (500, "", {})

        return answer


@contextmanager
def dcgm_bench(folder: Path) -> Iterator[Bench]:
    bench = HttpBench("gpu", "")
    page = bench.route(
        lambda: (
            f'DCGM_FI_DEV_POWER_USAGE{{gpu="0"}} {bench.watts}\n'
            f'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{gpu="0"}} {bench.joules * 1000}\n'
        )
    )
    with serving({"/metrics": page}) as url:
        bench.power = f"dcgm={url}/metrics"
        yield bench


@contextmanager
def prometheus_bench(folder: Path) -> Iterator[Bench]:
    bench = HttpBench("node", "")
    page = bench.route(
        lambda: (
            f'pdu_energy_kwh{{outlet="1"}} {bench.joules / 3.6e6!r}\n'
            f'pdu_power_kw{{outlet="1"}} {bench.watts / 1000!r}\n'
            'pdu_power_kw{outlet="2"} 9\n'
        )
    )
    with serving({"/metrics": page}) as url:
        bench.power = (
            f'prometheus={url}/metrics#joules=pdu_energy_kwh{{outlet="1"}}'
            '&joules-scale=3600000&watts=pdu_power_kw{outlet="1"}&watts-scale=1000'
            "&boundary=node&device=outlet"
        )
        yield bench


@contextmanager
def zeusd_bench(folder: Path) -> Iterator[Bench]:
    bench = HttpBench("gpu", "")
    routes = {
        "/time": bench.route(lambda: {"timestamp_ms": int(time.time() * 1000)}),
        "/gpu/get_cumulative_energy": bench.route(
            lambda: {"0": {"energy_mj": round(bench.joules * 1000)}}
        ),
        "/gpu/get_power": bench.route(
            lambda: {
                "timestamp_ms": int(time.time() * 1000),
                "power_mw": {"0": round(bench.watts * 1000)},
            }
        ),
    }
    with serving(routes) as url:
        bench.power = f"zeusd={url}"
        yield bench


@contextmanager
def redfish_bench(folder: Path) -> Iterator[Bench]:
    bench = HttpBench("node", "")
    root = "/redfish/v1/Chassis"
    routes = {
        root: bench.route(lambda: {"Members": [{"@odata.id": f"{root}/1"}]}),
        f"{root}/1": bench.route(
            lambda: {"Id": "1", "EnvironmentMetrics": {"@odata.id": f"{root}/1/Env"}}
        ),
        f"{root}/1/Env": bench.route(
            lambda: {
                "PowerWatts": {"Reading": bench.watts},
                "EnergyJoules": {"Reading": bench.joules},
            }
        ),
    }
    with serving(routes) as url:
        bench.power = f"redfish={url}"
        yield Unpaced(bench)


class Unpaced:
    """A bench whose source would keep its last answer for a second."""

    def __init__(self, bench: Any) -> None:
        self._bench = bench
        self.boundary = bench.boundary
        self.has_counter = bench.has_counter
        self.has_watts = bench.has_watts
        self.show, self.fail = bench.show, bench.fail

    def open(self) -> EnergySource:
        source: Any = self._bench.open()
        source._paced._min_seconds = 0.0
        return source  # type: ignore[no-any-return]


class RaplBench:
    """A sysfs tree with one package."""

    boundary = "host"
    has_counter = True
    has_watts = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = zone(root, "intel-rapl:0", "package-0", 0) / "energy_uj"

    def open(self) -> EnergySource:
        if not self.file.exists():
            self.show(0.0, 0.0)
        return source_opener(f"rapl={self.root}", ())()

    def show(self, joules: float, watts: float) -> None:
        self.file.write_text(f"{round(joules * 1e6)}\n")

    def fail(self) -> None:
        self.file.unlink()


def zone(root: Path, path: str, name: str, microjoules: int) -> Path:
    """One powercap zone."""
    folder = root / path
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    return folder


@contextmanager
def rapl_bench(folder: Path) -> Iterator[Bench]:
    yield RaplBench(folder / "powercap")


IPMITOOL = """#!/bin/sh
[ -f "{folder}/watts" ] || {{ echo 'Could not open device at /dev/ipmi0' >&2; exit 1; }}
echo "
    Instantaneous power reading:              $(cat "{folder}/watts") Watts
    Minimum during sampling period:                 31 Watts
    IPMI timestamp:                           Thu Jan  1 00:00:00 1970
    Power reading state is:                   activated
"
"""


class IpmiBench:
    """An `ipmitool` on PATH."""

    boundary = "node"
    has_counter = False
    has_watts = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tool = executable(folder / "ipmitool", IPMITOOL.format(folder=folder))

    def open(self) -> EnergySource:
        if not (self.folder / "watts").exists():
            self.show(0.0, 0.0)
        return source_opener("ipmi", ())()

    def show(self, joules: float, watts: float) -> None:
        (self.folder / "watts").write_text(f"{watts:.0f}")

    def fail(self) -> None:
        (self.folder / "watts").unlink()


def executable(path: Path, text: str) -> Path:
    """A script that can be run."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@contextmanager
def ipmi_bench(folder: Path) -> Iterator[Bench]:
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
    try:
        yield Unpaced(IpmiBench(folder))
    finally:
        os.environ["PATH"] = before


class CsvBench:
    """A recording that grows by a row a minute; the source is always at its end."""

    boundary = "gpu"
    has_counter = True
    has_watts = True
    name = "csv"
    is_simulated = False

    def __init__(self) -> None:
        self.rows: list[str] = []
        self.is_over = False

    def open(self) -> EnergySource:
        self.is_over = False
        return self

    def show(self, joules: float, watts: float) -> None:
        self.rows.append(f"{len(self.rows) * 60},gpu0,{joules!r},{watts!r}")

    def fail(self) -> None:
        self.is_over = True

    def read(self) -> Sequence[Reading]:
        last = (len(self.rows) - 1) * 60
        text = ["# boundary=gpu", "seconds,device,joules,watts", *self.rows]
        text.append(f"{last + 1},gpu1,0,0")  # so that the last row is not the end
        elapsed = last + (2 if self.is_over else 0.5)
        recording = parse_recording("recorded.csv", text)
        return CsvSource(recording, "node", time.monotonic() - elapsed).read()

    def close(self) -> None:
        pass


@contextmanager
def csv_bench(folder: Path) -> Iterator[Bench]:
    yield CsvBench()


CHILD = """
import json, sys
import msgspec
from proxy.errors import ProxyError
from proxy.power.sources import source_opener
source = None
for line in sys.stdin:
    command, said = line.strip(), {}
    try:
        if command.startswith("open"):
            verb, power, *gpus = command.split()
            outside = verb == "open-all"
            source = source_opener(power, tuple(gpus), shows_outside=outside)()
            said = {"name": source.name, "boundary": source.boundary,
                    "is_simulated": source.is_simulated}
        elif command == "read":
            said = {"readings": [[r.device, r.joules, r.watts, None, r.is_outside]
                                 for r in source.read()]}
        elif command == "max_watts":
            said = dict(source.max_watts())
        elif command == "hardware":
            said = {"states": msgspec.to_builtins(source.hardware())}
        else:
            source.close()
    except ProxyError as error:
        said = {"error": str(error), "type": type(error).__name__}
    print(json.dumps(said), flush=True)
"""


class ChildSource:
    """A source in a process of its own, asked line by line."""

    def __init__(
        self, child: subprocess.Popen[str], power: str, verb: str = "open"
    ) -> None:
        self._child = child
        said = self._ask(f"{verb} {power}")
        self.name: str = said["name"]
        self.boundary: str = said["boundary"]
        self.is_simulated: bool = said["is_simulated"]

    def read(self) -> Sequence[Reading]:
        return [Reading(*row) for row in self._ask("read")["readings"]]

    def max_watts(self) -> dict[str, float]:
        return self._ask("max_watts")

    def hardware(self) -> Sequence[HardwareState]:
        states = self._ask("hardware")["states"]
        return msgspec.convert(states, list[HardwareState])

    def close(self) -> None:
        self._ask("close")

    def _ask(self, command: str) -> dict[str, Any]:
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(f"{command}\n")
        self._child.stdin.flush()
        said: dict[str, Any] = json.loads(self._child.stdout.readline())
        if "error" in said:
            kinds = {"SensorError": SensorError, "ConfigError": ConfigError}
            raise kinds[said["type"]](said["error"])
        return said


@contextmanager
def child(**environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that opens sources on demand; ends when its input does."""
    hidden = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    base = {k: v for k, v in os.environ.items() if k not in hidden}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], env=base | environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        assert process.stdin
        assert process.stdout
        process.stdin.close()
        process.wait()
        process.stdout.close()


def compile_nvml(folder: Path) -> Path:
    """The folder with our libnvidia-ml.so.1; skips where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is missing: install gcc to test the NVML source")
    source = Path(__file__).with_name("nvml_stub.c")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return folder


class NvmlBench:
    """The real pynvml in a child, on a library with a scripted counter."""

    boundary = "gpu"
    has_counter = True
    has_watts = True

    def __init__(self, process: subprocess.Popen[str], script: Path) -> None:
        self.process = process
        self.script = script

    def open(self) -> EnergySource:
        if not self.script.exists() or self.script.read_text().startswith("-"):
            self.show(0.0, 0.0)
        return ChildSource(self.process, "nvml")

    def show(self, joules: float, watts: float) -> None:
        self.script.write_text(f"{round(joules * 1000)}\n")

    def fail(self) -> None:
        self.script.write_text("-15\n")


@contextmanager
def nvml_bench(folder: Path) -> Iterator[Bench]:
    library = compile_nvml(folder)
    script = folder / "script"
    with child(
        LD_LIBRARY_PATH=str(library), SERVEWATT_NVML_SCRIPT=str(script)
    ) as process:
        yield NvmlBench(process, script)


AMDSMI = '''
"""Stands in for AMD's module: answers from a JSON file, in AMD's shapes."""
import json, os, time
STARTED = time.monotonic()
class AmdSmiException(Exception): pass
class AmdSmiLibraryException(AmdSmiException): pass
def state():
    with open(os.environ["AMDSMI_STATE"]) as file:
        found = json.load(file)
    if found.get("error"):
        raise AmdSmiLibraryException("Error code:\\n\\t%s" % found["error"])
    return found
def amdsmi_init(): state()
def amdsmi_shut_down(): pass
def amdsmi_get_processor_handles(): return ["a", "b"][:state().get("boards", 1)]
def amdsmi_get_energy_count(handle):
    now = state()
    grown = now["watts"] * (time.monotonic() - STARTED) if now["is_running"] else 0
    return {"energy_accumulator": round((now["joules"] + grown) * 1e6 / 15.3),
            "counter_resolution": 15.3, "timestamp": 0}
def amdsmi_get_power_info(handle):
    now = state()
    return {"socket_power": "N/A", "average_socket_power": now["watts"],
            "current_socket_power": now.get("current", "N/A")}
'''


class AmdSmiBench:
    """The source in a child, on a made-up `amdsmi` module."""

    boundary = "gpu"
    has_counter = True
    has_watts = True

    def __init__(self, process: subprocess.Popen[str], state: Path) -> None:
        self.process = process
        self.state = state

    def open(self) -> EnergySource:
        self._write(joules=0, watts=300, is_running=True)  # must pass its validation
        source = ChildSource(self.process, "amdsmi")
        self.show(0.0, 0.0)
        return source

    def show(self, joules: float, watts: float) -> None:
        self._write(joules=joules, watts=watts, is_running=False)

    def fail(self) -> None:
        self._write(error="34 | AMDSMI_STATUS_DRM_ERROR")

    def _write(self, **state: object) -> None:
        self.state.write_text(json.dumps(state))


def amdsmi_module(folder: Path) -> dict[str, str]:
    """The environment of a child that finds our module; its state is folder/state."""
    (folder / "amdsmi.py").write_text(AMDSMI)
    repository = str(ROOT)
    path = f"{folder}{os.pathsep}{repository}"
    return {"PYTHONPATH": path, "AMDSMI_STATE": str(folder / "state")}


@contextmanager
def amdsmi_bench(folder: Path) -> Iterator[Bench]:
    with child(**amdsmi_module(folder)) as process:
        yield AmdSmiBench(process, folder / "state")


BENCHES = {
    "nvml": nvml_bench,
    "amdsmi": amdsmi_bench,
    "dcgm": dcgm_bench,
    "zeusd": zeusd_bench,
    "rapl": rapl_bench,
    "redfish": redfish_bench,
    "ipmi": ipmi_bench,
    "prometheus": prometheus_bench,
    "csv": csv_bench,
}
