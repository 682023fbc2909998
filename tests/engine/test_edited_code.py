"""Edited code against stored histories, with `strict_replay` and without: which edits resolve, and which are named.

`test_replay_order.py` has the steps of one row; here are outcomes of other kinds, waits that are still open, retries,
and branches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import App, Context, RunStatus, Step
from agentflow.errors import NonRetriable, StepError
from agentflow.testing import Harness, harness

Code = Callable[[Step], Awaitable[Any]]
PARK = "2h"


class Old(BaseModel):
    n: int
    gone: str = "gone"


class Fits(BaseModel):
    """As `Old`, with a field fewer and one more that has a default."""

    n: float
    note: str = "new"


class FitsNot(BaseModel):
    n: int
    note: str


class Deployed:
    """An app whose one function has the code that is deployed now."""

    def __init__(self, code: Code) -> None:
        self.app, self.code = App("t"), code

        @self.app.function
        async def flow(ctx: Context[None], step: Step) -> Any:
            return await self.code(step)


async def edited(h: Harness, deployed: Deployed, new: Code) -> Any:
    """A run of the deployed code, parked; then the new code is there when it wakes."""
    run = await h.start("flow")
    await h.idle()
    deployed.code = new
    await h.advance("3h")
    return run


def value(text: str) -> str:
    return text


# ------------------------------------------------------------------------------------------ another kind, another type


async def as_run(step: Step) -> Any:
    return await step.run("it", value, "run")


async def as_sleep(step: Step) -> Any:
    return await step.sleep("it", 0)


async def as_event(step: Step) -> Any:
    return await step.wait_for_event("it", event="e", timeout=0)


async def as_signal(step: Step) -> Any:
    return await step.wait_for_signal("it", signal="s", timeout=0)


async def as_invoke(step: Step) -> Any:
    return await step.invoke("it", "child", data=1)


async def as_send(step: Step) -> Any:
    return await step.send_event("it", {"name": "e", "data": {}})


async def as_race(step: Step) -> Any:
    async def quick(step: Step) -> str:
        return "quick"

    return await step.race("it", quick=quick)


def kind_of(code: Code) -> str:
    return code.__name__.removeprefix("as_")


KINDS = [as_run, as_sleep, as_event, as_signal, as_invoke, as_send, as_race]


@pytest.mark.parametrize("strict_replay", [False, True])
async def test_a_key_found_with_another_kind_is_a_mismatch_for_every_pair_of_kinds(
    database_url: str, strict_replay: bool
) -> None:
    pairs = [(old, new) for old in KINDS for new in KINDS if new is not old]
    app, is_edited = App("t"), False

    @app.function
    async def flow(ctx: Context[int], step: Step) -> None:
        await pairs[ctx.data][is_edited](step)
        await step.sleep("park", PARK)

    @app.function
    async def child(ctx: Context[int], step: Step) -> int:
        return ctx.data

    async with harness(app, database_url=database_url, strict_replay=strict_replay) as h:
        runs = [await h.start(flow, n) for n in range(len(pairs))]
        await h.idle()
        is_edited = True
        await h.advance("3h")
        for run, (old, new) in zip(runs, pairs, strict=True):
            found = await app.runs.get(run.id)
            assert found.status is RunStatus.SLEEPING, found
            assert f"step 'it' is stored as '{kind_of(old)}'" in (found.reason or "")
            assert f"the code calls it as '{kind_of(new)}'" in (found.reason or "")
        is_edited = False
        await h.advance("2h")
        assert [await run.result(5) for run in runs] == [None] * len(runs)


@pytest.mark.parametrize("strict_replay", [False, True])
@pytest.mark.parametrize(("new_type", "fits"), [(Fits, True), (FitsNot, False), (int, False), (dict, True)])
async def test_a_stored_output_is_read_by_the_type_that_the_code_has_now(
    database_url: str, strict_replay: bool, new_type: Any, fits: bool
) -> None:
    def typed(output: Any) -> Code:
        async def code(step: Step) -> Any:
            got = await step.run("it", lambda: Old(n=1), output=output)
            await step.sleep("park", PARK)
            return type(got).__name__

        return code

    deployed = Deployed(typed(Old))
    async with harness(deployed.app, database_url=database_url, strict_replay=strict_replay) as h:
        run = await edited(h, deployed, typed(new_type))
        if fits:
            assert await run.result(5) == new_type.__name__
        else:
            found = await h.app.runs.get(run.id)
            assert "the stored output of step 'it' does not fit its type" in (found.reason or "")
            deployed.code = typed(Fits)
            await h.advance("2h")
            assert await run.result(5) == "Fits"


# ----------------------------------------------------------------------------------------- what was not over yet


@pytest.mark.parametrize("strict_replay", [False, True])
async def test_a_wait_that_is_open_and_found_with_another_kind_is_a_mismatch(
    database_url: str, strict_replay: bool
) -> None:
    async def old(step: Step) -> Any:
        beside = asyncio.create_task(_nap(step))
        signal = await step.wait_for_signal("it", signal="go", timeout="1d")
        await beside
        return signal and signal.data

    async def new(step: Step) -> Any:
        beside = asyncio.create_task(_nap(step))
        await step.sleep("it", "1h")
        await beside
        return "slept"

    deployed = Deployed(old)
    async with harness(deployed.app, database_url=database_url, strict_replay=strict_replay) as h:
        run = await edited(h, deployed, new)
        found = await h.app.runs.get(run.id)
        assert "step 'it' is stored as" in (found.reason or ""), found
        deployed.code = old
        await h.signal("go", "gone on")
        await h.advance("2h")
        assert await run.result(5) == "gone on"


async def _nap(step: Step) -> None:
    await step.sleep("park", PARK)


async def test_an_open_wait_that_the_code_has_no_more_is_forgotten_with_the_run_s_end(
    database_url: str,
) -> None:
    async def old(step: Step) -> Any:
        await asyncio.gather(
            step.sleep("park", PARK), step.wait_for_signal("old", signal="old", timeout="1d")
        )

    async def new(step: Step) -> Any:
        await step.sleep("park", PARK)
        signal = await step.wait_for_signal("new", signal="new", timeout="1d")
        return signal and signal.data

    deployed = Deployed(old)
    async with harness(deployed.app, database_url=database_url, strict_replay=False) as h:
        run = await edited(h, deployed, new)
        # The name is still taken: its outcome would be there for code that asks for it again.
        assert {wait.name for wait in (await h.app.runs.get(run.id)).waiting} == {"old", "new"}
        assert await h.signal("old") == run.id
        await h.idle()
        assert await run.status() is RunStatus.WAITING
        await h.signal("new", 7)
        await h.idle()
        assert await run.result(5) == 7
        assert (await h.app.runs.get(run.id)).waiting == []


@pytest.mark.parametrize("strict_replay", [False, True])
async def test_a_step_that_is_to_be_retried_and_was_renamed_begins_with_all_its_attempts(
    database_url: str, strict_replay: bool
) -> None:
    tried: list[str] = []

    def calling(name: str) -> Code:
        async def fails() -> None:
            tried.append(name)
            raise ValueError(name)

        async def code(step: Step) -> Any:
            try:
                await step.run(name, fails, retry=1)
            except StepError as error:
                return f"{error.message} after {error.attempts}"

        return code

    deployed = Deployed(calling("old"))
    async with harness(deployed.app, database_url=database_url, strict_replay=strict_replay) as h:
        run = await edited(h, deployed, calling("new"))
        assert await run.result(5) == "new after 2"
    assert tried == ["old", "new", "new"]


@pytest.mark.parametrize("strict_replay", [False, True])
async def test_a_failure_is_found_by_its_key_whatever_the_body_is_now(
    database_url: str, strict_replay: bool
) -> None:
    def calling(body: Callable[[], Any]) -> Code:
        async def code(step: Step) -> Any:
            try:
                got = await step.run("it", body, output=str)
            except StepError as error:
                got = error.message
            await step.sleep("park", PARK)
            return got

        return code

    def fails() -> str:
        raise NonRetriable("as it was")

    deployed = Deployed(calling(fails))
    async with harness(deployed.app, database_url=database_url, strict_replay=strict_replay) as h:
        run = await edited(h, deployed, calling(lambda: "as it would be"))
        assert await run.result(5) == "as it was"


# --------------------------------------------------------------------------------------------------------- in branches


def _in_branches(*branches: str) -> Code:
    async def code(step: Step) -> Any:
        async def row(names: str) -> list[str]:
            return [await step.run(name, value, f"{names} {name}") for name in names]

        got = await asyncio.gather(*map(row, branches))
        await step.sleep("park", PARK)
        return got

    return code


@pytest.mark.parametrize(
    ("new", "result"),
    [
        (["abx", "cd"], [["ab a", "ab b", "abx x"], ["cd c", "cd d"]]),
        (["xab", "cd"], [["xab x", "ab a", "ab b"], ["cd c", "cd d"]]),
        (["b", "cd"], [["ab b"], ["cd c", "cd d"]]),
        (["ba", "cd"], [["ab b", "ab a"], ["cd c", "cd d"]]),
        (["ab"], [["ab a", "ab b"]]),
        (["ab", "cd", "e"], [["ab a", "ab b"], ["cd c", "cd d"], ["e e"]]),
        # A branch is known by its place: with another one there, its steps are other steps.
        (["cd", "ab"], [["cd c", "cd d"], ["ab a", "ab b"]]),
    ],
)
async def test_in_branches_steps_resolve_by_their_branch_and_key(
    database_url: str, new: list[str], result: list[list[str]]
) -> None:
    deployed = Deployed(_in_branches("ab", "cd"))
    async with harness(deployed.app, database_url=database_url, strict_replay=False) as h:
        run = await edited(h, deployed, _in_branches(*new))
        assert await run.result(5) == result


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (["xab", "cd"], "awaits step 'x@0' and has not called step 'a@0'"),
        (["b", "cd"], "awaits step 'b@0' and has not called step 'a@0'"),
        (["ab", "dc"], "awaits step 'd@1' and has not called step 'c@1'"),
        (["ab", "cy"], "awaits step 'y@1' and has not called step 'd@1'"),
    ],
)
async def test_strict_replay_names_the_step_of_a_branch(database_url: str, new: list[str], says: str) -> None:
    deployed = Deployed(_in_branches("ab", "cd"))
    async with harness(deployed.app, database_url=database_url) as h:
        run = await edited(h, deployed, _in_branches(*new))
        assert says in ((await h.app.runs.get(run.id)).reason or "")
        deployed.code = _in_branches("ab", "cd")
        await h.advance("2h")
        assert await run.result(5) == [["ab a", "ab b"], ["cd c", "cd d"]]
