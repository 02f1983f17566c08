"""Which requests pass. An allowlist: engines have unguarded control routes. Pure."""

from __future__ import annotations

READABLE = frozenset(
    [
        "/", "/health", "/ping", "/version", "/info", "/load", "/metrics",
        "/v1/models",
    ]
)  # fmt: skip
"""GET, HEAD and OPTIONS: what engines tell about themselves."""
CALLABLE = frozenset(["/tokenize", "/detokenize", "/chat_tokenize"])
"""POST: work for the CPU, no joules of the GPU."""
READABLE_BELOW = "/v1/models/"


def passes_unmetered(method: str, path: str) -> bool:
    """Whether a request that is not metered may go to the engine all the same.

    Paths are compared as sent: an escaped spelling of a route is another route.
    """
    if method == "OPTIONS":
        return True  # a browser asking what it may do; no engine computes for it
    if method in ("GET", "HEAD"):
        return path in READABLE or path.startswith(READABLE_BELOW)
    return method == "POST" and path in CALLABLE
