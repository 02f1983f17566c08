"""Files of trace statistics, read and written for `loadgen traces synth`.

The edge of `loadgen.traces.synth`: a `tracestats/1` file, a data set of a
`length_bins/1` file, or any trace, of which the statistics are then taken.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import TraceError, UsageError
from loadgen.traces.catalogue import by_sha256
from loadgen.traces.readers.open import json_object, open_trace, sha256_of
from loadgen.traces.synth import VERSION, JointBins, Statistics, chained, statistics_of
from proxy.process.files import write_whole

LENGTH_BINS = "length_bins/1"
SCHEME = "pct8"

_HEAD_BYTES = 4096
"""Both formats name themselves at their start; a trace may be too long to read on."""


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
        except (ValueError, OverflowError) as error:
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
    """Origin of a file, by its bytes: licence and citation if it was published."""
    try:
        digests = [sha256_of(path, unpacked=unpacked) for unpacked in (False, True)]
    except OSError as error:
        raise TraceError(path, None, f"cannot be read: {error.strerror}") from None
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
    datasets = found.get("datasets")
    if not isinstance(datasets, dict):
        raise TraceError(path, None, f"datasets: not {LENGTH_BINS}: expected an object")
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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TraceError(path, None, f"{dataset}: not {LENGTH_BINS}: {error}") from None
    return Statistics(
        name=str(dataset),
        kind="code" if "code" in str(dataset) else "conversation",
        requests=requests,
        source={"path": path.name, "sha256": sha256_of(path)},
        lengths=bins,
    )


def _json_object(path: Path) -> dict[str, Any] | None:
    """The file as one JSON object, if it is one; a trace is None."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if b'"statistics"' not in head and LENGTH_BINS.encode() not in head:
            return None
        return json_object(path)
    except (OSError, ValueError, TraceError):
        return None  # the readers report what is wrong with it
