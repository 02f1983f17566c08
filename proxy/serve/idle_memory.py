"""Idle power that outlives the meter's process, where that is one of several.

It can be measured only while nothing runs, and a meter that is started again under
load would have to wait for that. So it is kept beside the socket of the relays, for as
long as the proxy runs; it is used until it is measured anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from proxy.process.files import write_whole
from proxy.serve.upstream import MeteredUpstream

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

    def keep(self, fleet: Iterable[MeteredUpstream], now_seconds: float) -> None:
        """Write what is measured by now, where it is news; once a second."""
        if now_seconds < self._due_seconds:
            return
        self._due_seconds = now_seconds + KEEP_SECONDS
        found: dict[str, dict[str, float]] = {}
        for upstream in fleet:
            for name in upstream.meter.names:
                state = upstream.meter.state_of(name)
                if state.idle_watts is not None and state.idle_source == "measured":
                    found.setdefault(upstream.config.name, {})[name] = state.idle_watts
        if found != self._kept:
            with suppress(OSError):  # a full disk costs a restart its idle power
                write_whole(self._path, msgspec.json.encode(found))
            self._kept = found
