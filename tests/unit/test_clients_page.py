"""`docs/clients.md`: every line of its tables is one that a test runs."""

from __future__ import annotations

import re
import shlex

import pytest

from benchmarks.clients_tried import (
    BEHIND,
    PROGRAMS,
    Counts,
    Row,
    block_of,
    commands_of,
)
from tests.support.client_calls import (
    CALLS,
    ON_THE_PAGE,
    PAGE,
    calls_of,
    lines_of,
    read_line,
    tokens_of,
)

LINES = lines_of(PAGE.read_text())
KINDS = {"generate", "embed", "tgi"}
"""The first two are called in tests/engines, the last in tests/system."""


def test_every_line_of_the_page_is_called_and_no_other() -> None:
    assert set(LINES) == {call.line for call in CALLS.values()}


def test_every_call_is_made_at_some_engine() -> None:
    assert {name for kind in KINDS for name in calls_of(kind)} == set(CALLS)


def test_no_two_calls_ask_for_as_many_tokens() -> None:
    assert len({tokens_of(name) for name in CALLS}) == len(CALLS)


@pytest.mark.parametrize("key", LINES)
def test_a_line_points_at_the_proxy_of_the_examples(key: str) -> None:
    line = LINES[key]
    given = [*line.args, *line.kwargs.values()]
    assert sum(str(value).startswith(ON_THE_PAGE) for value in given) == 1


def test_a_line_is_placed_at_an_address_and_a_model() -> None:
    line = read_line(f'builtins.dict(url="{ON_THE_PAGE}/v1", m="a/MODEL", **request)')
    made = line.at("http://127.0.0.1:1", "tiny")(n=2)
    assert made == {"url": "http://127.0.0.1:1/v1", "m": "a/tiny", "n": 2}


def test_every_program_of_the_page_is_tried() -> None:
    commands = commands_of(PAGE.read_text())
    assert set(commands) == set(PROGRAMS) | {"litellm"}
    assert all(ON_THE_PAGE in command for command in commands.values())
    assert "body.json" in block_of(PAGE.read_text(), "lua")


def test_the_gateway_is_tried_behind_the_proxy_as_the_page_has_it() -> None:
    (command,) = re.findall(r"^(metering-proxy (?:.*\\\n)*.*)", PAGE.read_text(), re.M)
    words = shlex.split(command.replace("\\\n", " "))
    pairs = dict(zip(words[2::2], words[3::2], strict=True))
    behind = dict(zip(BEHIND[::2], BEHIND[1::2], strict=True))
    assert pairs.items() - behind.items() == {
        ("--upstream", "http://127.0.0.1:4000"), ("--power", "nvml")
    }  # fmt: skip
    assert behind.items() <= pairs.items()


@pytest.mark.parametrize(
    ("own", "ledger", "engine", "others", "is_same"),
    [
        (Counts(2, 5, 7), Counts(2, 5, 7), Counts(2, 5, 7), 0, True),
        (Counts(2), Counts(2, 5, 7), Counts(2, 5, 7), 0, True),
        (Counts(2, 5, 6), Counts(2, 5, 7), Counts(2, 5, 7), 0, False),
        (Counts(2, 5, 7), Counts(2, 5, 7), Counts(2, 5, 8), 0, False),
        (Counts(2), Counts(2, None, None), Counts(2, 5, 7), 0, False),
    ],
)
def test_counts_are_the_same_where_all_three_agree(
    own: Counts, ledger: Counts, engine: Counts, others: int, is_same: bool
) -> None:
    assert Row("a", "1", own, ledger, engine, others).is_same == is_same


@pytest.mark.parametrize(
    ("ledger", "others", "ended", "is_same"),
    [
        (20, 0, 20, True),
        (20, 2, 21, True),
        (21, 1, 21, True),
        (21, 2, 21, False),
        (20, 1, 22, False),
        (20, 1, 19, False),
        (19, 0, 19, False),
    ],
)
def test_what_a_program_cuts_at_its_end_it_does_not_count(
    ledger: int, others: int, ended: int, is_same: bool
) -> None:
    counts = Counts(ledger, 180, 320)
    row = Row("wrk", "4", Counts(20), counts, Counts(ended, 200, 325), others, 2)
    assert row.is_same == is_same
