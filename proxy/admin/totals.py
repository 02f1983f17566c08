"""Totals of a fleet: requests, tokens and joules of many proxies, grouped and added.

Rule: a sum leaves out what is not known and says so: it is a lower bound then, or
null where nothing is known. Joules of different boundaries have rows, and totals, of
their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from proxy.wire.api import ATTRIBUTED, TotalsReply

GROUPS = ("engine", "model", "tenant", "host", "instance")
ACCOUNTS = (*ATTRIBUTED, "idle", "unattributed")
COUNTS = (
    "requests", "requests_without_energy", "requests_without_tokens",
    "prompt_tokens", "output_tokens", "prefill_legs", "decode_legs",
)  # fmt: skip
"""What is counted of a class of requests, a part and a sum, by the same names."""


class Part(Struct, frozen=True, kw_only=True):
    """Some requests and joules that belong together; null is not known."""

    engine: str | None
    model: str | None
    """Null, with the tenant, for joules of no request."""
    tenant: str | None
    host: str | None
    instance: str | None
    boundary: str | None
    requests: int = 0
    requests_without_energy: int = 0
    requests_without_tokens: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefill_legs: int = 0
    decode_legs: int = 0
    joules: dict[str, float | None] = {}
    """By account; an account that is not named has none."""
    has_gaps: bool = False
    """Some of its time was not measured."""


class Sum(Struct, frozen=True, kw_only=True):
    """A row of the totals, or the total of one boundary."""

    name: str | None
    """Of the group; null for what belongs to none, and for a total."""
    boundary: str | None
    requests: int
    requests_without_energy: int
    requests_without_tokens: int
    prompt_tokens: int
    output_tokens: int
    prefill_legs: int
    """Of the requests, halves of such as two engines serve: their prompts are counted
    by both. `records legs` counts each once."""
    decode_legs: int
    account_joules: dict[str, float | None]
    attributed_joules: float | None
    """Prefill, decode and idle share; null unless some of it is known."""
    is_attributed_lower_bound: bool
    measured_joules: float | None
    """All accounts; null unless some of it is known."""
    is_measured_lower_bound: bool
    joules_per_request: float | None
    """Attributed joules over requests; a lower bound as they are."""
    joules_per_output_token: float | None
    """Null also where not all tokens were counted."""


class Totals(Struct, frozen=True, kw_only=True):
    """Every group, and a total for each boundary."""

    by: str
    rows: list[Sum]
    totals: list[Sum]


def parts_of(reply: TotalsReply) -> list[Part]:
    """The parts of one proxy: its classes, and what each engine drew for no request.

    Joules of requests that have not ended are in the latter, so that all parts
    together are what was measured.
    """
    found: list[Part] = []
    for name, engine in reply.engines.items():
        whose: dict[str, Any] = {
            "engine": name,
            "host": reply.host,
            "instance": reply.instance,
            "boundary": engine.boundary,
            "has_gaps": bool(engine.gap_seconds),
        }
        rest: dict[str, float | None] = dict.fromkeys(ACCOUNTS)
        if engine.account_joules is not None:
            rest = {n: engine.account_joules.get(n, 0.0) for n in ACCOUNTS}
        for each in engine.classes:
            joules = {n: getattr(each, f"{n}_joules") for n in ATTRIBUTED}
            if engine.account_joules is None:
                joules = dict.fromkeys(ACCOUNTS) | joules  # nor is it none
            for account, value in joules.items():
                left = rest[account]
                if left is not None and value is not None:
                    # rounding must not leave a joule less than none
                    rest[account] = max(0.0, left - value)
            counts = {name: getattr(each, name) for name in COUNTS}
            found.append(
                Part(
                    **whose, **counts,
                    model=each.model, tenant=each.tenant, joules=joules,
                )
            )  # fmt: skip
        found.append(Part(**whose, model=None, tenant=None, joules=rest))
    return found


def totals_by(by: str, parts: Iterable[Part]) -> Totals:
    """The parts added by group and boundary, the most joules first."""
    groups: dict[tuple[str | None, str | None], list[Part]] = {}
    boundaries: dict[str | None, list[Part]] = {}
    for part in parts:
        groups.setdefault((getattr(part, by), part.boundary), []).append(part)
        boundaries.setdefault(part.boundary, []).append(part)
    rows = [_sum(name, inside, some) for (name, inside), some in groups.items()]
    rows.sort(key=_order)
    totals = [_sum(None, inside, some) for inside, some in boundaries.items()]
    totals.sort(key=_order)
    return Totals(by=by, rows=rows, totals=totals)


def _order(row: Sum) -> tuple[str, bool, float, int, str]:
    joules = row.measured_joules or 0.0
    name = row.name or ""
    return row.boundary or "", row.name is None, -joules, -row.requests, name


def _sum(name: str | None, boundary: str | None, parts: Sequence[Part]) -> Sum:
    accounts = {account: _joules(parts, [account]) for account in ACCOUNTS}
    attributed = _joules(parts, ATTRIBUTED)
    measured = _joules(parts, ACCOUNTS)
    counts = {name: sum(getattr(part, name) for part in parts) for name in COUNTS}
    is_known = attributed is not None
    return Sum(
        name=name,
        boundary=boundary,
        **counts,
        account_joules=accounts,
        attributed_joules=attributed,
        is_attributed_lower_bound=is_known
        and (counts["requests_without_energy"] > 0 or _lacks(parts, ATTRIBUTED)),
        measured_joules=measured,
        is_measured_lower_bound=measured is not None
        and (_lacks(parts, ACCOUNTS) or any(part.has_gaps for part in parts)),
        joules_per_request=_over(attributed, counts["requests"]),
        joules_per_output_token=(
            None
            if counts["requests_without_tokens"]
            else _over(attributed, counts["output_tokens"])
        ),
    )


def _joules(parts: Sequence[Part], accounts: Sequence[str]) -> float | None:
    """What is known of them, added; None where nothing is."""
    values = [part.joules[name] for part in parts for name in accounts
              if name in part.joules]  # fmt: skip
    known = [value for value in values if value is not None]
    return sum(known) if known or not values else None


def _lacks(parts: Sequence[Part], accounts: Sequence[str]) -> bool:
    return any(part.joules.get(n, 0.0) is None for part in parts for n in accounts)


def _over(joules: float | None, count: int) -> float | None:
    return joules / count if joules is not None and count else None
