"""What is shown cannot deceive, and a table is a table only on a terminal."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from agentflow.cli import output
from agentflow.cli.approvals import typed_like
from agentflow.cli.output import as_text, duration, money, shortened, show_table, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 漢", "plain ünïcode 漢"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("pay\u202e001\u200b", "pay\\u202e001\\u200b"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_characters_that_hide_or_command_are_shown_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert as_text({"key": text}).count("\x1b") == 0


def test_without_a_terminal_cells_are_separated_by_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name", "value"), [("a\tb", None), ("c", 1)], empty="nothing")
    assert capsys.readouterr().out == "NAME\tVALUE\na\\tb\t\nc\t1\n"


def test_an_empty_table_says_so_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("name",), [], empty="nothing here")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nothing here\n")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.314, "0.31 s"), (65, "1 m 05 s"), (3_720, "1 h 02 m"), (300_000, "3 d 11 h")]
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown == as_text(timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("cost", "shown"),
    [(None, "unknown"), (Decimal(0), "$0"), (Decimal("0.000123"), "$0.000123"), (Decimal("12.50"), "$12.5")],
)
def test_a_cost_that_is_not_known_is_not_zero(cost: Decimal | None, shown: str) -> None:
    assert money(cost) == shown


def test_times_are_the_readers_own() -> None:
    instant = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert as_text(instant) == instant.astimezone().strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("value", "text", "meant"),
    [
        ("1001", "1002", "1002"),
        ("a", "true", "true"),
        (5, "6", 6),
        (5, "six", "six"),
        ([1], "[2]", [2]),
        (True, "false", False),
    ],
)
def test_what_is_typed_is_of_the_kind_it_replaces(value: object, text: str, meant: object) -> None:
    assert typed_like(value, text) == meant


def test_on_a_terminal_ids_are_as_long_as_a_person_has_to_type_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["run_01a2043e-dc44-7769-b389-d1406b1e0549", "run_01a2043e-dc44-7770-b389-d1406b1e0549"]
    assert shortened(ids) == ids
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    assert shortened(ids[:1]) == ["run_01a2043e-dc44"]
    assert shortened(ids) == ["run_01a2043e-dc44-776", "run_01a2043e-dc44-777"]
    assert shortened([]) == []


def test_on_a_terminal_the_date_of_today_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    now = datetime.now(UTC)
    assert as_text(now) in now.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert as_text(datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)).startswith("2020-01-0")


@pytest.mark.parametrize("command", ["--version", "--help"])
def test_an_output_that_is_full_is_told_in_a_line(command: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "agentflow", command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    expected = "agentflow: what there is to tell cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, expected)
