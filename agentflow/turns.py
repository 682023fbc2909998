"""The turns of an event loop: who is the last to run in one knows that nothing else is about to happen."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable


def ends_turn_of(loop: AbstractEventLoop) -> Callable[[], bool]:
    """Whether the callback that runs now is the last one of its turn, so that every task of the loop is blocked.

    asyncio keeps what is to run in `_ready`, which is not public; of a loop that does not, it is never said.
    """
    ready = getattr(loop, "_ready", None)
    return (lambda: not ready) if isinstance(ready, deque) else (lambda: False)
