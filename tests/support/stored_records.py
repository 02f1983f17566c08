"""Records made up for the store's tests: distinct in every column."""

from __future__ import annotations

from proxy.meter.ledger import RequestEnergy, RequestRecord
from proxy.store.stored_record import StoredRecord


def record(sequence: int, request_id: str | None = None) -> RequestRecord:
    """A finished request; the sequence is also its count of tokens."""
    return RequestRecord(
        request_id=request_id or f"r{sequence}", route="chat",
        model="m", kind="code", tenant="none", outcome="ok", error=None, status=200,
        arrived_seconds=1.25, scheduled_seconds=1.5, first_token_seconds=2.0,
        last_token_seconds=3.0, finished_seconds=3.125, prompt_tokens=1000,
        cached_tokens=16, output_tokens=sequence,
        energy=RequestEnergy(
            20.1, 30.2, 5.3, 55.6, "phase", "timed", {"phase": 50.3, "equal": 47.11}
        ),
        engine="vllm",
    )  # fmt: skip


def stored(sequence: int, request_id: str | None = None) -> StoredRecord:
    """The same, already numbered."""
    return StoredRecord(sequence, 1.7e9, record(sequence, request_id))
