"""Each fault is tried by a test, and the page says what the full forms said."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.catalogue import BEGIN, END, FAULTS, PAGE, render

TESTS = Path(__file__).parents[1]


def test_each_fault_has_a_test() -> None:
    tried = {
        int(number)
        for file in TESTS.rglob("test_*.py")
        for number in re.findall(r"pytest\.mark\.fault\((\d+)\)", file.read_text())
    }
    assert tried == set(FAULTS)


def test_the_page_says_what_was_seen() -> None:
    assert PAGE.read_text().partition(BEGIN)[2].partition(END)[0] == f"\n{render()}"
