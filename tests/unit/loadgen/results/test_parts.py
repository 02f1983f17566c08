"""Several processes' records: every sharding of the same records is the same file."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.analysis.tally import RunWindow, Tally
from loadgen.errors import LoadgenError
from loadgen.results.measures import MEASURES
from loadgen.results.parts import (
    Copy,
    Part,
    Piece,
    PieceGap,
    Tail,
    lines_by_end,
    order_by_end,
)
from loadgen.results.recorder import Recorder, read_results
from loadgen.results.results import Result

INSTANTS = st.integers(0, 40).map(lambda n: n / 8)
"""Few and coarse: many requests end at the same instant."""


def record(number: int, planned: float, waited: float, took: float) -> Result:
    sent = planned + waited
    return Result(
        request_id=f"r{number}",
        session_id=f"s{number}",
        turn=0,
        kind="code" if number % 3 else "conversation",
        planned_seconds=planned,
        sent_seconds=sent,
        first_token_seconds=sent + took / 2,
        last_token_seconds=sent + took,
        finished_seconds=sent + took,
        prompt_tokens=10 + number,
        output_tokens=2,
        chunk_seconds=[sent + took / 2, sent + took],
        chunk_tokens=[1, 1],
        outcome="ok" if number % 7 else "error",
    )


RECORDS = st.lists(st.tuples(INSTANTS, INSTANTS, INSTANTS), max_size=40).map(
    lambda rows: [record(number, *row) for number, row in enumerate(rows)]
)


def merged(folder: Path, records: list[Result], owners: list[int], seed: int) -> Path:
    """As several processes write it: parts read while they grow, at any moment."""
    moments = random.Random(seed)
    paths = [
        folder / f"part-{owner}.jsonl" for owner in range(max(owners, default=0) + 1)
    ]
    parts, tails = [Recorder(path) for path in paths], [Tail(path) for path in paths]
    whole = folder / "requests.jsonl"
    with Recorder(whole) as out:

        def take() -> None:
            for tail in tails:
                while lines := tail.lines():
                    for line in lines:
                        out.append(line)

        for result, owner in zip(records, owners, strict=True):
            parts[owner].record(result)
            if moments.random() < 0.3:
                take()
        take()
    for part in parts:
        part.close()
    for tail in tails:
        tail.close()
    order_by_end(whole)
    return whole


@given(records=RECORDS, data=st.data())
def test_every_sharding_of_the_same_records_is_the_same_file(
    tmp_path_factory: pytest.TempPathFactory, records: list[Result], data: st.DataObject
) -> None:
    count = len(records)
    owners = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    seed = data.draw(st.integers(0, 99))
    one = merged(tmp_path_factory.mktemp("one"), records, [0] * count, seed)
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    several = merged(tmp_path_factory.mktemp("several"), shuffled, owners, seed)
    assert several.read_bytes() == one.read_bytes()
    ends = [result.finished_seconds for result in read_results(several)]
    assert ends == sorted(ends)
    assert len(ends) == count


@given(records=RECORDS, data=st.data())
def test_a_run_cut_off_at_any_moment_has_each_record_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, records: list[Result], data: st.DataObject
) -> None:
    """Any of them in the one file, as joules were joined to it, all in the parts."""
    count = len(records)
    owners = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    taken = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    tails = data.draw(st.lists(st.binary(max_size=9), min_size=6, max_size=6))
    folder = tmp_path_factory.mktemp("cut")
    paths = [folder / "whole", *(folder / f"part-{owner}" for owner in range(5))]
    lines: list[list[bytes]] = [[] for _ in paths]
    expected = []
    for result, owner, is_taken in zip(records, owners, taken, strict=True):
        lines[1 + owner].append(msgspec.json.encode(result) + b"\n")
        if is_taken:
            result = msgspec.structs.replace(result, error="joined")
            lines[0].append(msgspec.json.encode(result) + b"\n")
        expected.append((result.finished_seconds, msgspec.json.encode(result) + b"\n"))
    for path, some, tail in zip(paths, lines, tails, strict=True):
        path.write_bytes(b"".join(some) + tail.replace(b"\n", b""))
    found = list(lines_by_end(paths))
    assert found == [line for _, line in sorted(expected)]


def test_a_part_that_is_no_part_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "requests-2.jsonl"
    path.write_bytes(msgspec.json.encode(record(1, 1, 1, 1)) + b"\n[]\n")
    with pytest.raises(LoadgenError, match=r"requests-2\.jsonl, line 2: not a request"):
        list(lines_by_end([path]))
    with pytest.raises(LoadgenError, match="cannot merge the records in"):
        list(lines_by_end([tmp_path / "gone"]))


@given(records=RECORDS, seed=st.integers(0, 99))
def test_percentiles_are_bit_for_bit_those_of_one_process_before_any_order(
    records: list[Result], seed: int
) -> None:
    shuffled = list(records)
    random.Random(seed).shuffle(shuffled)
    one = Tally(RunWindow(), {}).add_all(records)
    several = Tally(RunWindow(), {}).add_all(shuffled)
    for name in MEASURES:
        percents = (0, 50, 90, 95, 99, 100)
        assert several.measures[name].percentiles(*percents) == one.measures[
            name
        ].percentiles(*percents)
    assert several.lag.percentiles(99) == one.lag.percentiles(99)


def test_a_line_is_given_once_and_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    tail = Tail(path)
    assert list(tail.lines()) == []  # not made yet
    with path.open("wb", buffering=0) as file:
        file.write(b'{"a": 1}\n{"b"')
        assert list(tail.lines()) == [b'{"a": 1}\n']
        assert list(tail.lines()) == []
        file.write(b": 2}\n")
        assert list(tail.lines()) == [b'{"b": 2}\n']
        file.write(b'{"c": 3}')  # its writer was killed within it
    assert list(tail.lines()) == []
    tail.close()


def test_much_is_given_by_and_by_and_a_long_line_whole(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    lines = [b"%d " % n + b"x" * 3_000_000 * (n % 2) + b"\n" for n in range(6)]
    path.write_bytes(b"".join(lines))
    tail = Tail(path)
    found = []
    while some := tail.lines():
        found.append(some)
    tail.close()
    assert [line for some in found for line in some] == lines
    assert len(found) > 1


def test_what_is_no_record_names_the_part(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    tail = Tail(path)
    with pytest.raises(LoadgenError, match=r"part\.jsonl: not a request record"):
        list(tail.results())
    tail.close()


def test_a_part_knows_how_late_each_of_its_requests_was() -> None:
    part = Part(number=1)
    part.add(record(1, 1.0, 0.25, 1.0))
    part.add(msgspec.structs.replace(record(2, 2.0, 0, 1), sent_seconds=None))
    assert list(part.planned_seconds) == [1.0, 2.0]
    assert part.lag_seconds[0] == 0.25
    assert part.lag_seconds[1] != part.lag_seconds[1]  # NaN: it was never sent


# -- pieces of a part that come from another host --------------------------------

CONTENT = st.binary(max_size=60)


@given(content=CONTENT, seed=st.integers(0, 2**16), size=st.integers(1, 9))
def test_pieces_that_come_again_count_once(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, seed: int, size: int
) -> None:
    """A sender that repeats and goes back, and a reader that is killed at any time."""
    moments = random.Random(seed)
    path = tmp_path_factory.mktemp("copy") / "part.jsonl"
    copy, offset = Copy(path), 0
    while copy.size < len(content):
        data = content[offset : offset + moments.randint(1, size)]
        for _ in range(moments.choice([1, 1, 2])):
            copy.add(Piece(offset=offset, data=data))
        offset += len(data)
        if moments.random() < 0.2:
            offset = moments.randint(0, offset)
        if moments.random() < 0.2:
            copy.close()
            copy = Copy(path)
    copy.close()
    assert path.read_bytes() == content


@given(
    content=CONTENT, cut=st.integers(0, 60), begin=st.integers(0, 60),
    length=st.integers(0, 60),
)  # fmt: skip
def test_any_piece_is_refused_or_leaves_a_beginning_of_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    content: bytes,
    cut: int,
    begin: int,
    length: int,
) -> None:
    path = tmp_path_factory.mktemp("copy") / "part.jsonl"
    path.write_bytes(content[:cut])
    copy, known = Copy(path), len(content[:cut])
    begin = min(begin, len(content))
    piece = Piece(offset=begin, data=content[begin : begin + length])
    if begin > known:
        with pytest.raises(PieceGap, match=f"{begin - known} bytes are missing before"):
            copy.add(piece)
    else:
        copy.add(piece)
        known = max(known, begin + len(piece.data))
    copy.close()
    assert path.read_bytes() == content[:known]
    assert copy.size == known


def test_a_part_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "part.jsonl"
    with pytest.raises(LoadgenError, match=f"cannot write {path}: no such file"):
        Copy(path)
