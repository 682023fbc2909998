"""`billing="recover"` and `"strict"`: a lost answer is found at the provider, or a person is asked, or it is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

# Imported here: it takes longer than the timeouts of these tests.
import genai_prices  # noqa: F401
import openai.resources.responses  # noqa: F401
import pytest
from pydantic import BaseModel

from agentflow import Agent, App, Approve, Context, Deny, Respond, Step
from agentflow.errors import ConfigurationError, InDoubt, RunFailed
from agentflow.models.clients import close_clients
from agentflow.models.ledger import Billing
from agentflow.models.protocol import Capabilities
from agentflow.testing import Harness, ScriptedModel, crash_after, harness
from agentflow.testing.provider_jobs import Job, Refusal
from agentflow.testing.provider_server import Cut, FakeProvider, HttpError, Stall, fake_provider
from tests.agents.support import steps_of
from tests.faults.support import read_rows

RESPONSES, CHAT, CLAUDE = "openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"


class City(BaseModel):
    name: str


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with fake_provider() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        await close_clients()


def asking(model: Any, billing: Billing, **options: Any) -> tuple[App, Any]:
    """An app with a function that asks the model once."""
    app = App("t")

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        response = await step.ai.infer("ask", model=model, messages=ctx.data, billing=billing, **options)
        return response.output.name if isinstance(response.output, City) else response.text

    return app, ask


async def ledger(url: str) -> list[tuple[str, int, str, str]]:
    """(key, attempt, state, billed) of every request, in order."""
    rows = await read_rows(
        url, "SELECT key, attempt, state, billed FROM agentflow_model_call ORDER BY started_at, attempt"
    )
    return [tuple(row) for row in rows]


async def the_approval(app: App) -> Any:
    [request] = (await app.approvals.list(status="pending")).data
    return request


async def requests_made(provider: FakeProvider, count: int) -> None:
    async with asyncio.timeout(30):
        while len(provider.requests) < count:
            await asyncio.sleep(0.01)


def paths(provider: FakeProvider) -> list[str]:
    return [f"{request.method} {request.path.removeprefix('/v1')}" for request in provider.requests]


# ------------------------------------------------------------------------------------------- in the background


async def test_a_job_is_polled_while_the_run_is_in_no_memory(
    provider: FakeProvider, database_url: str
) -> None:
    provider.add(Job("Found", queued=3))
    app, ask = asking(RESPONSES, "recover")
    async with harness(app, database_url=database_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await run.status() == "sleeping"
        assert await ledger(database_url) == [("ask", 0, "submitted", "possible")]
        await h.advance("1m")
        assert await run.result(5) == "Found"
    body = provider.requests[0].body
    assert (body["background"], body["store"]) == (True, True)
    assert body["metadata"] == {"agentflow_run": run.id, "agentflow_step": "ask", "agentflow_attempt": "0"}
    assert await ledger(database_url) == [("ask", 0, "done", "yes")]
    assert provider.generations == 1
    assert paths(provider).count("POST /responses") == 1
    assert len(paths(provider)) == 5


@pytest.mark.parametrize("billing", ["recover", "strict"])
async def test_a_crash_after_the_id_is_committed_costs_nothing(
    provider: FakeProvider, database_url: str, billing: Billing
) -> None:
    provider.add(Job("Found", queued=2))
    app, ask = asking(RESPONSES, billing)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        await h.crash()
        await h.restart()
        await h.advance("1m")
        assert await run.result(5) == "Found"
    assert provider.generations == 1
    assert await ledger(database_url) == [("ask", 0, "done", "yes")]


async def test_a_job_is_streamed_and_taken_up_where_its_stream_broke_off(
    provider: FakeProvider, sqlite_url: str
) -> None:
    text = "a long answer that is told in many pieces " * 5
    provider.add(Job(text, cuts=(0.4, 0.6)))
    app = App("t")
    agent = Agent("teller", model=RESPONSES, billing="recover")
    app.add(agent)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, "Tell")
        await h.idle()
        assert await run.result(5) == text
        told = [item async for item in run.stream() if item.kind in ("text.delta", "attempt.reset")]
    assert "".join(item.data for item in told) == text
    after = [request.query.get("starting_after") for request in provider.requests[1:]]
    assert provider.requests[0].body["stream"] is True
    assert after[0] is None
    numbers = [int(each[0]) for each in after if each]
    assert len(numbers) == 2
    assert 0 < numbers[0] < numbers[1]
    assert provider.generations == 1


async def test_another_worker_tells_the_stream_from_its_beginning_after_a_reset(
    provider: FakeProvider, sqlite_url: str
) -> None:
    text = "the whole of it " * 20
    provider.add(Job(text, queued=9, cuts=(0.8, 0)))
    app = App("t")
    agent = Agent("teller", model=RESPONSES, billing="recover")
    app.add(agent)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, "Tell")
        await h.idle()
        assert await run.status() == "sleeping"
        await h.crash()
        await h.restart()
        await h.advance("5m")
        assert await run.result(5) == text
        told = [item async for item in run.stream() if item.kind in ("text.delta", "attempt.reset")]
    [reset] = [index for index, item in enumerate(told) if item.kind == "attempt.reset"]
    assert 0 < len("".join(item.data for item in told[:reset])) < len(text)
    assert "".join(item.data for item in told[reset + 1 :]) == text
    assert provider.generations == 1


@pytest.mark.parametrize(("billing", "made"), [("recover", 2), ("strict", 1)])
async def test_a_crash_before_the_id_is_known_is_asked_again_or_put_before_a_person(
    provider: FakeProvider, database_url: str, billing: Billing, made: int
) -> None:
    provider.add(Job("first"), Job("second"))
    app, ask = asking(RESPONSES, billing)
    async with harness(app, database_url=database_url) as h:
        with crash_after("after_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("1m")
        assert provider.generations == made
        rows = await ledger(database_url)
        assert rows[0] == ("ask", 0, "in_doubt", "possible")
        if billing == "recover":
            assert await run.result(5) == "second"
            assert rows[1:] == [("ask", 1, "done", "yes")]
        else:
            assert await run.status() == "waiting"
            assert rows[1:] == []


async def test_a_job_that_is_stuck_past_the_timeout_is_cancelled_and_asked_for_again(
    provider: FakeProvider, database_url: str
) -> None:
    provider.add(Job("never", queued=None), Job("second"))
    app, ask = asking(RESPONSES, "recover", timeout="1m")
    async with harness(app, database_url=database_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("59s")
        assert not [path for path in paths(provider) if path.endswith("/cancel")]
        await h.advance("5m")
        assert await run.result(5) == "second"
    assert paths(provider).count("POST /responses/resp_stuck_1/cancel") == 1
    assert await ledger(database_url) == [("ask", 0, "in_doubt", "possible"), ("ask", 1, "done", "yes")]
    assert provider.generations == 1


async def test_a_stuck_job_that_is_streamed_is_given_up_in_time_as_well(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Job("never", queued=None))
    app, ask = asking(RESPONSES, "strict", timeout=4, stream=True)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("1m")
        assert await run.status() == "waiting"
        assert (await the_approval(app)).step_key == "ask/in-doubt"
    assert paths(provider).count("POST /responses/resp_stuck_1/cancel") == 1


@pytest.mark.parametrize("is_in_memory", [False, True])
async def test_cancelling_a_run_cancels_its_job(
    provider: FakeProvider, database_url: str, is_in_memory: bool
) -> None:
    provider.add(Job("never", queued=None))
    app, ask = asking(RESPONSES, "strict", stream=is_in_memory)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(ask, "Hi")
        if is_in_memory:
            await requests_made(provider, 2)
        else:
            await h.idle()
        await app.runs.cancel(run.id)
        await h.idle()
        assert await run.status() == "cancelled"
    assert paths(provider).count("POST /responses/resp_stuck_1/cancel") == 1
    assert await ledger(database_url) == [("ask", 0, "in_doubt", "possible")]


async def test_a_worker_that_dies_in_a_stream_leaves_the_job_alone(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Job("never", queued=None))
    app, ask = asking(RESPONSES, "strict", stream=True)
    async with harness(app, database_url=sqlite_url) as h:
        await h.start(ask, "Hi")
        await requests_made(provider, 2)
        await h.crash()
    assert not [path for path in paths(provider) if path.endswith("/cancel")]
    assert await ledger(sqlite_url) == [("ask", 0, "submitted", "possible")]


@pytest.mark.parametrize("billing", ["recover", "strict"])
async def test_a_job_that_the_provider_has_forgotten_is_in_doubt(
    provider: FakeProvider, sqlite_url: str, billing: Billing
) -> None:
    provider.add(Job("forgotten"), Job("second"))
    app, ask = asking(RESPONSES, billing)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        provider.shelf.responses.clear()
        await h.advance("1m")
        if billing == "recover":
            assert await run.result(5) == "second"
        else:
            assert (await the_approval(app)).step_key == "ask/in-doubt"
            assert provider.generations == 1


async def test_a_worker_that_stops_leaves_the_job_to_the_next_one(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Job("Found", queued=2))
    app, ask = asking(RESPONSES, "strict")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        await h.stop()
        await h.restart()
        await h.advance("1m")
        assert await run.result(5) == "Found"
    assert not [path for path in paths(provider) if path.endswith("/cancel")]


async def test_a_job_that_has_failed_is_a_failure_that_may_be_billed(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Job("no", fails=True), Job("second"))
    app, ask = asking(RESPONSES, "recover")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("1m")
        assert await run.result(5) == "second"
        [step] = [step for step in (await app.runs.steps(run.id)).data if step.key == "ask"]
        assert step.attempts == 2
    assert [row[2] for row in await ledger(sqlite_url)] == ["in_doubt", "done"]


async def test_a_provider_that_is_away_for_a_while_is_asked_for_the_job_again(
    provider: FakeProvider, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.add(Job("Found", queued=0))
    app, ask = asking(RESPONSES, "strict")
    look, failures = provider.shelf.look, 3

    def fail(id: str) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise Refusal(503, "away")
        return look(id)

    monkeypatch.setattr(provider.shelf, "look", fail)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("2m")
        assert await run.result(5) == "Found"
    assert provider.generations == 1


# --------------------------------------------------------------------------------------- completions that are kept


@pytest.mark.parametrize("billing", ["recover", "strict"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_lost_completion_is_found_by_its_metadata(
    provider: FakeProvider, database_url: str, billing: Billing, stream: bool
) -> None:
    provider.add("Found")
    provider.shelf.hidden_looks = 3
    app, ask = asking(CHAT, billing, stream=stream)
    async with harness(app, database_url=database_url) as h:
        with crash_after("after_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("30s")
        assert await run.result(5) == "Found"
    assert provider.generations == 1
    assert await ledger(database_url) == [("ask", 0, "done", "yes")]
    body = provider.requests[0].body
    assert body["store"] is True
    assert body["metadata"]["agentflow_run"] == run.id
    assert paths(provider).count("GET /chat/completions") == 4


@pytest.mark.parametrize("billing", ["recover", "strict"])
async def test_a_completion_that_was_never_made_is_looked_for_during_the_grace(
    provider: FakeProvider, sqlite_url: str, billing: Billing
) -> None:
    provider.add("asked again")
    app, ask = asking(CHAT, billing)
    async with harness(app, database_url=sqlite_url) as h:
        with crash_after("before_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("29s")
        assert provider.generations == 0
        assert paths(provider).count("GET /chat/completions") >= 4
        await h.advance("1s")
        if billing == "recover":
            assert await run.result(5) == "asked again"
        else:
            assert await run.status() == "waiting"
            assert provider.generations == 0


async def test_an_answer_whose_connection_broke_is_found_and_not_asked_for_again(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Cut("Found", after=0))
    provider.shelf.hidden_looks = 1
    app, ask = asking(CHAT, "recover", retry=0)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("10s")
        assert await run.result(5) == "Found"
    assert provider.generations == 1
    assert await ledger(sqlite_url) == [("ask", 0, "done", "yes")]


async def test_what_is_not_found_is_a_failed_attempt_of_the_step(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(HttpError(500, should_retry=False), HttpError(500), "third time")
    app, ask = asking(CHAT, "recover", retry=1)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("5m")
        with pytest.raises(RunFailed):
            await run.result(5)
    assert provider.remaining == 2  # the first one is not to be retried

    provider.add("fourth")
    app, ask = asking(CHAT, "recover", retry=1)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("5m")
        assert await run.result(5) == "third time"
        [step] = [step for step in (await app.runs.steps(run.id)).data if step.key == "ask"]
        assert step.attempts == 2
    assert provider.remaining == 1
    assert [row[2:] for row in await ledger(sqlite_url)][-2:] == [("failed", "possible"), ("done", "yes")]


# ------------------------------------------------------------------------------------------------- a person decides


async def in_doubt(h: Harness, ask: Any) -> Any:
    """A run whose model call is in doubt."""
    with crash_after("after_request"):
        run = await h.start(ask, "Hi")
        await h.idle()
    await h.restart()
    await h.advance("1m")
    assert await run.status() == "waiting"
    return run


async def test_anthropics_recover_asks_again_and_says_so(provider: FakeProvider, database_url: str) -> None:
    provider.add("lost", "second")
    app, ask = asking(CLAUDE, "recover")
    async with harness(app, database_url=database_url) as h:
        with crash_after("after_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.idle()
        assert await run.result(5) == "second"
    assert await ledger(database_url) == [("ask", 0, "in_doubt", "possible"), ("ask", 1, "done", "yes")]


@pytest.mark.parametrize("model", [RESPONSES, CHAT, CLAUDE])
async def test_a_person_lets_it_be_asked_again(provider: FakeProvider, database_url: str, model: str) -> None:
    provider.add("lost", "second")
    provider.shelf.hidden_looks = 1_000
    app, ask = asking(model, "strict")
    async with harness(app, database_url=database_url) as h:
        run = await in_doubt(h, ask)
        assert provider.generations == 1
        request = await the_approval(app)
        assert model in request.title
        assert request.run_id == run.id
        await app.approvals.decide(request.id, Approve(), by="ana", args_digest=request.args_digest)
        await h.advance("1m")
        assert await run.result(5) == "second"
        steps = await steps_of(app, run.id)
    assert {key: step.status for key, step in steps.items()} == {
        "ask": "failed",
        "ask/in-doubt": "completed",
        "ask/again": "completed",
    }
    assert await ledger(database_url) == [("ask", 0, "in_doubt", "possible"), ("ask/again", 0, "done", "yes")]


async def test_a_person_gives_it_up(provider: FakeProvider, database_url: str) -> None:
    provider.add("lost")
    app, ask = asking(CLAUDE, "strict")
    async with harness(app, database_url=database_url) as h:
        run = await in_doubt(h, ask)
        await app.approvals.decide((await the_approval(app)).id, Deny("not worth it"), by="ana")
        await h.idle()
        with pytest.raises(RunFailed, match="not worth it") as raised:
            await run.result(5)
    assert raised.value.error.name == "InDoubt"
    assert raised.value.error.step_id == "ask"
    assert provider.generations == 1


async def test_a_timeout_of_the_last_attempt_is_put_before_a_person_too(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Stall(reply="never heard"))
    app, ask = asking(CLAUDE, "strict", timeout=4, retry=0)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await run.status() == "waiting"
        request = await the_approval(app)
        assert request.step_key == "ask/in-doubt"
    assert await ledger(sqlite_url) == [("ask", 0, "in_doubt", "possible")]


async def test_a_job_that_has_lost_a_race_is_cancelled(provider: FakeProvider, sqlite_url: str) -> None:
    provider.add(Job("never", queued=None))
    app = App("t")

    async def once_the_job_is_there() -> str:
        await requests_made(provider, 2)
        return "faster"

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        async def slow(step: Step) -> str:
            asking = step.ai.infer("ask", model=RESPONSES, messages="Hi", billing="strict", stream=True)
            return (await asking).text

        async def fast(step: Step) -> str:
            return await step.run("wait", once_the_job_is_there)

        name, value = await step.race("first", slow=slow, fast=fast)
        return f"{name}: {value}"

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await run.result(5) == "fast: faster"
        await h.idle()
    assert "POST /responses/resp_stuck_1/cancel" in paths(provider)
    assert [row[2:] for row in await ledger(sqlite_url)] == [("in_doubt", "possible")]


async def test_nobody_decides_in_time(provider: FakeProvider, sqlite_url: str) -> None:
    provider.add("lost")
    app, ask = asking(CLAUDE, "strict")
    async with harness(app, database_url=sqlite_url) as h:
        run = await in_doubt(h, ask)
        await h.advance("3d")
        with pytest.raises(RunFailed, match="nobody decided in time"):
            await run.result(5)
    assert provider.generations == 1


@pytest.mark.parametrize(("output", "answer"), [(str, "Nice"), (City, {"name": "Nice"})])
async def test_a_person_gives_the_answer(
    provider: FakeProvider, database_url: str, output: Any, answer: Any
) -> None:
    provider.add("lost")
    app, ask = asking(CLAUDE, "strict", output=output)
    async with harness(app, database_url=database_url, replay_every_step=True) as h:
        run = await in_doubt(h, ask)
        await app.approvals.decide((await the_approval(app)).id, Respond(answer), by="ana")
        await h.idle()
        assert await run.result(5) == "Nice"
        usage = await app.usage(run=run.id)
    assert provider.generations == 1
    assert usage.calls == 1


async def test_the_call_that_was_asked_again_can_be_lost_too(provider: FakeProvider, sqlite_url: str) -> None:
    provider.add("lost", "lost again", "third")
    app, ask = asking(CLAUDE, "strict")
    async with harness(app, database_url=sqlite_url) as h:
        run = await in_doubt(h, ask)
        with crash_after("after_request"):
            await app.approvals.decide((await the_approval(app)).id, Approve(), by="ana")
            await h.idle()
        await h.restart()
        await h.idle()
        request = await the_approval(app)
        assert request.step_key == "ask/in-doubt:1"
        await app.approvals.decide(request.id, Approve(), by="ben")
        await h.idle()
        assert await run.result(5) == "third"


async def test_an_agent_waits_for_a_person_and_goes_on(provider: FakeProvider, sqlite_url: str) -> None:
    provider.add("lost")
    app = App("t")
    agent = Agent("clerk", model=CLAUDE, billing="strict")
    app.add(agent)
    async with harness(app, database_url=sqlite_url) as h:
        run = await in_doubt(h, agent)
        request = await the_approval(app)
        assert request.step_key == "clerk#0/turn0/model/in-doubt"
        await app.approvals.decide(request.id, Respond("by hand"), by="ana")
        await h.idle()
        assert await run.result(5) == "by hand"


async def test_calls_of_one_name_at_once_have_questions_of_their_own(
    provider: FakeProvider, sqlite_url: str
) -> None:
    app = App("t")

    @app.function
    async def ask(ctx: Context[str], step: Step) -> list[str]:
        calls = [step.ai.infer("ask", model=CLAUDE, messages=text, billing="strict") for text in ("a", "b")]
        return [answer.text for answer in await asyncio.gather(*calls)]

    provider.add(HttpError(500), HttpError(500))
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "")
        await h.idle()
        requests = (await app.approvals.list(status="pending")).data
        assert len({request.step_key for request in requests}) == 2
        for request in requests:
            await app.approvals.decide(request.id, Respond(request.details["what happened"]), by="ana")
        await h.idle()
        first, second = await run.result(5)
    assert "'ask'" in first or "'ask@" in first
    assert first != second


# ------------------------------------------------------------------------------------------- where it cannot hold


@pytest.mark.parametrize("billing", ["recover", "strict"])
@pytest.mark.parametrize(
    ("model", "refused"), [(RESPONSES, "background"), (RESPONSES, "store"), (CHAT, "store")]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_refuses_what_it_needs_is_a_configuration_error(
    provider: FakeProvider, sqlite_url: str, billing: Billing, model: str, refused: str, stream: bool
) -> None:
    provider.refuses = {refused}
    app, ask = asking(model, billing, stream=stream)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        with pytest.raises(RunFailed, match=refused) as raised:
            await run.result(5)
    assert raised.value.error.name == "ConfigurationError"
    assert provider.base_url in raised.value.error.message
    assert len(provider.requests) == 1
    assert await ledger(sqlite_url) == [("ask", 0, "not_billed", "no")]


@pytest.mark.parametrize("billing", ["recover", "strict"])
async def test_a_server_that_lists_nothing_is_found_out_when_it_matters(
    provider: FakeProvider, sqlite_url: str, billing: Billing
) -> None:
    provider.add("lost")
    provider.refuses = {"list"}
    app, ask = asking(CHAT, billing)
    async with harness(app, database_url=sqlite_url) as h:
        with crash_after("after_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("1m")
        if billing == "strict":
            assert await run.status() == "waiting"
        else:
            with pytest.raises(RunFailed, match="does not list") as raised:
                await run.result(5)
            assert raised.value.error.name == "ConfigurationError"
    assert provider.generations == 1
    assert await ledger(sqlite_url) == [("ask", 0, "in_doubt", "possible")]


class Forgetful(ScriptedModel):
    """A model of a provider that keeps nothing and says nothing about asking again."""

    capabilities = Capabilities()


async def test_a_provider_that_finds_nothing_cannot_recover_and_can_be_strict(sqlite_url: str) -> None:
    app, ask = asking(Forgetful(["never"]), "recover")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        with pytest.raises(RunFailed, match="cannot hold") as raised:
            await run.result(5)
        assert raised.value.error.name == "ConfigurationError"
    assert await ledger(sqlite_url) == []
    app, ask = asking(Forgetful(["once"]), "strict")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await run.result(5) == "once"


async def test_a_scripted_model_stands_in_under_any_way_of_billing(sqlite_url: str) -> None:
    app, ask = asking(RESPONSES, "recover")
    async with harness(app, database_url=sqlite_url, model=ScriptedModel(["scripted"])) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await run.result(5) == "scripted"


def test_a_way_of_billing_that_there_is_not() -> None:
    with pytest.raises(ConfigurationError, match="never"):
        Agent("a", model=RESPONSES, billing="never")  # type: ignore[arg-type]


async def test_a_doubt_can_be_caught(provider: FakeProvider, sqlite_url: str) -> None:
    provider.add("lost")
    app = App("t")

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        try:
            return (await step.ai.infer("ask", model=CLAUDE, messages="Hi", billing="strict")).text
        except InDoubt as error:
            return f"{error.model}: given up"

    async with harness(app, database_url=sqlite_url) as h:
        run = await in_doubt(h, ask)
        await app.approvals.decide((await the_approval(app)).id, Deny(), by="ana")
        await h.idle()
        assert await run.result(5) == f"{CLAUDE}: given up"


async def test_no_key_is_a_configuration_error_that_is_no_doubt(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    app, ask = asking(RESPONSES, "strict")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        with pytest.raises(RunFailed, match="OPENAI_API_KEY"):
            await run.result(5)
    assert await ledger(sqlite_url) == [("ask", 0, "not_billed", "no")]
