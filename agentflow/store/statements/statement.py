"""A SQL statement written once in SQLAlchemy Core and compiled once for each database's own driver.

On the hot path nothing of SQLAlchemy runs: a compiled statement is a text and the order of its parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    Dialect,
    SmallInteger,
    Text,
    bindparam,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect
from sqlalchemy.sql.dml import Insert
from sqlalchemy.sql.elements import ClauseElement

Params = Mapping[str, Any]

# A parameter may not be called like a column in an INSERT or UPDATE, so all of ours have this prefix there.
_PREFIX = "p_"


class Compiled(NamedTuple):
    """The text for one driver, and how its arguments are picked from the parameters."""

    sql: str
    arguments: Callable[[Params], list[Any]]


class Flavour:
    """What differs between the two databases while a statement is built."""

    def __init__(self, dialect: Dialect, insert: Callable[..., Any]) -> None:
        self.dialect = dialect
        self._insert = insert

    @property
    def is_postgres(self) -> bool:
        return self.dialect.name == "postgresql"

    def insert(self, table: Any) -> Any:
        """An INSERT that knows ON CONFLICT."""
        return self._insert(table)

    def among(self, column: Any, name: str) -> ColumnElement[bool]:
        """`column` is one of the texts of the list parameter `name`."""
        if self.is_postgres:
            return column == func.any(bindparam(_PREFIX + name, type_=ARRAY(Text)))  # type: ignore[no-any-return]
        each = func.json_each(bindparam(f"{_PREFIX}json_{name}", type_=Text)).table_valued("value")
        return column.in_(select(each.c.value))  # type: ignore[no-any-return]


_every: list[Statement] = []


def every_statement() -> Sequence[Statement]:
    """Those that the modules loaded so far have written."""
    return tuple(_every)


class Statement:
    """One statement for both databases.

    `build` makes it for a `Flavour`. One that is `only_postgres` (a lock that SQLite does not need, because its
    writers exclude each other) does nothing elsewhere.
    """

    def __init__(self, build: Callable[[Flavour], ClauseElement], *, only_postgres: bool = False) -> None:
        self._build = build
        self.only_postgres = only_postgres
        _every.append(self)

    @cached_property
    def names(self) -> list[str]:
        """Of what a SELECT gives."""
        return [column.key for column in self._build(_SQLITE).selected_columns]  # type: ignore[attr-defined]

    @cached_property
    def sqlite(self) -> Compiled:
        return _compile(self._build, _SQLITE)

    @cached_property
    def postgres(self) -> Compiled:
        return _compile(self._build, _POSTGRES)


class Bundle:
    """Reads with the same one parameter. PostgreSQL answers them in one round trip; what comes back is a list of rows
    for each."""

    only_postgres = False

    def __init__(self, *reads: Statement) -> None:
        self.reads = reads

    @cached_property
    def postgres(self) -> Compiled:
        """One row, with a column of JSON for each read."""
        compiled = [each.postgres for each in self.reads]
        parts = [f"(SELECT coalesce(json_agg(q), '[]') FROM ({each.sql}) AS q)" for each in compiled]
        return Compiled(f"SELECT {', '.join(parts)}", compiled[0].arguments)

    @staticmethod
    def rows(row: Iterable[str]) -> list[list[list[Any]]]:
        """The rows of each read, from that one row."""
        return [[list(found.values()) for found in json.loads(text)] for text in row]


def big(name: str) -> Any:
    """An int64 parameter."""
    return bindparam(_PREFIX + name, type_=BigInteger)


def small(name: str) -> Any:
    """A small integer parameter."""
    return bindparam(_PREFIX + name, type_=SmallInteger)


def text(name: str) -> Any:
    """A text parameter."""
    return bindparam(_PREFIX + name, type_=Text)


def flag(name: str) -> Any:
    """A boolean parameter."""
    return bindparam(_PREFIX + name, type_=Boolean)


def _compile(build: Callable[[Flavour], ClauseElement], flavour: Flavour) -> Compiled:
    element = build(flavour)
    # An INSERT without explicit values takes every column from the parameter of its name.
    keys = (
        [c.key for c in element.table.columns]
        if isinstance(element, Insert) and not _has_values(element)
        else None
    )
    compiled = element.compile(
        dialect=flavour.dialect, column_keys=keys, compile_kwargs={"render_postcompile": True}
    )
    names: list[str] = list(compiled.positiontup or ())  # type: ignore[attr-defined]
    binds = compiled.binds  # type: ignore[attr-defined]
    constants = {name: binds[name].value for name in names if not binds[name].required}
    return Compiled(str(compiled), _picker(names, constants))


def _picker(names: list[str], constants: Mapping[str, Any]) -> Callable[[Params], list[Any]]:
    """How to make the positional arguments: parameters by name, constants of the statement as they are."""
    sources: list[tuple[bool, Any]] = []
    lists: list[int] = []
    for position, name in enumerate(names):
        plain = name.removeprefix(_PREFIX)
        if plain.startswith("json_"):
            plain = plain.removeprefix("json_")
            lists.append(position)
        sources.append((False, constants[name]) if name in constants else (True, plain))
    if all(is_parameter for is_parameter, _ in sources) and not lists:
        plain_names = [name for _, name in sources]
        return lambda params: [params[name] for name in plain_names]

    def pick(params: Params) -> list[Any]:
        values = [params[value] if is_parameter else value for is_parameter, value in sources]
        for position in lists:
            values[position] = json.dumps(list(values[position]))
        return values

    return pick


def _has_values(element: Insert) -> bool:
    return bool(element._values or element._select_names or element.select is not None)


_SQLITE = Flavour(sqlite.dialect(paramstyle="qmark"), sqlite.insert)
_POSTGRES = Flavour(asyncpg_dialect(), postgresql.insert)  # type: ignore[no-untyped-call]

__all__ = ["Bundle", "Compiled", "Flavour", "Params", "Statement", "big", "flag", "small", "text"]
