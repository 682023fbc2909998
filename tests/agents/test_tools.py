"""`@tool`: name, description and JSON Schema come from the function, and a model's arguments become its values."""

from __future__ import annotations

import datetime as dt
import functools
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from agentflow import Step, Tool, ToolContext, tool
from agentflow.agents.docstrings import read_docstring
from agentflow.agents.signatures import ArgumentsInvalid
from agentflow.agents.tools import ResultCodec, as_tools
from agentflow.errors import ConfigurationError, Unserialisable


class Item(BaseModel):
    sku: str
    count: int = 1


GOOGLE = """Order items.

Takes a while.

Args:
    items (list): What to order,
        one entry each.
    due: When it has to be there.

Returns:
    The number of the order.
"""
NUMPY = """Order items.

Takes a while.

Parameters
----------
items : list of Item
    What to order,
    one entry each.
due : date, optional
    When it has to be there.

Returns
-------
str
    The number of the order.
"""
SPHINX = """Order items.

Takes a while.

:param list items: What to order,
    one entry each.
:param due: When it has to be there.
:returns: The number of the order.
"""


@pytest.mark.parametrize("docstring", [GOOGLE, NUMPY, SPHINX], ids=["google", "numpy", "sphinx"])
def test_docstrings_are_read_in_three_styles(docstring: str) -> None:
    told = read_docstring(docstring)
    assert told.description == "Order items.\n\nTakes a while."
    assert told.parameters == {"items": "What to order, one entry each.", "due": "When it has to be there."}


@pytest.mark.parametrize(
    ("docstring", "description"),
    [
        (None, ""),
        ("One line.", "One line."),
        ("Note that args: matter.\n\nSee: there.", "Note that args: matter.\n\nSee: there."),
        ("Go.\n\nSteps:\n  1. look\n  2. leap", "Go.\n\nSteps:\n  1. look\n  2. leap"),
        ("Find.\n\nRaises:\n    KeyError: it is not there.\n\nTail.", "Find.\n\nTail."),
    ],
)
def test_a_description_is_what_is_not_about_parameters(docstring: str | None, description: str) -> None:
    assert read_docstring(docstring).description == description


def test_the_schema_comes_from_signature_and_docstring() -> None:
    @tool
    def order(
        items: list[Item],
        due: dt.date | None = None,
        speed: Literal["slow", "fast"] = "slow",
        copies: Annotated[int, Field(ge=1, description="How many.")] = 1,
    ) -> str:
        """Order items.

        Args:
            items: What to order.
            copies: Not this text.
        """
        return "1"

    assert (order.name, order.description) == ("order", "Order items.")
    assert order.schema == {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}, "description": "What to order."},
            "due": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": None},
            "speed": {"type": "string", "enum": ["slow", "fast"], "default": "slow"},
            "copies": {"type": "integer", "minimum": 1, "description": "How many.", "default": 1},
        },
        "required": ["items"],
        "additionalProperties": False,
        "$defs": {
            "Item": {
                "type": "object",
                "title": "Item",
                "properties": {"sku": {"type": "string"}, "count": {"type": "integer", "default": 1}},
                "required": ["sku"],
            }
        },
    }


def test_a_field_in_place_of_a_default_counts_as_pydantic_has_it() -> None:
    @tool
    def pay(
        amount: int = Field(gt=0, description="In cents."),
        copies: int = Field(1, le=9),
        notes: list[str] = Field(default_factory=list, max_length=2),  # noqa: B008 (what is tried here)
    ) -> None:
        """Pay.

        Args:
            amount: Not this text.
            copies: How often.
        """

    assert pay.schema == {
        "type": "object",
        "properties": {
            "amount": {"type": "integer", "exclusiveMinimum": 0, "description": "In cents."},
            "copies": {"type": "integer", "maximum": 9, "default": 1, "description": "How often."},
            "notes": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        },
        "required": ["amount"],
        "additionalProperties": False,
    }
    assert pay.validate({"amount": 5}).values == {"amount": 5, "copies": 1, "notes": []}
    with pytest.raises(ArgumentsInvalid, match="amount: Field required"):
        pay.validate({})
    with pytest.raises(ArgumentsInvalid, match="amount: Input should be greater than 0"):
        pay.validate({"amount": 0})


def test_names_that_a_model_class_could_not_have_are_fine() -> None:
    @tool
    def find(schema: str, _private: int = 1, model_config: str = "", json: str = "") -> None: ...

    assert list(find.schema["properties"]) == ["schema", "_private", "model_config", "json"]
    assert find.validate({"schema": "a", "_private": 2}).values == {
        "schema": "a",
        "_private": 2,
        "model_config": "",
        "json": "",
    }


def test_arguments_become_what_the_function_takes_and_all_of_them_are_shown() -> None:
    @tool
    def order(item: Item, amount: Decimal, due: dt.date = dt.date(2026, 1, 2)) -> None: ...

    arguments = order.validate({"item": {"sku": "a"}, "amount": 12})
    assert arguments.values == {"item": Item(sku="a"), "amount": Decimal(12), "due": dt.date(2026, 1, 2)}
    assert arguments.json == {"item": {"sku": "a"}, "amount": 12, "due": "2026-01-02"}
    assert order.plain(arguments) == {
        "item": {"sku": "a", "count": 1},
        "amount": Decimal(12),
        "due": dt.date(2026, 1, 2),
    }


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "amount: Field required"),
        ({"amount": "much"}, "amount: Input should be a valid decimal"),
        ({"amount": 1, "more": 2}, "more: Extra inputs are not permitted"),
    ],
)
def test_invalid_arguments_are_told_by_their_names(given: dict[str, Any], told: str) -> None:
    @tool
    def pay(amount: Decimal) -> None: ...

    with pytest.raises(ArgumentsInvalid, match=told):
        pay.validate(given)


def test_context_and_step_are_not_told_to_the_model() -> None:
    @tool
    async def both(query: str, ctx: ToolContext[int], step: Step) -> None: ...

    assert list(both.schema["properties"]) == ["query"]
    assert (both.context_parameter, both.step_parameter) == ("ctx", "step")


def test_a_type_that_is_local_to_a_function_is_found() -> None:
    class Local(BaseModel):
        a: int

    @tool
    def take(local: Local) -> int:
        return 1

    assert take.validate({"local": {"a": 1}}).values == {"local": Local(a=1)}


def test_a_tool_is_still_the_function_and_a_function_is_taken_as_a_tool() -> None:
    @tool
    def double(number: int) -> int:
        return number * 2

    def triple(number: int) -> int:
        """Three times."""
        return number * 3

    assert double(2) == 4
    assert [(made.name, made.description) for made in as_tools([double, triple], of="test")] == [
        ("double", ""),
        ("triple", "Three times."),
    ]


def test_methods_and_partials_are_tools() -> None:
    class Shop:
        def find(self, sku: str) -> str:
            """Find it."""
            return sku

    def add(left: int, right: int) -> int:
        return left + right

    assert list(Tool(Shop().find).schema["properties"]) == ["sku"]
    assert list(Tool(functools.partial(add, 1), name="add_one").schema["properties"]) == ["right"]


def test_what_a_model_cannot_be_told_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"a model cannot give \*args"):

        @tool
        def many(*args: int) -> None: ...

    with pytest.raises(ConfigurationError, match="'print' is not written in Python"):
        tool(print)

    with pytest.raises(ConfigurationError, match="no JSON Schema"):

        @tool
        def strange(what: object = object(), sink: functools.partial[int] | None = None) -> None: ...

    with pytest.raises(ConfigurationError, match="takes a Step: make it `async def`"):

        @tool
        def plain(step: Step) -> None: ...

    with pytest.raises(ConfigurationError, match="give retry= and timeout= to the steps"):

        @tool(retry=1)
        async def steps(step: Step) -> None: ...

    with pytest.raises(ConfigurationError, match="give a list of tools"):
        as_tools(many_tools, of="agent 'a'")  # type: ignore[arg-type]


def many_tools() -> None: ...


@dataclass
class Point:
    x: int


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (Item(sku="a"), {"sku": "a", "count": 1}),
        (Point(1), {"x": 1}),
        ({"when": dt.date(2026, 1, 2), "much": Decimal("1.50")}, {"when": "2026-01-02", "much": "1.50"}),
        ((1, {2}), [1, [2]]),
        (None, None),
    ],
)
def test_any_result_that_has_a_json_form_is_told_as_json(value: Any, told: Any) -> None:
    text, back = ResultCodec().round_trip(value, "step 'a'")
    assert back == told == ResultCodec().decode(text)


def test_a_result_without_a_json_form_is_named() -> None:
    with pytest.raises(Unserialisable, match="step 'a': the tool's result has no JSON form"):
        ResultCodec().round_trip(object(), "step 'a'")
