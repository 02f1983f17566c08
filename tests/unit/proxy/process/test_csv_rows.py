"""Rows of csv are read as they were written."""

from __future__ import annotations

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from proxy.process.csv_rows import csv_line, csv_text

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_whatever_a_cell_holds_its_row_is_read_as_one(cells: list[str]) -> None:
    rows = list(csv.reader(io.StringIO(csv_line(cells).decode(), newline="")))
    assert [cell.removeprefix("'") for cell in rows[0]] == [
        cell.removeprefix("'") for cell in cells
    ]
    assert len(rows) == 1


def test_a_table_has_its_heads_and_nothing_for_what_is_not_known() -> None:
    assert csv_text(["name", "is_real"], [["=1+1", True], [None, False]]) == (
        "name,is_real\n'=1+1,true\n,false\n"
    )
