from __future__ import annotations

import numpy as np
import pytest

from proxy.meter.ledger import CLASSES, Closing, Ledger


def closing(end: float, measured: float, keys: list[int], each: float) -> Closing:
    """Every request gets `each` joules of prefill, as much decode and idle share."""
    count = len(keys)
    return Closing(
        end,
        measured,
        idle_joules=2.0,
        keys=keys,
        idle_share_joules=np.full(count, each),
        policy_joules=np.full((2, count, 2), each),
    )


def ledger() -> Ledger:
    made = Ledger(["equal", "phase"], "phase")
    made.begin(10.0)
    return made


def test_what_is_posted_to_entries_is_what_the_books_show() -> None:
    books_of = ledger()
    books_of.open(1, ("m", "code", "a"))
    books_of.open(2, ("m", "chat", "a"))
    books_of.close(closing(11.0, 8.0, [1, 2], 1.0))
    books = books_of.books_at()
    assert books is not None
    assert (books.prefill_joules, books.decode_joules) == (2.0, 2.0)
    assert (books.idle_share_joules, books.idle_joules) == (2.0, 2.0)
    assert books.residual_joules == 0.0
    by_policy, share = books_of.entry(1)
    assert by_policy.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert share == 1.0


def test_a_joule_lost_on_the_way_shows_as_residual() -> None:
    books_of = ledger()
    books_of.open(1, ("m", "code", "a"))
    books_of.close(closing(11.0, 9.5, [1], 1.0))
    books = books_of.books_at()
    assert books is not None
    assert books.residual_joules == pytest.approx(4.5)


def test_books_between_two_windows_are_in_proportion_to_time() -> None:
    books_of = ledger()
    books_of.open(1, ("m", "code", "a"))
    books_of.close(closing(11.0, 5.0, [1], 1.0))
    books_of.close(closing(13.0, 10.0, [1], 1.0))
    books = books_of.books_at(12.5)
    assert books is not None
    assert books.settled_seconds == 12.5
    assert books.measured_joules == pytest.approx(8.75)
    assert books.decode_joules == pytest.approx(1.75)
    assert books.residual_joules == pytest.approx(0.0)


def test_books_outside_of_what_is_kept_are_those_of_the_nearest_end() -> None:
    books_of = ledger()
    books_of.close(closing(11.0, 2.0, [], 0.0))
    early, late = books_of.books_at(1.0), books_of.books_at(99.0)
    assert early is not None
    assert late is not None
    assert (early.settled_seconds, early.measured_joules) == (10.0, 0.0)
    assert (late.settled_seconds, late.measured_joules) == (11.0, 2.0)


def test_asking_changes_nothing() -> None:
    books_of = ledger()
    books_of.close(closing(11.0, 2.0, [], 0.0))
    assert books_of.books_at(10.3) == books_of.books_at(10.3)
    assert books_of.books_at() == books_of.books_at()


def test_before_the_first_edge_there_are_no_books() -> None:
    assert Ledger(["phase"], "phase").books_at() is None


def test_a_released_entry_starts_again_from_zero() -> None:
    books_of = ledger()
    for key in range(3):
        books_of.open(key, ("m", "code", "a"))
    books_of.close(closing(11.0, 5.0, [1], 1.0))
    books_of.release(1)
    books_of.open(7, ("m", "chat", "b"))
    assert books_of.entry(7)[0].sum() == 0.0
    assert books_of.class_joules[("m", "code", "a")] == (1.0, 1.0, 1.0)
    assert books_of.class_joules[("m", "chat", "b")] == (0.0, 0.0, 0.0)


def test_many_entries_fit() -> None:
    books_of = ledger()
    for key in range(1000):
        books_of.open(key, ("m", "code", "a"))
    books_of.close(closing(11.0, 3002.0, list(range(1000)), 1.0))
    assert all(books_of.entry(key)[1] == 1.0 for key in range(1000))
    books = books_of.books_at()
    assert books is not None
    assert books.residual_joules == pytest.approx(0.0)


def test_classes_beyond_the_bound_share_one() -> None:
    books_of = ledger()
    for number in range(CLASSES + 50):
        books_of.open(number, ("m", "code", f"tenant{number}"))
        books_of.count_tokens(number, (1, None, 2))
    assert len(books_of.class_tokens) == CLASSES
    assert books_of.class_tokens[("other", "other", "other")] == (51, 0, 102)


def test_unattributed_joules_keep_their_reason() -> None:
    books_of = ledger()
    lost = {"sensor_gap": 7.0, "unmetered": 2.0}
    books_of.close(Closing(11.0, 9.0, unattributed_joules=lost))
    books = books_of.books_at()
    assert books is not None
    assert books.unattributed_joules == lost
    assert books.residual_joules == 0.0


def test_an_entry_without_a_class_joins_one_with_all_it_has() -> None:
    ledger = Ledger(["phase", "equal"], "phase")
    ledger.begin(0.0)
    ledger.open(1, None)
    ledger.close(closing(1.0, 17.0, [1], 5.0))
    assert ledger.class_joules == {}
    ledger.classify(1, ("m", "chat", "a"))
    assert ledger.class_joules == {("m", "chat", "a"): (5.0, 5.0, 5.0)}
    ledger.close(closing(2.0, 22.0, [1], 1.0))
    assert ledger.class_joules == {("m", "chat", "a"): (6.0, 6.0, 6.0)}
