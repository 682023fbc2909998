"""Names and ids that no database can store are refused where they are given, and are nowhere to be found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agentflow import App, Context, RunStatus, Step
from agentflow.approvals import Approve
from agentflow.errors import InvalidInput, NotFound, StepError
from agentflow.testing import harness

BAD = ["a\x00b", "\ud800", "\udfff\ud800 and more"]


def make_app() -> App:
    app = App("t")

    @app.function
    async def f(ctx: Context[None], step: Step) -> None:
        await step.sleep("nap", "1d")

    return app


@pytest.mark.parametrize("bad", BAD, ids=ascii)
async def test_what_would_be_stored_is_refused(database_url: str, bad: str) -> None:
    async with harness(make_app(), database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        writes: dict[str, Callable[[], Any]] = {
            "idempotency key": lambda: h.start("f", idempotency_key=bad),
            "key of a rerun": lambda: h.app.runs.rerun(run.id, idempotency_key=bad),
            "step of a rerun": lambda: h.app.runs.rerun(run.id, bad),
            "tag": lambda: h.start("f", tags=["good", bad]),
            "event": lambda: h.send({"name": bad, "data": {}}),
            "event id": lambda: h.send({"name": "e", "data": {}, "id": bad}),
            "signal": lambda: h.signal(bad, buffer="1m"),
            "reason": lambda: h.app.runs.cancel(run.id, bad),
            "decider": lambda: h.app.approvals.decide("a", Approve(), by=bad),
            "comment": lambda: h.app.approvals.decide("a", Approve(), by="ana", comment=bad),
        }
        for what, write in writes.items():
            try:
                await write()
            except InvalidInput:
                continue
            raise AssertionError(f"the {what} was taken")
        assert await run.status() is RunStatus.SLEEPING


@pytest.mark.parametrize("bad", BAD, ids=ascii)
async def test_what_is_looked_for_is_not_there(database_url: str, bad: str) -> None:
    async with harness(make_app(), database_url=database_url) as h:
        runs = h.app.runs
        for look in (runs.get, runs.cancel, runs.steps, runs.rerun, h.app.events.runs, h.app.approvals.get):
            with pytest.raises(NotFound):
                await look(bad)
        with pytest.raises(NotFound):
            await runs.handle(bad).status()
        for page in (runs.list(q=bad), runs.list(function=bad), h.app.events.list(name=bad)):
            assert (await page).data == []


@pytest.mark.parametrize("bad", BAD, ids=ascii)
async def test_a_step_with_such_a_name_says_so_and_the_run_goes_on(database_url: str, bad: str) -> None:
    app, seen = App("t"), []

    @app.function(retries=0)
    async def f(ctx: Context[None], step: Step) -> int:
        calls: list[Callable[[], Any]] = [
            lambda: step.run(bad, lambda: 1),
            lambda: step.wait_for_signal("w", signal=bad, timeout="1h"),
            lambda: step.wait_for_event("e", event=bad, timeout="1h"),
            lambda: step.send_event("s", {"name": bad, "data": {}}),
            lambda: step.send_signal("g", bad, buffer="1m"),
            lambda: step.publish("p", bad, 1),
        ]
        for call in calls:
            try:
                await call()
            except (InvalidInput, StepError) as error:
                seen.append(type(error))
        return await step.run("last", lambda: 7)

    async with harness(app, database_url=database_url) as h:
        run = await h.start("f")
        await h.idle()
        assert await run.result(5) == 7
    assert seen == [InvalidInput] * 6
