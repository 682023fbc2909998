"""A conversation that has grown long is summarised, once, as a step; calls and their results stay together."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from agentflow import Agent, AgentInput, App, ModelRequest, ToolCall, tool
from agentflow.agents import Compaction, Limits
from agentflow.agents.compaction import INSTRUCTIONS
from agentflow.agents.conversation import Conversation
from agentflow.errors import ConfigurationError, RunFailed
from agentflow.models.conversation import check_conversation
from agentflow.models.messages import Message, TextPart, ToolResult
from agentflow.testing import crash_after, harness
from tests.agents.support import call, steps_of

LONG = "word " * 400
"""About 500 tokens."""


def is_asked_to_summarise(request: ModelRequest) -> bool:
    return request.instructions == INSTRUCTIONS


class Archive:
    """An agent that reads page after page."""

    def __init__(self, pages: int, **options: Any) -> None:
        self.reads = 0

        @tool
        async def read(page: int) -> str:
            self.reads += 1
            return f"page {page}: {LONG}"

        self.app = App("t")
        self.agent = Agent("reader", model="openai:gpt-5-mini", tools=[read], **options)
        self.app.add(self.agent)
        self.pages = pages
        self.requests: list[ModelRequest] = []
        self.summaries: list[ModelRequest] = []

    async def model(self, request: ModelRequest) -> Any:
        check_conversation(request.messages)
        if is_asked_to_summarise(request):
            self.summaries.append(request)
            return f"summary {len(self.summaries)}"
        self.requests.append(request)
        if request.messages[-1].role == "tool" and len(self.requests) > self.pages:
            return "read"
        return [call("read", page=len(self.requests))]


async def test_what_was_before_the_last_turns_is_summarised_once_as_a_step(database_url: str) -> None:
    archive = Archive(8, compaction=Compaction(at_tokens=2000, keep_turns=2))
    async with harness(archive.app, model=archive.model, database_url=database_url) as h:
        run = await h.start(archive.agent, "Read all of it.")
        await h.idle()
        assert await run.result(10) == "read"
        steps = await steps_of(archive.app, run.id)
        compactions = [key for key in steps if key.endswith("/compaction")]
        assert compactions == [f"reader#0/turn{turn}/compaction" for turn in (4, 6, 8)]
        assert len(archive.summaries) == 3
        assert (await archive.app.usage()).calls == 9 + 3
    after = archive.requests[4].messages
    assert after[0].text.startswith("Summary of the conversation so far")
    assert after[0].text.endswith("summary 1")
    assert [message.role for message in after] == ["user", "user", "assistant", "tool", "assistant", "tool"]
    assert after[1].text == "Read all of it.", "what the run was asked is told word for word"
    [asked] = archive.summaries[0].messages
    assert "calls read(" in asked.text
    assert "page 2: word" in asked.text
    assert "page 3: word" not in asked.text, "the last turns are told as they are"
    assert "summary 1" in archive.summaries[1].messages[0].text, "the second summary is made of the first"
    assert archive.reads == 8


async def test_a_thread_is_told_its_summary_and_keeps_every_message(database_url: str) -> None:
    app = App("t")
    agent = Agent("chat", model="openai:gpt-5-mini", compaction=Compaction(at_tokens=1500, keep_turns=2))
    app.add(agent)
    told: list[list[str]] = []

    async def model(request: ModelRequest) -> str:
        if is_asked_to_summarise(request):
            return "they greeted each other"
        told.append([message.text for message in request.messages])
        return f"{LONG} {len(told)}"

    async with harness(app, model=model, database_url=database_url, replay_every_step=True) as h:
        for n in range(5):
            run = await h.start(agent, AgentInput(f"prompt {n}", thread="a"))
            await h.idle()
            await run.result(10)
        kept = (await app.threads.messages("a")).data
        usage = await app.usage(thread="a")
    assert [each.message.text for each in kept if each.message.role == "user"] == [
        f"prompt {n}" for n in range(5)
    ]
    assert len(kept) == 10
    assert "they greeted" not in told[2][0]
    assert told[3][0].endswith("they greeted each other")
    assert [text[:8] for text in told[3][1:]] == ["prompt 2", "word wor", "prompt 3"]
    # The next turn is told the summary that was stored, without asking for it again.
    assert told[4][0].endswith("they greeted each other")
    assert [text[:8] for text in told[4][1:]][:2] == ["prompt 2", "word wor"]
    assert usage.calls == 6


async def test_a_crash_around_the_summary_pays_for_no_more_than_that_call(database_url: str) -> None:
    archive = Archive(5, compaction=Compaction(at_tokens=1500, keep_turns=1))
    async with harness(archive.app, model=archive.model, database_url=database_url) as h:
        with crash_after("after_request", 4):
            run = await h.start(archive.agent, "Read all of it.")
            await h.idle()
        assert len(archive.summaries) == 1, "it was the summary that was lost"
        await h.restart()
        await h.advance("1m")
        assert await run.result(10) == "read"
    assert len(archive.summaries) == 3
    assert archive.reads == 5


async def test_without_a_summary_the_conversation_goes_on_as_it_is(
    sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    archive = Archive(4, compaction=Compaction(at_tokens=1500, keep_turns=1, model="openai:gpt-5-nano"))

    async def model(request: ModelRequest) -> Any:
        return "" if is_asked_to_summarise(request) else await archive.model(request)

    async with harness(archive.app, model=model, database_url=sqlite_url) as h:
        run = await h.start(archive.agent, "Read all of it.")
        await h.idle()
        assert await run.result(10) == "read"
    assert len(archive.requests[-1].messages) == 9
    assert "the model gave no summary" in caplog.text


async def test_a_summary_is_within_the_limits(sqlite_url: str) -> None:
    archive = Archive(9, compaction=Compaction(at_tokens=1500, keep_turns=1), limits=Limits(tokens=30))
    async with harness(archive.app, model=archive.model, database_url=sqlite_url) as h:
        run = await h.start(archive.agent, "Read all of it.")
        await h.idle()
        with pytest.raises(RunFailed, match="BudgetExceeded"):
            await run.result(10)


def test_a_call_and_its_results_are_never_parted_wherever_the_conversation_is_cut() -> None:
    def turn(n: int) -> list[Message]:
        calls = [ToolCall(index=i, id=f"{n}-{i}", name="f", args={}) for i in range(n % 3)]
        said = [Message(role="user", parts=[TextPart(text=f"{n}")])] if n % 2 == 0 else []
        said.append(Message(role="assistant", parts=[TextPart(text="so"), *calls]))
        if calls:
            said.append(Message(role="tool", parts=[ToolResult(call_id=each.id) for each in calls]))
        return said

    tried = 0
    for first, count in itertools.product(range(0, 6, 2), range(1, 9)):
        earlier = [message for n in range(first, first + count) for message in turn(n)]
        if earlier[-1].role == "assistant":
            earlier = earlier[:-1] if not earlier[-1].tool_calls else earlier
        prompts = [place for place, message in enumerate(earlier) if message.role == "user"]
        for keep, own in itertools.product(range(1, 9), prompts):
            conversation = Conversation(earlier[own : own + 1], earlier=earlier[:own])
            conversation.add(*earlier[own + 1 :])
            conversation.summarise("short", conversation.place_to_cut(keep))
            if conversation.told[-1].role == "assistant":
                continue
            check_conversation(conversation.told)
            assert conversation.told[0].text.endswith("short")
            tried += 1
    assert tried > 200


@pytest.mark.parametrize(
    "wrong", [{"at_tokens": 0}, {"at_tokens": 5000, "keep_turns": 0}, {"at_tokens": True}]
)
def test_figures_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"Compaction\(.*whole number"):
        Compaction(**wrong)
