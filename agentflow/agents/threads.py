"""A turn on a thread: what was said before is read when it begins, and all that it says is stored when it ends.

Both are steps. The first one's memo holds what was there at the time, so that a replay or a rerun goes on from that.
"""

from __future__ import annotations

import json
from collections.abc import Coroutine, Sequence
from typing import Any

from pydantic import BaseModel

from agentflow.codec import Codec, codec_for
from agentflow.errors import InvalidInput
from agentflow.ids import validate_id
from agentflow.models.messages import Message
from agentflow.models.response import messages_adapter
from agentflow.roundtrip import find_fault
from agentflow.runs import StepKind
from agentflow.step import Step, runner_of, take_key
from agentflow.step_runner import Attempt, Body, RawId
from agentflow.store.operation_types import TurnEnd


class Earlier(BaseModel):
    """What was said on the thread before the turn."""

    next_n: int
    """The number that the turn's first message will have."""
    first_n: int
    """The number of the first message here; the `summary` stands for those before."""
    summary: str | None = None
    messages: list[dict[str, Any]] | None = None
    messages_text: str | None = None
    """The messages as ASCII JSON text, where they hold what a database cannot keep (NUL, lone surrogates)."""

    @classmethod
    def of(cls, messages: Sequence[str], *, next_n: int, first_n: int, summary: str | None) -> Earlier:
        text = f"[{','.join(messages)}]"
        said = json.loads(text)
        is_storable = find_fault(said) is None
        return cls(
            next_n=next_n,
            first_n=first_n,
            summary=summary,
            messages=said if is_storable else None,
            messages_text=None if is_storable else text,
        )

    def said(self) -> list[Message]:
        """The messages."""
        return messages_adapter.validate_python(
            self.messages if self.messages_text is None else json.loads(self.messages_text)
        )


_EARLIER: Codec[Earlier] = codec_for(Earlier)
_NOTHING: Codec[None] = codec_for(None)


class Turn:
    """One turn of an agent on a thread."""

    def __init__(self, step: Step, thread: str) -> None:
        self._step = step
        self._thread = checked_thread(thread)
        self._key = take_key(step, RawId("thread"))

    async def begin(self) -> Earlier:
        """Wait for the thread to be free, and give what was said on it."""

        async def begin(attempt: Attempt) -> Earlier:
            begun = await attempt.begin_turn(self._thread, self._key)
            return Earlier.of(
                begun.messages, next_n=begun.next_n, first_n=begun.first_n, summary=begun.summary
            )

        earlier: Earlier = await self._perform(self._key, Body(StepKind.RUN, self._thread, begin, _EARLIER))
        return earlier

    async def end(
        self,
        messages: Sequence[Message],
        *,
        earlier: Earlier,
        summary: str | None = None,
        summary_upto: int = 0,
    ) -> None:
        """Leave these messages on the thread, in the transaction that stores this step."""
        said = tuple((message.role, _as_json(message)) for message in messages)
        await self._end(
            "thread/end", messages=said, expected_n=earlier.next_n, summary=summary, summary_upto=summary_upto
        )

    async def leave(self) -> None:
        """The turn has failed: it leaves nothing behind, and the thread is free."""
        await self._end("thread/left")

    def _end(self, id: str, **left: Any) -> Coroutine[Any, Any, None]:
        async def end(attempt: Attempt) -> None:
            app = runner_of(self._step).app
            attempt.end_turn(TurnEnd(app, self._thread, str(self._key), **left))

        return self._perform(take_key(self._step, RawId(id)), Body(StepKind.RUN, self._thread, end, _NOTHING))

    def _perform(self, key: str, body: Body) -> Coroutine[Any, Any, Any]:
        return runner_of(self._step).perform(key, body)


def checked_thread(thread: object) -> str:
    """A thread's id: any non-empty text of up to 512 bytes. Raises `InvalidInput`."""
    try:
        return validate_id(thread, "thread")
    except InvalidInput as error:
        raise InvalidInput(f"thread={thread!r}: {error}") from None


def _as_json(message: Message) -> str:
    """ASCII: what a model wrote may hold what a database cannot keep."""
    return json.dumps(message.model_dump(mode="json"), separators=(",", ":"))
