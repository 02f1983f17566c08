"""Calibrations that outlive the process: one file, written whole, one model at a time.

Rule: `sums` is the truth, from which the fit is computed again; all else is for
readers. A file of an unknown version, or one that does not hold, is refused whole; what
an older version summed up otherwise is shown, and learnt anew.
The document is the same in the file, the admin API and `calibrate --json`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np

from proxy.errors import ConfigError, ProxyError
from proxy.meter.attribution.fit import CalibrationState, Sums
from proxy.meter.attribution.forms import CONSTANTS, FORMS, USUAL
from proxy.meter.attribution.policies import FEATURES
from proxy.process.files import PRIVATE, whole_file
from proxy.process.terminal import escaped
from proxy.wire.api import (
    CALIBRATION_VERSION,
    CalibrationReply,
    FittedConstant,
    SavedCalibration,
    SavedSums,
)

log = logging.getLogger("servewatt.calibration")

SAVE_SECONDS = 60.0
"""A proxy that is killed loses so much of what it learnt."""


class CalibrationFile:
    """The file of one engine's fitted constants; without a path nothing is kept.

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
        own = {
            entry.model: entry.sums
            for entry in found
            if entry.engine == engine and entry.model is not None and entry.sums
        }
        self.stale_models = frozenset(
            model for model, sums in own.items() if sums.features != FEATURES
        )
        """Those whose sums are not of the features that this version fits."""
        for model in sorted(self.stale_models):
            log.warning(
                "calibration of %s, %s in %s is of another version: its constants are "
                "learnt anew",
                escaped(engine), escaped(model), self._path,
            )  # fmt: skip
        self.by_model: Mapping[str, Sums] = {
            model: sums_of(sums)
            for model, sums in own.items()
            if model not in self.stale_models
        }

    def is_due(self, now_seconds: float) -> bool:
        """Whether a minute has passed since it was written."""
        return self._path is not None and now_seconds >= self._due_seconds

    def save(self, state: CalibrationState | None) -> None:
        """Write it; a disk that refuses is logged once, and requests flow."""
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

    def _read(self) -> tuple[SavedCalibration, ...]:
        if self._path is None:
            return ()
        try:
            return decoded(self._path.read_bytes(), str(self._path))
        except FileNotFoundError:
            return ()

    def _write(self, own: SavedCalibration) -> None:
        """The others as they are now, ours replaced; readers see all or nothing."""
        assert self._path is not None
        others = [
            entry
            for entry in self._read()
            if (entry.engine, entry.model) != (own.engine, own.model)
        ]
        with whole_file(self._path, mode=PRIVATE, is_durable=True) as file:
            file.write(encoded([*others, own]))


# -- the document ---------------------------------------------------------------


def saved_of(
    state: CalibrationState, engine: str, unix_seconds: float | None = None
) -> SavedCalibration:
    """A calibration as it is now."""
    fit, sums = state.fit, state.sums
    constants = {}
    if fit is not None:
        constants = {
            name: FittedConstant(*shown) for name, shown in fit.constants.items()
        }
    is_conditioned = fit is not None and math.isfinite(fit.condition)
    return SavedCalibration(
        engine=engine,
        model=state.model,
        is_fitted=state.is_fitted,
        reason=state.reason,
        doubt=state.doubt.kind if state.doubt else None,
        saved_unix_seconds=unix_seconds,
        rows=sums.rows,
        row_seconds=state.row_seconds,
        condition=fit.condition if fit and is_conditioned else None,
        misfit=fit.misfit if fit else None,
        form=fit.form if fit else None,
        form_errors=state.form_errors,
        split_error=fit.split_error if fit else None,
        sensor_lag_seconds=state.lag_seconds,
        constants=constants,
        sums=SavedSums(
            sums.rows,
            tuple(tuple(row) for row in sums.squares.tolist()),
            tuple(sums.products.tolist()),
            tuple(sums.work.tolist()),
            sums.joules,
            sums.square_joules,
            sums.form,
            FEATURES,
            tuple(tuple(row) for row in sums.spread.tolist()),
            sums.square_window_joules,
        ),
    )


def encoded(entries: Iterable[SavedCalibration]) -> bytes:
    """The document as JSON, indented for readers."""
    return (
        msgspec.json.format(msgspec.json.encode(CalibrationReply(tuple(entries))))
        + b"\n"
    )


def decoded(content: bytes, place: str) -> tuple[SavedCalibration, ...]:
    """The calibrations in a document. Raises ProxyError where it is none of ours."""
    try:
        document = msgspec.json.decode(content, type=CalibrationReply)
    except msgspec.DecodeError as error:
        raise ProxyError(f"{place} is no calibration: {error}") from None
    if not 1 <= document.version <= CALIBRATION_VERSION:
        raise ProxyError(
            f"{place} is calibration version {document.version}, "
            f"expected {CALIBRATION_VERSION} or 1; give another path"
        )
    for entry in document.calibrations:
        if entry.sums is not None:
            _check(entry.sums, f"{place}: {entry.engine}, {entry.model}")
    return document.calibrations


def sums_of(saved: SavedSums) -> Sums:
    """Back to what the fit is computed from."""
    return Sums(
        saved.rows,
        np.array(saved.squares, np.float64),
        np.array(saved.products, np.float64),
        np.array(saved.work, np.float64),
        saved.joules,
        saved.square_joules,
        np.array(saved.spread, np.float64),
        saved.square_window_joules,
        saved.form if saved.form in FORMS else USUAL,
    )


def _check(saved: SavedSums, place: str) -> None:
    """Sums of rows are symmetric and never negative."""
    size = len(saved.features or CONSTANTS)
    lengths = {len(saved.squares), len(saved.products), len(saved.work)}
    lengths |= {len(row) for row in saved.squares}
    if saved.features:
        lengths |= {len(saved.spread), *(len(row) for row in saved.spread)}
    if lengths != {size}:
        raise ProxyError(f"{place}: sums are not of {size} features")
    squares = np.array(saved.squares)
    numbers = [saved.rows, saved.joules, saved.square_joules]
    if min(*numbers, *saved.products, *saved.work, squares.min()) < 0:
        raise ProxyError(f"{place}: sums are negative")
    slack = 1e-9 * (squares.max() + 1e-300)
    if np.abs(squares - squares.T).max() > slack or (
        np.linalg.eigvalsh(squares).min() < -slack
    ):
        raise ProxyError(f"{place}: squares are not a sum of squares")
