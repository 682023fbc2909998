"""CEL expressions: compiled once, evaluated with a budget, and no library needed where there is none."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from typing import Any

import pytest

from agentflow.errors import ConfigurationError, ExpressionFailed
from agentflow.expressions import BOTH_EVENTS, Expression

EVENT = {
    "id": "e1",
    "name": "order.placed",
    "ts": "2026-01-02T03:04:05+00:00",
    "data": {
        "total": 120,
        "rate": 0.5,
        "user": {"id": "u1", "tags": ["vip", "old"]},
        "paid": True,
        "nothing": None,
        "numbers": list(range(200)),
    },
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("event.data.total > 100", True),
        ("event.data.total == 120.0", True),
        ("event.data.rate * 2.0", 1.0),
        ("event.data.user.id + '/' + string(event.data.total)", "u1/120"),
        ("'vip' in event.data.user.tags", True),
        ("event.data.user.tags.map(tag, size(tag))", [3, 3]),
        ("{'id': event.data.user.id}", {"id": "u1"}),
        ("event.data.nothing", None),
        ("has(event.data.missing)", False),
        ("has(event.data.missing) && event.data.missing > 1", False),
        ("event.data['user']['id']", "u1"),
        ("timestamp(event.ts) < timestamp('2027-01-01T00:00:00Z')", True),
        ("event.data.paid ? 'yes' : 'no'", "yes"),
        ("event.name.startsWith('order.')", True),
        ("event", EVENT),
    ],
)
def test_an_expression_gives_a_value_as_json_has_it(text: str, value: Any) -> None:
    assert Expression.compile(text).evaluate(event=EVENT) == value


def test_an_arriving_event_is_called_async() -> None:
    expression = Expression.compile("async.data.n == event.data.n", variables=BOTH_EVENTS)
    assert expression.is_true(event={"data": {"n": 1}}, **{"async": {"data": {"n": 1}}})
    assert not expression.is_true(event={"data": {"n": 1}}, **{"async": {"data": {"n": 2}}})


def test_a_text_is_compiled_once() -> None:
    assert Expression.compile("event.data.a") is Expression.compile("event.data.a")
    assert Expression.compile("event.data.a") is not Expression.compile("event.data.a", variables=BOTH_EVENTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event.data.x +", r"'event\.data\.x \+' is wrong at line 1, column 15: Syntax error"),
        ("\nevent ==\n", r"is wrong at line 3, column 1: Syntax error"),
        ("foo.x > 1", r"at line 1, column 4: undeclared reference to 'foo\.x'; it may use event$"),
        ("async.data.x > 1", r"undeclared reference to 'async\.data\.x'; it may use event$"),
        ("event.data.x.frob()", r"undeclared reference to 'frob'"),
        ("'a' + 1", r"no matching overload"),
        ("  ", r"is not an expression"),
        ("x" * 4_001, r"has 4001 characters, over the limit of 4000"),
        ("(" * 50 + "1" + ")" * 50, r"recursion limit"),
        ("'\ud800' == 'a'", r"is wrong"),
    ],
)
def test_a_bad_expression_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Expression.compile(text)


@pytest.mark.parametrize("text", ["'yes'", "1 + 2", "event.data.x + 'a'", "[event]"])
def test_what_cannot_be_true_is_no_condition(text: str) -> None:
    Expression.compile(text)
    with pytest.raises(ConfigurationError, match="is no condition: it gives a value of type"):
        Expression.condition(text)
    assert Expression.condition("event.data.x").result_type == "DYN"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("event.data.missing == 1", "missing"),
        ("event.data.total.deeper", "deeper|member"),
        ("event.data.total + 'a'", "No matching overloads"),
        ("1 / (event.data.total - 120)", "divide by zero"),
        ("event.data.numbers[1000]", "Index error"),
        ("duration('1h')", "JSON has no form"),
        ("b'abc'", "JSON has no form"),
        ("{1: 2}", "JSON has no form"),
    ],
)
def test_an_evaluation_that_fails_is_an_error_and_not_true(text: str, message: str) -> None:
    expression = Expression.compile(text)
    with pytest.raises(ExpressionFailed, match=message):
        expression.evaluate(event=EVENT)
    assert expression.is_true(event=EVENT) is False


@pytest.mark.parametrize(
    "text", ["event.data.total", "event.data.user.id", "event.data.nothing", "event.data"]
)
def test_a_value_that_is_not_a_bool_is_not_true(text: str) -> None:
    assert Expression.compile(text).is_true(event=EVENT) is False


def test_a_condition_that_fails_is_logged_for_who_looks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "agentflow")
    assert not Expression.compile("event.data.missing").is_true(event=EVENT)
    [record] = caplog.records
    assert record.levelno == logging.DEBUG
    assert "'event.data.missing'" in record.getMessage()


def test_a_number_that_has_no_64_bits_spoils_nothing_beside_it() -> None:
    event = {"data": {"huge": 10**30, "minus": -(10**400), "small": 7, "max": 2**63 - 1}}
    assert Expression.compile("event.data.small == 7").is_true(event=event)
    assert Expression.compile("event.data.huge > 1000").is_true(event=event)
    assert Expression.compile("event.data.minus < 0").is_true(event=event)
    assert Expression.compile("event.data.max == 9223372036854775807").is_true(event=event)


def test_a_hostile_expression_ends_by_its_budget() -> None:
    loops = "event.data.numbers.all(a, event.data.numbers.all(b, event.data.numbers.all(c, a + b + c >= 0)))"
    began = time.monotonic()
    with pytest.raises(ExpressionFailed, match="budget"):
        Expression.compile(loops).evaluate(event=EVENT)
    assert time.monotonic() - began < 2
    assert not Expression.compile(loops).is_true(event=EVENT)


DOUBLED = "[[1]]" + ".map(x, [x, x])" * 26
HOSTILE = {
    "a list compared for each of its elements": (
        "event.data.l.all(a, event.data.l == event.data.l)",
        range(9000),
    ),
    "a text searched for each element": ("event.data.l.all(a, !event.data.s.contains('yz'))", range(9000)),
    "a text matched for each element": (
        "event.data.l.all(a, !event.data.s.matches('(x+x+)+y'))",
        range(9000),
    ),
    "a long text that is nearly there": ("event.data.s.contains(event.data.nearly)", []),
    "a pattern with many states": ("event.data.s.matches('((x|y|xy|xxy){0,9}){0,99}z')", []),
    "a pattern that an event brings": ("event.data.s.matches(event.data.pattern)", []),
    "a pattern that is put together": ("event.data.s.matches('(x?)' + event.data.pattern)", []),
    "a long pattern for each element": (
        "event.data.l.all(a, !'x'.matches(event.data.s))",
        range(100),
    ),
    "an element by a float": (
        "event.data.l.all(a, event.data.t[0.0].contains(event.data.nearly))",
        range(100),
    ),
    "the length of a text for each element": ("event.data.l.all(a, size(event.data.s) > 0)", range(9000)),
    "expressions made for each element": (
        "event.data.l.all(a, !event.data.s.matches('(a{100}){9}' + string(a)))",
        range(9000),
    ),
    "a text that doubles": ("['s']" + ".map(x, x + x)" * 28 + ".all(x, size(x) > 3)", []),
    "a list that doubles": ("[[1]]" + ".map(x, x + x)" * 26 + ".all(x, 3 in x)", []),
    "a tree that doubles": (DOUBLED + ".all(x, x == x)", []),
    "a large copy": ("event.data.l.map(x, x).size() > 0", range(9000)),
    "a copy in a loop": ("event.data.l.all(a, event.data.l.map(b, b).size() > 0)", range(100)),
    "a map of copies": ("event.data.l.map(a, {'a': event.data.l, 'b': event.data.l}) == []", range(3000)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_could_hang_a_worker_is_not_evaluated_for_long(case: str) -> None:
    text, numbers = HOSTILE[case]
    nearly, pattern = "x" * 100_000 + "y", "x?" * 9_000
    event = {
        "data": {
            "l": list(numbers),
            "s": "x" * 300_000,
            "t": ["x" * 300_000],
            "nearly": nearly,
            "pattern": pattern,
        }
    }
    expression = Expression.compile(text)
    began = time.monotonic()
    with pytest.raises(ExpressionFailed, match="budget"):
        expression.evaluate(event=event)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "text",
    [
        "event.data.items.exists(item, item.sku == event.data.sku && item.n > 3)",
        "event.data.items.exists_one(item, item.n == 4)",
        "event.data.items.filter(item, item.n < 5).size() == 5",
        "event.data.items.map(item, item.n)[7] == 7",
        "event.data.few.all(a, event.data.few.exists(b, a == b))",
        "event.data.few.exists(a, event.data.items.exists(item, item.n == a + 10))",
        "event.data.few.exists(a, a in event.data.few.map(b, b + 1))",
        "event.data.by_sku.exists(sku, event.data.by_sku[sku] == 9)",
        "{'a': event.data.few}.a.exists(a, a == 3)",
        "(event.data.sku == 's9' ? event.data.few : []).exists(a, a == 3)",
        "event.data.few.exists(a, event.data.text.matches('x+') && a == 9)",
        "event.data.text.contains('xxx') && event.data.items.all(item, item.title.contains('some'))",
        "event.data.items.all(item, item.title.matches('[a-z ]{3,}length( .*)?'))",
        "!event.data.text.matches('[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}')",
        "event.data.items.exists(item, item.title.contains(event.data.sku) || item.sku.matches(event.data.sku))",
    ],
)
def test_what_is_meant_for_real_events_is_within_the_budget(text: str) -> None:
    items = [{"sku": f"s{n}", "n": n, "title": "a title of some length " * 3} for n in range(900)]
    event = {
        "data": {
            "items": items,
            "sku": "s9",
            "few": list(range(10)),
            "by_sku": {item["sku"]: item["n"] for item in items},
            "text": "x" * 20_000,
        }
    }
    assert Expression.compile(text).evaluate(event=event) is True


def test_without_the_library_the_error_says_what_to_install() -> None:
    script = """
import sys
import agentflow
assert not [name for name in sys.modules if name.startswith("cel_")], "agentflow imports cel"
sys.modules["cel_expr_python"] = None
from agentflow.expressions import Expression
try:
    Expression.compile("event.data.x")
except agentflow.errors.ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "'event.data.x' needs the CEL library" in done.stdout
    assert "pip install 'agentflow-steps[cel]'" in done.stdout
