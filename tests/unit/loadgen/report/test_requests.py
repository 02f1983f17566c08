"""Requests as a table: every figure under a name with its unit, no formula."""

from __future__ import annotations

import csv
import io

from loadgen.report.requests import columns, to_csv
from loadgen.results.results import EnergyPart, Result


def made(request_id: str = "r1", error: str | None = None) -> Result:
    return Result(
        request_id=request_id, session_id="s", turn=0, kind="code",
        planned_seconds=1.0, sent_seconds=1.25, first_token_seconds=1.5,
        last_token_seconds=3.25, finished_seconds=3.25, output_tokens=8,
        chunk_seconds=[1.5, 3.25], chunk_tokens=[4, 4],
        outcome="ok" if error is None else "error", error=error,
        energy=EnergyPart(
            prefill_joules=1, decode_joules=2, idle_share_joules=1,
            energy_joules=4, policy="phase", quality="exact",
        ),
    )  # fmt: skip


def read(*results: Result) -> list[dict[str, str]]:
    text = b"".join(to_csv(results)).decode()
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_has_the_record_its_joules_and_its_measures() -> None:
    (row,) = read(made())
    assert row["request_id"] == "r1"
    assert float(row["energy_joules"]) == 4
    assert float(row["ttft_seconds"]) == 0.25
    assert float(row["schedule_lag_seconds"]) == 0.25
    assert float(row["tokens_per_joule"]) == 2
    assert float(row["energy_delay_joule_seconds"]) == 8
    assert row["prompt_tokens"] == ""


def test_names_are_told_once() -> None:
    assert len(columns()) == len(set(columns()))
    assert not {"chunk_seconds", "policy_joules"} & set(columns())


def test_no_text_from_outside_is_a_formula() -> None:
    (row,) = read(made("=cmd|' /C calc'!A0", '@SUM(1)\n,"x"'))
    assert row["request_id"] == "'=cmd|' /C calc'!A0"
    assert row["error"] == '\'@SUM(1)\n,"x"'
    assert row["ttft_seconds"] == ""
