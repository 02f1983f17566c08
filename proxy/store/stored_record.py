"""A settled request as it is filed: numbered for readers, its instants made Unix.

Rule: what a reader sees of a request is decided here, once, when it settles; so
memory and every database give the same answer, before and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from proxy.meter.ledger.accounts import RequestEnergy, RequestRecord

MICROSECONDS = 1_000_000
INSTANTS = ("arrived", "scheduled", "first_token", "last_token", "finished")
TEXTS = ("request_id", "route", "engine", "model", "kind", "tenant", "outcome", "error")
COUNTS = ("status", "prompt_tokens", "cached_tokens", "output_tokens")
ENERGIES = (
    "prefill_joules", "decode_joules", "idle_share_joules", "energy_joules",
    "policy", "quality",
)  # fmt: skip
BESIDE = (*ENERGIES[:4], "quality")
"""What is shown of the boundaries beside the headline; the policy is the same."""
_ORDER = (
    "sequence", *TEXTS, "status", *(f"{name}_unix_seconds" for name in INSTANTS),
    "prompt_tokens", "cached_tokens", "output_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One settled request with its place in the order of settlement."""

    sequence: int
    """The cursor of `/requests?since=`; see `Filing`."""
    unix_offset_seconds: float
    """Unix time minus the record's monotonic clock, when it settled."""
    record: RequestRecord


class RecordNumbering:
    """Numbers records: Unix microseconds of settlement, always rising.

    A clock needs no database to hand out numbers, so they go on rising over a
    restart even while the store is down. Under 2^53: exact in any JSON reader.
    """

    def __init__(self) -> None:
        self.last = 0

    def continue_from(self, sequence: int) -> None:
        """Number only above this, even if the clock has been set back."""
        self.last = max(self.last, sequence)

    def file(
        self,
        records: Iterable[RequestRecord],
        unix_seconds: float,
        monotonic_seconds: float,
    ) -> list[StoredRecord]:
        """These, settled now, in the same order."""
        offset = unix_seconds - monotonic_seconds
        settled = sequence_at(unix_seconds)
        stored = []
        for record in records:
            self.last = max(self.last + 1, settled)
            stored.append(StoredRecord(self.last, offset, record))
        return stored


def sequence_at(unix_seconds: float) -> int:
    """The least number that a record settled at this instant can have."""
    return int(unix_seconds * MICROSECONDS)


def row_of(stored: StoredRecord) -> dict[str, Any]:
    """The columns of the table of records, but for whose they are."""
    record, energy = stored.record, stored.record.energy
    row: dict[str, Any] = {"sequence": stored.sequence}
    for name in TEXTS:
        row[name] = _storable(getattr(record, name))
    if record.stored_tenant is not None:
        row["tenant"] = record.stored_tenant
    for name in COUNTS:
        row[name] = getattr(record, name)
    for name in INSTANTS:
        seconds = getattr(record, f"{name}_seconds")
        unix = None if seconds is None else seconds + stored.unix_offset_seconds
        row[f"{name}_unix_seconds"] = unix
    for name in ENERGIES:
        row[name] = getattr(energy, name)
    row["policy_joules"] = msgspec.json.encode(energy.policy_joules).decode()
    row["boundaries"] = _boundaries(energy)
    return row


def json_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line of `/requests`, from the columns of one record."""
    energy = {name: row[name] for name in ENERGIES}
    energy["policy_joules"] = msgspec.Raw(row["policy_joules"].encode())
    if row["boundaries"] is not None:
        energy["boundaries"] = msgspec.Raw(row["boundaries"].encode())
    return {**{name: row[name] for name in _ORDER}, "energy": energy}


def _boundaries(energy: RequestEnergy) -> str | None:
    """The joules at the other boundaries as JSON; None where there is no other."""
    if not energy.boundaries:
        return None
    shown = {
        name: {figure: getattr(beside, figure) for figure in BESIDE}
        for name, beside in energy.boundaries.items()
    }
    return msgspec.json.encode(shown).decode()


def _storable(text: str | None) -> str | None:
    """Without what PostgreSQL or UTF-8 cannot hold; clients choose these texts."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
