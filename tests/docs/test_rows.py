"""Rows of a table that a command replaces."""

import pytest

from docs.generators.rows import with_rows

PAGE = """before
<!-- begin: make -->

| a | b | n |
|---|---|---|
| x | 1 | 5 |
| y, z | 2 | 6 |
| gone | 1 | 7 |

<!-- end: make -->
after
"""
ORDER = [("y, z", "1"), ("y, z", "2"), ("x", "1")]


def test_rows_are_replaced_ordered_and_dropped():
    lines = ["| x | 1 | 8 |", "| y, z | 1 | 9 |"]
    page = with_rows(PAGE, lines, head="| a | b | n |\n|---|---|---|", order=ORDER, command="make")
    assert page == (
        "before\n<!-- begin: make -->\n\n| a | b | n |\n|---|---|---|\n| y, z | 1 | 9 |\n"
        "| y, z | 2 | 6 |\n| x | 1 | 8 |\n\n<!-- end: make -->\nafter\n"
    )


def test_a_page_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="begin: make"):
        with_rows("nothing", [], head="", order=ORDER, command="make")
