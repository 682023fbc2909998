"""What the values of a conversation have in common: frozen, strict about their fields, short to write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Derived(Value):
    """A value that keeps what was derived from it, as `cached_property` does. A copy does not, as it may differ."""

    derived: ClassVar[tuple[str, ...]] = ()
    """The names of what is kept."""

    def __copy__(self) -> Self:
        return self._forgetful(super().__copy__())

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self._forgetful(super().__deepcopy__(memo))

    def _forgetful(self, copied: Self) -> Self:
        for name in self.derived:
            copied.__dict__.pop(name, None)
        return copied


class Positional(Value):
    """A value whose first fields may also be given by position, in the order of `by_position`."""

    by_position: ClassVar[tuple[str, ...]] = ()

    if not TYPE_CHECKING:  # type checkers see the keywords, which is what we write ourselves

        def __init__(self, *args: Any, **fields: Any) -> None:
            if len(args) > len(self.by_position):
                raise TypeError(f"{type(self).__name__} takes {len(self.by_position)} arguments by position")
            if args:
                super().__init__(**dict(zip(self.by_position, args, strict=False)), **fields)
            else:
                super().__init__(**fields)

        # To pydantic it is no `__init__` of a user's, which had to be called for each value that comes from JSON.
        __init__.__pydantic_base_init__ = True


def canonical_json(value: object) -> str:
    """The one JSON text of a value: keys sorted, nothing between."""
    return _CANONICAL.encode(value)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
