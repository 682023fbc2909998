"""The JSON round trip: what comes back equal passes, what would not is refused by step and path."""

from __future__ import annotations

import functools
import inspect
import math
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from typing_extensions import TypedDict

from agentflow.codec import (
    PLAIN,
    canonical_json,
    check_depth,
    codec_for,
    codec_for_return,
    digest,
    loads,
    return_annotation,
)
from agentflow.errors import ConfigurationError, InvalidInput, Unserialisable

if TYPE_CHECKING:
    from fractions import Fraction

T = TypeVar("T")


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Ticket(BaseModel):
    id: str
    amount: Decimal = Decimal(0)
    when: datetime | None = None
    extra: Any = None


class Urgent(Ticket):
    level: Level = Level.HIGH


class Aliased(BaseModel):
    user_id: int = Field(alias="userId")


class HalfAliased(BaseModel):
    user_id: int = Field(serialization_alias="userId")


class Private(BaseModel):
    id: str
    _note: str = PrivateAttr("")


class Bare(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    x: float


class Tree(BaseModel):
    children: list[Tree] = []


class Box(BaseModel, Generic[T]):
    content: T


@dataclass
class Point:
    x: int
    y: int = 0


@dataclass(eq=False)
class Silent:
    x: int


class Pair(NamedTuple):
    left: int
    right: str


class Address(TypedDict):
    city: str


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def same_type(a: Any, b: Any) -> bool:
    """Equal, and of equal types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_type(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_type, a, b))
    return bool(a == b)


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


# --- without an annotation --------------------------------------------------------------------------


@given(plain_json)
@settings(max_examples=200, deadline=None)
def test_plain_json_comes_back_with_the_same_types(value: Any) -> None:
    text, back = PLAIN.round_trip(value, "step 'a'")
    assert same_type(back, value)
    assert same_type(PLAIN.decode(text), value)


@given(plain_json)
@settings(max_examples=100, deadline=None)
def test_an_annotation_of_any_in_containers_keeps_plain_json(value: Any) -> None:
    assert same_type(codec_for(dict[str, Any]).round_trip({"v": value}, "a")[1], {"v": value})


@pytest.mark.parametrize("value", [10**30, -(10**400), 2**63, 2**64, 2**53 + 1, -(2**63) - 1])
@pytest.mark.parametrize("annotation", [Any, int, list[int] | int, dict[str, Any] | int])
def test_big_integers_survive(value: int, annotation: Any) -> None:
    assert codec_for(annotation).round_trip(value, "a")[1] == value


@pytest.mark.parametrize("value", ["", "é", "\U0001f600", "\\u0000", "\u2028", '"', "Infinity NaN"])
@pytest.mark.parametrize("annotation", [Any, str, dict[str, Any] | str])
def test_odd_but_legal_text_survives(value: str, annotation: Any) -> None:
    assert codec_for(annotation).round_trip(value, "a")[1] == value


@pytest.mark.parametrize("annotation", [Any, float])
def test_the_sign_of_zero_survives(annotation: Any) -> None:
    assert math.copysign(1, codec_for(annotation).round_trip(-0.0, "a")[1]) == -1


def test_tuples_come_back_as_lists() -> None:
    assert PLAIN.round_trip(((1, (2,)), {"a": (3,)}), "a")[1] == [[1, [2]], {"a": [3]}]


def test_the_value_handed_back_is_a_new_one() -> None:
    value = {"a": [1]}
    back = PLAIN.round_trip(value, "a")[1]
    value["a"].append(2)
    assert back == {"a": [1]}


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1}, "$"),
        (frozenset(), "$"),
        (b"x", "$"),
        ({"items": [0, 1, 2, {"when": datetime(2025, 1, 1, tzinfo=UTC)}]}, "$.items[3].when"),
        ({"a b": {"c": Ticket(id="1")}}, "$['a b'].c"),
        ({"a": {1: 2}}, "$.a"),
        ({None: 2}, "$"),
        ([Decimal(1)], "$[0]"),
        ([math.nan], "$[0]"),
        ({"a": math.inf}, "$.a"),
        ({"a": -math.inf}, "$.a"),
        ({"a": "x\x00"}, "$.a"),
        ({"\x00": 1}, "$"),
        ("\ud800", "$"),
        ({"\udfff": 1}, "$"),
        ([10**5000], "$[0]"),
        (object(), "$"),
        (UUID(int=1), "$"),
        (iter([1]), "$"),
        (Point(1), "$"),
    ],
)
def test_what_is_not_plain_json_is_refused_by_step_and_path(value: object, path: str) -> None:
    with pytest.raises(Unserialisable) as refused:
        PLAIN.encode(value, "step 'charge'")
    assert str(refused.value).startswith(f"step 'charge': at {path}: ")


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(Unserialisable, match="annotate the return type"):
        PLAIN.encode(datetime.now(UTC), "a")


def test_a_value_that_holds_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    for annotation in (Any, list):
        with pytest.raises(Unserialisable, match="nested deeper than 100"):
            codec_for(annotation).encode(ring, "a")


def test_a_value_whose_equality_raises_is_refused_and_not_raised_through() -> None:
    class Odd(dict[str, Any]):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("no")

    assert PLAIN.round_trip(Odd(a=1), "a")[1] == {"a": 1}


# --- depth --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("annotation", [Any, list, list[Any]])
def test_a_hundred_levels_pass_and_one_more_does_not(annotation: Any) -> None:
    codec = codec_for(annotation)
    assert codec.round_trip(nested(100), "a")[1] == nested(100)
    with pytest.raises(Unserialisable, match="nested deeper than 100"):
        codec.encode(nested(101), "a")
    with pytest.raises(Unserialisable, match="nested deeper than 100"):
        codec.encode(nested(300), "a")


def test_many_siblings_are_not_depth() -> None:
    value = [{"a": [n]} for n in range(1000)]
    assert PLAIN.round_trip(value, "a")[1] == value
    assert codec_for(list[dict[str, list[int]]]).round_trip(value, "a")[1] == value


def test_a_model_is_counted_in_depth_too() -> None:
    tree = Tree()
    for _ in range(60):
        tree = Tree(children=[tree])
    with pytest.raises(Unserialisable, match="nested deeper than 100"):
        codec_for(Tree).encode(tree, "a")


# --- with an annotation -------------------------------------------------------------------------------

PARIS = ZoneInfo("Europe/Paris")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (None, None),
        (bool, True),
        (int, 1),
        (float, 1.5),
        (float, 1e308),
        (float, 5e-324),
        (int | bool, True),
        (int | bool, 1),
        (int | float, 1),
        (int | float, 1.0),
        (int | str, "5"),
        (str | int, 5),
        (Literal[1, "1"], "1"),
        (bytes, b"abc"),
        (Colour, Colour.RED),
        (Level, Level.HIGH),
        (Decimal, Decimal("1.10")),
        (Decimal, Decimal("1E+50")),
        (UUID, UUID(int=7)),
        (date, date(2025, 1, 31)),
        (timedelta, timedelta(days=400, microseconds=1)),
        (datetime, datetime(2025, 1, 1, 12, 0, 0, 1, tzinfo=UTC)),
        (datetime, datetime(2025, 7, 1, tzinfo=PARIS)),
        (datetime, datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=PARIS)),
        (datetime, datetime(2025, 10, 26, 2, 30, fold=0, tzinfo=PARIS)),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2)),
        (Pair, Pair(1, "a")),
        (set[int], {1, 2, 99}),
        (frozenset[str], frozenset({"a", "b"})),
        (dict[int, str], {1: "a"}),
        (dict[Colour, int], {Colour.RED: 1}),
        (dict[date, int], {date(2025, 1, 1): 1}),
        (Mapping[str, int], {"a": 1}),
        (Sequence[int], [1]),
        (Address, {"city": "Paris"}),
        (Point, Point(1, 2)),
        (Silent | None, None),
        (Ticket, Ticket(id="1", amount=Decimal("2.50"), when=datetime(2025, 1, 1, tzinfo=UTC), extra=[1])),
        (Ticket | Urgent, Urgent(id="1")),
        (Urgent | Ticket, Ticket(id="1")),
        (list[Ticket], [Ticket(id="1"), Ticket(id="2")]),
        (Box[Ticket], Box[Ticket](content=Ticket(id="1"))),
        (Aliased, Aliased(userId=1)),
        (HalfAliased, HalfAliased(user_id=1)),
        (Annotated[int, ["not hashable"]], 1),
        (Awaitable[Ticket], Ticket(id="1")),
        (Coroutine[Any, Any, tuple[int, int]], (1, 2)),
    ],
)
def test_a_value_of_its_type_comes_back_equal_and_of_that_type(annotation: Any, value: Any) -> None:
    codec = codec_for(annotation)
    text, back = codec.round_trip(value, "a")
    again = codec.decode(text)
    assert type(back) is type(value)
    assert type(again) is type(value)
    if isinstance(value, datetime):
        assert back.astimezone(UTC) == again.astimezone(UTC) == value.astimezone(UTC)
    else:
        assert back == again == value


def test_a_dataclass_without_equality_is_compared_by_its_fields() -> None:
    back = codec_for(Silent).round_trip(Silent(1), "a")[1]
    assert isinstance(back, Silent)
    assert back.x == 1


@pytest.mark.parametrize(
    ("annotation", "value", "path"),
    [
        (None, 3, "$"),
        (int, 1.0, "$"),
        (int, "1", "$"),
        (int, Decimal(1), "$"),
        (bool, 1, "$"),
        (str, 5, "$"),
        (str, b"x", "$"),
        (float, math.nan, "$"),
        (float | None, math.nan, "$"),
        (float | None, math.inf, "$"),
        (float, 2**53 + 1, "$"),
        (Decimal, Decimal("NaN"), "$"),
        (bytes, b"\xff", "$"),
        (str, "\ud800", "$"),
        (str, "\x00", "$"),
        (dict[str, str], {"a": "\x00"}, "$.a"),
        (dict[str, str], {"\x00": "a"}, "$"),
        (set[str], {"\x00"}, "$[*]"),
        (list[int], [1, 2.0], "$[1]"),
        (list[bool], [True, 1], "$[1]"),
        (tuple[int, int], [1, 2], "$"),
        (dict[str, tuple[int, ...]], {"a": [1]}, "$.a"),
        (dict, {1: 2}, "$[1]"),
        (dict[str, Any], {"a": {"when": datetime(2025, 1, 1, tzinfo=UTC)}}, "$.a.when"),
        (dict[str, Any], {"a": {1}}, "$.a"),
        (Ticket, {"id": "1"}, "$"),
        (Ticket, Urgent(id="1"), "$"),
        (Ticket, Ticket(id="1", extra={"when": date(2025, 1, 1)}), "$.extra.when"),
        (Ticket, Ticket(id="1", extra=[math.nan]), "$.extra[0]"),
        (Ticket, Ticket.model_construct(id=5), "$"),
        (Bare, Bare(x=math.inf), "$.x"),
        (Point, Point(1.0), "$.x"),  # type: ignore[arg-type]
        (int | None, Ticket(id="1"), "$"),
    ],
)
def test_what_would_come_back_changed_is_refused_by_step_and_path(
    annotation: Any, value: Any, path: str
) -> None:
    with pytest.raises(Unserialisable) as refused:
        codec_for(annotation).encode(value, "step 'charge'")
    assert str(refused.value).startswith(f"step 'charge': at {path}: ")


def test_a_private_attribute_that_would_be_lost_is_refused() -> None:
    ticket = Private(id="1")
    assert codec_for(Private).round_trip(ticket, "a")[1] == ticket
    ticket._note = "lost"
    with pytest.raises(Unserialisable, match="private attributes of Private"):
        codec_for(Private).encode(ticket, "a")


def test_an_int_where_a_float_is_announced_is_a_float_at_once() -> None:
    assert type(codec_for(float).round_trip(1, "a")[1]) is float


def test_a_tuple_is_a_list_unless_the_annotation_says_tuple() -> None:
    assert codec_for(list[int]).round_trip((1, 2), "a")[1] == [1, 2]
    assert codec_for(dict[str, Any]).round_trip({"a": (1,)}, "a")[1] == {"a": [1]}
    assert codec_for(Ticket).round_trip(Ticket(id="1", extra=(1, 2)), "a")[1].extra == [1, 2]


def test_no_warning_escapes_for_a_value_of_another_type(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(Unserialisable):
        codec_for(Ticket).encode({"id": "1"}, "a")
    assert not recwarn.list


def test_written_is_the_alias_and_read_are_both_names() -> None:
    codec = codec_for(Aliased)
    assert codec.encode(Aliased(userId=1), "a") == '{"userId":1}'
    assert codec.decode('{"user_id":2}').user_id == codec.decode('{"userId":2}').user_id == 2


def test_with_coerce_a_value_of_the_type_is_refused_as_without_where_it_would_not_come_back() -> None:
    for value, annotation in (
        (Ticket(id="a", extra=datetime(2026, 1, 2, tzinfo=UTC)), Ticket),
        ({"when": datetime(2026, 1, 2, tzinfo=UTC)}, dict[str, Any]),
    ):
        with pytest.raises(Unserialisable, match=r"extra|when"):
            codec_for(annotation, coerce=True).round_trip(value, "step 'a'")


def test_with_coerce_what_validates_becomes_the_type() -> None:
    codec = codec_for(Ticket, coerce=True)
    text, ticket = codec.round_trip({"id": "1", "when": "2025-01-01T00:00:00Z"}, "a")
    assert ticket == Ticket(id="1", when=datetime(2025, 1, 1, tzinfo=UTC)) == codec.decode(text)
    with pytest.raises(Unserialisable, match=r"step 'a': at \$: it does not validate as Ticket: id: "):
        codec.encode({"name": "x"}, "step 'a'")
    with pytest.raises(Unserialisable):
        codec.encode(object(), "a")


def test_text_that_no_longer_validates_is_invalid_input_that_names_the_field() -> None:
    with pytest.raises(InvalidInput, match="Ticket: amount: "):
        codec_for(Ticket).decode('{"id":"1","amount":"much"}')


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '"\ud800"', "nul", "NaN", '{"a":Nan}'])
@pytest.mark.parametrize("annotation", [Any, Ticket, dict[str, float]])
def test_a_broken_row_is_invalid_input(text: str, annotation: Any) -> None:
    with pytest.raises(InvalidInput):
        codec_for(annotation).decode(text)


def test_validate_takes_the_type_and_what_validates_to_it() -> None:
    ticket = Ticket(id="1")
    codec = codec_for(Ticket)
    assert codec.validate(ticket) == codec.validate({"id": "1"}) == ticket
    with pytest.raises(InvalidInput, match="Ticket: id: Field required"):
        codec.validate({})
    with pytest.raises(InvalidInput):
        PLAIN.validate({1})
    assert PLAIN.validate((1, 2)) == [1, 2]


def test_the_json_schema_is_the_types() -> None:
    assert codec_for(Ticket).json_schema()["required"] == ["id"]
    assert PLAIN.json_schema() == {}


@given(
    st.recursive(
        st.builds(Decimal, st.integers(-(10**9), 10**9)) | st.datetimes(timezones=st.just(UTC)) | text,
        lambda inner: st.tuples(inner, inner) | st.lists(inner, max_size=3),
        max_leaves=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_a_step_never_hands_out_a_value_that_differs_from_what_it_stored(value: Any) -> None:
    codec = codec_for(list[Any] | Decimal | datetime | str)
    try:
        text, back = codec.round_trip(value, "a")
    except Unserialisable:
        return
    assert codec.decode(text) == back


# --- which codec --------------------------------------------------------------------------------------


def test_codecs_are_kept() -> None:
    assert codec_for(Ticket) is codec_for(Ticket)
    assert codec_for(Any) is codec_for(inspect.Signature.empty) is codec_for(object) is PLAIN


def test_a_type_without_a_json_form_is_a_configuration_error() -> None:
    class Socket:
        pass

    with pytest.raises(ConfigurationError, match="Socket has no JSON form"):
        codec_for(Socket)
    with pytest.raises(ConfigurationError, match="give the type itself"):
        codec_for("Ticket")


async def fetch() -> Ticket:
    raise NotImplementedError


def bare():  # type: ignore[no-untyped-def]
    raise NotImplementedError


def nothing() -> None:
    raise NotImplementedError


def lost() -> Fraction:
    raise NotImplementedError


class Service:
    def load(self) -> list[Ticket]:
        raise NotImplementedError

    async def __call__(self) -> tuple[int, ...]:
        raise NotImplementedError


def test_the_return_annotation_is_found_wherever_it_stands() -> None:
    assert return_annotation(fetch) is Ticket
    assert return_annotation(bare) is inspect.Signature.empty
    assert return_annotation(nothing) in (None, type(None))
    assert return_annotation(functools.partial(functools.partial(fetch), 1)) is Ticket
    assert return_annotation(Service().load) == list[Ticket]
    assert return_annotation(Service()) == tuple[int, ...]
    assert return_annotation(Ticket) is Ticket
    assert return_annotation(len) is inspect.Signature.empty
    assert codec_for_return(fetch) is codec_for(Ticket)


def test_a_local_class_is_found_through_the_closure() -> None:
    class Local(BaseModel):
        x: int

    def make() -> Local:
        return Local(x=1)

    assert codec_for_return(make).round_trip(make(), "a")[1] == Local(x=1)


def test_a_decorated_function_keeps_its_annotation() -> None:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any) -> Any:
            return function(*args)

        return inner

    assert return_annotation(decorate(fetch)) is Ticket


def test_a_name_that_cannot_be_resolved_is_a_configuration_error_that_says_which() -> None:
    with pytest.raises(ConfigurationError, match=r"'Fraction' of .*lost cannot be resolved.*output="):
        codec_for_return(lost)


# --- JSON from outside --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nan",
        "NaN",
        "-Infinity",
        "1e400",
        "[1, -1e999]",
        "9" * 400 + ".0",
        '"\\ud800"',
        '"\\u0000"',
        '{"\\u0000": 1}',
        b"\xff",
        '"\ud800"',
        "1" * 5000,
        "[" * 101 + "]" * 101,
        '{"a":' * 150 + "1" + "}" * 150,
    ],
)
def test_json_that_cannot_be_stored_is_refused_at_the_door(text: str | bytes) -> None:
    with pytest.raises(InvalidInput):
        loads(text)


def test_json_is_read_as_it_stands() -> None:
    assert loads('{"a": [1, 1.0, true, null, "\\\\u0000", "Infinity", 1e300]}') == {
        "a": [1, 1.0, True, None, "\\u0000", "Infinity", 1e300]
    }
    assert loads(b"[" * 100 + b"]" * 100) is not None


@pytest.mark.parametrize("shape", ["[", '{"a":', "[[" + "]" * 2 + ",["])
def test_a_bomb_of_brackets_is_refused_at_once(shape: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidInput):
        loads(shape * 100_000)
    assert time.process_time() - began < 1


def test_depth_is_checked_without_recursion() -> None:
    check_depth(nested(100))
    with pytest.raises(InvalidInput, match="deeper than 100"):
        check_depth(nested(sys.getrecursionlimit() * 3))


# --- canonical form -----------------------------------------------------------------------------------


def test_the_digest_tells_apart_what_json_tells_apart() -> None:
    values = [{"id": 5}, {"id": "5"}, {"id": None}, {}, {"id": True}, {"id": [5]}, {"id": 5.5}, {"ID": 5}]
    assert len({digest(value) for value in values}) == len(values)


def test_the_digest_does_not_depend_on_order_or_on_how_a_number_is_written() -> None:
    assert digest({"a": 1, "b": [1.0, (2,)]}) == digest({"b": [1, [2]], "a": 1.0})
    assert canonical_json({"b": 1e22, "a": -0.0, "é": "é"}) == '{"a":0,"b":10000000000000000000000,"é":"é"}'
    assert len(digest(None)) == 64


@pytest.mark.parametrize("value", [{1: 1}, math.nan, {"a": b""}, Decimal(1), "\ud800", nested(101)])
def test_only_plain_json_has_a_canonical_form(value: Any) -> None:
    with pytest.raises(Unserialisable):
        canonical_json(value)


@given(plain_json)
@settings(max_examples=100, deadline=None)
def test_the_canonical_form_is_stable_over_the_round_trip(value: Any) -> None:
    assert canonical_json(loads(PLAIN.encode(value, "a"))) == canonical_json(value)
