"""A reply that tells its own energy: where, in what, and when not."""

from __future__ import annotations

import asyncio
import gzip
import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.estimate import EnergySoFar
from proxy.meter.ledger import RequestEnergy
from proxy.relay.energy_trailer import Provenance, note_of, wants_energy, with_energy
from proxy.wire.sse import SseDecoder
from tests.support.captures import (
    STREAMS,
    joined_replies,
    reply_head_and_body,
    stream_body,
)
from tests.support.relaying import (
    Bench,
    answering,
    cutting,
    holding,
    relaying,
    run,
    streaming,
)
from tests.support.scripted import (
    DONE,
    LAST_CHUNK,
    Message,
    Peer,
    chunk,
    reply_bytes,
    request_bytes,
    sse,
    stream_head,
)

CHAT = b'{"model":"tiny","stream":true,"messages":[]}'
WITH_USAGE = b'{"model":"tiny","stream":true,"stream_options":{"include_usage":true}}'
WHOLE = b'{"model":"tiny","messages":[]}'
ASKING = [("X-ServeWatt-Energy", "1"), ("x-request-id", "mine")]
TOLD = {
    "energy_joules": 4.0,
    "low_joules": 3.5,
    "high_joules": 5.0,
    "energy_kwh": 4.0 / 3.6e6,
    "prefill_joules": 1.5,
    "decode_joules": 2.25,
    "idle_share_joules": 0.25,
    "policy": "phase",
    "boundary": None,
    "timing": "estimated",
    "grade": "poor",
    "quality": "estimated",
    "settled": False,
    "simulated": False,
    "request_id": "mine",
}
NOTE = msgspec.json.encode(TOLD)
COMMENT = b": energy " + NOTE + b"\n\n"
TEXT = {"id": "x", "choices": [{"index": 0, "delta": {"content": "a"}}]}
USAGE = {
    "id": "x",
    "choices": [],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


async def ask(bench: Bench, body: bytes = WITH_USAGE, **request: Any) -> Message:
    return await bench.ask(body=body, **{"headers": ASKING, **request})


def note_in(comment: bytes) -> dict[str, Any]:
    """The `energy` object of a stream's one comment about it."""
    (line,) = [x for x in comment.split(b"\n") if x.startswith(b": energy ")]
    loaded: dict[str, Any] = json.loads(line.removeprefix(b": energy "))
    return loaded


# --- off ----------------------------------------------------------------------


@pytest.mark.parametrize("capture", [path.stem for path in STREAMS])
@pytest.mark.parametrize("headers", [[], [("x-servewatt-energy", "0")]])
def test_off_a_stream_is_the_same_at_every_chunking(
    capture: str, headers: list[tuple[str, str]]
) -> None:
    engine = "transformers" if capture.startswith("hf_") else "vllm"
    body = stream_body(capture)
    sizes = iter([1, 2, 3, 7, 64, 1000, len(body)])

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            size = next(sizes)
            pieces = [body[at : at + size] for at in range(0, len(body), size)]
            await peer.send(stream_head(), *map(chunk, pieces), LAST_CHUNK)

    async def test() -> None:
        on = bool(headers)  # declined by the request where it is on for all
        async with relaying(script, engine, energy_in_response=on) as bench:
            for _ in range(7):
                reply = await ask(bench, headers=headers)
                assert reply.body == body
            assert bench.meter.estimates == []

    run("uvloop", test)


def test_off_a_json_reply_is_the_same(loop: str) -> None:
    head, body = reply_head_and_body("vllm_chat_nonstream")

    async def test() -> None:
        async with relaying(answering(head + body)) as bench:
            reply = await ask(bench, WHOLE, headers=[])
            assert reply.body == body
            assert reply.one("content-length") == str(len(body))

    run(loop, test)


@pytest.mark.parametrize(
    ("value", "by_default", "wanted"),
    [
        (None, False, False), (None, True, True), (b"1", False, True),
        (b" 1 ", False, True), (b"0", True, False), (b"yes", False, False),
        (b"", True, True),
    ],
)  # fmt: skip
def test_a_request_has_the_last_word(
    value: bytes | None, by_default: bool, wanted: bool
) -> None:
    headers = [] if value is None else [(b"X-SERVEWATT-ENERGY", value)]
    assert wants_energy(headers, by_default) == wanted


def test_the_engine_never_sees_the_header(loop: str) -> None:
    async def test() -> None:
        async with relaying(streaming(DONE)) as bench:
            await ask(bench)
            (request,) = bench.upstream.requests
            assert request.all("x-servewatt-energy") == []

    run(loop, test)


# --- streams ------------------------------------------------------------------

TGI_EVENT = {"index": 1, "token": {"id": 1, "text": "a"}, "generated_text": None}
TGI_LAST = {
    "index": 2,
    "token": {"id": 2, "text": "", "special": True},
    "generated_text": "a",
    "details": {"finish_reason": "stop", "generated_tokens": 2, "input_length": 3},
}
DIALECTS = {
    "vllm": ("/v1/chat/completions", stream_body("vllm_chat_stream_usage")),
    "openai": ("/v1/completions", stream_body("vllm_completions_stream_usage")),
    "transformers": ("/v1/chat/completions", stream_body("hf_chat_stream")),
    "tgi": ("/generate_stream", sse(TGI_EVENT, TGI_LAST).replace(b"data: ", b"data:")),
    "tgi ": ("/v1/chat/completions", sse(TEXT) + b"data:[DONE]\n\n"),
}


def told(body: bytes) -> bytes:
    """Where the comment belongs: before `[DONE]`, else at the end."""
    for mark in (b"data: [DONE]", b"data:[DONE]"):
        if mark in body:
            return body.replace(mark, COMMENT + mark)
    return body + COMMENT


@pytest.mark.parametrize("name", DIALECTS)
def test_the_comment_stands_right_before_the_end_at_every_split(name: str) -> None:
    target, body = DIALECTS[name]
    body = body[-600:][body[-600:].find(b"data:") :]  # its last events
    cuts = iter(range(1, len(body)))

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            at = next(cuts)
            await peer.send(stream_head(), chunk(body[:at]))
            await asyncio.sleep(0)
            await peer.send(chunk(body[at:]), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script, name.strip()) as bench:
            client = await bench.client()
            request = request_bytes(target=target, body=WITH_USAGE, headers=ASKING)
            for _ in range(1, len(body)):
                await client.send(request)
                reply = await client.reply()
                assert reply.body == told(body)
                assert reply.is_complete

    run("uvloop", test)


@pytest.mark.parametrize("capture", [path.stem for path in STREAMS])
def test_a_client_decodes_the_same_events_with_and_without(
    loop: str, capture: str
) -> None:
    engine = "transformers" if capture.startswith("hf_") else "vllm"
    body = stream_body(capture)

    async def test() -> None:
        async with relaying(streaming(body), engine) as bench:
            reply = await ask(bench)
            plain, with_comment = SseDecoder(), SseDecoder()
            assert with_comment.feed(reply.body) == plain.feed(body)
            assert with_comment.comments == plain.comments + 1
            assert note_in(reply.body) == TOLD

    run(loop, test)


def test_a_client_that_did_not_ask_for_usage_sees_the_energy_only(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            streaming(sse(TEXT), sse(USAGE) + DONE), usage_event="drop"
        ) as bench:
            reply = await ask(bench, CHAT)
            assert reply.body == sse(TEXT) + COMMENT + DONE
            assert "include_usage" in bench.upstream.requests[0].body.decode()
            usages = [u.usage for u in (await bench.meter.only()).updates if u.usage]
            assert [usage.prompt_tokens for usage in usages] == [3]

    run(loop, test)


def test_all_that_came_before_is_known_when_the_energy_is_told(loop: str) -> None:
    async def test() -> None:
        async with relaying(streaming(sse(TEXT), sse(USAGE), DONE)) as bench:
            seen: list[int] = []
            estimate = bench.meter.estimate

            def look(key: int, at_seconds: float) -> EnergySoFar:
                seen.append(len(bench.meter.requests[key].updates))
                return estimate(key, at_seconds)

            bench.meter.estimate = look  # type: ignore[method-assign]
            await ask(bench)
            assert seen == [3]

    run(loop, test)


def test_tokens_pass_before_the_end_is_known(loop: str) -> None:
    gate = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(stream_head(), chunk(sse(TEXT)))
        await gate.wait()
        await peer.send(chunk(DONE), LAST_CHUNK)

    async def test() -> None:
        async with relaying(script, energy_wait_seconds=60.0) as bench:
            bench.meter.settles = True
            client = await bench.client()
            await client.send(request_bytes(body=WITH_USAGE, headers=ASKING))
            assert (await client.until(sse(TEXT))).endswith(sse(TEXT))
            gate.set()
            assert DONE in await client.until(LAST_CHUNK)

    run(loop, test)


def test_an_error_inside_a_stream_is_told_with_what_it_cost(loop: str) -> None:
    body = stream_body("vllm_mid_stream_error")

    async def test() -> None:
        async with relaying(streaming(body)) as bench:
            assert (await ask(bench)).body == told(body)
            assert (await bench.meter.only()).outcome == "error"

    run(loop, test)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", COMMENT),
        (b"data: half", b"data: half"),
        (b"data: half\n", b"data: half\n"),
        (sse(TEXT) + b"data: [DONE]", sse(TEXT) + COMMENT + b"data: [DONE]"),
        (sse(TEXT) + b"data: [DONE]\n", sse(TEXT) + COMMENT + b"data: [DONE]\n"),
        (b"data: [DONE]\r\n\r\n", COMMENT + b"data: [DONE]\r\n\r\n"),
        (DONE + DONE, COMMENT + DONE + DONE),
        (sse('say "[DONE]"') + DONE, sse('say "[DONE]"') + COMMENT + DONE),
        (b": ping\n\n" + sse(TEXT), b": ping\n\n" + sse(TEXT) + COMMENT),
    ],
)
def test_the_place_of_the_comment(body: bytes, expected: bytes) -> None:
    async def test() -> None:
        async with relaying(streaming(*[body] if body else [])) as bench:
            assert (await ask(bench)).body == expected

    run("uvloop", test)


def test_an_aborted_stream_is_cut_and_accounted_for(loop: str) -> None:
    async def test() -> None:
        async with relaying(holding(stream_head(), chunk(sse(TEXT)))) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=WITH_USAGE, headers=ASKING))
            await client.until(sse(TEXT))
            client.abort()
            assert (await bench.meter.only()).outcome == "aborted"
            await bench.upstream.peers[0].gone.wait()

    run(loop, test)


def test_a_stream_that_the_engine_cuts_stays_cut(loop: str) -> None:
    async def test() -> None:
        async with relaying(cutting(stream_head(), chunk(sse(TEXT)))) as bench:
            reply = await ask(bench)
            assert not reply.is_complete
            assert b"energy" not in reply.body
            assert (await bench.meter.only()).outcome == "upstream_error"

    run(loop, test)


def test_a_compressed_stream_is_untouched(loop: str) -> None:
    body = gzip.compress(sse(TEXT) + DONE)
    head = stream_head([("content-encoding", "gzip")])

    async def test() -> None:
        async with relaying(answering(head, chunk(body), LAST_CHUNK)) as bench:
            assert (await ask(bench)).body == body

    run(loop, test)


# --- whole replies ------------------------------------------------------------


def test_a_json_reply_gets_a_last_member_and_its_length(loop: str) -> None:
    head, body = reply_head_and_body("vllm_chat_nonstream")

    async def test() -> None:
        async with relaying(answering(head + body), energy_in_response=True) as bench:
            reply = await ask(bench, WHOLE, headers=[("x-request-id", "mine")])
            assert reply.one("content-length") == str(len(reply.body))
            loaded = reply.json()
            assert list(loaded)[-1] == "energy"
            assert loaded.pop("energy") == TOLD
            assert loaded == json.loads(body)
            assert reply.body.startswith(body[:-1])

    run(loop, test)


def test_a_chunked_json_reply_stays_chunked(loop: str) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"

    async def test() -> None:
        pieces = (head, chunk(b'{"a"'), chunk(b": 1 }"), LAST_CHUNK)
        async with relaying(answering(*pieces)) as bench:
            reply = await ask(bench, WHOLE)
            assert reply.body == b'{"a": 1,"energy":' + NOTE + b" }"
            assert reply.one("transfer-encoding") == "chunked"
            assert reply.one("content-length") is None

    run(loop, test)


def test_a_list_gets_it_in_its_first_element(loop: str) -> None:
    body = b'[ {"generated_text":"a"} , {"generated_text":"b"}]'

    async def test() -> None:
        async with relaying(answering(reply_bytes(200, body)), "tgi") as bench:
            reply = await ask(bench, b'{"inputs":"x"}', target="/")
            assert reply.json() == [
                {"generated_text": "a", "energy": TOLD},
                {"generated_text": "b"},
            ]

    run(loop, test)


def test_the_request_is_closed_before_its_energy_is_told(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering(reply_bytes())) as bench:
            bench.meter.settles = True
            assert (await ask(bench, WHOLE)).json()["energy"]["settled"] is True
            assert (await bench.meter.only()).outcome == "ok"

    run(loop, test)


@pytest.mark.parametrize(
    "reply",
    [
        reply_bytes(500, b'{"error":{"message":"no"}}'),
        reply_bytes(201, b'{"a":1}'),
        reply_bytes(200, b"not json"),
        reply_bytes(200, b"[]"),
        reply_bytes(200, b"[1,2]"),
        reply_bytes(200, b'"text"'),
        reply_bytes(200, b'{"a":1}}'),
        reply_bytes(200, b'{"energy":{"theirs":1}}'),
        reply_bytes(200, b'\xef\xbb\xbf{"a":1}'),
        reply_bytes(200, gzip.compress(b'{"a":1}'), [("content-encoding", "gzip")]),
        reply_bytes(200, b'{"a":1}', [("content-type", "text/plain")]),
        reply_bytes(200, b'{"a":1}', [("repr-digest", "sha-256=:x:")]),
    ],
)
def test_what_cannot_hold_it_passes_untouched(reply: bytes) -> None:
    async def test() -> None:
        async with relaying(answering(reply)) as bench:
            got = await ask(bench, WHOLE)
            body = reply.partition(b"\r\n\r\n")[2]
            assert got.body == body
            assert got.one("content-length") == str(len(body))

    run("uvloop", test)


def test_a_capture_of_errors_passes_untouched() -> None:
    for status, headers, body in joined_replies("vllm_errors").values():
        if "application/json" not in headers.get("content-type", ""):
            continue

        async def test(reply: bytes = reply_bytes(status, body)) -> None:
            async with relaying(answering(reply)) as bench:
                got = await ask(bench, WHOLE)
                assert got.body == reply.partition(b"\r\n\r\n")[2]

        run("uvloop", test)


def test_what_is_not_metered_is_never_touched(loop: str) -> None:
    async def test() -> None:
        async with relaying(answering(reply_bytes()), energy_in_response=True) as bench:
            reply = await ask(bench, b"", method="GET", target="/v1/models")
            assert reply.body == b"{}"

    run(loop, test)


def test_a_reply_lost_half_way_becomes_an_error_of_the_relay(loop: str) -> None:
    async def test() -> None:
        async with relaying(cutting(reply_bytes(200, b'{"a":1}')[:-3])) as bench:
            assert (await ask(bench, WHOLE)).status == 502
            assert (await bench.meter.only()).outcome == "upstream_error"

    run(loop, test)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(document=st.dictionaries(st.text(), JSON), indent=st.sampled_from([None, 0, 2]))
def test_any_object_gains_exactly_one_member(
    document: dict[str, Any], indent: int | None
) -> None:
    document.pop("energy", None)
    body = json.dumps(document, indent=indent).encode()
    result = with_energy(body, NOTE)
    assert json.loads(result) == document | {"energy": TOLD}
    for ours in (b',"energy":' + NOTE, b'"energy":' + NOTE):
        if ours in result:
            assert result.replace(ours, b"", 1) == body
            break


@given(body=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_can_break_it(body: bytes) -> None:
    result = with_energy(body, NOTE)
    assert result == body or json.loads(result)


# --- what it says -------------------------------------------------------------


def test_what_is_unknown_is_null() -> None:
    unknown = RequestEnergy(None, None, None, None, "phase", "unknown")
    note = json.loads(note_of(EnergySoFar(unknown, False), Provenance(), "r"))
    figures = {name for name in TOLD if name.endswith(("joules", "kwh"))}
    assert all(note[name] is None for name in figures)
    assert (note["quality"], note["settled"]) == ("unknown", False)


def test_a_simulated_sensor_says_so() -> None:
    energy = RequestEnergy(1.0, 1.0, 0.0, 2.0, "phase", "timed")
    note = json.loads(note_of(EnergySoFar(energy, True), Provenance("gpu", True), "r"))
    assert (note["simulated"], note["boundary"], note["settled"]) == (True, "gpu", True)


def test_a_broken_meter_leaves_the_reply_whole_and_the_energy_unknown(
    loop: str,
) -> None:
    async def test() -> None:
        async with relaying(streaming(sse(TEXT), DONE)) as bench:
            bench.meter.fails = True
            reply = await ask(bench)
            assert SseDecoder().feed(reply.body) == SseDecoder().feed(sse(TEXT) + DONE)
            note = note_in(reply.body)
            assert note["energy_joules"] is None
            assert (note["policy"], note["settled"]) == (None, False)
            assert bench.relay.counters.meter_errors > 0

    run(loop, test)


# --- waiting ------------------------------------------------------------------


@pytest.mark.parametrize("body", [WITH_USAGE, WHOLE])
def test_a_reply_waits_for_settlement_and_no_longer_than_that(
    loop: str, body: bytes
) -> None:
    is_stream = body is WITH_USAGE
    script = streaming(sse(TEXT), DONE) if is_stream else answering(reply_bytes())

    async def test() -> None:
        async with relaying(script, energy_wait_seconds=3600.0) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=body, headers=ASKING))
            await bench.meter.closings()
            while len(bench.meter.estimates) < 3:  # noqa: ASYNC110 - the relay's timer
                await asyncio.sleep(0.001)
            assert bench.relay.counters.in_flight == 1
            assert bench.relay.counters.upstream_idle == 1  # the engine is free again
            bench.meter.settles = True
            reply = await client.reply()
            note = note_in(reply.body) if is_stream else reply.json()["energy"]
            assert note == TOLD | {"settled": True}
            await client.send(request_bytes(body=body, headers=ASKING))
            assert (await client.reply()).is_complete

    run(loop, test)


def test_what_is_not_settled_in_time_is_told_as_an_estimate(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            streaming(sse(TEXT), DONE), energy_wait_seconds=0.05
        ) as bench:
            reply = await ask(bench)
            assert note_in(reply.body)["settled"] is False
            assert len(bench.meter.estimates) >= 2
            first, last = bench.meter.estimates[0], bench.meter.estimates[-1]
            assert last[1] - first[1] >= 0.05

    run(loop, test)


def test_a_body_that_never_ends_does_not_hold_its_done_for_ever(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            holding(stream_head(), chunk(sse(TEXT) + DONE)), energy_wait_seconds=0.02
        ) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=WITH_USAGE, headers=ASKING))
            assert COMMENT in await client.until(DONE)
            client.abort()
            # it left with the whole reply: only the end of the message was missing
            assert (await bench.meter.only()).outcome == "ok"

    run(loop, test)


def test_a_client_that_leaves_while_waiting_frees_everything(loop: str) -> None:
    async def test() -> None:
        async with relaying(
            streaming(sse(TEXT), DONE), energy_wait_seconds=3600.0
        ) as bench:
            client = await bench.client()
            await client.send(request_bytes(body=WITH_USAGE, headers=ASKING))
            await bench.meter.closings()
            client.abort()
            while bench.relay.counters.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0)
            assert bench.relay.counters.requests == {"ok": 1}
            # an engine's connection is fit for the next one
            assert (await ask(bench, headers=[])).body == sse(TEXT) + DONE

    run(loop, test)


# --- many at once -------------------------------------------------------------


def test_each_of_many_gets_its_own(loop: str) -> None:
    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            name = str(request.one("x-request-id"))
            await peer.send(stream_head(), chunk(sse(name)))
            await asyncio.sleep(0)
            pieces = sse(name) + DONE
            for low, high in pairwise(range(0, len(pieces) + 5, 5)):
                await peer.send(chunk(pieces[low:high]))
            await peer.send(LAST_CHUNK)

    async def one(bench: Bench, name: str) -> None:
        headers = [("x-request-id", name), ("x-servewatt-energy", "1")]
        reply = await ask(bench, headers=headers)
        assert SseDecoder().feed(reply.body) == [name.encode()] * 2 + [b"[DONE]"]
        assert note_in(reply.body)["request_id"] == name

    async def test() -> None:
        async with relaying(script) as bench, asyncio.TaskGroup() as group:
            for number in range(60):
                group.create_task(one(bench, f"r{number}"))

    run(loop, test)
