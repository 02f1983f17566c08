"""What batches of one size took: the answer of `loadgen offline`."""

from __future__ import annotations

import msgspec


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One (input, output) length at one batch size."""

    input_tokens: int
    output_tokens: int
    """Of each request."""
    requests: int | None = None
    """Of the workload in this bin; null where lengths were given."""
    batch: int | None
    """Requests at once; null where not even one fits."""
    is_largest: bool = False
    """The largest that fits."""
    next_fails: str | None = None
    """Why a larger one does not fit; null where none was tried."""
    status: str = "measured"
    """`measured`, `too large`, or `failed`."""
    reason: str | None = None
    batches: int | None = None
    """That were run and measured, one after the other."""
    seconds_per_batch: float | None = None
    joules_per_batch: float | None = None
    uncertainty_joules: float | None = None
    """Of a batch: bounds by the sensor's own period. Null over HTTP."""
    joules_per_request: float | None = None
    joules_per_output_token: float | None = None
    output_tokens_per_second: float | None = None
    mean_watts: float | None = None
    peak_running: int | None = None
    """Most that a server said it ran at once; null in process."""
    energy_reason: str | None = None
    """Why joules are null."""


class OfflineReport(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of one engine."""

    servewatt: str = "offline/1"
    engine: str
    """`vllm`, `transformers`, with `+ compile` or `+ eager`, or `http`."""
    version: str | None = None
    model: str | None
    device: str | None = None
    power: str | None
    boundary: str | None = None
    simulated: bool = False
    decoding: str = "greedy"
    notes: list[str] = []
    rows: list[BatchRow] = []


def with_energy(
    row: BatchRow, joules: float | None, uncertainty: float | None, why: str | None
) -> BatchRow:
    """A measured row with the joules of all its batches."""
    assert row.batches is not None
    assert row.batch is not None
    if joules is None:
        return msgspec.structs.replace(row, energy_reason=why or "not metered")
    each = joules / row.batches
    seconds = row.seconds_per_batch
    return msgspec.structs.replace(
        row,
        joules_per_batch=each,
        uncertainty_joules=None if uncertainty is None else uncertainty / row.batches,
        joules_per_request=each / row.batch,
        joules_per_output_token=each / (row.batch * row.output_tokens),
        mean_watts=None if not seconds else each / seconds,
    )
