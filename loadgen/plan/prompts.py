"""Text for turns that carry only a length: seeded, distinct, exactly N words.

Words are short and common: with a space before it each is one token in cl100k, o200k,
p50k and Claude's published vocabulary (looked up), and any word is one in the
simulator. Two requests never share a prefix by accident, or an engine's prefix cache
would hide their prefill; blocks with the same hash id are the same text, because the
trace marks them as shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

DEFAULT_BLOCK_TOKENS = 512

_WORDS = """
the of and to in is was for that on with as by at from his her they are this have had
not but what all were when your can said there use each which she how their will other
about out many then them these some would make like him into time has look two more
write see number way could people my than first water been call who oil its now find
long down day did get come made may part over new sound take only little work know
place year live me back give most very after thing our just name good man think say
great where help through much before line right too mean old any same tell boy follow
came want show also around form three small set put end does another well large must
big even such because turn here why ask went men read need land different home us move
try kind hand picture again change off play air away animal house point page letter
mother answer found study still learn should world high every near add food between own
below country plant last school father keep tree never start city earth eye light
thought head under story saw left few while along might close something seem next hard
open example begin life always those both paper together got group often run important
until children side feet car mile night walk white sea began grow took river four carry
state once book hear stop without second late miss idea enough eat face watch far really
almost let above girl sometimes mountain cut young talk soon list song being leave
family body music color stand sun question fish area mark dog horse birds problem
complete room knew since ever piece told usually friends easy heard order red door sure
become top ship across today during short better best however low hours black products
happened whole measure remember early waves reached listen wind rock space covered fast
several hold himself toward five step morning passed true hundred against pattern table
north slow money map farm pulled draw voice seen cold cried plan notice south sing war
ground fall king town unit figure certain field travel wood fire upon done english road
half ten fly gave box finally wait correct quickly person became shown minutes strong
verb stars front feel fact street decided contain course surface produce building ocean
class note nothing rest carefully scientists inside wheels stay green known island week
less machine base ago stood plane system behind ran round boat game force brought
understand warm common bring explain dry though language shape deep thousands yes clear
equation yet government filled heat full hot check object am rule among noun power
cannot able six size dark ball material special heavy fine pair circle include built
"""

WORDS = tuple(dict.fromkeys(_WORDS.split()))
"""The vocabulary, each word once."""


def prompt_text(
    seed: int,
    request_id: str,
    tokens: int,
    hash_ids: Sequence[int] = (),
    block_size: int = DEFAULT_BLOCK_TOKENS,
) -> str:
    """Exactly `tokens` words for one request, the same on every machine.

    The text of a hash id depends on the id and the seed alone; what the ids do not
    cover depends on the request id. A last, partial block is the block's start.
    Raises ValueError for `tokens` below 1 or a `block_size` below 1.
    """
    if tokens < 1 or block_size < 1:
        raise ValueError(f"{tokens} tokens in blocks of {block_size}: expected >= 1")
    words: list[str] = []
    for hash_id in hash_ids:
        needed = min(block_size, tokens - len(words))
        if needed <= 0:
            break
        words += _draw(f"{seed}/block/{hash_id}", block_size)[:needed]
    if len(words) < tokens:
        words += _draw(f"{seed}/request/{request_id}", tokens - len(words))
    return " ".join(words)


def _draw(key: str, size: int) -> list[str]:
    """Words drawn for a key; blake2 and not `hash()`, which changes by process."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))
    places = generator.integers(0, len(WORDS), size)
    return [WORDS[place] for place in places.tolist()]
