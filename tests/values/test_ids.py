"""Generated ids sort by time and stay distinct; ids that people choose are checked once."""

import threading
import uuid

import pytest

from agentflow.errors import InvalidInput
from agentflow.ids import IdSource, is_generated_id, validate_id

NOW = 1_760_000_000_000_000


def test_an_id_is_a_uuid7_of_its_time_behind_a_prefix() -> None:
    prefix, _, text = IdSource().new_id("run", NOW).partition("_")
    parsed = uuid.UUID(text)
    assert prefix == "run"
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == NOW // 1000


def test_ids_of_one_millisecond_are_distinct_and_in_order() -> None:
    source = IdSource()
    ids = [source.new_id("evt", NOW) for _ in range(5000)]
    assert ids == sorted(set(ids))


def test_ids_grow_when_the_clock_steps_back() -> None:
    source = IdSource()
    first = source.new_id("evt", NOW)
    assert source.new_id("evt", NOW - 60_000_000) > first
    assert source.new_id("evt", NOW + 1000) > first


def test_a_full_millisecond_goes_on_in_the_next_one() -> None:
    source = IdSource(random_bytes=lambda n: b"\xff" * n)
    first = source.new_id("evt", NOW)
    source._counter = 2**42 - 1
    following = source.new_id("evt", NOW)
    assert following > first
    assert uuid.UUID(following[4:]).int >> 80 == NOW // 1000 + 1


def test_two_processes_do_not_meet() -> None:
    assert len({IdSource().new_id("run", NOW) for _ in range(1000)}) == 1000


def test_threads_do_not_get_the_same_id() -> None:
    source = IdSource()
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.extend([source.new_id("run", NOW) for _ in range(500)]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == len(ids) == 4000


def test_a_generated_id_is_recognised_by_prefix_and_form() -> None:
    made = IdSource().new_id("run", NOW)
    assert is_generated_id(made, "run")
    assert not is_generated_id(made, "evt")
    assert not is_generated_id(made + "\n", "run")
    assert not is_generated_id("run_1' OR 1=1", "run")
    assert not is_generated_id(f"run_{uuid.uuid4()}", "run")


@pytest.mark.parametrize("value", ["a", " ", "charge:1@0", "é\U0001f600", "x" * 512, "é" * 256, "a\nb"])
def test_any_non_empty_text_is_an_id(value: str) -> None:
    assert validate_id(value) == value


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "the step id is empty"),
        ("x" * 513, "longer than 512 bytes"),
        ("é" * 257, "longer than 512 bytes"),
        ("a\x00", "NUL"),
        ("a\ud800", "lone surrogate"),
        (5, "is a int"),
        (None, "is a NoneType"),
        (b"a", "is a bytes"),
    ],
)
def test_what_cannot_be_an_id_is_invalid_input_with_the_reason(value: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        validate_id(value, "step id")
