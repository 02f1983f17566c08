"""The simulator's tokenizer and its replies: one word is one token.

A prompt has as many tokens as whitespace-separated words, a chat template adds
none, and a reply of N tokens is N words. Everything random follows a seed and a
request id, so it does not depend on the order in which requests arrive.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import log
from random import Random

from loadgen.simulator.core.config import BLOCK_TOKENS

COMMON = """
the time year people way day man thing woman life child world school state family
student group country problem hand part place case week company system program
question work number night point home water room mother area money story fact month
lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city
"""
WORDS = COMMON.split()

MEDIAN_REPLY_TOKENS = 180
REPLY_SIGMA = 0.9
"""Sigma of the log-normal length of a reply that may stop by itself (assumed, about
the spread of public chat traces)."""


def words_of(text: str) -> list[str]:
    """The tokens of a text."""
    return text.split()


def reply_words(seed: int, request_id: str, index: int, count: int) -> list[str]:
    """The tokens of the reply number `index` to a request."""
    return _random(seed, f"{request_id}/{index}").choices(WORDS, k=count)


def drawn_tokens(seed: int, request_id: str, least: int, most: int) -> int:
    """Length of a reply that may stop by itself, from `least` to `most` tokens."""
    random = _random(seed, f"{request_id}/length")
    drawn = random.lognormvariate(log(MEDIAN_REPLY_TOKENS), REPLY_SIGMA)
    return max(least, min(most, 1 + int(drawn)))


def block_hashes(words: Sequence[str]) -> tuple[int, ...]:
    """Chain hashes of the full blocks of 16 tokens, each covering all before it."""
    chain = blake2b(digest_size=8)
    hashes = []
    for start in range(0, len(words) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        chain.update(" ".join(words[start : start + BLOCK_TOKENS]).encode() + b"\n")
        hashes.append(int.from_bytes(chain.digest(), "big"))
    return tuple(hashes)


def _random(seed: int, key: str) -> Random:
    digest = blake2b(f"{seed}/{key}".encode("utf-8", "replace"), digest_size=8)
    return Random(int.from_bytes(digest.digest(), "big"))
