"""CEL, the language of `if_` and of keys that are no dotted path: compiled once, evaluated over events.

The library is an extra (`agentflow-steps[cel]`) and is imported by the first expression, so whoever has none needs
nothing. An evaluation has a budget: the library ends one that loops over more than 10,000 elements, and one that could
do too much with them is not begun.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from logging import getLogger
from typing import Any, Final

from agentflow.errors import ConfigurationError, ExpressionFailed
from agentflow.expression_cost import cost_of, tree_of

LONGEST_EXPRESSION: Final = 4_000
BUDGET: Final = 20_000_000
"""The most that an evaluation may cost, in the units of `agentflow.expression_cost`: a second at most."""
EVENT: Final = ("event",)
BOTH_EVENTS: Final = ("event", "async")
"""The variables of a condition on an event that arrives: `async` is that one, `event` the one that started the run."""

_LOG = getLogger("agentflow")
_PLACE = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_LARGEST_INT = 2**63 - 1


class Expression:
    """A compiled expression. `Expression.compile` gives the same one for the same text."""

    __slots__ = ("_compiled", "_error_type", "_tree", "result_type", "text", "variables")

    def __init__(self, text: str, variables: tuple[str, ...]) -> None:
        cel = _library(text)
        environment = cel.NewEnv(variables=dict.fromkeys(variables, cel.Type.DYN))
        try:
            self._compiled = environment.compile(text)
        except (RuntimeError, TypeError) as error:
            raise ConfigurationError(
                f"the expression {text!r} {_complaint(str(error))}; it may use {' and '.join(variables)}"
            ) from None
        self._error_type = cel.Type.ERROR
        self._tree = tree_of(self._compiled.serialize())
        self.text = text
        self.variables = variables
        self.result_type: str = self._compiled.return_type().name()
        """What is known of its value before it is evaluated: `BOOL`, `STRING`, ..., or `DYN`, which is anything."""

    @staticmethod
    def compile(text: str, *, variables: tuple[str, ...] = EVENT) -> Expression:
        """The expression. Raises `ConfigurationError` for bad syntax, an unknown variable, a missing library."""
        if not _is_text(text):
            raise ConfigurationError(f"{text!r} is not an expression")
        if len(text) > LONGEST_EXPRESSION:
            raise ConfigurationError(
                f"the expression {text[:80]!r}... has {len(text)} characters, over the limit of {LONGEST_EXPRESSION}"
            )
        return _compiled(text, tuple(variables))

    @staticmethod
    def condition(text: str, *, variables: tuple[str, ...] = EVENT) -> Expression:
        """An expression that may be true; `ConfigurationError` also for one that gives something else for certain."""
        expression = Expression.compile(text, variables=variables)
        if expression.result_type not in ("BOOL", "DYN"):
            kind = expression.result_type.lower()
            raise ConfigurationError(
                f"the expression {text!r} is no condition: it gives a value of type {kind}"
            )
        return expression

    def __repr__(self) -> str:
        return f"<Expression {self.text!r}>"

    def evaluate(self, **variables: Any) -> Any:
        """Its value for these JSON-like variables, a JSON-like value too. Raises `ExpressionFailed`.

        `async` is a word of Python: `expression.evaluate(event=..., **{"async": ...})`.
        """
        self._check_budget(variables)
        value = self._evaluate(variables)
        if value.type() == self._error_type and "out of range" in str(value.value()):
            # CEL's integers have 64 bits, and one greater number anywhere spoils all that lies beside it.
            value = self._evaluate({name: _with_small_numbers(given) for name, given in variables.items()})
        if value.type() == self._error_type:
            raise self._failure(str(value.value()))
        try:
            return self._plain(value.plain_value())
        except RecursionError:
            raise self._failure("its value is nested too deep") from None

    def is_true(self, **variables: Any) -> bool:
        """Whether it gives true. Where it fails, or gives something else, it is not true."""
        try:
            return self.evaluate(**variables) is True
        except ExpressionFailed as error:
            _LOG.debug("%s: taken as false", error)
            return False

    def _check_budget(self, variables: Mapping[str, Any]) -> None:
        if self._tree is None:
            return
        try:
            cost = cost_of(self._tree, variables)
        except RecursionError:
            raise self._failure("its data is nested too deep") from None
        if cost > BUDGET:
            raise self._failure(f"for this data it may take {cost // BUDGET + 1} times its budget")

    def _evaluate(self, variables: Mapping[str, Any]) -> Any:
        try:
            return self._compiled.eval(data=variables)
        except (RuntimeError, TypeError, ValueError, MemoryError, RecursionError) as error:
            raise self._failure(str(error) or type(error).__name__) from None

    def _failure(self, reason: str) -> ExpressionFailed:
        return ExpressionFailed(f"the expression {self.text!r} could not be evaluated: {reason[:500]}")

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: self._plain(item) for key, item in value.items()}
        raise self._failure(f"JSON has no form for its value {value!r}; string(...) gives the text")


@lru_cache(maxsize=4096)
def _compiled(text: str, variables: tuple[str, ...]) -> Expression:
    return Expression(text, variables)


def _is_text(given: object) -> bool:
    return isinstance(given, str) and bool(given.strip())


def _library(text: str) -> Any:
    try:
        from cel_expr_python import cel  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ConfigurationError(
            f"the expression {text!r} needs the CEL library, which is not installed here: "
            "pip install 'agentflow-steps[cel]'"
        ) from error
    return cel


def _complaint(message: str) -> str:
    """The library's first complaint in one line: it repeats the text below it, and marks the place with a caret."""
    found = _PLACE.search(message)
    if found is None:
        return f"is wrong: {' '.join(message.split())[:500]}"
    line, column, reason = found.groups()
    reason = reason.replace(" (in container '')", "").removesuffix(" [INVALID_ARGUMENT]")
    place = "" if line == "-1" else f" at line {line}, column {column}"
    return f"is wrong{place}: {reason}"


def _with_small_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_small_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_small_numbers(item) for item in value]
    if isinstance(value, int) and not -_LARGEST_INT <= value <= _LARGEST_INT:
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    return value
