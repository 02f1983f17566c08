"""dcgm-exporter, read over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import SensorError
from proxy.power.energy_source import SourceOptions
from proxy.power.sources import SOURCES, source_opener
from proxy.power.sources.dcgm import DcgmSource, parse_dcgm
from tests.support.power_benches import serving

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


@pytest.mark.parametrize("chosen", ["1", "GPU-b"])
def test_dcgm_gpus_are_chosen_by_index_or_uuid(chosen: str) -> None:
    page = parse_dcgm(DCGM_TEXT, frozenset({chosen}))
    shown = [(reading.device, reading.is_outside) for reading in page.readings]
    assert shown == [("gpu0", True), ("gpu1", False)]
    with serving({"/metrics": lambda: (200, DCGM_TEXT, {})}) as url:
        for shows_outside, devices in (False, ["gpu1"]), (True, ["gpu0", "gpu1"]):
            source = source_opener(
                f"dcgm={url}/metrics", (chosen,), shows_outside=shows_outside
            )()
            assert [reading.device for reading in source.read()] == devices
            source.close()


def test_dcgm_is_read_over_http_and_says_what_is_wrong() -> None:
    reply: dict[str, Any] = {"status": 200, "text": DCGM_TEXT}

    def answer() -> tuple[int, str, dict[str, str]]:
        return reply["status"], reply["text"], {}

    with serving({"/metrics": answer}) as url:
        source = SOURCES["dcgm"](SourceOptions(argument=f"{url}/metrics"))
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


def test_a_dcgm_that_is_not_there_is_a_sensor_error() -> None:
    source = DcgmSource("http://127.0.0.1:9/metrics")
    with pytest.raises(SensorError, match=r"dcgm at http://127\.0\.0\.1:9/metrics"):
        source.read()
    source.close()


def test_how_the_boards_work_is_read_off_the_page_that_was_read_last() -> None:
    with serving({"/metrics": lambda: (200, DCGM_TEXT, {})}) as url:
        source = SOURCES["dcgm"](SourceOptions(argument=f"{url}/metrics"))
        assert isinstance(source, DcgmSource)
        assert source.hardware() == ()
        source.read()
        first, second = source.hardware()
        source.close()
    assert (first.device, first.temperature_celsius) == ("gpu0", 44.0)
    assert second.temperature_celsius is None
