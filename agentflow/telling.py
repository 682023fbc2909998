"""An answer that is just coming, told to the run's live stream and to who listens in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from agentflow.models.response import AttemptReset, Delta, ReasoningDelta, TextDelta, ToolArgsDelta
from agentflow.roundtrip import storable_text

if TYPE_CHECKING:
    from agentflow.step_runner import Attempt

DeltaListener: TypeAlias = Callable[[Delta | AttemptReset], None]


class Listener:
    """Who hears an answer in this process while it comes, over all its attempts."""

    def __init__(self, hear: DeltaListener) -> None:
        self._hear = hear
        self._has_heard = False

    def begin(self) -> None:
        if self._has_heard:
            self._hear(AttemptReset())
        self._has_heard = False

    def tell(self, delta: Delta) -> None:
        self._has_heard = True
        self._hear(delta)


class Teller:
    """Tells an answer to the run's live stream, and to the listener if there is one.

    What no database can keep is told as U+FFFD.
    """

    def __init__(self, attempt: Attempt, listener: Listener | None) -> None:
        self._attempt = attempt
        self._listener = listener
        self._call_index: int | None = None
        # A process that died in the middle has told a part of an answer, and could not take it back.
        self._has_told = attempt.open_call is not None

    def begin(self, *, again: bool = False) -> None:
        """An answer comes from its beginning, or `again` from there: what was told before is void."""
        if self._has_told or again:
            self._attempt.stream("attempt.reset", None)
        self._has_told, self._call_index = False, None
        if self._listener is not None:
            self._listener.begin()

    def tell(self, delta: Delta) -> None:
        self._has_told = True
        match delta:
            case TextDelta(text=text):
                self._attempt.stream("text.delta", storable_text(text))
            case ReasoningDelta(text=text):
                self._attempt.stream("reasoning.delta", storable_text(text))
            case ToolArgsDelta(index=index, text=text, name=name):
                if index != self._call_index:
                    self._call_index = index
                    told = None if name is None else storable_text(name)
                    self._attempt.stream("tool_call", {"index": index, "name": told})
                self._attempt.stream("tool_args.delta", storable_text(text))
        if self._listener is not None:
            self._listener.tell(delta)
