"""The live page: one document with all that it needs, from this package's files.

It holds nothing that is known only here: what it shows comes from `/live`, behind the
same guard as the API. Nothing is loaded from elsewhere, and the browser is told so.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources

from aiohttp import web


def accepts_page(request: web.Request) -> bool:
    """Whether somebody opens `/` in a browser; programs get its JSON."""
    accepted = request.headers.get("accept", "")
    return request.path == "/" and "text/html" in accepted.lower()


def live_page() -> web.Response:
    """The page, with the headers that keep it to itself."""
    body, policy = _page()
    return web.Response(
        body=body,
        headers={
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": policy,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        },
    )


@cache
def _page() -> tuple[bytes, str]:
    """The document, and the policy that names its own styles and scripts by hash."""
    styles = [_read("uplot.css"), _read("page.css")]
    scripts = [_read("uplot.js"), _read("page.js")]
    document = _read("page.html")
    document = document.replace("<!-- styles -->", _elements("style", styles))
    document = document.replace("<!-- scripts -->", _elements("script", scripts))
    policy = (
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; style-src {_sources(styles)}; "
        f"script-src {_sources(scripts)}"
    )
    return document.encode(), policy


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _elements(tag: str, contents: list[str]) -> str:
    return "\n".join(f"<{tag}>{content}</{tag}>" for content in contents)


def _sources(contents: list[str]) -> str:
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in digests)
