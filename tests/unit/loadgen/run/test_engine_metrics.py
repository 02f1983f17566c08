"""Samples of an engine's page: names with labels, numbers only."""

from __future__ import annotations

import pytest

from loadgen.run.engine_metrics import samples_of

PAGE = """# TYPE a gauge
a{x="1",y="2"} 3
a{x="2",y="2"} NaN
# TYPE h histogram
h_bucket{le="1.0"} 2
h_bucket{le="+Inf"} 4
h_sum 5
h_count 4
# TYPE c counter
c_total 7
c_created 1.7e9
"""


def test_samples_are_named_as_in_the_page() -> None:
    assert samples_of(PAGE, with_buckets=False) == {
        'a{x="1",y="2"}': 3, "h_sum": 5, "h_count": 4, "c_total": 7,
    }  # fmt: skip
    assert samples_of(PAGE, with_buckets=True)['h_bucket{le="+Inf"}'] == 4


def test_what_is_no_page_raises_value_error() -> None:
    with pytest.raises(ValueError, match=r".*"):
        samples_of("<html>a b c d</html>", with_buckets=True)
