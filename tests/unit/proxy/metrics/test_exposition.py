"""The page as a parser reads it: what was put in comes out, whatever labels hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from proxy.metrics.exposition import END, Exemplar, head, histogram, sample
from proxy.process.tally import Tally, fine_edges

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
OPENMETRICS = pytest.mark.parametrize(
    "openmetrics", [False, True], ids=["text", "openmetrics"]
)


def parsed(page: str, openmetrics: bool) -> list[Any]:
    if openmetrics:
        families = openmetrics_parser.text_string_to_metric_families(  # type: ignore[no-untyped-call]
            page + END
        )
        return list(families)
    return list(text_string_to_metric_families(page))


@OPENMETRICS
@given(label=TEXTS, text=TEXTS, value=st.floats(0, 1e300) | st.just(math.inf))
def test_a_counter_is_read_as_it_was_written(
    openmetrics: bool, label: str, text: str, value: float
) -> None:
    page = head("x_total", "counter", text, openmetrics=openmetrics)
    page += sample("x_total", ("engine", "reason"), (label, "r"), value)
    (family,) = parsed(page, openmetrics)
    (found,) = family.samples
    assert (family.type, found.name, found.value) == ("counter", "x_total", value)
    assert found.labels == {"engine": label, "reason": "r"}


@OPENMETRICS
@given(
    values=st.lists(st.floats(0, 1e5), min_size=1, max_size=30),
    label=TEXTS,
    request_id=TEXTS,
)
def test_a_histogram_is_cumulative_and_keeps_its_exemplars(
    openmetrics: bool, values: list[float], label: str, request_id: str
) -> None:
    tally, exemplars = Tally(fine_edges(0, 2)), {}
    for value in values:
        bucket = tally.add(value)
        exemplars[bucket] = Exemplar(request_id, value, 1.8e9)
    page = head("x", "histogram", "Help.", openmetrics=openmetrics) + "".join(
        histogram("x", ("engine",), (label,), tally, exemplars if openmetrics else None)
    )
    (family,) = parsed(page, openmetrics)
    found = {(s.name, s.labels.get("le")): s for s in family.samples}
    assert all(s.labels["engine"] == label for s in family.samples)
    for edge in (*tally.edges, math.inf):
        (bucket,) = [
            s for (_, le), s in found.items() if le is not None and float(le) == edge
        ]
        assert bucket.value == sum(value <= edge for value in values)
        if openmetrics and bucket.exemplar is not None:
            assert bucket.exemplar.labels == {"request_id": request_id}
            assert bucket.exemplar.value in values
    assert found["x_count", None].value == len(values)
    assert found["x_sum", None].value == pytest.approx(sum(values))


def test_without_labels_there_are_no_braces() -> None:
    assert sample("x", (), (), 1.0) == "x 1.0\n"
    lines = list(histogram("x", (), (), Tally((1.0,))))
    assert lines == [
        'x_bucket{le="1.0"} 0.0\n',
        'x_bucket{le="+Inf"} 0.0\n',
        "x_count 0.0\n",
        "x_sum 0.0\n",
    ]
