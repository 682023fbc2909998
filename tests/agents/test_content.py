"""Agents and model calls with images and files: told to the provider, kept, replayed, and refused in time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

# Imported here: it takes longer than the timeouts of these tests.
import genai_prices  # noqa: F401
import openai.resources.responses  # noqa: F401
import pytest

from agentflow import (
    Agent,
    AgentInput,
    App,
    Context,
    Message,
    ModelRequest,
    ModelSettings,
    Settings,
    Step,
    tool,
)
from agentflow.agents import Compaction
from agentflow.agents.compaction import INSTRUCTIONS
from agentflow.content import FilePart, ImagePart, TextPart
from agentflow.errors import InvalidInput, RunFailed
from agentflow.models.clients import close_clients
from agentflow.testing import ScriptedModel, crash_after, harness
from agentflow.testing.provider_server import FakeProvider, HttpError, fake_provider
from tests.agents.support import call
from tests.faults.support import read_rows

RESPONSES, CHAT, CLAUDE = "openai:gpt-5-mini", "openai-chat:gpt-4o", "anthropic:claude-sonnet-4-5"
IMAGE = ImagePart.from_bytes(b"\x89PNG....", "image/png")
FILE = FilePart(text="Refunds: 30 days.", name="terms.txt")
AT = ImagePart("https://example.org/a.png")


@pytest.fixture
async def provider(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeProvider]:
    async with fake_provider() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        await close_clients()


def viewer(model: Any = CLAUDE, **options: Any) -> tuple[App, Agent[str]]:
    app = App("t")
    agent = Agent("viewer", model=model, **options)
    app.add(agent)
    return app, agent


async def ledger(url: str) -> list[tuple[str, str]]:
    rows = await read_rows(url, "SELECT state, billed FROM agentflow_model_call ORDER BY started_at, attempt")
    return [tuple(row) for row in rows]


# --- what goes to the provider --------------------------------------------------------------------


@pytest.mark.parametrize("model", [RESPONSES, CHAT, CLAUDE])
async def test_an_agent_sees_images_and_files_and_a_crash_changes_nothing(
    provider: FakeProvider, database_url: str, model: str
) -> None:
    seen: list[ModelRequest] = []

    def reply(request: ModelRequest) -> Any:
        seen.append(request)
        return call("wait") if len(seen) == 1 else "a dot"

    provider.add(reply, reply)

    @tool
    async def wait(step: Step) -> str:
        await step.sleep("nap", "1h")
        return "waited"

    app, agent = App("t"), Agent("viewer", model=model, tools=[wait])
    app.add(agent)

    @app.function
    async def look(ctx: Context[None], step: Step) -> str:
        result = await agent.run(step, ["What is this?", IMAGE, FILE])
        assert result.messages[0] == Message("user", ["What is this?", IMAGE, FILE])
        return result.output

    async with harness(app, database_url=database_url, replay_every_step=True) as h:
        run = await h.start(look)
        await h.idle()
        await h.crash()
        await h.restart()
        await h.advance("1h")
        assert await run.result(5) == "a dot"
    assert provider.generations == 2
    for request in seen:
        assert IMAGE in request.messages[0].parts
        last = request.messages[0].parts[-1]
        text = last.read_text() if isinstance(last, FilePart) else getattr(last, "text", None)
        assert str(text).endswith("Refunds: 30 days.")


async def test_a_stream_and_one_call_take_them_too(provider: FakeProvider, sqlite_url: str) -> None:
    app, agent = viewer()
    provider.add("a dot", "a line")

    @app.function
    async def look(ctx: Context[None], step: Step) -> list[str]:
        *_, last = [item async for item in agent.stream(step, [IMAGE, "What is this?"])]
        response = await step.ai.infer("ask", model=CLAUDE, messages=["And this?", AT])
        return [last.output, response.text]

    async with harness(app, database_url=sqlite_url, replay_every_step=True) as h:
        assert await (await h.start(look)).result(5) == ["a dot", "a line"]
    kinds = [[block["type"] for block in r.body["messages"][0]["content"]] for r in provider.requests]
    assert kinds == [["image", "text"], ["text", "image"]]


@pytest.mark.parametrize(
    "given",
    [
        AgentInput(prompt=["What is this?", IMAGE]),
        AgentInput(["What is this?", IMAGE]),
        {"prompt": ["What is this?", IMAGE.model_dump(mode="json")]},
        ["What is this?", IMAGE],
    ],
)
async def test_a_run_of_an_agent_is_started_with_them(given: Any, sqlite_url: str) -> None:
    app, agent = viewer()
    model = ScriptedModel(["a dot"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(agent, given)
        assert await run.result(5) == "a dot"
    assert model.requests[0].messages == [Message("user", ["What is this?", IMAGE])]


@pytest.mark.parametrize(
    ("given", "parts"),
    [([IMAGE], [IMAGE]), (["What is ", "this?"], ["What is ", "this?"]), ([AT, FILE], [AT, FILE])],
)
async def test_all_of_a_prompt_is_one_message_whatever_it_holds(
    given: Any, parts: Any, sqlite_url: str
) -> None:
    app, agent = viewer()
    model = ScriptedModel(["a dot"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        assert await (await h.start(agent, AgentInput(given))).result(5) == "a dot"
    assert model.requests[0].messages == [Message("user", parts)]


@pytest.mark.parametrize("given", [[], ["", ""], {"prompt": [{"kind": "tool_call", "name": "x"}]}])
async def test_what_is_no_prompt_is_refused(given: Any, sqlite_url: str) -> None:
    app, agent = viewer()
    async with harness(app, model=ScriptedModel(["never"]), database_url=sqlite_url) as h:
        with pytest.raises((InvalidInput, RunFailed), match="prompt"):
            await (await h.start(agent, given)).result(5)


async def test_a_file_is_read_in_a_step(tmp_path: Path, sqlite_url: str) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG....")
    app, agent = viewer()
    model = ScriptedModel(["a dot"])

    @app.function
    async def look(ctx: Context[str], step: Step) -> str:
        image = await step.run("read", ImagePart.from_path, ctx.data)
        assert isinstance(image, ImagePart)
        await step.sleep("nap", "1h")
        return (await agent.run(step, ["What is this?", image])).output

    async with harness(app, model=model, database_url=sqlite_url) as h:
        run = await h.start(look, str(tmp_path / "a.png"))
        await h.idle()
        (tmp_path / "a.png").unlink()
        await h.advance("1h")
        assert await run.result(5) == "a dot"
    assert model.requests[0].media == [IMAGE]


async def test_a_guardrail_on_input_changes_the_text_and_leaves_the_image(sqlite_url: str) -> None:
    def hide(ctx: Any, text: str) -> str:
        return text.replace("4711", "[hidden]")

    app, agent = viewer(guardrails=[hide])
    model = ScriptedModel(["a dot"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        assert await (await h.start(agent, ["Card 4711: ", IMAGE, "ok?"])).result(5) == "a dot"
    assert model.requests[0].messages == [Message("user", [TextPart("Card [hidden]: ok?"), IMAGE])]


# --- what is refused ------------------------------------------------------------------------------


async def test_what_the_api_cannot_carry_leaves_no_row_and_is_not_retried(
    provider: FakeProvider, sqlite_url: str
) -> None:
    app, agent = viewer(CHAT)
    provider.add("never")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, ["Read", FilePart("https://example.org/a.pdf")])
        with pytest.raises(RunFailed, match=r"InvalidInput: .*a\.pdf.*does not take files by their url"):
            await run.result(5)
    assert (provider.requests, await ledger(sqlite_url)) == ([], [])


async def test_a_fallback_that_cannot_carry_it_is_passed_over(
    provider: FakeProvider, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, agent = viewer(CLAUDE, fallback=[CHAT, RESPONSES])
    provider.add(HttpError(529, should_retry=True), "read")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, ["Read", FilePart("https://example.org/a.pdf")])
        assert await run.result(5) == "read"
    assert [request.path.rpartition("/")[2] for request in provider.requests] == ["messages", "responses"]
    assert "openai-chat:gpt-4o cannot be asked instead" in caplog.text


async def test_when_no_fallback_can_carry_it_the_first_failure_stands(
    provider: FakeProvider, sqlite_url: str
) -> None:
    app, agent = viewer(CLAUDE, fallback=[CHAT])
    provider.add(HttpError(529, should_retry=True), "read")
    async with harness(app, database_url=sqlite_url) as h:
        run = await h.start(agent, ["Read", FilePart("https://example.org/a.pdf")])
        await h.advance("10s")
        assert await run.result(5) == "read"
    assert [request.path for request in provider.requests] == ["/v1/messages"] * 2
    assert await ledger(sqlite_url) == [("not_billed", "no"), ("done", "yes")]


async def test_what_is_too_large_is_refused_before_the_call(provider: FakeProvider, sqlite_url: str) -> None:
    app = App("t", settings=Settings(max_step_bytes=100_000))
    agent = Agent("viewer", model=CLAUDE)
    app.add(agent)
    provider.add("seen")
    large = ImagePart.from_bytes(bytes(80_000), "image/png")
    async with harness(app, database_url=sqlite_url) as h:
        with pytest.raises(RunFailed, match=r"InvalidInput: .*106668 bytes.*give a url=, or upload"):
            await (await h.start(agent, ["Look", large])).result(5)
        small = ImagePart.from_bytes(bytes(70_000), "image/png")
        assert await (await h.start(agent, ["Look", small])).result(5) == "seen"
    assert provider.generations == 1


# --- what is kept ---------------------------------------------------------------------------------


async def test_a_thread_keeps_images_and_a_later_run_is_told_them(database_url: str) -> None:
    app, agent = viewer()
    model = ScriptedModel(["a dot", "as I said"])
    async with harness(app, model=model, database_url=database_url, replay_every_step=True) as h:
        first = AgentInput(prompt=["What is this?", IMAGE, FILE], thread="lila")
        assert await (await h.start(agent, first)).result(5) == "a dot"
        assert await (await h.start(agent, AgentInput("Sure?", thread="lila"))).result(5) == "as I said"
        kept = (await app.threads.messages("lila")).data
    assert model.requests[1].messages[0] == kept[0].message
    assert kept[0].message == Message("user", ["What is this?", IMAGE, FILE])


async def test_a_turn_whose_images_would_be_too_much_for_the_thread_leaves_it_usable(sqlite_url: str) -> None:
    app = App("t", settings=Settings(max_step_bytes=100_000))
    agent = Agent("viewer", model=CLAUDE)
    app.add(agent)
    image = ImagePart.from_bytes(bytes(45_000), "image/png")
    model = ScriptedModel(["one", "two"])
    async with harness(app, model=model, database_url=sqlite_url) as h:

        async def say(*said: Any) -> str:
            return str(await (await h.start(agent, AgentInput(prompt=[*said], thread="lila"))).result(5))

        assert await say("First", image) == "one"
        with pytest.raises(RunFailed, match="InvalidInput: the conversation holds 120000 bytes"):
            await say("Second", image)
        assert await say("Then only this") == "two"


async def test_a_summary_says_that_there_was_an_image(sqlite_url: str) -> None:
    app, agent = viewer(compaction=Compaction(at_tokens=100, keep_turns=1))
    asked: list[str] = []

    def reply(request: ModelRequest) -> str:
        if request.instructions == INSTRUCTIONS:
            asked.append(request.prompt)
            assert request.media == []
            return "summary"
        return "word " * 100

    model = ScriptedModel([reply] * 5)
    async with harness(app, model=model, database_url=sqlite_url) as h:
        first = AgentInput(prompt=["What is this?", IMAGE, FILE], thread="lila")
        await (await h.start(agent, first)).result(5)
        await (await h.start(agent, AgentInput("Sure?", thread="lila"))).result(5)
    assert len(asked) == 1
    assert (
        "[user]\nWhat is this?\n[image/png, 8 bytes: not shown]\n[terms.txt]\nRefunds: 30 days." in asked[0]
    )
    assert model.requests[-1].media == []


async def test_an_image_does_not_set_off_a_summary_by_its_bytes(sqlite_url: str) -> None:
    app, agent = viewer(compaction=Compaction(at_tokens=10_000, keep_turns=1))
    large = ImagePart.from_bytes(bytes(1_000_000), "image/png")
    model = ScriptedModel(["one", "two"])
    async with harness(app, model=model, database_url=sqlite_url) as h:
        await (await h.start(agent, AgentInput(prompt=["First", large], thread="lila"))).result(5)
        assert await (await h.start(agent, AgentInput("Second", thread="lila"))).result(5) == "two"
    assert model.requests[1].media == [large]


# --- what tools give ------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [RESPONSES, CLAUDE])
@pytest.mark.parametrize("shape", ["part", "list"])
async def test_a_tool_gives_an_image_that_the_model_is_shown(
    provider: FakeProvider, database_url: str, model: str, shape: str
) -> None:
    paintings = 0

    @tool
    async def paint() -> Any:
        nonlocal paintings
        paintings += 1
        return AT if shape == "part" else ["Here: ", AT, FILE]

    app, agent = viewer(model, tools=[paint])
    provider.add(call("paint"), "a dot")
    async with harness(app, database_url=database_url, replay_every_step=True) as h:
        assert await (await h.start(agent, "Paint.")).result(5) == "a dot"
    assert paintings == 1
    body = provider.requests[-1].body
    told = (
        body["input"][-1]["output"] if model == RESPONSES else body["messages"][-1]["content"][0]["content"]
    )
    image = {
        RESPONSES: {"type": "input_image", "detail": "auto", "image_url": AT.url},
        CLAUDE: {"type": "image", "source": {"type": "url", "url": AT.url}},
    }[model]
    assert image in told
    assert len(told) == (1 if shape == "part" else 3)


async def test_a_prompt_cache_is_used_and_accounted_for(
    provider: FakeProvider, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, agent = viewer(instructions="Be brief.", settings=ModelSettings(cache="1h"))
    provider.add("a dot")
    with caplog.at_level(logging.WARNING):
        async with harness(app, database_url=sqlite_url, replay_every_step=True) as h:
            with crash_after("after_request"):
                run = await h.start(agent, ["Look", IMAGE])
                await h.idle()
            provider.add("a dot")
            await h.restart()
            await h.advance("1m")
            assert await run.result(5) == "a dot"
    bodies = [request.body for request in provider.requests]
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
    assert bodies[0]["messages"][0]["content"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert "would ask something else" not in caplog.text
