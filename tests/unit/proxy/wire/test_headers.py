"""Headers that a proxy changes: hop by hop, and redirects to the engine's address."""

from __future__ import annotations

import pytest

from proxy.wire.headers import staying_here

ENGINE = b"engine:8000"


@pytest.mark.parametrize(
    ("location", "prefix", "expected"),
    [
        (b"http://engine:8000/v1/models", b"", b"/v1/models"),
        (b"HTTP://Engine:8000/v1/models?a=1#b", b"", b"/v1/models?a=1#b"),
        (b"https://engine:8000/", b"", b"/"),
        (b"http://engine:8000/below/v1/models", b"/below", b"/v1/models"),
        # not below what this proxy shows, or not a path that stays here
        (b"http://engine:8000/elsewhere", b"/below", None),
        (b"http://engine:8000", b"", None),
        (b"http://engine:8000//other/", b"", None),
        (b"http://engine:8000/\\other/", b"", None),
        (b"http://engine:80/v1/models", b"", None),
        (b"http://engine:8000.other/v1", b"", None),
        (b"http://user@engine:8000/v1", b"", None),
        (b"ftp://engine:8000/v1", b"", None),
        (b"//engine:8000/v1", b"", None),
        (b"/v1/models", b"", None),
        (b"", b"", None),
    ],
)
def test_only_a_redirect_to_the_engine_itself_becomes_a_path(
    location: bytes, prefix: bytes, expected: bytes | None
) -> None:
    headers = [(b"Location", location), (b"x-note", location)]
    placed = location if expected is None else expected
    assert staying_here(headers, ENGINE, prefix) == [
        (b"Location", placed),
        (b"x-note", location),
    ]
