"""One boundary whose boards several hosts show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from proxy.errors import ConfigError, SensorError
from proxy.power.energy_source import EnergySource
from proxy.power.group import SourceGroup
from proxy.power.probe import probe
from proxy.power.sources import source_opener
from tests.support.power_benches import serving


class Host:
    """A dcgm-exporter with one or two boards."""

    def __init__(self, *uuids: str) -> None:
        self.uuids = uuids
        self.joules, self.status, self.is_simulated = 0.0, 200, False

    def page(self) -> tuple[int, str, dict[str, str]]:
        rows = [
            f'{name}{{gpu="{index}",UUID="{uuid}"}} {value}'
            for index, uuid in enumerate(self.uuids)
            for name, value in (
                ("DCGM_FI_DEV_POWER_USAGE", 100 + index),
                ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", self.joules * 1000),
                ("DCGM_FI_DEV_POWER_MGMT_LIMIT", 700),
                ("DCGM_FI_DEV_GPU_TEMP", 40),
            )
        ]
        if self.is_simulated:
            rows.append("servewatt_simulated 1")
        return self.status, "\n".join(rows) + "\n", {}


@contextmanager
def spread(
    *hosts: Host, gpus: tuple[str, ...] = ()
) -> Iterator[tuple[EnergySource, list[str]]]:
    """The group over these hosts, and where each is."""
    with ExitStack() as stack:
        urls = [stack.enter_context(serving({"/metrics": h.page})) for h in hosts]
        power = "dcgm=" + "+".join(f"{url}/metrics" for url in urls)
        source = source_opener(power, gpus)()
        stack.callback(source.close)
        yield source, [url.removeprefix("http://") for url in urls]


def test_boards_of_all_hosts_are_read_each_under_its_host() -> None:
    first, second = Host("GPU-a", "GPU-b"), Host("GPU-c")
    with spread(first, second) as (group, (a, b)):
        first.joules, second.joules = 5.0, 7.5
        assert [(r.device, r.joules) for r in group.read()] == [
            (f"{a}/gpu0", 5.0), (f"{a}/gpu1", 5.0), (f"{b}/gpu0", 7.5),
        ]  # fmt: skip
        assert isinstance(group, SourceGroup)
        assert group.uuids() == ("GPU-a", "GPU-b", "GPU-c")
        assert group.max_watts() == {
            f"{a}/gpu0": 700, f"{a}/gpu1": 700, f"{b}/gpu0": 700,
        }  # fmt: skip
        assert [s.device for s in group.hardware()] == list(group.max_watts())
        assert (group.name, group.boundary) == ("dcgm", "gpu")
        assert not group.is_simulated
        second.is_simulated = True
        group.read()
        assert group.is_simulated


def test_a_part_of_the_hosts_is_no_reading_and_the_one_that_fails_is_named() -> None:
    first, second = Host("GPU-a"), Host("GPU-b")
    with spread(first, second) as (group, (_, b)):
        assert len(group.read()) == 2
        second.status = 503
        with pytest.raises(SensorError, match=f"{b}/metrics answered 503"):
            group.read()
        second.status = 200
        assert len(group.read()) == 2


def test_a_board_that_two_hosts_show_is_refused_whenever_it_comes() -> None:
    first, second = Host("GPU-a"), Host("GPU-b")
    with spread(first, second) as (group, _):
        group.read()
        second.uuids = ("GPU-b", "GPU-a")
        with pytest.raises(ConfigError, match=r"board GPU-a is shown by \S+ and \S+: "):
            group.read()
        with pytest.raises(ConfigError, match="would count twice"):
            group.read()
        second.uuids = ("GPU-b",)
        group.read()


def test_an_index_is_chosen_on_every_host() -> None:
    with spread(Host("GPU-a", "GPU-b"), Host("GPU-c", "GPU-d"), gpus=("1",)) as (
        group,
        (a, b),
    ):
        assert [r.device for r in group.read()] == [f"{a}/gpu1", f"{b}/gpu1"]


def test_boards_are_chosen_by_uuid_on_whichever_host_they_are() -> None:
    chosen = ("GPU-b", "GPU-c")
    with spread(Host("GPU-a", "GPU-b"), Host("GPU-c", "GPU-d"), gpus=chosen) as (
        group,
        (a, b),
    ):
        assert [r.device for r in group.read()] == [f"{a}/gpu1", f"{b}/gpu0"]


def test_the_sensors_of_all_hosts_are_described() -> None:
    first, second = Host("GPU-a"), Host("GPU-b")
    with ExitStack() as stack:
        urls = [
            stack.enter_context(serving({"/metrics": host.page}))
            for host in (first, second)
        ]
        found = probe("dcgm=" + "+".join(f"{url}/metrics" for url in urls), ())
    assert found.is_available
    assert len(found.devices) == 2
