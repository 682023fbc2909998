"""Generated runs with branches, races and children, crashed at random instants: their outcome is the uncrashed run's.

`AGENTFLOW_TEST_CASES` sets how many are generated on SQLite (a fifth of it on PostgreSQL), `AGENTFLOW_TEST_SEED` where
they begin; a failure names its seed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow.app import App
from agentflow.context import Context
from agentflow.errors import NoWaiter, StepError
from agentflow.flow import Concurrency
from agentflow.handles import RunHandle
from agentflow.info import step_info
from agentflow.runs import RunStatus, StepRecord
from agentflow.settings import Settings
from agentflow.step import Step, child_run_id
from agentflow.testing import Harness, harness
from tests.faults.reporting import Report
from tests.faults.support import FIRST_SEED, IS_FULL

CASES = int(os.environ.get("AGENTFLOW_TEST_CASES", "1000" if IS_FULL else "25"))
MOST_CRASHES = 4

Node = list[Any]


class Plan(BaseModel):
    """What a generated run does. `prefix` keeps the signals of two runs of one plan apart."""

    prefix: str
    root: Any


def generate(rng: random.Random) -> tuple[Node, int]:
    """A tree of steps, and how many signals it waits for."""
    signals = itertools.count()

    def leaf() -> Node:
        match rng.choices(["step", "sync", "sleep", "signal"], [5, 2, 2, 2])[0]:
            case "sleep":
                return ["sleep", rng.choice([0, 1, 60, 1200])]
            case "signal":
                return ["signal", next(signals)]
            case kind:
                # Two retries: three failures are one too many.
                return [kind, rng.choice("abc"), rng.choices([0, 1, 2, 3], [8, 2, 1, 1])[0]]

    def tree(depth: int) -> Node:
        if depth == 0 or rng.random() < 0.25:
            return leaf()
        kind = rng.choices(["seq", "gather", "group", "invoke", "race"], [4, 4, 2, 2, 1])[0]
        if kind == "invoke":
            return ["invoke", rng.choice(["follows", "follows-in-line"]), tree(depth - 1)]
        if kind == "race":
            # Who wins is certain, or there would be nothing to compare.
            return ["race", tree(depth - 1), rng.choice(["sleep", "signal", "event"])]
        return [kind, [tree(depth - 1) for _ in range(rng.randint(2, 4))]]

    parts = [tree(3)]
    if rng.random() < 0.3:
        parts.append(["stumble", rng.randint(1, 2)])
    parts.append(tree(2))
    return ["seq", parts], next(signals)


def make_app() -> App:
    app = App("t", settings=Settings(durability="process"))  # nothing here cuts the power
    executions = itertools.count()

    async def body(value: str, failures: int) -> dict[str, Any]:
        execution = next(executions)
        await asyncio.sleep(random.choice([0, 0, 0.001, 0.003]))
        if step_info().attempt < failures:
            raise ValueError(value)
        return {"value": value, "execution": execution}

    def sync_body(value: str, failures: int) -> dict[str, Any]:
        execution = next(executions)
        time.sleep(random.choice([0, 0.001]))
        if step_info().attempt < failures:
            raise ValueError(value)
        return {"value": value, "execution": execution}

    async def follow(ctx: Context[Plan], step: Step, node: Node) -> Any:
        match node:
            case ["step" | "sync" as kind, name, failures]:
                try:
                    return await step.run(
                        name, body if kind == "step" else sync_body, name, failures, retry=2
                    )
                except StepError as error:
                    return f"{error.name}: {error.message}"
            case ["sleep", seconds]:
                return await step.sleep("nap", seconds)
            case ["signal", n]:
                signal = await step.wait_for_signal("wait", signal=f"{ctx.data.prefix}{n}", timeout="300d")
                return signal and signal.data
            case ["seq", nodes]:
                return [await follow(ctx, step, inner) for inner in nodes]
            case ["gather", nodes]:
                return await asyncio.gather(*[follow(ctx, step, inner) for inner in nodes])
            case ["group", nodes]:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(follow(ctx, step, inner)) for inner in nodes]
                return [task.result() for task in tasks]
            case ["invoke", function, inner]:
                return await step.invoke("child", function, data=Plan(prefix=ctx.data.prefix, root=inner))
            case ["race", inner, other]:

                async def wins(step: Step) -> Any:
                    return await follow(ctx, step, inner)

                async def loses(step: Step) -> Any:
                    match other:
                        case "sleep":
                            return await step.sleep("never", "300d")
                        case "signal":
                            name = f"{ctx.run_id} {next(executions)}"
                            return await step.wait_for_signal("never", signal=name, timeout="300d")
                    return await step.wait_for_event("never", event="never", timeout="300d")

                name, value = await step.race("race", wins=wins, loses=loses)
                assert name == "wins"
                return value
            case ["stumble", failures]:
                if ctx.attempt < failures:
                    raise RuntimeError("stumbled")
                return "went on"
        raise AssertionError(node)

    @app.function
    async def follows(ctx: Context[Plan], step: Step) -> Any:
        return await follow(ctx, step, ctx.data.root)

    @app.function(concurrency=Concurrency(1, key="data.prefix"))
    async def follows_in_line(ctx: Context[Plan], step: Step) -> Any:
        return await follow(ctx, step, ctx.data.root)

    return app


class Driver:
    """Brings a run to its end: sends its signals, lets time pass, and crashes the worker meanwhile."""

    def __init__(
        self, h: Harness, run: RunHandle[Any], prefix: str, signals: int, rng: random.Random
    ) -> None:
        self._h = h
        self._run = run
        self._prefix = prefix
        self._unsent = list(range(signals))
        self._rng = rng
        rng.shuffle(self._unsent)

    async def drive(self, *, crashes: int) -> None:
        for _ in range(crashes):
            passing = asyncio.create_task(self._pass_time())
            await asyncio.sleep(self._rng.choice([0, 0.001, 0.005, 0.02]) * self._rng.random())
            passing.cancel()
            await asyncio.wait([passing])
            if self._rng.random() < 0.7:
                await self._h.crash()
            await self._h.restart()
        for _ in range(200):
            await self._pass_time()
            if (await self._run.status()).is_final:
                return
        raise AssertionError(f"the run does not end: {await self._h.app.runs.get(self._run.id)}")

    async def _pass_time(self) -> None:
        for n in list(self._unsent):
            if self._rng.random() < 0.6:
                try:
                    await self._h.signal(f"{self._prefix}{n}", n)
                except NoWaiter:
                    continue
                self._unsent.remove(n)
        await self._h.advance("20m")


async def all_steps(app: App, run_id: str) -> list[StepRecord]:
    steps, cursor = [], None
    while True:
        page = await app.runs.steps(run_id, cursor=cursor)
        steps.extend(page.data)
        if not page.has_more:
            return steps
        cursor = page.cursor


def stripped(value: Any) -> Any:
    """Without the number of the execution, which is the one thing that may differ."""
    match value:
        case {"value": name, "execution": _}:
            return name
        case list():
            return [stripped(item) for item in value]
        case {"name": _, "data": data}:
            return data
        case {"name": name, "value": won}:
            return [name, stripped(won)]
    return value


def executions_in(value: Any) -> set[int]:
    match value:
        case {"execution": execution}:
            return {execution}
        case list():
            return set().union(*map(executions_in, value))
    return set()


async def story_of(app: App, run_id: str) -> tuple[set[Any], set[int]]:
    """The outcomes of all steps of a run and its children, and which executions gave them."""
    outcomes, executions = set(), set()
    todo = [(run_id, "")]
    family = {run.id: run for run in (await app.runs.list(limit=100)).data}
    while todo:
        of_run, path = todo.pop()
        steps = await all_steps(app, of_run)
        seqs = [step.seq for step in steps]
        assert None not in seqs, f"run {of_run} has ended, and a step has not"
        assert len(set(seqs)) == len(seqs), f"two steps of run {of_run} have the same seq"
        for step in steps:
            if step.kind == "run":
                executions |= executions_in(step.output)
            output = None if step.kind == "invoke" else repr(stripped(step.output))
            error = step.error and (step.error.name, step.error.message)
            outcomes.add((path, step.key, step.kind, step.status, output, error, step.attempts))
        children = sorted(run.id for run in family.values() if run.parent_id == of_run)
        keyed = {child_run_id(of_run, step.key): step.key for step in steps if step.kind == "invoke"}
        assert set(children) == set(keyed), f"run {of_run} has other children than invoke steps"
        todo.extend((child, f"{path}/{key}") for child, key in keyed.items())
    return outcomes, executions


async def compare(h: Harness, seed: int) -> None:
    rng = random.Random(seed)
    root, signals = generate(rng)
    told = []
    for variant, crashes in (("calm", 0), ("crashed", rng.randint(1, MOST_CRASHES))):
        prefix = f"{seed}-{variant}-"
        run = await h.start("follows", Plan(prefix=prefix, root=root))
        await Driver(h, run, prefix, signals, rng).drive(crashes=crashes)
        found = await h.app.runs.get(run.id)
        assert found.status is RunStatus.COMPLETED, found.error
        outcomes, executions = await story_of(h.app, run.id)
        assert executions_in(found.output) == executions, "the code saw another outcome than the stored one"
        told.append((stripped(found.output), outcomes))
    calm, crashed = told
    assert crashed[0] == calm[0]
    assert crashed[1] == calm[1]


async def run_cases(database_url: str, seeds: range) -> None:
    app = make_app()
    async with harness(app, database_url=database_url) as h:
        for seed in seeds:
            try:
                async with asyncio.timeout(30):
                    await compare(h, seed)
            except BaseException as error:
                error.add_note(f"the plan of seed {seed}: {generate(random.Random(seed))[0]}")
                raise


@pytest.mark.fault(9)
@pytest.mark.timeout(60 + CASES)
async def test_parallel_branches_end_as_if_nothing_had_crashed_on_sqlite(
    sqlite_url: str, report: Report
) -> None:
    await run_cases(sqlite_url, range(FIRST_SEED, FIRST_SEED + CASES))
    report(f"{CASES:,} generated runs with up to {MOST_CRASHES} crashes each end as the uncrashed ones")


@pytest.mark.fault(9)
@pytest.mark.timeout(60 + CASES)
async def test_parallel_branches_end_as_if_nothing_had_crashed_on_postgresql(
    postgres_url: str, report: Report
) -> None:
    cases = max(1, CASES // 5)
    await run_cases(postgres_url, range(FIRST_SEED, FIRST_SEED + cases))
    report(f"{cases:,} generated runs with up to {MOST_CRASHES} crashes each end as the uncrashed ones")
