"""A rerun is a new run: earlier steps are copied, the rest runs again, approvals are asked for again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentflow import Agent, App, Approve, Context, Deny, Step, ToolCall, tool
from agentflow.errors import InvalidInput, NotFound, RunFailed
from agentflow.runs import RunStatus
from agentflow.testing import ScriptedModel, harness


def counting_app() -> tuple[App, list[str]]:
    app, done = App("t"), list[str]()

    def note(what: str) -> str:
        done.append(what)
        return what

    @app.function(retries=0, on="order.placed")
    async def order(ctx: Context[dict[str, Any]], step: Step) -> str:
        first = await step.run("first", note, f"first {ctx.data['n']}")
        second = await step.run("second", note, f"second {ctx.data['n']}")
        if ctx.data["n"] == 13:
            await step.run("break", int, "x", output=int)
        return f"{first}, {second}"

    return app, done


async def test_a_rerun_is_a_new_run_of_the_same_input(database_url: str) -> None:
    app, done = counting_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"n": 1}, tags=["vip"])
        assert await run.result(5) == "first 1, second 1"
        again = await app.runs.rerun(run.id)
        assert again.id != run.id
        assert await again.result(5) == "first 1, second 1"
        assert done == ["first 1", "second 1"] * 2
        record = await app.runs.get(again.id)
        assert (record.rerun_of, record.tags, record.root_id) == (run.id, ("vip",), again.id)
        assert (await app.runs.get(run.id)).rerun_of is None


async def test_steps_before_from_step_are_copied_and_the_rest_runs_again(database_url: str) -> None:
    app, done = counting_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"n": 1})
        await run.result(5)
        before = (await app.runs.steps(run.id)).data
        done.clear()
        again = await app.runs.rerun(run.id, "second")
        assert await again.result(5) == "first 1, second 1"
        assert done == ["second 1"]
        steps = (await app.runs.steps(again.id)).data
        assert [(step.key, step.seq) for step in steps] == [(step.key, step.seq) for step in before]
        assert steps[0].model_copy(update={"run_id": run.id}) == before[0]


async def test_a_failed_run_goes_on_from_its_failed_step_with_other_data(database_url: str) -> None:
    app, done = counting_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"n": 13})
        with pytest.raises(RunFailed):
            await run.result(5)
        done.clear()
        again = await app.runs.rerun(run.id, from_step="break", data={"n": 14})
        assert await again.result(5) == "first 13, second 13"
        assert done == []
        assert (await app.runs.get(again.id)).input == {"n": 14}


async def test_bad_data_an_unknown_step_and_an_unknown_run_start_nothing(database_url: str) -> None:
    app, _ = counting_app()
    async with harness(app, database_url=database_url) as h:
        run = await h.start("order", {"n": 1})
        await run.result(5)
        with pytest.raises(InvalidInput, match="input of 'order'"):
            await app.runs.rerun(run.id, data="no dict")
        with pytest.raises(NotFound, match=r"no step 'third'"):
            await app.runs.rerun(run.id, "third")
        with pytest.raises(NotFound, match=r"no step '@2'"):
            await app.runs.rerun(run.id, "@2")
        with pytest.raises(NotFound, match="no run 'run_nowhere'"):
            await app.runs.rerun("run_nowhere")
        assert len((await app.runs.list()).data) == 1


async def test_a_step_that_waits_comes_after_all_that_have_ended(database_url: str) -> None:
    app, packed = App("t"), list[int]()

    @app.function
    async def ship(ctx: Context[None], step: Step) -> Any:
        await step.run("pack", lambda: packed.append(1))
        signal = await step.wait_for_signal("collected", signal=ctx.run_id, timeout="1h")
        return signal and signal.data

    async with harness(app, database_url=database_url) as h:
        run = await h.start(ship)
        await h.idle()
        again = await app.runs.rerun(run.id, "collected")
        await h.idle()
        assert await app.runs.handle(run.id).status() is RunStatus.WAITING
        await h.signal(again.id, "ana")
        assert await again.result(5) == "ana"
        assert len(packed) == 1


async def test_a_rerun_of_a_child_has_no_parent_and_changes_nothing_for_it(database_url: str) -> None:
    app = App("t")

    @app.function
    async def child(ctx: Context[int], step: Step) -> int:
        return ctx.data

    @app.function
    async def parent(ctx: Context[None], step: Step) -> int:
        return await step.invoke("child", child, data=4)

    async with harness(app, database_url=database_url) as h:
        run = await h.start(parent)
        assert await run.result(5) == 4
        [old] = (await app.runs.list(function="child")).data
        again = await app.runs.rerun(old.id, data=5)
        assert await again.result(5) == 5
        record = await app.runs.get(again.id)
        assert (record.parent_id, record.root_id, record.rerun_of) == (None, again.id, old.id)
        assert await app.runs.handle(run.id).result(5) == 4


async def test_a_rerun_has_the_event_that_started_the_first_run(database_url: str) -> None:
    app, seen = App("t"), list[Any]()

    @app.function(on="order.placed")
    async def order(ctx: Context[dict[str, int]], step: Step) -> None:
        seen.append(ctx.event)

    async with harness(app, database_url=database_url) as h:
        [event] = await h.send({"name": "order.placed", "data": {"n": 1}})
        await h.idle()
        [run] = (await app.runs.list()).data
        again = await app.runs.rerun(run.id)
        await again.result(5)
        assert seen[0] == seen[1]
        assert seen[0].name == "order.placed"
        assert {run.id for run in (await app.events.runs(event)).data} == {run.id, again.id}


async def test_approvals_are_asked_for_again_whichever_step_the_rerun_begins_at(database_url: str) -> None:
    paid = []

    @tool(approval=True)
    async def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return f"paid {amount}"

    app = App("t")
    agent = Agent("clerk", model="scripted:any", tools=[pay])
    app.add(agent)
    model = ScriptedModel([ToolCall(name="pay", args={"amount": 5}), "done", "done again"])
    async with harness(app, database_url=database_url, model=model) as h:
        run = await h.start(agent, "Pay 5.")
        await h.idle()
        [first] = (await app.approvals.list(status="pending")).data
        await app.approvals.decide(first.id, Approve(), by="ana")
        assert await run.result(5) == "done"
        steps = (await app.runs.steps(run.id)).data
        paying = next(step for step in steps if step.kind == "run" and "pay" in step.key)
        again = await app.runs.rerun(run.id, paying.key)
        await h.idle()
        assert paid == [5]
        [second] = (await app.approvals.list(status="pending")).data
        assert (second.run_id, second.args) == (again.id, {"amount": 5})
        await app.approvals.decide(second.id, Approve(), by="ben")
        assert await again.result(5) == "done again"
        assert paid == [5, 5]
        assert (await app.usage(run=again.id)).calls == 1


async def test_what_was_done_after_an_approval_is_copied_although_that_is_asked_for_again(
    database_url: str,
) -> None:
    app, done = App("t"), list[str]()

    @app.function
    async def order(ctx: Context[None], step: Step) -> bool:
        decision = await step.approval("ask", title="Pay?")
        await step.run("pay", done.append, "pay")
        await step.run("tell", done.append, "tell")
        return decision.approved

    async with harness(app, database_url=database_url) as h:
        run = await h.start(order)
        await h.idle()
        await decide_what_is_asked(app, Approve())
        assert await run.result(5) is True
        again = await app.runs.rerun(run.id, "tell")
        await h.idle()
        await decide_what_is_asked(app, Deny())
        assert await again.result(5) is False
        assert done == ["pay", "tell", "tell"]


async def decide_what_is_asked(app: App, decision: Approve | Deny) -> None:
    [request] = (await app.approvals.list(status="pending")).data
    await app.approvals.decide(request.id, decision, by="ana")


async def test_a_step_that_was_given_up_leaves_no_gap_in_the_history_of_a_rerun(database_url: str) -> None:
    app, done = App("t"), list[str]()

    @app.function
    async def order(ctx: Context[None], step: Step) -> str:
        try:
            async with asyncio.timeout(0.05):
                await step.run("look", asyncio.sleep, 60)
        except TimeoutError:
            pass
        await step.run("pay", done.append, "pay")
        await step.run("tell", done.append, "tell")
        return "told"

    async with harness(app, database_url=database_url) as h:
        run = await h.start(order)
        assert await run.result(5) == "told"
        again = await app.runs.rerun(run.id, "tell")
        assert await again.result(5) == "told"
        assert done == ["pay", "tell", "tell"]
