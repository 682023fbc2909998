"""Values of every kind that a user may hand to agentflow, and what must become of plain ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

MOST_DEPTH = 100
MOST_DIGITS = 4300
T = TypeVar("T")


class Colour(StrEnum):
    RED = "red"
    NONE = ""


class Level(IntEnum):
    LOW = 0
    HIGH = 2**40


class Odd(Enum):
    PAIR = (1, "a")
    TEXT = "text"


@dataclass
class Point:
    x: float
    y: int = 0
    names: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    left: int
    right: str


class Address(TypedDict):
    city: str
    zip: int | None


class Item(BaseModel):
    kind: Literal["item"] = "item"
    name: str
    price: Decimal = Decimal(0)
    colour: Colour = Colour.RED
    at: datetime | None = None
    more: Any = None


class Box(BaseModel):
    model_config = ConfigDict(extra="allow")
    kind: Literal["box"] = "box"
    inside: list[Item | Box] = []
    label: str = Field(default="", alias="theLabel")


class Wrapped(BaseModel, Generic[T]):
    content: T
    point: Point | None = None


any_text = st.text(max_size=12) | st.sampled_from(
    ["\x00", "a\x00b", "\ud800", "\udfff\ud800", "\ufeff", "é\u0301", "💥"]
)
# By their exponents: Python does not write the largest ones as text.
any_int = st.integers() | st.sampled_from([15, 19, 400, 4299, 4300, 5000]).map(
    lambda n: 10**n * (-1) ** n + 1
)
any_float = st.floats() | st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308, math.nan, -math.inf])
leaf = st.none() | st.booleans() | any_int | any_float | any_text


def _nest(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4)


def _nest_oddly(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return _nest(inner) | st.lists(inner, max_size=4).map(tuple)


@st.composite
def _deep(draw: st.DrawFn) -> Any:
    value = draw(leaf)
    for _ in range(draw(st.sampled_from([3, 50, 99, 100, 101, 300]))):
        value = [value] if draw(st.booleans()) else {"k": value}
    return value


_odd = (
    st.dictionaries(st.integers() | st.none() | st.booleans(), leaf, min_size=1, max_size=2)
    | st.binary(max_size=8)
    | st.sets(st.integers(), min_size=1)
    | st.datetimes()
    | st.just(object())
    | st.just(Pair(1, "b"))
    | st.just(Point(1.5))
    | st.complex_numbers()
)
plain = (
    st.recursive(leaf, _nest_oddly, max_leaves=15) | _deep() | st.recursive(leaf | _odd, _nest, max_leaves=5)
)
"""Plain JSON and what is nearly so, for places that nobody annotated."""

_good_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
_zone = st.sampled_from(["Europe/Paris", "America/St_Johns", "Asia/Kathmandu", "Africa/Monrovia", "UTC"]).map(
    ZoneInfo
)
_moment = st.datetimes(timezones=st.none() | st.timezones() | _zone, allow_imaginary=True)
_item = st.builds(
    Item,
    name=any_text,
    price=st.decimals(allow_nan=False, allow_infinity=False),
    colour=st.sampled_from(Colour),
    at=st.none() | _moment,
    more=st.recursive(leaf, _nest, max_leaves=4) | _moment,
)
_box = st.recursive(
    st.builds(Box, theLabel=any_text),
    lambda inner: st.builds(Box, inside=st.lists(inner | _item, max_size=3), theLabel=any_text, extra=leaf),
    max_leaves=4,
)

typed: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (datetime, _moment),
    (list[datetime | None], st.lists(st.none() | _moment, max_size=3)),
    (date, st.dates()),
    (time, st.times(timezones=st.none() | st.just(ZoneInfo("UTC")))),
    (timedelta, st.timedeltas()),
    (Decimal, st.decimals()),
    (UUID, st.uuids()),
    (bytes, st.binary(max_size=20)),
    (float, any_float | st.integers(-100, 2**60)),
    (int, any_int),
    (str, any_text),
    (bool | None, st.none() | st.booleans()),
    (int | str, any_int | any_text),
    (float | int | str | None, st.none() | any_int | any_float | any_text),
    (set[int], st.sets(st.integers())),
    (frozenset[str], st.frozensets(any_text, max_size=3)),
    (tuple[int, str, float], st.tuples(any_int, any_text, any_float)),
    (tuple[int, ...], st.lists(any_int, max_size=3).map(tuple)),
    (dict[int, str], st.dictionaries(st.integers(), any_text, max_size=3)),
    (dict[UUID, Decimal], st.dictionaries(st.uuids(), st.decimals(), max_size=2)),
    (dict[str, Any], st.dictionaries(any_text, st.recursive(leaf, _nest, max_leaves=4), max_size=3)),
    (Colour | Level, st.sampled_from([*Colour, *Level])),
    (Odd, st.sampled_from(Odd)),
    (Literal["a", 1, True], st.sampled_from(["a", 1, True])),
    (Point, st.builds(Point, any_float, st.integers(), st.lists(any_text, max_size=2))),
    (Pair, st.builds(Pair, any_int, any_text)),
    (Address, st.fixed_dictionaries({"city": any_text, "zip": st.none() | any_int})),
    (Item, _item),
    (Box, _box),
    (Box | Item, _box | _item),
    (
        Wrapped[list[Pair]],
        st.builds(Wrapped[list[Pair]], content=st.lists(st.builds(Pair, any_int, any_text))),
    ),
    (Wrapped[Any], st.builds(Wrapped[Any], content=st.recursive(leaf, _nest, max_leaves=4), point=st.none())),
]
"""Annotations, each with values of it; some of the values have no JSON form."""
typed_values = st.one_of([st.tuples(st.just(annotation), values) for annotation, values in typed])


class Refused(Exception):
    """What no database may be given."""


def stored_form(value: Any, depth: int = 0) -> Any:
    """What must come back of a value that nobody annotated; raises `Refused`."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise Refused
        return str(value)
    if isinstance(value, int):
        if abs(value) >= 10**MOST_DIGITS:
            raise Refused
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Refused
        return value
    if not isinstance(value, dict | list | tuple) or depth == MOST_DEPTH:
        raise Refused
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise Refused
        return {stored_form(key): stored_form(item, depth + 1) for key, item in value.items()}
    return [stored_form(item, depth + 1) for item in value]


def is_same(one: Any, other: Any) -> bool:
    """Equal and of the same types, all the way down."""
    if isinstance(one, datetime) and isinstance(other, datetime) and one.tzinfo and other.tzinfo:
        return one.timestamp() == other.timestamp() and one.utcoffset() == other.utcoffset()
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return set(one) == set(other) and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, BaseModel):
        return is_same(dict(one), dict(other))
    if isinstance(one, Point):
        return is_same(vars(one), vars(other))
    if isinstance(one, Decimal):
        return one == other and one.as_tuple() == other.as_tuple()
    if isinstance(one, Set):
        return bool(one == other)
    return bool(one == other)
