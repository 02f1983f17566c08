"""How exactly a recording knows which tokens two prompts share, by a real tokenizer.

    pip install tokenizers
    python benchmarks/recording_sharing.py tokenizer.json TEXT... [--pairs 2000]

A recording sees texts and each prompt's number of tokens, and no tokenizer. Here pairs
of prompts are cut from the texts (any files: prose, code), which begin alike and go on
differently; TOKENIZER says how many tokens each has and how many they truly share.
What the blocks of the recording share is set against the full blocks of that.
"""

from __future__ import annotations

import argparse
import random
from itertools import takewhile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from proxy.recording.blocks import BLOCK_TOKENS, Blocks
from proxy.recording.prompts import PromptReader


def common(one: list[int], other: list[int]) -> int:
    """How many both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tokenizer")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(options.tokenizer)
    texts = [path.read_text() for path in options.texts]
    draw, reader = random.Random(options.seed), PromptReader(b"secret")

    def cut(least: int, most: int) -> str:
        text = draw.choice(texts)
        size = round(least * (most / least) ** draw.random())
        begin = draw.randrange(max(1, len(text) - size))
        return str(text[begin : begin + size])

    true_tokens, errors = [], []
    for _ in range(options.pairs):
        shared = cut(200, 40_000)
        blocks, ids, tokens = Blocks(), [], []
        for _ in range(2):
            text = shared + "\n" + cut(50, 8000)
            tokens.append(tokenizer.encode(text).ids)
            body = reader.read("m", _body(text))
            ids.append(blocks.ids(body, len(tokens[-1]))[0])
        full = common(*tokens) // BLOCK_TOKENS
        true_tokens.append(full * BLOCK_TOKENS)
        errors.append((common(*ids) - full) * BLOCK_TOKENS)
    error, true = np.array(errors), np.array(true_tokens)
    size = np.abs(error)
    print(f"{options.pairs} pairs, shared tokens {true.min()} to {true.max()}, "
          f"median {np.median(true):.0f}")  # fmt: skip
    print(f"within one block of {BLOCK_TOKENS}: {np.mean(size <= BLOCK_TOKENS):.1%}")
    print(f"error in tokens: mean {error.mean():+.1f}, median {np.median(size):.0f}, "
          f"p90 {np.percentile(size, 90):.0f}, largest {size.max()}")  # fmt: skip
    relative = size / np.maximum(true, BLOCK_TOKENS)
    print(f"of the shared tokens: median {np.median(relative):.2%}, "
          f"p90 {np.percentile(relative, 90):.2%}")  # fmt: skip


def _body(text: str) -> bytes:
    import msgspec

    return msgspec.json.encode({"messages": [{"role": "user", "content": text}]})


if __name__ == "__main__":
    main()
