"""Three proxies of one upstream on one store: each record once, to every reader."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
import pytest
from sqlalchemy import URL

from proxy.store.archive import Archive
from proxy.store.writer import WriterBounds
from tests.support.stored_records import record

ENGINE = "http://engine"
EACH = 120


def next_page(archive: Archive, since: int, limit: int) -> list[dict[str, Any]]:
    lines = asyncio.run(archive.lines(since, limit))
    return [msgspec.json.decode(line) for line in lines.splitlines()]


def ids_after(archive: Archive, since: int, limit: int) -> list[str]:
    """All that a reader gets who asks on from the last cursor."""
    found: list[str] = []
    while page := next_page(archive, since, limit):
        found += [row["request_id"] for row in page]
        since = page[-1]["sequence"]
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_readers_of_proxies_that_share_a_store_miss_nothing(
    url: URL, seed: int
) -> None:
    """Cursors are given in one order and committed in another."""
    chance = random.Random(seed)
    archives = [
        Archive(
            url,
            upstream=ENGINE,
            # nobody writes at the same pace
            bounds=WriterBounds(batch_records=7, batch_seconds=0.001 + 0.02 * number),
        )
        for number in range(3)
    ]
    for number, archive in enumerate(archives):
        archive.start(f"proxy-{number}")
    told: list[list[str]] = [[], [], []]
    since = [0, 0, 0]
    order = [number for number in range(3) for _ in range(EACH)]
    chance.shuffle(order)
    for count, number in enumerate(order):
        archives[number].add([record(count + 1, f"p{number}-{count}")])
        if chance.random() < 0.1:
            page = next_page(archives[number], since[number], chance.randint(1, 20))
            told[number] += [row["request_id"] for row in page]
            since[number] = page[-1]["sequence"] if page else since[number]
    for number, archive in enumerate(archives):
        told[number] += ids_after(archive, since[number], 11)
        archive.stop()
    sent = [f"p{number}-{count}" for count, number in enumerate(order)]
    for number in range(3):
        own = [name for name in told[number] if name.startswith(f"p{number}-")]
        assert own == [name for name in sent if name.startswith(f"p{number}-")]
        assert len(set(told[number])) == len(told[number])
    following = Archive(url, upstream=ENGINE)
    following.start("proxy-0")
    found = ids_after(following, 0, 13)
    following.stop()
    assert sorted(found) == sorted(sent)
