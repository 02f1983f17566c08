"""`loadgen bill RUN...`: what a request costs in joules, CO2 and money."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from loadgen.cli.output import result_options, show_result
from loadgen.errors import LoadgenError, RunError, UsageError
from proxy.process.command import Command
from proxy.process.files import os_reason

if TYPE_CHECKING:
    from loadgen.analysis.bill import Bill, BillTerms
    from loadgen.analysis.schema import Summary

EXAMPLES = """\b
Examples:
  loadgen bill runs/20260101T120000-sharegpt --carbon 380 --price 0.30
  loadgen bill runs/a100 --pue 1.2 --embodied 150 --host-watts 250
  loadgen bill runs/a100 runs/h100 --terms bill.toml --format markdown
  loadgen bill runs/a100 --carbon-series grid-2026.csv
"""


@click.command(cls=Command, epilog=EXAMPLES)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...",
                type=click.Path(path_type=Path))  # fmt: skip
@click.option("--terms", "file", metavar="FILE",
              type=click.Path(path_type=Path, dir_okay=False),
              help="TOML file with these options as keys, pue = 1.2; options of the "
              "command line win.")  # fmt: skip
@click.option("--pue", type=float, metavar="X", help="Power of the whole building over "
              "that of its computers. [default: 1.56]")  # fmt: skip
@click.option("--carbon", type=float, metavar="G",
              help="g CO2e per kWh of the grid. [default: 436]")  # fmt: skip
@click.option("--carbon-series", metavar="FILE", help="csv of instants and g CO2e per "
              "kWh instead; each holds until the next.")  # fmt: skip
@click.option("--price", type=float, metavar="P", help="Price per kWh.")
@click.option("--currency", metavar="NAME", help="Its currency. [default: EUR]")
@click.option("--host-watts", type=float, metavar="W", help="Power of the machine "
              "around the GPUs, where it was not metered.")  # fmt: skip
@click.option("--embodied", type=float, metavar="KG", help="Embodied kg CO2e per GPU, "
              "with its part of the server.")  # fmt: skip
@click.option("--lifespan-years", type=float, metavar="Y",
              help="Of the hardware. [default: 4]")  # fmt: skip
@click.option("--reserved", type=float, metavar="X", help="Part of the hardware that "
              "was the engine's. [default: 1]")  # fmt: skip
@click.option("--gpu", metavar="NAME", help="The GPU. [default: what the run knows]")
@click.option("--gpus", type=int, metavar="N",
              help="How many. [default: what the run knows]")  # fmt: skip
@result_options
def bill(
    runs: tuple[Path, ...], file: Path | None, form: str, out: Path | None,
    **options: float | int | str | None,
) -> None:  # fmt: skip
    """Write the bill of runs: energy, CO2 and price of a request.

    Work, idle share, idle time, host and overhead (PUE) as one stack per request;
    then operational and embodied CO2 (Software Carbon Intensity, ISO/IEC 21031) and
    price, per request, output token, session and goal. Every constant is printed
    with its source; what is not known is named and left out.
    """
    from loadgen.analysis.bill import BillTerms, boundaries_note, merged
    from loadgen.report import bill as shown
    from loadgen.report.sheet import Sheet, to_csv

    terms = BillTerms(**options)  # type: ignore[arg-type]  # options of these types
    if file is not None:
        terms = merged(read_terms(file), terms)
    bills = [bill_of_run(run, terms) for run in runs]
    sheets = [sheet for each in bills for sheet in shown.sheets(each)]
    note = boundaries_note(bills)
    if note:
        sheets.append(Sheet(note, (), ()))
    rows = [to_csv(each.parts, run=each.run, boundary=each.boundary) for each in bills]
    show_result(
        form, out, document=bills, sheets=sheets,
        lines=lambda: rows[0] + "".join(r.split("\n", 1)[1] for r in rows[1:]),
    )  # fmt: skip


def read_terms(path: Path, option: str = "--terms") -> BillTerms:
    """Terms of a TOML file. Raises UsageError that names file and key."""
    import tomllib

    import msgspec

    from loadgen.analysis.bill import BillTerms

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = os_reason(error)
        raise UsageError(f"{option} {path}: {reason}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise UsageError(f"{option} {path} is not TOML: {error}") from None
    keys = {key.replace("-", "_"): value for key, value in document.items()}
    known = BillTerms.__struct_fields__
    unknown = [key for key in keys if key not in known]
    if unknown:
        names = ", ".join(name.replace("_", "-") for name in known)
        raise UsageError(f"{option} {path}: unknown key {unknown[0]!r}; known: {names}")
    try:
        return msgspec.convert(keys, BillTerms, strict=True)
    except msgspec.ValidationError as error:
        text = str(error)
        raise UsageError(
            f"{option} {path}: {text[0].lower()}{text[1:].replace('`', '')}"
        ) from None


def bill_of_run(run: Path, terms: BillTerms, summary: Summary | None = None) -> Bill:
    """The bill of a run folder. Raises RunError and UsageError."""
    from loadgen.analysis.bill import bill_of, carbon_series, outcomes_of
    from loadgen.analysis.tally import RunWindow
    from loadgen.run.finish import load_run
    from loadgen.run.records import records_of

    series = None
    if terms.carbon_series is not None:
        path = Path(terms.carbon_series)
        try:
            series = carbon_series(path.name, path.read_text().splitlines())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise UsageError(f"--carbon-series {path}: {reason.lower()}") from None
    try:
        summary = summary or load_run(run)
        window = RunWindow(summary.window.start_seconds, summary.window.end_seconds)
        outcomes = outcomes_of(records_of(run), window)
    except LoadgenError as error:
        raise RunError(str(error)) from None
    return bill_of(run.resolve().name or str(run), summary, outcomes, terms, series)
