"""`step.publish`: a message to the run's live stream, told once, in its place among the steps."""

from __future__ import annotations

from typing import Any

import pytest

from agentflow import App, Context, Step
from agentflow.errors import RunFailed
from agentflow.testing import harness


async def test_a_message_is_told_once_whatever_is_replayed_and_in_the_order_of_the_steps(
    database_url: str,
) -> None:
    app = App("publish")

    @app.function
    async def flow(ctx: Context[None], step: Step) -> list[Any]:
        told = [await step.publish("tell", "progress", {"part": 1})]
        await step.wait_for_signal("go", signal="go", timeout="1h")
        return [*told, await step.publish("tell", "progress", "two"), await step.publish("end", "bye")]

    async with harness(app, database_url=database_url) as h:
        run = await h.start(flow)
        await h.idle()
        await h.crash()
        await h.restart()
        await h.signal("go")
        await h.idle()
        assert await run.result(5) == [None, None, None]
        items = [item async for item in run.stream()]
        steps = (await app.runs.steps(run.id)).data
    messages = [(item.step_key, item.data) for item in items if item.kind == "publish"]
    assert messages == [
        ("tell", {"topic": "progress", "data": {"part": 1}}),
        ("tell:1", {"topic": "progress", "data": "two"}),
        ("end", {"topic": "bye", "data": None}),
    ]
    assert [(record.kind, record.name) for record in steps if record.id != "go"] == [
        ("publish", "progress"),
        ("publish", "progress"),
        ("publish", "bye"),
    ]
    assert [item.seq for item in items] == sorted({item.seq for item in items})


@pytest.mark.parametrize(
    ("topic", "data", "name", "says"),
    [
        ("t", {1, 2}, "Unserialisable", "the message of step 'tell'"),
        ("", 1, "InvalidInput", "topic"),
        ("\ud800", 1, "InvalidInput", "topic"),
        ("t", "x" * 600_000, "LimitExceeded", "Settings.max_event_bytes"),
    ],
)
async def test_a_message_that_cannot_be_told_fails_its_step_without_a_retry(
    sqlite_url: str, topic: str, data: Any, name: str, says: str
) -> None:
    app = App("publish")

    @app.function
    async def flow(ctx: Context[None], step: Step) -> None:
        await step.publish("tell", topic, data)

    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(flow)
        await h.idle()
        with pytest.raises(RunFailed) as failed:
            await run.result(5)
        items = [item async for item in run.stream()]
    assert failed.value.error.name == name
    assert says in failed.value.error.message
    assert [item for item in items if item.kind == "publish"] == []
