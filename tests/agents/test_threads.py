"""A thread keeps a conversation over runs: whole turns, one at a time, each exactly once."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import pytest

from agentflow import Agent, AgentInput, App, Context, Limits, ModelRequest, Step, tool
from agentflow.clock import from_datetime
from agentflow.durations import to_micros
from agentflow.engine.retention import sweep
from agentflow.errors import BudgetExceeded, InvalidInput, NotFound, RunFailed
from agentflow.runs import RunStatus
from agentflow.testing import Harness, ScriptedModel, crash_after, harness
from agentflow.testing.crashes import NotCrashed
from tests.agents.support import call, steps_of
from tests.faults.support import read_rows

LILA = "customer-42"


def told(request: ModelRequest) -> list[tuple[str, str]]:
    """What a model is told: (role, text or calls or results)."""
    return [
        (
            message.role,
            message.text
            or " ".join(
                [each.name for each in message.tool_calls] + [each.text for each in message.tool_results]
            ),
        )
        for message in request.messages
    ]


async def said(app: App, thread: str = LILA) -> list[tuple[int, str, str]]:
    """What is kept of a thread: (turn, role, text)."""
    page = await app.threads.messages(thread)
    return [(each.turn, each.message.role, each.message.text) for each in page.data]


def chat(**options: Any) -> tuple[App, Agent[str]]:
    @tool
    async def look_up(order_id: str) -> str:
        return f"order {order_id}"

    app = App("t")
    agent = Agent("chat", model="openai:gpt-5-mini", tools=[look_up], **options)
    app.add(agent)
    return app, agent


async def test_a_run_goes_on_from_what_was_said_in_runs_before(database_url: str) -> None:
    app, agent = chat()
    model = ScriptedModel([call("look_up", order_id="7"), "found", "as I said"])
    async with harness(app, model=model, database_url=database_url, replay_every_step=True) as h:
        first = await h.start(agent, AgentInput("Where is it?", thread=LILA))
        assert await first.result(10) == "found"
        second = await h.start(agent, AgentInput("And now?", thread=LILA))
        assert await second.result(10) == "as I said"
        assert told(model.requests[-1]) == [
            ("user", "Where is it?"),
            ("assistant", "look_up"),
            ("tool", "order 7"),
            ("assistant", "found"),
            ("user", "And now?"),
        ]
        assert await said(app) == [
            (0, "user", "Where is it?"),
            (0, "assistant", ""),
            (0, "tool", ""),
            (0, "assistant", "found"),
            (1, "user", "And now?"),
            (1, "assistant", "as I said"),
        ]
        assert [each.run_id for each in (await app.threads.messages(LILA)).data[3:5]] == [first.id, second.id]
        assert {"chat#0/thread", "chat#0/thread/end"} <= (await steps_of(app, second.id)).keys()
        with pytest.raises(NotFound, match="no thread 'customer-4'"):
            await app.threads.messages("customer-4")


async def test_the_result_of_a_turn_is_its_own_messages(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("chat", model="openai:gpt-5-mini")

    @app.function
    async def talk(ctx: Context[Any], step: Step) -> list[list[str]]:
        first = await agent.run(step, "one", thread=LILA)
        second = await agent.run(step, "two", thread=LILA)
        return [[message.text for message in result.messages] for result in (first, second)]

    model = ScriptedModel(["1", "2"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(talk)
        assert await run.result(10) == [["one", "1"], ["two", "2"]]
    assert told(model.requests[1]) == [("user", "one"), ("assistant", "1"), ("user", "two")]


async def test_two_runs_on_one_thread_take_their_turns_in_the_order_in_which_they_came(
    database_url: str,
) -> None:
    app, agent = chat()
    may_answer, is_asked = asyncio.Event(), asyncio.Event()

    async def slow(request: ModelRequest) -> str:
        is_asked.set()
        await may_answer.wait()
        return f"to {request.prompt}"

    async with harness(app, model=slow, database_url=database_url) as h:
        first = await h.start(agent, AgentInput("one", thread=LILA))
        await asyncio.wait_for(is_asked.wait(), 10)
        others = []
        for prompt in ("two", "three"):
            others.append(await h.start(agent, AgentInput(prompt, thread=LILA)))
            while await others[-1].status() is not RunStatus.SLEEPING:
                await asyncio.sleep(0.01)
        waiting = await app.runs.get(others[0].id)
        assert f"thread 'customer-42' is taken by 'chat#0/thread' of run {first.id}" in str(waiting.reason)
        may_answer.set()
        # Woken by the end of the turn before: no time passes.
        assert [await run.result(10) for run in (first, *others)] == ["to one", "to two", "to three"]
        assert await said(app) == [
            (turn, role, text)
            for turn, prompt in enumerate(("one", "two", "three"))
            for role, text in (("user", prompt), ("assistant", f"to {prompt}"))
        ]


async def test_a_run_that_stays_in_memory_while_it_waits_for_its_turn_is_woken_too(database_url: str) -> None:
    app, agent = chat()
    may_answer, is_asked, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(request: ModelRequest) -> str:
        is_asked.set()
        await may_answer.wait()
        return f"to {request.prompt}"

    @app.function
    async def talk(ctx: Context[str], step: Step) -> str:
        async def chat() -> str:
            output = (await agent.run(step, ctx.data, thread=LILA)).output
            may_end.set()
            return output

        async def work() -> None:
            await may_end.wait()

        output, _ = await asyncio.gather(chat(), step.run("work", work))
        return output

    async with harness(app, model=slow, database_url=database_url) as h:
        first = await h.start(agent, AgentInput("one", thread=LILA))
        await asyncio.wait_for(is_asked.wait(), 10)
        second = await h.start(talk, "two")
        while not await _waits_for_its_turn(app, second.id):
            await asyncio.sleep(0.01)
        may_answer.set()
        assert await first.result(10) == "to one"
        assert await second.result(10) == "to two"


async def _waits_for_its_turn(app: App, run_id: str) -> bool:
    """Whether it has a place behind somebody else's."""
    url = app.client.settings.database_url
    return (await read_rows(url, f"SELECT count(*) FROM agentflow_turn WHERE run_id = '{run_id}'"))[0] == (1,)


async def test_many_runs_at_once_lose_and_mix_nothing(database_url: str) -> None:
    app, agent = chat()
    seen: list[int] = []

    async def count(request: ModelRequest) -> str:
        seen.append(len(request.messages))
        return f"to {request.prompt}"

    async with harness(app, model=count, database_url=database_url) as h:
        runs = [await h.start(agent, AgentInput(f"{n}", thread=LILA)) for n in range(12)]
        for _ in range(60):
            await h.idle()
            if all([await run.status() is RunStatus.COMPLETED for run in runs]):
                break
            await h.advance("30s")  # whoever missed being woken asks again
        kept = [text for _, _, text in await said(app)]
    prompts = kept[::2]
    assert sorted(prompts, key=int) == [f"{n}" for n in range(12)]
    assert kept[1::2] == [f"to {prompt}" for prompt in prompts]
    assert sorted(seen) == [2 * n + 1 for n in range(12)], "each turn is told all the turns before it"


async def test_a_turn_that_waits_for_a_person_holds_the_thread_until_its_run_ends(database_url: str) -> None:
    @tool(approval=True)
    async def refund() -> str:
        return "paid"

    app = App("t")
    agent = Agent("chat", model="openai:gpt-5-mini", tools=[refund])
    app.add(agent)
    model = ScriptedModel([call("refund"), "later"])
    async with harness(app, model=model, database_url=database_url) as h:
        first = await h.start(agent, AgentInput("one", thread=LILA))
        await h.idle()
        second = await h.start(agent, AgentInput("two", thread=LILA))
        await h.advance("1h")
        assert (await first.status(), await second.status()) == (RunStatus.WAITING, RunStatus.SLEEPING)
        assert await said(app) == []
        await app.runs.cancel(first.id)
        await h.advance("1m")
        assert await second.result(10) == "later"
        assert await said(app) == [(1, "user", "two"), (1, "assistant", "later")]


async def test_a_turn_that_fails_leaves_nothing_and_does_not_hold_the_thread(database_url: str) -> None:
    app = App("t")
    agent = Agent("chat", model="openai:gpt-5-mini", limits=Limits(turns=1), tools=[_nothing])

    @app.function
    async def talk(ctx: Context[str], step: Step) -> str:
        try:
            return (await agent.run(step, ctx.data, thread=LILA)).output
        except BudgetExceeded:
            await step.sleep("think", "1h")
            return "failed"

    model = ScriptedModel([call("_nothing"), "fine"])
    async with harness(app, model=model, database_url=database_url) as h:
        first = await h.start(talk, "one")
        await h.idle()
        second = await h.start(talk, "two")
        assert await second.result(10) == "fine"
        assert await first.status() is RunStatus.SLEEPING
        await h.advance("1h")
        assert await first.result(10) == "failed"
        assert await said(app) == [(1, "user", "two"), (1, "assistant", "fine")]


async def _nothing() -> None: ...


async def test_a_branch_that_loses_a_race_does_not_hold_the_thread(sqlite_url: str) -> None:
    @tool(approval=True)
    async def ask_somebody() -> None: ...

    app = App("t")
    agent = Agent("chat", model="openai:gpt-5-mini", tools=[ask_somebody])

    @app.function
    async def talk(ctx: Context[Any], step: Step) -> str:
        async def slow(step: Step) -> str:
            return (await agent.run(step, "one", thread=LILA)).output

        async def quick(step: Step) -> str:
            await step.sleep("a while", "1m")
            return "quick"

        await step.race("which", slow=slow, quick=quick)
        return (await agent.run(step, "two", thread=LILA)).output

    model = ScriptedModel([call("ask_somebody"), "fine"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(talk)
        await h.advance("1m")
        assert await run.result(10) == "fine"
        assert [text for _, _, text in await said(app)] == ["two", "fine"]


async def test_a_turn_within_a_turn_of_the_same_thread_is_refused_and_not_waited_for(
    database_url: str,
) -> None:
    app = App("t")
    helper = Agent("helper", model="openai:gpt-5-mini")
    app.add(helper)

    @tool
    async def ask_here(step: Step) -> str:
        return (await helper.run(step, "help", thread=LILA)).output

    @tool
    async def ask_elsewhere(step: Step) -> str:
        return str(await step.invoke("ask", helper, data=AgentInput("help", thread=LILA)))

    for outer in (ask_here, ask_elsewhere):
        agent = Agent(f"chat-{outer.name}", model="openai:gpt-5-mini", tools=[outer])
        app.add(agent)
    model = ScriptedModel([call("ask_here"), call("ask_elsewhere")])
    async with harness(app, model=model, database_url=database_url) as h:
        for name in ("ask_here", "ask_elsewhere"):
            run = await h.start(f"agents/chat-{name}", AgentInput("one", thread=LILA))
            with pytest.raises(RunFailed, match=r"which waits for .*thread.* of run .*neither would ever"):
                await run.result(10)


async def test_turns_beside_each_other_in_one_run_come_one_after_the_other(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("chat", model="openai:gpt-5-mini")

    @app.function
    async def talk(ctx: Context[Any], step: Step) -> list[str]:
        async def one(prompt: str) -> str:
            return (await agent.run(step, prompt, thread=LILA)).output

        return list(await asyncio.gather(one("a"), one("b"), one("c")))

    async with harness(app, model=_echo, database_url=sqlite_url) as h:
        run = await h.start(talk)
        for _ in range(10):
            await h.advance("30s")
        assert await run.result(10) == ["to a", "to b", "to c"]
        assert [text for _, _, text in await said(app)] == ["a", "to a", "b", "to b", "c", "to c"]


async def _echo(request: ModelRequest) -> str:
    return f"to {request.prompt}"


async def test_a_rerun_reads_what_was_there_at_the_time_and_adds_a_turn_of_its_own(database_url: str) -> None:
    app, agent = chat()
    model = ScriptedModel(["1", "2", "3", "2 again"])
    async with harness(app, model=model, database_url=database_url) as h:
        runs = [await h.start(agent, AgentInput(prompt, thread=LILA)) for prompt in ("one",)]
        await runs[0].result(10)
        for prompt in ("two", "three"):
            runs.append(await h.start(agent, AgentInput(prompt, thread=LILA)))
            await runs[-1].result(10)
        again = await app.runs.rerun(runs[1].id, from_step="chat#0/turn0/model")
        assert await again.result(10) == "2 again"
        assert told(model.requests[3]) == told(model.requests[1])
        kept = await said(app)
        assert kept[-2:] == [(3, "user", "two"), (3, "assistant", "2 again")]
        assert len(kept) == 8


@pytest.mark.parametrize("moment", ["before_commit", "after_commit", "before_acknowledge"])
async def test_a_crash_around_any_commit_neither_loses_nor_doubles_a_turn(
    database_url: str, moment: str
) -> None:
    app, agent = chat()
    async with harness(app, model=_by_prompt, database_url=database_url) as h:
        for n in itertools.count(1):
            thread, has_crashed = f"{moment}-{n}", True
            try:
                with crash_after(moment, n):
                    run = await h.start(agent, AgentInput("one", thread=thread))
                    await h.idle()
            except NotCrashed:
                has_crashed = False
            await h.restart()
            await h.advance("1h")
            assert await run.result(10) == "done", f"{moment}:{n}"
            assert await said(app, thread) == [
                (0, "user", "one"),
                (0, "assistant", ""),
                (0, "tool", ""),
                (0, "assistant", "done"),
            ], f"{moment}:{n}"
            if not has_crashed:
                break
    assert n > 7, "its commits are fewer than it has steps"


async def _by_prompt(request: ModelRequest) -> Any:
    return "done" if request.messages[-1].role == "tool" else [call("look_up", order_id="7")]


async def test_what_a_database_cannot_keep_as_it_is_comes_back(database_url: str) -> None:
    app = App("t")
    agent = Agent("chat", model="openai:gpt-5-mini")

    @app.function
    async def talk(ctx: Context[str], step: Step) -> int:
        return len((await agent.run(step, ctx.data, thread=LILA)).output)

    answer = "zero \x00 and more"
    model = ScriptedModel([answer, "fine"])
    async with harness(app, model=model, database_url=database_url) as h:
        for prompt, length in (("one", len(answer)), ("two", 4)):
            run = await h.start(talk, prompt)
            assert await run.result(10) == length
        assert (await said(app))[1] == (0, "assistant", answer)
    assert told(model.requests[1])[1] == ("assistant", answer)


async def _talk(h: Harness, agent: Agent[str], prompt: str) -> Any:
    run = await h.start(agent, AgentInput(prompt, thread=LILA))
    await h.idle()
    return run.result(10)


async def test_threads_are_of_one_app_are_forgotten_on_demand_and_told_in_pages(database_url: str) -> None:
    app, agent = chat()
    async with harness(app, model=_echo, database_url=database_url) as h:
        for n in range(3):
            await (await _talk(h, agent, f"{n}"))
        page = await app.threads.messages(LILA, limit=4)
        rest = await app.threads.messages(LILA, limit=4, cursor=page.cursor)
        assert [each.n for each in (*page.data, *rest.data)] == [0, 1, 2, 3, 4, 5]
        assert (page.has_more, rest.has_more) == (True, False)
        other = App("other", database_url=app.client.settings.database_url)
        async with other:
            with pytest.raises(NotFound, match="app 'other' has no thread"):
                await other.threads.messages(LILA)
        assert await app.threads.forget(LILA) == 6
        for gone in (app.threads.messages, app.threads.forget):
            with pytest.raises(NotFound):
                await gone(LILA)
        await (await _talk(h, agent, "anew"))
        assert [text for _, _, text in await said(app)] == ["anew", "to anew"]


async def test_usage_of_a_thread_is_that_of_its_turns_and_of_what_they_invoked(database_url: str) -> None:
    app = App("t")
    researcher = Agent("researcher", model="openai:gpt-5-mini")
    agent = Agent("chat", model="openai:gpt-5-mini", tools=[researcher.as_tool("Ask.")])
    app.add(agent)

    @app.function
    async def talk(ctx: Context[Any], step: Step) -> None:
        await agent.run(step, "on no thread")
        await agent.run(step, "on a thread", thread=LILA)
        await agent.run(step, "on another", thread="other")

    model = ScriptedModel(["x", call("researcher", prompt="?"), "found", "so", "y"])
    async with harness(app, model=model, database_url=database_url) as h:
        run = await h.start(talk)
        await h.idle()
        await run.result(10)
        assert (await app.usage(thread=LILA)).calls == 3
        assert (await app.usage(thread="other")).calls == 1
        assert (await app.usage()).calls == 5


async def test_a_thread_that_is_no_id_is_refused(sqlite_url: str) -> None:
    app, agent = chat()
    async with harness(app, model=ScriptedModel([]), database_url=sqlite_url) as h:
        for wrong in ("", "x" * 513):
            with pytest.raises(InvalidInput, match="thread"):
                await h.start(agent, {"prompt": "one", "thread": wrong})


async def test_retention_removes_a_thread_as_a_whole_when_it_was_not_used_for_long(database_url: str) -> None:
    app, agent = chat()
    async with harness(app, model=_echo, database_url=database_url) as h:
        await (await _talk(h, agent, "old"))
        old = await h.start(agent, AgentInput("old", thread="left alone"))
        await old.result(10)
        await h.advance("20d")
        await (await _talk(h, agent, "new"))
        await h.advance("20d")
        now = from_datetime(h.now())
        await sweep(app.client.store, before=now - to_micros(timedelta(days=30)), now=now)
        assert [text for _, _, text in await said(app)] == ["old", "to old", "new", "to new"]
        with pytest.raises(NotFound):
            await app.threads.messages("left alone")
