"""The recorded replies in tests/captures, taken apart for tests."""

from __future__ import annotations

from tests.support.paths import ROOT

CAPTURES = ROOT / "tests" / "captures"
STREAMS = sorted(CAPTURES.glob("*_stream*.txt"))


def reply_head_and_body(name: str) -> tuple[bytes, bytes]:
    """Head (with its blank line) and raw body of a one-reply capture, `name.txt`.

    The line that marks where chunks were cut out is removed.
    """
    raw = (CAPTURES / f"{name}.txt").read_bytes()
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = body.split(b"\n")
    body = b"\n".join(line for line in lines if not line.startswith(b"....."))
    return head + b"\r\n\r\n", body


def stream_body(name: str) -> bytes:
    """The SSE bytes of a streamed capture, without HTTP chunk framing."""
    rest = reply_head_and_body(name)[1]
    body = b""
    while rest:
        size_line, _, rest = rest.partition(b"\r\n")
        size = int(size_line, 16)
        body, rest = body + rest[:size], rest[size + 2 :]
    return body


def joined_replies(name: str) -> dict[str, tuple[int, dict[str, str], bytes]]:
    """Title -> status, headers (lower case), body of a `=====` capture."""
    replies = {}
    text = (CAPTURES / f"{name}.txt").read_bytes()
    for part in text.split(b"===== ")[1:]:
        title, _, reply = part.partition(b"\n")
        head, _, body = reply.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        status = int(first.split(" ")[1])
        replies[title.decode()] = (status, headers, body.rstrip(b"\n"))
    return replies
