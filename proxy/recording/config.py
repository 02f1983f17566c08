"""Options of a recording."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from proxy.process.options import Option

SUFFIX = re.compile(r"\.jsonl(\.zst)?\Z")


def _path(text: str) -> str:
    if not SUFFIX.search(text) or SUFFIX.match(text.rpartition("/")[2]):
        raise ValueError(f"{text!r} is no trace.jsonl or trace.jsonl.zst")
    return text


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Where the traffic is recorded, under which secret, and how much of it is kept."""

    record: Annotated[
        str | None,
        Option(
            "Record what arrives as a trace for `loadgen replay`: times, lengths, "
            "sessions and keyed hashes of prompts, never text; such as "
            "trace.jsonl, or trace.jsonl.zst.",
            "PATH",
            heading="Recording",
            parse=_path,
        ),
    ] = None
    record_key_file: Annotated[
        str | None,
        Option(
            "Secret of the recording's hashes, so that they stay the same over "
            "restarts.",
            "PATH",
            default_is="a random key of each process",
        ),
    ] = None
    record_max_bytes: Annotated[
        int,
        Meta(ge=4096),
        Option("Begin another file of the recording beyond this.", "N"),
    ] = 64 * 1024 * 1024
    """A hundred thousand requests, as JSON."""
    record_max_files: Annotated[
        int,
        Meta(ge=1),
        Option("Files of the recording, the oldest go.", "N"),
    ] = 16
    """With the size, a gibibyte at most."""
