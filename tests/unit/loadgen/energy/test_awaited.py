"""Which records of a ledger are ours: by our own ids, or by those of the replies."""

from __future__ import annotations

from pathlib import Path

import msgspec

from loadgen.energy.join import awaited
from loadgen.results.recorder import Recorder
from tests.support.canned_run import failed, made_results


def test_an_id_of_a_reply_is_one_request_s_or_nobody_s(tmp_path: Path) -> None:
    ids = ["other-0", "twice", "twice", "r5", None, None]
    results = [
        msgspec.structs.replace(result, request_id=f"r{n}", reply_id=name)
        for n, (result, name) in enumerate(zip(made_results(6), ids, strict=True))
    ]
    never = failed("r6", at=1.0, outcome="dropped")
    path = tmp_path / "requests.jsonl"
    with Recorder(path) as recorder:
        for result in (*results, never):
            recorder.record(result)
    wanted = awaited(path)
    assert wanted.sent == {f"r{n}": f"r{n}" for n in range(6)} | {"other-0": "r0"}
    assert wanted.reached == {f"r{n}" for n in range(6)}
