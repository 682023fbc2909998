"""A run's life in the store: start, suspend, release, finish, cancel."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agentflow.models.ledger import CallState
from agentflow.runs import RunStatus
from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import (
    Adopt,
    AppendStream,
    CancelRun,
    CommitStep,
    Finish,
    Release,
    SendSignal,
    StartRun,
    Suspend,
    WriteModelCall,
)
from agentflow.store.outcome_types import (
    Cancelled,
    Done,
    Exists,
    Fenced,
    KeyConflict,
    MailChanged,
    NobodyWaits,
    Started,
)
from agentflow.store.stored_types import Chunk, ModelCall, RunKey, Status
from tests.store.support import APP, FUNCTION, World, a_run, a_step, a_wait, an_approval


async def test_a_started_run_is_queued_and_tells_so(world: World) -> None:
    run = a_run(tags=("vip",), trigger='{"id":"e"}')
    assert await world.submit(StartRun(run, 1_000)) == Started(run.id, True, 0)
    assert world.hints == [Hint(HintKind.READY)]
    stored = await world.store.queries.get_run(run.id)
    assert stored is not None
    assert (stored.status, stored.input, stored.tags) == (RunStatus.QUEUED, {"n": 1}, ("vip",))


async def test_a_start_played_again_creates_nothing(world: World) -> None:
    run = a_run()
    await world.submit(StartRun(run, 1_000))
    assert await world.submit(StartRun(run, 1_000)) == Started(run.id, False, 0)


async def test_an_owned_start_played_again_is_still_ours(world: World) -> None:
    run = a_run()
    assert await world.submit(StartRun(run, 1_000, owner=world.worker)) == Started(run.id, True, 1)
    assert await world.submit(StartRun(run, 1_000, owner=world.worker)) == Started(run.id, False, 1)
    assert await world.claim() == []


async def test_a_start_by_a_fenced_worker_is_queued(world: World) -> None:
    run = a_run()
    assert await world.submit(StartRun(run, 1_000, owner="nobody")) == Started(run.id, True, 0)
    assert await world.store.queries.get_status(run.id) is RunStatus.QUEUED


async def test_an_idempotency_key_gives_the_first_run_until_its_time_is_over(world: World) -> None:
    first = a_run(idempotency_key="k", idempotency_digest="d", idempotency_until=5_000)
    await world.submit(StartRun(first, 1_000))
    again = a_run(idempotency_key="k", idempotency_digest="d", idempotency_until=5_000)
    assert await world.submit(StartRun(again, 4_999)) == Started(first.id, False, 0)
    other = a_run(idempotency_key="k", idempotency_digest="x", idempotency_until=5_000)
    assert await world.submit(StartRun(other, 4_999)) == KeyConflict(first.id)
    assert await world.store.queries.get_run(other.id) is None
    late = a_run(idempotency_key="k", idempotency_digest="x", idempotency_until=9_000)
    assert await world.submit(StartRun(late, 5_000)) == Started(late.id, True, 0)


async def test_a_suspended_run_leaves_its_worker_until_it_is_due(world: World) -> None:
    key = await world.start()
    assert await world.submit(Suspend(key, 0, Status.SLEEPING, 5_000, "asleep")) == Done(0)
    assert await world.claim(now=4_999) == []
    claimed = await world.claim_one(now=5_000)
    assert (claimed.key.epoch, claimed.reason) == (2, None)  # why it was held is over


async def test_suspending_is_refused_when_mail_came_and_takes_the_adopted_count(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait())
    await world.submit(SendSignal("s", "go", "1", 1_500))
    assert await world.submit(Suspend(key, 0, Status.WAITING, 9_000)) == MailChanged(1, False)
    assert await world.submit(Suspend(key, 1, Status.WAITING, 9_000)) == MailChanged(1, False)  # still unread
    adopted = await world.submit(Adopt(key, 1, 1_500))
    assert await world.submit(Suspend(key, adopted.mail, Status.WAITING, 9_000)) == Done(1)


async def test_suspending_is_refused_when_a_cancel_was_asked(world: World) -> None:
    key = await world.start()
    await world.submit(CancelRun(key.run_id, "enough", 1_500))
    assert await world.submit(Suspend(key, 0, Status.WAITING, 9_000)) == MailChanged(0, True)


async def test_a_suspend_played_again_is_done_also_after_a_delivery(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait())
    suspend = Suspend(key, 0, Status.WAITING, 9_000)
    await world.submit(suspend)
    assert await world.submit(suspend) == Done(0)
    await world.submit(SendSignal("s", "go", "1", 1_500))
    assert await world.submit(suspend) == Done(1)
    claimed = await world.claim_one()
    assert claimed.steps[0].key == "w"
    assert isinstance(await world.submit(suspend), Fenced)


async def test_a_released_run_can_be_claimed_at_once(world: World) -> None:
    key = await world.start()
    assert await world.submit(Release(key, 1_500)) == Done()
    assert await world.submit(Release(key, 1_500)) == Done()
    assert (await world.claim_one(now=1_500)).key == RunKey(key.run_id, world.worker, 2)


async def test_finishing_stores_the_result_and_tells(world: World) -> None:
    key = await world.start()
    await world.wait(key, a_wait())
    finish = Finish(key, Status.COMPLETED, '"ok"', None, None, 3_000)
    assert await world.submit(finish) == Done()
    assert Hint(HintKind.ENDED, key.run_id) in world.hints
    assert await world.submit(finish) == Done()  # played again
    run = await world.store.queries.get_run(key.run_id)
    assert run is not None
    assert (run.status, run.output, run.waiting) == (RunStatus.COMPLETED, "ok", [])
    assert isinstance(await world.step(key), Fenced)


@pytest.mark.parametrize(
    ("status", "output", "error", "expected"),
    [
        (Status.COMPLETED, '{"x":1}', None, (True, '{"x":1}', None)),
        (Status.FAILED, None, '{"name":"Boom"}', (False, None, '{"for":"parent"}')),
    ],
)
async def test_a_child_s_end_is_delivered_to_its_parent(
    world: World,
    status: Status,
    output: str | None,
    error: str | None,
    expected: tuple[bool, str | None, str | None],
) -> None:
    parent = await world.start()
    child = a_run(parent_id=parent.run_id, parent_key="call", root_id=parent.run_id)
    await world.wait(parent, a_wait("call", "invoke", child.id), child=child)
    await world.submit(Suspend(parent, 0, Status.WAITING, 9_000))
    claimed = await world.claim_one()
    assert (claimed.key.run_id, claimed.parent_key) == (child.id, "call")
    parent_error = '{"for":"parent"}' if error else None
    await world.submit(Finish(claimed.key, status, output, error, None, 3_000, parent_error))
    woken = await world.claim_one(now=3_000)
    assert woken.key.run_id == parent.run_id
    [step] = woken.steps
    assert (step.ok, step.output, step.error) == expected
    assert (step.kind, step.seq, step.ended_at) == ("invoke", 1, 3_000)


async def test_a_detached_child_wakes_nobody_and_outlives_its_parent(world: World) -> None:
    parent = await world.start()
    child = a_run(parent_id=parent.run_id, parent_key=None, root_id=parent.run_id)
    await world.wait(parent, a_wait("call", "invoke", child.id), child=child)
    await world.submit(CancelRun(parent.run_id, None, 2_000))
    await world.submit(Finish(parent, Status.CANCELLED, None, None, None, 2_000))
    assert (await world.claim_one()).key.run_id == child.id


async def test_cancelling_ends_what_waits_and_asks_what_runs_down_the_tree(world: World) -> None:
    parent = await world.start()
    children = []
    for name in ("one", "two"):
        child = a_run(parent_id=parent.run_id, parent_key=name, root_id=parent.run_id)
        await world.wait(parent, a_wait(name, "invoke", child.id), child=child)
        children.append(child.id)
    running = (await world.claim(limit=1))[0].key.run_id
    [queued] = set(children) - {running}
    world.hints.clear()
    outcome = await world.submit(CancelRun(parent.run_id, "stop", 2_500))
    assert outcome == Cancelled(RunStatus.RUNNING, (queued,), (parent.run_id, running))
    assert {
        Hint(HintKind.ENDED, queued),
        Hint(HintKind.MAIL, parent.run_id),
        Hint(HintKind.MAIL, running),
    } <= set(world.hints)
    assert (await world.step(parent)).cancel is True
    mail = await world.store.list_mail(world.worker)
    assert {(run_id, cancel) for run_id, _, cancel in mail} == {(parent.run_id, True), (running, True)}
    ended = await world.store.queries.get_run(queued)
    assert ended is not None
    assert (ended.status, ended.reason) == (RunStatus.CANCELLED, "stop")


async def test_cancelling_a_child_fails_its_parent_s_step(world: World) -> None:
    parent = await world.start()
    child = a_run(parent_id=parent.run_id, parent_key="call", root_id=parent.run_id)
    await world.wait(parent, a_wait("call", "invoke", child.id), child=child)
    outcome = await world.submit(CancelRun(child.id, "why not", 2_500))
    assert outcome == Cancelled(RunStatus.QUEUED, (child.id,), ())
    [step] = (await world.submit(Adopt(parent, 1, 2_500))).steps
    assert step.ok is False
    assert json.loads(step.error)["name"] == "RunCancelled"


async def test_cancelling_what_has_ended_or_is_not_there_does_nothing(world: World) -> None:
    key = await world.start()
    await world.submit(Finish(key, Status.FAILED, None, '{"name":"E","message":"m"}', None, 2_000))
    assert await world.submit(CancelRun(key.run_id, None, 2_500)) == Cancelled(RunStatus.FAILED, (), ())
    assert await world.submit(CancelRun("nothing", None, 2_500)) == Cancelled(None, (), ())


async def test_a_step_and_the_finish_of_one_batch_are_both_done(world: World) -> None:
    key = await world.start()
    step = world.store.submit(CommitStep(key, a_step()))
    finish = world.store.submit(Finish(key, Status.COMPLETED, "1", None, None, 2_000))
    late = world.store.submit(CommitStep(key, a_step("late", 2)))
    assert (await step, await finish) == (Done(), Done())
    assert isinstance(await late, Fenced)


async def test_a_paused_function_s_runs_stay_queued(world: World, ready_url: str) -> None:
    from agentflow.store.claim_types import FunctionInfo
    from agentflow.store.operation_types import RegisterFunctions

    await world.queue()
    info = FunctionInfo(APP, FUNCTION, "1", "[]", "{}", "{}", paused_at=5)
    await world.submit(RegisterFunctions((info,), 1_000))
    assert await world.claim() == []
    assert await world.store.next_ready_at(app=APP, functions=[FUNCTION]) is None
    # Registering again, as each start of a worker does, does not resume it.
    await world.submit(RegisterFunctions((FunctionInfo(APP, FUNCTION, "2", "[]", "{}", "{}"),), 1_000))
    [stored] = await world.store.queries.list_functions(app=APP)
    assert (stored.version, stored.paused_at) == ("2", 5)


async def test_many_lives_at_once_go_as_one_by_one(world: World) -> None:
    """Starts, steps and finishes of one batch, with parents to wake, duplicates, and some that are not ours."""
    parents = [await world.start() for _ in range(3)]
    children = [
        a_run(parent_id=parent.run_id, parent_key="call", root_id=parent.run_id) for parent in parents
    ]
    for parent, child in zip(parents, children, strict=True):
        await world.wait(parent, a_wait("call", "invoke", child.id), child=child)
        await world.wait(parent, a_wait("other", topic=f"go-{parent.run_id}"))
    claimed = await world.claim()
    plain = [a_run(tags=("x",), event_id=f"e{n}") for n in range(20)]
    stale = parents[0]._replace(epoch=7)
    operations = [StartRun(run, 1_000, owner=world.worker) for run in plain]
    operations += [StartRun(a_run("queued"), 1_000), StartRun(plain[0], 1_000, owner=world.worker)]
    operations += [StartRun(a_run("kept", idempotency_key="k", idempotency_digest="d"), 1_000)]
    keys = [RunKey(run.id, world.worker, 1) for run in plain]
    operations += [CommitStep(key, a_step("a", 1)) for key in keys]
    operations += [Finish(key, Status.COMPLETED, f'"{n}"', None, None, 2_000) for n, key in enumerate(keys)]
    operations += [Finish(run.key, Status.FAILED, None, "{}", "r", 2_000, '{"p":1}') for run in claimed]
    operations += [Finish(stale, Status.COMPLETED, "1", None, None, 2_000)]
    operations += [
        CommitStep(keys[0], a_step("late", 2)),
        Finish(keys[1], Status.COMPLETED, "2", None, None, 2_000),
    ]
    # From tasks: what one submits while others are to run waits for them.
    outcomes = await asyncio.gather(*map(world.submit, operations))
    answers = iter(outcomes)
    assert [next(answers) for _ in plain] == [Started(run.id, True, 1) for run in plain]
    assert next(answers) == Started("queued", True, 0)
    assert next(answers) == Started(plain[0].id, False, 1)
    assert next(answers) == Started("kept", True, 0)
    assert [next(answers) for _ in range(40 + len(claimed))] == [Done()] * (40 + len(claimed))
    assert isinstance(next(answers), Fenced)  # a stale epoch
    assert isinstance(next(answers), Fenced)  # a step after the finish
    assert next(answers) == Done()  # a finish played again
    for n, run in enumerate(plain):
        stored = await world.store.queries.get_run(run.id)
        assert stored is not None
        assert (stored.status, stored.output, stored.tags) == ("completed", str(n), ("x",))
        assert [found.id for found in (await world.store.queries.list_event_runs(f"e{n}")).data] == [run.id]
    for parent in parents:
        [step] = (await world.submit(Adopt(parent, 1, 2_000))).steps
        assert (step.key, step.ok, step.error) == ("call", False, '{"p":1}')
    assert sorted(run.key.run_id for run in await world.claim()) == ["kept", "queued"]


async def test_what_many_runs_write_beside_their_steps_goes_as_one_by_one(world: World) -> None:
    """Rows of the ledger and pieces of streams in one batch with steps and ends, of our runs and of others."""
    keys = [await world.start() for _ in range(6)]
    stale = keys[0]._replace(epoch=7)
    called = [_a_call("ask", CallState.ATTEMPTED) for _ in keys]
    ended = [
        call._replace(state=CallState.DONE, billed="yes", ended_at=1_400, input_tokens=3) for call in called
    ]
    lost = _a_call("other", CallState.IN_DOUBT)
    operations: list[Any] = []
    operations += [WriteModelCall(key, call) for key, call in zip(keys, called, strict=True)]
    operations += [AppendStream(key, (Chunk(1, "text.delta", "ask", 0, '"a"'),)) for key in keys]
    operations += [
        AppendStream(stale, (Chunk(9, "text.delta", "ask", 0, '"z"'),)),
        WriteModelCall(stale, lost),
    ]
    operations += [CommitStep(key, a_step("ask", 2), lost) for key in keys[:1]]  # another row than its own
    # The row that was written in this very batch: the end comes after it, in its turn.
    operations += [
        CommitStep(key, a_step("ask", 2), end) for key, end in zip(keys[1:], ended[1:], strict=True)
    ]
    operations += [AppendStream(key, (Chunk(3, "text.delta", "ask", 0, '"b"'),)) for key in keys]
    operations += [Finish(key, Status.COMPLETED, "1", None, None, 2_000) for key in keys]
    operations += [
        AppendStream(keys[0], (Chunk(4, "text.delta", "ask", 0, '"c"'),)),
        WriteModelCall(keys[0], lost),
    ]
    outcomes = await asyncio.gather(*map(world.submit, operations))
    is_fenced = [isinstance(outcome, Fenced) for outcome in outcomes]
    of_stale = range(2 * len(keys), 2 * len(keys) + 2)
    assert [n for n, fenced in enumerate(is_fenced) if fenced] == [
        *of_stale,
        len(operations) - 2,
        len(operations) - 1,
    ]
    assert {outcome for outcome, fenced in zip(outcomes, is_fenced, strict=True) if not fenced} == {Done()}
    queries = world.store.queries
    for key, end in zip(keys, ended, strict=True):
        rows = {row.key: row for _, row in await queries.list_model_calls(run=key.run_id)}
        assert rows == ({"ask": called[0], "other": lost} if key is keys[0] else {"ask": end})
        told = [(item.seq, item.kind) for item in await queries.list_stream(key.run_id)]
        assert told == [(1, "text.delta"), (2, "step.completed"), (3, "text.delta")]
        assert Hint(HintKind.STREAM, key.run_id) in world.hints


async def test_a_row_of_the_ledger_alone_is_fenced_too(world: World) -> None:
    key = await world.start()
    call = _a_call("ask", CallState.ATTEMPTED)
    assert await world.submit(WriteModelCall(key, call)) == Done()
    assert isinstance(
        await world.submit(WriteModelCall(key._replace(epoch=7), _a_call("ask", "done"))), Fenced
    )
    assert isinstance(await world.submit(WriteModelCall(key._replace(run_id="none"), call)), Fenced)
    [(run_id, row)] = await world.store.queries.list_model_calls(run=key.run_id)
    assert (run_id, row) == (key.run_id, call)
    await world.store.abandon_worker(world.worker)
    assert isinstance(await world.submit(WriteModelCall(key, call)), Fenced)


async def test_an_answer_is_written_with_its_row_and_what_was_told_of_it(world: World) -> None:
    key, other = await world.start(), await world.start()
    asked = _a_call("ask", CallState.ATTEMPTED)
    ended = asked._replace(state=CallState.DONE, billed="yes", ended_at=1_400, output_tokens=2)
    told = AppendStream(
        key, (Chunk(1, "text.delta", "ask", 0, '"a"'), Chunk(2, "text.delta", "ask", 0, '"b"'))
    )
    answer = CommitStep(key, a_step("ask", 3), ended)
    await world.submit(WriteModelCall(key, asked))
    world.hints.clear()

    async def at_once(*operations: Any) -> list[Any]:
        return await asyncio.gather(*map(world.submit, operations))

    stale = key._replace(epoch=7)
    fenced = await at_once(told._replace(run=stale), answer._replace(run=stale))
    assert all(isinstance(outcome, Fenced) for outcome in fenced)
    assert await world.store.queries.list_stream(key.run_id) == []

    assert await at_once(told, answer) == [Done(), Done()]
    queries = world.store.queries
    items = [(item.seq, item.kind) for item in await queries.list_stream(key.run_id)]
    assert items == [(1, "text.delta"), (2, "text.delta"), (3, "step.completed")]
    assert [call for _, call in await queries.list_model_calls(run=key.run_id)] == [ended]
    assert Hint(HintKind.STREAM, key.run_id) in world.hints

    # Played again it finds what it did, and another outcome of the step changes nothing but its own row.
    again = await at_once(told, answer._replace(step=a_step("ask", 3, '"other"')))
    assert again[0] == Done()
    assert isinstance(again[1], Exists)
    assert again[1].step == answer.step

    # What was delivered to the run meanwhile is told with the outcome.
    await world.wait(other, a_wait())
    await world.submit(SendSignal("s", "go", "1", 1_400))
    assert await at_once(CommitStep(other, a_step("ask", 3), ended)) == [Done(1)]
    assert [call for _, call in await queries.list_model_calls(run=other.run_id)] == [ended]


def _a_call(key: str, state: str) -> ModelCall:
    return ModelCall(key, 0, "openai", "gpt", state, "possible", 1_200, "sha256:0")


async def test_a_batch_of_finishes_closes_waits_and_requests(world: World) -> None:
    keys = [await world.start() for _ in range(4)]
    approvals = [an_approval() for _ in keys]
    for key, approval in zip(keys, approvals, strict=True):
        await world.wait(key, a_wait("ask", "approval", approval.id), approval=approval)
        await world.wait(key, a_wait("w", topic=f"go-{key.run_id}"))
    finishes = [Finish(key, Status.FAILED, None, '{"name":"E","message":"m"}', "why", 2_000) for key in keys]
    assert set(await asyncio.gather(*map(world.store.submit, finishes))) == {Done()}
    for key, approval in zip(keys, approvals, strict=True):
        run = await world.store.queries.get_run(key.run_id)
        request = await world.store.queries.get_approval(approval.id)
        assert run is not None
        assert request is not None
        assert (run.status, run.reason, run.waiting, request.status) == ("failed", "why", [], "cancelled")
        assert Hint(HintKind.ENDED, key.run_id) in world.hints
        assert (
            await world.submit(SendSignal(f"s-{key.run_id}", f"go-{key.run_id}", "1", 2_000)) == NobodyWaits()
        )
