"""The proxy as a process under load: nothing failed, leaked or lost.

The full size (1,000 streams for ten minutes) is `python -m benchmarks.load_held`.
"""

from __future__ import annotations

from benchmarks.load_held import Scale, run


def test_streams_are_held() -> None:
    held = run(Scale(streams=60, seconds=2.0, tokens=10))
    assert held.faults == []
    assert held.clients["ok"] >= 60
    assert held.records == {"ok": held.clients["ok"]}
    assert held.measured_joules > 0


def test_every_failure_has_its_outcome() -> None:
    """Clients leave and the engine dies: the ledger says so of each of them."""
    held = run(Scale(streams=60, seconds=4.0, tokens=10, has_faults=True))
    assert held.faults == []
    assert held.clients["failed"] >= 30  # those under way when the engine was killed
    assert held.records["upstream_error"] == held.clients["failed"]
    sent = sum(held.clients.values()) - held.clients["unsent"]
    assert sum(held.records.values()) == sent
