"""Dotted paths into events, and the correlations by which waits are found."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentflow.errors import ConfigurationError
from agentflow.matching import (
    LONGEST_PATH,
    MISSING,
    MOST_CORRELATIONS,
    check_path,
    correlation,
    correlations,
    find,
    has_correlation,
    is_match,
)

EVENT: dict[str, Any] = {
    "name": "support/ticket.created",
    "data": {
        "user_id": 5,
        "none": None,
        "items": [{"id": "a"}, {"id": "b"}],
        "0": "zero",
        "a.b": "dotted",
        "": "empty",
        "x=y": {"z": 1},
        "long": "x" * 1000,
    },
}

keys = st.text(alphabet="ab.0=é", max_size=3)
scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([1.0, 0.5, 1e20, "1", "", "x" * 300])
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
events = st.dictionaries(keys, json_values, max_size=3)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "support/ticket.created"),
        ("data.user_id", 5),
        ("data.none", None),
        ("data.items.1.id", "b"),
        ("data.items.0", {"id": "a"}),
        ("data.0", "zero"),
        ("data.x=y.z", 1),
        ("missing", MISSING),
        ("data.missing.deeper", MISSING),
        ("data.user_id.deeper", MISSING),
        ("data.items.2.id", MISSING),
        ("data.items.-1.id", MISSING),
        ("data.items.01.id", MISSING),
        ("data.items.x", MISSING),
        ("data.items.99999999999999999999", MISSING),
        ("data.items.٠.id", MISSING),
        ("data.a.b", MISSING),
        ("data.name.0", MISSING),
        ("", MISSING),
        ("a." * 1000, MISSING),
    ],
)
def test_a_path_leads_to_a_value_or_nowhere(path: str, value: Any) -> None:
    assert find(path, EVENT) == value


def of(value: Any) -> dict[str, Any]:
    return {"data": {"x": value}}


@pytest.mark.parametrize(
    ("first", "second"),
    [(5, 5), (1, 1.0), (10**20, 1e20), (None, None), ("é", "é"), ([1, {"a": 2}], [1.0, {"a": 2}]), ({}, {})],
)
def test_equal_json_values_match(first: Any, second: Any) -> None:
    assert is_match("data.x", of(first), of(second))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (5, "5"),
        (1, True),
        (0, False),
        (None, "null"),
        (None, 0),
        ("", None),
        ([], {}),
        ([1, 2], [2, 1]),
        ("é", "e"),
    ],
)
def test_different_json_values_do_not_match(first: Any, second: Any) -> None:
    assert not is_match("data.x", of(first), of(second))


def test_a_missing_path_never_matches() -> None:
    assert not is_match("data.x", {"data": {}}, {"data": {}})
    assert not is_match("data.x", of(None), {"data": {}})
    assert not is_match("data.x", {"data": {}}, of(None))


@given(events, keys.map(lambda key: f"data.{key}"))
@settings(max_examples=150, deadline=None)
def test_an_event_has_the_correlation_of_every_path_that_leads_somewhere(
    data: dict[str, Any], path: str
) -> None:
    event = {"data": data}
    found = correlations(event)
    assert found is not None
    value = find(path, event)
    if value is not MISSING and all(path.split(".")):
        assert correlation(path, value) in found
        assert has_correlation(event, correlation(path, value))


@given(events, events, st.sampled_from(["a", "b", "a.a", "a.0", "é", "=", "a=.b"]))
@settings(max_examples=150, deadline=None)
def test_events_share_the_correlation_of_a_path_exactly_when_they_match_there(
    first: dict[str, Any], second: dict[str, Any], path: str
) -> None:
    value = find(path, first)
    if value is MISSING:
        return
    wanted = correlation(path, value)
    assert (wanted in (correlations(second) or [])) == is_match(path, first, second)
    assert has_correlation(second, wanted) == is_match(path, first, second)


def test_a_key_with_a_dot_is_not_taken_for_a_path() -> None:
    found = correlations(EVENT)
    assert found is not None
    assert correlation("data.a.b", "dotted") not in found
    assert not has_correlation(EVENT, correlation("data.a.b", "dotted"))


def test_a_correlation_is_short_whatever_the_value() -> None:
    assert len(correlation("data.x", "x" * 100_000)) < 200
    assert correlation("data.x", "x" * 100_000) != correlation("data.x", "x" * 100_001)
    assert correlation("data.user_id", 5) == "data.user_id=5"


def test_a_hash_is_not_what_a_value_may_look_like() -> None:
    long = correlation("x", "y" * 1000)
    assert correlation("x", long.removeprefix("x=")) != long


def test_an_event_that_holds_too_much_is_unknown_and_still_compared_one_by_one() -> None:
    fitting = {"data": {f"k{n}": n for n in range(MOST_CORRELATIONS - 1)}}
    assert len(correlations(fitting) or []) == MOST_CORRELATIONS
    large = {"data": {f"k{n}": n for n in range(MOST_CORRELATIONS)}}
    assert correlations(large) is None
    assert has_correlation(large, correlation("data.k1999", 1999))
    assert not has_correlation(large, correlation("data.k1999", 2000))


def test_a_large_and_deep_event_does_not_take_long() -> None:
    value: Any = ["x" * 500_000]
    for _ in range(95):
        value = [value]
    began = time.process_time()
    assert correlations({"data": {"deep": value}}) is None
    assert correlations({"data": {"wide": [[]] * 200_000}}) is None
    assert time.process_time() - began < 1


def test_what_nests_without_end_is_unknown() -> None:
    value: Any = 1
    for _ in range(5000):
        value = {"a": value}
    assert correlations({"data": value}) is None


def test_a_path_longer_than_any_match_is_left_out() -> None:
    long = "k" * LONGEST_PATH
    event = {"data": {long: 1}}
    assert find(f"data.{long}", event) is MISSING
    assert all(len(text) < LONGEST_PATH for text in correlations(event) or [])


@pytest.mark.parametrize("path", ["", ".", "data.", ".x", "data..x", "x" * 257])
def test_a_path_that_can_never_match_is_a_configuration_error(path: str) -> None:
    with pytest.raises(ConfigurationError, match="path"):
        check_path(path)


def test_a_path_that_can_match_is_handed_back() -> None:
    assert check_path("data.user_id") == "data.user_id"
