"""Access to the admin API: one middleware in front of every route.

Without a token it serves loopback only, and there only requests that name it so:
a web page whose host name was pointed at 127.0.0.1 names itself. With a token
every route wants it but `/healthz` and `/readyz`, which then tell nothing but yes
or no, and the live page, which is a form then. What changes anything is refused to
pages of other sites in any case, since a browser sends them on its user's behalf.
Whoever guesses is slowed, logged, counted.

The live page asks a person for the token once and holds a cookie for it, which no
script can read and no other site makes a browser send; the token is in no address.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from proxy.admin.page import accepts_page
from proxy.errors import ConfigError
from proxy.process.supervise import Seldom
from proxy.security.secrets import ADMIN_TOKEN_VARIABLE, read_admin_token

log = logging.getLogger("servewatt.admin")

OPEN_PATHS = frozenset(["/healthz", "/readyz"])
"""Open to supervisors and balancers: without the token these say yes or no only."""
READING_METHODS = frozenset(["GET", "HEAD", "OPTIONS"])
GUESS_SECONDS = 0.05
"""The reply to a wrong token is late by this for each one that came lately."""
LONGEST_GUESS_SECONDS = 0.5
FORGIVEN_SECONDS = 6.0
"""One wrong token is forgotten after so long."""
LOGIN_PATH = "/login"
COOKIE = "servewatt_session"
SESSION_SECONDS = 12 * 3600.0
MAX_LOGIN = 4096
"""Bytes of a login."""
MAX_SESSIONS = 64
"""Beyond them the oldest ends."""
MAX_GUESSES = 16
"""Wrong tokens whose refusal waits; more are refused at once, so none pile up."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Login(msgspec.Struct, frozen=True):
    """What the live page sends of its form."""

    token: str


@dataclass(slots=True)
class AdminCounters:
    """Totals since start."""

    refused: Counter[str] = field(default_factory=Counter)
    """Requests refused, by `wrong_token`, `no_token`, `host` or `site`."""
    changes: Counter[str] = field(default_factory=Counter)
    """Changes made, by `drain` or `resume`."""


class Sessions:
    """Browsers that gave the token; another token ends them all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, tuple[float, str]] = {}
        """Last moment and token, oldest first, by the cookie's value."""

    def open(self, token: str) -> str:
        """A new one; its cookie's value, which nobody can guess."""
        while len(self._open) >= MAX_SESSIONS:
            del self._open[next(iter(self._open))]
        value = secrets.token_urlsafe(32)
        self._open[value] = (self._clock() + SESSION_SECONDS, token)
        return value

    def has(self, value: str, token: str) -> bool:
        """Whether a cookie is of an open session of this token."""
        end_seconds, given = self._open.get(value, (-math.inf, ""))
        if self._clock() < end_seconds and given == token:
            return True
        self.end(value)
        return False

    def end(self, value: str) -> None:
        """Forget it; of one that is not open nothing happens."""
        self._open.pop(value, None)


@dataclass(slots=True)
class AdminAccess:
    """The host on which the admin API listens, and the token that it asks for."""

    host: str = "127.0.0.1"
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    counters: AdminCounters = field(default_factory=AdminCounters, compare=False)
    sessions: Sessions = field(default_factory=Sessions, compare=False, repr=False)

    def reload(self) -> str:
        """Take the token of the file as it is now; says what became of it."""
        if self.token_file is None:
            return "no token file to read again"
        try:
            self.token = read_admin_token(self.token_file)
        except ConfigError as error:
            return f"{error}; the admin token in use stays"
        return f"admin token read again from {self.token_file}"


class Guesses:
    """Slows whoever tries tokens: one refusal at a time, later with each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._level = 0.0
        self._at_seconds = clock()
        self._waiting = 0
        self._turn = asyncio.Lock()

    def delay_seconds(self) -> float:
        """How late the refusal of one more wrong token is to be."""
        now = self._clock()
        forgiven = (now - self._at_seconds) / FORGIVEN_SECONDS
        self._level = max(0.0, self._level - forgiven) + 1
        self._at_seconds = now
        return min(LONGEST_GUESS_SECONDS, GUESS_SECONDS * self._level)

    async def slow(self) -> None:
        """Wait before the refusal of a wrong token."""
        seconds = self.delay_seconds()
        if self._waiting >= MAX_GUESSES:
            return
        self._waiting += 1
        try:
            async with self._turn:
                await asyncio.sleep(seconds)
        finally:
            self._waiting -= 1


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
    return AdminAccess(host, token, token_file)


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
    guesses, seldom = Guesses(), Seldom()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = refusal_of(access, request)
        if refusal is None or _is_open(request):
            return await handler(request)
        if refusal.status == 401 and request.path == LOGIN_PATH:
            session = await _session(access, request)
            if session is not None:
                return session
        reason = REASONS[refusal.status]
        has_tried = "authorization" in request.headers or request.path == LOGIN_PATH
        if refusal.status == 401 and not has_tried:
            reason = "no_token"
        access.counters.refused[reason] += 1
        count = seldom.count(f"{request.remote} {reason}")
        if count is not None:
            log.warning(
                "admin API: %s from %s refused (%s), %d since the last such line",
                request.method, request.remote, reason, count,
            )  # fmt: skip
        if reason == "wrong_token":
            await guesses.slow()
        return refusal

    return guard


def _is_open(request: web.Request) -> bool:
    """Whether a request needs no token: it learns nothing."""
    if request.method not in READING_METHODS:
        return False
    return request.path in OPEN_PATHS or accepts_page(request)


async def _session(access: AdminAccess, request: web.Request) -> web.Response | None:
    """The reply to a login with the token, which opens a session; None without it."""
    try:
        sent = msgspec.json.decode(await request.content.read(MAX_LOGIN), type=Login)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if access.token is None or not _is_same(sent.token.strip(), access.token):
        return None
    log.info("admin API: a browser at %s gave the token", request.remote)
    reply = web.json_response({"logged_in": True})
    reply.set_cookie(
        COOKIE, access.sessions.open(access.token), max_age=int(SESSION_SECONDS),
        httponly=True, samesite="Strict", secure=request.secure,
    )  # fmt: skip
    return reply


REASONS = {401: "wrong_token", 403: "site", 421: "host"}
"""Why a request is refused, by the status of the refusal."""


def refusal_of(access: AdminAccess, request: web.Request) -> web.Response | None:
    """Why a request is not to be trusted; None where it is."""
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
    if access.sessions.has(request.cookies.get(COOKIE, ""), access.token):
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
