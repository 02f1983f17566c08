"""`metering-proxy fleet`: totals of many proxies, asked at once or from their store.

Rule: what cannot be counted is named, with the reason, and in the exit status; what
can be is shown all the same, and nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import click
import msgspec

from proxy.commands.asked import EXIT_INCOMPLETE, Asked, Missing, asks_proxies
from proxy.process.command import Command
from proxy.process.terminal import echo, echo_json, escaped
from proxy.security.secrets import without_user
from proxy.wire.facts import LEGS

if TYPE_CHECKING:
    from proxy.admin.totals import Part, Sum, Totals
    from proxy.wire.api import TotalsReply

ASKED_AT_ONCE = 32
NAME_COLUMNS = 15
COLUMNS = 80
GROUPS = ("engine", "model", "tenant", "host", "instance")
EXAMPLES = """\b
Examples:
  metering-proxy fleet http://a:9464 http://b:9464
  metering-proxy fleet --by tenant https://a:9464 https://b:9464
  metering-proxy fleet --store postgresql://user@db/servewatt --by model \\
      --since 2026-11-01 --until 2026-12-01
"""


class Counted(msgspec.Struct, frozen=True):
    """A proxy that is in the sums."""

    url: str
    instance: str | None
    host: str | None
    run_unix_seconds: float
    """Since when it counts."""
    simulated: bool


class FleetReport(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    totals: Totals
    counted: list[Counted]
    missing: list[Missing]
    """Away, or not understood."""
    repeated: list[Missing]
    """Proxies that another URL has already counted."""


@click.command(cls=Command, epilog=EXAMPLES)
@asks_proxies(
    chosen="With --store: requests", timeout="For the whole answer of a proxy."
)
@click.option("--by", type=click.Choice(GROUPS), default="engine", show_default=True,
              help="What a row is of.")  # fmt: skip
@click.option("--json", "is_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def fleet(context: click.Context, /, asked: Asked, by: str, is_json: bool) -> None:
    """Add up requests, tokens and joules of many proxies, each counted once.

    URLs are admin addresses; what they answer is counted since each of them began.
    A figure with >= is a lower bound: something of it is not known; ? is not known
    at all. Joules of different boundaries are never added.

    Exit status: 0 all were counted, 3 at least one was not, 1 the store does not
    answer, 2 usage.
    """
    is_timed = asked.since is not None or asked.until is not None
    if asked.store is None and is_timed:
        raise click.UsageError("--since and --until need --store: proxies count from "
                               "their start")  # fmt: skip
    from proxy.admin.totals import totals_by

    report: FleetReport
    if asked.store is not None:
        parts = _stored(asked.store, by, asked.since, asked.until)
        report = FleetReport(totals_by(by, parts), [], [], [])
    else:
        report = _report(by, asked.urls, asyncio.run(_ask_all(asked)))
    if is_json:
        echo_json(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        echo(table(report))
    context.exit(EXIT_INCOMPLETE if report.missing else 0)


async def _ask_all(asked: Asked) -> list[TotalsReply | str]:
    """The answer at each URL, or why there is none."""
    from proxy.admin.client import AdminError, totals_at

    token, tls, seconds = asked.token(), asked.tls(), asked.timeout
    free = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask(url: str) -> TotalsReply | str:
        async with free:
            try:
                return await totals_at(url, token=token, total_seconds=seconds, tls=tls)
            except AdminError as error:
                return str(error).removeprefix(f"{url}: ")

    return await asyncio.gather(*map(ask, asked.urls))


def _report(
    by: str, urls: tuple[str, ...], answers: list[TotalsReply | str]
) -> FleetReport:
    from proxy.admin.totals import parts_of, totals_by

    parts: list[Part] = []
    counted: list[Counted] = []
    missing: list[Missing] = []
    repeated: list[Missing] = []
    runs: dict[str, str] = {}
    instances: dict[str, str] = {}
    for url, answer in zip(map(without_user, urls), answers, strict=True):
        if isinstance(answer, str):
            missing.append(Missing(url, answer))
            continue
        name = answer.instance
        if answer.run in runs:
            first = runs[answer.run]
            repeated.append(Missing(url, f"the same process as {first}"))
        elif name is not None and name in instances:
            first = instances[name]
            reason = (
                f"says that it is {name}, as {first} does: not counted; give each "
                "proxy an --instance of its own"
            )
            missing.append(Missing(url, reason))
        else:
            runs[answer.run] = url
            if name is not None:
                instances[name] = url
            parts += parts_of(answer)
            is_simulated = any(e.simulated for e in answer.engines.values())
            began = answer.run_unix_seconds
            counted.append(Counted(url, name, answer.host, began, is_simulated))
    return FleetReport(totals_by(by, parts), counted, missing, repeated)


def _stored(
    store: str, by: str, since: float | None, until: float | None
) -> list[Part]:
    from proxy.admin.totals import COUNTS, Part
    from proxy.store.address import store_url
    from proxy.store.totals import record_totals
    from proxy.wire.api import ATTRIBUTED

    parts = []
    for row in record_totals(store_url(store), by, since, until):
        whose: dict[str, Any] = dict.fromkeys(GROUPS)
        whose[by] = row["name"]
        joules: dict[str, float | None] = {
            name: row[f"{name}_joules"] for name in ATTRIBUTED
        }
        # no record has them: a store cannot say what was drawn for nobody
        joules |= {"idle": None, "unattributed": None}
        counts: dict[str, Any] = {name: int(row[name]) for name in COUNTS}
        parts.append(Part(**whose, boundary=row["boundary"], joules=joules, **counts))
    return parts


def table(report: FleetReport) -> str:
    """A row for each group, a total for each boundary, and what is not in them."""
    totals = report.totals
    lines = [_line(totals.by, "inside", ("requests", "out tok", "attr J", "idle J",
                   "unatt J", "J/req", "J/token"))]  # fmt: skip
    for row in totals.rows:
        name = row.name
        if name is None:
            name = (
                "(no request)" if totals.by in {"model", "tenant"} else "(not recorded)"
            )
        lines += _row(escaped(name), row)
    for total in totals.totals:
        lines += _row("total", total)
    if not totals.rows:
        lines.append("nothing was counted")
    if any(each.simulated for each in report.counted):
        lines.append("SIMULATED: some joules come from a simulator")
    if report.counted:
        began = [each.run_unix_seconds for each in report.counted]
        lines.append(f"counted since {_utc(min(began))} to {_utc(max(began))}")
    prefills, decodes = (
        sum(getattr(row, f"{leg}_legs") for row in totals.totals) for leg in LEGS
    )
    if prefills or decodes:
        lines.append(f"{short(prefills)} prefill and {short(decodes)} decode legs are "
                     "among the requests, each with its prompt;")  # fmt: skip
        lines.append("`metering-proxy records legs` counts each request once")
    for each in report.repeated:
        lines.append(f"once: {escaped(each.url)}: {escaped(each.reason)}")
    for each in report.missing:
        lines.append(f"missing: {escaped(each.url)}: {escaped(each.reason)}")
    if report.missing:
        asked = len(report.missing) + len(report.counted) + len(report.repeated)
        lines.append(f"{len(report.missing)} of {asked} are in no sum above")
    return "\n".join(lines)


def _row(name: str, row: Sum) -> list[str]:
    accounts = row.account_joules
    bound = ">=" if row.is_attributed_lower_bound else ""
    beyond = ">=" if row.is_measured_lower_bound else ""
    figures = (
        short(row.requests),
        (">=" if row.requests_without_tokens else "") + short(row.output_tokens),
        short(row.attributed_joules, bound),
        short(accounts["idle"], beyond),
        short(accounts["unattributed"], beyond),
        short(row.joules_per_request, bound),
        short(row.joules_per_output_token, bound),
    )
    boundary = escaped(row.boundary or "?")
    if len(name) <= NAME_COLUMNS:
        return [_line(name, boundary, figures)]
    if len(name) > COLUMNS:
        name = f"{name[: COLUMNS - 1]}…"
    return [name, _line("", boundary, figures)]


def _line(name: str, boundary: str, figures: tuple[str, ...]) -> str:
    cells = "".join(f" {figure:>8}" for figure in figures[:1])
    cells += "".join(f" {figure:>7}" for figure in figures[1:])
    return f"{name:<{NAME_COLUMNS}} {boundary[:7]:<7}{cells}"


def short(value: float | None, bound: str = "") -> str:
    """Three digits and a unit; `?` is not known."""
    if value is None:
        return "?"
    scaled = float(value)
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(scaled) < 999.5 or unit == "P":
            break
        scaled /= 1000
    digits = f"{scaled:.0f}" if isinstance(value, int) and not unit else f"{scaled:.3g}"
    return f"{bound}{digits}{unit}"


def _utc(unix_seconds: float) -> str:
    if not math.isfinite(unix_seconds) or not 0 <= unix_seconds < 32_503_680_000:
        return "?"
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(unix_seconds))
