"""Which requests pass. An allowlist: engines have unguarded control routes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.engines.dialect import Dialect
from proxy.relay.replies import Refusal
from proxy.wire.facts import RequestFacts

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
        return path in READABLE or _is_model(path)
    return method == "POST" and path in CALLABLE


def _is_model(path: str) -> bool:
    """A path below the models that no server can take for a path outside."""
    name = path.removeprefix(READABLE_BELOW)
    steps = name.lower().replace("%2e", ".")
    steps = steps.replace("%2f", "/").replace("%5c", "/").replace("\\", "/")
    return name != path and not {".", ".."} & set(steps.split("/"))


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that goes to the engine."""

    facts: RequestFacts | None
    """None: it is not metered."""
    body: bytes
    """As sent, or asking for usage as well."""
    has_usage_added: bool = False
    """The usage event must be taken out again: the client did not ask for it."""


def admit(
    dialect: Dialect,
    method: str,
    target: str,
    body: bytes,
    *,
    asks_for_usage: bool,
    allow_unknown: bool,
) -> Admission | Refusal:
    """Whether a request may pass, metered or not, and with which body."""
    path = target.partition("?")[0]
    facts = dialect.read_request(method, path, body)
    if facts is None:
        if allow_unknown or passes_unmetered(method, path):
            return Admission(None, body)
        message = f"{method[:20]} {path[:80]} is not a route of this proxy"
        return Refusal(404, "unknown_route", message)
    if not facts.is_stream or facts.wants_usage or not asks_for_usage:
        return Admission(facts, body)
    asking = dialect.with_usage(body)
    return Admission(facts, asking, has_usage_added=asking is not body)
