"""Sensors behind HTTP: Prometheus pages, zeusd, Redfish, and their clocks."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigError, SensorError
from proxy.meter.curve import DeviceCurve
from proxy.power.energy_source import EnergySource, RemoteSource
from proxy.power.http import RemoteClock
from proxy.power.paced import Paced
from proxy.power.sources import source_opener
from proxy.power.sources.prometheus import Query, parse_page, parse_selector
from proxy.power.sources.redfish import RedfishSource, parse_power
from proxy.wire.facts import Reading
from tests.support.power_benches import Route, serving


def page(body: object, status: int = 200, **headers: str) -> Route:
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda: (status, text, headers)


@contextmanager
def reading(power: str, gpus: tuple[str, ...] = ()) -> Iterator[EnergySource]:
    source = source_opener(power, gpus)()
    try:
        yield source
    finally:
        source.close()


# --- clocks


@given(
    offset=st.floats(-1000, 1000),
    exchanges=st.lists(
        st.tuples(st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 10)), min_size=1
    ),
    resolution=st.sampled_from([0.001, 1.0]),
)
def test_a_remote_clock_is_found_within_the_narrowest_exchange(
    offset: float, exchanges: list[tuple[float, float, float]], resolution: float
) -> None:
    clock = RemoteClock(unix_origin_seconds=1_700_000_000.0)
    now, widest = 0.0, []
    for trip, part, pause in exchanges:
        now += pause
        remote = 1_700_000_000.0 + now + trip * part + offset
        cut = remote - remote % resolution
        clock.observe(now, now + trip, cut, resolution)
        widest.append(trip + resolution)
        now += trip
    found = clock.offset_seconds
    assert found is not None
    assert abs(found - offset) <= min(widest) + 1e-5


def test_a_clock_that_fits_ours_is_taken_as_ours() -> None:
    clock = RemoteClock(1000.0)
    assert clock.offset_seconds is None
    clock.observe(5.0, 5.2, 1005.0, 1.0)
    assert clock.offset_seconds == 0.0
    assert clock.local_seconds(1005.5) == 5.5


def test_a_clock_that_was_set_is_estimated_anew() -> None:
    clock = RemoteClock(0.0)
    clock.observe(1.0, 1.002, 1.001, 0.001)
    clock.observe(2.0, 2.002, 62.001, 0.001)
    assert clock.offset_seconds == pytest.approx(60.0, abs=0.003)


def test_a_paced_sensor_is_asked_once_until_it_is_due() -> None:
    asked: list[int] = []

    def ask() -> list[Reading]:
        asked.append(1)
        return [Reading("node", watts=float(len(asked)), at_seconds=1.0)]

    slow, fast = Paced(ask, 3600.0), Paced(ask, 0.0)
    assert slow.read() == slow.read() == slow.read()
    assert len(asked) == 1
    assert fast.read() != fast.read()


def test_repeated_readings_of_a_paced_sensor_change_no_joule() -> None:
    def integrated(repeats: int) -> float:
        curve = DeviceCurve()
        for second in range(11):
            for _ in range(repeats):
                curve.observe(float(second), None, 300.0 + 10 * second)
        assert not any(curve.reasons)
        return curve.total_joules

    assert integrated(50) == integrated(1) == pytest.approx(3500.0)


# --- Prometheus


def query(**selectors: str) -> Query:
    found = {key: parse_selector(text, 1.0) for key, text in selectors.items()}
    return Query(found.get("joules"), found.get("watts"))


PAGE = """\
# TYPE rack_joules_total counter
rack_joules_total{host="a",index="0"} 10 1700000000500
rack_joules_total{host="a",index="1"} 20 1700000000000
rack_joules_total{host="b",index="0"} 30
rack_joules_total_created{host="a",index="0"} 99
rack_watts{host="a",index="0"} 5
"""


def test_series_are_selected_by_name_and_labels() -> None:
    wanted = query(joules='rack_joules_total{host="a"}', watts="rack_watts")
    readings, stamp, simulated = parse_page(PAGE, wanted)
    assert readings == [Reading("index0", 10.0, 5.0), Reading("index1", 20.0, None)]
    assert stamp == 1700000000.5
    assert not simulated
    only = query(joules='rack_joules_total{host=~"b|c", index="0"}')
    assert parse_page(PAGE, only)[0] == [Reading("index0", 30.0)]
    assert parse_page(PAGE, query(joules="absent"))[0] == []
    assert parse_page(PAGE + "servewatt_simulated 1\n", only)[2]


def test_two_series_of_one_device_are_not_guessed_apart() -> None:
    with pytest.raises(SensorError, match="device=LABEL"):
        parse_page(PAGE, query(joules="rack_joules_total"))


def test_prometheus_stamps_are_put_on_our_clock() -> None:
    ahead = 100.0

    def answer() -> tuple[int, str, dict[str, str]]:
        now = time.time() + ahead
        return (
            200,
            f"j 5 {int((now - 2) * 1000)}\n",
            {"date": formatdate(now, usegmt=True)},
        )

    with serving({"/federate": answer}) as url:
        power = f"prometheus={url}/federate#joules=j&boundary=host"
        with reading(power) as source:
            before = time.monotonic()
            (shown,) = source.read()
            assert isinstance(source, RemoteSource)
            assert source.clock_offset_seconds == pytest.approx(ahead, abs=1.1)
            assert shown.at_seconds == pytest.approx(before - 2, abs=2)


def test_a_page_without_the_series_says_so() -> None:
    with serving({"/metrics": page("up 1\n")}) as url:
        power = f"prometheus={url}/metrics#watts=w&boundary=gpu"
        with reading(power) as source, pytest.raises(SensorError, match="none of the"):
            source.read()


# --- zeusd


def zeusd_routes(ahead_seconds: float = 0.0) -> dict[str, Route]:
    def stamp() -> int:
        return int((time.time() + ahead_seconds) * 1000)

    def power() -> tuple[int, str, dict[str, str]]:
        body = {"timestamp_ms": stamp(), "power_mw": {"0": 250_000, "1": 90_000}}
        return 200, json.dumps(body), {}

    energy = {"0": {"energy_mj": 1500}, "1": {"energy_mj": 2500}}
    return {
        "/time": lambda: (200, json.dumps({"timestamp_ms": stamp()}), {}),
        "/gpu/get_power": power,
        "/gpu/get_cumulative_energy": page(energy),
    }


def test_zeusd_gives_each_gpu_its_millijoules_and_milliwatts() -> None:
    seen: list[tuple[str, dict[str, str]]] = []
    with (
        serving(zeusd_routes(), seen) as url,
        reading(f"zeusd={url}", ("0", "1")) as source,
    ):
        figures = [(r.device, r.joules, r.watts) for r in source.read()]
        assert figures == [("gpu0", 1.5, 250.0), ("gpu1", 2.5, 90.0)]
    assert ("/gpu/get_power?gpu_ids=0,1") in [path for path, _ in seen]


def test_zeusds_clock_offset_is_reported_and_taken_out() -> None:
    routes = zeusd_routes(ahead_seconds=-50.0)
    routes["/gpu/get_cumulative_energy"] = page({"error": "no counter"}, 500)
    with serving(routes) as url, reading(f"zeusd={url}") as source:
        assert isinstance(source, RemoteSource)
        assert source.clock_offset_seconds == pytest.approx(-50.0, abs=1.0)
        before = time.monotonic()
        shown = source.read()
        after = time.monotonic()
        assert [r.joules for r in shown] == [None, None]
        for device in shown:
            assert device.at_seconds is not None
            assert before - 1.0 <= device.at_seconds <= after + 1.0


def test_zeusd_is_shown_the_token_of_the_named_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ZEUSD_TOKEN", "abc")
    seen: list[tuple[str, dict[str, str]]] = []
    with (
        serving(zeusd_routes(), seen) as url,
        reading(f"zeusd={url}#token-env=ZEUSD_TOKEN"),
    ):
        pass
    headers = {key.lower(): value for key, value in seen[0][1].items()}
    assert headers["authorization"] == "Bearer abc"


def test_zeusd_without_the_right_to_read_says_what_it_needs() -> None:
    routes = zeusd_routes() | {"/gpu/get_power": page({"error": "scope"}, 403)}
    with (
        serving(routes) as url,
        pytest.raises(SensorError, match=r"answered 403, expected.*gpu-read"),
    ):
        source_opener(f"zeusd={url}", ())()


@pytest.mark.parametrize("body", ["[]", "nonsense", '{"power_mw": {"0": "x"}}', "{}"])
def test_zeusd_that_speaks_otherwise_is_a_sensor_error(body: str) -> None:
    routes = zeusd_routes() | {"/gpu/get_power": page(body)}

    def open_and_read(url: str) -> None:
        with reading(f"zeusd={url}") as source:
            source.read()

    with serving(routes) as url, pytest.raises(SensorError, match=r"zeusd at http"):
        open_and_read(url)


def test_zeusd_is_reached_over_a_unix_socket(tmp_path: Path) -> None:
    routes = zeusd_routes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text, _ = routes[self.path]()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    socket = tmp_path / "zeusd.sock"
    with UnixStreamServer(str(socket), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            with reading(f"zeusd={socket}") as source:
                assert [r.joules for r in source.read()] == [1.5, 2.5]
        finally:
            server.shutdown()
            thread.join()


# --- Redfish

ROOT = "/redfish/v1/Chassis"


def link(path: str) -> dict[str, str]:
    return {"@odata.id": path}


def chassis(*names: str) -> dict[str, object]:
    return {"Members": [link(f"{ROOT}/{name}") for name in names]}


def test_the_older_power_resource_is_read_by_its_first_entry() -> None:
    controls = [{"PowerConsumedWatts": 812}, {"PowerConsumedWatts": 300}]
    assert parse_power({"PowerControl": controls}) == (None, 812.0)
    assert parse_power({"PowerControl": [{"PowerConsumedWatts": None}]}) == (None, None)
    assert parse_power({"PowerControl": []}) == (None, None)


def test_environment_metrics_give_watts_and_joules_and_at_last_kilowatt_hours() -> None:
    metrics: dict[str, Any] = {
        "PowerWatts": {"Reading": 640.5},
        "EnergykWh": {"Reading": 2.5},
        "EnergyJoules": {"Reading": 77},
    }
    assert parse_power(metrics) == (77.0, 640.5)
    del metrics["EnergyJoules"]
    assert parse_power(metrics) == (None, 640.5)
    del metrics["PowerWatts"]
    assert parse_power(metrics) == (9_000_000.0, None)


def redfish_routes() -> dict[str, Route]:
    """A node with a GPU tray inside, newer page empty, older page good."""
    return {
        ROOT: page(chassis("Node", "GpuTray")),
        f"{ROOT}/Node": page(
            {
                "Id": "Node",
                "EnvironmentMetrics": link(f"{ROOT}/Node/EnvironmentMetrics"),
                "Power": link(f"{ROOT}/Node/Power"),
            }
        ),
        f"{ROOT}/GpuTray": page(
            {
                "Id": "GpuTray",
                "Links": {"ContainedBy": link(f"{ROOT}/Node")},
                "EnvironmentMetrics": link(f"{ROOT}/GpuTray/EnvironmentMetrics"),
            }
        ),
        f"{ROOT}/Node/EnvironmentMetrics": page({"PowerWatts": {"Reading": None}}),
        f"{ROOT}/Node/Power": page({"PowerControl": [{"PowerConsumedWatts": 812}]}),
        f"{ROOT}/GpuTray/EnvironmentMetrics": page({"PowerWatts": {"Reading": 300}}),
    }


def test_redfish_finds_the_node_and_never_adds_what_is_inside_it() -> None:
    with serving(redfish_routes()) as url:
        with reading(f"redfish={url}") as source:
            assert [(r.device, r.watts) for r in source.read()] == [("Node", 812.0)]
            assert source.read() == source.read()
        with reading(f"redfish={url}#chassis=GpuTray") as source:
            assert [(r.device, r.watts) for r in source.read()] == [("GpuTray", 300.0)]
        with pytest.raises(SensorError, match="chassis there: Node, GpuTray"):
            source_opener(f"redfish={url}#chassis=Tray", ())()


def test_redfish_with_two_outer_chassis_asks_which_is_the_node() -> None:
    routes = redfish_routes()
    tray = {"Id": "GpuTray", "Power": link(f"{ROOT}/GpuTray/Power")}
    routes[f"{ROOT}/GpuTray"] = page(tray)
    with serving(routes) as url, pytest.raises(ConfigError, match="add chassis=ID"):
        source_opener(f"redfish={url}", ())()


@pytest.mark.parametrize("body", [{}, {"Members": None}, {"Members": [7, {}]}])
def test_redfish_without_chassis_is_a_sensor_error(body: object) -> None:
    with (
        serving({ROOT: page(body)}) as url,
        pytest.raises(SensorError, match="chassis there: none"),
    ):
        source_opener(f"redfish={url}", ())()


def test_redfish_secrets_come_from_the_environment_and_stay_out_of_errors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BMC_USER", "meter")
    monkeypatch.setenv("BMC_PASSWORD", "s3cret")
    seen: list[tuple[str, dict[str, str]]] = []
    with serving({ROOT: page({}, 401)}, seen) as url:
        power = f"redfish={url}#user-env=BMC_USER&password-env=BMC_PASSWORD"
        with pytest.raises(SensorError) as caught:
            source_opener(power, ())()
    assert "answered 401, expected a Redfish service" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    headers = {key.lower(): value for key, value in seen[0][1].items()}
    assert headers["authorization"] == "Basic bWV0ZXI6czNjcmV0"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is missing: install it to test TLS verification")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=bmc", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key", "-out", folder / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return context


def test_a_bmc_is_verified_unless_told_not_to(certificate: ssl.SSLContext) -> None:
    with serving(redfish_routes(), tls=certificate) as url:
        with pytest.raises(SensorError, match=r"(?i)certificate"):
            source_opener(f"redfish={url}", ())()
        with reading(f"redfish={url}#verify=no") as source:
            assert isinstance(source, RedfishSource)
            assert source.read()[0].watts == 812.0
