"""The response half of HTTP/1.1: the same reply however its bytes arrive."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.http1 import MAX_HEAD_BYTES, ReplyParser, chunk_of

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nX-Late: 1\r\n\r\n"
)
SIZED = b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\nonetwo"
OPEN = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nonetwo"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nonetwo"


def parsed(*reads: bytes, is_head_request: bool = False) -> tuple[ReplyParser, bytes]:
    """A parser that was fed these reads, none of which may be wrong, and the body."""
    parser = ReplyParser()
    pieces: list[bytes] = []
    parser.begin(pieces, is_head_request=is_head_request)
    for data in reads:
        assert parser.feed(data) is None
    return parser, b"".join(pieces)


@pytest.mark.parametrize("whole", [CHUNKED, SIZED, CLOSING, INTERIM * 2 + CHUNKED])
@given(cuts=st.lists(st.integers(0, 200)))
def test_a_reply_is_the_same_however_it_is_cut(whole: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(whole), *(cut % len(whole) for cut in cuts)})
    parser, body = parsed(*(whole[a:b] for a, b in pairwise(edges)))
    reference, _ = parsed(whole)
    assert body == b"onetwo"
    assert parser.is_complete
    assert parser.head == reference.head
    assert parser.keeps_alive is (whole is not CLOSING)


SIZES = [1, 9, 10, 15, 16, 255, 256, 257, 4080, 4095, 4096, 70_000]
WHOLE = [chunk_of(b"\r\n1\r\na"[:size].ljust(size)) for size in SIZES]
STRANGE = [
    b"0\r\n\r\n", b"0\r\nX-Late: 1\r\n\r\n", b"1;ext=1\r\nx\r\n", b"01\r\nx\r\n",
    b"1 \r\nx\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n", b"1_\r\n", b"-1\r\nx\r\n",
    b"1\nx\n", b"1\r\nx\n", b"\r\n", b"1", b"1\r", b"1\r\n", b"6\r\n", b"x", b"x\r",
    b"1\r\nxx\r\n", b"2\r\nx\r\n", b"1\r\nxyz", b"1\r\nx\rz", b"1\r\nx\r",
    b"A\r\n0123456789\r\n",
]  # fmt: skip
PARTS = [*WHOLE[:3], *STRANGE]


def same_with_the_short_cut(reads: Sequence[bytes]) -> None:
    """Read a reply twice, once without asking for whole chunks."""
    short, full = ReplyParser(), ReplyParser()
    short_pieces: list[bytes] = []
    full_pieces: list[bytes] = []
    short.begin(short_pieces)
    full.begin(full_pieces)
    for read in reads:
        data_at = short.chunk_at(read)
        if data_at:
            short_pieces.append(read[data_at:-2])
        failure = full.feed(read)
        assert failure == (None if data_at else short.feed(read))
        assert b"".join(short_pieces) == b"".join(full_pieces)
        assert short.is_complete == full.is_complete
        assert short.keeps_alive == full.keeps_alive
        if failure or full.is_complete:
            break


CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_no_read_is_taken_for_a_whole_chunk_that_is_none() -> None:
    for reads in product(PARTS, repeat=3):
        same_with_the_short_cut([CHUNKED_HEAD, *reads])
    for first, second in product(PARTS, repeat=2):
        same_with_the_short_cut([CHUNKED_HEAD + first, second])


@given(
    parts=st.lists(st.sampled_from(WHOLE + STRANGE), max_size=6),
    cuts=st.lists(st.integers(0, 200), max_size=4),
)
def test_with_whole_chunks_too_a_reply_is_the_same_however_it_is_cut(
    parts: list[bytes], cuts: list[int]
) -> None:
    whole = CHUNKED_HEAD + b"".join(parts)
    edges = set(accumulate(map(len, parts), initial=len(CHUNKED_HEAD)))
    edges ^= {cut % len(whole) for cut in cuts}
    edges |= {0, len(whole)}
    same_with_the_short_cut([whole[a:b] for a, b in pairwise(sorted(edges))])


def test_a_chunk_in_a_read_of_its_own_is_known_at_once() -> None:
    parser = ReplyParser()
    parser.begin([])
    assert parser.feed(CHUNKED[: CHUNKED.index(b"3\r\n")]) is None
    for data in (b"x" * 10, b"x" * 237, b"two"):
        assert chunk_of(data)[parser.chunk_at(chunk_of(data)) : -2] == data
        assert parser.chunk_at(chunk_of(data).upper()) == len(b"%x" % len(data)) + 2
    assert parser.feed(b"3\r\no") is None
    assert parser.chunk_at(b"1\r\nx\r\n") == 0, "the middle of a chunk"
    assert parser.feed(b"ne\r\n") is None
    assert parser.chunk_at(b"1\r\nx\r\n") == 3


def test_interim_replies_and_trailers_are_skipped() -> None:
    parser, _ = parsed(INTERIM + CHUNKED)
    assert parser.head is not None
    assert parser.head.status == 200
    assert parser.head.reason == b"OK"
    assert [name for name, _ in parser.head.headers] == [
        b"Content-Type", b"Transfer-Encoding",
    ]  # fmt: skip


def test_a_reply_without_a_length_ends_with_its_connection() -> None:
    parser, body = parsed(OPEN)
    assert (body, parser.is_complete) == (b"onetwo", False)
    assert parser.end()
    assert parser.is_complete
    assert not parser.keeps_alive


@pytest.mark.parametrize("cut", [b"", SIZED[:10], SIZED[:-1], CHUNKED[:-2], INTERIM])
def test_any_other_reply_is_cut_by_the_end_of_its_connection(cut: bytes) -> None:
    parser, _ = parsed(cut)
    assert not parser.end()
    assert parser.has_begun is bool(cut)


@pytest.mark.parametrize("extra", [SIZED, INTERIM, b"HTTP", b"no HTTP\r\n"])
@pytest.mark.parametrize("reply", [CHUNKED, SIZED])
def test_what_follows_a_reply_unasked_is_dropped_with_the_connection(
    reply: bytes, extra: bytes
) -> None:
    parser, body = parsed(reply + extra)
    assert body == b"onetwo"
    assert parser.is_complete
    assert not parser.keeps_alive


@pytest.mark.parametrize("reply", [SIZED, CHUNKED, SIZED[:-6], OPEN])
def test_the_reply_to_head_has_no_body_whatever_it_says(reply: bytes) -> None:
    parser, body = parsed(reply, is_head_request=True)
    assert body == b""
    assert parser.is_complete
    assert not parser.keeps_alive


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (b"SSH-2.0-x\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n"
         b"Connection: upgrade\r\n\r\n", "a switch of protocols"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES, "a head of more than"),
    ],
)  # fmt: skip
def test_what_is_no_fit_reply_is_told(data: bytes, failure: str) -> None:
    assert (ReplyParser().feed(data) or "").startswith(failure)


def test_one_parser_reads_one_reply_after_another() -> None:
    parser = ReplyParser()
    for whole in (CHUNKED, SIZED, CHUNKED):
        pieces: list[bytes] = []
        parser.begin(pieces)
        assert not parser.has_begun
        assert parser.feed(whole) is None
        assert b"".join(pieces) == b"onetwo"
        assert parser.keeps_alive
