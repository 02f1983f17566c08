"""Every reader on its sample, and what it says of a line that is broken."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import TraceError, UsageError
from loadgen.traces.readers import READERS, sharegpt
from loadgen.traces.readers.open import open_trace
from loadgen.traces.trace import TraceInfo
from tests.support.trace_files import SAMPLES, read_all, real_trace, turns_of

# file, format, sessions, turns, input tokens, output tokens
TOTALS = [
    ("azure-conv-50.csv", "azure", 50, 50, 35_245, 5_795),
    ("azure-code-50.csv", "azure", 50, 50, 125_078, 1_085),
    ("mooncake-20.jsonl", "mooncake", 20, 20, 289_844, 7_832),
    ("burstgpt-v1.csv", "burstgpt", 3, 3, 1_976, 524),
    ("burstgpt-v3.csv", "burstgpt", 3, 3, 1_976, 524),
    ("sharegpt-lengths.csv", "lengths", 2, 2, 364, 1_823),
    ("vidur.csv", "lengths", 2, 2, 364, 1_823),
    ("loadtrace.jsonl", "loadtrace", 4, 5, 41, 17),
    ("sharegpt.json", "sharegpt", 2, 3, 0, 5 + 8 + 1),
    ("openai.jsonl", "openai", 3, 5, 0, 5 + 5 + 21 + 3),
    ("humaneval-2.jsonl", "prompts", 2, 2, 0, 0),
    ("mt-bench-2.jsonl", "prompts", 2, 4, 0, 0),
]


@pytest.mark.parametrize(
    ("name", "format", "sessions", "turns", "tokens_in", "out"), TOTALS
)
def test_a_sample_is_recognised_and_its_totals_are_read(
    name: str, format: str, sessions: int, turns: int, tokens_in: int, out: int
) -> None:
    info, found = read_all(SAMPLES / name)
    all_turns = turns_of(found)
    assert info.format == format
    assert (len(found), len(all_turns)) == (sessions, turns)
    assert sum(turn.input_tokens or 0 for turn in all_turns) == tokens_in
    assert sum(turn.output_tokens or 0 for turn in all_turns) == out


def test_every_format_has_a_sample() -> None:
    assert {format for _, format, *_ in TOTALS} == set(READERS)


def test_azure_keeps_seven_digits_and_starts_at_zero() -> None:
    _, sessions = read_all(SAMPLES / "azure-conv-50.csv")
    first, second = sessions[0].turns[0], sessions[1].turns[0]
    assert first.at_seconds == 0.0
    assert second.at_seconds == pytest.approx(4.3145790, abs=1e-9)
    assert (second.input_tokens, second.output_tokens) == (396, 109)
    assert second.kind == "conversation"
    assert read_all(SAMPLES / "azure-code-50.csv")[1][0].turns[0].kind == "code"


def test_azure_of_2024_has_a_zone_and_azure_of_2025_another_column(
    tmp_path: Path,
) -> None:
    path = tmp_path / "week.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens,NumImages\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5,1\n"
        "2024-05-10 00:00:01+00:00,2399,0,0\n"
        "2024-05-10 00:00:01.009930+00:00,0,6,0\n"
        "2024-05-10 00:00:02.009930+00:00,12,6,0"
    )
    info, sessions = read_all(path)
    assert [s.turns[0].at_seconds for s in sessions] == [0.0, 2.0]
    assert sessions[0].turns[0].extra == {"NumImages": "1"}
    assert info.dropped == {"zero_output": 1, "zero_input": 1}


def test_burstgpt_is_read_by_column_name_and_failed_rows_are_counted() -> None:
    info, sessions = read_all(SAMPLES / "burstgpt-v1.csv")
    assert info.dropped == {"failed": 2, "zero_input": 1}
    assert info.kept == 3
    assert [s.turns[0].at_seconds for s in sessions] == [0.0, 40.0, 113.0]
    newer, same = read_all(SAMPLES / "burstgpt-v3.csv")
    assert [s.turns[0].input_tokens for s in same] == [472, 1087, 417]
    assert same[0].turns[0].extra["Session ID"] == "a1"
    assert same[2].turns[0].kind == "other"
    assert any("Session ID" in warning for warning in newer.warnings)


def test_mooncake_has_milliseconds_and_a_block_per_512_tokens() -> None:
    info, sessions = read_all(SAMPLES / "mooncake-20.jsonl")
    assert info.hash_block_size == 512
    assert sessions[0].turns[0].hash_ids == tuple(range(14))
    assert sessions[-1].turns[0].at_seconds == 3.0


def test_sharegpt_keeps_all_turns_and_counts_what_does_not_fit() -> None:
    info, sessions = read_all(SAMPLES / "sharegpt.json")
    assert [s.session_id for s in sessions] == ["a", "cut"]
    assert [t.prompt for t in sessions[0].turns] == ["What is a joule?", "And a watt?"]
    assert {t.history for t in turns_of(sessions)} == {"append"}
    assert sessions[1].turns[0].messages == (
        {"role": "system", "content": 'Be brief [and] "kind".'},
        {"role": "user", "content": "Grüße, 世界 — }{"},
    )
    assert info.dropped == {
        "first_turn_not_human": 1, "empty": 1, "no_reply": 1,
        "turns_do_not_alternate": 1,
    }  # fmt: skip
    assert info.shortened == {"empty_text": 1}
    assert all(t.extra["output_length_estimated"] for t in turns_of(sessions))
    assert any("estimated" in warning for warning in info.warnings)


@given(st.integers(1, 400), st.booleans(), st.booleans())
def test_sharegpt_reads_the_same_whatever_the_pieces_and_the_layout(
    size: int, is_array: bool, is_indented: bool
) -> None:
    rows = json.loads((SAMPLES / "sharegpt.json").read_text())
    indent = 1 if is_indented else None
    if is_array:
        text = json.dumps(rows, indent=indent, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(row) for row in rows)
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    info = TraceInfo(name="t", format="sharegpt")
    found = list(sharegpt.read(pieces, info))
    assert found == read_all(SAMPLES / "sharegpt.json")[1]


def test_a_sharegpt_file_is_not_held_in_memory() -> None:
    row = {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "x" * 900},
            {"from": "gpt", "value": "y"},
        ],
    }
    taken = 0

    def one_line() -> Iterator[str]:
        nonlocal taken
        yield "["
        for _ in range(1000):
            taken += 1
            yield json.dumps(row) + ","

    sessions = sharegpt.read(one_line(), TraceInfo(name="t", format="sharegpt"))
    next(sessions)
    assert taken < 5


def test_prompt_lists_know_code_from_conversation() -> None:
    _, tasks = read_all(SAMPLES / "humaneval-2.jsonl")
    assert {t.kind for t in turns_of(tasks)} == {"code"}
    assert tasks[0].turns[0].request_id == "HumanEval/0"
    assert "canonical_solution" not in tasks[0].turns[0].extra
    _, questions = read_all(SAMPLES / "mt-bench-2.jsonl")
    assert [len(s.turns) for s in questions] == [2, 2]
    assert questions[0].turns[1].history == "append"


def test_a_plain_prompt_may_say_how_long_its_answer_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt":"hi","output_length":7,"topic":"greeting"}\n')
    (session,) = read_all(path)[1]
    assert session.turns[0].output_tokens == 7
    assert session.turns[0].extra == {"topic": "greeting"}


def test_gzip_is_known_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "azure-conv-50.csv"
    path.write_bytes(gzip.compress((SAMPLES / "azure-conv-50.csv").read_bytes()))
    assert read_all(path)[1] == read_all(SAMPLES / "azure-conv-50.csv")[1]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "vidur.csv"
    path.write_bytes(b"\xef\xbb\xbf" + (SAMPLES / "vidur.csv").read_bytes())
    assert read_all(path)[1] == read_all(SAMPLES / "vidur.csv")[1]


def test_a_format_that_is_named_is_used_and_an_unknown_one_lists_the_known() -> None:
    info, _ = read_all(SAMPLES / "mooncake-20.jsonl", "mooncake")
    assert info.format == "mooncake"
    with pytest.raises(UsageError, match="unknown format 'parquet'; known: azure"):
        open_trace(SAMPLES / "mooncake-20.jsonl", "parquet")


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
AT = "2023-11-16 18:15:46.6805900"
BROKEN = [
    ("azure", AZURE + f"{AT},x,4", "line 2: ContextTokens is 'x', expected an integer"),
    ("azure", AZURE + f"{AT},5,-4", "line 2: GeneratedTokens is '-4'"),
    ("azure", AZURE + f"{AT},5,1.5", "line 2: GeneratedTokens is '1.5'"),
    ("azure", AZURE + f"{AT},5", "line 2: 2 columns, expected 3"),
    ("azure", AZURE + "yesterday,5,4", "line 2: TIMESTAMP is 'yesterday'"),
    ("azure", AZURE + "2023-13-16 18:15:46,5,4", "line 2: TIMESTAMP is '2023-13"),
    ("azure", AZURE + f"{AT},5,4\r\n2023-11-15 00:00:00,5,4", "line 3: TIMESTAMP"),
    ("burstgpt", "Timestamp,Model\n1,a", "line 1: column 'Request tokens' is missing"),
    ("lengths", "num_prefill_tokens,num_decode_tokens\n1,nan", "line 2: num_decode"),
    ("lengths", "arrived_at,num_prefill_tokens,num_decode_tokens\n-1,1,1", "arrived"),
    ("mooncake", '{"timestamp":0,"input_length":513,"output_length":1,"hash_ids":[1]}',
     "line 1: hash_ids is [1], expected 2 ids, one per 512 of 513 tokens"),
    ("mooncake", '{"timestamp":0,"input_length":0}', "line 1: input_length is 0"),
    ("mooncake", '{"timestamp":true}', "line 1: timestamp is True, expected a number"),
    ("prompts", '{"prompt":""}', "line 1: prompt is '', expected a text"),
    ("prompts", '\n{"turns":["a",3]}', "line 2: turns is ['a', 3]"),
    ("sharegpt", '[\n{"id":1,"conversations":[{"from":"human"}]}]', "line 2: conver"),
    ("sharegpt", '[\n{"id":1,\n"conversations":oops}]', "line 3: not valid JSON"),
    ("sharegpt", '[{"id":1,"conversations":[]}', "line 1: the array is not closed"),
    ("sharegpt", "[\n17]", "line 2: '17' is not a JSON object (element 1)"),
    ("loadtrace", '{"input_length":"7"x}', "line 1: not valid JSON"),
    ("loadtrace", "[1,2]", "line 1: '1' is not a JSON object (element 1)"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "text", "message"), BROKEN)
def test_a_broken_line_is_named_with_its_field_and_value(
    tmp_path: Path, format: str, text: str, message: str
) -> None:
    path = tmp_path / "broken"
    path.write_bytes(text.encode())
    with pytest.raises(TraceError) as caught:
        read_all(path, format)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_line_seven_is_reached_and_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = ['{"timestamp":1,"input_length":5,"output_length":5}'] * 6
    path.write_text("\n".join([*rows, '{"timestamp":1,"input_length":-5}']))
    with pytest.raises(TraceError, match="line 7: input_length is -5, expected a pos"):
        read_all(path)


def test_files_that_cannot_be_traces_are_one_clear_line(tmp_path: Path) -> None:
    empty, blank, odd = tmp_path / "empty", tmp_path / "blank", tmp_path / "odd"
    empty.write_bytes(b"")
    blank.write_bytes(gzip.compress(b"\n\n"))
    odd.write_text("one,two\n1,2\n")
    for path, message in [
        (tmp_path / "missing.jsonl", "no such file"),
        (tmp_path, "is a folder"),
        (empty, "the file is empty"),
        (blank, "the file is empty"),
        (odd, "format not recognised, name it: --format azure|"),
    ]:
        with pytest.raises(TraceError, match=message.replace("|", r"\|")) as caught:
            open_trace(path)
        assert str(path) in str(caught.value)


def test_a_trace_without_a_single_request_says_why(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n5,0\n")
    with pytest.raises(TraceError, match=r"all rows were dropped \(1 zero_output\)"):
        open_trace(path)
    path.write_text("num_prefill_tokens,num_decode_tokens\n")
    with pytest.raises(TraceError, match="no requests in it"):
        open_trace(path)


def test_bytes_that_are_not_text_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"prompt":"a"}\n{"prompt":"\xff"}\n')
    with pytest.raises(TraceError, match="line 2: byte 0xff is not UTF-8"):
        read_all(path)


def test_gzip_cut_short_is_an_error_and_not_a_short_trace(tmp_path: Path) -> None:
    whole = gzip.compress((SAMPLES / "azure-conv-50.csv").read_bytes())
    path = tmp_path / "t.csv.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TraceError, match="gzip data"):
        read_all(path)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sessions", "turns", "words"),
    [
        ("fastchat_dummy_conversation.json.gz", 500, 1000, None),
        ("mt_bench_question.jsonl", 80, 160, None),
        ("humaneval_prompts.jsonl.gz", 164, 164, 451),
    ],
)
def test_real_prompt_lists_are_read_whole(
    name: str, sessions: int, turns: int, words: int | None
) -> None:
    info, found = read_all(real_trace(name))
    all_turns = turns_of(found)
    assert (len(found), len(all_turns)) == (sessions, turns)
    assert info.dropped == {}
    if words is not None:
        mean = sum(len(turn.prompt or "") for turn in all_turns) / turns
        assert round(mean) == words
