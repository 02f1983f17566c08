"""docs/relay.md names a test for every promise: they must exist."""

from __future__ import annotations

import re

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "relay.md"


def test_every_promise_of_the_page_names_a_test_that_exists() -> None:
    named = re.findall(r"`([./\w]+\.py)::(test_\w+)`", PAGE.read_text())
    assert len(named) > 20
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(
            rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE
        )
    ]
    assert missing == []
