"""Races and crashes: whenever the worker dies, the winner is the one that there was, and losers leave nothing."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from agentflow import App, Context, RunHandle, RunStatus, Settings, Step, StepRecord
from agentflow.engine.worker import Worker
from agentflow.errors import NoWaiter, StepError
from agentflow.store.operation_types import CommitRace
from agentflow.store.outcome_types import Fenced
from agentflow.testing import Harness, harness
from tests.faults.support import FIRST_SEED

CASES = int(os.environ.get("AGENTFLOW_TEST_CASES", "60")) // 3


async def signal_of(name: str, step: Step) -> Any:
    signal = await step.wait_for_signal("wait", signal=name, timeout="300d")
    return signal and signal.data


# ------------------------------------------------------------------------- at the commit that decides


async def die_at_the_commit(h: Harness, *, written: bool, provoke: Callable[[], Any]) -> None:
    """Let the worker die before the race is stored, or after it and before the worker knows."""
    store, worker = h.app.client.store, h._worker
    assert isinstance(worker, Worker)
    submit, lost = store.submit, []

    def lose_the_race(operation: Any) -> asyncio.Future[Any]:
        if not isinstance(operation, CommitRace):
            return submit(operation)
        answer = asyncio.get_running_loop().create_future()
        lost.append((answer, submit(operation) if written else None))
        return answer

    store.submit = lose_the_race  # type: ignore[method-assign]
    await provoke()
    while not lost:
        await asyncio.sleep(0.001)
    answer, commit = lost[0]
    if commit is not None:
        await commit
    crashing = asyncio.create_task(h.crash())
    while not worker.is_stopping:
        await asyncio.sleep(0)
    answer.set_result(Fenced("the worker is gone"))
    await crashing
    store.submit = submit  # type: ignore[method-assign]


@pytest.mark.parametrize("replay_every_step", [False, True])
async def test_the_winner_is_the_same_when_the_process_dies_between_its_last_step_and_the_race_s_commit(
    database_url: str, replay_every_step: bool
) -> None:
    app, done = App("t"), []

    async def branch(name: str, step: Step) -> str:
        await signal_of(name, step)
        return await step.run("work", work, name)

    async def work(name: str) -> str:
        done.append(name)
        return name

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        return await step.race("r", a=partial(branch, "a"), b=partial(branch, "b"))

    async with harness(app, database_url=database_url, replay_every_step=replay_every_step) as h:
        run = await h.start(f)
        await rest(h, run)
        await die_at_the_commit(h, written=False, provoke=lambda: h.signal("b"))
        found = {record.key for record in (await app.runs.steps(run.id)).data if record.ended_at}
        assert found == {"r@b/wait", "r@b/work"}
        await h.signal("a")  # the loser's wait is there still
        await h.restart()
        await rest(h, run)
        assert await run.result(5) == ["b", "b"]
    assert done.count("b") == 1


async def test_after_the_commit_nothing_of_the_losers_is_left_though_the_process_dies(
    database_url: str,
) -> None:
    app, entered = App("t"), []

    async def branch(name: str, step: Step) -> Any:
        entered.append(name)
        return await signal_of(name, step)

    async def ask(step: Step) -> Any:
        return await step.approval("ask", title="May I?")

    async def invoke(step: Step) -> Any:
        return await step.invoke("child", child)

    @app.function
    async def child(ctx: Context[None], step: Step) -> None:
        await step.sleep("nap", "30d")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        return await step.race("r", a=partial(branch, "a"), b=partial(branch, "b"), ask=ask, child=invoke)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(f)
        await h.idle()
        await die_at_the_commit(h, written=True, provoke=lambda: h.signal("b", 1))
        assert (await app.runs.get(run.id)).waiting == []
        assert [request.status for request in (await app.approvals.list()).data] == ["cancelled"]
        assert [found.status for found in (await app.runs.list(function="child")).data] == [
            RunStatus.CANCELLED
        ]
        with pytest.raises(NoWaiter):
            await h.signal("a")
        entered.clear()
        await h.restart()
        await h.idle()
        assert await run.result(5) == ["b", 1]
    assert entered == [], "a replay does not enter the branches"


async def rest(h: Harness, run: RunHandle[Any]) -> None:
    """Until the run waits or has ended; between two replays it is neither here nor there."""
    await h.idle()
    while await run.status() in (RunStatus.QUEUED, RunStatus.RUNNING):
        await h.idle()


async def test_of_a_child_s_end_and_a_signal_at_once_exactly_one_wins(database_url: str) -> None:
    app = App("t")

    async def invoke(step: Step) -> str:
        return await step.invoke("child", child)

    @app.function
    async def child(ctx: Context[None], step: Step) -> str:
        await step.wait_for_event("go", event="go", timeout="1d")
        return await step.run("work", str, "child")

    @app.function
    async def f(ctx: Context[None], step: Step) -> Any:
        return await step.race("r", child=invoke, signal=partial(signal_of, ctx.run_id))

    async with harness(app, database_url=database_url) as h:
        runs = [await h.start(f) for _ in range(25)]
        await h.idle()

        async def signal(run: RunHandle[Any]) -> bool:
            try:
                await h.signal(run.id, "signal")
            except NoWaiter:
                return False
            return True

        _, *sent = await asyncio.gather(h.send({"name": "go", "data": {}}), *map(signal, runs))
        await h.idle()
        for run, was_taken in zip(runs, sent, strict=True):
            winner, value = await run.result(5)
            assert winner == value
            assert was_taken or winner == "child"
        children = (await app.runs.list(function="child", limit=100)).data
        assert all(found.status.is_final for found in children)


# ---------------------------------------------------------------------------------- at random instants


Node = list[Any]


def generate(rng: random.Random) -> tuple[Node, int]:
    """A tree of steps, races and gathers, and how many signals it may wait for."""
    signals = itertools.count()

    def tree(depth: int) -> Node:
        kinds = ["step", "sleep", "signal", "fail"]
        if depth == 0 or rng.random() < 0.2:
            match rng.choices(kinds, [5, 2, 4, 1])[0]:
                case "sleep":
                    return ["sleep", rng.choice([0, 60, 1200])]
                case "signal":
                    return ["signal", next(signals)]
                case kind:
                    return [kind]
        kind = rng.choices(["seq", "gather", "race"], [3, 2, 5])[0]
        return [kind, [tree(depth - 1) for _ in range(rng.randint(2, 3))]]

    return ["seq", [["race", [tree(2) for _ in range(3)]], tree(3)]], next(signals)


class Seen:
    """What the function was given by its races, on every replay."""

    def __init__(self) -> None:
        self.races: dict[tuple[str, str], Any] = {}

    def record(self, run_id: str, place: str, winner: Any) -> None:
        assert self.races.setdefault((run_id, place), winner) == winner, f"{place}: the winner has changed"


def make_app(seen: Seen) -> App:
    app = App("t", settings=Settings(durability="process"))
    executions = itertools.count()

    async def body() -> int:
        execution = next(executions)
        await asyncio.sleep(random.choice([0, 0, 0.001, 0.004]))
        return execution

    async def broken() -> None:
        raise ValueError("broken")

    async def follow(ctx: Context[list[Any]], step: Step, node: Node, place: str) -> Any:
        match node:
            case ["step"]:
                return await step.run("work", body)
            case ["fail"]:
                return await step.run("fail", broken, retry=0)
            case ["sleep", seconds]:
                return await step.sleep("nap", seconds)
            case ["signal", n]:
                return await signal_of(f"{ctx.run_id}-{n}", step)
            case ["seq", nodes]:
                return [await follow(ctx, step, it, f"{place}.{n}") for n, it in enumerate(nodes)]
            case ["gather", nodes]:
                tasks = [follow(ctx, step, it, f"{place}.{n}") for n, it in enumerate(nodes)]
                return await asyncio.gather(*tasks, return_exceptions=False)
            case ["race", nodes]:
                branches = {f"n{n}": partial(branch, ctx, it, f"{place}.{n}") for n, it in enumerate(nodes)}
                try:
                    winner: Any = list(await step.race("race", **branches))
                except StepError as error:
                    winner = [error.name, error.step_id]
                seen.record(ctx.run_id, place, winner)
                return winner
        raise AssertionError(node)

    async def branch(ctx: Context[list[Any]], node: Node, place: str, step: Step) -> Any:
        return await follow(ctx, step, node, place)

    @app.function
    async def follows(ctx: Context[list[Any]], step: Step) -> Any:
        try:
            return await follow(ctx, step, ctx.data, "")
        except StepError as error:
            return error.name

    return app


async def check(app: App, run_id: str) -> None:
    """Of a decided race nothing waits, and no body of it was stored afterwards."""
    steps: list[StepRecord] = (await app.runs.steps(run_id, limit=100)).data
    for race in steps:
        if race.kind != "race" or race.seq is None:
            continue
        inner = [step for step in steps if step.key.startswith(f"{race.key}@n")]
        left = [step.key for step in inner if step.status in ("waiting", "running")]
        assert left == [], f"{race.key} is decided"
        late = [step.key for step in inner if step.kind == "run" and (step.seq or 0) > race.seq]
        assert late == [], f"stored after {race.key} was decided"


async def drive(h: Harness, seed: int, seen: Seen) -> None:
    rng = random.Random(seed)
    root, signals = generate(rng)
    run = await h.start("follows", root)
    unsent = list(range(signals))
    rng.shuffle(unsent)

    async def pass_time() -> None:
        for n in list(unsent):
            if rng.random() < 0.4:
                try:
                    await h.signal(f"{run.id}-{n}", n)
                except NoWaiter:
                    continue
                unsent.remove(n)
        await h.advance("20m")

    for _ in range(rng.randint(1, 5)):
        passing = asyncio.create_task(pass_time())
        await asyncio.sleep(rng.choice([0, 0.001, 0.005, 0.02]) * rng.random())
        passing.cancel()
        await asyncio.wait([passing])
        if rng.random() < 0.8:
            await h.crash()
        await h.restart()
        await check(h.app, run.id)
    for _ in range(200):
        await pass_time()
        await check(h.app, run.id)
        if (await run.status()).is_final:
            break
    found = await h.app.runs.get(run.id)
    assert found.status is RunStatus.COMPLETED, (found.status, found.error, found.waiting)
    stored = {
        (record.output["name"], str(record.output["value"]))
        for record in (await h.app.runs.steps(run.id, limit=100)).data
        if record.kind == "race" and record.output is not None
    }
    given = {
        (won[0], str(won[1])) for (of, _), won in seen.races.items() if of == run.id and won[0][0] == "n"
    }
    assert given <= stored


async def run_cases(database_url: str, seeds: range, *, replay_every_step: bool = False) -> None:
    seen = Seen()
    async with harness(make_app(seen), database_url=database_url, replay_every_step=replay_every_step) as h:
        for seed in seeds:
            try:
                async with asyncio.timeout(30):
                    await drive(h, seed, seen)
            except BaseException as error:
                error.add_note(f"the plan of seed {seed}: {generate(random.Random(seed))[0]}")
                raise


@pytest.mark.timeout(60 + CASES)
@pytest.mark.parametrize("replay_every_step", [False, True])
async def test_races_keep_their_winners_whenever_the_worker_dies_on_sqlite(
    sqlite_url: str, replay_every_step: bool
) -> None:
    await run_cases(sqlite_url, range(FIRST_SEED, FIRST_SEED + CASES), replay_every_step=replay_every_step)


@pytest.mark.timeout(60 + CASES)
async def test_races_keep_their_winners_whenever_the_worker_dies_on_postgresql(postgres_url: str) -> None:
    await run_cases(postgres_url, range(FIRST_SEED, FIRST_SEED + max(1, CASES // 2)))
