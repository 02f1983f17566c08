"""A study's file: what is right, and every mistake as one line with its place."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.errors import LoadgenError, StudyFileError, UsageError
from loadgen.studies.study_file import MAX_BYTES, StudyFile, read_study

GOOD = """\
study: tiny
model: m
baseline: transformers
servers:
  transformers: {preset: transformers}
  vllm:
    preset: vllm-eager
    max_num_seqs: 4
    speculative: {tokens: 3, model: d}
workloads:
  conv: {input: 100, output: {mean: 20, sd: 5}, requests: 10}
loads:
  two: {rate: 2}
  all: {rate: .inf, concurrency: 4}
"""


def read(folder: Path, text: str | bytes) -> StudyFile:
    path = folder / "study.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_study(path)


def test_every_combination_is_a_point(tmp_path: Path) -> None:
    found = read(tmp_path, GOOD)
    names = [tuple(point.names.values()) for point in found.points()]
    assert names == [
        (server, "greedy", "conv", load)
        for server in ("transformers", "vllm")
        for load in ("two", "all")
    ]
    assert found.baseline_of({"servers": "vllm", "loads": "two"}) == {
        "servers": "transformers", "loads": "two",
    }  # fmt: skip


def test_combinations_are_skipped(tmp_path: Path) -> None:
    skipped = GOOD + "skip: [{servers: transformers, loads: two}]\n"
    names = [point.names["loads"] for point in read(tmp_path, skipped).points()]
    assert names == ["all", "two", "all"]


def test_what_is_said_on_the_command_line_stands_instead(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(GOOD.replace("model: m\n", ""))
    assert read_study(path, {"model": "other"}).study.model == "other"


EDITS = {
    "a key with a slip": (
        "max_num_seqs: 4", "max_num_seq: 4",
        "line 8: servers.vllm.max_num_seq: unknown key; did you mean max_num_seqs?",
    ),
    "a word for a number": (
        "max_num_seqs: 4", "max_num_seqs: many",
        "line 8: servers.vllm.max_num_seqs: expected int",
    ),
    "too small": (
        "max_num_seqs: 4", "max_num_seqs: 0",
        "line 8: servers.vllm.max_num_seqs: expected int >= 1",
    ),
    "deep inside": (
        "tokens: 3", "token: 3",
        "line 9: servers.vllm.speculative.token: unknown key; did you mean tokens?",
    ),
    "a missing baseline": (
        "baseline: transformers", "baseline: transformer",
        "line 3: baseline.servers: servers has no 'transformer'; did you mean",
    ),
    "a baseline by an unknown axis": (
        "baseline: transformers", "baseline: {server: vllm}",
        "line 3: baseline.server: unknown axis 'server'; known: servers, decoding",
    ),
    "an unknown axis": (
        "\nloads:", "\nload:",
        "line 12: load: unknown axis or key; did you mean loads?",
    ),
    "an unknown preset": (
        "vllm-eager", "vllm-eagr",
        "line 7: servers.vllm.preset: unknown preset 'vllm-eagr'; did you mean",
    ),
    "a command without a port": (
        "preset: vllm-eager", 'command: "python serve.py"',
        "line 7: servers.vllm.command: has no {port}",
    ),
    "a command with another placeholder": (
        "preset: vllm-eager", 'command: "serve {port} {modell}"',
        "line 7: servers.vllm.command: unknown {modell}; known: {port}",
    ),
    "quotes that do not close": (
        "preset: vllm-eager", """command: "serve {port} 'x" """,
        "line 7: servers.vllm.command: no closing quotation",
    ),
    "both a preset and a URL": (
        "preset: vllm-eager", "preset: vllm-eager\n    url: http://127.0.0.1:1",
        "servers.vllm: expected one of preset, command and url, has preset and url",
    ),
    "a URL that is none": (
        "preset: vllm-eager\n    max_num_seqs: 4\n    speculative: {tokens: 3, "
        "model: d}",
        "url: localhost",
        "line 7: servers.vllm.url: 'localhost' is not a base URL",
    ),
    "an option that the engine has not": (
        "{preset: transformers}", "{preset: transformers, tensor_parallel: 2}",
        "line 5: servers.transformers.tensor_parallel: transformers has no such option",
    ),
    "a health that is no path": (
        "preset: vllm-eager", "preset: vllm-eager\n    health: ready",
        "line 8: servers.vllm.health: 'ready' is no path, such as /health",
    ),
    "no model": ("model: m\n", "", "line 4: servers.transformers: no model"),
    "a rate of zero": ("rate: 2", "rate: 0", "line 13: loads.two.rate: expected"),
    "a rate that is none": ("rate: 2", "rate: .nan", "line 13: loads.two.rate: not"),
    "a date": ("rate: 2", "rate: 2024-01-01", "line 13: loads.two.rate: '2024-01-01'"),
    "a tag": ("rate: 2", "rate: !!python/name:os.x 2", "line 13: loads.two.rate: '2'"),
    "a name that climbs": ("two:", '"../x":', "line 13: loads.../x: a name has"),
    "a name that is a number": ("two:", "2:", "line 13: loads[2]: the key 2 is not"),
    "an empty axis": (
        "  two: {rate: 2}\n  all: {rate: .inf, concurrency: 4}\n", "  []\n",
        "line 12: loads: expected entries by name",
    ),
    "lengths beside a trace": (
        "input: 100", "trace: x.jsonl, input: 100",
        "line 11: workloads.conv: has its lengths from the trace",
    ),
    "a trace that is not there": (
        "input: 100, output: {mean: 20, sd: 5}", "trace: nowhere.jsonl",
        "line 11: workloads.conv.trace: no file",
    ),
    "half a workload": (
        "output: {mean: 20, sd: 5}, ", "",
        "line 11: workloads.conv: expected trace, or both input and output",
    ),
    "two paces": ("rate: 2", "rate: 2, speed: 2", "line 13: loads.two.speed: give"),
    "outputs that a server ignores": (
        "\nloads:", "\ndecoding: {n4: {n: 4, temperature: 1}}\nloads:",
        "line 12: decoding.n4.n: --n is 4, but a transformers server ignores it",
    ),
    "a beam that cannot be streamed": (
        "\nloads:", "\ndecoding: {wide: {beam: 4}}\nloads:",
        "skip: [{servers: transformers, decoding: wide}]",
    ),
    "nothing left": ("\nloads:", "\nskip: [{decoding: greedy}]\nloads:",
                     "line 12: skip: nothing is left to run"),
    "a baseline that is skipped": (
        "\nloads:", "\nskip: [{servers: transformers}]\nloads:",
        "line 3: baseline: skip leaves no cell of the baseline",
    ),
    "too many": (
        "\nloads:", "\nrepeat: 100000\nloads:", "line 12: repeat: expected int <=",
    ),
    "a simulated board that nobody built": (
        "{preset: transformers}", "{preset: transformers, simulate: {gpu: tpu}}",
        "line 5: servers.transformers.simulate: unknown gpu 'tpu' of the simulator",
    ),
    "an alias of itself": (
        "{preset: transformers}", "&a {preset: transformers, simulate: *a}",
        "servers.transformers.simulate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, name: str) -> None:
    before, after, said = EDITS[name]
    assert before in GOOD
    with pytest.raises(StudyFileError) as caught:
        read(tmp_path, GOOD.replace(before, after, 1))
    text = str(caught.value)
    assert said in text
    assert text.startswith(f"{tmp_path / 'study.yaml'}, line ")
    assert "\n" not in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "expected keys such as study"),
        (b"- 1", "expected keys such as study"),
        (b"a: [1\nb: 2", "line 2: not YAML"),
        (b"a: 1\na: 2\n", 'line 2: not YAML: found duplicate key "a"'),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"a: &a [*a]\n", "unknown axis or key"),
        (b"x" * (MAX_BYTES + 1), "not a study"),
        (b"study: x\n\x00: 1\n", "not YAML"),
        (b"study: x\nservers: {a: {url: 'http://h'}}\n", "required field workloads"),
    ],
    ids=["empty", "list", "open", "twice", "bytes", "itself", "long", "nul", "half"],
)
def test_what_is_no_study_is_one_line(tmp_path: Path, text: bytes, said: str) -> None:
    with pytest.raises(StudyFileError, match=r"study\.yaml") as caught:
        read(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"nowhere\.yaml: cannot be read: no such"):
        read_study(tmp_path / "nowhere.yaml")


def test_without_the_reader_of_yaml_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    with pytest.raises(UsageError, match=r"pip install 'servewatt\[studies\]'"):
        read(tmp_path, GOOD)


LINES = GOOD.splitlines(keepends=True)


@given(st.integers(0, len(LINES) - 1), st.text(max_size=12), st.booleans())
def test_a_spoilt_file_never_ends_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, at: int, text: str, takes: bool
) -> None:
    lines = [*LINES[:at], text, *LINES[at + takes :]]
    folder = tmp_path_factory.mktemp("spoilt")
    with suppress(LoadgenError):
        read(folder, "".join(lines).encode("utf-8", "surrogatepass"))
