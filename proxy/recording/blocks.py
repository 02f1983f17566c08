"""Prefix blocks of prompts: where in a text its tokens end, without a tokenizer.

The engine says how many tokens a prompt has, and the text how many words. A beginning
that was seen before keeps the tokens it was given then; the tokens left are spread
evenly over the words left. So equal beginnings end in the same blocks whatever follows
them, and a prompt always has as many blocks as its tokens fill. Pure.
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.recording.prompts import CHUNK_WORDS, MASK, Prompt

BLOCK_TOKENS = 16
"""Of vLLM's own cache."""
MAX_CHUNKS = 2**18
"""Hashes whose tokens are remembered: two million words of distinct text, in 50 MB."""

_STEP = 0x1D8AF066F2D5B5  # odd: another number for every block of one hash


class Blocks:
    """What is known of the tokens of beginnings, the oldest unused one goes first."""

    def __init__(self, max_chunks: int = MAX_CHUNKS) -> None:
        self._max_chunks = max_chunks
        self._ends: OrderedDict[int, float] = OrderedDict()
        """Tokens of a beginning, by its hash."""

    def shared_tokens(self, prompt: Prompt) -> float:
        """Tokens of the longest beginning that was seen before."""
        known = self._known(prompt)
        return known[-1] if known else 0.0

    def ids(self, prompt: Prompt, tokens: int, *, remembers: bool = True) -> list[int]:
        """A hash for every block of a prompt of so many tokens."""
        chain = prompt.chain
        ends = self._known(prompt)
        first, begin = len(ends), ends[-1] if ends else 0.0
        words = prompt.words - first * CHUNK_WORDS
        rate = max(0.0, tokens - begin) / words if words else 0.0
        ends += [
            begin + rate * CHUNK_WORDS * number
            for number in range(1, len(chain) - first + 1)
        ]
        if remembers:
            self._remember(prompt, ends)
        found: list[int] = []
        at = 0
        for block in range(-(-tokens // BLOCK_TOKENS)):
            end = (block + 1) * BLOCK_TOKENS
            while at < len(ends) and ends[at] < end:
                at += 1
            base = chain[at] if at < len(ends) else prompt.tail
            found.append((base + block * _STEP) & MASK)
        return found

    def _known(self, prompt: Prompt) -> list[float]:
        ends: list[float] = []
        for each in prompt.chain:
            end = self._ends.get(each)
            if end is None:
                break
            ends.append(end)
        return ends

    def _remember(self, prompt: Prompt, ends: list[float]) -> None:
        """The beginning last: without it no other is found."""
        known = self._ends
        for each, end in zip(reversed(prompt.chain), reversed(ends), strict=True):
            known[each] = end
            known.move_to_end(each)
        while len(known) > self._max_chunks:
            known.popitem(last=False)
