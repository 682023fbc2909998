"""The conversation of an agent's run: what was said before on its thread, and what the run adds, told as one.

Where the beginning was summarised, a model is told the summary in its place; nothing of it is lost here.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentflow.models.messages import Message, TextPart

SUMMARY = "Summary of the conversation so far, which is not repeated here:\n\n"


class Conversation:
    """Messages in their order, and which of them a model is told."""

    def __init__(
        self, prompt: Sequence[Message], *, earlier: Sequence[Message] = (), summary: str | None = None
    ) -> None:
        self._all = [*earlier, *prompt]
        self._own_from = len(earlier)
        self._prompt_to = len(self._all)
        self._cut = 0
        self.summary = summary
        """Stands for what was before the first message, and for those up to the cut."""

    @property
    def own(self) -> list[Message]:
        """What the run has added, the prompt first."""
        return self._all[self._own_from :]

    @property
    def cut(self) -> int:
        """How many of the messages, those said earlier first, the summary stands for."""
        return self._cut

    @property
    def told(self) -> list[Message]:
        """What a model is told."""
        told = self._all[self._cut :]
        if self._cut > self._own_from:
            # What the run was asked is never only a part of the summary.
            told = self._all[self._own_from : min(self._cut, self._prompt_to)] + told
        if self.summary is not None:
            told.insert(0, Message(role="user", parts=[TextPart(text=SUMMARY + self.summary)]))
        return told

    def add(self, *messages: Message) -> None:
        self._all += messages

    def before(self, cut: int) -> list[Message]:
        """What a summary up to there would stand for, beside what the present one does."""
        return self._all[self._cut : cut]

    def place_to_cut(self, keep_turns: int) -> int:
        """Where the last so many turns begin; never between a call and its result."""
        starts = [place for place in range(len(self._all)) if self._is_start(place)]
        return starts[-keep_turns] if len(starts) > keep_turns else 0

    def summarise(self, summary: str, cut: int) -> None:
        """Let the summary stand for the messages before the cut, and for what the one before it stood for."""
        self.summary, self._cut = summary, cut

    def _is_start(self, place: int) -> bool:
        """Whether a turn begins there: a user speaks, or a model goes on after the results of its calls."""
        if place == 0:
            return True
        role, before = self._all[place].role, self._all[place - 1].role
        return (role == "user" and before != "user") or (role == "assistant" and before == "tool")
