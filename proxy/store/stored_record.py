"""A settled request as it is stored: numbered for readers, its instants made Unix.

Rule: what a reader sees of a request is decided here, once, when it settles; so
memory and every database give the same answer, before and after a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from proxy.meter.ledger import RequestEnergy, RequestRecord, unknown_energy
from proxy.store.journal import EndedRequest, LeftBehind, OpenRequest
from proxy.wire.api import EnergyReply, RequestReply

MICROSECONDS = 1_000_000
FIELDS = tuple(
    n
    for n in RequestReply.__struct_fields__
    if n not in {"cursor", "energy", "instance"}
)
INSTANTS = {n: n.replace("_unix", "") for n in FIELDS if n.endswith("_unix_seconds")}
"""Fields of the reply, by those of the meter's record."""
PLAIN = tuple(name for name in FIELDS if name not in INSTANTS)
ENERGY_FIELDS = EnergyReply.__struct_fields__
STORED = {"model": "stored_model", "tenant": "stored_tenant"}
"""Where a record keeps what its bounded label may not say."""
JSON_COLUMNS = {"policy_joules": "{}", "boundaries": "{}", "grade_reasons": "[]"}
"""Objects and lists that the table of records holds as JSON text, by what null stands
for: an empty one is stored so."""


NOTE = "pending"
"""Quality of a row that is the note of a request, until its record replaces it."""


KILLED = "the proxy was killed before it had noted how this request ended"
"""Error of a request of which only the arrival is known."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One settled request with its place in the order of settlement."""

    cursor: int
    """Its number in `/requests?since=`; see `RecordNumbering`."""
    unix_offset_seconds: float
    """Unix time minus the record's monotonic clock, when it settled."""
    record: RequestRecord
    is_note: bool = False
    """Its energy is not known yet: only a killed process leaves it so."""


FILTERED = ("model", "tenant", "outcome", "engine", "kind", "leg")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFilter:
    """Which records a reader wants, by what `/requests` shows; None: all."""

    model: str | None = None
    tenant: str | None = None
    outcome: str | None = None
    engine: str | None = None
    kind: str | None = None
    leg: str | None = None
    until: int | None = None
    """The last cursor."""

    @property
    def equal(self) -> dict[str, str]:
        """The one value that a field has in every record that is wanted."""
        found = {name: getattr(self, name) for name in FILTERED}
        return {name: value for name, value in found.items() if value is not None}

    def takes(self, stored: StoredRecord) -> bool:
        """Whether a record is wanted."""
        if self.until is not None and stored.cursor > self.until:
            return False
        record = stored.record
        return all(shown(record, name) == v for name, v in self.equal.items())


EVERY_RECORD = RecordFilter()


class RecordNumbering:
    """Numbers records: Unix microseconds of settlement, always rising.

    A clock needs no database to hand out numbers, so they go on rising over a
    restart even while the store is down. Under 2^53: exact in any JSON reader.
    """

    def __init__(self) -> None:
        self.last = 0

    def continue_from(self, cursor: int) -> None:
        """Number only above this, even if the clock has been set back."""
        self.last = max(self.last, cursor)

    def number(
        self,
        records: Iterable[RequestRecord],
        unix_seconds: float,
        monotonic_seconds: float,
    ) -> list[StoredRecord]:
        """The records, settled now, numbered in the same order."""
        offset = unix_seconds - monotonic_seconds
        settled = cursor_at(unix_seconds)
        stored = []
        for record in records:
            self.last = max(self.last + 1, settled)
            stored.append(StoredRecord(self.last, offset, record))
        return stored


def cursor_at(unix_seconds: float) -> int:
    """The least number that a record settled at this instant can have."""
    return int(unix_seconds * MICROSECONDS)


def reply_of(stored: StoredRecord, instance: str | None = None) -> RequestReply:
    """The line of `/requests` of the proxy of that name."""
    record = stored.record
    found: dict[str, Any] = {}
    for name in PLAIN:
        found[name] = shown(record, name)
    for name, stamp in INSTANTS.items():
        seconds = getattr(record, stamp)
        found[name] = None if seconds is None else seconds + stored.unix_offset_seconds
    energy = msgspec.convert(record.energy, EnergyReply, from_attributes=True)
    return RequestReply(cursor=stored.cursor, **found, instance=instance, energy=energy)


def left_records(left: LeftBehind, above: int) -> list[StoredRecord]:
    """Records of requests that a killed proxy left, numbered above this cursor."""
    unknown = unknown_energy(left.policy)
    return [
        StoredRecord(above + number, 0.0, _left_record(left, arrival, end, unknown))
        for number, (arrival, end) in enumerate(left.requests, 1)
    ]


def _left_record(
    left: LeftBehind,
    arrival: OpenRequest,
    end: EndedRequest | None,
    energy: RequestEnergy,
) -> RequestRecord:
    """Of one whose end was not journaled nothing but its arrival is known."""
    arrived = arrival.arrived_unix_seconds
    if end is None:
        finished = max(arrived, left.written_unix_seconds)
        end = EndedRequest(
            arrival.engine, arrival.key, arrival.model, arrival.tenant, "aborted",
            KILLED, None, finished, None, None, None, None, None, None, False,
        )  # fmt: skip
    return RequestRecord(
        request_id=arrival.request_id,
        route=arrival.route,
        model=end.model,
        kind=arrival.kind,
        tenant=end.tenant,
        outcome=end.outcome,
        error=end.error,
        status=end.status,
        arrived_seconds=arrived,
        scheduled_seconds=end.scheduled_unix_seconds,
        first_token_seconds=end.first_token_unix_seconds,
        last_token_seconds=end.last_token_unix_seconds,
        finished_seconds=end.finished_unix_seconds,
        prompt_tokens=end.prompt_tokens,
        cached_tokens=end.cached_tokens,
        output_tokens=end.output_tokens,
        is_output_lower_bound=end.is_output_lower_bound,
        energy=energy,
        engine=arrival.engine,
        leg=arrival.leg,
        key=arrival.key,
    )


def shown(record: RequestRecord, name: str) -> Any:
    """A field as readers see it: the name that was asked for, not the label."""
    value = getattr(record, STORED.get(name, name))
    if value is None and name in STORED:
        value = getattr(record, name)
    return _storable(value) if isinstance(value, str) else value


def row_of(stored: StoredRecord) -> dict[str, Any]:
    """The columns of the table of records, but for whose they are.

    Always all of them: rows are written many at a time, by the columns of the first.
    """
    row: dict[str, Any] = msgspec.to_builtins(reply_of(stored))
    row = dict.fromkeys(ENERGY_FIELDS) | row | row.pop("energy")
    if stored.is_note:
        row["quality"] = NOTE
    for name in JSON_COLUMNS:
        value = row[name]
        row[name] = None if value is None else msgspec.json.encode(value).decode()
    return row


def reply_from(row: Mapping[str, Any]) -> RequestReply:
    """The line of `/requests`, from the columns of one record."""
    energy = {name: row[name] for name in ENERGY_FIELDS}
    for name, empty in JSON_COLUMNS.items():
        energy[name] = msgspec.json.decode(row[name] or empty)
    energy["grade_reasons"] = tuple(energy["grade_reasons"])
    return RequestReply(
        cursor=row["sequence"],
        **{name: row[name] for name in FIELDS},
        instance=row["instance"] or None,
        energy=EnergyReply(**energy),
    )


def _storable(text: str) -> str:
    """The text without what PostgreSQL or UTF-8 cannot hold; clients choose it."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
