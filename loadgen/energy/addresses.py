"""Admin URLs of the proxies that meter one load, written as one text. Pure."""

from __future__ import annotations

SEPARATOR = "+"
"""Between the URLs, as between those of one group of sensors."""


def urls_of(text: str) -> tuple[str, ...]:
    """The admin URLs in `URL`, or in `URL+URL`."""
    first, *others = text.split(f"{SEPARATOR}http")
    return (first, *(f"http{other}" for other in others))
