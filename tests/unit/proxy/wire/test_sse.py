"""SSE decoding: the same events, however the bytes were cut."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import SseError
from proxy.wire.sse import SseDecoder
from tests.support.captures import STREAMS, stream_body


def decode(*reads: bytes) -> list[bytes]:
    decoder = SseDecoder()
    return [event for read in reads for event in decoder.feed(read)]


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    edges = [0, *sorted(position % (len(data) + 1) for position in positions), None]
    return [data[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"event: note\nid: 7\ndata: a\nretry: 10\n\n", [b"a"]),
        (b"event: error\ndata: a\n\n", [b'{"error":"a"}']),
        (b'error: {"code":1}\n\n', [b'{"error":{"code":1}}']),
        (b": keep-alive\n\ndata: a\n\n", [b"a"]),
        (b": with data\ndata: a\n\n", [b"a"]),
        (b"\n\n\n\ndata: a\n\n\n\n\n", [b"a"]),
        (b"data\n\n", [b""]),
        (b"event: ping\n\n", []),
        (b"dataset: a\n\n", []),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: never ended\n", []),
    ],
)
def test_events_follow_the_standard(stream: bytes, events: list[bytes]) -> None:
    assert decode(stream) == events
    assert decode(*(stream[at : at + 1] for at in range(len(stream)))) == events


LINES = st.sampled_from(
    [b"data: x", b"data:y", b"data", b": note", b"event: e", b"data: \xc3\xa9", b""]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@given(
    lines=st.lists(st.tuples(LINES, ENDS), max_size=30),
    positions=st.lists(st.integers(0, 1000), max_size=10),
)
def test_any_cutting_gives_the_same_events_and_comments(
    lines: list[tuple[bytes, bytes]], positions: list[int]
) -> None:
    stream = b"".join(line + end for line, end in lines)
    whole, pieces = SseDecoder(), SseDecoder()
    expected = whole.feed(stream)
    events = [e for read in cut(stream, positions) for e in pieces.feed(read)]
    assert events == expected
    assert pieces.comments == whole.comments


@given(stream=st.binary(max_size=300), positions=st.lists(st.integers(0, 1000)))
def test_arbitrary_bytes_are_cut_proof_too(stream: bytes, positions: list[int]) -> None:
    assert decode(*cut(stream, positions)) == decode(stream)


@pytest.mark.parametrize("capture", STREAMS, ids=lambda path: path.stem)
def test_a_recorded_stream_split_at_every_byte_gives_the_same_events(
    capture: Path,
) -> None:
    stream = stream_body(capture.stem)
    expected = decode(stream)
    assert len(expected) == stream.count(b"data: ")
    for at in range(len(stream)):
        assert decode(stream[:at], stream[at:]) == expected


def test_a_character_split_between_reads_is_whole_again() -> None:
    stream = "data: 日本 🙂\n\n".encode()
    for at in range(len(stream)):
        assert decode(stream[:at], stream[at:]) == [stream[6:-2]]


def test_comments_are_counted_and_carry_no_event() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b": keep-alive\n\n: keep-alive\n\n") == []
    assert decoder.comments == 2


def test_an_unfinished_event_shows_as_partial() -> None:
    decoder = SseDecoder()
    decoder.feed(b"data: a\n\ndata: b")
    assert decoder.has_partial
    decoder.feed(b"\n\n")
    assert not decoder.has_partial


def test_an_endless_event_is_refused_at_the_bound() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    assert decoder.feed(b"data: " + b"x" * 94) == []
    with pytest.raises(SseError, match="101 bytes has no end, limit 100"):
        decoder.feed(b"y")


def test_the_bound_is_per_event_not_per_stream() -> None:
    decoder = SseDecoder(max_event_bytes=20)
    for _ in range(50):
        assert decoder.feed(b"data: 0123456789\n\nda") == [b"0123456789"]
        assert decoder.feed(b"ta: x\n\n") == [b"x"]
