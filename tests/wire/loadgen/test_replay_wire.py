"""Whole replays against a scripted server on real sockets, under uvloop."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from loadgen.client.backends import RequestOptions, Target
from loadgen.plan.plan import PlannedSession, PlannedTurn
from loadgen.replay import replay as replay_module
from loadgen.replay.clock import SystemClock
from loadgen.replay.replay import RunStats, replay
from loadgen.results.progress import Progress
from loadgen.results.recorder import Recorder, read_results
from loadgen.results.results import Result
from tests.support.captures import reply_head_and_body
from tests.support.scripted import (
    DONE,
    LAST_CHUNK,
    Peer,
    ScriptedServer,
    chunk,
    reply_bytes,
    running,
    sse,
    stream_head,
)

Script = Callable[[Peer], Awaitable[None]]


def token(text: str, count: int, **choice: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": count}
    delta = {"index": 0, "delta": {"content": text}, "finish_reason": None} | choice
    return {"choices": [delta], "usage": usage}


ROLE = token("", 0, delta={"role": "assistant", "content": ""})
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
WHOLE = [
    chunk(sse(ROLE)),
    chunk(sse(token("one ", 1))),
    chunk(sse(token("two", 2, finish_reason="length"))),
    chunk(sse(USAGE)),
    chunk(DONE),
    LAST_CHUNK,
]


async def healthy(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(stream_head(), *WHOLE)


def answering(*pieces: bytes) -> Script:
    """One request gets these pieces, then the connection ends."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    return script


@dataclass
class Done:
    results: list[Result]
    stats: RunStats
    server: ScriptedServer
    progress: Progress = field(default_factory=Progress)
    written: str = ""


def replayed(
    path: Path,
    script: Script,
    sessions: list[PlannedSession],
    *,
    target: dict[str, Any] | None = None,
    stop: threading.Event | None = None,
    wait_for: threading.Event | None = None,
    **options: Any,
) -> Done:
    """Replay `sessions`; `stop` set by the script stops the run, like Ctrl-C.

    The server goes on after the run until its script has set `wait_for`.
    """
    progress = Progress()

    async def main(server: ScriptedServer) -> RunStats:
        usual = {"url": server.url, "backend": "vllm"}
        with Recorder(path / "requests.jsonl") as recorder:
            task = asyncio.ensure_future(
                replay(
                    iter(sessions),
                    target=Target(**(usual | (target or {}))),
                    options=RequestOptions(),
                    recorder=recorder,
                    progress=progress,
                    clock=SystemClock(),
                    **options,
                )
            )
            if stop is not None:
                await asyncio.to_thread(stop.wait, 20)
                while progress.tokens < 1 and not task.done():  # noqa: ASYNC110
                    await asyncio.sleep(0)
                task.cancel()
            return await task

    with running(script) as server:
        stats = uvloop.run(main(server))
        assert wait_for is None or wait_for.wait(10), "the script did not get there"
    written = (path / "requests.jsonl").read_text()
    results = list(read_results(path / "requests.jsonl"))
    return Done(results, stats, server, progress, written)


def session(*names: str, **fields: Any) -> PlannedSession:
    turns = [
        PlannedTurn(request_id=name, **({"prompt": name, "kind": "code"} | fields))
        for name in names
    ]
    return PlannedSession(session_id="s", start_seconds=0.0, turns=turns)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests need no half second in which to prepare."""
    monkeypatch.setattr(replay_module, "LEAD_SECONDS", 0.02)


def test_a_healthy_reply_becomes_a_whole_record(tmp_path: Path) -> None:
    done = replayed(tmp_path, healthy, [session("r1", output_tokens=2)])
    [result] = done.results
    assert (result.outcome, result.status, result.error) == ("ok", 200, None)
    assert (result.prompt_tokens, result.output_tokens) == (3, 2)
    assert (result.requested_output_tokens, sum(result.chunk_tokens)) == (2, 2)
    moments = [
        result.planned_seconds,
        result.sent_seconds,
        result.first_token_seconds,
        result.last_token_seconds,
        result.finished_seconds,
    ]
    assert None not in moments
    assert moments == sorted(m for m in moments if m is not None)
    assert result.first_visible_seconds == result.first_token_seconds
    assert done.progress.tokens == 2


def test_the_server_is_told_the_id_and_the_kind(tmp_path: Path) -> None:
    done = replayed(tmp_path, healthy, [session("r1")])
    [request] = done.server.requests
    assert request.one("x-request-id") == "r1"
    assert request.one("x-servewatt-kind") == "code"
    assert request.json()["messages"] == [{"role": "user", "content": "r1"}]


def test_turns_go_in_order_with_the_replies_they_got(tmp_path: Path) -> None:
    done = replayed(tmp_path, healthy, [session("r1", "r2", history="append")])
    contents = [
        [message["content"] for message in request.json()["messages"]]
        for request in done.server.requests
    ]
    assert contents == [["r1"], ["r1", "one two", "r2"]]
    assert [r.one("x-session-id") for r in done.server.requests] == ["s", "s"]
    first, second = done.results
    assert second.planned_seconds == first.finished_seconds
    assert (first.connection_reused, second.connection_reused) == (False, True)


def test_a_recorded_reply_is_read_the_same_when_it_comes_byte_by_byte(
    tmp_path: Path,
) -> None:
    head, body = reply_head_and_body("vllm_chat_stream_continuous_usage")
    raw = head + body

    async def bytewise(peer: Peer) -> None:
        await peer.request()
        for number in range(len(raw)):
            await peer.send(raw[number : number + 1])
        await peer.gone.wait()

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = replayed(tmp_path / "a", answering(raw), [session("r1")]).results[0]
    split = replayed(tmp_path / "b", bytewise, [session("r1")]).results[0]
    assert whole.outcome == split.outcome == "ok"
    assert whole.output_tokens == split.output_tokens == sum(split.chunk_tokens)


def test_the_connection_is_there_before_the_request_is_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "LEAD_SECONDS", 0.6)
    connected: list[float] = []

    async def script(peer: Peer) -> None:
        connected.append(time.monotonic())
        await healthy(peer)

    done = replayed(tmp_path, script, [session("r1")])
    assert connected[0] < done.stats.zero_monotonic_seconds
    assert done.stats.connections.opened == 1


FAILURES: dict[str, tuple[Script, str]] = {
    "refuses": (
        answering(reply_bytes(503, b'{"error": {"message": "busy"}}')),
        "HTTP 503: busy",
    ),
    "breaks": (answering(reply_bytes(500, b"")), "HTTP 500"),
    "redirects": (
        answering(reply_bytes(302, b"", [("location", "/x")])),
        "HTTP 302: redirects to /x, which is not followed",
    ),
    "hangs up": (answering(), "the connection was closed before any reply"),
    "dies mid-stream": (
        answering(stream_head(), *WHOLE[:2]),
        "the connection was closed in the middle of the reply",
    ),
    "ends the stream early": (
        answering(stream_head(), *WHOLE[:2], LAST_CHUNK),
        "the stream ended before its end marker",
    ),
    "says an error inside a 200": (
        answering(
            stream_head(),
            *WHOLE[:2],
            chunk(sse({"error": {"message": "engine died"}}) + DONE),
            LAST_CHUNK,
        ),
        "engine died",
    ),
    "sends no tokens": (
        answering(stream_head(), chunk(sse(ROLE) + DONE), LAST_CHUNK),
        "the reply has no tokens",
    ),
    "does not stream": (
        answering(reply_bytes(200, b"not today")),
        "asked for a stream, got application/json",
    ),
}


@pytest.mark.parametrize(("script", "error"), FAILURES.values(), ids=FAILURES)
def test_a_server_that_fails_is_data(
    tmp_path: Path, script: Script, error: str
) -> None:
    done = replayed(tmp_path, script, [session("r1")])
    [result] = done.results
    assert result.outcome == "error"
    assert (result.error or "").startswith(error)
    assert result.sent_seconds is not None
    tokens = result.first_token_seconds
    assert tokens is None or result.sent_seconds <= tokens <= result.finished_seconds
    assert done.progress.failed == 1


def test_nobody_listening_is_data_too(tmp_path: Path) -> None:
    with running(healthy) as gone:
        pass
    done = replayed(
        tmp_path,
        healthy,
        [session("r1")],
        target={"url": gone.url},
    )
    [result] = done.results
    assert result.outcome == "error"
    assert (result.error or "").startswith("connection refused by 127.0.0.1")
    assert (result.sent_seconds, result.first_token_seconds) == (None, None)
    assert done.stats.sent == 0


def test_a_hanging_server_is_a_timeout_and_is_hung_up_on(tmp_path: Path) -> None:
    left = threading.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head(), *WHOLE[:2])
        await peer.gone.wait()
        left.set()

    done = replayed(
        tmp_path, script, [session("r1")], timeout_seconds=0.2, wait_for=left
    )
    [result] = done.results
    assert result.outcome == "timeout"
    assert result.chunk_tokens == [1]


def test_a_key_echoed_by_the_server_is_not_recorded(tmp_path: Path) -> None:
    body = json.dumps({"error": {"message": "Incorrect API key: sk-secret"}})
    script = answering(reply_bytes(401, body.encode()))
    done = replayed(tmp_path, script, [session("r1")], target={"api_key": "sk-secret"})
    assert done.server.requests[0].one("authorization") == "Bearer sk-secret"
    assert "sk-secret" not in done.written
    assert done.results[0].error == "HTTP 401: Incorrect API key: [redacted]"


def test_stopping_records_what_was_in_flight(tmp_path: Path) -> None:
    stop = threading.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head(), *WHOLE[:2])
        stop.set()
        await peer.gone.wait()

    later = PlannedSession(
        session_id="later",
        start_seconds=3600.0,
        turns=[PlannedTurn(request_id="r2", prompt="x")],
    )
    done = replayed(tmp_path, script, [session("r1"), later], stop=stop)
    assert done.stats.interrupted
    [result] = done.results
    assert (result.request_id, result.outcome) == ("r1", "aborted")
    assert result.sent_seconds is not None
