"""All records of a store as one file: a page at a time, in bounded memory.

Rule: nobody who writes waits for it: every page is a short question of its own, after
the last record that was read. Records that proxies settle meanwhile may be in the file
or not; none is in it twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Select,
    select,
    tuple_,
)

from proxy.errors import ConfigError
from proxy.process.csv_rows import csv_line
from proxy.store.database import RECORDS, SCHEMA_VERSION, reading
from proxy.store.stored_record import JSON_COLUMNS

if TYPE_CHECKING:  # an extra
    import pyarrow

PAGE_RECORDS = 10_000
"""Read at once, and a group of rows in the file: about 8 MB of it."""
COLUMNS = tuple(column.name for column in RECORDS.columns)
UNITS = {
    "_joules": "J",
    "_unix_seconds": "s since 1970-01-01 UTC",
    "_tokens": "tokens",
    "sequence": "microseconds since 1970-01-01 UTC",
}
"""Units of columns by how their names end."""


def pages(
    url: URL, conditions: list[ColumnElement[bool]], page_records: int = PAGE_RECORDS
) -> Iterator[list[tuple[Any, ...]]]:
    """The records that meet all conditions, a page of rows at a time, by `COLUMNS`.

    Raises ConfigError and StoreError as `reading`.
    """
    key = (RECORDS.c.upstream, RECORDS.c.sequence, RECORDS.c.run)
    places = [COLUMNS.index(column.name) for column in key]
    query: Select[Any] = (
        select(RECORDS).where(*conditions).order_by(*key).limit(page_records)
    )
    with reading(url) as connection:
        after: tuple[Any, ...] | None = None
        while True:
            page = (
                query if after is None else query.where(tuple_(*key) > tuple_(*after))
            )
            rows = [tuple(row) for row in connection.execute(page)]
            connection.rollback()  # so that no snapshot is held between pages
            if rows:
                yield rows
            if len(rows) < page_records:
                return
            after = tuple(rows[-1][place] for place in places)


def write_parquet(file: BinaryIO, found: Iterator[list[tuple[Any, ...]]]) -> int:
    """Write the pages as Parquet; how many records. See `arrow_schema`."""
    import pyarrow.parquet

    schema = arrow_schema()
    count = 0
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for rows in found:
            count += len(rows)
            columns = [
                pyarrow.array(values, field.type)
                for values, field in zip(zip(*rows, strict=True), schema, strict=True)
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))
    return count


def write_json_lines(file: BinaryIO, found: Iterator[list[tuple[Any, ...]]]) -> int:
    """Write the pages as JSON lines, every column by its name; how many records."""
    count = 0
    for rows in found:
        count += len(rows)
        file.write(msgspec.json.Encoder().encode_lines(map(_object, rows)))
    return count


def write_csv(file: BinaryIO, found: Iterator[list[tuple[Any, ...]]]) -> int:
    """Write the pages as csv under a line of names; how many records.

    What is not known is empty, JSON columns are text.
    """
    file.write(csv_line(COLUMNS))
    count = 0
    for rows in found:
        count += len(rows)
        file.writelines(map(csv_line, rows))
    return count


def check_pyarrow() -> None:
    """Raises ConfigError where Parquet cannot be written."""
    try:
        import pyarrow.parquet  # noqa: F401  # asked whether it is there
    except ImportError:
        raise ConfigError(
            "--parquet needs pyarrow: pip install 'servewatt[parquet]'"
        ) from None


def arrow_schema() -> pyarrow.Schema:
    """Types of the columns; units and the version of the schema are metadata.

    JSON columns stay text: which policies and boundaries there are is data.
    """
    import pyarrow

    types = {
        Boolean: pyarrow.bool_(),
        BigInteger: pyarrow.int64(),
        Integer: pyarrow.int32(),
        Double: pyarrow.float64(),
    }
    fields = [
        pyarrow.field(
            column.name,
            types.get(type(column.type), pyarrow.string()),
            metadata=_metadata(column.name),
        )
        for column in RECORDS.columns
    ]
    version = {"servewatt_schema": str(SCHEMA_VERSION)}
    return pyarrow.schema(fields, metadata=version)


def _metadata(name: str) -> dict[str, str] | None:
    unit = next((unit for end, unit in UNITS.items() if name.endswith(end)), None)
    if name in JSON_COLUMNS:
        unit = "JSON, of J" if name == "policy_joules" else "JSON"
    return None if unit is None else {"unit": unit}


def _object(row: tuple[Any, ...]) -> Mapping[str, Any]:
    values = dict(zip(COLUMNS, row, strict=True))
    for name in JSON_COLUMNS:
        if values[name] is not None:
            values[name] = msgspec.Raw(values[name].encode())
    return values
