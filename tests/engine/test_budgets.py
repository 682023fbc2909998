"""`Budget`: reserved before a call leaves, settled to what it cost; what might pass it is not asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agentflow import (
    Agent,
    AgentInput,
    App,
    Context,
    Event,
    ModelRequest,
    ModelResponse,
    ModelSettings,
    Step,
    Usage,
)
from agentflow.agents import Compaction
from agentflow.budgets import most_it_may_use, period_of
from agentflow.content import FilePart, ImagePart
from agentflow.errors import BudgetExceeded, ConfigurationError, ProviderError, RunFailed
from agentflow.flow import Budget, ModelRateLimit
from agentflow.models.clients import close_clients
from agentflow.models.function import FunctionModel
from agentflow.models.messages import Message, Origin, ToolResult
from agentflow.models.response import ToolSpec
from agentflow.runs import RunStatus
from agentflow.testing import ScriptedModel, harness
from agentflow.testing.provider_jobs import Job
from agentflow.testing.provider_server import FakeProvider, fake_provider
from tests.agents.support import call

ANSWER = Usage(input_tokens=40, output_tokens=60)
SHORT = ModelSettings(max_tokens=60)
COST = Decimal("0.0007")
"""Of such an answer by gpt-4o: 2.5 and 10 dollars a million."""


class Priced(FunctionModel):
    """A model whose price is known, and what it is asked; `failures` come first."""

    provider = "openai-chat"

    def __init__(self, *failures: Exception, name: str = "gpt-4o", usage: Usage = ANSWER) -> None:
        super().__init__(self._reply, name=name)
        self.failures, self.usage = list(failures), usage
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def _reply(self, request: ModelRequest) -> ModelResponse:
        self.asked += 1
        await self.may_answer.wait()
        if self.failures:
            raise self.failures.pop(0)
        return ModelResponse(text="yes", usage=self.usage)


def make(model: Any, *budgets: Budget, app: str = "t", retries: int = 0, **options: Any) -> App:
    made = App(app, budgets=list(budgets))

    @made.function(retries=retries, on="asked")
    async def ask(ctx: Context[Any], step: Step) -> str:
        given = {"settings": SHORT} | options
        response = await step.ai.infer("ask", model=model, messages="Well?", **given)
        return response.text

    return made


def failure(billed: Any, status: int = 500) -> ProviderError:
    return ProviderError(
        "no", provider="openai-chat", model="gpt-4o", status=status, billed=billed, retriable=True
    )


async def why(run: Any) -> str:
    with pytest.raises(RunFailed) as failed:
        await run.result(10)
    assert failed.value.error.name == "BudgetExceeded"
    return failed.value.error.message


async def sums_of(app: App) -> dict[str, tuple[Decimal, Decimal]]:
    """Spent and reserved of each budget."""
    told = await app.budgets()
    return {
        report.name if report.value is None else report.value: (report.spent_usd, report.reserved_usd)
        for report in told
    }


async def test_calls_are_made_until_the_next_one_might_pass_the_budget(database_url: str) -> None:
    model = Priced()
    app = make(model, Budget("daily", cost_usd="0.0042", period="1d"))
    async with harness(app, database_url=database_url) as h:
        runs = []
        for _ in range(7):
            runs.append(await h.start("ask"))
            await h.idle()
        assert [await run.status() for run in runs].count(RunStatus.COMPLETED) == 5
        assert model.asked == 5
        told = await why(runs[-1])
        midnight = (h.now() + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        assert "model call 'ask' was not made: it may use 0.00" in told
        assert "budget 'daily' has 0.0042 US dollars, of which 0.0035 US dollars are spent and 0 " in told
        assert f"begins again at {midnight.isoformat()}" in told
        [report] = await app.budgets("daily")
        assert (report.spent_usd, report.reserved_usd, report.cost_usd) == (5 * COST, 0, Decimal("0.0042"))
        assert (report.ends_at, report.begins_at) == (midnight, midnight - timedelta(days=1))
        assert report.spent_usd == (await app.usage()).cost
        await h.advance(midnight - h.now())
        again = await h.start("ask")
        await h.idle()
        assert await again.result(5) == "yes"
        assert (await sums_of(app))["daily"] == (COST, 0)


async def test_calls_under_way_at_once_count_for_what_they_may_cost(database_url: str) -> None:
    model = Priced(usage=Usage(input_tokens=1, output_tokens=60))
    model.may_answer.clear()
    app = make(model, Budget("tokens", tokens=1_000))
    async with harness(app, database_url=database_url) as h:
        runs = [await h.start("ask") for _ in range(12)]
        refused: list[Any] = []
        while model.asked + len(refused) < 12:
            refused = [run for run in runs if await run.status() is RunStatus.FAILED]
            await asyncio.sleep(0.01)
        [report] = await app.budgets()
        each = report.reserved_tokens // model.asked
        assert each >= 61
        assert model.asked == 1_000 // each < 12
        told = await why(refused[0])
        assert (
            f"{report.reserved_tokens} tokens reserved for calls under way; it does not begin again" in told
        )
        model.may_answer.set()
        await h.idle()
        [report] = await app.budgets()
        assert (report.spent_tokens, report.reserved_tokens) == (61 * model.asked, 0)
        assert report.begins_at is report.ends_at is None


async def test_a_call_that_was_not_billed_gives_its_reservation_back(database_url: str) -> None:
    model = Priced(failure("no"), failure("no", 400))
    app = make(model, Budget("all", cost_usd="0.002"), retries=2)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("ask")
        await h.advance("1h")
        assert await run.result(5) == "yes"
        assert (await sums_of(app))["all"] == (COST, 0)


async def test_a_call_in_doubt_counts_as_spent_and_is_asked_again_only_within_the_budget(
    database_url: str,
) -> None:
    model = Priced(failure("possible"), failure("possible"))
    app = make(model, Budget("all", cost_usd="0.002"), retries=5)
    async with harness(app, database_url=database_url) as h:
        run = await h.start("ask")
        await h.advance("1h")
        await why(run)
        assert model.asked == 2
        spent, reserved = (await sums_of(app))["all"]
        assert spent > 2 * COST
        assert reserved == 0
        [(_, first), (_, second)] = await app.client.store.queries.list_model_calls()
        assert (first.billed, second.billed) == ("possible", "possible")


async def test_a_call_whose_worker_died_counts_for_what_it_may_have_cost(database_url: str) -> None:
    model = Priced()
    model.may_answer.clear()
    app = make(model, Budget("all", cost_usd=1))
    async with harness(app, database_url=database_url) as h:
        run = await h.start("ask")
        while not model.asked:
            await asyncio.sleep(0.01)
        _, most = (await sums_of(app))["all"]
        await h.crash()
        model.may_answer.set()
        assert (await sums_of(app))["all"] == (0, most)
        await h.restart()
        await h.idle()
        assert await run.result(5) == "yes"
        assert (await sums_of(app))["all"] == (most + COST, 0)
        assert (await app.usage()).possibly_billed == 1


async def test_a_lost_call_that_may_not_be_asked_again_is_ended_as_possibly_billed(database_url: str) -> None:
    model = Priced()
    model.may_answer.clear()
    app = make(model, Budget("all", cost_usd="0.0012"))
    async with harness(app, database_url=database_url) as h:
        run = await h.start("ask")
        while not model.asked:
            await asyncio.sleep(0.01)
        await h.crash()
        model.may_answer.set()
        await h.restart()
        await h.idle()
        await why(run)
        assert model.asked == 1
        [(_, lost)] = await app.client.store.queries.list_model_calls()
        assert (lost.state, lost.billed) == ("in_doubt", "possible")
        spent, reserved = (await sums_of(app))["all"]
        assert spent > COST
        assert reserved == 0


async def test_an_answer_that_is_remembered_is_not_charged_again(database_url: str) -> None:
    model = Priced()
    app = App("t", budgets=[Budget("all", cost_usd="0.0021")])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> list[str]:
        told = []
        for _ in range(2):
            told.append((await step.ai.infer("ask", model=model, messages="?", settings=SHORT)).text)
            await step.sleep("nap", "1h")
        return told

    async with harness(app, database_url=database_url, replay_every_step=True) as h:
        run = await h.start(ask)
        await h.advance("5h")
        assert await run.result(5) == ["yes", "yes"]
        rerun = await app.runs.rerun(run.id, from_step="nap:1")
        await h.advance("5h")
        assert await rerun.result(5) == ["yes", "yes"]
        assert (await sums_of(app))["all"] == (2 * COST, 0)


async def test_what_is_refused_can_be_caught_and_made_when_the_budget_begins_again(database_url: str) -> None:
    model = Priced()
    app = App("t", budgets=[Budget("hourly", cost_usd="0.0014", period="1h")])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> list[str | None]:
        refused_by: list[str | None] = []
        for n in range(3):
            while True:
                try:
                    await step.ai.infer(f"ask-{n}", model=model, messages="?", settings=SHORT)
                    break
                except BudgetExceeded as error:
                    refused_by.append(error.budget)
                    await step.sleep_until("wait", error.resets_at or datetime.max.replace(tzinfo=UTC))
        return refused_by

    async with harness(app, database_url=database_url, replay_every_step=True) as h:
        run = await h.start(ask)
        await h.advance("4h")
        assert await run.result(5) == ["hourly", "hourly"]
        assert model.asked == 3


async def test_where_a_price_is_not_known_a_budget_of_money_lets_nothing_pass(database_url: str) -> None:
    model = Priced(name="some-model")
    money, tokens = Budget("money", cost_usd=100), Budget("tokens", tokens=10_000)
    async with harness(make(model, money, tokens), database_url=database_url) as h:
        run = await h.start("ask")
        await h.idle()
        told = await why(run)
        assert (
            "nobody knows what openai-chat:some-model costs, it may pass cost_usd=100 of budget 'money'"
            in told
        )
        assert model.asked == 0
    async with harness(make(model, tokens, app="other"), database_url=database_url) as h:
        run = await h.start("ask")
        await h.idle()
        assert await run.result(5) == "yes"


async def test_the_scripted_model_costs_nothing_but_what_it_says(database_url: str) -> None:
    replies = [ModelResponse(text=f"{n}", cost=Decimal(2), usage=ANSWER) for n in range(3)]
    app = make(ScriptedModel(replies), Budget("all", cost_usd=4))
    async with harness(app, database_url=database_url) as h:
        runs = []
        for _ in range(3):
            runs.append(await h.start("ask"))
            await h.idle()
        assert [await run.result(5) for run in runs[:2]] == ["0", "1"]
        await why(runs[2])


async def test_each_value_of_a_key_has_a_budget_of_its_own(database_url: str) -> None:
    model = Priced()
    app = make(model, Budget("per customer", cost_usd="0.0012", key="data.customer"))
    async with harness(app, database_url=database_url) as h:
        for customer in ("ana", "ana", "bo"):
            await h.send(Event(name="asked", data={"customer": customer}))
            await h.idle()
        failed = await app.runs.list(status="failed")
        assert len(failed.data) == 1
        error = (await app.runs.get(failed.data[0].id)).error
        assert error is not None
        assert "budget 'per customer' of \"ana\" has" in error.message
        assert await sums_of(app) == {'"ana"': (COST, 0), '"bo"': (COST, 0)}


async def test_runs_that_are_invoked_are_of_the_customer_of_whoever_invoked_them(database_url: str) -> None:
    model = Priced()
    app = App("t", budgets=[Budget("per customer", cost_usd=1, key="data.customer")])

    @app.function
    async def lowest(ctx: Context[str], step: Step) -> str:
        asked = [step.ai.infer(f"ask-{n}", model=model, messages="?", settings=SHORT) for n in range(2)]
        return "".join(answer.text for answer in await asyncio.gather(*asked))

    @app.function
    async def middle(ctx: Context[str], step: Step) -> str:
        return await step.invoke("below", lowest, data="no customer here")

    @app.function
    async def top(ctx: Context[dict[str, str]], step: Step) -> str:
        await step.ai.infer("ask", model=model, messages="?", settings=SHORT)
        return await step.invoke("below", middle, data="nor here")

    async with harness(app, database_url=database_url) as h:
        run = await h.start(top, {"customer": "ana"})
        alone = await h.start(lowest, "nobody's")
        await h.idle()
        assert [await run.result(5), await alone.result(5)] == ["yesyes", "yesyes"]
        assert await sums_of(app) == {'"ana"': (3 * COST, 0), "null": (2 * COST, 0)}


async def test_a_budget_may_be_for_some_calls_only(database_url: str) -> None:
    model, other = Priced(), Priced(name="gpt-4o-mini")
    app = App(
        "t",
        budgets=[
            Budget("agent", cost_usd=1, agent="helper"),
            Budget("model", cost_usd=1, model="openai-chat:gpt-4o-mini"),
            Budget("provider", cost_usd=1, provider="openai-chat"),
            Budget("others", cost_usd=1, provider="openai"),
        ],
    )
    helper = Agent("helper", model=model, settings=SHORT)
    app.add(helper)

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        await helper.run(step, "Well?")
        return (await step.ai.infer("ask", model=other, messages="?", settings=SHORT)).text

    async with harness(app, database_url=database_url) as h:
        run = await h.start(ask)
        await h.idle()
        assert await run.result(5) == "yes"
        small = Decimal("0.000042")
        assert await sums_of(app) == {"agent": (COST, 0), "model": (small, 0), "provider": (COST + small, 0)}
        usage = {by: await app.usage_by(by) for by in ("run", "agent", "model", "day")}
        costs = {by: {name: report.cost for name, report in found.items()} for by, found in usage.items()}
        assert costs == {
            "run": {run.id: COST + small},
            "agent": {"(no agent)": small, "helper": COST},
            "model": {"openai-chat:gpt-4o": COST, "openai-chat:gpt-4o-mini": small},
            "day": {h.now().date().isoformat(): COST + small},
        }
        assert (await app.usage_by("agent", agent="helper"))["helper"].calls == 1


async def test_agents_their_sub_agents_and_their_summaries_are_all_charged(database_url: str) -> None:
    class Team(Priced):
        async def _reply(self, request: ModelRequest) -> ModelResponse:
            self.asked += 1
            told = request.instructions or ""
            if told.startswith("Summarise") or told == "Help." or request.messages[-1].role == "tool":
                return ModelResponse(text="done", usage=self.usage)
            return ModelResponse(tool_calls=[call("helper", prompt="x" * 2_000)], usage=self.usage)

    model = Team()
    app = App("t", budgets=[Budget("all", cost_usd=1)])
    helper = Agent("helper", model=model, instructions="Help.", settings=SHORT)
    support = Agent(
        "support",
        model=model,
        instructions="Work.",
        settings=SHORT,
        tools=[helper.as_tool("Helps.")],
        compaction=Compaction(at_tokens=100, keep_turns=1),
    )
    app.add(support)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(support, AgentInput(prompt="go" * 300, thread="t"))
        await h.idle()
        assert await run.result(5) == "done"
        again = await h.start(support, AgentInput(prompt="go on", thread="t"))
        await h.idle()
        assert await again.result(5) == "done"
        keys = [step.key for one in (run, again) for step in (await app.runs.steps(one.id)).data]
        assert any("compaction" in key for key in keys)
        assert (await sums_of(app))["all"] == (model.asked * COST, 0)
        assert (await app.usage()).calls == model.asked >= 7


async def test_all_apps_on_a_database_share_a_budget(database_url: str) -> None:
    model = Priced()
    budget = Budget("all", cost_usd="0.0012")
    one, other = make(model, budget, app="one"), make(model, budget, app="other")
    async with harness(one, database_url=database_url) as h, harness(other, database_url=database_url) as h2:
        first = await h.start("ask")
        await h.idle()
        second = await h2.start("ask")
        await h2.idle()
        assert await first.result(5) == "yes"
        await why(second)


async def test_a_call_that_a_budget_refuses_leaves_the_tokens_of_a_rate_limit(database_url: str) -> None:
    model = Priced()
    app = App(
        "t",
        budgets=[Budget("all", tokens=10)],
        model_limits=[ModelRateLimit("openai-chat", tokens=10_000, period="1h")],
    )

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        settings = ModelSettings(max_tokens=9_000)
        return (await step.ai.infer("ask", model=model, messages="?", settings=settings)).text

    async with harness(app, database_url=database_url) as h:
        for _ in range(3):
            run = await h.start(ask)
            await h.idle()
            await why(run)


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with fake_provider(lambda _: ModelResponse(text="answered", usage=ANSWER)) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        await close_clients()


@pytest.mark.parametrize("billing", ["at_least_once", "recover", "strict"])
@pytest.mark.parametrize("model", ["openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"])
async def test_every_way_of_asking_is_settled_to_what_the_ledger_says(
    provider: FakeProvider, sqlite_url: str, model: str, billing: Any
) -> None:
    if billing == "recover" and model.startswith("openai:"):
        provider._by_function = lambda _: Job(ModelResponse(text="answered", usage=ANSWER), queued=2)
    app = make(model, Budget("all", cost_usd=1), billing=billing)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start("ask")
        await h.advance("10m")
        assert await run.result(5) == "answered"
        cost = (await app.usage()).cost
        assert cost
        assert (await sums_of(app))["all"] == (cost, 0)


async def test_a_wrapped_call_is_charged_where_it_names_a_model(
    provider: FakeProvider, sqlite_url: str
) -> None:
    from openai import AsyncOpenAI

    app = App("t", budgets=[Budget("all", cost_usd="0.01")])

    async def look_up(city: str) -> str:
        return f"sunny in {city}"

    @app.function
    async def ask(ctx: Context[int | None], step: Step) -> str:
        async with AsyncOpenAI() as client:
            create = client.chat.completions.create
            given: dict[str, Any] = {} if ctx.data is None else {"max_completion_tokens": ctx.data}
            messages = [{"role": "user", "content": "Hi"}]
            await step.ai.wrap("ask", create, model="gpt-4o", messages=messages, **given)
        return await step.ai.wrap("look", look_up, city="Rome")

    async with harness(app, database_url=sqlite_url) as h:
        run, unlimited = await h.start(ask, 10), await h.start(ask, None)
        await h.idle()
        assert await run.result(5) == "sunny in Rome"
        assert "it may use 0.16" in await why(unlimited), "16,384 tokens are reserved where it does not say"
        assert (await sums_of(app))["all"] == (COST, 0)


def asked(*messages: Any, **fields: Any) -> ModelRequest:
    return ModelRequest(model="m", messages=list(messages) or ["Well?"], **fields)


def test_no_text_has_more_tokens_than_are_reserved_for_it() -> None:
    for text in ("plain words", "漢字" * 50, "🦜" * 50, "\x00\x01" * 50):
        most = most_it_may_use(asked(text), answer_tokens=1)
        assert len(text.encode()) < most.input_tokens < len(text.encode()) + 150


def test_tools_instructions_and_what_models_said_are_part_of_a_request() -> None:
    plain = most_it_may_use(asked(), answer_tokens=1).input_tokens
    spec = ToolSpec("look", "d" * 500, {"type": "object"})
    said = Message(
        role="assistant", parts=["short"], origin=Origin(provider="openai", items=[{"secret": "s" * 500}])
    )
    for request in (asked(tools=(spec,)), asked(instructions="i" * 500), asked("Well?", said, "And?")):
        assert most_it_may_use(request, answer_tokens=1).input_tokens > plain + 490


def test_an_image_counts_for_what_the_dearest_model_makes_of_one() -> None:
    image = {"kind": "image", "media_type": "image/png", "data": "A" * 3_000_000}
    given = Message(role="tool", parts=[ToolResult("c", [image])])
    assert 50_000 < most_it_may_use(asked(given), answer_tokens=1).input_tokens < 50_500


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (ImagePart.from_bytes(bytes(3_000_000), "image/png"), 50_000),
        (ImagePart("https://example.org/a.png"), 50_000),
        (ImagePart(file_id="file-1"), 50_000),
        (FilePart("https://example.org/a.pdf"), 50_000),
        (FilePart(file_id="file-1"), 50_000),
        (FilePart.from_bytes(b"%PDF-1.7", "application/pdf"), 50_000),
        (FilePart.from_bytes(bytes(75_000), "application/pdf"), 100_000),
        (FilePart.from_bytes(bytes(3_000_000), "application/pdf"), 1_000_000),
        (FilePart(text="w" * 3_000), 3_000),
    ],
    ids=lambda part: getattr(part, "told", "")[:40],
)
def test_images_and_files_count_for_what_they_may_hold_wherever_that_is(part: Any, tokens: int) -> None:
    shown = Message(role="tool", parts=[ToolResult("c", [part.model_dump(mode="json")])])
    for given in (Message("user", ["Look", part]), shown):
        assert tokens <= most_it_may_use(asked(given), answer_tokens=1).input_tokens < tokens + 600


def test_json_of_a_tool_that_only_looks_like_a_file_is_text() -> None:
    listed = Message("tool", [ToolResult("c", [{"kind": "file", "name": "a.pdf", "url": "https://a.org"}])])
    assert most_it_may_use(asked(listed), answer_tokens=1).input_tokens < 500


@pytest.mark.parametrize(
    ("settings", "dearer"),
    [
        (ModelSettings(cache="5m"), False),
        (ModelSettings(cache="1h"), True),
        (ModelSettings(cache="24h"), True),
        (ModelSettings(extra={"cache_control": {"type": "ephemeral", "ttl": "1h"}}), True),
    ],
)
async def test_what_is_kept_for_an_hour_is_reserved_at_its_price(
    sqlite_url: str, settings: ModelSettings, dearer: bool
) -> None:
    class Claude(Priced):
        provider = "anthropic"

    # Some 10,000 tokens, which cost 0.0375 dollars to write for five minutes and 0.06 for an hour.
    app = App("t", budgets=[Budget("b", cost_usd="0.045")])
    model = Claude(name="claude-sonnet-4-5")

    @app.function(retries=0)
    async def ask(ctx: Context[None], step: Step) -> str:
        own = ModelSettings(max_tokens=60).merged(settings)
        return (await step.ai.infer("ask", model=model, messages="w" * 10_000, settings=own)).text

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask)
        if dearer:
            with pytest.raises(RunFailed, match="BudgetExceeded"):
                await run.result(5)
        else:
            await run.result(5)


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({}, 700),
        ({"max_tokens": 5}, 5),
        ({"thinking_tokens": 1_000}, 1_700),
        ({"max_tokens": 5, "extra": {"max_completion_tokens": 9}}, 9),
        ({"max_tokens": 5, "extra": {"n": 3}}, 15),
    ],
)
def test_an_answer_is_as_long_as_the_settings_allow(settings: dict[str, Any], tokens: int) -> None:
    request = asked(settings=ModelSettings.model_validate(settings))
    assert most_it_may_use(request, answer_tokens=700).output_tokens == tokens


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("1d", "2026-03-04T00:00", "2026-03-05T00:00"),
        ("1h", "2026-03-04T13:00", "2026-03-04T14:00"),
        ("7d", "2026-03-02T00:00", "2026-03-09T00:00"),
    ],
)
def test_periods_begin_with_days_hours_and_mondays_of_utc(period: str, start: str, end: str) -> None:
    now = datetime(2026, 3, 4, 13, 37, tzinfo=UTC)
    found = period_of(Budget("b", tokens=1, period=period), int(now.timestamp() * 1e6))
    told = [
        datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%dT%H:%M") for at in found if at is not None
    ]
    assert told == [start, end]
    assert period_of(Budget("b", tokens=1), 5) == (0, None)


@pytest.mark.parametrize(
    ("budgets", "told"),
    [
        ([Budget("a", tokens=5), Budget("a", cost_usd=5)], "two budgets 'a'"),
        ([Budget("a", tokens=5, provider="opnai")], "no provider of that name is known"),
        ([Budget("a", tokens=5, model="opnai:gpt")], "no provider of that name is known"),
        ([Budget("a", tokens=5, key="event.data.")], "key"),
        ([ModelRateLimit("function", tokens=5)], "is no Budget"),
        (Budget("a", tokens=5), "give a list of Budget"),
    ],
)
def test_budgets_that_make_no_sense_are_refused_where_the_app_is_made(budgets: Any, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        App("t", budgets=budgets)
