"""The largest batch that fits is found with few questions, and none is asked twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadgen.studies.batch_search import FINE_PARTS, Probe, largest_batch


@given(st.integers(0, 5000), st.integers(1, 2048))
def test_it_is_the_largest_but_for_a_sixteenth(holds: int, most: int) -> None:
    found, tried = largest_batch(lambda n: Probe(n, n <= holds), most)
    sizes = [one.batch for one in tried]
    assert len(set(sizes)) == len(sizes)
    assert all(1 <= size <= most for size in sizes)
    assert len(sizes) <= 24
    if not holds:
        assert found is None
        return
    assert found is not None
    true = min(holds, most)
    assert true - max(1, true // FINE_PARTS) <= found <= true
    assert Probe(found, True) in tried


def test_up_to_thirty_two_it_is_exact() -> None:
    def of(holds: int) -> int | None:
        return largest_batch(lambda n: Probe(n, n <= holds), 64)[0]

    assert [of(holds) for holds in range(1, 33)] == list(range(1, 33))


def test_a_length_that_never_fits_is_asked_for_once() -> None:
    found, tried = largest_batch(lambda n: Probe(n, False, "long", is_final=True), 64)
    assert found is None
    assert [one.batch for one in tried] == [1]
