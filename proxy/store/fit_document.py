"""Calibrations as JSON, the same in the file, the admin API and `calibrate --json`.

Rule: `sums` is the truth, from which the fit is computed again; all else is for
readers. A file of another version, or one that does not hold, is refused whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec
import numpy as np

from proxy.errors import ProxyError
from proxy.meter.attribution.fit import CONSTANTS, UNITS, CalibrationState, Sums

VERSION = 1


class SavedSums(msgspec.Struct, frozen=True):
    """`Sums`, with work in units of the stated constants' defaults."""

    rows: float
    squares: tuple[tuple[float, ...], ...]
    products: tuple[float, ...]
    work: tuple[float, ...]
    joules: float
    square_joules: float


class Constant(msgspec.Struct, frozen=True):
    """One fitted constant, for readers."""

    joules: float
    standard_error_joules: float
    unit: str


class Saved(msgspec.Struct, frozen=True):
    """The calibration of one engine and model."""

    engine: str
    model: str | None
    is_fitted: bool
    reason: str | None = None
    """Why the constants are not trusted."""
    saved_unix_seconds: float | None = None
    rows: float = 0.0
    row_seconds: float = 0.0
    condition: float | None = None
    misfit: float | None = None
    constants: dict[str, Constant] = {}
    sums: SavedSums | None = None


class Document(msgspec.Struct, frozen=True):
    """Several of them, and the version of this shape."""

    calibrations: tuple[Saved, ...]
    version: int = VERSION


def saved_of(
    state: CalibrationState, engine: str, unix_seconds: float | None = None
) -> Saved:
    """What there is to say of a calibration now."""
    fit, sums = state.fit, state.sums
    constants = {}
    if fit is not None:
        constants = {
            name: Constant(joules, error, UNITS[name])
            for name, joules, error in zip(
                CONSTANTS, fit.joules.tolist(), fit.error_joules.tolist(), strict=True
            )
        }
    is_conditioned = fit is not None and math.isfinite(fit.condition)
    return Saved(
        engine=engine,
        model=state.model,
        is_fitted=state.is_fitted,
        reason=state.reason,
        saved_unix_seconds=unix_seconds,
        rows=sums.rows,
        row_seconds=state.row_seconds,
        condition=fit.condition if fit and is_conditioned else None,
        misfit=fit.misfit if fit else None,
        constants=constants,
        sums=SavedSums(
            sums.rows,
            tuple(tuple(row) for row in sums.squares.tolist()),
            tuple(sums.products.tolist()),
            tuple(sums.work.tolist()),
            sums.joules,
            sums.square_joules,
        ),
    )


def encoded(entries: Iterable[Saved]) -> bytes:
    """As JSON, to be read by people too."""
    return msgspec.json.format(msgspec.json.encode(Document(tuple(entries)))) + b"\n"


def decoded(content: bytes, place: str) -> tuple[Saved, ...]:
    """The calibrations in a document. Raises ProxyError where it is none of ours."""
    try:
        document = msgspec.json.decode(content, type=Document)
    except msgspec.DecodeError as error:
        raise ProxyError(f"{place} is no calibration: {error}") from None
    if document.version != VERSION:
        raise ProxyError(
            f"{place} is calibration version {document.version}, "
            f"expected {VERSION}; give another path"
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
    )


def _check(saved: SavedSums, place: str) -> None:
    """Sums of rows are symmetric and never negative."""
    size = len(CONSTANTS)
    lengths = {len(saved.squares), len(saved.products), len(saved.work)}
    lengths |= {len(row) for row in saved.squares}
    if lengths != {size}:
        raise ProxyError(f"{place}: sums are not of {size} constants")
    squares = np.array(saved.squares)
    numbers = [saved.rows, saved.joules, saved.square_joules]
    if min(*numbers, *saved.products, *saved.work, squares.min()) < 0:
        raise ProxyError(f"{place}: sums are negative")
    slack = 1e-9 * (squares.max() + 1e-300)
    if np.abs(squares - squares.T).max() > slack or (
        np.linalg.eigvalsh(squares).min() < -slack
    ):
        raise ProxyError(f"{place}: squares are not a sum of squares")
