"""Disaggregated serving as a user runs it: a pair of engines, a proxy before each, a
router before both. All of them are real processes; their joules are SIMULATED."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.children import child, get, metering, post, simulating
from tests.support.paths import ROOT
from tests.support.runs import loadgen, records, summary_of, write_trace

REQUESTS = 8
PATIENCE = "60"


@dataclass(frozen=True)
class Pair:
    """A router, and by role the engine and the proxy that it reaches it by."""

    url: str
    engines: dict[str, dict[str, Any]]
    proxies: dict[str, dict[str, Any]]
    folder: Path

    @property
    def admins(self) -> list[str]:
        return [self.proxies[role]["admin_url"] for role in ("prefill", "decode")]

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder}/shared.sqlite"

    def ask(
        self, request_id: str, words: int = 600, tokens: int = 12
    ) -> httpx.Response:
        """A stream through the router; each prompt is its own."""
        prompt = " ".join(f"{request_id}-{n}" for n in range(words))
        body = {"prompt": prompt, "max_tokens": tokens, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
        headers = {"x-request-id": request_id}
        return post(f"{self.url}/v1/completions", json=body, headers=headers)

    def truth(self, role: str) -> dict[str, dict[str, Any]]:
        """What each request really cost one engine."""
        text = get(f"{self.engines[role]['url']}/simulator/truth").text
        found = map(json.loads, text.splitlines())
        return {each["request_id"]: each for each in found}

    def legs(
        self, *words: str
    ) -> tuple[int, dict[str, Any], dict[str, dict[str, Any]]]:
        """`records legs`: its exit status, its report, and its requests by id."""
        lines = self.folder / "legs.jsonl"
        done = subprocess.run(
            [sys.executable, "-m", "proxy", "records", "legs", "--json", "--jsonl",
             str(lines), "--timeout", PATIENCE, *words],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 3), done.stdout + done.stderr
        rows = map(json.loads, lines.read_text().splitlines())
        by_id = {row["request_id"]: row for row in rows}
        return done.returncode, json.loads(done.stdout), by_id


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    store = f"sqlite:///{folder}/shared.sqlite"
    with contextlib.ExitStack() as stack:
        engines, proxies = {}, {}
        for role in ("prefill", "decode"):
            engine = simulating(folder, "--role", role)
            engines[role] = stack.enter_context(engine)
            proxy = metering(folder, engines[role], "--store", store,
                             "--instance", role)  # fmt: skip
            proxies[role] = stack.enter_context(proxy)
        router = stack.enter_context(routing(proxies, folder))
        yield Pair(router["url"], engines, proxies, folder)


def routing(
    proxies: dict[str, dict[str, Any]], folder: Path, *options: str
) -> contextlib.AbstractContextManager[dict[str, Any]]:
    """A router before these proxies."""
    return child(
        "loadgen", "simulate", "--role", "router", "--listen", "127.0.0.1:0",
        "--prefill", proxies["prefill"]["url"], "--decode", proxies["decode"]["url"],
        *options, cwd=folder,
    )  # fmt: skip


def test_a_request_s_prefill_is_metered_here_its_decode_there_and_its_sum_once(
    pair: Pair,
) -> None:
    own = uuid.uuid4().hex[:8]
    names = [f"{own}-{n}" for n in range(REQUESTS)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for reply in pool.map(pair.ask, names):
            assert reply.status_code == 200
            assert reply.text.count('"text":') == 12
    # a leg whose decode never comes: the client asked the prefill engine, and left it
    alone = {"prompt": "only here " * 300, "max_tokens": 1,
             "kv_transfer_params": {"do_remote_decode": True}}  # fmt: skip
    post(f"{pair.proxies['prefill']['url']}/v1/completions", json=alone,
         headers={"x-request-id": f"{own}-alone"})  # fmt: skip

    status, report, found = pair.legs(*pair.admins)
    assert status == 0
    assert found.keys() >= {*names, f"{own}-alone"}
    truths = {role: pair.truth(role) for role in ("prefill", "decode")}
    for name in names:
        row = found[name]
        prefill, decode = row["prefill"], row["decode"]
        assert (prefill["proxy"], decode["proxy"]) == ("prefill", "decode")
        both = prefill["energy_joules"] + decode["energy_joules"]
        assert row["energy_joules"] == pytest.approx(both)
        assert row["low_joules"] <= row["energy_joules"] <= row["high_joules"]
        assert row["prompt_tokens"] == 600
        assert row["output_tokens"] == 12
        assert (prefill["cached_tokens"], decode["cached_tokens"]) == (0, 599)
        assert truths["decode"][name]["prefilled_tokens"] == 1
    lone = found[f"{own}-alone"]
    assert (lone["decode"], lone["energy_joules"]) == (None, None)
    assert lone["reason"] == "no decode leg is recorded"
    assert lone["prefill"]["energy_joules"] > 0

    totals = report["totals"]
    assert totals["requests"] == len(found)
    assert totals["pairs"] == sum(row["reason"] is None for row in found.values())
    assert totals["output_tokens"] == totals["pairs"] * 12
    rows = {each["leg"]: each for each in totals["by_leg"]}
    assert rows["prefill"]["legs_alone"] == totals["requests"] - totals["pairs"]
    for role, check in zip(("prefill", "decode"), report["checks"], strict=True):
        # what the meter booked as of requests is what its legs have, and no other
        assert check["is_settled"], role
        assert check["legs"] == rows[role]["legs"]
        assert check["leg_joules"] == pytest.approx(rows[role]["energy_joules"])
        assert check["difference_joules"] == pytest.approx(0, abs=1e-3)
        books = get(f"{pair.proxies[role]['admin_url']}/books").json()
        parts = (
            sum(books["attributed_joules"].values()), books["idle_share_joules"],
            books["idle_joules"], sum(books["unattributed_joules"].values()),
        )  # fmt: skip
        assert books["measured_joules"] == pytest.approx(sum(parts), abs=1e-3)
        assert abs(books["residual_joules"]) <= 1e-3
        counted = get(f"{pair.proxies[role]['admin_url']}/totals").json()
        (engine,) = counted["engines"].values()
        told = sum(each[f"{role}_legs"] for each in engine["classes"])
        assert told == check["legs"]
    decoded = sum(each["decode_joules"] for each in truths["prefill"].values())
    assert decoded == 0
    assert rows["prefill"]["decode_joules"] == pytest.approx(0, abs=1e-9)


def test_records_of_one_store_are_joined_as_those_of_its_proxies(pair: Pair) -> None:
    name = f"stored-{uuid.uuid4()}"
    assert pair.ask(name).status_code == 200
    _, _, asked = pair.legs(*pair.admins)
    for _ in range(100):  # the store is written three times a second
        _, report, found = pair.legs("--store", pair.store)
        if len(found) >= len(asked):
            break
    assert found == asked
    assert report["checks"] == []
    assert found[name]["energy_joules"] > 0


def test_a_proxy_that_is_away_is_named_and_its_legs_are_missed(pair: Pair) -> None:
    half = f"half-{uuid.uuid4()}"
    assert pair.ask(half).status_code == 200
    nobody = "http://127.0.0.1:9"
    status, report, found = pair.legs(pair.admins[0], nobody, pair.admins[0])
    assert status == 3
    assert [each["url"] for each in report["missing"]] == [nobody]
    assert [each["url"] for each in report["repeated"]] == [pair.admins[0]]
    assert report["totals"]["pairs"] == 0
    assert found[half]["energy_joules"] is None
    assert found[half]["prefill"]["energy_joules"] > 0


def test_requests_of_one_role_are_asked_for_by_their_leg(pair: Pair) -> None:
    assert pair.ask("filtered").status_code == 200
    pair.legs(*pair.admins)  # waits until they are settled
    for role, other in (("prefill", "decode"), ("decode", "prefill")):
        admin = pair.proxies[role]["admin_url"]
        rows = get(f"{admin}/requests?leg={role}").text.splitlines()
        assert {json.loads(row)["leg"] for row in rows} == {role}
        assert get(f"{admin}/requests?leg={other}").text == ""


@pytest.mark.parametrize("endpoint", ["/v1/completions", "/v1/chat/completions"])
def test_a_router_that_makes_ids_of_its_own_is_seen_through(
    pair: Pair, tmp_path: Path, endpoint: str
) -> None:
    """As vLLM's example proxy does; the id is read from the reply."""
    with routing(pair.proxies, tmp_path, "--own-request-ids") as router:
        done = loadgen(
            "replay", write_trace(tmp_path), "--rate", "10", "--url", router["url"],
            "--endpoint", endpoint, "--ledger", "+".join(pair.admins),
            "--out", tmp_path / "run", cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode in (0, 3), done.stdout + done.stderr
    _, _, found = pair.legs(*pair.admins)
    rows = records(tmp_path / "run")
    assert len({row["reply_id"] for row in rows}) == len(rows) == 18
    for row in rows:
        assert row["request_id"] not in found
        both = found[row["reply_id"]]
        assert row["energy"]["energy_joules"] == pytest.approx(both["energy_joules"])
        assert row["output_tokens"] == both["output_tokens"]


def test_a_replay_through_the_router_has_the_joules_of_both_legs(
    pair: Pair, tmp_path: Path
) -> None:
    trace = write_trace(tmp_path)
    done = loadgen(
        "replay", trace, "--rate", "10", "--url", pair.url,
        "--ledger", "+".join(pair.admins), "--out", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stdout + done.stderr
    _, _, found = pair.legs(*pair.admins)
    for row in records(tmp_path / "run"):
        assert row["outcome"] == "ok"
        both = found[row["request_id"]]
        energy = row["energy"]
        assert energy["energy_joules"] == pytest.approx(both["energy_joules"])
        for phase in ("prefill", "decode", "idle_share"):
            legs = sum(both[leg][f"{phase}_joules"] for leg in ("prefill", "decode"))
            assert energy[f"{phase}_joules"] == pytest.approx(legs)
        assert row["output_tokens"] == both["output_tokens"]
    energy = summary_of(tmp_path / "run")["energy"]
    accounts = (
        sum(energy["attributed_joules"].values())
        + energy["idle_share_joules"]
        + energy["idle_joules"]
        + sum(energy["unattributed_joules"].values())
    )
    assert energy["measured_joules"] == pytest.approx(accounts, abs=1e-3)
    assert energy["boundary"] == "gpu"
    assert energy["simulated"] is True
