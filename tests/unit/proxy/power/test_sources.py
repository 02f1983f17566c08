"""dcgm-exporter, no source, and how `--power` names a source."""

from __future__ import annotations

import pytest

from proxy.errors import ConfigError, SensorError
from proxy.power.energy_source import SourceOptions
from proxy.power.sources import (
    SOURCES,
    members_of,
    source_opener,
    split_sources,
)
from proxy.power.sources.dcgm import ENERGY, POWER, parse_dcgm
from proxy.power.sources.prometheus import Query, parse_page, parse_selector
from proxy.wire.facts import Reading

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
    page = parse_dcgm(DCGM_TEXT, frozenset())
    assert page.readings == [
        Reading("gpu0", 5000.5, 301.5), Reading("gpu1", 1.0, 60.25),
    ]  # fmt: skip
    assert not page.is_simulated


def test_a_missing_counter_is_unknown_and_not_zero() -> None:
    page = parse_dcgm('DCGM_FI_DEV_POWER_USAGE{gpu="0"} 70\n', frozenset())
    assert page.readings == [Reading("gpu0", joules=None, watts=70.0)]


def test_a_simulator_says_so() -> None:
    page = parse_dcgm(DCGM_TEXT + "servewatt_simulated 1\n", frozenset())
    assert page.is_simulated


def test_text_of_something_else_is_refused() -> None:
    with pytest.raises(SensorError, match="not Prometheus text"):
        parse_dcgm("DCGM_FI_DEV_POWER_USAGE{gpu= nonsense", frozenset())


def test_no_source_reads_no_device() -> None:
    source = SOURCES["none"](SourceOptions())
    assert list(source.read()) == []
    source.close()
    source.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("wattmeter", "unknown power source 'wattmeter'; known: amdsmi, csv, dcgm"),
        ("dcgm", "dcgm=http://host:9400/metrics"),
        ("dcgm=http://h/metrics#a=b", "does not know the option 'a=b'"),
        ("none=x", "takes neither"),
        ("nvml=x", "takes no address"),
        ("amdsmi=x", "takes no address"),
        ("redfish=https://admin:pw@bmc", "would show in logs"),
        ("redfish=bmc", "needs an address"),
        ("redfish=https://bmc#user-env=NOBODY_SET_THIS", "which is not set"),
        ("redfish=https://bmc#user-env=PATH", "both user-env and password-env"),
        ("redfish=https://bmc#verify=maybe", "expected one of yes, no"),
        ("zeusd", "zeusd=http://host:4938"),
        ("ipmi=-Oevil", "is not a host name"),
        ("ipmi#sensor", "unknown power source 'ipmi#sensor'"),
        ("prometheus=http://h/m", "needs joules=METRIC or watts=METRIC"),
        ("prometheus=http://h/m#joules=x", "cannot know what its joules contain"),
        ("prometheus=http://h/m#joules=x{&boundary=gpu", "is not a series"),
        ('prometheus=http://h/m#joules=x{a=~"("}&boundary=gpu', "is not a series"),
        ("prometheus=http://h/m#joules=x&joules-scale=0", "a number above 0"),
        ("prometheus=http://h/m#joules=x&boundary=moon", "expected one of gpu, host"),
        ("csv", "needs a recording"),
        ("csv=/no/such/file", "No such file"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(text: str, complaint: str) -> None:
    def choose_and_open() -> None:
        source_opener(text, ())()

    with pytest.raises(ConfigError) as caught:
        choose_and_open()
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rapl", "redfish=https://bmc", "ipmi", "csv=x"])
def test_gpus_are_not_chosen_from_what_has_none(name: str) -> None:
    with pytest.raises(ConfigError, match="--gpus is not for it"):
        source_opener(name, ("0",))()


def test_sources_are_separated_by_commas_that_are_not_in_an_address() -> None:
    assert split_sources("nvml, rapl,redfish=https://bmc#chassis=1") == [
        "nvml", "rapl", "redfish=https://bmc#chassis=1",
    ]  # fmt: skip
    page = 'prometheus=http://h/m#joules=x{gpu="0",host="csv"}&boundary=gpu'
    assert split_sources(f"{page},ipmi") == [page, "ipmi"]
    assert split_sources("nvml,wattmeter") == ["nvml,wattmeter"]


# --- boards on a page


def rows(*boards: tuple[str, str, str, float], more: str = "") -> str:
    """(gpu, UUID, host, joules) of each, 100 W; an empty label is left out."""
    lines = []
    for index, uuid, host, joules in boards:
        labels = f'gpu="{index}"'
        labels += f',UUID="{uuid}"' if uuid else ""
        labels += f',Hostname="{host}"' if host else ""
        lines.append(f"{ENERGY}{{{labels}{more}}} {joules * 1000}\n")
        lines.append(f"{POWER}{{{labels}{more}}} 100\n")
    return "".join(lines)


@pytest.mark.parametrize("blank", [9223372036854775792, 140737488355329, 2147483634])
def test_a_blank_is_no_figure(blank: int) -> None:
    text = f'{ENERGY}{{gpu="0"}} {blank}\n{POWER}{{gpu="0"}} 70\n'
    assert parse_dcgm(text, frozenset()).readings == [Reading("gpu0", None, 70.0)]


def test_one_board_shown_by_two_hosts_counts_once_and_is_said() -> None:
    text = rows(("0", "GPU-a", "left", 5.0), ("3", "GPU-a", "right", 6.0))
    page = parse_dcgm(text, frozenset())
    assert page.readings == [Reading("gpu0", 6.0, 100.0)]
    assert page.repeated == {"GPU GPU-a"}


def test_one_board_in_several_pods_counts_once() -> None:
    text = rows(("0", "GPU-a", "h", 5.0)) + rows(
        ("0", "GPU-a", "h", 5.0), more=',pod="b"'
    )
    assert parse_dcgm(text, frozenset()).readings == [Reading("gpu0", 5.0, 100.0)]


@pytest.mark.parametrize(
    ("boards", "gpus"),
    [
        ([("0", "GPU-a", "left", 5.0), ("0", "GPU-b", "right", 9.0)], []),
        ([("0", "GPU-a", "left", 5.0), ("0", "GPU-b", "right", 9.0)], ["0"]),
        ([("0", "GPU-a", "left", 5.0), ("1", "GPU-b", "right", 9.0)], []),
        ([("0", "GPU-a", "", 5.0), ("0", "GPU-b", "", 9.0)], ["0"]),
        ([("0", "", "left", 5.0), ("0", "", "right", 9.0)], []),
    ],
)
def test_boards_of_two_hosts_are_never_mixed_unasked(
    boards: list[tuple[str, str, str, float]], gpus: list[str]
) -> None:
    with pytest.raises(ConfigError, match="choose the engine's by UUID"):
        parse_dcgm(rows(*boards), frozenset(gpus))


def test_boards_of_two_hosts_are_chosen_by_uuid() -> None:
    text = rows(
        ("0", "GPU-a", "left", 5.0), ("0", "GPU-b", "right", 9.0),
        ("1", "GPU-c", "right", 7.0),
    )  # fmt: skip
    page = parse_dcgm(text, frozenset({"GPU-b", "GPU-c"}))
    assert page.readings == [
        Reading("GPU-a", 5.0, 100.0, is_outside=True),
        Reading("GPU-b", 9.0, 100.0),
        Reading("gpu1", 7.0, 100.0),
    ]


MIG = ',GPU_I_PROFILE="1g.10gb",GPU_I_ID="7"'


@pytest.mark.parametrize("more", [MIG, ',GPU_I_ID="0"', ',GPU_I_PROFILE="1g.10gb"'])
def test_a_mig_board_is_refused_with_the_way_out(more: str) -> None:
    with pytest.raises(ConfigError, match=r"MIG.*nvidia-smi -mig 0"):
        parse_dcgm(rows(("0", "GPU-a", "", 5.0), more=more), frozenset())


def test_a_mig_board_that_is_not_the_engines_counts_once_outside() -> None:
    text = rows(("0", "GPU-a", "", 5.0), more=MIG)
    text += rows(("0", "GPU-a", "", 5.0), more=MIG.replace("7", "8"))
    page = parse_dcgm(text + rows(("1", "GPU-b", "", 9.0)), frozenset({"1"}))
    assert page.readings == [
        Reading("gpu0", 5.0, 100.0, is_outside=True), Reading("gpu1", 9.0, 100.0),
    ]  # fmt: skip


def test_a_board_is_held_to_the_highest_limit_that_the_page_shows() -> None:
    limit = "DCGM_FI_DEV_POWER_MGMT_LIMIT"
    text = rows(("0", "", "", 5.0), ("1", "", "", 5.0), ("2", "", "", 5.0))
    text += f'{limit}{{gpu="0"}} 400\n{limit}_MAX{{gpu="0"}} 700\n'
    text += f'{limit}{{gpu="1"}} 350\n{limit}{{gpu="2"}} 140737488355328\n'
    assert parse_dcgm(text, frozenset()).limits == {"gpu0": 700.0, "gpu1": 350.0}


def test_a_page_of_more_rows_than_any_host_has_is_refused() -> None:
    text = rows(*((str(n), "", "", 1.0) for n in range(3000)))
    with pytest.raises(SensorError, match="6000 lines"):
        parse_dcgm(text, frozenset())


def watts_of(text: str) -> list[Reading]:
    query = Query(None, parse_selector("watts", 1000.0), "gpu")
    return parse_page(text, query)[0]


def test_a_blank_in_any_page_is_no_figure_whatever_its_unit() -> None:
    assert watts_of('watts{gpu="0"} 140737488355328\n') == [Reading("gpu0")]
    assert watts_of('watts{gpu="0"} 0.3\n') == [Reading("gpu0", watts=300.0)]


def test_a_mig_instance_in_any_page_is_refused() -> None:
    with pytest.raises(ConfigError, match="MIG instance"):
        watts_of('watts{gpu="0",GPU_I_ID="3"} 1\n')


def test_one_board_under_two_names_in_any_page_is_refused() -> None:
    with pytest.raises(ConfigError, match="joules would count double"):
        watts_of('watts{gpu="0",UUID="GPU-a"} 1\nwatts{gpu="1",UUID="GPU-a"} 1\n')


@pytest.mark.parametrize(
    ("power", "members"),
    [
        ("nvml", {"": "nvml"}),
        (
            "dcgm=http://a:9400/metrics",
            {"a:9400": "dcgm=http://a:9400/metrics"},
        ),
        (
            "dcgm=http://a:9400/metrics+https://b/metrics#max-watts=900",
            {
                "a:9400": "dcgm=http://a:9400/metrics#max-watts=900",
                "b": "dcgm=https://b/metrics#max-watts=900",
            },
        ),
        (
            "zeusd=/run/a+b.sock+/run/c.sock",
            {
                "/run/a+b.sock": "zeusd=/run/a+b.sock",
                "/run/c.sock": "zeusd=/run/c.sock",
            },
        ),
        (
            "dcgm=http://a/x?q=1+2+http://a/y",
            {
                "http://a/x?q=1+2": "dcgm=http://a/x?q=1+2",
                "http://a/y": "dcgm=http://a/y",
            },
        ),
        (
            "prometheus=http://a/metrics+http://b#watts=p",
            {"a": "prometheus=http://a/metrics+http://b#watts=p"},
        ),
    ],
    ids=["bare", "one", "two", "sockets", "one-host", "not-grouped"],
)
def test_a_plus_before_an_address_parts_hosts(
    power: str, members: dict[str, str]
) -> None:
    assert members_of(power) == members


def test_one_host_is_named_once() -> None:
    with pytest.raises(ConfigError, match="names http://a:9400/metrics twice"):
        source_opener("dcgm=http://a:9400/metrics+http://a:9400/metrics/", ())
