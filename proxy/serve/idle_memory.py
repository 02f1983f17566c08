"""Idle power that outlives the meter's process, where that is one of several.

It can be measured only while nothing runs, and a meter that is started again under
load would have to wait for that. So it is kept beside the socket of the relays, for as
long as the proxy runs; it is used until it is measured anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from proxy.meter.meter import Meter
from proxy.process.files import write_whole

KEEP_SECONDS = 1.0
"""Between two looks."""

IdleWatts = Mapping[str, Mapping[str, float]]
"""By engine and boundary."""

_decode = msgspec.json.Decoder(dict[str, dict[str, float]]).decode


class IdleMemory:
    """The file that the meters of one proxy hand to each other."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._due_seconds = 0.0
        self.last: IdleWatts = {}
        """What the process before this one had measured."""
        with suppress(OSError, msgspec.MsgspecError):
            self.last = _decode(path.read_bytes())
        self._kept: IdleWatts = self.last

    def keep(self, meters: Mapping[str, Meter], now_seconds: float) -> None:
        """Write what is measured by now, where it is news; once a second."""
        if now_seconds < self._due_seconds:
            return
        self._due_seconds = now_seconds + KEEP_SECONDS
        found: dict[str, dict[str, float]] = {}
        for engine, meter in meters.items():
            for name in meter.names:
                state = meter.state_of(name)
                if state.idle_watts is not None and state.idle_source == "measured":
                    found.setdefault(engine, {})[name] = state.idle_watts
        if found != self._kept:
            with suppress(OSError):  # a full disk costs a restart its idle power
                write_whole(self._path, msgspec.json.encode(found))
            self._kept = found
