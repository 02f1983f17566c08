"""`docs/clients.md`: every line of its tables is one that a test runs."""

from __future__ import annotations

import pytest

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
