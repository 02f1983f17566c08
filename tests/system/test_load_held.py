"""The proxy as a process under load: nothing failed, leaked or lost.

The full size (1,000 streams for ten minutes) is `python -m benchmarks.load_held`.
"""

from __future__ import annotations

import signal

from benchmarks.load_held import Scale, run


def test_streams_are_held() -> None:
    held = run(Scale(streams=60, seconds=2.0, tokens=10))
    assert held.faults == []
    assert held.clients["ok"] >= 60
    assert held.records == {"ok": held.clients["ok"]}
    assert held.measured_joules > 0


def test_every_failure_has_its_outcome() -> None:
    """Clients leave and the engine dies: the ledger says so of each of them."""
    held = run(Scale(streams=60, seconds=4.0, tokens=10, faults="some"))
    assert held.faults == []
    assert held.clients["failed"] >= 30  # those under way when the engine was killed
    # some left as the engine ended: the ledger has what came first
    crossed = held.records["upstream_error"] - held.clients["failed"]
    assert 0 <= crossed <= held.clients.get("left", 0)
    sent = sum(held.clients.values()) - held.clients["unsent"]
    assert sum(held.records.values()) == sent


def test_with_all_faults_at_once_every_answered_request_is_recorded_once() -> None:
    """A broken sensor, invented names, hostile clients, both ends restarted."""
    # the last proxy drains for 3 s, starts in some more, and still gets load
    restarts = (
        (0.15, "proxy", signal.SIGKILL),
        (0.3, "engine", signal.SIGKILL),
        (0.45, "proxy", signal.SIGTERM),
    )
    scale = Scale(streams=30, seconds=18.0, tokens=10, faults="all", restarts=restarts)
    held = run(scale)
    assert held.faults == []
    assert held.twice == 0
    assert held.clients["ok"] > 0
    assert held.hostile_answered > 0
    assert [line.split(",")[0] for line in held.restarts] == ["SIGKILL", "SIGTERM"]
