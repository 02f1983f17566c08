"""No trace of a request's secrets in a text that is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.security.secrets import without_user
from proxy.wire.headers import Headers
from proxy.wire.redaction import is_secret, redacted

PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4)


@pytest.mark.parametrize(
    ("headers", "text", "kept"),
    [
        ([(b"Authorization", b"Bearer sk-12345")], "bad key sk-12345!",
         "bad key [redacted]!"),
        ([(b"cookie", b"a=abcd; b=efgh")], "got abcd and efgh",
         "got [redacted] and [redacted]"),
        ([(b"x-api-key", b"k-98765")], "no k-98765", "no [redacted]"),
        ([(b"api_key", b"k-98765")], "no k-98765", "no [redacted]"),
        ([(b"x-team", b"red-team")], "no red-team", "no red-team"),
        ([], "sent Authorization: Bearer sk-other", "sent Authorization: Bearer "
         "[redacted]"),
        ([(b"x-token", b"a")], "a banana", "a banana"),
    ],
)  # fmt: skip
def test_what_a_secret_header_said_is_taken_out(
    headers: Headers, text: str, kept: str
) -> None:
    assert redacted(text, headers) == kept


@given(PRINTABLE, st.text(), st.text())
def test_no_secret_is_left_wherever_it_stood(
    secret: str, before: str, after: str
) -> None:
    headers = [(b"authorization", b"Bearer " + secret.encode())]
    left = redacted(f"{before}{secret}{after}", headers)
    # what the marks themselves say is no trace of it
    for mark in ("[redacted]", "Bearer", "bearer"):
        left = left.replace(mark, "")
    assert secret not in left or secret in "[redacted]"


@pytest.mark.parametrize("name", ["Authorization", "X-Goog-Api-Key", "Set_Cookie"])
def test_names_of_secrets_are_known_in_any_case(name: str) -> None:
    assert is_secret(name)
    assert not is_secret("x-request-id")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://h/a", "http://h/a"),
        ("http://u:p@h/a", "http://...@h/a"),
        ("postgres:/u:p@h", "...@h"),
        ("http://u:p/@x@h", "http://...@h"),
        ("u:p@", "...@"),
    ],
)
def test_a_url_is_shown_without_its_user(text: str, shown: str) -> None:
    assert without_user(text) == shown
