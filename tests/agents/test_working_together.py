"""Agents that call each other, hand over, are guarded, and are streamed."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import Agent, AgentResult, App, Approve, Context, Edit, ModelRequest, Step, ToolContext, tool
from agentflow.agents import Guardrail
from agentflow.errors import ConfigurationError, GuardrailTripped, InvalidInput, RateLimited, RunFailed
from agentflow.models.response import TextDelta
from agentflow.runs import RunStatus
from agentflow.testing import ScriptedModel, harness
from tests.agents.support import call, results_in, steps_of


class Bill(BaseModel):
    total: int


class TestSubAgents:
    async def test_work_in_a_run_of_their_own_with_their_approvals_in_the_same_inbox(
        self, sqlite_url: str
    ) -> None:
        app = App("t")

        @tool(approval=True)
        async def pay(amount: int) -> str:
            return f"paid {amount}"

        def answer(request: ModelRequest) -> Any:
            if request.instructions == "Pay.":
                return call("pay", amount=3) if len(request.messages) == 1 else {"total": 3}
            return call("payer", prompt="Pay 3.") if len(request.messages) == 1 else "done"

        payer = Agent("payer", model="openai:gpt-5-mini", instructions="Pay.", tools=[pay], output=Bill)
        support = Agent("support", model="openai:gpt-5-mini", tools=[payer.as_tool("Pays.")])
        app.add(support)
        model = ScriptedModel([answer] * 4)
        async with harness(app, model=model, database_url=sqlite_url) as h:
            run = await h.start(support, "go")
            await h.idle()
            [child] = (await app.runs.list(function="agents/payer")).data
            assert (child.parent_id, child.status) == (run.id, RunStatus.WAITING)
            [request] = (await app.approvals.list(status="pending")).data
            assert (request.run_id, request.step_key) == (child.id, "payer#0/turn0/0:pay/approval")
            await app.approvals.decide(request.id, Approve(), by="ana")
            assert await run.result(5) == "done"
            assert (await steps_of(app, run.id))["support#0/turn0/0:payer"].kind == "invoke"
            usage = await app.usage(run=run.id)
        assert results_in(model.requests[-1]) == [{"total": 3}]
        assert usage.calls == 4

    async def test_add_their_usage_to_the_result(self, sqlite_url: str) -> None:
        app = App("t")
        helper = Agent("helper", model="openai:gpt-5-mini")
        support = Agent("support", model="openai:gpt-5-mini", tools=[helper.as_tool("Helps.")])
        app.add(support)
        used: list[int] = []

        @app.function
        async def ask(ctx: Context[None], step: Step) -> str:
            result = await support.run(step, "go")
            used.append(result.usage.total_tokens)
            return result.output

        async with harness(
            app,
            model=ScriptedModel([call("helper", prompt="help"), "helped", "done"]),
            database_url=sqlite_url,
        ) as h:
            run = await h.start(ask)
            assert await run.result(5) == "done"
            usage = await app.usage(run=run.id)
        assert used == [usage.input_tokens + usage.output_tokens]
        assert usage.calls == 3


class TestHandoffs:
    async def test_let_another_agent_go_on_with_the_conversation(self, sqlite_url: str) -> None:
        app = App("t")
        billing = Agent("billing", model="openai:gpt-5-mini", instructions="Bill.", output=Bill)
        triage = Agent("triage", model="openai:gpt-5-mini", instructions="Sort.", handoffs=[billing])
        app.add(triage)
        model = ScriptedModel([call("transfer_to_billing"), {"total": 3}])
        async with harness(app, model=model, database_url=sqlite_url) as h:
            run = await h.start(triage, "What do I owe?")
            assert await run.result(5) == Bill(total=3)
            assert list(await steps_of(app, run.id)) == ["triage#0/turn0/model", "triage#0/turn1/model"]
        first, second = model.requests
        assert ([spec.name for spec in first.tools], second.tools) == (["transfer_to_billing"], ())
        assert (first.instructions, second.instructions) == ("Sort.", "Bill.")
        assert [message.role for message in second.messages] == ["user", "assistant", "tool"]

    async def test_of_one_turn_are_only_followed_once(self, sqlite_url: str) -> None:
        app = App("t")
        one, two = (Agent(name, model="openai:gpt-5-mini", instructions=name) for name in ("one", "two"))
        triage = Agent("triage", model="openai:gpt-5-mini", handoffs=[one, two])
        app.add(triage)
        model = ScriptedModel([[call("transfer_to_two"), call("transfer_to_one")], "done"])
        async with harness(app, model=model, database_url=sqlite_url) as h:
            assert await (await h.start(triage, "go")).result(5) == "done"
        assert model.requests[1].instructions == "two"
        assert results_in(model.requests[1])[1] == "Not done: the conversation was handed to two already."


class TestGuardrails:
    async def test_see_input_output_and_tool_arguments_each_as_a_step(self, sqlite_url: str) -> None:
        app, seen = App("t"), []

        def shout(ctx: ToolContext[Any], value: Any) -> Any:
            seen.append((ctx.tool, value))
            return {key: item.upper() for key, item in value.items()} if ctx.tool else value.upper()

        @tool
        async def echo(text: str) -> str:
            return text

        agent = Agent("support", model="openai:gpt-5-mini", tools=[echo], guardrails=[shout])

        @app.function
        async def ask(ctx: Context[None], step: Step) -> str:
            result = await agent.run(step, "go")
            await step.sleep("nap", "1h")
            return result.output

        model = ScriptedModel([call("echo", text="a"), "done"])
        async with harness(app, model=model, database_url=sqlite_url) as h:
            run = await h.start(ask)
            await h.advance("1h")
            assert await run.result(5) == "DONE"
            assert list(await steps_of(app, run.id)) == [
                "support#0/input/shout",
                "support#0/turn0/model",
                "support#0/turn0/0:echo/shout",
                "support#0/turn0/0:echo",
                "support#0/turn1/model",
                "support#0/output/shout",
                "nap",
            ]
        assert seen == [(None, "go"), ("echo", {"text": "a"}), (None, "done")]
        assert (model.requests[0].prompt, results_in(model.requests[1])) == ("GO", ["A"])

    async def test_that_trip_end_the_run_before_anything_is_asked(self, sqlite_url: str) -> None:
        app = App("t")

        async def no_secrets(ctx: ToolContext[Any], value: str) -> str:
            raise GuardrailTripped("there is a secret in it")

        agent = Agent("support", model="openai:gpt-5-mini", guardrails=[Guardrail(no_secrets, on=("input",))])
        app.add(agent)
        model = ScriptedModel(["never"])
        async with harness(app, model=model, database_url=sqlite_url) as h:
            with pytest.raises(RunFailed, match=r"GuardrailTripped.*a secret"):
                await (await h.start(agent, "go")).result(5)
        assert model.requests == []


async def test_tools_get_the_agents_dependencies_made_once_in_a_process(sqlite_url: str) -> None:
    app, made, seen = App("t"), [], []

    class Database:
        def __init__(self, run_id: str) -> None:
            made.append(run_id)

    @tool
    def read(key: str, ctx: ToolContext[Database]) -> str:
        seen.append((type(ctx.deps), ctx.agent, ctx.attempt, ctx.step_id, ctx.idempotency_key))
        return key

    agent = Agent("support", model="openai:gpt-5-mini", tools=[read], deps=lambda ctx: Database(ctx.run_id))
    app.add(agent)
    model = ScriptedModel([[call("read", key="a"), call("read", key="b")], "done"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        assert await run.result(5) == "done"
    assert made == [run.id]
    key = "support#0/turn0/0:read"
    assert sorted(seen, key=str)[0] == (Database, "support", 0, key, f"{run.id}:{key}")


async def test_a_stream_gives_deltas_then_the_result_and_on_replay_the_result_alone(sqlite_url: str) -> None:
    app, seen = App("t"), []
    agent = Agent("support", model="openai:gpt-5-mini")

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        items: list[Any] = [item async for item in agent.stream(step, "go")]
        seen.append([type(item) for item in items])
        text = "".join(item.text for item in items[:-1])
        await step.sleep("nap", "1h")
        assert isinstance(items[-1], AgentResult)
        return text or items[-1].output

    model = ScriptedModel(["It is on its way."])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(ask)
        await h.advance("1h")
        assert await run.result(5) == "It is on its way."
        told = [item.data for item in [item async for item in run.stream()] if item.kind == "text.delta"]
    first, replayed = seen
    assert set(first[:-1]) == {TextDelta}
    assert (first[-1], replayed) == (AgentResult, [AgentResult])
    assert ("".join(told), len(model.requests)) == ("It is on its way.", 1)


async def test_a_stream_goes_on_after_the_run_has_left_memory(sqlite_url: str) -> None:
    app = App("t")

    @tool
    async def wait(step: Step) -> str:
        await step.sleep("nap", "1d")
        return "waited"

    agent = Agent("support", model="openai:gpt-5-mini", tools=[wait])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        return "".join([item.text async for item in agent.stream(step, "go") if isinstance(item, TextDelta)])

    model = ScriptedModel([["Wait.", call("wait")], "Here it is."])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(ask)
        await h.idle()
        assert await run.status() is RunStatus.SLEEPING
        await h.advance("1d")
        assert await run.result(5) == "Here it is."  # what was said before is not told again
    assert len(model.requests) == 2


async def test_who_leaves_a_stream_stops_the_agent(sqlite_url: str) -> None:
    app = App("t")
    agent = Agent("support", model="openai:gpt-5-mini")

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        async with aclosing(agent.stream(step, "go")) as items:
            async for item in items:
                assert isinstance(item, TextDelta)
                break
        return item.text

    model = ScriptedModel(["It is on its way."])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(ask)
        assert await run.result(5) == "It is on"
        assert await steps_of(app, run.id) == {}


async def test_an_agent_falls_back_to_another_model_and_goes_on_with_its_own(sqlite_url: str) -> None:
    app = App("t")
    limited = RateLimited("slow down", status=429, retriable=True)
    first = ScriptedModel([limited, "from the first"], name="first")
    second = ScriptedModel([call("look")], name="second")

    @tool
    def look() -> str:
        return "seen"

    agent = Agent("support", model=first, fallback=[second], tools=[look])
    app.add(agent)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, "go")
        assert await run.result(5) == "from the first"
        steps = await steps_of(app, run.id)
    assert steps["support#0/turn0/model"].output["model"] == "scripted:second"
    assert (len(first.requests), len(second.requests)) == (2, 1)


async def test_an_agent_of_two_apps_is_a_function_of_each(sqlite_url: str) -> None:
    helper = Agent("helper", model="openai:gpt-5-mini")
    agent = Agent("support", model="openai:gpt-5-mini", tools=[helper.as_tool("Helps.")])
    one, two = App("one"), App("two")
    one.add(agent)
    one.add(helper)
    two.add(agent)
    assert [function.app for function in one.registered] == ["one", "one"]
    assert [function.id for function in two.registered] == ["agents/support", "agents/helper"]
    async with harness(one, model=ScriptedModel(["yes"]), database_url=sqlite_url) as h:
        run = await h.start("agents/support", "go")
        assert await run.result(5) == "yes"
    with pytest.raises(ConfigurationError, match="registered twice"):
        two.add(Agent("helper", model="openai:gpt-5-mini"))


def test_names_of_tools_are_there_once() -> None:
    @tool(name="transfer_to_other")
    def first() -> None: ...

    other = Agent("other", model="openai:gpt-5-mini")
    with pytest.raises(ConfigurationError, match="'transfer_to_other' is there twice"):
        Agent("support", model="openai:gpt-5-mini", tools=[first], handoffs=[other])
    with pytest.raises(ConfigurationError, match="two tools called 'transfer_to_other'"):
        Agent("support", model="openai:gpt-5-mini", tools=[first, first])


@pytest.mark.parametrize(
    "wrong", [{"model": "gpt-5-mini"}, {"output": None}, {"name": "a b"}, {"tools": "look"}]
)
def test_what_makes_no_agent_is_refused_when_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Agent(**({"name": "support", "model": "openai:gpt-5-mini"} | wrong))


def test_override_changes_what_it_names_and_nothing_else() -> None:
    agent = Agent("support", model="openai:gpt-5-mini", instructions="Help.", output=Bill)
    other = agent.override(model="anthropic:claude-sonnet-4-5")
    assert (agent.model, other.model) == ("openai:gpt-5-mini", "anthropic:claude-sonnet-4-5")
    assert (other.name, other.instructions, other.output) == ("support", "Help.", Bill)
    with pytest.raises(ConfigurationError, match="'modell'"):
        agent.override(modell="x")


class Refund(BaseModel):
    order: str
    amount: int


class TestFunctionsAsTools:
    def made(self, **options: Any) -> tuple[App, Agent[Any, Any]]:
        app = App("t")

        @app.function("refunds/pay-out")
        async def pay_out(ctx: Context[Refund], step: Step) -> Bill:
            """Pay money back."""
            await step.sleep("settle", "1h")
            return Bill(total=ctx.data.amount)

        @app.function
        async def shout(ctx: Context[str], step: Step) -> str:
            """Say it loudly."""
            return await step.run("shout", str.upper, ctx.data)

        agent: Agent[Any, Any] = Agent(
            "support", model="test:none", tools=[tool(**options)(pay_out) if options else pay_out, shout]
        )
        app.add(agent)
        return app, agent

    async def test_are_runs_of_their_own_with_typed_input_and_output(self, sqlite_url: str) -> None:
        app, support = self.made()
        model = ScriptedModel(
            [
                [
                    call("refunds_pay-out", order="A", amount=3),
                    call("shout", data="hello"),
                    call("shout", data=5),
                    call("shout", text="hello"),
                    call("refunds_pay-out", order="A"),
                ],
                "done",
            ]
        )
        async with harness(app, model=model, database_url=sqlite_url) as h:
            run = await h.start(support, "go")
            await h.advance("1h")
            assert await run.result(5) == "done"
            children = (await app.runs.list(function="refunds/pay-out")).data
            [child] = [await app.runs.get(child.id) for child in children]
            assert (child.parent_id, child.input) == (run.id, {"order": "A", "amount": 3})
            assert (await steps_of(app, run.id))["support#0/turn0/0:refunds_pay-out"].kind == "invoke"
        first, last = model.requests
        assert [(spec.name, spec.description) for spec in first.tools] == [
            ("refunds_pay-out", "Pay money back."),
            ("shout", "Say it loudly."),
        ]
        assert first.tools[0].schema["required"] == ["order", "amount"]
        assert first.tools[1].schema == {
            "type": "object",
            "properties": {"data": {"type": "string"}},
            "required": ["data"],
        }
        paid, loud, *refused = results_in(last)
        assert (paid, loud) == ({"total": 3}, "HELLO")
        assert all(text.startswith("The arguments do not validate: ") for text in refused)
        assert len(refused) == 3

    async def test_wait_for_a_person_and_run_with_the_edited_arguments(self, sqlite_url: str) -> None:
        app, support = self.made(approval=True)
        model = ScriptedModel([call("refunds_pay-out", order="A", amount=300), "done"])
        async with harness(app, model=model, database_url=sqlite_url) as h:
            run = await h.start(support, "go")
            await h.idle()
            assert (await app.runs.list(function="refunds/pay-out")).data == []
            [request] = (await app.approvals.list(status="pending")).data
            with pytest.raises(InvalidInput, match="amount"):
                await app.approvals.decide(request.id, Edit({"order": "A", "amount": "much"}), by="ana")
            await app.approvals.decide(request.id, Edit({"order": "A", "amount": 3}), by="ana")
            await h.advance("1h")
            assert await run.result(5) == "done"
            assert "support#0/turn0/0:refunds_pay-out/check" in await steps_of(app, run.id)
        assert results_in(model.requests[-1]) == [{"total": 3}]

    async def test_of_another_app_are_refused_with_their_name(self, sqlite_url: str) -> None:
        _, support = self.made()
        app = App("other")
        app.add(support)
        model = ScriptedModel([call("shout", data="hello")])
        async with harness(app, model=model, database_url=sqlite_url) as h:
            run = await h.start(support, "go")
            await h.idle()
            with pytest.raises(RunFailed, match="'shout' is not registered in app 'other'"):
                await run.result(5)

    def test_have_their_own_retries(self) -> None:
        with pytest.raises(ConfigurationError, match="it has its own retries"):
            self.made(retry=2)
