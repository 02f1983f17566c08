"""Traces that are broken or hostile: read, or refused in one line, and never more.

Whatever is read can be planned, written in every format and sent.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadgen.client.backends import RequestOptions, Target, write_request
from loadgen.client.conversation import messages_of
from loadgen.errors import LoadgenError, PlanError, TraceError, UsageError
from loadgen.plan.load import Load
from loadgen.plan.plan import PlannedSession, make_plan, read_plan
from loadgen.traces.convert import convert_trace, write_synthetic
from loadgen.traces.readers import READERS
from loadgen.traces.readers.open import open_trace
from loadgen.traces.readers.text import MAX_CHARACTERS, MAX_DEPTH, json_texts, lines_of
from loadgen.traces.statistics import trace_statistics
from loadgen.traces.statistics_file import load_statistics
from loadgen.traces.synth import SynthOptions, synthesized
from loadgen.traces.writers import WRITERS
from tests.support.mutations import spoilt
from tests.support.profiles import examples
from tests.support.trace_files import SAMPLES, read_all, turns_of

FILES = sorted(p for p in SAMPLES.iterdir() if p.suffix in (".csv", ".json", ".jsonl"))
ROWS: dict[str, dict[str, Any]] = {
    "mooncake": {
        "timestamp": 3, "input_length": 600, "output_length": 2, "hash_ids": [1, 2],
    },
    "loadtrace": {
        "id": "a", "timestamp": 0, "delay": 1, "session_id": "s", "turn": 1,
        "messages": [{"role": "user", "content": "hi"}], "prompt": "x",
        "input_length": 3, "output_length": 4, "kind": "code", "tenant": "t",
        "slo": "fast", "history": "append", "x": {}, "parent_id": "b",
    },
    "header": {
        "loadtrace": "loadtrace/1", "name": "n", "time_unit": "ms", "kind": "code",
        "hash_block_size": 16, "dropped": {}, "synthetic": None, "source": {},
    },
    "sharegpt": {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"},
        ],
    },
    "openai": {
        "messages": [
            {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"},
        ],
    },
    "prompts": {"prompt": "hi", "turns": ["a"], "output_length": 3, "id": 7},
}  # fmt: skip
TABLES = {
    "azure": ["TIMESTAMP", "ContextTokens", "GeneratedTokens", "NumImages"],
    "burstgpt": [
        "Timestamp", "Model", "Request tokens", "Response tokens", "Log Type",
        "Session ID",
    ],
    "lengths": ["arrived_at", "num_prefill_tokens", "num_decode_tokens"],
}  # fmt: skip

texts = st.text(st.characters(), max_size=8)  # lone surrogates and NUL among them
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, 2**53, 2**63, 2**64, 10**400, -1, "", " ", "1", "1e9"])
    | st.floats()
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=6,
)


def survives(
    data: bytes, suffix: str = ".jsonl", format: str | None = None
) -> Exception | None:
    """Read, count, plan, convert and encode a file; the refusal, if there was one.

    Any other exception fails the test.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / f"t{suffix}"
        path.write_bytes(data)
        try:
            info, sessions = open_trace(path, format)
            trace_statistics(sessions)
            _, digest = make_plan(
                path, Load(rate_per_second=4), folder / "plan", format
            )
        except (TraceError, UsageError, PlanError) as error:
            one_line(error)
            return error
        assert len(digest) == 64
        "\n".join([info.name, *info.warnings, *info.dropped]).encode()
        _, planned = read_plan(folder / "plan")
        for session in planned:
            encoded(session)
        for target in WRITERS:
            with_refusals(convert_trace, path, folder / "out", target, format)
        with_refusals(_synthetic, path, folder / "new", format)
        return None


def _synthetic(path: Path, out: Path, format: str | None) -> None:
    statistics = load_statistics(path, format=format)
    options = SynthOptions(requests=3)
    write_synthetic(synthesized(statistics, options), statistics, options, out)


def with_refusals(call: Any, *arguments: Any) -> None:
    try:
        call(*arguments)
    except (TraceError, UsageError) as error:
        one_line(error)


def one_line(error: LoadgenError) -> None:
    assert error.exit_code == 2
    assert "\n" not in str(error)
    assert len(str(error)) < 600
    str(error).encode()


def encoded(session: PlannedSession) -> None:
    for backend in ("openai", "tgi"):
        target = Target(url="http://h", backend=backend, model="m")
        for turn in session.turns:
            if (turn.input_tokens or 0) > 1000:
                continue
            messages = messages_of(turn, [], seed=0, options=RequestOptions())
            write_request(
                target, RequestOptions(), messages, request_id=turn.request_id,
                kind=turn.kind, output_tokens=turn.output_tokens,
                session_id=session.session_id,
            )  # fmt: skip


def json_lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@examples(150)
@given(
    st.sampled_from(sorted(ROWS)), st.data(), st.dictionaries(texts, values, max_size=2)
)
def test_any_value_in_any_field_is_read_or_refused(
    name: str, data: st.DataObject, others: dict[str, Any]
) -> None:
    row = dict(ROWS[name])
    for field in data.draw(st.lists(st.sampled_from(sorted(row)), max_size=2)):
        row[field] = data.draw(values)
    rows = [row | others]
    if name == "header":
        rows.append(ROWS["mooncake"])
    format = "loadtrace" if name == "header" else name
    survives(json_lines(*rows), format=data.draw(st.sampled_from([None, format])))
    survives(json.dumps(rows).encode(), format=format)


@given(st.sampled_from(["sharegpt", "openai"]), st.data())
def test_any_value_in_a_message_is_read_or_refused(
    format: str, data: st.DataObject
) -> None:
    row = json.loads(json.dumps(ROWS[format]))
    messages = row["messages" if format == "openai" else "conversations"]
    for message in messages:
        for field in data.draw(st.lists(st.sampled_from(sorted(message)), max_size=2)):
            message[field] = data.draw(values)
    survives(json_lines(row), format=format)


@given(st.sampled_from(sorted(TABLES)), st.data())
def test_any_cell_of_a_table_is_read_or_refused(
    format: str, data: st.DataObject
) -> None:
    good = st.sampled_from(["5", "2023-11-16 18:17:03.97", "nan", "1e400", "9" * 30])
    cells = good | texts | scalars.map(str)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(TABLES[format])
    for _ in range(data.draw(st.integers(0, 3))):
        writer.writerow([data.draw(cells) for _ in TABLES[format]])
    survives(out.getvalue().encode("utf-8", "replace"), ".csv", format)


@given(st.binary(max_size=200), st.sampled_from([None, *READERS]), st.booleans())
@example(b"[" * 100_000, None, False)
@example(b'{"a":' * 50_000, None, False)
@example(b'{"prompt": "a"}\n' + b"[" * 5_000, "prompts", False)
@example(b"\xff\xfe{\x00}\x00", None, False)
@example(b'"' * 200_000, "azure", False)
@example(b"\0" * 1000, None, True)
def test_any_bytes_are_read_or_refused(
    data: bytes, format: str | None, is_packed: bool
) -> None:
    survives(gzip.compress(data) if is_packed else data, format=format)


@examples(100)
@given(st.sampled_from(FILES), st.data())
def test_a_spoilt_sample_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    original = b"\n".join(path.read_bytes().splitlines()[:4])
    survives(data.draw(spoilt([original])), path.suffix)


@examples(30)
@given(st.data())
def test_a_spoilt_gzip_is_read_or_refused(data: st.DataObject) -> None:
    packed = gzip.compress(json_lines(*[ROWS["prompts"]] * 20))
    survives(data.draw(spoilt([packed])), ".jsonl.gz")


@given(
    spoilt(
        [
            b'{"plan":"plan/1","trace":"t","trace_format":"prompts","arrival":"inf",'
            b'"rate_per_second":null,"burstiness":null,"seed":0,"sessions":1,'
            b'"requests":1,"span_seconds":0.0,"hash_block_size":16}\n'
            b'{"session_id":"s","start_seconds":0.0,"turns":[{"request_id":"r",'
            b'"kind":"code","input_tokens":5,"output_tokens":3,"hash_ids":[1],'
            b'"messages":[{"role":"user","content":"a"}],"history":"append"}]}\n'
        ]
    )
)
def test_a_spoilt_plan_is_read_or_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "plan.jsonl"
        path.write_bytes(data)
        try:
            _, sessions = read_plan(path)
            for session in sessions:
                encoded(session)
        except PlanError as error:
            one_line(error)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ('"input_tokens":999999999999', "`int` <= 16777216"),
        ('"think_seconds":-1', "`float` >= 0"),
        ('"kind":"code\\r\\nx: y"', "matching regex"),
        ('"messages":' + '[{"a":' * 200 + "1" + "}]" * 200, "brackets in brackets"),
    ],
)
def test_a_plan_is_refused_where_no_request_can_be_made(
    tmp_path: Path, turn: str, message: str
) -> None:
    path = tmp_path / "plan.jsonl"
    make_plan(SAMPLES / "mt-bench-2.jsonl", Load(rate_per_second=1), path)
    header = path.read_bytes().splitlines(keepends=True)[0]
    row = (
        f'{{"session_id":"s","start_seconds":0,"turns":[{{"request_id":"r",{turn}}}]}}'
    )
    path.write_bytes(header + row.encode())
    with pytest.raises(PlanError, match="line 2") as caught:
        list(read_plan(path)[1])
    assert message in str(caught.value)


@given(st.text("ab\r\n", max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_lines_end_as_they_end_in_any_system_whatever_the_pieces(
    text: str, cuts: list[int]
) -> None:
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    expected = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not expected[-1]:
        expected.pop()
    assert list(lines_of(pieces, "t")) == expected


@given(
    st.lists(st.dictionaries(texts, values, min_size=1, max_size=2), min_size=1),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from([None, 1]),
)
def test_elements_of_an_array_are_cut_the_same_whatever_the_pieces(
    rows: list[Any], cuts: list[int], indent: int | None
) -> None:
    text = json.dumps(rows, indent=indent)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    found = list(json_texts(pieces, "t"))
    assert [json.dumps(json.loads(piece.text)) for piece in found] == [
        json.dumps(row) for row in rows
    ]
    assert [piece.element for piece in found] == list(range(1, len(rows) + 1))


def repeated(start: str, part: str, times: int) -> Iterator[str]:
    yield start
    for _ in range(times):
        yield part


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (repeated('{"prompt":"', "a" * 2**20, 6000), "line 1: the line is longer"),
        (repeated('[{"prompt":"a"},{"b":"', "a" * 2**20, 6000),
         "the element is longer than 33,554,432 characters, expected one request "
         "(element 2)"),
        (repeated('[[{"a":1},', "[],[]," * 10_000, 6000), "more than 1,048,576 values"),
        (chain(repeated('[[1', ",1" * 10_000, 200), ["]]"]), "1,048,576 values"),
        (repeated('{"prompt":\n', "[", 6000), f"more than {MAX_DEPTH} brackets"),
    ],
)  # fmt: skip
def test_a_bomb_is_refused_before_it_is_read(
    pieces: Iterable[str], message: str
) -> None:
    with pytest.raises(TraceError) as caught:
        list(json_texts(pieces, "bomb"))
    assert message in str(caught.value)


def test_an_endless_line_takes_the_memory_of_its_bound_and_no_more() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(TraceError):
            list(lines_of(repeated("", "a" * 2**16, 10**6), "bomb"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * MAX_CHARACTERS


def test_a_session_or_chat_of_endless_lines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the bound is 256 MiB, which is too much for a test
    monkeypatch.setattr("loadgen.traces.readers.loadtrace.MAX_SESSION_CHARACTERS", 900)
    path = tmp_path / "t.jsonl"
    rows = [{"session_id": "s", "turn": k, "prompt": "x" * 50} for k in range(1, 30)]
    path.write_bytes(json_lines(*rows))
    with pytest.raises(TraceError, match="line 10: the session is longer than"):
        read_all(path)
    monkeypatch.setattr("loadgen.traces.readers.line.MAX_SESSION_CHARACTERS", 900)
    path.write_text(json.dumps([{"role": "user", "content": "x" * 50}] * 30))
    with pytest.raises(TraceError, match="line 1: the chat is longer than"):
        read_all(path)


READ = [
    ('{"prompt":"hi \\ud83d there"}', ["hi \ufffd there"]),
    ('{"prompt":"a\\u0000b"}', ["a\0b"]),
    ('{"prompt":"a\tb"}', ["a\tb"]),
    ('["hi", "there"]', ["hi", "there"]),
    ('"hi"\n"there"\n', ["hi", "there"]),
    ('[["hi", "there"], ["you"]]', ["hi", "there", "you"]),
    ('[{"prompt":"hi"},\r\n {"prompt":"there"}]', ["hi", "there"]),
    ('{\n "prompt": "hi"\n}\n', ["hi"]),
    ('{"prompt":"hi"}\r{"prompt":"there"}\r', ["hi", "there"]),
    ('\ufeff{"prompt":"hi","big":' + "9" * 5000 + ',"x":[NaN,-Infinity]}', ["hi"]),
    ('[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]', ["hi"]),
    ('[[{"role":"user","content":"a"}],[{"role":"user","content":"b"}]]', ["a", "b"]),
    ('[{"role":"user","content":"a"}]\n[{"role":"user","content":"b"}]', ["a", "b"]),
    ('[{"messages":[{"role":"user","content":"a"}]}]', ["a"]),
    ('[{"conversations":[{"role":"user","content":"a"},'
     '{"role":"assistant","content":["b",{"type":"text","text":"c"}]}]}]', ["a"]),
    ('[{"conversations":null},{"conversations":[{"from":"human","value":"a"},'
     '{"from":"gpt","value":"b"}]}]', ["a"]),
    ('{"turns":["a","b"],"huge":123456789012345678901234567890}', ["a", "b"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "prompts"), READ)
def test_odd_but_clear_files_are_read(
    tmp_path: Path, text: str, prompts: list[str]
) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(text.encode())
    assert [turn.prompt for turn in turns_of(read_all(path)[1])] == prompts
    assert survives(text.encode(), ".json") is None


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "head",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        '"TIMESTAMP","ContextTokens","GeneratedTokens"',
        "\ufeffTIMESTAMP, ContextTokens ,GeneratedTokens",
    ],
)
def test_azure_is_told_by_its_columns_whatever_the_line_ends(
    tmp_path: Path, head: str, end: str
) -> None:
    path = tmp_path / "t.csv"
    rows = [head, "2023-11-16 18:17:03.97,10,5", '"2023-11-16 18:17:04.97","12","6"']
    path.write_bytes(end.join(rows).encode())
    info, sessions = read_all(path)
    assert info.format == "azure"
    assert [turn.input_tokens for turn in turns_of(sessions)] == [10, 12]


def test_azure_of_2025_has_a_column_before_the_lengths(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
        "2024-10-15T12:00:00.269Z,0,770,491\n2024-10-15T12:00:05.819Z,1,949,126\n"
    )
    info, sessions = read_all(path)
    assert info.format == "azure"
    assert sessions[1].turns[0].at_seconds == pytest.approx(5.55)
    assert sessions[1].turns[0].extra == {"NumImages": "1"}


def test_a_chat_gives_a_turn_for_each_reply_and_tools_keep_their_history() -> None:
    info, sessions = read_all(SAMPLES / "openai.jsonl")
    plain, tools, open_end = sessions
    assert [turn.history for turn in plain.turns] == ["append", "append"]
    assert [m["role"] for m in plain.turns[0].messages or ()] == ["system", "user"]
    assert tools.session_id == "tools"
    assert [turn.history for turn in tools.turns] == ["total", "total"]
    last = tools.turns[1].messages or ()
    assert [m["role"] for m in last] == ["user", "assistant", "tool"]
    assert last[1]["content"] is None
    assert last[1]["tool_calls"]
    assert open_end.turns[0].output_tokens is None
    assert info.dropped == {"empty": 1}
    assert any("tools" in warning for warning in info.warnings)


def test_mooncake_without_blocks_shares_no_prefix(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"timestamp": 5, "input_length": 600, "output_length": 2}
    path.write_bytes(json_lines(row, row | {"hash_ids": []}, row | {"hash_ids": None}))
    for format in ("mooncake", None):
        turns = turns_of(read_all(path, format)[1])
        assert [turn.hash_ids for turn in turns] == [(), (), ()]
        assert turns[0].at_seconds == 0.005


def test_a_cell_that_is_too_long_names_its_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    head = "num_prefill_tokens,num_decode_tokens\n5,5\n"
    path.write_text(f"{head}6,{'1' * 140_000}\n")
    with pytest.raises(
        TraceError, match=r"line 3: num_decode_tokens is longer than 131"
    ):
        read_all(path)
    path.write_text(f'{head}5,"6\n' + "7,8\n" * 50_000)
    with pytest.raises(TraceError, match="a quote that is not closed"):
        read_all(path)


def test_the_millionth_element_of_one_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"prompt": "a"}] * 5_000 + [{"prompt": 3}]))
    with pytest.raises(TraceError, match=r"prompt is 3, .* \(element 5001\)"):
        read_all(path)


def test_warnings_are_a_few_whatever_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"timestamp": 0, "input_length": 5, f"field {k}": k} for k in range(500)]
    path.write_bytes(json_lines(*rows))
    info, _ = read_all(path)
    assert len(info.warnings) == 21


def test_a_trace_over_years_needs_no_memory_for_its_empty_seconds() -> None:
    rows = [{"timestamp": at, "input_length": 5, "output_length": 5}
            for at in (0, 10, 1.7e12, 1e13)]  # fmt: skip
    assert survives(json_lines(*rows)) is None


BROKEN_STATISTICS = [
    {"kind": "\u202ecode"},
    {"requests": 10**30, "lengths": {"in_edges": [1, 1e400]}},
    {"lengths": {"in_edges": [5, 3]}},
    {"lengths": {"in_bin_mean": [None]}},
    {"lengths": {"counts": [[-1]]}},
    {"lengths": {"counts": [[10**30]]}},
    {"arrivals": {"shape": "modulated", "rate_per_second": 0, "relative_rates": [1]}},
    {"arrivals": {"shape": "modulated", "rate_per_second": 1, "relative_rates": []}},
]


@pytest.mark.parametrize("change", BROKEN_STATISTICS)
def test_statistics_nothing_can_be_drawn_from_are_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    lengths = {
        "in_edges": [1, 9], "out_edges": [1, 9], "counts": [[3]],
        "in_bin_mean": [4], "out_bin_mean": [4],
    }  # fmt: skip
    good = {
        "statistics": "tracestats/1", "name": "n", "kind": "code", "requests": 3,
        "lengths": lengths,
    }  # fmt: skip
    path = tmp_path / "s.json"
    path.write_text(json.dumps(good))
    assert synthesized(load_statistics(path), SynthOptions(requests=2))
    bad = good | change
    bad["lengths"] = lengths | change.get("lengths", {})
    path.write_text(json.dumps(bad))
    with pytest.raises(TraceError, match="not tracestats/1"):
        load_statistics(path)
