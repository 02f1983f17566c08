"""What is recorded of traffic: lengths, sharing, sessions, and never a text."""

from __future__ import annotations

from itertools import count
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from proxy.meter.ledger import RequestEnergy, RequestRecord
from proxy.recording.blocks import BLOCK_TOKENS, Blocks
from proxy.recording.conversations import MAX_TURNS
from proxy.recording.prompts import MAX_DECODED_BYTES, Prompt, PromptReader
from proxy.recording.traffic import Arrival, Traffic
from proxy.wire.events import RequestOpened
from proxy.wire.facts import RequestFacts

NO_ENERGY = RequestEnergy(None, None, None, None, "phase", "unknown")
WORDS = st.lists(st.sampled_from(["the", "of", "carefully", "sun", "eat", "explain"]))
LETTERS = "QXЖЩ漢字"
"""None of which a line has of itself."""


def chat(*contents: str) -> bytes:
    roles = ("user", "assistant")
    messages = [
        {"role": roles[n % 2], "content": text} for n, text in enumerate(contents)
    ]
    return msgspec.json.encode({"model": "m", "messages": messages})


def read(text: str) -> Prompt:
    return PromptReader(b"secret").read("m", chat(text))


def common(one: list[int], other: list[int]) -> int:
    same = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        same += 1
    return same


class Scene:
    """A proxy's traffic as told to a recording, on a clock of the test's own."""

    def __init__(self) -> None:
        self.traffic = Traffic(b"secret", "run", 100.0, 1.8e9)
        self.lines: list[dict[str, Any]] = []
        self.texts: dict[int, list[str]] = {}
        self._keys = count(1)

    def opens(
        self, at: float, body: bytes, session: bytes | None = None, route: str = "chat"
    ) -> int:
        key = next(self._keys)
        facts = RequestFacts(route, model="m", max_output_tokens=64)
        opened = RequestOpened(key, at, f"id-{key}", facts)
        self.texts[key] = []
        self.traffic.arrive(Arrival(opened, session, body, self.texts[key]))
        return key

    def ends(
        self,
        key: int,
        at: float,
        prompt: int | None,
        output: int | None,
        reply: str = "",
        *,
        outcome: str = "ok",
        status: int | None = 200,
    ) -> dict[str, Any]:
        self.texts[key].append(reply)
        record = RequestRecord(
            f"id-{key}", "chat", "m", "other", "none", outcome, None, status, 0.0,
            None, None, None, at, prompt, None, output, NO_ENERGY, key=key,
            is_output_lower_bound=outcome != "ok",
        )  # fmt: skip
        line = self.traffic.end(key, at, record)
        assert line is not None
        found: dict[str, Any] = msgspec.json.decode(line)
        return found


@given(shared=WORDS, one=WORDS, other=WORDS)
def test_an_equal_beginning_is_shared_to_the_block_where_words_are_tokens(
    shared: list[str], one: list[str], other: list[str]
) -> None:
    prompts = [[*shared, "A", *one], [*shared, "B", *other]]
    blocks = Blocks()
    ids = [blocks.ids(read(" ".join(words)), len(words))[0] for words in prompts]
    assert common(*ids) == len(shared) // BLOCK_TOKENS


@given(
    shared=WORDS, one=WORDS, other=WORDS,
    tokens=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
)  # fmt: skip
def test_a_prompt_has_the_blocks_of_its_tokens_and_shares_what_it_was_given(
    shared: list[str], one: list[str], other: list[str], tokens: tuple[int, int]
) -> None:
    first, second = (
        read(" ".join([*shared, "A", *one])), read(" ".join([*shared, "B", *other])),
    )  # fmt: skip
    blocks = Blocks()
    ids, _ = blocks.ids(first, tokens[0])
    others, given_tokens = blocks.ids(second, tokens[1])
    assert [len(ids), len(others)] == [-(-each // BLOCK_TOKENS) for each in tokens]
    shared_blocks = int(given_tokens // BLOCK_TOKENS)
    is_all_shared = given_tokens == tokens[1]
    assert common(ids, others) == (len(others) if is_all_shared else shared_blocks)


@given(text=st.text(), tokens=st.integers(1, 3000))
def test_the_same_prompt_again_is_the_same_blocks(text: str, tokens: int) -> None:
    blocks = Blocks()
    assert blocks.ids(read(text), tokens)[0] == blocks.ids(read(text), tokens)[0]


def test_beginnings_that_nobody_used_for_long_are_forgotten() -> None:
    blocks = Blocks(max_chunks=8)
    old, new, last = (
        read(" ".join(letters * 3)) for letters in ("abcdefgh", "ijklmnop", "qrstuvwx")
    )
    blocks.ids(old, 24)
    blocks.ids(new, 24)
    assert blocks.ids(new, 24)[1] == 24
    blocks.ids(last, 24)
    assert blocks.ids(old, 24)[1] == 0


def test_another_secret_makes_other_hashes() -> None:
    body = chat("one two three four five six seven eight nine")
    prompts = [PromptReader(key).read("m", body) for key in (b"one", b"other")]
    assert set(prompts[0].chain.tolist()).isdisjoint(prompts[1].chain.tolist())


@given(
    contents=st.lists(st.text(LETTERS, min_size=2), min_size=1, max_size=4),
    reply=st.text(LETTERS, min_size=2),
    session=st.text("QXZ", min_size=3),
)  # fmt: skip
def test_no_letter_of_a_prompt_reply_or_session_is_in_a_line(
    contents: list[str], reply: str, session: str
) -> None:
    scene = Scene()
    key = scene.opens(101.0, chat(*contents), session.encode())
    lines = [scene.traffic.header(), *scene.traffic.still_open(200.0)]
    lines.append(msgspec.json.encode(scene.ends(key, 102.0, 9, 3, reply)))
    assert len(lines) == 3
    for line in lines:
        assert set(line.decode()).isdisjoint(LETTERS)


@given(body=st.binary(max_size=200))
def test_any_body_at_all_is_recorded(body: bytes) -> None:
    scene = Scene()
    row = scene.ends(scene.opens(101.0, body), 102.0, 40, 3)
    assert (row["input_length"], row["output_length"]) == (40, 3)
    assert len(row["hash_ids"]) == 3


def test_of_a_very_long_body_the_json_is_shared() -> None:
    text = "word " * (MAX_DECODED_BYTES // 5)
    reader = PromptReader(b"secret")
    one, other = (reader.read("m", chat(text + end)) for end in ("one", "other"))
    assert one.chain[:-1].tolist() == other.chain[:-1].tolist()
    assert len(one.chain) > 20_000


def test_arrivals_are_kept_to_the_microsecond() -> None:
    scene = Scene()
    row = scene.ends(scene.opens(107.654321, chat("hello")), 109.0, 1, 1)
    assert row["timestamp"] == 7654.321


def test_a_prompt_that_goes_on_from_a_reply_is_the_next_turn() -> None:
    scene = Scene()
    first = scene.opens(101.0, chat("hello there"))
    before = scene.ends(first, 103.0, 10, 5, " General \n")
    second = scene.opens(104.5, chat("hello there", "General", "go on"))
    row = scene.ends(second, 106.0, 21, 4, "so")
    assert row["session_id"] == before["session_id"]
    assert (row["turn"], row["delay"], row["history"]) == (2, 1500, "append")
    assert (row["input_length"], row["x"]["prompt_tokens"]) == (6, 21)
    assert "hash_ids" not in row


def test_a_text_that_goes_on_from_a_reply_is_the_next_turn() -> None:
    scene = Scene()
    prompt = "tell me a long story about the sea"
    reply = " once there was a boat and it went far away"
    first = scene.opens(101.0, msgspec.json.encode({"prompt": prompt}))
    scene.ends(first, 103.0, 8, 10, reply)
    longer = msgspec.json.encode({"prompt": f"{prompt}{reply} and then"})
    row = scene.ends(scene.opens(104.0, longer), 106.0, 20, 4)
    assert (row["turn"], row["history"], row["input_length"]) == (2, "append", 2)


def test_tools_are_a_part_of_the_prompt() -> None:
    tools = [{"type": "function", "function": {"name": f"tool{n}"}} for n in range(9)]
    messages = [{"role": "user", "content": "hello"}]
    bodies = [
        msgspec.json.encode({"messages": messages, "tools": tools[:count]})
        for count in (8, 9)
    ]
    one, other = (PromptReader(b"secret").read("m", body) for body in bodies)
    assert len(one.chain) > 10
    assert common(one.chain.tolist(), other.chain.tolist()) >= len(one.chain) - 3


def test_the_same_prompt_twice_is_two_sessions() -> None:
    scene = Scene()
    for at in (101.0, 105.0):
        row = scene.ends(scene.opens(at, chat("hello there")), at + 1, 10, 5, "hi")
        assert row["turn"] == 1
        assert row["history" if "history" in row else "hash_ids"] == row["hash_ids"]


def test_a_second_answer_to_one_turn_is_a_session_of_its_own() -> None:
    scene = Scene()
    scene.ends(scene.opens(101.0, chat("hello")), 102.0, 10, 5, "hi")
    again = chat("hello", "hi", "go on")
    turns = [
        scene.ends(scene.opens(at, again), at + 1, 20, 5, "so")["turn"]
        for at in (103.0, 105.0)
    ]
    assert turns == [2, 1]


def test_a_header_ties_turns_whose_prompts_do_not_go_on() -> None:
    scene = Scene()
    rows = [
        scene.ends(scene.opens(at, chat(text), b"alice"), at + 1, 10, 5)
        for at, text in ((101.0, "one"), (105.0, "another"))
    ]
    assert rows[0]["session_id"] == rows[1]["session_id"]
    assert [row["turn"] for row in rows] == [1, 2]
    assert rows[1]["delay"] == 3000
    assert "history" not in rows[1]


def test_what_overlaps_is_a_session_of_its_own() -> None:
    scene = Scene()
    keys = [scene.opens(at, chat("one"), b"alice") for at in (101.0, 101.5)]
    rows = [scene.ends(key, 103.0, 10, 5) for key in keys]
    assert rows[0]["session_id"] != rows[1]["session_id"]


def test_one_that_was_cut_off_is_a_load_too() -> None:
    scene = Scene()
    key = scene.opens(101.0, chat("one two three"))
    row = scene.ends(key, 103.0, None, None, "some", outcome="aborted", status=200)
    assert row["x"]["outcome"] == "aborted"
    assert row["x"]["estimated"] == ["input_length", "output_length"]
    assert (row["input_length"], row["output_length"]) == (3, 1)


def test_one_that_the_engine_refused_has_no_output() -> None:
    scene = Scene()
    key = scene.opens(101.0, chat("one two three"))
    row = scene.ends(key, 101.1, None, None, outcome="error", status=400)
    assert row["x"]["outcome"] == "refused"
    assert "output_length" not in row


def test_counts_that_no_engine_has_are_not_believed() -> None:
    scene = Scene()
    key = scene.opens(101.0, chat("one two three"))
    row = scene.ends(key, 102.0, 2**31 - 1, 2**31 - 1, "some")
    assert (row["input_length"], row["output_length"]) == (3, 1)
    assert row["x"]["estimated"] == ["input_length", "output_length"]


def test_a_header_that_never_changes_is_many_sessions() -> None:
    scene = Scene()
    turns = [
        scene.ends(scene.opens(at, chat("hi"), b"one"), at + 0.5, 1, 1)["turn"]
        for at in map(float, range(101, 101 + MAX_TURNS + 2))
    ]
    assert turns == [*range(1, MAX_TURNS + 1), 1, 2]


def test_one_in_flight_for_long_has_a_line_before_its_end_and_only_one() -> None:
    scene = Scene()
    key = scene.opens(101.0, chat("one two three"))
    assert scene.traffic.still_open(101.3) == []
    (line,) = scene.traffic.still_open(101.5)
    row = msgspec.json.decode(line)
    assert (row["x"]["outcome"], row["output_length"]) == ("open", 64)
    assert scene.traffic.still_open(102.0) == []
    assert scene.ends(key, 103.0, 5, 6)["x"]["key"] == row["x"]["key"]


def test_lengths_that_nobody_counted_are_estimated_by_what_was_learnt() -> None:
    scene = Scene()
    body = chat("one two three four five six seven eight nine ten")
    scene.ends(scene.opens(101.0, body), 102.0, 20, 5)
    row = scene.ends(scene.opens(103.0, body), 104.0, None, 5)
    assert row["input_length"] == 20
