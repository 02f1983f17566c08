"""Bytes as a broken or hostile peer would send them: valid ones, spoilt a little."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import strategies as st

HOSTILE = [
    b"NaN", b"-Infinity", b"1e999", b"-1", b"1.5", b"true", b"null", b"{}", b"[]",
    b"9" * 25, b"9" * 5000, b"18446744073709551616", b'"\\ud800"', b"\xff", b"\0",
    b"[" * 2000, b'{"a":' * 300, b"\r", b"\n", b"\r\n\r\n", b"\n\n", b"data: ",
    b"data: [DONE]\n\n", b'"usage":{"completion_tokens":-5},',
    b'"choices":[],"choices":[{}],',
]  # fmt: skip

_VALUE = re.compile(rb'(?<=":)(?:[-.\w]+|"[^"]*")')
"""A number, a word or a text of a JSON object."""


@st.composite
def spoilt(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of `originals` after a few flips, cuts, repeats and other values."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        end = min(len(data), at + draw(st.integers(0, 40)))
        match draw(
            st.sampled_from(["flip", "cut", "repeat", "insert", "replace", "value"])
        ):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "repeat":
                data[at:at] = data[at:end]
            case "insert":
                data[at:at] = draw(st.sampled_from(HOSTILE) | st.binary(max_size=8))
            case "value" if found := list(_VALUE.finditer(data)):
                start, stop = draw(st.sampled_from([match.span() for match in found]))
                data[start:stop] = draw(st.sampled_from(HOSTILE))
            case _:
                data[at:end] = draw(st.sampled_from(HOSTILE))
    return bytes(data)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in reads that end at `cuts`, taken modulo its length."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in pairwise(edges)]
