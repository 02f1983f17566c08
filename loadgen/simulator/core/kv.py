"""KV cache blocks: who holds them, and which are kept for a shared prefix.

A block is private (held by one request), shared (published under its chain hash,
held by one or more), kept (published, held by nobody, least recently used goes
first) or free. A published block's hash covers everything before it, so equal
hashes mean equal prefixes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """All blocks of one engine. Blocks are counted, not numbered."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = capacity
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be taken now, evicting kept ones if need be."""
        return self._free + len(self._kept)

    @property
    def used_fraction(self) -> float:
        """Held by requests, 0..1; kept blocks count as unused, as vLLM does."""
        return 1.0 - self.available / self.capacity

    def take(self, count: int) -> bool:
        """Make `count` private blocks, or none and False if they are not there."""
        if count > self.available:
            return False
        self._free -= count
        while self._free < 0:
            self._kept.popitem(last=False)
            self._free += 1
        return True

    def matched(self, hashes: Sequence[int], limit: int) -> int:
        """How many leading blocks of a chain are published, at most `limit`."""
        for index in range(min(limit, len(hashes))):
            if hashes[index] not in self._holders and hashes[index] not in self._kept:
                return index
        return min(limit, len(hashes))

    def hold(self, hashes: Sequence[int]) -> None:
        """Hold published blocks, so that they cannot be evicted."""
        for block_hash in hashes:
            if block_hash in self._kept:
                del self._kept[block_hash]
                self._holders[block_hash] = 1
            else:
                self._holders[block_hash] += 1

    def publish(self, block_hash: int) -> bool:
        """Turn one private block into a shared one, held by its owner.

        False where the same content is published already: the block stays private.
        """
        if block_hash in self._holders or block_hash in self._kept:
            return False
        self._holders[block_hash] = 1
        return True

    def release(self, private: int, held: Sequence[int]) -> None:
        """Give back a request's blocks; shared ones nobody holds are kept.

        The end of a chain is released first and so evicted first: a prefix is
        worth more than what follows it.
        """
        self._free += private
        for block_hash in reversed(held):
            self._holders[block_hash] -= 1
            if not self._holders[block_hash]:
                del self._holders[block_hash]
                self._kept[block_hash] = None
