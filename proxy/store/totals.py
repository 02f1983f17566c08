"""Sums over the records of a store that many proxies share, made by the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, ColumnElement, and_, case, func, or_, select

from proxy.store.database import RECORDS, reading
from proxy.store.stored_record import NOTE
from proxy.wire.api import ATTRIBUTED
from proxy.wire.facts import LEGS


def record_totals(
    url: URL, by: str, since: float | None, until: float | None
) -> list[dict[str, Any]]:
    """A row for each value of a column and each boundary, of records that ended then.

    `since` and `until` are Unix seconds. Of requests without joules or tokens the
    count is told: they are in no sum. Raises ConfigError for what is no store of
    this version, StoreError where it does not answer.
    """
    column = RECORDS.c
    is_uncounted = or_(
        and_(column.outcome == "ok", column.output_tokens.is_(None)),
        column.is_output_lower_bound.is_(True),
    )
    groups = (column[by], column.boundary)
    query = (
        select(
            column[by].label("name"),
            column.boundary,
            func.count().label("requests"),
            _count(column.energy_joules.is_(None)).label("requests_without_energy"),
            _count(is_uncounted).label("requests_without_tokens"),
            *(func.coalesce(func.sum(column[name]), 0).label(name)
              for name in ("prompt_tokens", "output_tokens")),
            *(_count(func.coalesce(column.leg, "") == leg).label(f"{leg}_legs")
              for leg in LEGS),
            *(func.sum(column[f"{name}_joules"]).label(f"{name}_joules")
              for name in ATTRIBUTED),
        )
        .where(*conditions(since, until))
        .group_by(*groups)
    )  # fmt: skip
    with reading(url) as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def conditions(
    since: float | None, until: float | None, **equal: str | None
) -> list[ColumnElement[bool]]:
    """Settled records that ended then, and of which these columns have these values."""
    found: list[ColumnElement[bool]] = [RECORDS.c.quality != NOTE]
    if since is not None:
        found.append(RECORDS.c.finished_unix_seconds >= since)
    if until is not None:
        found.append(RECORDS.c.finished_unix_seconds < until)
    found += [RECORDS.c[n] == value for n, value in equal.items() if value is not None]
    return found


def is_leg() -> ColumnElement[bool]:
    """Records of requests that two engines served."""
    return RECORDS.c.leg.is_not(None)


def _count(claim: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((claim, 1), else_=0)), 0)
