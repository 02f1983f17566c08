"""dcgm-exporter, no source, and how `--power` names a source."""

from __future__ import annotations

import pytest

from proxy.errors import ConfigError, SensorError
from proxy.power.energy_source import SourceOptions
from proxy.power.sources import SOURCES, source_opener, split_sources
from proxy.power.sources.dcgm import parse_dcgm
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
    readings, simulated = parse_dcgm(DCGM_TEXT, frozenset())
    assert readings == [Reading("gpu0", 5000.5, 301.5), Reading("gpu1", 1.0, 60.25)]
    assert not simulated


def test_a_missing_counter_is_unknown_and_not_zero() -> None:
    readings, _ = parse_dcgm('DCGM_FI_DEV_POWER_USAGE{gpu="0"} 70\n', frozenset())
    assert readings == [Reading("gpu0", joules=None, watts=70.0)]


def test_a_simulator_says_so() -> None:
    _, simulated = parse_dcgm(DCGM_TEXT + "servewatt_simulated 1\n", frozenset())
    assert simulated


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
