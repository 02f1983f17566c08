"""Secrets of a request: which headers hold them, and no trace of them in texts. Pure.

Engines like to echo a refused key in their error, which is kept in the record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from proxy.wire.headers import Headers

SECRET_WORDS = (
    "authorization", "cookie", "api-key", "apikey", "subscription-key", "token",
    "secret", "password", "credential",
)  # fmt: skip
"""In the name of a header: its value is a secret."""
MIN_CHARACTERS = 4
"""Shorter words are no secrets, and would be found everywhere."""
REDACTED = "[redacted]"
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',}]+")


def is_secret(name: str) -> bool:
    """Whether a header of this name holds a secret."""
    name = name.lower().replace("_", "-")
    return any(word in name for word in SECRET_WORDS)


def redacted(text: str, headers: Headers) -> str:
    """The text without the values of this request's secret headers."""
    return without_secrets(text, _secrets(headers))


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """The text without these, and without whatever it calls a bearer's or a basic."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return _BEARER.sub(rf"\1 {REDACTED}", text)


def _secrets(headers: Headers) -> set[str]:
    """Values and their parts: a scheme, a cookie's name and the like are beside them.

    Of `Basic name:password` the decoded form is never sent, so it is not echoed.
    """
    found: set[str] = set()
    for name, raw in headers:
        if is_secret(name.decode("latin-1")):
            value = raw.decode("latin-1").strip()
            parts = [part.partition("=")[2] or part for part in value.split(";")]
            words = value.split()
            found.update(part.strip() for part in [value, *parts, *words[1:]])
    return {secret for secret in found if len(secret) >= MIN_CHARACTERS}
