"""`step.ai.infer`: the raw answer is the memo, the ledger knows every request, nothing paid is asked for twice."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from agentflow import App, Context, ModelRequest, ModelResponse, Step, Usage, tool
from agentflow.errors import ConfigurationError, OutputInvalid, ProviderError, RateLimited, RunFailed
from agentflow.inference import check_billing
from agentflow.models.response import RawAnswer
from agentflow.runs import RunStatus
from agentflow.testing import FunctionModel, ScriptedModel, harness
from tests.agents.support import call, steps_of


class City(BaseModel):
    name: str
    people: int


def ledger(url: str) -> list[tuple[Any, ...]]:
    """(attempt, model, state, billed, has ended) of every request, in their order."""
    database = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        return database.execute(
            "SELECT attempt, model, state, billed, ended_at IS NOT NULL FROM agentflow_model_call ORDER BY attempt"
        ).fetchall()
    finally:
        database.close()


async def test_the_memo_is_the_raw_answer_and_replay_reads_it_again(sqlite_url: str) -> None:
    app, seen = App("t"), []
    model = ScriptedModel(
        [
            ModelResponse(
                text='{"name": "Nice", "people": 3}', usage=Usage(input_tokens=7), cost=Decimal("0.1")
            )
        ]
    )

    @app.function
    async def ask(ctx: Context[str], step: Step) -> int:
        response = await step.ai.infer("city", model=model, messages=ctx.data, output=City)
        seen.append(response)
        await step.sleep("nap", "1h")
        return int(response.output.people)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Where?")
        await h.advance("1h")
        assert await run.result(5) == 3
        memo = (await steps_of(app, run.id))["city"].output
        usage = await app.usage(run=run.id)
    first, replayed = seen
    assert first == replayed
    assert (first.output, first.cost, first.usage.input_tokens) == (
        City(name="Nice", people=3),
        Decimal("0.1"),
        7,
    )
    assert (memo["model"], memo["raw"]) == ("scripted:scripted", first.raw)
    assert len(model.requests) == 1
    assert ledger(sqlite_url) == [(0, "scripted", "done", "yes", 1)]
    assert (usage.calls, usage.cost) == (1, Decimal("0.1"))


class Counting(FunctionModel):
    """Counts how often an answer is parsed; `raw` is put into it."""

    def __init__(self, raw: dict[str, Any]) -> None:
        super().__init__(lambda _: "Hello", name="counting")
        self.parsed: list[dict[str, Any]] = []
        self._raw_besides = raw

    async def request(self, request: ModelRequest) -> RawAnswer:
        answer = await super().request(request)
        return answer.model_copy(update={"raw": answer.raw | self._raw_besides})

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        self.parsed.append(raw)
        told = {name: value for name, value in raw.items() if name not in self._raw_besides}
        return super().parse(told).model_copy(update={"text": repr(raw.get("beside")), "raw": raw})


@pytest.mark.parametrize(("beside", "times"), [(["a", "list"], 1), (("a", "tuple"), 2)])
async def test_who_has_just_asked_parses_an_answer_once_and_sees_what_is_stored(
    sqlite_url: str, beside: Any, times: int
) -> None:
    """What JSON changes is parsed again, as it is stored: replay must not show the code what it did not see before."""
    app, seen = App("t"), []
    model = Counting({"beside": beside})

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        seen.append(await step.ai.infer("ask", model=model, messages=ctx.data))
        if len(seen) == 1:
            assert len(model.parsed) == times
        await step.sleep("nap", "1h")
        return seen[-1].text

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Well?")
        await h.advance("1h")
        assert await run.result(5) == repr(list(beside))
    first, replayed = seen
    assert first == replayed
    assert len(model.parsed) == times + 1


async def test_an_answer_that_does_not_validate_is_raised_and_never_asked_again(sqlite_url: str) -> None:
    app, seen = App("t"), []
    model = ScriptedModel(["no city"])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        try:
            await step.ai.infer("city", model=model, messages="Where?", output=City)
        except OutputInvalid as error:
            seen.append(error.response.text if error.response else None)
        await step.sleep("nap", "1h")
        return "went on"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask)
        await h.advance("1h")
        assert await run.result(5) == "went on"
        assert (await steps_of(app, run.id))["city"].status == "completed"
    assert seen == ["no city", "no city"]
    assert ledger(sqlite_url) == [(0, "scripted", "done", "yes", 1)]


async def test_a_refusal_is_an_answer(sqlite_url: str) -> None:
    app = App("t")
    model = ScriptedModel([ModelResponse(text="No.", finish_reason="refusal")])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        response = await step.ai.infer("city", model=model, messages="Where?", output=City)
        return f"{response.finish_reason}: {response.text}"

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(ask)).result(5) == "refusal: No."


async def test_the_row_is_in_the_ledger_before_the_request_leaves(sqlite_url: str) -> None:
    app, rows = App("t"), []

    def look(request: ModelRequest) -> str:
        rows.extend(ledger(sqlite_url))
        return "yes"

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        return (await step.ai.infer("a", model=ScriptedModel([look]), messages="Well?")).text

    async with harness(app, database_url=sqlite_url) as h:
        assert await (await h.start(ask)).result(5) == "yes"
    assert rows == [(0, "scripted", "attempted", "possible", 0)]


async def test_retry_after_of_a_provider_is_kept_and_each_request_has_its_row(sqlite_url: str) -> None:
    app = App("t")
    limited = RateLimited("slow down", status=429, retriable=True, retry_after=600.0)
    broken = ProviderError("cut off", billed="possible", retriable=True)
    model = ScriptedModel([limited, broken, "there"])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        return (await step.ai.infer("a", model=model, messages="Well?")).text

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask)
        await h.advance("9m59s")
        assert (await run.status(), len(model.requests)) == (RunStatus.SLEEPING, 1)
        await h.advance("1m")
        assert await run.result(5) == "there"
        usage = await app.usage(run=run.id)
    assert ledger(sqlite_url) == [
        (0, "scripted", "not_billed", "no", 1),
        (1, "scripted", "in_doubt", "possible", 1),
        (2, "scripted", "done", "yes", 1),
    ]
    assert (usage.billed, usage.possibly_billed) == (1, 1)


async def test_after_a_crash_the_lost_call_is_in_doubt_and_asked_again_under_its_own_number(
    sqlite_url: str,
) -> None:
    app, reached = App("t"), asyncio.Semaphore(0)

    async def hang(request: ModelRequest) -> str:
        reached.release()
        await asyncio.Event().wait()  # the worker dies in here
        raise AssertionError

    model = ScriptedModel([hang, hang, RateLimited("slow", status=429, retriable=True), "there"])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        return (await step.ai.infer("a", model=model, messages="Well?")).text

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask)
        for _ in range(2):
            await reached.acquire()
            await h.crash()
            await h.restart()
        await h.advance("1h")
        assert await run.result(5) == "there"
    assert ledger(sqlite_url) == [
        (0, "scripted", "in_doubt", "possible", 1),
        (1, "scripted", "in_doubt", "possible", 1),
        (2, "scripted", "not_billed", "no", 1),
        (3, "scripted", "done", "yes", 1),
    ]


async def test_a_timeout_leaves_the_call_in_doubt(sqlite_url: str) -> None:
    app = App("t")

    async def hang(request: ModelRequest) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        response = await step.ai.infer(
            "a", model=ScriptedModel([hang]), messages="Well?", timeout=0.05, retry=0
        )
        return response.text

    async with harness(app, database_url=sqlite_url) as h:
        with pytest.raises(RunFailed, match="took longer"):
            await (await h.start(ask)).result(5)
    assert ledger(sqlite_url) == [(0, "scripted", "in_doubt", "possible", 1)]


@pytest.mark.parametrize(
    ("error", "answer", "states"),
    [
        (RateLimited("slow", status=429, retriable=True), "second", ["not_billed", "done"]),
        (ProviderError("bad request", status=400), "second", ["not_billed", "done"]),
        (ProviderError("cut off", billed="possible"), "ProviderError", ["in_doubt"]),
        (ProviderError("no key"), "ProviderError", ["not_billed"]),
    ],
)
async def test_a_fallback_is_asked_only_after_a_failure_that_was_not_billed(
    sqlite_url: str, error: ProviderError, answer: str, states: list[str]
) -> None:
    app, seen = App("t"), []
    one, two = ScriptedModel([error], name="one"), ScriptedModel(["second"], name="two")

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        try:
            seen.append((await step.ai.infer("a", model=one, messages="Well?", fallback=[two])).text)
        except ProviderError as failed:
            seen.append(type(failed).__name__)
        await step.sleep("nap", "1h")
        return str(seen[-1])

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask)
        await h.advance("1h")
        assert await run.result(5) == answer
    assert seen == [answer, answer]
    assert [state for _, _, state, _, _ in ledger(sqlite_url)] == states


async def test_a_conversation_that_cannot_be_answered_never_leaves(sqlite_url: str) -> None:
    app, model = App("t"), ScriptedModel(["never"])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> None:
        await step.ai.infer("a", model=model, messages=[{"role": "assistant", "content": "I begin."}])

    async with harness(app, database_url=sqlite_url) as h:
        with pytest.raises(RunFailed, match=r"InvalidInput.*begins with the user"):
            await (await h.start(ask)).result(5)
    assert (model.requests, ledger(sqlite_url)) == ([], [])


async def test_a_request_that_changed_since_is_a_mismatch_in_strict_mode_and_a_warning_otherwise(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, numbers = App("t"), itertools.count()

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        response = await step.ai.infer("a", model=ScriptedModel(["there"]), messages=f"{next(numbers)}")
        await step.sleep("nap", "1h")
        return response.text

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask)
        await h.advance("1h")
        assert "'a' would ask something else" in str((await app.runs.get(run.id)).reason)
    async with harness(app, database_url=sqlite_url, strict_replay=False) as h:
        await h.advance("2h")
        assert await app.runs.handle(run.id).result(5) == "there"
    assert "'a' would ask something else" in caplog.text


async def test_an_answer_that_a_database_cannot_keep_as_it_is_is_kept_all_the_same(sqlite_url: str) -> None:
    app, seen = App("t"), []

    @app.function
    async def ask(ctx: Context[None], step: Step) -> int:
        response = await step.ai.infer(
            "a", model=ScriptedModel(["NUL \x00 inside"]), messages="?", stream=True
        )
        seen.append(response.text)
        await step.sleep("nap", "1h")
        return len(response.text)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask)
        await h.advance("1h")
        assert await run.result(5) == len("NUL \x00 inside")
    assert seen == ["NUL \x00 inside"] * 2


async def test_a_stream_tells_text_and_tool_calls_while_they_come(sqlite_url: str) -> None:
    app = App("t")

    @tool
    def find(city: str) -> None:
        """Find a city."""

    model = ScriptedModel([["Looking for the city of Nice.", call("find", city="Nice")]])

    @app.function
    async def ask(ctx: Context[None], step: Step) -> Any:
        response = await step.ai.infer("a", model=model, messages="?", tools=[find], stream=True)
        return response.tool_calls[0].args

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask)
        assert await run.result(5) == {"city": "Nice"}
        items = [item async for item in run.stream()]
    told: dict[str, str] = {}
    for item in items:
        assert (item.kind, item.attempt) == (item.kind, 0)  # of the step's end too
        if item.kind.endswith(".delta"):
            assert item.step_key == "a"
            told[item.kind] = told.get(item.kind, "") + item.data
    assert told["text.delta"] == "Looking for the city of Nice."
    assert json.loads(told["tool_args.delta"]) == {"city": "Nice"}
    assert [item.data for item in items if item.kind == "tool_call"] == [{"index": 0, "name": "find"}]
    assert model.requests[0].tools[0].description == "Find a city."


def test_a_way_of_billing_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="billing='never'"):
        check_billing("never")  # type: ignore[arg-type]
