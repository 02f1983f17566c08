"""Silence is counted in turns of whoever listens: no time that passes kills anybody."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.serve.heartbeat import BEAT, Silence, beat

TURNS = st.integers(1, 90)


@given(limit=TURNS, words=st.lists(st.booleans(), max_size=300))
def test_who_speaks_within_the_limit_lives_and_who_does_not_is_told_once(
    limit: int, words: list[bool]
) -> None:
    """A word or none before each turn; the first turn that is too many is told."""
    silence, silent, told = Silence(limit), 0, []
    for turn, is_heard in enumerate(words):
        if is_heard:
            silence.heard()
            silent = 0
        silent += 1
        assert silence.turn() == (silent == limit)
        if silent == limit:
            told.append(turn)
    assert len(told) <= len(words) // limit


@pytest.mark.parametrize("stopped_seconds", [5, 3600, 10**6])
def test_a_host_that_slept_kills_nobody(stopped_seconds: int) -> None:
    """All were stopped: one turn is due when it wakes, however long it slept."""
    silence, clock = Silence(60), 0
    for _ in range(1000):
        clock += 1
        silence.heard()
        assert not silence.turn()
    clock += stopped_seconds
    assert not silence.turn()
    silence.heard()
    assert not any(silence.turn() for _ in range(59))


def test_a_beat_never_waits_for_who_listens_and_ends_with_him() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    full = 0
    try:
        while True:
            full += os.write(writer, b"x" * 4096)
    except BlockingIOError:
        assert full

    async def once() -> None:
        saying = asyncio.create_task(beat(writer))
        await asyncio.sleep(0)
        assert not saying.done()  # nobody reads: it is left out
        saying.cancel()
        os.read(reader, full)
        saying = asyncio.create_task(beat(writer))
        await asyncio.sleep(0)
        saying.cancel()
        assert os.read(reader, 10) == BEAT
        os.close(reader)
        await asyncio.wait_for(beat(writer), 1)

    asyncio.run(once())
    os.close(writer)
