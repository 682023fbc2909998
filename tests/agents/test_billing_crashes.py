"""A worker dies at every commit and at every request of a model call: no more is paid than the way of billing allows.

The points are swept in this process: the n-th pass of each, for n = 1, 2, ... until the call is over before. The fake
provider counts the answers that it makes. tests/agents/test_killed.py does some of it to real processes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from itertools import product
from typing import Any, get_args

import pytest

from agentflow import App, Approve, Context, ModelRequest, Step
from agentflow.models.clients import close_clients
from agentflow.models.ledger import Billing
from agentflow.testing import Harness, crash_after, harness
from agentflow.testing.crashes import NotCrashed
from agentflow.testing.provider_jobs import Job
from agentflow.testing.provider_server import FakeProvider, fake_provider
from tests.faults.support import IS_FULL, read_rows

RESPONSES, CHAT, CLAUDE = "openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"
POINTS = ("before_request", "before_commit", "after_request", "after_commit")
MOST_PASSES = 50 if IS_FULL else 14
"""What comes later are the worker's own looks at the database."""


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    def reply(request: ModelRequest) -> object:
        return Job("answered", queued=2) if request.model.startswith("openai:") else "answered"

    async with fake_provider(reply) as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        await close_clients()


def _cases() -> Iterator[Any]:
    """All of them in full; else every way of billing of every model once, and on PostgreSQL what it has of its own."""
    every = product(("sqlite", "postgres"), (RESPONSES, CHAT, CLAUDE), get_args(Billing), (False, True))
    for database, model, billing, stream in every:
        is_left_out = stream and model != RESPONSES
        if database == "postgres":
            is_left_out = stream or model == CLAUDE or billing == "at_least_once"
        if IS_FULL or not is_left_out:
            told = "streamed" if stream else "whole"
            yield pytest.param(database, model, billing, stream, id=f"{database}-{model}-{billing}-{told}")


@pytest.mark.parametrize(
    ("database_url", "model", "billing", "stream"), list(_cases()), indirect=["database_url"]
)
@pytest.mark.timeout(240)
async def test_wherever_its_worker_dies_a_call_is_paid_for_within_its_bound(
    provider: FakeProvider, database_url: str, model: str, billing: Billing, stream: bool
) -> None:
    is_sqlite = database_url.startswith("sqlite")
    app = App("t")

    @app.function
    async def ask(ctx: Context[None], step: Step) -> str:
        return (await step.ai.infer("ask", model=model, messages="Hi", billing=billing, stream=stream)).text

    crashes = 0
    async with harness(app, database_url=database_url) as h:
        for offset, point in enumerate(POINTS):
            for n in range(1 + offset % 2, MOST_PASSES, 1 if IS_FULL else 3 if is_sqlite else 5):
                case = _Case(h, provider, database_url, model, billing, f"{point}:{n}")
                if not await case.crash(ask, point, n):
                    break
                await case.check()
                crashes += 1
    assert crashes >= 4


class _Case:
    """One run of the function, whose worker dies once."""

    def __init__(
        self, h: Harness, provider: FakeProvider, url: str, model: str, billing: Billing, name: str
    ) -> None:
        self._h = h
        self._provider = provider
        self._url = url
        self._model = model
        self._billing = billing
        self._name = f"{billing} {model} {name}"
        self._before = provider.generations
        self._run: Any = None
        self._rows_at_crash: list[Any] = []

    async def crash(self, function: Any, point: str, n: int) -> bool:
        """False: the call was over before."""
        try:
            with crash_after(point, n):
                self._run = await self._h.start(function)
                await self._h.idle()
                with suppress(TimeoutError):
                    await self._h.advance("2m")
        except NotCrashed:
            return False
        self._rows_at_crash = await self._rows()
        await self._h.restart()
        return True

    async def check(self) -> None:
        decided = 0
        for _ in range(3):
            await self._h.advance("5m")
            for request in (await self._h.app.approvals.list(status="pending")).data:
                decided += 1
                await self._h.app.approvals.decide(request.id, Approve(), by="ana")
        assert await self._run.result(5) == "answered", self._name
        made = self._provider.generations - self._before
        rows = await self._rows()
        assert 1 <= made <= self._bound(decided), f"{self._name}: {made} answers, {rows}"
        assert sum(billed != "no" for _, billed in rows) >= made, f"{self._name}: {rows}"
        assert [row for row in rows if row[1] == "yes"] == [("done", "yes")], f"{self._name}: {rows}"
        if self._billing != "strict":
            assert decided == 0, self._name
        # A doubt that a person was asked about is one that nothing could tell.
        assert decided <= 1, self._name

    def _bound(self, decided: int) -> int:
        if self._billing == "at_least_once" or (self._billing == "recover" and self._model == CLAUDE):
            return 2
        if self._billing == "strict":
            return 1 + decided
        is_known = any(state == "submitted" for state, _ in self._rows_at_crash)
        return 1 if self._model == CHAT or is_known else 2

    async def _rows(self) -> list[Any]:
        rows = await read_rows(
            self._url,
            f"SELECT state, billed FROM agentflow_model_call WHERE run_id = '{self._run.id}' "
            "ORDER BY started_at, attempt",
        )
        return [tuple(row) for row in rows]
