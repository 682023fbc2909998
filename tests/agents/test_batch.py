"""`ModelSettings(latency=)`: answers that come later for less, and what becomes of them when something fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

# Imported here: it takes longer than the timeouts of these tests.
import genai_prices  # noqa: F401
import openai.resources.responses  # noqa: F401
import pytest

from agentflow import Agent, App, Approve, Context, Deny, ModelSettings, Step, tool
from agentflow.errors import ConfigurationError, RunFailed
from agentflow.models.clients import close_clients
from agentflow.models.pricing import cost_of
from agentflow.models.response import Latency, Usage
from agentflow.testing import ScriptedModel, crash_after, harness
from agentflow.testing.provider_batches import Asked
from agentflow.testing.provider_jobs import Job, Refusal
from agentflow.testing.provider_server import Cut, FakeProvider, HttpError, fake_provider
from agentflow.testing.wire import openai_responses
from tests.agents.support import call, steps_of
from tests.faults.support import read_rows

RESPONSES, CHAT, CLAUDE = "openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"
MODELS = [RESPONSES, CHAT, CLAUDE]
PLACES = [*[("sqlite", model) for model in MODELS], ("postgres", CHAT)]
"""The APIs differ among themselves, and the databases; not each in each."""
BATCH = ModelSettings(latency="batch")


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with fake_provider() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        await close_clients()


def asking(model: Any, settings: ModelSettings | None = BATCH, **options: Any) -> tuple[App, Any]:
    """An app with a function that asks the model once."""
    app = App("t")

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        response = await step.ai.infer("ask", model=model, messages=ctx.data, settings=settings, **options)
        return response.text

    return app, ask


async def ledger(url: str) -> list[tuple[Any, ...]]:
    """(key, attempt, state, billed, latency) of every request, in order."""
    rows = await read_rows(
        url,
        "SELECT key, attempt, state, billed, latency FROM agentflow_model_call ORDER BY started_at, attempt",
    )
    return [tuple(row) for row in rows]


async def the_approval(app: App) -> Any:
    [request] = (await app.approvals.list(status="pending")).data
    return request


def paths(provider: FakeProvider) -> list[str]:
    return [f"{request.method} {request.path.removeprefix('/v1')}" for request in provider.requests]


def batches_begun(provider: FakeProvider) -> int:
    return sum(path in ("POST /batches", "POST /messages/batches") for path in paths(provider))


def cancelled(provider: FakeProvider) -> list[str]:
    return [path.split("/")[-2] for path in paths(provider) if path.endswith("/cancel")]


# ------------------------------------------------------------------------------------------------------- the way


@pytest.mark.parametrize(("database_url", "model"), PLACES, indirect=["database_url"])
async def test_a_batch_is_waited_for_in_no_memory_and_costs_half(
    provider: FakeProvider, database_url: str, model: str
) -> None:
    provider.add(Job("Found", queued=12))
    app, ask = asking(model)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await run.status() == "sleeping"
        assert await ledger(database_url) == [("ask", 0, "submitted", "possible", "batch")]
        begun = len(provider.requests)
        await h.advance("10m")
        assert len(provider.requests) - begun == 7  # after 30 seconds, and ever more seldom
        await h.advance("20m")
        assert len(provider.requests) - begun == 11  # every five minutes at last
        assert await run.status() == "sleeping"
        await h.advance("30m")
        assert await run.result(5) == "Found"
    assert await ledger(database_url) == [("ask", 0, "done", "yes", "batch")]
    assert (provider.generations, batches_begun(provider)) == (1, 1)
    [row] = await read_rows(
        database_url,
        "SELECT input_tokens, output_tokens, cost, price_version, provider_id FROM agentflow_model_call",
    )
    usage = Usage(input_tokens=row[0], output_tokens=row[1])
    standard = cost_of(*model.split(":"), usage)
    assert standard
    assert Decimal(row[2]) == standard / 2
    assert row[3].endswith(", batch")
    assert row[4] in provider.batches.batches


@pytest.mark.parametrize("model", MODELS)
async def test_a_batch_has_one_request_that_is_named_by_the_call(
    provider: FakeProvider, sqlite_url: str, model: str
) -> None:
    provider.add("Found")
    app, ask = asking(model)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("1m")
        await run.result(5)
    [batch] = provider.batches.batches.values()
    [asked] = batch.asked
    assert asked.custom_id.startswith("agentflow-")
    assert len(asked.custom_id) <= 64
    if model == CLAUDE:
        return
    assert batch.told["metadata"] == {
        "agentflow_run": run.id,
        "agentflow_step": "ask",
        "agentflow_attempt": "0",
    }
    endpoint = "/v1/responses" if model == RESPONSES else "/v1/chat/completions"
    assert batch.told["endpoint"] == endpoint
    line = json.loads(provider.batches.files[batch.told["input_file_id"]])
    assert (line["method"], line["url"], line["custom_id"]) == ("POST", endpoint, asked.custom_id)
    assert not {"stream", "background", "latency"} & line["body"].keys()


async def test_an_agent_works_by_a_batch_for_each_turn(provider: FakeProvider, sqlite_url: str) -> None:
    provider.add([call("look_up", order_id="7")], "It is on its way.")
    app = App("t")

    @tool
    async def look_up(order_id: str) -> str:
        return f"order {order_id}: sent"

    agent = Agent("clerk", model=CLAUDE, tools=[look_up], settings=BATCH)
    app.add(agent)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, "Where is order 7?")
        await h.advance("2m")
        assert await run.result(5) == "It is on its way."
        assert "clerk#0/turn0/0:look_up" in await steps_of(app, run.id)
    assert (provider.generations, batches_begun(provider)) == (2, 2)
    assert [row[2:] for row in await ledger(sqlite_url)] == [("done", "yes", "batch")] * 2


@pytest.mark.parametrize(("window", "share"), [("2h", Decimal("0.7")), ("8h", Decimal("0.6"))])
async def test_a_completion_window_is_passed_on_and_priced(
    provider: FakeProvider, sqlite_url: str, window: Latency, share: Decimal
) -> None:
    provider.add(Job("Found", queued=3))
    app, ask = asking(RESPONSES, ModelSettings(latency=window))
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await ledger(sqlite_url) == [("ask", 0, "submitted", "possible", window)]
        await h.advance("10m")
        assert await run.result(5) == "Found"
    body = provider.requests[0].body
    assert body["background_options"] == {"completion_window": window}
    assert (body["background"], body["store"], "stream" in body) == (True, True, False)
    assert await ledger(sqlite_url) == [("ask", 0, "done", "yes", window)]
    [(cost, used, made)] = await read_rows(
        sqlite_url, "SELECT cost, input_tokens, output_tokens FROM agentflow_model_call"
    )
    standard = cost_of("openai", "gpt-5-mini", Usage(input_tokens=used, output_tokens=made))
    assert standard
    assert Decimal(cost) == standard * share


def test_prices_of_batches_are_the_tables_and_half_where_it_has_none() -> None:
    usage = Usage(input_tokens=1_000_000, cached_tokens=500_000, output_tokens=100_000)
    # The table's own: a batch of this model has no discount for what was cached.
    assert cost_of("openai", "gpt-4o", usage, latency="batch") == Decimal("1.75")
    standard = cost_of("anthropic", "claude-3-haiku-20240307", usage)
    assert standard
    assert cost_of("anthropic", "claude-3-haiku-20240307", usage, latency="batch") == standard / 2
    assert cost_of("openai", "nobody-knows-it", usage, latency="batch") is None


# ------------------------------------------------------------------------------------------------------- crashes


@pytest.mark.parametrize(("database_url", "model"), PLACES, indirect=["database_url"])
async def test_a_crash_after_the_id_is_committed_costs_nothing(
    provider: FakeProvider, database_url: str, model: str
) -> None:
    provider.add(Job("Found", queued=2))
    app, ask = asking(model)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        await h.crash()
        await h.restart()
        await h.advance("10m")
        assert await run.result(5) == "Found"
    assert (provider.generations, batches_begun(provider)) == (1, 1)
    assert await ledger(database_url) == [("ask", 0, "done", "yes", "batch")]


@pytest.mark.parametrize(("database_url", "model"), PLACES, indirect=["database_url"])
async def test_a_batch_whose_id_was_lost_in_a_crash_is_found_again(
    provider: FakeProvider, database_url: str, model: str
) -> None:
    provider.add(Job("Found", queued=8))
    provider.batches.hidden_looks = 1
    app, ask = asking(model)
    async with harness(app, database_url=database_url) as h:
        with crash_after("after_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("1h")
        assert await run.result(5) == "Found"
        assert not (await app.approvals.list(status="pending")).data
    assert (provider.generations, batches_begun(provider)) == (1, 1)
    assert await ledger(database_url) == [("ask", 0, "done", "yes", "batch")]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("fault", [Cut("Found", after=0), HttpError(500)])
async def test_a_batch_that_was_not_confirmed_is_looked_for_and_never_begun_again_silently(
    provider: FakeProvider, sqlite_url: str, model: str, fault: Any
) -> None:
    provider.add(fault, "asked again")
    app, ask = asking(model, retry=3)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("10m")
        if isinstance(fault, Cut):
            assert await run.result(5) == "Found"
        else:
            assert (await the_approval(app)).step_key == "ask/in-doubt"
            assert provider.generations == 0
    assert batches_begun(provider) == 1


async def test_a_batch_that_is_found_again_stands_in_the_ledger_as_submitted(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Cut(Job("Found", queued=3), after=0))  # type: ignore[arg-type]  # a job is a reply of its own
    app, ask = asking(CHAT)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await ledger(sqlite_url) == [("ask", 0, "submitted", "possible", "batch")]
        await app.runs.cancel(run.id)
        await h.idle()
    assert cancelled(provider) == list(provider.batches.batches)


@pytest.mark.parametrize(("database_url", "model"), PLACES, indirect=["database_url"])
async def test_a_batch_that_is_not_found_is_put_before_a_person(
    provider: FakeProvider, database_url: str, model: str
) -> None:
    provider.add("asked again")
    app, ask = asking(model)
    async with harness(app, database_url=database_url) as h:
        with crash_after("before_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("29s")
        assert not (await app.approvals.list(status="pending")).data
        await h.advance("1m")
        assert provider.generations == 0
        assert await ledger(database_url) == [("ask", 0, "in_doubt", "possible", "batch")]
        request = await the_approval(app)
        await app.approvals.decide(request.id, Approve(), by="ana", args_digest=request.args_digest)
        await h.advance("10m")
        assert await run.result(5) == "asked again"
    assert provider.generations == 1
    assert [row[2:] for row in await ledger(database_url)] == [
        ("in_doubt", "possible", "batch"),
        ("done", "yes", "batch"),
    ]


async def test_anthropics_batches_of_that_moment_are_waited_for_until_they_tell_whose_they_are(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Job("Found", queued=30))
    others = provider.batches.keep("msgbatch_others", [Asked("theirs", Job(queued=2), answer={})])
    late = provider.batches.keep("msgbatch_late", [Asked("later", Job(queued=None))])
    late.created_at += 3600  # too late to be ours
    app, ask = asking(CLAUDE)
    async with harness(app, database_url=sqlite_url) as h:
        with crash_after("after_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("1h")
        assert others.has_ended
        assert await run.status() == "sleeping"
        [step] = [
            line for line in (await app.runs.get(run.id)).reason.splitlines() if "whose they are" in line
        ]
        assert "ask" in step
        await h.advance("3h")
        assert await run.result(5) == "Found"
    assert (provider.generations, batches_begun(provider)) == (1, 1)


async def test_a_look_for_a_batch_ends_with_the_steps_timeout(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.batches.keep("msgbatch_others", [Asked("theirs", Job(queued=None))])
    app, ask = asking(CLAUDE, timeout="1h")
    async with harness(app, database_url=sqlite_url) as h:
        with crash_after("before_request"):
            await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("50m")
        assert not (await app.approvals.list(status="pending")).data
        await h.advance("15m")
        assert (await the_approval(app)).step_key == "ask/in-doubt"
    assert provider.generations == 0


async def test_a_server_that_lists_no_batches_leaves_it_to_a_person(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add("lost")
    provider.refuses = {"list"}
    app, ask = asking(CHAT)
    async with harness(app, database_url=sqlite_url) as h:
        with crash_after("after_request"):
            await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.idle()
        assert (await the_approval(app)).step_key == "ask/in-doubt"
    assert provider.generations == 1


async def test_a_window_that_is_lost_before_its_id_is_known_is_asked_for_again_and_counted(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Job("lost"), Job("second"))
    app, ask = asking(RESPONSES, ModelSettings(latency="8h"))
    async with harness(app, database_url=sqlite_url) as h:
        with crash_after("after_request"):
            run = await h.start(ask, "Hi")
            await h.idle()
        await h.restart()
        await h.advance("10m")
        assert await run.result(5) == "second"
    assert [row[2:] for row in await ledger(sqlite_url)] == [
        ("in_doubt", "possible", "8h"),
        ("done", "yes", "8h"),
    ]


async def test_a_batch_is_followed_to_its_end_by_code_that_asks_at_once_now(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Job("Found", queued=2))
    latency: Latency | None = "batch"
    app = App("t")

    @app.function
    async def ask(ctx: Context[str], step: Step) -> str:
        settings = ModelSettings(latency=latency)
        return (await step.ai.infer("ask", model=CLAUDE, messages=ctx.data, settings=settings)).text

    async with harness(app, database_url=sqlite_url, strict_replay=False) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        latency = None
        await h.advance("10m")
        assert await run.result(5) == "Found"
    assert provider.generations == 1


# ------------------------------------------------------------------------------------------------- how it may end


@pytest.mark.parametrize("model", MODELS)
async def test_a_request_that_expires_is_an_error_that_is_not_billed(
    provider: FakeProvider, sqlite_url: str, model: str
) -> None:
    provider.add(Job(expires=True))
    app, ask = asking(model, retry=0)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("10m")
        with pytest.raises(RunFailed, match="expired") as raised:
            await run.result(5)
    assert raised.value.error.name == "ProviderError"
    assert await ledger(sqlite_url) == [("ask", 0, "not_billed", "no", "batch")]
    assert provider.generations == 0


async def test_a_request_that_has_expired_may_be_made_again_by_the_steps_policy(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(Job(expires=True), "second")
    app, ask = asking(RESPONSES, retry=1)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("10m")
        assert await run.result(5) == "second"
    assert [row[1:4] for row in await ledger(sqlite_url)] == [(0, "not_billed", "no"), (1, "done", "yes")]


@pytest.mark.parametrize("model", MODELS)
async def test_a_request_that_fails_is_retried_where_it_is_not_billed_and_else_a_doubt(
    provider: FakeProvider, sqlite_url: str, model: str
) -> None:
    provider.add(Job(fails=True), "second")
    app, ask = asking(model, retry=1)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("10m")
        if model == CLAUDE:  # says that it does not bill what has failed
            assert await run.result(5) == "second"
        else:
            request = await the_approval(app)
            assert "the job has failed" in request.details["what happened"]
            await app.approvals.decide(request.id, Deny("no"), by="ana")
            await h.idle()
            with pytest.raises(RunFailed, match="ana denied"):
                await run.result(5)


@pytest.mark.parametrize("model", MODELS)
async def test_a_request_that_the_api_refuses_is_not_billed_nor_made_again(
    provider: FakeProvider, sqlite_url: str, model: str
) -> None:
    app, ask = asking(model, ModelSettings(latency="batch", extra={"messages": [], "input": []}), retry=3)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("10m")
        with pytest.raises(RunFailed, match=r"in batch (msg)?batch_\w+"):
            await run.result(5)
    assert [row[2:4] for row in await ledger(sqlite_url)] == [("not_billed", "no")]
    assert (provider.generations, batches_begun(provider)) == (0, 1)


async def test_a_queue_that_is_full_is_waited_for(provider: FakeProvider, sqlite_url: str) -> None:
    provider.add("never", "second")
    app, ask = asking(CHAT, retry=1)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        [batch] = provider.batches.batches.values()
        told = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached for gpt-4o"}
        batch.told |= {"status": "failed", "errors": {"object": "list", "data": [told]}}
        batch.asked = []
        await h.advance("5m")
        assert batches_begun(provider) == 1
        await h.advance("5m")
        assert await run.result(5) == "second"
    assert [row[1:4] for row in await ledger(sqlite_url)] == [(0, "not_billed", "no"), (1, "done", "yes")]


@pytest.mark.parametrize(("database_url", "model"), PLACES, indirect=["database_url"])
async def test_cancelling_a_run_cancels_its_batch(
    provider: FakeProvider, database_url: str, model: str
) -> None:
    provider.add(Job("never", queued=None))
    app, ask = asking(model)
    async with harness(app, database_url=database_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        await app.runs.cancel(run.id)
        await h.idle()
        assert await run.status() == "cancelled"
    assert cancelled(provider) == list(provider.batches.batches)
    assert await ledger(database_url) == [("ask", 0, "in_doubt", "possible", "batch")]


async def test_cancelling_a_run_cancels_its_window(provider: FakeProvider, sqlite_url: str) -> None:
    provider.add(Job("never", queued=None))
    app, ask = asking(RESPONSES, ModelSettings(latency="2h"))
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        await app.runs.cancel(run.id)
        await h.idle()
    assert cancelled(provider) == ["resp_stuck_1"]


@pytest.mark.parametrize("model", MODELS)
async def test_a_batch_that_takes_longer_than_the_timeout_is_cancelled(
    provider: FakeProvider, sqlite_url: str, model: str
) -> None:
    provider.add(Job("never", queued=None))
    app, ask = asking(model, timeout="1h", retry=0)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("59m")
        assert not cancelled(provider)
        await h.advance("2m")
        assert cancelled(provider) == list(provider.batches.batches)
        with pytest.raises(
            RunFailed, match="took longer than timeout=1:00:00, and was cancelled: it is not billed"
        ):
            await run.result(5)
    assert await ledger(sqlite_url) == [("ask", 0, "not_billed", "no", "batch")]


async def test_a_file_that_could_not_be_uploaded_costs_nothing(
    provider: FakeProvider, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.add("Found")
    keep, failures = provider.batches.keep_file, 1

    def fail(upload: Any) -> Any:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise ConnectionError("cut")  # the server breaks the connection off
        return keep(upload)

    monkeypatch.setattr(provider.batches, "keep_file", fail)
    app, ask = asking(RESPONSES, retry=1)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("10m")
        assert await run.result(5) == "Found"
    assert [row[1:4] for row in await ledger(sqlite_url)] == [(0, "not_billed", "no"), (1, "done", "yes")]


async def test_another_model_is_asked_where_the_batch_was_not_taken(
    provider: FakeProvider, sqlite_url: str
) -> None:
    provider.add(HttpError(429), "by the other one")
    app, ask = asking(CLAUDE, fallback=[CHAT], retry=0)
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("10m")
        assert await run.result(5) == "by the other one"
    assert [row[2:] for row in await ledger(sqlite_url)] == [
        ("not_billed", "no", "batch"),
        ("done", "yes", "batch"),
    ]


async def test_a_key_that_is_refused_on_the_way_says_nothing_of_what_the_batch_has_cost(
    provider: FakeProvider, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.add(Job("Found", queued=3))
    app, ask = asking(CHAT)

    def refuse(id: str) -> Any:
        raise Refusal(401, "Incorrect API key provided")

    async with harness(app, database_url=sqlite_url) as h:
        await h.start(ask, "Hi")
        await h.idle()
        monkeypatch.setattr(provider.batches, "find", refuse)
        await h.advance("1m")
        assert (await the_approval(app)).step_key == "ask/in-doubt"
    assert [row[2:4] for row in await ledger(sqlite_url)] == [("in_doubt", "possible")]


# ------------------------------------------------------------------------------------------- where it cannot hold


async def _fails(app: App, ask: Any, url: str, match: str) -> None:
    async with harness(app, database_url=url) as h:
        run = await h.start(ask, "Hi")
        await h.advance("1m")
        with pytest.raises(RunFailed, match=match) as raised:
            await run.result(5)
    assert raised.value.error.name == "ConfigurationError"


@pytest.mark.parametrize(
    ("model", "latency"),
    [("scripted:script.json", "batch"), ("scripted:script.json", "8h"), (CHAT, "2h"), (CLAUDE, "8h")],
)
async def test_a_latency_that_a_model_does_not_take_is_refused_before_anything_is_asked(
    provider: FakeProvider, sqlite_url: str, model: str, latency: Latency
) -> None:
    app, ask = asking(model, ModelSettings(latency=latency))
    await _fails(app, ask, sqlite_url, f"{model} does not take latency='{latency}'")
    assert provider.requests == []
    assert await ledger(sqlite_url) == []


async def test_a_fallback_that_does_not_take_it_is_found_out_at_once(
    provider: FakeProvider, sqlite_url: str
) -> None:
    app, ask = asking(RESPONSES, ModelSettings(latency="2h"), fallback=[CLAUDE])
    await _fails(app, ask, sqlite_url, "does not take latency='2h'")
    assert provider.requests == []


@pytest.mark.parametrize("model", MODELS)
async def test_a_server_without_batches_says_so(provider: FakeProvider, sqlite_url: str, model: str) -> None:
    provider.refuses = {"batches"}
    app, ask = asking(model, retry=3)
    await _fails(app, ask, sqlite_url, 'latency="batch" cannot hold there')
    assert provider.generations == 0
    assert len(provider.requests) == 1


async def test_a_server_without_completion_windows_says_so(provider: FakeProvider, sqlite_url: str) -> None:
    provider.refuses = {"background_options"}
    app, ask = asking(RESPONSES, ModelSettings(latency="2h"))
    await _fails(app, ask, sqlite_url, "refuses latency='2h' at http://127.0.0.1")


async def test_a_stream_of_what_comes_later_is_refused_where_it_is_asked_for(sqlite_url: str) -> None:
    app, ask = asking(CLAUDE, stream=True)
    await _fails(app, ask, sqlite_url, "there is nothing to stream")

    app = App("t")
    agent = Agent("clerk", model=CLAUDE, settings=BATCH)

    @app.function
    async def told(ctx: Context[str], step: Step) -> str:
        return "".join([str(item) async for item in agent.stream(step, ctx.data)])

    await _fails(app, told, sqlite_url, "there is nothing to stream")


def test_an_agent_of_a_model_that_does_not_take_it_is_refused_when_it_is_made() -> None:
    from agentflow_scripted import Scripted

    with pytest.raises(
        ConfigurationError, match="scripted:rules does not take latency='batch' \\(nor any other\\)"
    ):
        Agent("clerk", model=Scripted([{"text": "Hi"}]), settings=BATCH)


async def test_stand_ins_of_tests_answer_at_once(sqlite_url: str) -> None:
    model = ScriptedModel(["Hello."])
    app, ask = asking(CLAUDE)
    async with harness(app, database_url=sqlite_url, model=model) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await run.result(5) == "Hello."
    assert model.requests[0].settings.latency == "batch"
    assert await ledger(sqlite_url) == [("ask", 0, "done", "yes", None)]


async def test_an_answer_that_is_given_at_once_has_the_standard_price(
    provider: FakeProvider, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway may take the fields of a background response and not know them."""
    provider.add("Found")
    monkeypatch.setattr(
        provider,
        "_begin_job",
        lambda job, asked, body: provider._answer(openai_responses, job.reply, asked, _PLAIN),
    )
    app, ask = asking(RESPONSES, ModelSettings(latency="8h"))
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(ask, "Hi")
        await h.idle()
        assert await run.result(5) == "Found"
    assert await ledger(sqlite_url) == [("ask", 0, "done", "yes", None)]


_PLAIN = {"model": "gpt-5-mini", "input": []}
