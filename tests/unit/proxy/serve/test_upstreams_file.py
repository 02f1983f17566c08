"""`serve --config`: what a file of upstreams may say, and how a mistake is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from proxy.cli import serve
from proxy.errors import ConfigError
from proxy.process.command import given
from proxy.serve.config import UpstreamConfig
from proxy.serve.config_file import read_config

A = """
[[upstream]]
name = "a"
url = "http://gpu-1:8000/"
power = "nvml"
gpus = [0, 1]
"""
B = """
[[upstream]]
name = "b"
url = "http://gpu-1:8001"
power = ["nvml"]
gpus = "2"
"""


def read(
    tmp_path: Path,
    text: str,
    *arguments: str,
    boards: Mapping[tuple[str, str], str] = MappingProxyType({}),
) -> tuple[tuple[UpstreamConfig, ...], dict[str, Any]]:
    """`boards` are UUIDs by source and name, as far as they can be known."""
    path = tmp_path / "upstreams.toml"
    path.write_text(text)
    context = serve.make_context("serve", ["--config", str(path), *arguments])
    return read_config(
        str(path), given(context), lambda power, gpu: boards.get((power, gpu))
    )


def test_tables_are_upstreams_and_keys_are_options(tmp_path: Path) -> None:
    text = 'policy = "tokens"\nstore = "none"\nsample_interval = 0.05\n'
    more = 'models = ["x", "y"]\nengine = "tgi"\nidle-watts = 105\n'
    (a, b), shared = read(tmp_path, text + A + B + more)
    assert a == UpstreamConfig(
        "a", "http://gpu-1:8000", "vllm", ("nvml",), gpus=("0", "1")
    )
    assert b == UpstreamConfig(
        "b", "http://gpu-1:8001", "tgi", ("nvml",),
        gpus=("2",), models=("x", "y"), idle_watts=105.0,
    )  # fmt: skip
    assert shared == {
        "policy": "tokens", "store": None, "sample_interval": 0.05,
    }  # fmt: skip


def test_the_command_line_wins(tmp_path: Path) -> None:
    _, shared = read(tmp_path, 'policy = "tokens"\n' + A, "--policy", "equal")
    assert shared == {}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"upstreams.toml names no upstream: add a table \[\[upstream\]\]"),
        ("upstream = 3", "names no upstream"),
        ("a = = 1", "is not TOML"),
        (A.replace('name = "a"', ""), "upstream 1: name is None, expected letters"),
        (A.replace('"a"', '"a/b"'), "upstream 1: name is 'a/b'"),
        (A.replace("url", "uri"), "upstream 'a' has no url: add url = 'http"),
        (A.replace('power = "nvml"', ""), "upstream 'a' has no power"),
        (A + "speed = 3", "upstream 'a': unknown key 'speed'; known: name, models, b"),
        (A + 'engine = "sglang"', "upstream 'a': engine is 'sglang': .*not one of"),
        (A + "idle-watts = -3", "upstream 'a': idle-watts is -3: -3 is below 0"),
        (A + "idle-watts = true", "idle-watts is True, expected text, a number or"),
        (A + 'models = "m"', "upstream 'a': models is 'm', expected a list of names"),
        (A.replace("http:", "ftp:"), "upstream 'a': url is 'ftp://.*is not a base URL"),
        ('policcy = "x"\n' + A, "upstreams.toml: unknown key 'policcy'; known: .*pol"),
        ('policy = "x"\n' + A, "upstreams.toml: policy is 'x': .*not one of"),
        ("gpus = [0]\n" + A, r"gpus belongs to an upstream: move it into its \[\["),
        ("admin-tls = 1\n" + A, "admin-tls is 1, expected true or false"),
        (A + A, "upstreams 'a' and 'a' have the same name"),
        (A + B.replace("8001", "8000"), "upstreams 'a' and 'b' have the same url"),
        (A + B.replace("2", "1"), "'a' and 'b' both meter GPU 1 by nvml: each joule"),
        (A + B.replace('gpus = "2"', ""), "not both say which: give each its own gpus"),
        (
            A.replace('"nvml"', '"nvml,rapl"') + B.replace('"nvml"', '"nvml","rapl"'),
            "both meter rapl: each joule has one ledger",
        ),
    ],
)
def test_a_mistake_is_one_line_with_its_place(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "upstreams.toml" in str(caught.value)


def test_exporters_of_different_hosts_may_both_show_all_their_gpus(
    tmp_path: Path,
) -> None:
    text = "".join(
        f'[[upstream]]\nname = "{host}"\nurl = "http://{host}:8000"\n'
        f'power = "dcgm=http://{host}:9400/metrics"\n'
        for host in ("one", "two")
    )
    assert [u.name for u in read(tmp_path, text)[0]] == ["one", "two"]


def test_a_host_of_a_group_is_no_other_upstreams(tmp_path: Path) -> None:
    text = "".join(
        f'[[upstream]]\nname = "{name}"\nurl = "http://{name}:8000"\n'
        f'power = "{power}"\n'
        for name, power in (
            ("wide", "dcgm=http://one:9400/metrics+http://two:9400/metrics"),
            ("small", "dcgm=http://two:9400/metrics"),
        )
    )
    with pytest.raises(ConfigError, match="both meter GPUs by dcgm=http://two:9400"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "arguments", [("--upstream", "http://h:1"), ("--power", "nvml"), ("--gpus", "0")]
)
def test_options_of_one_upstream_have_no_place_beside_the_file(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    with pytest.raises(ConfigError, match=f"{arguments[0]} is for one upstream"):
        read(tmp_path, A, *arguments)


DCGM = "dcgm=http://gpu-1:9400/metrics"
BOARDS = {
    ("nvml", "0"): "GPU-a", ("nvml", "1"): "GPU-b", ("nvml", "GPU-b"): "GPU-b",
    (DCGM, "3"): "GPU-b", (DCGM, "2"): "GPU-c",
}  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        B.replace('"2"', '"GPU-b"'),
        B.replace('"2"', '"3"').replace('["nvml"]', f'"{DCGM}"'),
    ],
    ids=["by UUID", "by another source"],
)
def test_one_board_under_two_names_has_one_upstream(tmp_path: Path, other: str) -> None:
    with pytest.raises(ConfigError, match="both meter the board GPU-b, as 1 by nvml"):
        read(tmp_path, A + other, boards=BOARDS)
    assert read(tmp_path, A + other)  # it cannot be known without a driver


def test_boards_that_are_apart_may_have_any_names(tmp_path: Path) -> None:
    other = B.replace('["nvml"]', f'"{DCGM}"')
    assert read(tmp_path, A + other, boards=BOARDS)


def test_engines_of_one_file_may_have_a_role_each(tmp_path: Path) -> None:
    (a, b), _ = read(tmp_path, A + 'role = "prefill"\n' + B)
    assert (a.role, b.role) == ("prefill", None)
    with pytest.raises(ConfigError, match="role"):
        read(tmp_path, A + 'role = "router"\n')
