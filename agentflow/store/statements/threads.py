"""The statements of threads: their turns, and what was said in them."""

from __future__ import annotations

from sqlalchemy import delete, func, select, update

from agentflow.store.rows import MessageRow, RunRow, ThreadRow, TurnRow, table_of
from agentflow.store.statements.statement import Flavour, Statement, big, text

_THREAD, _TURN, _MESSAGE = table_of(ThreadRow), table_of(TurnRow), table_of(MessageRow)
thread, turn, message = _THREAD.c, _TURN.c, _MESSAGE.c
run = table_of(RunRow).c

INSERT_THREAD = Statement(lambda d: d.insert(_THREAD).on_conflict_do_nothing())
READ_THREAD = Statement(
    lambda _: (
        select(thread.next_n, thread.next_turn, thread.summary, thread.summary_upto)
        .where(thread.app == text("app"), thread.id == text("id"))
        .with_for_update()
    )
)
MOVE_THREAD = Statement(
    lambda _: (
        update(_THREAD)
        .values(
            next_n=big("to_n"),
            next_turn=big("to_turn"),
            summary=text("says"),
            summary_upto=big("upto"),
            updated_at=big("now"),
        )
        .where(thread.app == text("of_app"), thread.id == text("of_id"))
    )
)
DELETE_THREAD = Statement(
    lambda _: (
        delete(_THREAD).where(thread.app == text("app"), thread.id == text("id")).returning(thread.next_n)
    )
)


def _upsert_turn(d: Flavour) -> object:
    made = d.insert(_TURN)
    changed = {
        name: made.excluded[name] for name in ("scope", "app", "thread_id", "n", "asked_at", "ended_at")
    }
    return made.on_conflict_do_update(index_elements=("run_id", "key"), set_=changed)


UPSERT_TURN = Statement(_upsert_turn)  # type: ignore[arg-type]
READ_TURN = Statement(
    lambda _: select(turn.n, turn.asked_at, turn.ended_at, turn.app, turn.thread_id).where(
        turn.run_id == text("run"), turn.key == text("key")
    )
)
LIST_OPEN_TURNS = Statement(
    lambda _: (
        select(turn.n, turn.run_id, turn.key, run.status)
        .join_from(_TURN, table_of(RunRow), run.id == turn.run_id, isouter=True)
        .where(turn.app == text("app"), turn.thread_id == text("thread"), turn.ended_at.is_(None))
        .order_by(turn.n)
    )
)
END_TURN = Statement(
    lambda _: (
        update(_TURN)
        .values(ended_at=func.coalesce(turn.ended_at, big("now")))
        .where(turn.run_id == text("run"), turn.key == text("turn"))
    )
)
LIST_OWN_TURNS = Statement(
    lambda _: select(turn.key).where(turn.run_id == text("run"), turn.ended_at.is_(None)).order_by(turn.key)
)
INSERT_MESSAGE = Statement(lambda d: d.insert(_MESSAGE))
READ_MESSAGES = Statement(
    lambda _: (
        select(message.data)
        .where(message.app == text("app"), message.thread_id == text("thread"), message.n >= big("first"))
        .order_by(message.n)
    )
)
DELETE_MESSAGES = Statement(
    lambda _: (
        delete(_MESSAGE)
        .where(message.app == text("app"), message.thread_id == text("thread"))
        .returning(message.n)
    )
)
FIND_OLD_THREADS = Statement(
    lambda _: (
        select(thread.app, thread.id)
        .where(thread.updated_at < big("before"))
        .order_by(thread.app, thread.id)
        .limit(big("most"))
    )
)
