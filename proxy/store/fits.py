"""The file of calibrations: read at start, written whole, one model at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from proxy.errors import ConfigError, ProxyError
from proxy.meter.attribution.fit import CalibrationState, Sums
from proxy.process.files import whole_file
from proxy.store.fit_document import Saved, decoded, encoded, saved_of, sums_of

log = logging.getLogger("servewatt.calibration")

SAVE_SECONDS = 60.0
"""A proxy that is killed loses so much of what it learnt."""


class CalibrationFile:
    """Where the constants of one engine outlive the process; without a path, nowhere.

    Raises ConfigError for a file that is not ours: it would be overwritten.
    """

    def __init__(self, path: str | None, engine: str) -> None:
        self._path = None if path is None else Path(path)
        self._engine = engine
        self._due_seconds = time.monotonic() + SAVE_SECONDS
        self._has_warned = False
        try:
            found = self._read()
        except OSError as error:
            raise ConfigError(
                f"--calibration {path}: {error.strerror or error}"
            ) from None
        except ProxyError as error:
            raise ConfigError(f"--calibration {error}") from None
        self.by_model: Mapping[str, Sums] = {
            entry.model: sums_of(entry.sums)
            for entry in found
            if entry.engine == engine and entry.model is not None and entry.sums
        }

    def is_due(self, now_seconds: float) -> bool:
        """Whether a minute has passed since it was written."""
        return self._path is not None and now_seconds >= self._due_seconds

    def save(self, state: CalibrationState | None) -> None:
        """Write it; a disk that refuses is said once, and requests flow."""
        self._due_seconds = time.monotonic() + SAVE_SECONDS
        if self._path is None or state is None or state.model is None:
            return
        if state.sums.rows <= 0:
            return
        try:
            self._write(saved_of(state, self._engine, time.time()))
            self._has_warned = False
        except (OSError, ProxyError) as error:
            if not self._has_warned:
                log.warning("calibration not saved to %s: %s", self._path, error)
            self._has_warned = True

    def _read(self) -> tuple[Saved, ...]:
        if self._path is None:
            return ()
        try:
            return decoded(self._path.read_bytes(), str(self._path))
        except FileNotFoundError:
            return ()

    def _write(self, own: Saved) -> None:
        """The others as they are now, ours replaced; readers see all or nothing."""
        assert self._path is not None
        others = [
            entry
            for entry in self._read()
            if (entry.engine, entry.model) != (own.engine, own.model)
        ]
        with whole_file(self._path, is_durable=True) as file:
            file.write(encoded([*others, own]))
