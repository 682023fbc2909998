"""What people and pages read: records, pages, cursors, and rows that somebody broke."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agentflow.clock import to_datetime
from agentflow.errors import InvalidInput
from agentflow.runs import Page, RunStatus, StepKind, StepStatus
from agentflow.store.operation_types import Finish, RecordAttempt, Suspend, WriteModelCall
from agentflow.store.protocol import Queries
from agentflow.store.stored_types import ModelCall, Status, StoredAttempt
from tests.store.support import NEVER, World, a_wait, an_approval

ERROR = '{"name":"Boom","message":"it broke","traceback":null,"attributes":{"code":7},"own":null}'


async def all_pages(read: Callable[..., Awaitable[Page[Any]]], limit: int) -> list[Any]:
    """Every item, page by page; a page is never longer than asked."""
    items: list[Any] = []
    cursor = None
    while True:
        page = await read(limit=limit, cursor=cursor)
        assert len(page.data) <= limit
        assert page.has_more is (page.cursor is not None)
        items.extend(page.data)
        if page.cursor is None:
            return items
        cursor = page.cursor


async def test_runs_are_listed_newest_first_without_payloads(world: World) -> None:
    for n in range(5):
        await world.queue(f"run-{n}", created_at=1_000 + n // 2)  # some of the same instant
    runs = await all_pages(world.store.queries.list_runs, 2)
    assert [run.id for run in runs] == ["run-4", "run-3", "run-2", "run-1", "run-0"]
    assert runs[0].input is None
    assert [run.id for run in await all_pages(world.store.queries.list_runs, 5)] == [run.id for run in runs]


async def test_runs_are_found_by_each_filter(world: World) -> None:
    key = await world.start("alpha_1", function="f")
    await world.queue("alphaX1", app="other", created_at=5_000)
    await world.queue("beta", parent_id="alpha_1", root_id="alpha_1")
    await world.submit(Finish(key, Status.FAILED, None, ERROR, None, 2_000))

    async def ids(**filters: Any) -> set[str]:
        return {run.id for run in (await world.store.queries.list_runs(**filters)).data}

    assert await ids(status=[RunStatus.FAILED]) == {"alpha_1"}
    assert await ids(status=[RunStatus.FAILED, RunStatus.QUEUED]) == {"alpha_1", "alphaX1", "beta"}
    assert await ids(status=[]) == set()
    assert await ids(app="other") == {"alphaX1"}
    assert await ids(function="f") == {"alpha_1"}
    assert await ids(parent="alpha_1") == {"beta"}
    assert await ids(since=5_000) == {"alphaX1"}
    assert await ids(q="alpha") == {"alpha_1", "alphaX1"}
    assert await ids(q="alpha_") == {"alpha_1"}  # no wildcard
    assert await ids(q="%") == set()
    assert await ids(q="' OR 1=1 --") == set()


async def test_a_failed_run_shows_its_error(world: World) -> None:
    key = await world.start()
    await world.submit(Finish(key, Status.FAILED, None, ERROR, "why", 2_000))
    run = await world.store.queries.get_run(key.run_id)
    assert run is not None
    assert run.error is not None
    assert (run.error.name, run.error.attributes, run.reason) == ("Boom", {"code": 7}, "why")
    assert run.ended_at == to_datetime(2_000)
    assert await world.store.queries.get_run("nothing") is None
    assert await world.store.queries.get_status("nothing") is None


async def test_a_run_shows_what_it_waits_for(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait("s", topic="go", deadline=NEVER))
    await world.submit(RecordAttempt(key, StoredAttempt("a", 1, ERROR, 5_000, 1_100)))
    await world.submit(RecordAttempt(key, StoredAttempt("a", 2, ERROR, 6_000, 1_200)))
    await world.submit(RecordAttempt(key, StoredAttempt("done", 1, ERROR, 6_000, 1_200)))
    await world.step(key, "done", 1)
    await world.submit(Suspend(key, 0, Status.WAITING, 6_000))
    run = await world.store.queries.get_run(key.run_id)
    assert run is not None
    assert run.status is RunStatus.WAITING
    assert [(w.step_key, w.kind, w.name, w.until) for w in run.waiting] == [
        ("s", StepKind.SIGNAL, "go", None),
        ("a", StepKind.RETRY, None, to_datetime(6_000)),
    ]
    [listed] = (await world.store.queries.list_runs()).data
    assert listed.waiting == run.waiting


async def test_steps_are_listed_by_seq_and_waiting_ones_last(world: World) -> None:
    key = await world.start()
    for seq, name in ((2, "b"), (1, "z:1"), (3, "agent#0/turn1/model")):
        await world.step(key, name, seq, f'{{"n":{seq}}}')
    await world.wait(key, a_wait("w2", topic="two"))
    await world.wait(key, a_wait("w1@0", topic="one"))
    await world.submit(RecordAttempt(key, StoredAttempt("try", 3, ERROR, 5_000, 1_100)))
    await world.submit(RecordAttempt(key, StoredAttempt("@3", 1, ERROR, 5_000, 1_100)))

    for limit in (1, 2, 3, 4, 100):
        steps = await all_pages(lambda **page: world.store.queries.list_steps(key.run_id, **page), limit)
        assert [(step.key, step.seq) for step in steps] == [
            ("z:1", 1),
            ("b", 2),
            ("agent#0/turn1/model", 3),
            ("try", None),
            ("w1@0", None),
            ("w2", None),
        ]
    assert [step.status for step in steps] == [StepStatus.COMPLETED] * 3 + [StepStatus.WAITING] * 3
    assert [step.id for step in steps[:2]] == ["z", "b"]
    assert (steps[3].attempts, steps[3].error.name) == (3, "Boom")
    assert steps[1].output == {"n": 2}


async def test_one_step_is_found_by_key_also_while_it_waits(world: World) -> None:
    key = await world.start()
    await world.step(key, "a", 1)
    await world.wait(key, a_wait("w"))
    done = await world.store.queries.get_step(key.run_id, "a")
    waiting = await world.store.queries.get_step(key.run_id, "w")
    assert done is not None
    assert waiting is not None
    assert (done.status, waiting.status, waiting.name) == (StepStatus.COMPLETED, StepStatus.WAITING, "go")
    assert await world.store.queries.get_step(key.run_id, "nothing") is None


async def test_calls_of_a_run_count_those_of_its_descendants(world: World) -> None:
    call = ModelCall("m", 0, "openai", "gpt", "done", "yes", 1_100, "d", agent="support", ended_at=1_200)
    root = await world.start("root")
    child = await world.start("child", parent_id="root", root_id="root")
    grandchild = await world.start("grandchild", parent_id="child", root_id="root")
    other = await world.start("other")
    for n, key in enumerate((root, child, grandchild, other)):
        await world.submit(WriteModelCall(key, call._replace(started_at=1_100 + n)))
    queries = world.store.queries
    assert [run for run, _ in await queries.list_model_calls(run="root")] == ["root", "child", "grandchild"]
    assert [run for run, _ in await queries.list_model_calls(run="child")] == ["child", "grandchild"]
    assert [run for run, _ in await queries.list_model_calls(since=1_102)] == ["grandchild", "other"]
    assert len(await queries.list_model_calls(agent="support")) == 4
    assert await queries.list_model_calls(agent="else") == []


def _cursor(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")


def _lists(queries: Queries) -> dict[str, Callable[[str], Awaitable[Any]]]:
    """By what stands in their cursors."""
    return {
        "agentflow_run": lambda cursor: queries.list_runs(cursor=cursor),
        "step": lambda cursor: queries.list_steps("r", cursor=cursor),
        "agentflow_approval": lambda cursor: queries.list_approvals(cursor=cursor),
        "agentflow_event": lambda cursor: queries.list_events(cursor=cursor),
    }


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "nonsense!",
        "é",
        "====",
        _cursor({"a": 1}),
        _cursor([1, "a"]),
        _cursor([[[]]] * 3),
        "'; DROP TABLE agentflow_run; --",
        "W" * 5_000,
    ],
)
async def test_a_cursor_that_no_page_gave_is_refused(world: World, cursor: str) -> None:
    queries = world.store.queries
    for read in (*_lists(queries).values(), lambda given: queries.list_event_runs("e", cursor=given)):
        with pytest.raises(InvalidInput, match="is not one that a page of this list gave"):
            await read(cursor)


@pytest.mark.parametrize("values", [[1], ["a", 1], [True, "a"], [2**70, "a"], [1, "a\0"], [1, "a", 2]])
async def test_a_cursor_with_what_is_no_place_in_a_list_is_refused(world: World, values: list[Any]) -> None:
    for kind, read in _lists(world.store.queries).items():
        with pytest.raises(InvalidInput):
            await read(_cursor([kind, *values]))


async def test_a_cursor_is_of_one_list_and_written_in_one_way(world: World) -> None:
    lists = _lists(world.store.queries)
    for kind, read in lists.items():
        cursor = _cursor([kind, 1, "a"])
        await read(cursor)
        for other in lists.keys() - {kind}:
            with pytest.raises(InvalidInput):
                await lists[other](cursor)
        with pytest.raises(InvalidInput):
            await read(cursor + "=")


@pytest.mark.parametrize("limit", [0, -1, 100_000])
async def test_a_limit_out_of_bounds_is_refused(world: World, limit: int) -> None:
    with pytest.raises(InvalidInput):
        await world.store.queries.list_runs(limit=limit)


async def test_a_row_that_cannot_be_decoded_spoils_only_itself(world: World) -> None:
    good, bad = await world.start("good"), await world.start("bad")
    for key in (good, bad):
        await world.step(key, "a", 1)
        approval = an_approval(f"approval-{key.run_id}")
        await world.wait(key, a_wait("ask", "approval", approval.id), approval=approval)
        await world.submit(Finish(key, Status.COMPLETED, "1", None, None, 2_000))
    await _break(
        world,
        "UPDATE agentflow_run_io SET output = '{', tags = '7' WHERE run_id = 'bad'",
        "UPDATE agentflow_step SET output = 'NaN}', kind = 'magic' WHERE run_id = 'bad'",
        "UPDATE agentflow_approval SET decisions = '{\"by\":1}', args = '[' WHERE run_id = 'bad'",
    )
    run = await world.store.queries.get_run("bad")
    assert run is not None
    assert run.error is not None
    assert "cannot be decoded" in run.error.message
    assert len((await world.store.queries.list_runs()).data) == 2
    [step] = (await world.store.queries.list_steps("bad")).data
    assert step.error is not None
    assert "cannot be decoded" in step.error.message
    shown = {request.run_id: request for request in (await world.store.queries.list_approvals()).data}
    assert shown["good"].args == {"amount": 5, "to": "ana"}
    assert "cannot be read" in shown["bad"].details["message"]


async def _break(world: World, *statements: str) -> None:
    import sqlite3

    import asyncpg

    path = getattr(world.store, "_path", None)
    if path is not None:
        with sqlite3.connect(path, timeout=5) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
    else:
        database = await asyncpg.connect(world.store._dsn)  # type: ignore[attr-defined]
        for statement in statements:
            await database.execute(statement)
        await database.close()
