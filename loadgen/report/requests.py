"""The requests of a run as a table: a row each, a column per figure.

What a program reads: base units in the columns' names, nothing rounded, empty where
a figure is not known. Lists (the stamps of single tokens) stay in `requests.jsonl`.
Text that a spreadsheet would take for a formula gets a quote before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from loadgen.results.measures import MEASURES, SCHEDULE_LAG
from loadgen.results.results import EnergyPart, Result
from proxy.process.csv_rows import csv_line

LISTS = ("chunk_seconds", "chunk_tokens", "energy")
_UNITS = {"s": "seconds", "J": "joules", "J s": "joule_seconds", "tokens/J": ""}


def columns() -> list[str]:
    """Names of the columns: of the record, of its joules, of its measures."""
    return [*_record_fields(), *_energy_fields(), *_measure_columns()]


def rows(results: Iterable[Result]) -> Iterator[list[Any]]:
    """One row per record, by the columns; None where a figure is not known."""
    record = _record_fields()
    energy = _energy_fields()
    measures = [MEASURES[name] for name in _derived()]
    for result in results:
        yield [
            *(getattr(result, name) for name in record),
            *(getattr(result.energy, name, None) for name in energy),
            *(measure.of(result) for measure in measures),
            SCHEDULE_LAG.of(result),
        ]


def to_csv(results: Iterable[Result]) -> Iterator[bytes]:
    """The table as csv, piece by piece."""
    yield csv_line(columns())
    for row in rows(results):
        yield csv_line(row)


def _record_fields() -> list[str]:
    return [
        field.name
        for field in msgspec.structs.fields(Result)
        if field.name not in LISTS
    ]


def _derived() -> list[str]:
    """Measures whose figure is not a column of the record already."""
    record = {field.name for field in msgspec.structs.fields(Result)}
    return [
        name
        for name in MEASURES
        if name != "energy" and f"{name}_seconds" not in record
    ]


def _measure_columns() -> list[str]:
    named = [
        "_".join(filter(None, [name, _UNITS[MEASURES[name].unit]]))
        for name in _derived()
    ]
    return [*named, "schedule_lag_seconds"]


def _energy_fields() -> list[str]:
    """Those of the headline boundary; others are in `requests.jsonl`."""
    return [
        field.name
        for field in msgspec.structs.fields(EnergyPart)
        if field.name not in {"policy_joules", "boundaries"}
    ]
