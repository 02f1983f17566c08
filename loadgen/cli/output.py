"""Files that a command was asked to write."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from loadgen.errors import LoadgenError, UsageError
from proxy.process.files import os_reason, whole_file, write_whole
from proxy.process.terminal import echo, echo_json

if TYPE_CHECKING:
    from loadgen.report.sheet import Sheet

Function = Callable[..., Any]


def write_output(path: Path, data: bytes) -> None:
    """Whole or not at all. Raises LoadgenError, one line that names the file."""
    try:
        write_whole(path, data)
    except OSError as error:
        reason = os_reason(error)
        raise LoadgenError(f"cannot write {path}: {reason}") from None


def write_pieces(path: Path, pieces: Iterable[bytes]) -> None:
    """As `write_output`, of what is too much to be held at once."""
    try:
        with whole_file(path) as file:
            for piece in pieces:
                file.write(piece)
    except OSError as error:
        reason = os_reason(error)
        raise LoadgenError(f"cannot write {path}: {reason}") from None


def write_parquet(path: Path, names: Sequence[str], rows: Iterable[list[Any]]) -> None:
    """A table as parquet. Raises UsageError where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(
            "parquet needs pyarrow: pip install 'servewatt[parquet]'"
        ) from None
    columns = zip(*rows, strict=True)
    table = pyarrow.table(
        dict(zip(names, (list(column) for column in columns), strict=True))
    )
    written = io.BytesIO()
    pyarrow.parquet.write_table(table, written)
    write_output(path, written.getvalue())


FORMATS = ("table", "json", "csv", "markdown")


def result_options(function: Function) -> Function:
    """`--format` and `--out`, as every command has them whose result is a table."""
    for option in (
        click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False),
                     help="File to write instead of standard output."),
        click.option("--format", "form", type=click.Choice(FORMATS), default="table",
                     show_default=True, help="Form of the result."),
    ):  # fmt: skip
        function = option(function)
    return function


def show_result(
    form: str,
    out: Path | None,
    *,
    document: object,
    sheets: Sequence[Sheet],
    lines: Callable[[], str],
) -> None:
    """Print or write one result: `document` as JSON, `lines` as csv, else `sheets`."""
    from loadgen.report import sheet as written
    from loadgen.report.console import console

    if form == "json":
        encoded = msgspec.json.format(msgspec.json.encode(document), indent=2)
        if out is None:
            echo_json(encoded)
            return
        text = encoded.decode() + "\n"
    elif form == "csv":
        text = lines()
    elif form == "markdown":
        text = written.to_markdown(sheets)
    else:
        shown = console()
        if out is None:
            shown.print(written.render(sheets))
            return
        with shown.capture() as capture:
            shown.print(written.render(sheets))
        text = click.unstyle(capture.get())
    if out is None:
        echo(text.rstrip("\n"))
        return
    write_output(out, text.encode())
