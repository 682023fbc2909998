"""The page says what the full forms of the fault tests said."""

from __future__ import annotations

from tests.faults.catalogue import BEGIN, END, PAGE, render


def test_the_page_says_what_was_seen() -> None:
    assert PAGE.read_text().partition(BEGIN)[2].partition(END)[0] == f"\n{render()}"
