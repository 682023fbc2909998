"""`app.threads`: conversations that span runs, seen from outside."""

from __future__ import annotations

import json
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from agentflow.clock import to_datetime
from agentflow.errors import InvalidInput, NotFound
from agentflow.ids import is_storable
from agentflow.models.messages import Message
from agentflow.runs import Page
from agentflow.store.operation_types import ForgetThread
from agentflow.store.outcome_types import Forgotten
from agentflow.store.protocol import Store
from agentflow.store.stored_types import StoredMessage

LARGEST_PAGE = 100


class ThreadMessage(BaseModel):
    """A message of a thread. `turn` counts the turns, `n` the messages, both from 0."""

    model_config = ConfigDict(frozen=True)

    n: int
    turn: int
    run_id: str
    message: Message
    created_at: datetime


class Threads:
    """The threads of one app."""

    def __init__(self, app: str, store: Store) -> None:
        self._app = app
        self._store = store

    async def messages(
        self, thread: str, *, limit: int = 100, cursor: str | None = None
    ) -> Page[ThreadMessage]:
        """What was said on a thread, the oldest first: whole turns only. Raises `NotFound`."""
        if not 1 <= limit <= LARGEST_PAGE:
            raise InvalidInput(f"limit={limit}: a page has 1 to {LARGEST_PAGE} items")
        page = None
        if is_storable(thread):
            page = await self._store.queries.list_messages(self._app, thread, limit=limit, cursor=cursor)
        if page is None:
            raise self._not_found(thread)
        data = [_shown(stored) for stored in page.data]
        return Page(data=data, cursor=page.cursor, has_more=page.has_more)

    async def forget(self, thread: str) -> int:
        """Remove a thread and what was said on it: how many messages. Runs keep what they have read of it, until
        retention removes them. Raises `NotFound`."""
        answer = None
        if is_storable(thread):
            answer = await self._store.submit(ForgetThread(self._app, thread))
        if not isinstance(answer, Forgotten) or answer.messages is None:
            raise self._not_found(thread)
        return answer.messages

    def _not_found(self, thread: str) -> NotFound:
        return NotFound(f"app {self._app!r} has no thread {thread!r}")


def _shown(stored: StoredMessage) -> ThreadMessage:
    return ThreadMessage(
        n=stored.n,
        turn=stored.turn,
        run_id=stored.run_id,
        message=Message.model_validate(json.loads(stored.data)),
        created_at=to_datetime(stored.created_at),
    )
