"""A worker dies at any point around a batch: that is generated once, found or put before a person, and accounted for.

The first test kills real processes at ten named points, the second lets a worker of this process die at every commit
and request in turn. The fake provider counts the answers that it makes: for a batch there is never more than one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

import pytest

from agentflow import App, Approve, Context, ModelSettings, Step, following, recovering
from agentflow.models.clients import close_clients
from agentflow.testing import Harness, crash_after, harness
from agentflow.testing.crashes import NotCrashed
from agentflow.testing.provider_jobs import Job
from agentflow.testing.provider_server import FakeProvider, Stall, fake_provider
from tests.agents.batch_flow import POINTS, hurry, make_app, take_to_the_end
from tests.agents.killed_flow import GENERATING
from tests.crash.processes import end_leases
from tests.faults.support import IS_FULL, SECONDS, read_rows
from tests.forked import KILLED, Forked, Starter

RESPONSES, CHAT, CLAUDE = MODELS = ("openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5")
ASKED = dict(zip(POINTS, (0, 1, 1, 0, 0, 0, 0, 0, 0, 1), strict=True))
"""Where a person has to be asked: the request was never made, and only its absence at the provider tells so."""
SWEPT = ("before_request", "before_commit", "after_request", "after_commit")
MOST_PASSES = 50 if IS_FULL else 14


class Case(NamedTuple):
    point: str
    model: str


def cases(database_url: str) -> list[Case]:
    every = [
        Case(point, model)
        for point in POINTS
        for model in MODELS
        if point != POINTS[-1] or model != CLAUDE  # Anthropic takes no files
    ]
    if IS_FULL:
        return every
    # A spread over points and APIs; on PostgreSQL some of it.
    return every[::4] if database_url.startswith("sqlite") else every[1::7]


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with fake_provider(lambda request: Job("done", queued=1)) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        await close_clients()


# ------------------------------------------------------------------------------------------------- killed processes


@pytest.mark.crash
@pytest.mark.timeout(SECONDS)
async def test_whenever_its_process_dies_a_batch_is_generated_once(
    provider: FakeProvider, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((recovering, "LOOKUP_GRACE"), (recovering, "LATER"), (following, "LATER")):
        monkeypatch.setattr(module, name, getattr(module, name))  # restored at the end
    hurry()
    environment = json.dumps(provider.environment())
    done = cases(database_url)
    people = 0
    with Starter("tests.agents.batch_flow") as children:
        for model in MODELS:
            await children.warm_up(environment, database_url, model, model, "")
        for number, case in enumerate(done):
            before, key = provider.generations, f"case-{number}"
            await _kill(children, provider, database_url, case, environment, key)
            if not IS_FULL:
                await end_leases(database_url)
            app, ask = make_app(database_url, case.model)
            assert await take_to_the_end(app, ask, key) == "done", case
            people += await _check(database_url, case, key, made=provider.generations - before)
    assert people == sum(ASKED[case.point] for case in done)


async def _kill(
    children: Starter, provider: FakeProvider, url: str, case: Case, environment: str, key: str
) -> None:
    """The process of a run dies at the case's point."""
    before, reply = provider.generations, Job("done", queued=1)
    stalled = Stall(reply=reply)  # type: ignore[arg-type]  # the batch is taken in, its id never told
    provider._by_function = lambda request: stalled if case.point == GENERATING else reply
    with Forked((environment, url, case.model, key, case.point), starter=children) as process:
        if case.point == GENERATING:
            await provider.wait_for_generations(before + 1)
            process.kill()
        code = await process.ended()
    provider._by_function = lambda request: reply
    assert code == KILLED, f"{case}: its process was not killed, it ended with {code}"


async def _check(url: str, case: Case, key: str, *, made: int) -> int:
    """What was made and what the ledger says; how often a person was asked."""
    of_run = f"JOIN agentflow_run r ON r.id = c.run_id WHERE r.idempotency_key = '{key}'"
    rows = await read_rows(
        url, f"SELECT c.state, c.billed, c.latency FROM agentflow_model_call c {of_run} ORDER BY c.started_at"
    )
    asked = await read_rows(url, f"SELECT c.step_key FROM agentflow_approval c {of_run}")
    doubts = [("in_doubt", "possible", "batch")] * ASKED[case.point]
    assert made == 1, f"{case}: {made} answers were made, {rows}"
    assert rows == [*doubts, ("done", "yes", "batch")], f"{case}: {rows}"
    assert len(asked) == ASKED[case.point], f"{case}: {asked}"
    return len(asked)


# ---------------------------------------------------------------------------------------------- every commit in turn


def _swept() -> Iterator[Any]:
    """All of them in full; else PostgreSQL does what has a file, a list and metadata."""
    for database, model in product(("sqlite", "postgres"), MODELS):
        if IS_FULL or database == "sqlite" or model == CHAT:
            yield pytest.param(database, model, id=f"{database}-{model}")


@pytest.mark.parametrize(("database_url", "model"), list(_swept()), indirect=["database_url"])
@pytest.mark.timeout(240)
async def test_wherever_its_worker_dies_a_batch_is_generated_once(
    provider: FakeProvider, database_url: str, model: str
) -> None:
    app = App("t")

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        settings = ModelSettings(latency="batch")
        return (await step.ai.infer("ask", model=model, messages="Hi", settings=settings)).text

    crashes = 0
    async with harness(app, database_url=database_url) as h:
        # One clock for both, else the batches of a run were made before it asked for any.
        provider.batches.now = lambda: h.now().timestamp()
        for offset, point in enumerate(SWEPT):
            for n in range(1 + offset % 2, MOST_PASSES, 1 if IS_FULL else 3):
                before = provider.generations
                run = await _crash(h, ask, point, n)
                if run is None:
                    break
                await h.restart()
                decided = await _decide(h)
                assert await run.result(5) == "done", f"{point}:{n}"
                rows = await read_rows(
                    database_url,
                    f"SELECT state, billed FROM agentflow_model_call WHERE run_id = '{run.id}' ORDER BY started_at",
                )
                told = f"{model} {point}:{n}: {rows}"
                assert provider.generations - before == 1, told
                assert rows == [*[("in_doubt", "possible")] * decided, ("done", "yes")], told
                crashes += 1
                await h.advance("1h")  # what the next one makes is not of this moment
    assert crashes >= 4


async def _crash(h: Harness, ask: Any, point: str, n: int) -> Any:
    """The run whose worker has died; `None` when it was over before."""
    run: Any = None
    try:
        with crash_after(point, n):
            run = await h.start(ask)
            await h.idle()
            with suppress(TimeoutError):
                await h.advance("10m")
    except NotCrashed:
        return None
    return run


async def _decide(h: Harness) -> int:
    """Let time pass; how often a person had to be asked."""
    decided = 0
    for _ in range(3):
        await h.advance("20m")
        for request in (await h.app.approvals.list(status="pending")).data:
            decided += 1
            await h.app.approvals.decide(request.id, Approve(), by="ana")
    return decided
