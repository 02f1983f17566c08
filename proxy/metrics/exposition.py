"""The text that Prometheus reads, in its own format or as OpenMetrics.

Written here because a page is made while streams flow: `prometheus_client` takes 14 us
a line, which is a quarter of a second for sixty classes of requests; this takes half
a microsecond. Its parser and promtool judge the result in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.utils import floatToGoString

from proxy.process.tally import Tally

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"

END = "# EOF\n"
"""The last line of an OpenMetrics page."""


class Exemplar(NamedTuple):
    """One value that a bucket counted, and whose it was."""

    request_id: str
    value: float
    unix_seconds: float


def head(name: str, kind: str, text: str, *, openmetrics: bool) -> str:
    """HELP and TYPE of a metric; OpenMetrics calls a counter by its base name."""
    if openmetrics and kind == "counter":
        name = name.removesuffix("_total")
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def sample(
    name: str, labels: tuple[str, ...], values: tuple[str, ...], value: float
) -> str:
    """One line of a counter or a gauge."""
    inner = _inner(labels, values)
    shown = f"{{{inner}}}" if inner else ""
    return f"{name}{shown} {_shown(value)}\n"


def histogram(
    name: str,
    labels: tuple[str, ...],
    values: tuple[str, ...],
    tally: Tally,
    exemplars: Mapping[int, Exemplar] | None = None,
) -> Iterable[str]:
    """All lines of one histogram; `exemplars` by bucket, where they are wanted.

    Another thread may go on counting: the count is that of the buckets shown.
    """
    total, counts = tally.total, tuple(accumulate(tuple(tally.counts)))
    inner = _inner(labels, values)
    begin = f'{name}_bucket{{{inner}{"," if inner else ""}le="'
    edges = _edges(tally.edges)
    if exemplars:
        for bucket, (edge, count) in enumerate(zip(edges, counts, strict=True)):
            found = exemplars.get(bucket)
            shown = "" if found is None else _exemplar(found)
            yield f'{begin}{edge}"}} {count}.0{shown}\n'
    else:
        for edge, count in zip(edges, counts, strict=True):
            yield f'{begin}{edge}"}} {count}.0\n'
    shown = f"{{{inner}}}" if inner else ""
    yield f"{name}_count{shown} {counts[-1]}.0\n"
    yield f"{name}_sum{shown} {_shown(total)}\n"


def _shown(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]  # theirs
    return text


def _exemplar(found: Exemplar) -> str:
    value = _shown(found.value)
    name = _escaped(found.request_id)
    return f' # {{request_id="{name}"}} {value} {found.unix_seconds:.3f}'


def _inner(labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = zip(labels, values, strict=True)
    return ",".join([f'{label}="{_escaped(value)}"' for label, value in pairs])


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


_shown_edges: dict[tuple[float, ...], tuple[str, ...]] = {}


def _edges(edges: tuple[float, ...]) -> tuple[str, ...]:
    shown = _shown_edges.get(edges)
    if shown is None:
        shown = (*map(_shown, edges), "+Inf")
        _shown_edges[edges] = shown
    return shown
