"""Debian's Chromium, asked over its DevTools protocol: a page as a person gets it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser: apt install chromium"
)
LOOK_SECONDS, PATIENCE_SECONDS = 0.1, 60.0


class Tab:
    """One open page; `complaints` are what its console was told."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.complaints: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": params}
        await self._socket.send_json(asked)
        while True:
            message = await self._socket.receive_json(timeout=PATIENCE_SECONDS)
            if message.get("id") == self._number:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        entry = params.get("entry", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif entry.get("level") in {"warning", "error"}:
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        found = await self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """The first value of an expression that is true there."""
        for _ in range(round(PATIENCE_SECONDS / LOOK_SECONDS)):
            value = await self.value(expression)
            if value:
                return value
            await asyncio.sleep(LOOK_SECONDS)
        shown = await self.value("document.body.innerText")
        raise AssertionError(f"never true: {expression}\n{shown}\n{self.complaints}")


@asynccontextmanager
async def open_tab(
    url: str, *, width: int = 1200, height: int = 900
) -> AsyncIterator[Tab]:
    """A tab of a browser of its own at an address."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu",
            "--remote-debugging-port=0", f"--user-data-dir={profile}",
            f"--window-size={width},{height}", "about:blank",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            line = b""
            while b"listening on ws:" not in line:
                line = await process.stderr.readline()
                assert line, "the browser ended"
            address = line.decode().split()[-1].split("/")[2]
            async with (
                aiohttp.ClientSession() as session,
                session.put(f"http://{address}/json/new?about:blank") as reply,
                session.ws_connect(
                    (await reply.json())["webSocketDebuggerUrl"], max_msg_size=0
                ) as socket,
            ):
                tab = Tab(socket)
                for domain in ("Runtime", "Log", "Page"):
                    await tab.call(f"{domain}.enable")
                await tab.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
                )  # fmt: skip
                await tab.call("Page.navigate", url=url)
                yield tab
        finally:
            process.terminate()
            await process.wait()
