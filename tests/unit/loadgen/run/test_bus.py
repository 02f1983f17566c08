"""Words on the bus, and how one gets in: nothing secret is shown, once means once."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import pytest

from loadgen.errors import UsageError
from loadgen.results.parts import Piece
from loadgen.run.bus import BusOptions, Hello, Parcel, connected
from loadgen.run.config import ReplayConfig, parse_bus, parse_worker_name
from loadgen.run.environment import check_workers


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("nats://bus", "nats://bus:4222"),
        ("bus:4333", "nats://bus:4333"),
        ("tls://10.0.0.1:4222", "tls://10.0.0.1:4222"),
        ("nats://[::1]:4222", "nats://[::1]:4222"),
    ],
)
def test_a_bus_is_named_by_host_and_port(text: str, url: str) -> None:
    assert parse_bus(text) == url


@pytest.mark.parametrize(
    "text", ["", "http://bus", "nats://", "nats://bus:port", "nats://bus/path"]
)
def test_what_is_no_bus_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a URL, such as nats://host:4222"):
        parse_bus(text)


@pytest.mark.parametrize(
    "text", ["nats://user:pa55@bus", "nats://pa55@bus:4222", "pa55@bus:port"]
)
def test_a_secret_in_the_url_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError, match="bus") as refused:
        parse_bus(text)
    assert "pa55" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "a b", "a/b", "-a", "a\n", "a" * 65, "\x1b[2J"])
def test_a_worker_is_called_by_a_plain_name(text: str) -> None:
    assert parse_worker_name("rack-7.node_3") == "rack-7.node_3"
    with pytest.raises(ValueError, match="is not a name of up to 64 letters"):
        parse_worker_name(text)


def test_a_worker_of_another_name_is_not_heard() -> None:
    hello = Hello(id="0" * 16, name="\x1b[2J", version="1")
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(hello), type=Hello)


def test_the_bus_tells_parcels_by_what_is_in_them() -> None:
    piece = Piece(offset=7, data=b"abc")
    assert Parcel(number=1, piece=piece).id == "1-7-3-0"
    assert Parcel(number=1, piece=piece, rewinds=1).id == "1-7-3-1"
    assert Parcel(number=2, piece=piece).id != Parcel(number=1, piece=piece).id
    longer = Piece(offset=7, data=b"abcd")
    assert Parcel(number=1, piece=longer).id != Parcel(number=1, piece=piece).id


def reach(options: BusOptions) -> str:
    """Why the bus is not reached, before any socket is opened."""
    with pytest.raises(UsageError) as refused:
        asyncio.run(connected(options, "test", print))
    return str(refused.value)


def test_without_the_client_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nats.errors", None)
    monkeypatch.setitem(sys.modules, "nats", None)
    said = reach(BusOptions(url="nats://bus:4222"))
    assert said == "--bus needs nats-py: pip install 'servewatt[bus]'"


@pytest.mark.parametrize("content", [b"", b"two\nlines", b"\xff"])
def test_credentials_that_are_none_are_named_and_not_shown(
    content: bytes, tmp_path: Path
) -> None:
    pytest.importorskip("nats", reason="the bus needs nats-py")
    path = tmp_path / "bus.creds"
    path.write_bytes(content)
    said = reach(BusOptions(url="nats://bus:4222", credentials=path))
    assert said.startswith(f"--bus-creds {path}")
    assert "two" not in said


def test_certificates_that_are_none_are_named(tmp_path: Path) -> None:
    pytest.importorskip("nats", reason="the bus needs nats-py")
    path = tmp_path / "ca.pem"
    assert reach(BusOptions(url="tls://bus:4222", ca=path)) == (
        f"--bus-ca {path}: no such file or directory"
    )
    path.write_text("none")
    assert f"--bus-ca {path}: " in reach(BusOptions(url="tls://bus:4222", ca=path))


URL = "http://engine:8000"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bus": "nats://bus:4222"}, "--bus is where --workers N are"),
        ({"workers": 2, "url": URL}, "--workers 2 needs --bus URL"),
        ({"workers": 2, "bus": "b"}, "--workers needs --url"),
        ({"workers": 2, "bus": "b", "url": URL, "processes": 2}, "more workers on"),
        (
            {"workers": 2, "bus": "b", "url": URL, "power": "nvml"},
            "not go with --power",
        ),
    ],
)
def test_what_workers_cannot_do_is_refused(
    options: dict[str, object], said: str
) -> None:
    config = ReplayConfig(trace=Path("t"), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=said):
        check_workers(config)


def test_what_they_can_do_is_not() -> None:
    check_workers(ReplayConfig(trace=Path("t")))
    check_workers(ReplayConfig(trace=Path("t"), workers=2, bus="b", url=URL))
