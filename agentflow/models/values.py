"""What the values of a conversation have in common: frozen, strict about their fields, short to write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
