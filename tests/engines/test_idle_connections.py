"""The uvicorn that serves vLLM closes idle connections; the relay keeps some too."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relaying import RecordingMeter, run, serving
from tests.support.scripted import connect, request_bytes

pytestmark = pytest.mark.vllm

APPLICATION = """
async def application(scope, receive, send):
    assert scope["type"] == "http"
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"{}"})
"""
PAUSES_SECONDS = [3.8 + 0.1 * number for number in range(28)]
"""On both sides of the relay's 4 s, uvicorn's 5 s, and the 6 s of the promise."""


@pytest.fixture
def uvicorn(engines: Path, tmp_path: Path) -> Iterator[str]:
    """The URL of a uvicorn with its own default timeouts."""
    (tmp_path / "minimal.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.fileno()
        process = subprocess.Popen(
            [engines / "python", "-m", "uvicorn", "minimal:application", "--lifespan",
             "off", "--log-level", "warning", "--fd", str(number)],
            cwd=tmp_path, pass_fds=[number],
        )  # fmt: skip
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        process.terminate()
        process.wait()


def test_a_request_after_any_pause_is_answered(uvicorn: str) -> None:
    async def twice(port: int, pause_seconds: float) -> list[int]:
        client = await connect(port)
        statuses = []
        for seconds in (0.0, pause_seconds):
            await asyncio.sleep(seconds)  # the server's own clock: nothing to wait for
            await client.send(request_bytes(body=b'{"model":"m"}'))
            statuses.append((await client.reply()).status)
        client.close()
        await client.lost.wait()
        return statuses

    async def test() -> None:
        async with serving(uvicorn, RecordingMeter()) as relay:
            found = await asyncio.gather(
                *(twice(relay.port, pause) for pause in PAUSES_SECONDS)
            )
            assert found == [[200, 200]] * len(PAUSES_SECONDS)

    run("uvloop", test)
