"""A prompt as what may be kept of it: hashes under a secret, and counts of words.

The texts of a request's body are read in their order: tools, instructions, messages
or prompt. They are cut into words much as tokenizers begin: letters up to a change of
case, three digits, two marks, six bytes of any other script, with the blank before
them; and every eight words give a hash of all that came before. Two prompts with an
equal beginning so have equal hashes as far as their eights of words agree; nothing of
a text can be learnt from a hash without the secret. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from proxy.engines.wire import UNREADABLE

IntArray = NDArray[np.int64]

CHUNK_WORDS = 8
"""Words of one hash: half a block of prompts whose words are tokens."""
SLICE_BYTES = 64 * 1024
"""Cut at once: 0.1 ms in which no other thread runs."""
MAX_DECODED_BYTES = 1024 * 1024
"""Of a longer body the JSON is hashed as it stands: decoding it would hold up the
chunks of others, for 10 ms and more."""

_OF_PROMPTS = re.compile(rb'"(?:messages|prompt|inputs|input)"\s*:')
MASK = 2**53 - 1
"""Hashes are integers that every reader of JSON takes."""

_BLANK, _LOWER, _UPPER, _DIGIT, _MARK, _HIGH = range(6)
_KINDS = np.full(256, _MARK, dtype=np.uint8)
_KINDS[list(b" \t\r\n\v\f")] = _BLANK
_KINDS[ord("a") : ord("z") + 1] = _LOWER
_KINDS[ord("A") : ord("Z") + 1] = _UPPER
_KINDS[ord("0") : ord("9") + 1] = _DIGIT
_KINDS[0x80:] = _HIGH
_MAX_BYTES = np.array([64, 16, 4, 3, 2, 6])
"""Of a word by its kind. Of prose, code and tables a published vocabulary makes 1.0
token of a word, and 0.06 of it more or less from text to text."""


class _Body(msgspec.Struct, gc=False):
    """The fields in which a prompt may be, and a client's own name of its session."""

    tools: msgspec.Raw = msgspec.Raw()
    instructions: Any = None
    system: Any = None
    messages: Any = None
    prompt: Any = None
    inputs: Any = None
    input: Any = None
    prompt_cache_key: Any = None


_decode = msgspec.json.Decoder(_Body).decode
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is kept of one prompt."""

    words: int
    chain: IntArray
    """Hash of all words up to each eighth one."""
    tail: int
    """Hash of all words."""
    messages: tuple[int, ...] = ()
    """Hash of each message and all before it; of one that cannot be continued none."""
    session_key: str | None = None
    """OpenAI's own hint of what belongs together."""
    rest: bytes = field(default=b"", repr=False)
    """Words after the last hash, which one with a reply goes on from."""
    before: bytes = field(default=b"", repr=False)
    """The last hash, whole."""
    is_text: bool = False
    """One text, and no messages."""

    @property
    def beginnings(self) -> Sequence[int]:
        """Hashes by which an earlier prompt and its reply may be known, in order."""
        return self.chain.tolist() if self.is_text else self.messages[:-1]


class PromptReader:
    """Prompts of bodies, hashed under one secret."""

    def __init__(self, key: bytes) -> None:
        self._key = blake2b(key, digest_size=32).digest()

    def digest(self, *parts: bytes) -> int:
        """Hash of some bytes under the secret, 53 bits."""
        hashed = blake2b(key=self._key, digest_size=8)
        for part in parts:
            hashed.update(len(part).to_bytes(8, "big"))
            hashed.update(part)
        return int.from_bytes(hashed.digest(), "big") & MASK

    def read(self, model: str, body: bytes | bytearray) -> Prompt:
        """The prompt of a request's body; of one that cannot be read, its bytes."""
        seed = model.encode("utf-8", "replace")
        if len(body) > MAX_DECODED_BYTES:
            begin = _OF_PROMPTS.search(body[: 64 * 1024])
            data = memoryview(body)[0 if begin is None else begin.start() :]
            return self._hashed(seed, [(b"json", data)], ())
        try:
            fields = _decode(body)
        except UNREADABLE:
            return self._hashed(seed, [(b"json", memoryview(body))], ())
        texts = list(_texts(fields))
        session_key = fields.prompt_cache_key
        return self._hashed(
            seed,
            [(role, memoryview(text)) for role, text in texts],
            self._conversation(seed, texts),
            session_key if isinstance(session_key, str) and session_key else None,
        )

    def with_reply(self, prompt: Prompt, reply: str) -> int | None:
        """Hash of a prompt and its reply, by which one that begins so is known.

        Of a text, as far as its eights of words go; None where no reply is in those.
        """
        said = reply.encode("utf-8", "replace")
        if not prompt.is_text:
            before = prompt.messages[-1] if prompt.messages else None
            return None if before is None else self._after(before, b"assistant", said)
        chunks = _Chunks(self._key, prompt.before)
        chunks.add(b"", memoryview(prompt.rest + said))
        return chunks.last

    def _conversation(
        self, seed: bytes, texts: list[tuple[bytes, bytes]]
    ) -> tuple[int, ...]:
        found: list[int] = []
        before = self.digest(seed)
        for role, text in texts:
            before = self._after(before, role, text)
            found.append(before)
        return tuple(found)

    def _after(self, before: int, role: bytes, text: bytes) -> int:
        # clients keep replies without the blanks around them
        return self.digest(before.to_bytes(8, "big"), role, text.strip())

    def _hashed(
        self,
        seed: bytes,
        texts: list[tuple[bytes, memoryview]],
        messages: tuple[int, ...],
        session_key: str | None = None,
    ) -> Prompt:
        # the first role is in the seed, so that the words of a text are its own
        chunks = _Chunks(self._key, seed + b"\0" + texts[0][0] if texts else seed)
        for number, (role, text) in enumerate(texts):
            chunks.add(role if number else b"", text)
        is_text = len(texts) == 1 and texts[0][0] in (b"prompt", b"inputs")
        return Prompt(
            chunks.words, chunks.chain(), self.digest(chunks.before, chunks.rest),
            messages, session_key, chunks.rest, chunks.before, is_text,
        )  # fmt: skip


class _Chunks:
    """Eights of words, each hashed with all before it."""

    def __init__(self, key: bytes, before: bytes) -> None:
        self._key = key
        self.before = before
        self.words = 0
        self.rest = b""
        """Words after the last hash."""
        self._rest_words = 0
        self._hashes: list[bytes] = []

    def add(self, role: bytes, text: memoryview) -> None:
        """One text; `role` goes into the hash that its first word is in."""
        mark = role and b"\0" + role + b"\0"
        at = 0
        while at < len(text):
            data = bytes(text[at : at + SLICE_BYTES])
            if at + SLICE_BYTES < len(text):  # a slice ends where a word does
                cut = max(data.rfind(b" "), data.rfind(b"\n"))
                data = data[:cut] if cut > 0 else data
            at += len(data)
            self._add(mark, data)
            mark = b""

    def chain(self) -> IntArray:
        """The hashes so far."""
        found = np.frombuffer(b"".join(self._hashes), dtype=">u8")
        return np.asarray(found & MASK, dtype=np.int64)

    @property
    def last(self) -> int | None:
        """The last hash; None where there is none."""
        return int.from_bytes(self._hashes[-1], "big") & MASK if self._hashes else None

    def _add(self, mark: bytes, data: bytes) -> None:
        starts = _word_starts(data)
        self.words += len(starts)
        needed = CHUNK_WORDS - self._rest_words
        if len(starts) < needed:
            self.rest += mark + data
            self._rest_words += len(starts)
            return
        ends: list[int] = starts[needed::CHUNK_WORDS].tolist()
        self._rest_words = (len(starts) - needed) % CHUNK_WORDS
        if not self._rest_words:
            ends.append(len(data))
        key, before, begin, held = self._key, self.before, 0, self.rest + mark
        for end in ends:
            # the secret first: nobody without it can try a text
            hashed = blake2b(key + before + held + data[begin:end], digest_size=8)
            before = hashed.digest()
            self._hashes.append(before)
            begin, held = end, b""
        self.before, self.rest = before, data[begin:]


def _word_starts(data: bytes) -> IntArray:
    """Where in a text its words begin; what stands before the first one is in it."""
    size = len(data)
    if not size:
        return np.zeros(0, dtype=np.int64)
    given = np.frombuffer(data, dtype=np.uint8)
    kind = _KINDS[given]
    place = np.arange(size)
    is_start = np.ones(size, dtype=np.bool_)
    before, now = kind[:-1], kind[1:]
    is_start[1:] = (before != now) & ~((before == _UPPER) & (now == _LOWER))
    # of capitals the last one belongs to the small letters after it
    is_start[1:-1] |= (now[:-1] == _UPPER) & (now[1:] == _LOWER)
    # one space belongs to what follows it
    is_space = is_start[:-1] & (given[:-1] == 0x20) & (now != _BLANK)
    is_start[1:] &= ~is_space
    within = place - np.maximum.accumulate(np.where(is_start, place, 0))
    is_full = (within > 0) & (within % _MAX_BYTES[kind] == 0)
    # a line of equal marks is one word
    is_full[1:] &= (kind[1:] != _MARK) | (given[1:] != given[:-1])
    return np.flatnonzero(is_start | is_full)


def _texts(body: _Body) -> Iterator[tuple[bytes, bytes]]:
    """Role and text of each part of a prompt, in the order in which engines have it."""
    if len(tools := bytes(body.tools)) > len(b"null"):
        yield b"tools", tools
    for said in (body.instructions, body.system):
        if said:
            yield b"system", _text(said)
    for name, value in (
        (b"messages", body.messages), (b"prompt", body.prompt),
        (b"inputs", body.inputs), (b"input", body.input),
    ):  # fmt: skip
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            for each in value:
                role = each.get("role") if isinstance(each, dict) else None
                role = role if isinstance(role, str) else "item"
                content = each.get("content") if isinstance(each, dict) else each
                yield role.encode("utf-8", "replace"), _text(content)
        elif value is not None:
            yield name, _text(value)


def _text(content: Any) -> bytes:
    """The text of a content; of parts that are none, their JSON."""
    if isinstance(content, str):
        return content.encode("utf-8", "replace")
    if content is None:
        return b""
    if isinstance(content, list):
        return b"\n".join(
            _text(part["text"])
            if isinstance(part, dict) and isinstance(part.get("text"), str)
            else _encode(part)
            for part in content
        )
    return _encode(content)
