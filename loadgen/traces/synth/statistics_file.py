"""Read and write what is kept of a trace: the files that `traces synth` draws from.

The edge of `loadgen.traces.synth.synth`: a `tracestats/1` file, a data set of a
`length_bins/1` file, or any trace, of which the statistics are then taken.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any, cast

import msgspec

from loadgen.errors import TraceError, UsageError
from loadgen.traces.catalogue import by_sha256
from loadgen.traces.readers.open import open_trace
from loadgen.traces.synth.bins import JointBins
from loadgen.traces.synth.synth import VERSION, Statistics, chained, statistics_of
from proxy.process.files import write_whole

LENGTH_BINS = "length_bins/1"
SCHEME = "pct8"

_HEAD_BYTES = 4096
"""Both say what they are at once; a trace may be too long to look further."""


def load_statistics(
    path: Path,
    *,
    format: str | None = None,
    dataset: str | None = None,
    rebuild: bool = False,
) -> Statistics:
    """The statistics in a file, or of the trace in it.

    `dataset` names one of a length_bins file; `rebuild` chains rows that are one
    turn each into conversations. Raises `TraceError` and `UsageError`.
    """
    found = _json_object(path)
    if found is not None and found.get("statistics") == VERSION:
        try:
            return msgspec.convert(found, Statistics, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise TraceError(path, None, f"not {VERSION}: {error}") from None
    if found is not None and found.get("format") == LENGTH_BINS:
        return _from_length_bins(path, found, dataset)
    info, sessions = open_trace(path, format)
    return statistics_of(
        chained(sessions) if rebuild else sessions,
        name=info.name,
        source=info.header.get("source") or source_of(path),
    )


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics as JSON, a field a line."""
    values = msgspec.to_builtins(statistics, str_keys=True)
    lines = [f' "{key}": {json.dumps(value)}' for key, value in values.items()]
    try:
        write_whole(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None


def source_of(path: Path) -> dict[str, Any]:
    """Where a file comes from, by its bytes: licence and citation if published."""
    digests = [_sha256(path, unpacked=unpacked) for unpacked in (False, True)]
    for digest in digests:
        original = by_sha256(digest)
        if original is not None:
            return {
                "repo": original.repo,
                "commit": original.commit,
                "path": original.path,
                "sha256": digest,
                "licence": original.licence,
                "citation": original.citation,
            }
    return {"path": path.name, "sha256": digests[0]}


def _from_length_bins(
    path: Path, found: dict[str, Any], dataset: str | None
) -> Statistics:
    datasets = found.get("datasets") or {}
    if dataset not in datasets:
        asked = f"--dataset {dataset!r} is not in it" if dataset else "--dataset is"
        raise UsageError(
            f"{path}: {asked}{'' if dataset else ' needed'}; "
            f"it has: {', '.join(datasets)}"
        )
    chosen = datasets[dataset]
    try:
        bins = msgspec.convert(chosen["schemes"][SCHEME], JointBins, strict=False)
        requests = int(chosen["n"])
    except (KeyError, ValueError, msgspec.ValidationError) as error:
        raise TraceError(path, None, f"{dataset}: not {LENGTH_BINS}: {error}") from None
    return Statistics(
        name=str(dataset),
        kind="code" if "code" in str(dataset) else "conversation",
        requests=requests,
        source={"path": path.name, "sha256": _sha256(path, unpacked=False)},
        lengths=bins,
    )


def _json_object(path: Path) -> dict[str, Any] | None:
    """The file as one JSON object, if it is one; a trace is None."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if b'"statistics"' not in head and LENGTH_BINS.encode() not in head:
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # the readers say what is wrong with it
    return value if isinstance(value, dict) else None


def _sha256(path: Path, *, unpacked: bool) -> str:
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            # file_digest takes any readable binary file, its stub a narrower one
            file = gzip.GzipFile(fileobj=raw) if is_gzip and unpacked else raw
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    except OSError as error:
        raise TraceError(path, None, f"cannot be read: {error.strerror}") from None
