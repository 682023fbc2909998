"""What a run writes while it goes, and the fence in front of it."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest

from agentflow.store.hints import Hint, HintKind
from agentflow.store.operation_types import AppendStream, CommitStep, RecordAttempt, Suspend, WriteModelCall
from agentflow.store.outcome_types import Done, Exists, Fenced
from agentflow.store.stored_types import Chunk, ModelCall, Status, StoredAttempt
from tests.store.support import World, a_step, a_wait

CALL = ModelCall("a", 0, "openai", "gpt", "attempted", "possible", 1_100, "digest")


async def test_a_step_is_written_once_and_its_first_outcome_stands(world: World) -> None:
    key = await world.start()
    assert await world.step(key, "a", 1, '"first"') == Done()
    outcome = await world.step(key, "a", 7, '"second"')
    assert outcome == Exists(a_step("a", 1, '"first"'))


async def test_of_one_key_twice_in_one_batch_the_first_stands(world: World) -> None:
    key = await world.start()
    first, *others = [world.store.submit(CommitStep(key, a_step("a", n, str(n)))) for n in range(1, 8)]
    assert await first == Done()
    assert [(await other).step.output for other in others] == ["1"] * 6


async def test_many_steps_of_many_runs_are_all_there_once(world: World) -> None:
    keys = [await world.start() for _ in range(7)]
    operations = [CommitStep(key, a_step(f"s{n}", n)) for n in range(150) for key in keys]
    outcomes = await asyncio.gather(*map(world.store.submit, operations))
    assert set(outcomes) == {Done()}
    again = await asyncio.gather(*map(world.store.submit, operations))
    assert [outcome.step for outcome in again] == [operation.step for operation in operations]


@pytest.mark.parametrize("companions", [0, 5])
async def test_a_stale_epoch_a_foreign_worker_and_an_unknown_run_are_fenced(
    world: World, companions: int
) -> None:
    """Alone and among valid steps, which are not harmed by it."""
    key = await world.start()
    other = await world.other_worker()
    wrong = [
        key._replace(epoch=2),
        key._replace(worker_id=other.worker),
        key._replace(worker_id="unknown"),
        key._replace(run_id="nothing"),
    ]
    operations = [CommitStep(k, a_step(f"bad{n}")) for n, k in enumerate(wrong)]
    valid = [CommitStep(key, a_step(f"good{n}", n)) for n in range(companions)]
    outcomes = await asyncio.gather(*map(world.store.submit, operations + valid))
    assert [type(outcome) for outcome in outcomes] == [Fenced] * 4 + [Done] * companions
    assert len((await world.store.queries.list_steps(key.run_id)).data) == companions


async def test_an_expired_lease_fences_before_anybody_reaps(world: World) -> None:
    brief = await world.other_worker(lease_seconds=1.0)
    key = await brief.start()
    await asyncio.sleep(1.1)
    assert isinstance(await brief.step(key), Fenced)
    assert isinstance(await brief.submit(Suspend(key, 0, Status.WAITING, 5_000)), Fenced)
    assert await brief.claim() == []


async def test_a_committed_step_resets_the_count_of_crashes(world: World) -> None:
    dying = await world.other_worker()
    key = await dying.start()
    await world.store.abandon_worker(dying.worker)
    await _reap_until_taken(world, key.run_id)
    claimed = await world.claim_one()
    assert claimed.crash_count == 1
    await world.step(claimed.key, "a", 1)
    await asyncio.gather(*(world.step(claimed.key, f"b{n}", n + 2) for n in range(4)))
    await world.submit(Suspend(claimed.key, 0, Status.SLEEPING, 3_000))
    assert (await world.claim_one(now=3_000)).crash_count == 0


async def test_failed_attempts_come_back_until_the_step_has_an_outcome(world: World) -> None:
    key = await world.start()
    attempts = [
        StoredAttempt("a", 1, '{"name":"E","message":"m"}', 5_000, 1_100),
        StoredAttempt("@0", 1, "{}", 6_000, 1_200),
    ]
    for attempt in attempts:
        assert await world.submit(RecordAttempt(key, attempt)) == Done()
        assert await world.submit(RecordAttempt(key, attempt)) == Done()
    await world.submit(Suspend(key, 0, Status.SLEEPING, 5_000))
    claimed = await world.claim_one(now=5_000)
    assert sorted(claimed.attempts) == sorted(attempts)
    await world.step(claimed.key, "a", 1)
    await world.submit(Suspend(claimed.key, 0, Status.SLEEPING, 6_000))
    assert [attempt.key for attempt in (await world.claim_one(now=6_000)).attempts] == ["@0"]


async def test_the_ledger_keeps_one_row_per_attempt_and_gives_open_ones_to_a_claim(world: World) -> None:
    key = await world.start(tags=("vip",))
    await world.submit(WriteModelCall(key, CALL))
    await world.submit(WriteModelCall(key, CALL._replace(state="submitted", provider_id="resp_1")))
    await world.submit(WriteModelCall(key, CALL._replace(key="b")))
    done = CALL._replace(key="b", state="done", billed="yes", ended_at=1_900, output_tokens=5, cost="0.25")
    await world.submit(CommitStep(key, a_step("b"), done))
    await world.submit(Suspend(key, 0, Status.SLEEPING, 2_000))
    claimed = await world.claim_one()
    assert claimed.model_calls == (CALL._replace(state="submitted", provider_id="resp_1"),)
    calls = await world.store.queries.list_model_calls(run=key.run_id)
    assert [call for _, call in calls] == [*claimed.model_calls, done]
    assert len(await world.store.queries.list_model_calls(tag="vip")) == 2
    assert await world.store.queries.list_model_calls(tag="vi") == []
    step = await world.store.queries.get_step(key.run_id, "b")
    assert step is not None
    assert step.cost == Decimal("0.25")


async def test_the_stream_is_appended_once_and_counts_into_the_next_seq(world: World) -> None:
    key = await world.start()
    await world.step(key, "a", 1)
    chunks = (Chunk(2, "text.delta", "b", 0, '"he"'), Chunk(3, "text.delta", "b", 0, '"llo"'))
    for _ in range(2):
        assert await world.submit(AppendStream(key, chunks)) == Done()
    assert Hint(HintKind.STREAM, key.run_id) in world.hints
    items = await world.store.queries.list_stream(key.run_id)
    assert [(item.seq, item.kind) for item in items] == [
        (1, "step.completed"),
        (2, "text.delta"),
        (3, "text.delta"),
    ]
    assert [item.data for item in await world.store.queries.list_stream(key.run_id, after=1)] == ["he", "llo"]
    await world.submit(Suspend(key, 0, Status.SLEEPING, 2_000))
    assert (await world.claim_one()).next_seq == 4


async def test_the_answer_tells_the_owner_of_its_mail(world: World) -> None:
    from agentflow.store.operation_types import SendSignal

    key = await world.start()
    await world.wait(key, a_wait())
    await world.submit(SendSignal("s", "go", "1", 1_500))
    assert await world.step(key) == Done(mail=1)
    assert Hint(HintKind.MAIL, key.run_id) in world.hints


async def _reap_until_taken(world: World, run_id: str) -> None:
    """On PostgreSQL a dead worker is known by its lease alone: end it there."""
    from tests.store.support import expire_leases

    await expire_leases(world.store, keep=world.worker)
    assert await world.store.reap(now=1_900) == [run_id]
