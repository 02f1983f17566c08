"""The clients of TGI on `docs/clients.md`, unchanged, before the simulated one: each
call gives one record, with the counts that the client was told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.both_ways import MODEL, both_ways, missing
from tests.support.children import get, wait_for
from tests.support.client_calls import CALLS, Heard, calls_of, heard_by, tokens_of

missing("text_generation")
# the package calls pydantic's `dict`, which pydantic would rather have called otherwise
pytestmark = pytest.mark.filterwarnings("ignore:.*`dict` method is deprecated")

NAMES = calls_of("tgi")


@dataclass(frozen=True)
class Asked:
    """What a client was told through the proxy, and the record."""

    heard: Heard
    record: dict[str, Any]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asked]]:
    with both_ways(tmp_path_factory.mktemp("clients"), "tgi") as ways:
        heard = {name: heard_by(name, ways.proxied, MODEL) for name in NAMES}
        wait_for(lambda: len(records_of(ways.admin)) >= len(NAMES))
        records = records_of(ways.admin)
        assert len(records) == len(NAMES)
        yield {
            name: Asked(heard[name], record)
            for name, record in zip(NAMES, records, strict=True)
        }


def records_of(admin: str) -> list[dict[str, Any]]:
    """In the order in which the requests came."""
    lines = get(f"{admin}/requests?limit=1000").text.splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return sorted(records, key=lambda record: record["arrived_unix_seconds"])


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_counts_what_a_client_of_tgi_was_told(
    asked: dict[str, Asked], name: str
) -> None:
    heard, record = asked[name].heard, asked[name].record
    assert (record["route"], record["outcome"]) == (CALLS[name].route, "ok")
    # a word is a token there, and the length asked for is a cap; the special token of
    # a reply that ends by itself is counted, and whether it has text is the route's
    words = len(heard.text.split())
    assert record["output_tokens"] - words in (0, 1)
    assert record["output_tokens"] <= tokens_of(name)
    assert heard.prompt_tokens in (None, record["prompt_tokens"])
    assert heard.output_tokens in (None, record["output_tokens"])
