"""Reading what models and gateways write as tool calls."""

from __future__ import annotations

import pytest

from agentflow.models.origin import read_arguments, why_unreadable, with_unique_ids


@pytest.mark.parametrize(
    "ids",
    [["call_1", ""], ["a_2", "a", "a"], ["", "", ""], ["a", "a", "a_1"], ["a", "a", "a_1", "a_1_2", "a_1"]],
)
def test_every_call_gets_an_id_of_its_own(ids: list[str]) -> None:
    repaired = [
        item["id"] for item in with_unique_ids([{"id": id} for id in ids], "id", is_call=lambda _: True)
    ]
    assert len(set(repaired)) == len(ids)
    assert "" not in repaired


@pytest.mark.parametrize(
    ("written", "read"), [("", {}), (" ", {}), ('{"a": [1]}', {"a": [1]}), ("[1]", None)]
)
def test_arguments_are_an_object_or_nothing(written: str, read: object) -> None:
    assert read_arguments(written) == read


def test_arguments_that_cannot_be_kept_say_where() -> None:
    written = '{"a": {"b": "\\ud800"}}'
    assert read_arguments(written) is None
    assert why_unreadable(written) == (
        "The arguments cannot be taken: at $.a.b: it holds a lone surrogate, which has no UTF-8"
    )


def test_arguments_without_an_end_are_no_json() -> None:
    assert read_arguments('{"a": ' + "[" * 100_000) is None
    assert why_unreadable('{"a": ' + "[" * 100_000).startswith("The arguments are not a JSON object: ")
