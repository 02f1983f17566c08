"""Trace files written: the body as sessions come, the header once they are counted.

The edge of `loadgen.traces.writers`. A file appears under its name once it is complete.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import UsageError
from loadgen.traces.readers.mooncake import BLOCK_TOKENS
from loadgen.traces.readers.open import open_trace
from loadgen.traces.statistics_file import SCHEME, source_of
from loadgen.traces.synth import Statistics, SynthOptions, digest
from loadgen.traces.trace import Session, TraceInfo
from loadgen.traces.writers import WRITERS, loadtrace_header
from proxy.process.files import whole_file, write_whole


def convert_trace(
    trace: Path, out: Path, target: str, format: str | None = None
) -> tuple[TraceInfo, int]:
    """Write `trace` as `target`; returns what was read, and the requests written."""
    info, sessions = open_trace(trace, format)
    source = info.header.get("source") or source_of(trace)
    header = write_trace(sessions, info, out, target, source=source)
    return info, int(header["count"])


def write_synthetic(
    sessions: Iterable[Session],
    statistics: Statistics,
    options: SynthOptions,
    out: Path,
) -> None:
    """Write drawn sessions as `loadtrace/1`, with their origin in the header."""
    name = out.name.partition(".")[0]
    info = TraceInfo(name=name, format="loadtrace", kind=statistics.kind)
    arrivals = statistics.arrivals if options.with_arrivals else None
    synthetic: dict[str, Any] = {
        "scheme": SCHEME,
        "seed": options.seed,
        "bins_sha256": digest(statistics),
        "statistics": statistics.name,
        "arrivals": None if arrivals is None else arrivals.__struct_config__.tag,
    }
    if statistics.conversations is not None:
        synthetic["max_turns"] = options.max_turns
        synthetic["think_seconds"] = {
            "invented": "exponential", "mean": options.think_seconds
        }  # fmt: skip
    write_trace(
        sessions, info, out, "loadtrace",
        kind=statistics.kind, source=statistics.source, synthetic=synthetic,
    )  # fmt: skip


def write_trace(
    sessions: Iterable[Session],
    info: TraceInfo,
    out: Path,
    target: str,
    **more: Any,
) -> dict[str, Any]:
    """Write sessions in the format `target`; the header, wherever it was put.

    `loadtrace` has it as first line; Mooncake's readers would fail on that, so
    there it goes into a sidecar; tables have none.
    """
    span_seconds, count = 0.0, -WRITERS[target].title_lines

    def watched() -> Iterator[Session]:
        nonlocal span_seconds
        for session in sessions:
            last = max(turn.at_seconds or 0.0 for turn in session.turns)
            span_seconds = max(span_seconds, last)
            yield session

    lines = WRITERS[target].write(watched(), info)
    try:
        with tempfile.TemporaryFile(dir=out.parent) as body:
            for line in lines:
                body.write(line.encode() + b"\n")
                count += 1
            header = loadtrace_header(
                info, count=count, span_seconds=span_seconds, **more
            )
            body.seek(0)
            with whole_file(out) as whole:
                if target == "loadtrace":
                    whole.write(msgspec.json.encode(header) + b"\n")
                shutil.copyfileobj(body, whole)
        if target == "mooncake":
            header.setdefault("hash_block_size", BLOCK_TOKENS)
            sidecar = out.with_name(out.name + ".meta.json")
            write_whole(sidecar, msgspec.json.encode(header) + b"\n")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from None
    return header
