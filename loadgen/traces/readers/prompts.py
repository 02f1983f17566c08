"""Plain prompt lists: HumanEval, MT-bench, any `{"prompt": ...}`, or bare texts.

HumanEval's tests and solutions are programs: they are skipped, never run.
MT-bench's questions are conversations of two turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from loadgen.traces.readers.line import Line, json_rows, portable
from loadgen.traces.trace import Session, TraceInfo, Turn

_ID_FIELDS = ("id", "task_id", "question_id")
_MAX_ID = 200
_PROGRAMS = ("canonical_solution", "test", "entry_point")


def recognises(row: dict[str, Any]) -> bool:
    """Whether the first object is a prompt or a list of turns, and no trace row."""
    return isinstance(row.get("turns"), list) or isinstance(row.get("prompt"), str)


def read(pieces: Iterable[str], info: TraceInfo) -> Iterator[Session]:
    """One session per row; without times, so driven by a rate."""
    for line in json_rows(pieces, info):
        session_id = _session_id(line)
        texts = _texts(line)
        info.kept += 1
        yield Session(
            session_id,
            tuple(
                Turn(
                    kind=_kind(line, info),
                    prompt=text,
                    output_tokens=_output_tokens(line),
                    history="append" if len(texts) > 1 else "total",
                    request_id=session_id if len(texts) == 1 else f"{session_id}-{k}",
                    extra=_extra(line),
                )
                for k, text in enumerate(texts, 1)
            ),
        )


def _session_id(line: Line) -> str:
    for field in _ID_FIELDS:
        if line.has(field):
            return str(portable(line.values[field]))[:_MAX_ID]
    return str(line.element or line.number)


def _texts(line: Line) -> list[str]:
    if not line.has("turns"):
        return [line.text("prompt")]
    texts = line.values["turns"]
    is_list = isinstance(texts, list) and len(texts) > 0
    if not is_list or not all(isinstance(t, str) and t.strip() for t in texts):
        line.fail("turns", "a list of texts that are not empty")
    return list(texts)


def _kind(line: Line, info: TraceInfo) -> str:
    if line.has("entry_point") or line.values.get("category") == "coding":
        return "code"
    return "conversation" if line.has("turns") else info.kind


def _output_tokens(line: Line) -> int | None:
    if not line.has("output_length"):
        return None
    return line.whole("output_length", least=1)


def _extra(line: Line) -> dict[str, Any]:
    """Leftovers worth keeping: neither the text again nor programs."""
    used = {"prompt", "turns", "output_length", "reference", *_ID_FIELDS, *_PROGRAMS}
    return line.others(used)
