"""What evaluating a CEL expression over some data can cost at most, found out before it is done.

The library ends what loops over more than 10,000 elements, whatever is done with each: they may be compared with a
list of 100,000, or joined to one that doubles each time. So the checked syntax tree is walked with the sizes of the
data, and each node is counted as often as it can be reached. A unit is about 20 ns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

MOST_ITERATIONS: Final = 10_000
"""The library's own limit, for all loops of an evaluation together."""

_BUILD = 4
"""Making a value costs so much more than looking at it, most of it memory."""
_REGEX, _REGEX_CHARACTER = 20_000, 100
"""Compiling a regular expression that is not known beforehand, and each character of it."""
_CHARACTERS = 16
"""So many characters count as one element."""
_MOST_STATES = 50_000
"""Of a regular expression: the library refuses larger ones."""
_UNICODE_CLASS = 1_000
"""As many states as so many characters."""
_REPEAT = re.compile(r"(\)?)\{(\d*)(?:,(\d*))?\}")
_LOOKS = {"_&&_", "_||_", "!_", "@not_strictly_false", "type"}
_COMPARES = {"_==_", "_!=_", "_<_", "_<=_", "_>_", "_>=_", "@in", "startsWith", "endsWith", "size"}
_SEARCHES = {"contains", "matches"}


class Size(NamedTuple):
    """How large a value can be: in all, in elements, and one element."""

    total: int
    length: int = 0
    element: int = 0

    def or_(self, other: Size) -> Size:
        return Size(*map(max, self, other))

    @staticmethod
    def inside(total: int) -> Size:
        """Something somewhere in a value of that size."""
        return Size(total, total, total)


_ONE = Size(1)


@dataclass(frozen=True, slots=True)
class Known:
    """A value that is there before the evaluation."""

    value: Any


class Node(NamedTuple):
    """A node of the syntax tree."""

    kind: str
    name: str = ""
    """The variable, the field, or the function."""
    children: tuple[Node, ...] = ()
    value: Any = None
    """Of a constant: its text or number."""


def tree_of(serialized: bytes) -> Node | None:
    """The tree of an expression that the library has serialized; `None` where it neither loops nor searches, and costs
    little for any data."""
    checked = dict(_fields(dict(_fields(serialized))[2]))
    tree = _node(checked[4])
    is_costly = any(node.kind == "loop" or node.name in _SEARCHES for node in _walk(tree))
    return tree if is_costly else None


def cost_of(tree: Node, variables: Mapping[str, Any]) -> int:
    """The cost in units, never less than it is."""
    count = _Count()
    count.size_of(tree, {name: Known(value) for name, value in variables.items()}, times=1)
    return count.cost


class _Count:
    """One walk over a tree."""

    def __init__(self) -> None:
        self.cost = 0
        self._weights: dict[int, int] = {}

    def size_of(self, node: Node, scope: Mapping[str, Known | Size], *, times: int) -> Size:
        return self._size(self._visit(node, scope, times))

    def _visit(self, node: Node, scope: Mapping[str, Known | Size], times: int) -> Known | Size:
        self.cost += times
        if node.kind == "constant":
            return Known(node.value)
        if node.kind == "name":
            return scope.get(node.name.lstrip("."), _ONE)
        if node.kind == "loop":
            return self._loop(node, scope, times)
        inner = [self._visit(child, scope, times) for child in node.children]
        if node.kind == "field":
            return self._part(inner[0], node.name)
        if node.kind == "has":
            return _ONE
        if node.kind == "call":
            return self._call(node, inner, times)
        sizes = [self._size(item) for item in inner]  # a list or a map
        total = 1 + sum(size.total for size in sizes)
        self.cost += times * _BUILD * total
        return Size(total, len(sizes), max((size.total for size in sizes), default=0))

    def _loop(self, node: Node, scope: Mapping[str, Known | Size], times: int) -> Size:
        variable, second, result = node.name.split("\n")
        over, begin, condition, step, end = node.children
        elements = self._size(self._visit(over, scope, times))
        started = self._size(self._visit(begin, scope, times))
        rounds = min(times * elements.length, MOST_ITERATIONS)
        # What a round adds to the result: the result of the rounds before counts as nothing in it.
        inside = {**scope, variable: Size.inside(elements.element), result: Size(0)}
        if second:
            inside[second] = Size.inside(elements.element)
        self._visit(condition, inside, rounds)
        added = self._size(self._visit(step, inside, rounds))
        each = min(elements.length, MOST_ITERATIONS)
        made = Size(
            started.total + each * added.total,
            started.length + each * added.length,
            max(started.element, added.element),
        )
        self.cost += rounds * _BUILD * (made.length // 2)  # `map` and `filter` copy their list in each round
        return self._size(self._visit(end, {**scope, result: made}, times))

    def _call(self, node: Node, given: list[Known | Size], times: int) -> Known | Size:
        if node.name == "_[_]" and isinstance(given[1], Known):
            return self._part(given[0], given[1].value)
        sizes = [self._size(item) for item in given]
        total = 1 + sum(size.total for size in sizes)
        if node.name in _SEARCHES:
            text, wanted = (self._characters(item) for item in given)
            if node.name == "contains":
                self.cost += times * (total + text * wanted // 1_000)
            else:
                made = _REGEX + wanted * _REGEX_CHARACTER
                is_compiled = node.children[1].kind == "constant"
                self.cost += times * ((1 + text) * _states(given[1]) + (0 if is_compiled else made))
            return _ONE
        if node.name == "size" and isinstance(given[0], Known) and isinstance(given[0].value, dict | list):
            return _ONE
        if node.name in _COMPARES:
            self.cost += times * total
            return _ONE
        if node.name == "dyn":
            return sizes[0]
        if node.name == "_?_:_":
            return sizes[1].or_(sizes[2])
        if node.name == "_[_]":
            return Size.inside(sizes[0].total)
        if node.name in _LOOKS:
            return _ONE
        self.cost += times * _BUILD * total
        length = sum(size.length for size in sizes)
        return Size(total, length, max((size.element for size in sizes), default=0))

    def _characters(self, item: Known | Size) -> int:
        if isinstance(item, Known) and isinstance(item.value, str):
            return len(item.value)
        return self._size(item).total * _CHARACTERS

    def _part(self, whole: Known | Size, key: Any) -> Known | Size:
        if isinstance(whole, Size) or not isinstance(key, str | int):
            return Size.inside(self._size(whole).total)
        try:
            return Known(whole.value[key])
        except (KeyError, IndexError, TypeError):
            return _ONE  # it fails

    def _size(self, item: Known | Size) -> Size:
        if isinstance(item, Size):
            return item
        value = item.value
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        if not isinstance(parts, list):
            return Size(self._weight(value))
        return Size(self._weight(value), len(value), max(map(self._weight, parts), default=0))

    def _weight(self, value: Any) -> int:
        if isinstance(value, str | bytes):
            return 1 + len(value) // _CHARACTERS
        if not isinstance(value, dict | list):
            return 1
        known = self._weights.get(id(value))
        if known is None:
            parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
            known = self._weights[id(value)] = 1 + sum(map(self._weight, parts))
        return known


def _states(pattern: Known | Size) -> int:
    """How many states a regular expression has, by what repeats: all that is in a group with its group."""
    if not isinstance(pattern, Known) or not isinstance(pattern.value, str):
        return _MOST_STATES
    text = pattern.value
    length = 1 + len(text) + _UNICODE_CLASS * (text.count("\\p") + text.count("\\P"))
    alone, groups = 1, 1
    for is_group, least, most in _REPEAT.findall(text):
        times = min(1_000, max(int(number[:9] or 0) for number in (least, most)))
        if is_group:
            groups = min(groups * max(times, 1), _MOST_STATES)
        else:
            alone = max(alone, times)
    return min(length * alone * groups, _MOST_STATES)


# --------------------------------------------------------------------------- the tree, as protobuf has it (cel.expr)


def _node(message: bytes) -> Node:
    for number, content in _fields(message):
        if number == 3:
            return Node("constant", value=_constant(content))
        if number == 4:
            return Node("name", _text(content, 1))
        if number == 5:
            parts = dict(_fields(content))
            return Node("has" if parts.get(3) else "field", _text(content, 2), (_node(parts[1]),))
        if number == 6:
            operands = [_node(part) for at, part in _sorted_fields(content) if at in (1, 3)]
            return Node("call", _text(content, 2), tuple(operands))
        if number == 7:
            return Node("list", children=tuple(_node(part) for at, part in _fields(content) if at == 1))
        if number == 8:
            entries = [entry for at, entry in _fields(content) if at == 2]
            return Node(
                "map",
                children=tuple(
                    _node(part) for entry in entries for at, part in _fields(entry) if at in (3, 4)
                ),
            )
        if number == 9:
            parts = dict(_fields(content))
            names = (_text(content, 1), _text(content, 8), _text(content, 3))
            return Node("loop", "\n".join(names), tuple(_node(parts[at]) for at in (2, 4, 5, 6, 7)))
    return Node("name")  # nothing is set: it has no value


def _sorted_fields(message: bytes) -> list[tuple[int, Any]]:
    """The fields by number, so that the target of a call comes before its arguments."""
    return sorted(_fields(message), key=lambda field: field[0])


def _constant(message: bytes) -> Any:
    for number, content in _fields(message):
        if number in (3, 4):
            return content
        if number == 6:
            return content.decode(errors="replace")
        if number == 7:
            return content
        if number == 5:
            return 0.0  # which one does not matter
    return None


def _text(message: bytes, number: int) -> str:
    found = dict(_fields(message)).get(number, b"")
    return str(found, "utf-8", "replace")


def _walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message in the wire format: numbers as int, everything else as bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        else:
            length = 8 if wire == 1 else 4
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
