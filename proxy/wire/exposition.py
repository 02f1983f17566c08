"""Prometheus text: the few samples that a reader wants out of a page of thousands."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

MAX_LINES = 4096
"""For one read: 16 boards in 64 pods have 2,048."""


def samples_named(text: str, names: Sequence[str]) -> list[Sample]:
    """Samples with one of these names, in the order of the page.

    Only lines that begin with a name are parsed: the library needs 15 ms for the page
    of one vLLM (570 lines) and 170 ms for one of eight ranks (3,800), so 0.3 and 2 ms.
    Types are left out with them, so a counter keeps its name also without `_total`.
    Raises ValueError where one of these lines is not in Prometheus' format, and where
    there are over `MAX_LINES`.
    """
    starts = tuple(names)
    lines = [line for line in text.splitlines() if line.startswith(starts)]
    if len(lines) > MAX_LINES:
        raise ValueError(f"{len(lines)} lines of {', '.join(names)}")
    wanted = "\n".join(lines)
    return [
        sample
        for family in text_string_to_metric_families(wanted + "\n")
        for sample in family.samples
        if sample.name in names
    ]
