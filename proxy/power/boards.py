"""Which board a name means: `0` and `GPU-...` may be one, by one source or by two."""

from __future__ import annotations

from proxy.errors import ProxyError
from proxy.power.energy_source import NamedBoards
from proxy.power.sources import source_opener

WITH_UUIDS = ("nvml", "dcgm")


def board_of(power: str, gpu: str) -> str | None:
    """UUID of the board that a source shows under a name.

    None where that cannot be known now: no driver, no exporter, no UUID, no such GPU.
    """
    if power.partition("=")[0] not in WITH_UUIDS:
        return None
    try:
        source = source_opener(power, (gpu,))()
        try:
            uuids = source.uuids() if isinstance(source, NamedBoards) else ()
        finally:
            source.close()
    except ProxyError:
        return None
    return uuids[0] if len(uuids) == 1 else None
