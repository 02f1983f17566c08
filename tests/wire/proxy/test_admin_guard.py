"""Who may ask the admin API, over real sockets and from a real command line."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from proxy.admin.auth import (
    AdminAccess,
    Guesses,
    admin_access,
    guarding,
    is_loopback,
)
from proxy.errors import ConfigError
from proxy.security.secrets import ADMIN_TOKEN_VARIABLE, read_admin_token
from tests.support.paths import ROOT

TOKEN = "correct-horse-battery-staple"
PATHS = ["/", "/metrics", "/requests", "/books", "/info", "/nowhere", "/a/b?c=d"]

Visit = Callable[[httpx.AsyncClient], Awaitable[None]]


def visited(access: AdminAccess, visit: Visit) -> None:
    """Let a client visit a guarded app that answers every path with 200."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="inside")

    async def serve() -> None:
        app = web.Application(middlewares=[guarding(access)])
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
                await visit(client)
        finally:
            await runner.cleanup()

    asyncio.run(serve())


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_who_guesses_is_slowed_and_counted_and_who_forgot_only_counted() -> None:
    access = AdminAccess("127.0.0.1", TOKEN)

    async def visit(client: httpx.AsyncClient) -> None:
        for _ in range(3):
            await client.get("/books", headers=bearer("x" * 32))
        await client.get("/books")
        assert (await client.get("/books", headers=bearer(TOKEN))).status_code == 200

    visited(access, visit)
    assert access.counters.refused == {"wrong_token": 3, "no_token": 1}


def test_each_wrong_token_is_refused_later_until_time_has_passed() -> None:
    now = 0.0
    guesses = Guesses(lambda: now)
    delays = [guesses.delay_seconds() for _ in range(20)]
    assert delays == sorted(delays)
    assert delays[0] == pytest.approx(0.05)
    assert delays[-1] == 0.5
    now = 3600.0
    assert guesses.delay_seconds() == pytest.approx(0.05)


def test_a_token_that_is_read_again_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a" * 32)
    access = admin_access("127.0.0.1", str(path))
    path.write_text("short")
    assert "stays" in access.reload()
    assert access.token == "a" * 32
    path.write_text("b" * 32)
    assert str(path) in access.reload()
    assert access.token == "b" * 32


def test_with_a_token_every_route_but_two_wants_it() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        for path in PATHS:
            refused = await client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"].startswith("Bearer")
            assert "inside" not in refused.text
            assert (await client.get(path, headers=bearer(TOKEN))).status_code == 200
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.post("/healthz")).status_code == 401

    visited(AdminAccess("0.0.0.0", TOKEN), visit)


@pytest.mark.parametrize(
    "sent",
    [
        "", "Bearer", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} x",
        "Bearer \xe9\xff",
    ],
)  # fmt: skip
def test_nothing_but_the_token_opens(sent: str) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        headers = {"authorization": sent.encode("latin-1")}
        assert (await client.get("/books", headers=headers)).status_code == 401  # type: ignore[arg-type]

    visited(AdminAccess("127.0.0.1", TOKEN), visit)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9464", 200), ("localhost:9464", 200), ("LOCALHOST", 200),
        ("[::1]:9464", 200), ("127.8.9.10", 200),
        ("rebound.example", 421), ("rebound.example:9464", 421), ("10.0.0.1", 421),
        ("127.0.0.1.rebound.example", 421), ("localhost.rebound.example", 421),
        ("a@127.0.0.1", 200), ("127.0.0.1@a", 421), ("[", 421), ("", 421),
    ],
)  # fmt: skip
def test_without_a_token_a_page_of_a_rebound_name_reads_nothing(
    host: str, status: int
) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        for path in ("/requests", "/metrics", "/nowhere"):
            reply = await client.get(path, headers={"host": host})
            assert reply.status_code == status

    visited(AdminAccess(), visit)


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_page_of_another_site_changes_nothing(
    token: str | None, headers: dict[str, str]
) -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        sent = headers | bearer(TOKEN)
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            reply = await client.request(method, "/upstreams/a/drain", headers=sent)
            assert reply.status_code == 403
        reply = await client.get("/books", headers=sent)
        assert reply.status_code == 200  # its page may not read it: no CORS header
        assert "access-control-allow-origin" not in reply.headers

    visited(AdminAccess(token=token), visit)


def test_programs_and_pages_of_the_admin_port_itself_may_change_things() -> None:
    async def visit(client: httpx.AsyncClient) -> None:
        assert (await client.post("/upstreams/a/drain")).status_code == 200
        own = {"origin": str(client.base_url).rstrip("/"), "sec-fetch-site": "none"}
        assert (await client.post("/x", headers=own)).status_code == 200

    visited(AdminAccess(), visit)


@given(st.ip_addresses())
def test_loopback_is_what_the_address_says(address: object) -> None:
    assert is_loopback(str(address)) == address.is_loopback  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["", "localhost.evil.example", "my-host", "127.1.evil"]
)
def test_a_name_that_is_not_localhost_is_not_loopback(name: str) -> None:
    assert not is_loopback(name)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("short", "has 5 characters"),
        ("two words that are long enough", "one line of printable"),
        ("first-line-long-enough\nsecond", "one line of printable"),
        ("", "has 0 characters"),
    ],
)
def test_an_unfit_token_is_one_line_that_does_not_quote_it(
    tmp_path: Path, text: str, problem: str
) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        read_admin_token(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not text or text not in str(caught.value)


def test_the_file_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ADMIN_TOKEN_VARIABLE, raising=False)
    assert read_admin_token(None) is None
    monkeypatch.setenv(ADMIN_TOKEN_VARIABLE, "from-the-environment")
    assert read_admin_token(None) == "from-the-environment"
    (tmp_path / "token").write_text("from-the-file-itself\n")
    assert read_admin_token(str(tmp_path / "token")) == "from-the-file-itself"


@pytest.mark.parametrize("admin", ["0.0.0.0:0", "[::]:0", "some-host:0"])
def test_an_admin_port_open_to_a_network_needs_a_token(admin: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop(ADMIN_TOKEN_VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--upstream", "http://127.0.0.1:9",
         "--power", "none", "--listen", "127.0.0.1:0", "--admin", admin,
         "--store", "none"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--admin-token-file" in line
    assert ADMIN_TOKEN_VARIABLE in line


def test_the_token_is_no_option_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--help"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "--admin-token-file" in done.stdout
    assert "--admin-token " not in done.stdout
