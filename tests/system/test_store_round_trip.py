"""A record is the same before and after the database."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
from sqlalchemy import URL

from proxy.meter.ledger import RequestEnergy
from proxy.store.database import Database
from proxy.store.stored_record import (
    StoredRecord,
    reply_from,
    reply_of,
    row_of,
)
from tests.support.stored_records import record


def test_a_record_reads_the_same_from_memory_and_database(url: URL) -> None:
    whole = StoredRecord(7, 1.7e9 + 0.123456, record(7))
    strange = record(8, "nul\0 \ud800 é ☃")
    nothing = replace(
        strange, error="it broke", status=None, scheduled_seconds=None,
        first_token_seconds=None, last_token_seconds=None, prompt_tokens=None,
        cached_tokens=None, output_tokens=None,
        energy=RequestEnergy(None, None, None, None, "phase", "unknown"),
    )  # fmt: skip
    both = [whole, StoredRecord(8, 1.7e9, nothing)]
    database = Database(url, "http://engine", "run")
    database.open()
    database.write([row_of(each) for each in both])
    stored = database.page(0, 100, 100)
    database.close()
    encode = msgspec.json.encode
    assert [encode(reply_from(row)) for row in stored] == [
        encode(reply_of(each)) for each in both
    ]
    shown = json.loads(encode(reply_from(stored[0])))
    assert shown["energy"] == {
        "prefill_joules": 20.1, "decode_joules": 30.2, "idle_share_joules": 5.3,
        "energy_joules": 55.6, "policy": "phase", "quality": "exact",
        "timing": "timed", "grade": "unknown",
        "policy_joules": {"phase": 50.3, "equal": 47.11},
    }  # fmt: skip
    assert shown["arrived_unix_seconds"] == 1.7e9 + 0.123456 + 1.25
