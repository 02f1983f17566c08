"""Prefix blocks of prompts: where in a text its tokens end, without a tokenizer.

The engine says how many tokens a prompt has, and the text how many words. A beginning
that was seen before keeps the tokens it was given then; the tokens left are spread
evenly over the words left. So equal beginnings end in the same blocks whatever follows
them, and a prompt always has as many blocks as its tokens fill. Pure.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proxy.recording.prompts import CHUNK_WORDS, MASK, Prompt

FloatArray = NDArray[np.float64]

BLOCK_TOKENS = 16
"""Of vLLM's own cache."""
MAX_CHUNKS = 2**18
"""Hashes whose tokens are remembered: two million words of distinct text, in 50 MB."""

_STEP = 0x1D8AF066F2D5B5  # odd: another number for every block of one hash


class Blocks:
    """Tokens of beginnings that were seen; those unused for long are forgotten."""

    def __init__(self, max_chunks: int = MAX_CHUNKS) -> None:
        self._max_chunks = max_chunks
        self._ends: dict[int, float] = {}
        """Tokens of a beginning, by its hash."""
        self._older: dict[int, float] = {}
        """Those that were in use before."""

    def ids(
        self, prompt: Prompt, tokens: int, *, remembers: bool = True
    ) -> tuple[list[int], float]:
        """A hash for every block of a prompt, and how many tokens had been seen before.

        Both are of so many `tokens` as the whole prompt has.
        """
        known = self._known(prompt)
        first, begin = len(known), known[-1] if known else 0.0
        words = prompt.words - first * CHUNK_WORDS
        rate = max(0.0, tokens - begin) / words if words else 0.0
        numbers = np.arange(1, len(prompt.chain) - first + 1)
        ends = np.concatenate([np.array(known), begin + rate * CHUNK_WORDS * numbers])
        if remembers:
            self._remember(prompt, ends)
        blocks = np.arange(-(-tokens // BLOCK_TOKENS))
        places = np.searchsorted(ends, (blocks + 1) * BLOCK_TOKENS)
        hashes = np.append(prompt.chain, prompt.tail)[places]
        found: list[int] = ((hashes + blocks * _STEP) & MASK).tolist()
        return found, min(begin, float(tokens))

    def _known(self, prompt: Prompt) -> list[float]:
        ends: list[float] = []
        newer, older = self._ends, self._older
        for each in prompt.chain.tolist():
            end = newer.get(each)
            if end is None:
                end = older.get(each)
                if end is None:
                    break
            ends.append(end)
        return ends

    def _remember(self, prompt: Prompt, ends: FloatArray) -> None:
        if len(self._ends) + len(ends) > self._max_chunks // 2:
            self._older, self._ends = self._ends, {}
        self._ends.update(zip(prompt.chain.tolist(), ends.tolist(), strict=True))
