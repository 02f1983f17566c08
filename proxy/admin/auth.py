"""Access to the admin API: one middleware in front of every route.

Without a token it serves loopback only, and there only requests that name it so:
a web page whose host name was pointed at 127.0.0.1 names itself. With a token
every route but `/healthz` wants it. What changes anything is refused to pages of
other sites in any case, since a browser sends them on its user's behalf.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.errors import ConfigError
from proxy.security.secrets import ADMIN_TOKEN_VARIABLE, read_admin_token

OPEN_PATHS = frozenset(["/healthz"])
"""Open to supervisors that restart a hung proxy; shows only that it is alive."""
READING_METHODS = frozenset(["GET", "HEAD", "OPTIONS"])

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class AdminAccess:
    """The host on which the admin API listens, and the token that it asks for."""

    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)


def admin_access(host: str, token_file: str | None) -> AdminAccess:
    """The token from the file, else from the environment, else none.

    Raises ConfigError for an address beyond loopback without one.
    """
    token = read_admin_token(token_file)
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--admin {host} is open to the network and has no token: give "
            f"--admin-token-file PATH or set {ADMIN_TOKEN_VARIABLE}, or keep --admin "
            "on 127.0.0.1"
        )
    return AdminAccess(host, token)


def is_loopback(host: str) -> bool:
    """Whether an address or name is this host's own; other names cannot be known."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def guarding(access: AdminAccess) -> Middleware:
    """The middleware; no route is served around it."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = refusal_of(access, request)
        if refusal is not None:
            return refusal
        return await handler(request)

    return guard


def refusal_of(access: AdminAccess, request: web.Request) -> web.Response | None:
    """Why a request is not served; None where it is."""
    if request.path in OPEN_PATHS and request.method in READING_METHODS:
        return None
    if request.method not in READING_METHODS and _is_of_another_site(request):
        return _refuse(403, "pages of other sites may not change anything here")
    if access.token is None:
        if _is_named_loopback(access, request):
            return None
        return _refuse(
            421,
            "without a token the admin API answers to 127.0.0.1 and localhost only; "
            f"to reach it by another name set --admin-token-file "
            f"or {ADMIN_TOKEN_VARIABLE}",
        )
    scheme, _, sent = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and _is_same(sent.strip(), access.token):
        return None
    refusal = _refuse(401, "the admin API wants its token: Authorization: Bearer TOKEN")
    refusal.headers["www-authenticate"] = 'Bearer realm="servewatt"'
    return refusal


def _is_same(sent: str, token: str) -> bool:
    """Whether both are equal, compared in constant time."""
    return hmac.compare_digest(sent.encode("utf-8", "replace"), token.encode())


def _is_named_loopback(access: AdminAccess, request: web.Request) -> bool:
    name = _host_of(f"//{request.headers.get('host', '')}")
    return name is not None and (is_loopback(name) or name == access.host.lower())


def _is_of_another_site(request: web.Request) -> bool:
    """Whether a browser sends this for another site; programs name no origin."""
    if request.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        return True
    origin = request.headers.get("origin")
    if origin is None:
        return False
    return urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _refuse(status: int, reason: str) -> web.Response:
    return web.Response(
        body=msgspec.json.encode({"error": reason}),
        status=status,
        content_type="application/json",
    )
