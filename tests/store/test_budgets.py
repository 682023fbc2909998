"""Budgets in the database: reserved with a row of the ledger, settled with its end, and always the sum of the rows."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from decimal import Decimal
from typing import Any

import pytest

from agentflow.store.charges import charges_of, read_charges, to_nanos, to_usd
from agentflow.store.operation_types import (
    CommitStep,
    EndAbandonedCall,
    PruneLoose,
    RecordAttempt,
    WriteModelCall,
)
from agentflow.store.operations.dispatch import apply
from agentflow.store.outcome_types import Done, OverBudget
from agentflow.store.protocol import Store
from agentflow.store.stored_types import BudgetState, ModelCall, Reservation, RunKey, Status, StoredAttempt
from agentflow.store.transaction import Transaction
from tests.store.support import World, a_step, fresh, make_store, with_worker

DOLLAR = 1_000_000_000
DAY = 86_400_000_000
CALL = ModelCall("ask", 0, "openai", "gpt", "attempted", "possible", 1_100, "digest")


def part_of(budget: str, cost: int = 0, tokens: int = 0, **changes: Any) -> Reservation:
    return Reservation(budget, budget, None, 0, DAY, cost, tokens, None, None)._replace(**changes)


def a_call(*reservations: Reservation, **changes: Any) -> ModelCall:
    return CALL._replace(charges=charges_of(reservations), **changes)


async def make(
    world: World, run: RunKey, *reservations: Reservation, **changes: Any
) -> tuple[Any, ModelCall]:
    call = a_call(*reservations, **changes)
    return await world.submit(WriteModelCall(run, call, reservations)), call


async def state_of(store: Store, name: str, *, now: int = 1) -> BudgetState:
    [state] = await store.queries.list_budgets(now=now, name=name)
    return state


async def test_what_is_reserved_is_not_there_for_others(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    limited = part_of(name, cost=4, cost_limit=10)
    answers = [(await make(world, run, limited, attempt=n))[0] for n in range(3)]
    assert answers[:2] == [Done(), Done()]
    assert answers[2] == OverBudget(limited, 0, 0, 8, 0, is_of_cost=True)
    calls = await world.store.queries.list_model_calls(run=run.run_id)
    assert [call.attempt for _, call in calls] == [0, 1], "what would pass the budget is not even written"


async def test_a_call_may_use_all_that_is_left_and_then_nothing_more(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    assert (await make(world, run, part_of(name, tokens=10, token_limit=10)))[0] == Done()
    answer, _ = await make(world, run, part_of(name, tokens=0, token_limit=10), attempt=1)
    assert isinstance(answer, OverBudget)
    assert not answer.is_of_cost


async def test_the_end_of_a_call_settles_it_with_the_step_it_is_stored_with(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    _, call = await make(world, run, part_of(name, cost=DOLLAR, tokens=900))
    done = call._replace(
        state="done", billed="yes", ended_at=1_200, cost="0.25", input_tokens=30, output_tokens=4
    )
    for _ in range(2):  # a batch may be played again
        await world.submit(CommitStep(run, a_step("ask"), done))
        state = await state_of(world.store, name)
        assert (state.spent_cost, state.spent_tokens) == (DOLLAR // 4, 34)
        assert (state.reserved_cost, state.reserved_tokens) == (0, 0)
    [(_, stored)] = await world.store.queries.list_model_calls(run=run.run_id)
    assert [(charge.cost, charge.tokens) for charge in read_charges(stored.charges)] == [(DOLLAR // 4, 34)]


async def test_a_call_that_was_not_billed_gives_back_what_was_reserved(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    _, call = await make(world, run, part_of(name, cost=10, tokens=10, cost_limit=10, token_limit=10))
    refused = call._replace(state="not_billed", billed="no", ended_at=1_200)
    attempt = StoredAttempt("ask", 1, "{}", 5_000, 1_100)
    await world.submit(RecordAttempt(run, attempt, refused))
    state = await state_of(world.store, name)
    assert state[-4:] == (0, 0, 0, 0)


async def test_a_call_in_doubt_keeps_what_was_reserved_until_its_answer_is_found(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    _, call = await make(world, run, part_of(name, cost=10, tokens=10))
    lost = call._replace(state="in_doubt", ended_at=1_200)
    await world.submit(WriteModelCall(run, lost))
    assert (await state_of(world.store, name))[-4:] == (10, 10, 0, 0)
    found = lost._replace(state="done", billed="yes", cost="0.000000003", input_tokens=1, output_tokens=1)
    await world.submit(CommitStep(run, a_step("ask"), found))
    assert (await state_of(world.store, name))[-4:] == (3, 2, 0, 0)


async def test_an_answer_whose_cost_nobody_knows_counts_for_what_was_reserved(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    _, call = await make(world, run, part_of(name, cost=10, tokens=10))
    await world.submit(WriteModelCall(run, call._replace(state="done", billed="yes", ended_at=1_200)))
    assert (await state_of(world.store, name))[-4:] == (10, 10, 0, 0)


async def test_a_job_that_was_abandoned_is_spent(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    _, call = await make(world, run, part_of(name, cost=10))
    job = call._replace(state="submitted", provider_id="resp_1")
    await world.submit(WriteModelCall(run, job))
    assert (await state_of(world.store, name))[-4:] == (0, 0, 10, 0)
    for _ in range(2):
        await world.submit(EndAbandonedCall(run.run_id, job._replace(state="in_doubt", ended_at=1_300)))
        assert (await state_of(world.store, name))[-4:] == (10, 0, 0, 0)


async def test_a_request_that_is_written_again_is_reserved_once(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    whole = part_of(name, cost=10, cost_limit=10)
    for _ in range(3):
        assert (await make(world, run, whole))[0] == Done()
    assert (await state_of(world.store, name)).reserved_cost == 10


async def test_of_two_budgets_both_have_room_or_nothing_is_reserved(world: World) -> None:
    wide, tight, run = fresh("budget"), fresh("budget"), await world.start()
    answer, _ = await make(
        world, run, part_of(wide, cost=5, cost_limit=100), part_of(tight, cost=5, cost_limit=4)
    )
    assert isinstance(answer, OverBudget)
    assert answer.reservation.name == tight
    assert await world.store.queries.list_budgets(now=1, name=wide) == []


async def test_each_period_has_the_whole_budget_and_is_settled_for_itself(world: World) -> None:
    name, run = fresh("budget"), await world.start()
    today = part_of(name, cost=10, cost_limit=10)
    tomorrow = today._replace(period_start=DAY, ends_at=2 * DAY)
    _, call = await make(world, run, today)
    assert (await make(world, run, tomorrow, attempt=1))[0] == Done()
    done = call._replace(state="done", billed="yes", ended_at=DAY + 5, cost="0.000000007")
    await world.submit(WriteModelCall(run, done))
    first, second = await world.store.queries.list_budgets(now=1, name=name)
    assert (first.spent_cost, first.reserved_cost) == (7, 0)
    assert (second.spent_cost, second.reserved_cost) == (0, 10)
    assert await world.store.queries.list_budgets(now=DAY, name=name) == [second]


async def test_reservations_of_two_stores_at_once_never_pass_the_budget(world: World, ready_url: str) -> None:
    name, other = fresh("budget"), make_store(ready_url)
    await other.open()
    worlds = [world, await with_worker(other)]
    runs = [await each.start() for each in worlds]
    wanted = part_of(name, cost=10, cost_limit=333)
    answers = await asyncio.gather(*(make(worlds[n % 2], runs[n % 2], wanted, attempt=n) for n in range(100)))
    await other.close()
    assert sum(answer == Done() for answer, _ in answers) == 33
    assert (await state_of(world.store, name)).reserved_cost == 330


async def test_of_two_single_reservations_at_once_one_finds_the_budget_used(
    world: World, ready_url: str
) -> None:
    """Not in a batch, whose locks are all taken before it begins."""
    other = make_store(ready_url)
    await other.open()
    worlds = [world, await with_worker(other)]
    runs = [await each.start() for each in worlds]
    for n in range(40):
        wanted = part_of(fresh("budget"), cost=10, cost_limit=10)
        answers = await asyncio.gather(
            *(make(each, run, wanted, attempt=n) for each, run in zip(worlds, runs, strict=True))
        )
        assert sorted(type(answer).__name__ for answer, _ in answers) == ["Done", "OverBudget"]
    await other.close()


@pytest.mark.parametrize("seed", range(4))
async def test_what_budgets_have_is_what_the_ledger_says(world: World, ready_url: str, seed: int) -> None:
    """Calls of two processes, in any order, batched as it happens, with writes that are played again."""
    rng, names = random.Random(seed), [fresh("budget") for _ in range(3)]
    other = make_store(ready_url)
    await other.open()
    worlds = [world, await with_worker(other)]
    runs = [await each.start() for each in worlds for _ in range(3)]
    limit = 5_000

    async def live(n: int) -> None:
        rolls = random.Random(rng.random())
        place = rolls.randrange(6)
        which, run = worlds[place // 3], runs[place]
        some = [
            part_of(name, rolls.randrange(200), rolls.randrange(200), cost_limit=limit, token_limit=limit)
            for name in rolls.sample(names, rolls.randrange(1, 4))
        ]
        if rolls.random() < 0.3:
            some = [each._replace(period_start=DAY, ends_at=2 * DAY) for each in some]
        call = a_call(*some, key=f"ask-{n}")
        made = WriteModelCall(run, call, tuple(some))
        if isinstance(await which.submit(made), OverBudget):
            return
        if rolls.random() < 0.2:
            await which.submit(made)
        if rolls.random() < 0.3:
            call = call._replace(state="submitted", provider_id="x")
            await which.submit(WriteModelCall(run, call))
        cost = min(each.cost for each in some)
        tokens = min(each.tokens for each in some)
        done = call._replace(
            state="done",
            billed="yes",
            ended_at=9,
            cost=str(to_usd(cost)),
            input_tokens=tokens,
            output_tokens=0,
        )
        ends = [
            done,
            call._replace(state="not_billed", billed="no", ended_at=9),
            call._replace(state="in_doubt", ended_at=9),
            None,
        ]
        end = rolls.choice(ends)
        for _ in range(rolls.randrange(1, 3)):
            if end is not None:
                await which.submit(CommitStep(run, a_step(f"ask-{n}", n), end))

    await asyncio.gather(*(live(n) for n in range(1, 200)))
    sums: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for run in runs:
        for _, call in await world.store.queries.list_model_calls(run=run.run_id):
            for charge in read_charges(call.charges):
                of = sums[charge.budget, charge.period_start]
                place = 2 if call.ended_at is None else 0
                of[place] += charge.cost
                of[place + 1] += charge.tokens
    states = await world.store.queries.list_budgets(now=1)
    await other.close()
    found = {(state.name, state.period_start): list(state[-4:]) for state in states if state.name in names}
    assert found == {key: of for key, of in sums.items() if key in found}
    assert len(found) == 6
    assert all(of == [0, 0, 0, 0] for key, of in sums.items() if key not in found)
    assert max(spent + reserved for spent, _, reserved, _ in found.values()) <= limit
    assert max(spent + reserved for _, spent, _, reserved in found.values()) <= limit


async def test_a_period_that_is_over_is_removed_with_what_is_old_and_a_budget_of_all_times_never(
    world: World,
) -> None:
    daily, forever, run = fresh("budget"), fresh("budget"), await world.start()
    _, call = await make(world, run, part_of(daily, cost=5), part_of(forever, cost=5, ends_at=None))
    await world.submit(PruneLoose(before=DAY, now=100 * DAY, most=100))
    assert await state_of(world.store, daily)
    await world.submit(PruneLoose(before=DAY + 1, now=100 * DAY, most=100))
    assert await world.store.queries.list_budgets(now=1, name=daily) == []
    # The end of a call that outlived its period changes what is left, and makes nothing anew.
    done = call._replace(state="done", billed="yes", ended_at=9, cost="0.000000002")
    await world.submit(WriteModelCall(run, done))
    assert await world.store.queries.list_budgets(now=1, name=daily) == []
    assert (await state_of(world.store, forever)).spent_cost == 2


def test_a_call_without_a_budget_costs_no_statement_more() -> None:
    tx = Transaction(frozenset({"worker"}))
    run = ("worker", 1, Status.RUNNING, 0, None, 0, None, None, False)
    for operation in (
        WriteModelCall(RunKey("run", "worker", 1), CALL),
        CommitStep(RunKey("run", "worker", 1), a_step("ask"), CALL),
    ):
        work, asked, rows = apply(tx, operation), [], []
        try:
            while True:
                statement, _ = work.send(rows) if asked else next(work)
                asked.append(str(statement.sqlite.sql).split(" ", 1)[0])
                rows = [run] if len(asked) == 1 else [("ask",)]
        except StopIteration:
            pass
        assert asked == ["SELECT", *["INSERT"] * (len(asked) - 1)]
        assert len(asked) == (2 if isinstance(operation, WriteModelCall) else 3)


@pytest.mark.parametrize(
    ("usd", "nanos"), [("0.25", DOLLAR // 4), ("0.0000000001", 1), ("0", 0), ("1e30", 10**17)]
)
def test_money_is_counted_in_billionths_and_rounded_up(usd: str, nanos: int) -> None:
    assert to_nanos(Decimal(usd)) == nanos


@pytest.mark.parametrize(
    ("nanos", "usd"), [(DOLLAR // 4, "0.25"), (100 * DOLLAR, "100"), (1, "1E-9"), (0, "0")]
)
def test_money_is_told_with_no_more_digits_than_it_has(nanos: int, usd: str) -> None:
    assert str(to_usd(nanos)) == usd
