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
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from proxy.engines.wire import UNREADABLE

CHUNK_WORDS = 8
"""Words of one hash: half a block of prompts whose words are tokens."""
SLICE_BYTES = 4096
"""Cut at once: 0.1 ms in which no other thread runs."""
MAX_DECODED_BYTES = 1024 * 1024
"""Of a longer body the JSON is hashed as it stands: decoding it would hold up the
chunks of others, for 10 ms and more."""

_WORD = re.compile(
    rb" ?[A-Z]?[a-z]{1,16}| ?[A-Z]{1,4}| ?[0-9]{1,3}"
    rb"| ?(?:-{4,32}|={4,32}|#{2,8}|`{3}|\*{2})"
    rb"| ?[^\sA-Za-z0-9\x80-\xff]{1,2}| ?[\x80-\xff]{1,6}|\s+"
)
"""Every byte is in one. Of prose, code and tables a published vocabulary makes 1.0
token of a word, 0.06 of it more or less from text to text."""
_OF_PROMPTS = re.compile(rb'"(?:messages|prompt|inputs|input)"\s*:')
MASK = 2**53 - 1
"""Hashes are integers that every reader of JSON takes."""


class _Body(msgspec.Struct, gc=False):
    """The fields in which a prompt may be, and a client's own name of its session."""

    tools: Any = None
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
    chain: array[int]
    """Hash of all words up to each eighth one."""
    tail: int
    """Hash of all words."""
    messages: tuple[int, ...] = ()
    """Hash of each message and all before it; of one that cannot be continued none."""
    session_key: str | None = None
    """OpenAI's own hint of what belongs together."""
    rest: bytes = field(default=b"", repr=False)
    """Words after the last hash, which one with a reply goes on from."""
    before: bytes = b""
    """The last hash, whole."""
    is_text: bool = False
    """One text, and no messages."""

    @property
    def beginnings(self) -> Sequence[int]:
        """Hashes by which an earlier prompt and its reply may be known, in order."""
        return self.chain if self.is_text else self.messages[:-1]


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
        before_bytes = prompt.before
        held: list[bytes] = []
        last: int | None = None
        for words in _words(b"", memoryview(prompt.rest + said)):
            held += words
            while len(held) >= CHUNK_WORDS:
                before_bytes = self._chained(before_bytes, held[:CHUNK_WORDS])
                last = int.from_bytes(before_bytes, "big") & MASK
                del held[:CHUNK_WORDS]
        return last

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
        chain, count = array("Q"), 0
        held: list[bytes] = []
        before = self._chained(seed, [])
        for role, text in texts:
            for words in _words(role, text):
                count += len(words)
                held += words
                at, end = 0, len(held) - CHUNK_WORDS
                while at <= end:
                    before = self._chained(before, held[at : at + CHUNK_WORDS])
                    chain.append(int.from_bytes(before, "big") & MASK)
                    at += CHUNK_WORDS
                del held[:at]
        rest = b"".join(held)
        is_text = len(texts) == 1 and texts[0][0] in (b"prompt", b"inputs")
        return Prompt(
            count, chain, self.digest(before, rest), messages, session_key,
            rest, before, is_text,
        )  # fmt: skip

    def _chained(self, before: bytes, words: list[bytes]) -> bytes:
        data = before + b"".join(words)
        return blake2b(data, key=self._key, digest_size=8).digest()


def _words(role: bytes, text: memoryview) -> Iterator[list[bytes]]:
    """The words of one text in slices; its first one carries whose text it is."""
    at, mark = 0, role and b"\0" + role + b"\0"
    while at < len(text):
        data = bytes(text[at : at + SLICE_BYTES])
        if at + SLICE_BYTES < len(text):  # no word is cut but one longer than a slice
            cut = max(data.rfind(b" "), data.rfind(b"\n"))
            data = data[:cut] if cut > 0 else data
        at += len(data)
        words = _WORD.findall(data)
        if words:
            if mark:
                words[0] = mark + words[0]
                mark = b""
            yield words


def _texts(body: _Body) -> Iterator[tuple[bytes, bytes]]:
    """Role and text of each part of a prompt, in the order in which engines have it."""
    if body.tools:
        yield b"tools", _encode(body.tools)
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
