"""Which GPUs an engine sees: the `*_VISIBLE_DEVICES` lists of CUDA and ROCm."""

from __future__ import annotations

import os

from proxy.errors import SensorError


def visible_gpus(variable: str) -> list[str] | None:
    """Indices or UUIDs in order; None where the variable is not set: all.

    An entry of -1 (or an empty one) hides itself and what follows. Raises
    SensorError when nothing is left: the engine then uses no GPU.
    """
    value = os.environ.get(variable)
    if value is None:
        return None
    entries = [entry.strip() for entry in value.split(",")]
    hidden = [at for at, entry in enumerate(entries) if entry in ("", "-1")]
    shown = entries[: hidden[0]] if hidden else entries
    if not shown:
        raise SensorError(
            f"{variable} is {value!r}, which hides every GPU; unset it or give --gpus"
        )
    return shown
