"""`metering-proxy records legs`: requests that two engines served, joined by their id.

Rule: as for a fleet: what cannot be had is named, with the reason, and in the exit
status; and nothing is counted twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from proxy.commands.asked import EXIT_INCOMPLETE, Asked, Missing, asks_proxies
from proxy.commands.fleet import short
from proxy.errors import ProxyError
from proxy.process.command import Command
from proxy.process.files import PRIVATE, os_reason, whole_file
from proxy.process.terminal import echo, echo_json, escaped
from proxy.security.secrets import without_user

if TYPE_CHECKING:
    from proxy.admin.client import AdminClient
    from proxy.wire.legs import JoinedRequest, Leg, LegSum, LegTotals

PARTNER_SECONDS = 3600.0
"""A leg that ended so long outside the time asked for may be a partner inside it."""
POLL_SECONDS = 0.1
EXAMPLES = """\b
Examples:
  metering-proxy records legs http://prefill:9464 http://decode:9464
  metering-proxy records legs --jsonl requests.jsonl \\
      http://prefill:9464 http://decode:9464
  metering-proxy records legs --store postgresql://user@db/servewatt \\
      --since 2026-11-28
"""


class ProxyCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A proxy's records beside its books, since its process began."""

    url: str
    instance: str | None
    simulated: bool
    is_settled: bool
    """Everything up to the question; else its last requests may have no record yet."""
    legs: int
    leg_joules: float
    whole_requests: int
    """Requests that it served alone, in no figure of legs."""
    whole_joules: float
    records_without_energy: int
    attributed_joules: float | None
    """Prefill, decode and idle share by its books; null: nothing was measured."""
    difference_joules: float | None
    """Its books less its records: joules of requests that have not ended."""
    idle_joules: float | None
    unattributed_joules: float | None


class LegsReport(msgspec.Struct, frozen=True):
    """What `--json` prints."""

    totals: LegTotals
    checks: list[ProxyCheck]
    """Of each proxy, from its start, whatever `--until` is; empty for a store, and with
    `--since`."""
    missing: list[Missing]
    """Proxies whose legs are not here."""
    repeated: list[Missing]


@click.command(cls=Command, epilog=EXAMPLES)
@asks_proxies(
    chosen="Requests", timeout="For each answer of a proxy, and for its last joules."
)
@click.option("--jsonl", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write, a request a line with both legs.")  # fmt: skip
@click.option("--json", "is_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def legs(
    context: click.Context, /, asked: Asked, jsonl: Path | None, is_json: bool
) -> None:
    """Join the legs of requests that two engines served, by request id.

    URLs are the admin addresses of the proxies of both roles: prefill joules are
    measured by one, decode joules by the other, and each request is counted once,
    since the first of them began or --since. Its energy is null unless both legs are
    recorded, with known joules inside one boundary.

    Exit status: 0 all proxies answered, 3 at least one did not, 1 the store does not
    answer, 2 usage.
    """
    from proxy.wire.legs import joined, leg_totals

    missing: list[Missing] = []
    repeated: list[Missing] = []
    checks: list[ProxyCheck] = []
    since, until = asked.since, asked.until
    if asked.store is not None:
        found = list(_stored(asked.store, since, until))
    else:
        answers = _answers(asked)
        found, checks = _counted(asked.urls, answers, missing, repeated)
        if since is not None:
            checks = []  # not all of its records are here
    requests = [
        each
        for each in joined(found)
        if (since is None or each.finished_unix_seconds >= since)
        and (until is None or each.finished_unix_seconds < until)
    ]
    if jsonl is not None:
        _write(jsonl, requests)
    report = LegsReport(leg_totals(requests), checks, missing, repeated)
    if is_json:
        echo_json(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        echo(table(report))
    context.exit(EXIT_INCOMPLETE if missing else 0)


class _Answer(msgspec.Struct, frozen=True):
    """One proxy: which process it is, its legs, and its records beside its books."""

    run: str
    legs: list[Leg]
    check: ProxyCheck


def _answers(asked: Asked) -> list[_Answer | str]:
    """The answer at each URL, or why there is none.

    Records are asked for since the first of the proxies began, or since a time.
    """
    from proxy.admin.client import AdminClient, AdminError

    token, tls, since, seconds = asked.token(), asked.tls(), asked.since, asked.timeout
    with ExitStack() as stack:
        proxies: list[AdminClient] = []
        for url in asked.urls:
            admin = AdminClient(url, token=token, timeout_seconds=seconds, tls=tls)
            proxies.append(stack.enter_context(admin))
        begin = since
        for admin in proxies if since is None else ():
            with suppress(AdminError):  # told below
                began = admin.totals().run_unix_seconds
                begin = began if begin is None else min(begin, began)
        begin = max(0.0, (begin or 0.0) - (0.0 if since is None else PARTNER_SECONDS))
        answers: list[_Answer | str] = []
        for url, admin in zip(map(without_user, asked.urls), proxies, strict=True):
            try:
                answers.append(_answer(admin, url, begin, seconds))
            except AdminError as error:
                answers.append(without_user(str(error)).removeprefix(f"{url}: "))
    return answers


def _settled(admin: AdminClient, seconds: float) -> bool:
    """Wait until the proxy has settled what was before now, at most so long."""
    asked_unix_seconds, deadline = time.time(), time.monotonic() + seconds
    while not admin.books(asked_unix_seconds).is_final:
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _answer(admin: AdminClient, url: str, begin: float, seconds: float) -> _Answer:
    from proxy.wire.api import ATTRIBUTED
    from proxy.wire.legs import leg_of

    is_settled = _settled(admin, seconds)
    totals = admin.totals()
    began = totals.run_unix_seconds
    found: list[Leg] = []
    counts, joules, without_energy = {True: 0, False: 0}, {True: 0.0, False: 0.0}, 0
    for record in admin.requests(0, begin):
        engine = totals.engines.get(record.engine or "")
        boundary = None if engine is None else engine.boundary
        leg = leg_of(record, totals.instance or url, boundary)
        if leg.leg is not None:
            found.append(leg)
        if leg.arrived_unix_seconds >= began:
            counts[leg.leg is not None] += 1
            joules[leg.leg is not None] += leg.energy_joules or 0.0
            without_energy += leg.energy_joules is None
    accounts = [engine.account_joules for engine in totals.engines.values()]
    attributed = _booked(accounts, ATTRIBUTED)
    in_records = joules[True] + joules[False]
    check = ProxyCheck(
        url=url,
        instance=totals.instance,
        is_settled=is_settled,
        simulated=any(engine.simulated for engine in totals.engines.values()),
        legs=counts[True],
        leg_joules=joules[True],
        whole_requests=counts[False],
        whole_joules=joules[False],
        records_without_energy=without_energy,
        attributed_joules=attributed,
        difference_joules=None if attributed is None else attributed - in_records,
        idle_joules=_booked(accounts, ["idle"]),
        unattributed_joules=_booked(accounts, ["unattributed"]),
    )
    return _Answer(totals.run, found, check)


def _booked(
    engines: Sequence[dict[str, float] | None], accounts: Sequence[str]
) -> float | None:
    """Joules of all engines in these accounts; None where those of one are unknown."""
    known = [each for each in engines if each is not None]
    if not known or len(known) < len(engines):
        return None
    return sum(each.get(name, 0.0) for each in known for name in accounts)


def _counted(
    urls: Sequence[str],
    answers: Sequence[_Answer | str],
    missing: list[Missing],
    repeated: list[Missing],
) -> tuple[list[Leg], list[ProxyCheck]]:
    """The legs of each process once; who is not counted goes to the lists."""
    found: list[Leg] = []
    checks: list[ProxyCheck] = []
    runs: dict[str, str] = {}
    for url, answer in zip(map(without_user, urls), answers, strict=True):
        if isinstance(answer, str):
            missing.append(Missing(url, answer))
        elif answer.run in runs:
            reason = f"the same process as {runs[answer.run]}"
            repeated.append(Missing(url, reason))
        else:
            runs[answer.run] = url
            found += answer.legs
            checks.append(answer.check)
    return found, checks


def _stored(store: str, since: float | None, until: float | None) -> Iterator[Leg]:
    from proxy.store.address import store_url
    from proxy.store.export import COLUMNS, pages
    from proxy.store.stored_record import reply_from
    from proxy.store.totals import conditions, is_leg
    from proxy.wire.legs import leg_of

    wanted = conditions(
        None if since is None else since - PARTNER_SECONDS,
        None if until is None else until + PARTNER_SECONDS,
    )
    for page in pages(store_url(store), [*wanted, is_leg()]):
        for values in page:
            row = dict(zip(COLUMNS, values, strict=True))
            yield leg_of(reply_from(row), row["instance"], row["boundary"])


def _write(path: Path, requests: Sequence[JoinedRequest]) -> None:
    encoder = msgspec.json.Encoder()
    try:
        with whole_file(path, mode=PRIVATE) as file:
            for each in requests:
                file.write(encoder.encode(each) + b"\n")
    except OSError as error:
        raise ProxyError(f"cannot write {path}: {os_reason(error)}") from None
    echo(f"{len(requests)} requests in {path}", err=True)


def table(report: LegsReport) -> str:
    """Each role's legs, the requests that they are, and what is not in them."""
    totals = report.totals
    lines = []
    if totals.by_leg:
        lines.append(_line("leg", "inside", ("legs", "alone", "prefill J", "decode J",
                     "idle J", "sum J", "J/leg")))  # fmt: skip
        lines += [_leg_line(each) for each in totals.by_leg]
        lines += _sentences(totals)
    else:
        lines.append("no leg is recorded: every request was served whole")
    if any(each.simulated for each in report.checks):
        lines.append("SIMULATED: some joules come from a simulator")
    lines += [_check(each) for each in report.checks]
    for each in report.checks:
        if not each.is_settled:
            lines.append(f"not settled: {escaped(each.url)}: its last requests may be "
                         "missing above; ask again")  # fmt: skip
    for other in report.repeated:
        lines.append(f"once: {escaped(other.url)}: {escaped(other.reason)}")
    for other in report.missing:
        lines.append(f"missing: {escaped(other.url)}: {escaped(other.reason)}")
    if report.missing:
        lines.append("legs of a proxy that is missing have no partner above")
    return "\n".join(lines)


def _leg_line(each: LegSum) -> str:
    bound = ">=" if each.legs_without_energy else ""
    known = each.legs - each.legs_without_energy
    joules = (
        each.prefill_joules, each.decode_joules, each.idle_share_joules,
        each.energy_joules,
    )  # fmt: skip
    figures = (
        short(each.legs),
        short(each.legs_alone),
        *(short(value if known else None, bound) for value in joules),
        short(each.energy_joules / known if known else None),
    )
    return _line(each.leg, escaped(each.boundary or "?"), figures)


def _line(leg: str, boundary: str, figures: Sequence[str]) -> str:
    cells = "".join(f" {figure:>9}" for figure in figures[2:])
    return f"{leg:<7} {boundary[:7]:<7} {figures[0]:>6} {figures[1]:>6}{cells}"


def _sentences(totals: LegTotals) -> list[str]:
    known = totals.pairs - totals.pairs_without_energy
    lines = [f"{totals.requests} requests, {totals.pairs} of them with both legs"]
    if known:
        lines.append(
            f"J/request of both legs: {short(totals.joules_per_pair)} = prefill leg "
            f"{short(totals.prefill_joules_per_pair)} + decode leg "
            f"{short(totals.decode_joules_per_pair)}"
        )
    if totals.pairs_without_energy:
        lines.append(
            f"{totals.pairs_without_energy} with both legs have no energy: that of a "
            "leg is unknown, or inside another boundary"
        )
    bound = ">=" if totals.requests_without_tokens else ""
    lines.append(
        f"tokens, counted once: {bound}{short(totals.prompt_tokens)} prompt, "
        f"{bound}{short(totals.output_tokens)} output"
    )
    for each in totals.by_leg:
        if each.legs_alone:
            other = "decode" if each.leg == "prefill" else "prefill"
            lines.append(
                f"alone: {each.legs_alone} {each.leg} legs without a {other} leg, "
                f"{short(each.alone_joules)} J, kept in the {each.leg} row"
            )
    return lines


def _check(each: ProxyCheck) -> str:
    name = escaped(each.url)
    records = f"legs {short(each.leg_joules)} J"
    if each.whole_requests:
        records += (
            f", {each.whole_requests} whole requests {short(each.whole_joules)} J"
        )
    if each.attributed_joules is None:
        return f"check: {name}: {records}, books ? J"
    return (
        f"check: {name}: {records}, books {short(each.attributed_joules)} J, "
        f"difference {each.difference_joules:+.3f} J"
    )
