"""`metering-proxy records`: what a store holds, as a file for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from proxy.commands.legs import legs
from proxy.commands.when import INSTANT
from proxy.errors import ProxyError
from proxy.process.command import Command, CommandGroup
from proxy.process.files import PRIVATE, os_reason, whole_file
from proxy.process.terminal import echo

EXAMPLES = """\b
Examples:
  metering-proxy records export --store sqlite:///records.sqlite \\
      --parquet records.parquet
  metering-proxy records legs http://prefill:9464 http://decode:9464
"""
EXPORT_EXAMPLES = """\b
Examples:
  metering-proxy records export --store sqlite:///records.sqlite \\
      --parquet records.parquet
  metering-proxy records export --store postgresql://user@db/servewatt \\
      --since 2026-11-01 --until 2026-12-01 --jsonl november.jsonl
  metering-proxy records export --store sqlite:///records.sqlite \\
      --tenant team-a --csv team-a.csv
"""


@click.group(cls=CommandGroup, epilog=EXAMPLES)
def records() -> None:
    """Records of requests: out of a store, or joined over proxies."""


records.add_command(legs)


@records.command(cls=Command, epilog=EXPORT_EXAMPLES)
@click.option("--store", required=True, metavar="URL",
              help="Database to read, also while proxies write.")  # fmt: skip
@click.option("--parquet", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write; needs servewatt[parquet].")  # fmt: skip
@click.option("--jsonl", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write, an object a line.")  # fmt: skip
@click.option("--csv", "csv_path", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write, a row a record.")  # fmt: skip
@click.option("--since", type=INSTANT, metavar="TIME",
              help="Requests that ended since (UTC).")  # fmt: skip
@click.option("--until", type=INSTANT, metavar="TIME",
              help="Requests that ended before it.")  # fmt: skip
@click.option("--model", help="Of this model only.")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--instance", help="Of this proxy only.")
def export(
    store: str, parquet: Path | None, jsonl: Path | None, csv_path: Path | None,
    since: float | None, until: float | None, model: str | None, tenant: str | None,
    instance: str | None,
) -> None:  # fmt: skip
    """Write records of all proxies that share a store to one file.

    Every column of the table, instants in Unix seconds, energy in joules, null for
    what is not known (in csv: empty). The file appears when it is whole, for its owner
    alone.
    """
    named = [path for path in (parquet, jsonl, csv_path) if path is not None]
    if len(named) != 1:
        raise click.UsageError("name one file: --parquet, --jsonl or --csv")
    from proxy.store.address import store_url
    from proxy.store.export import (
        check_pyarrow,
        pages,
        write_csv,
        write_json_lines,
        write_parquet,
    )
    from proxy.store.totals import conditions

    if parquet is not None:
        check_pyarrow()
    wanted = conditions(since, until, model=model, tenant=tenant, instance=instance)
    found = pages(store_url(store), wanted)
    (path,) = named
    writers = ((parquet, write_parquet), (jsonl, write_json_lines))
    write = next((each for name, each in writers if name is not None), write_csv)
    try:
        with whole_file(path, mode=PRIVATE) as file:
            count = write(file, found)
    except OSError as error:
        raise ProxyError(f"cannot write {path}: {os_reason(error)}") from None
    echo(f"{count} records in {path}", err=True)
