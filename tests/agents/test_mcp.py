"""MCP servers as sources of tools: real servers, written with the official SDK, in processes of their own."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentflow import Agent, App, Approval, Approve, Deny, Edit, ModelRequest, tool
from agentflow.agents.mcp import as_result
from agentflow.agents.signatures import ArgumentsInvalid
from agentflow.errors import ConfigurationError, RunFailed
from agentflow.mcp import McpHttp, McpServer, McpStdio
from agentflow.models.response import ToolSpec
from agentflow.testing import ScriptedModel, harness
from tests.agents.mcp_server import PIXEL
from tests.agents.support import call, results_in, steps_of
from tests.crash.processes import lines
from tests.forked import ROOT
from tests.http.servers import Server

TRANSPORTS = pytest.mark.parametrize("transport", ["stdio", "http"])


class Servers:
    """MCP servers as processes, and what they noted."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.http: Server | None = None

    def make(self, transport: str, name: str = "files", **options: Any) -> McpServer:
        if transport == "http":
            if self.http is None:
                self.start_http()
            return McpHttp(name, self.url, **options)
        environment = {"MCP_LOG": str(self.log), "PYTHONPATH": str(ROOT)}
        return McpStdio(
            name, sys.executable, "-m", "tests.agents.mcp_server", env=environment, cwd=ROOT, **options
        )

    def start_http(self) -> None:
        self.http = Server("tests.agents.mcp_server:http", {"MCP_LOG": str(self.log)})
        self.http.start()

    @property
    def url(self) -> str:
        assert self.http is not None
        return f"http://127.0.0.1:{self.http.port}/mcp"

    def noted(self, what: str) -> list[tuple[int, str]]:
        """Process and key of each note that begins so."""
        found = [line.split() for line in lines(self.log)]
        return [(int(pid), key) for pid, *said, key in found if " ".join(said) == what]

    async def wait_for(self, what: str) -> int:
        """The process that noted it first."""
        while not (found := self.noted(what)):
            await asyncio.sleep(0.01)
        return found[0][0]


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    group = Servers(tmp_path / "mcp.log")
    yield group
    if group.http is not None:
        group.http.kill()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def clerk(server: McpServer, **arguments: Any) -> tuple[App, Agent[Any, Any]]:
    app = App("archive")
    agent: Agent[Any, Any] = Agent("clerk", model="test:none", tools=[server], **arguments)
    app.add(agent)
    return app, agent


def asking(*calls: Any) -> tuple[ScriptedModel, list[ModelRequest]]:
    """A model that makes these calls, one turn each, then ends; and what it was asked."""
    asked: list[ModelRequest] = []

    def reply(number: int) -> Callable[[ModelRequest], Any]:
        def answer(request: ModelRequest) -> Any:
            asked.append(request)
            return calls[number] if number < len(calls) else "done"

        return answer

    return ScriptedModel([reply(number) for number in range(len(calls) + 1)]), asked


@TRANSPORTS
async def test_a_servers_tools_are_listed_and_called_as_steps(servers: Servers, transport: str) -> None:
    app, agent = clerk(servers.make(transport))
    model, asked = asking(
        [call("echo", text="hello"), call("find_order", id="7"), call("picture", caption="a dot")],
        call("fail", text="no such file"),
    )
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        assert await run.result() == "done"
        steps = await steps_of(app, run.id)
    assert list(steps)[:2] == ["clerk#0/mcp/files", "clerk#0/turn0/model"]
    assert {"clerk#0/turn0/0:echo", "clerk#0/turn0/1:find_order", "clerk#0/turn1/0:fail"} < set(steps)
    assert [spec["name"] for spec in steps["clerk#0/mcp/files"].output][:2] == ["echo", "find_order"]
    spec = next(spec for spec in asked[0].tools if spec.name == "echo")
    assert (spec.description, spec.schema["required"]) == ("Say it again.", ["text"])
    text, order, picture = asked[1].messages[-1].tool_results
    assert (text.content, order.content) == ("hello", {"id": "7", "total": 12})
    caption, image = picture.blocks
    assert caption.text == "a dot"  # type: ignore[union-attr]
    assert base64.b64decode(image.data) == PIXEL  # type: ignore[union-attr]
    assert picture.text == f"a dot\n[image/png, {len(PIXEL)} bytes: not shown]"
    [failed] = asked[2].messages[-1].tool_results
    assert (failed.content, failed.is_error) == ("Error executing tool fail: no such file", True)
    # The server may deduplicate by what every tool has as `ctx.idempotency_key`.
    assert [key for _, key in servers.noted("echo:hello")] == [f"{run.id}:clerk#0/turn0/0:echo"]


async def test_what_a_server_gives_and_no_database_keeps_does_not_fail_the_run(servers: Servers) -> None:
    app, agent = clerk(servers.make("stdio"))
    model, asked = asking(call("dump", size=2))
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        assert await run.result(5) == "done"
    assert asked[1].messages[-1].tool_results[0].content == "\ufffd\ufffdELF"


async def test_a_servers_process_ends_with_the_app_and_no_run_starts_a_second_one(servers: Servers) -> None:
    app, agent = clerk(servers.make("stdio"))
    both = ScriptedModel(
        [lambda request: call("echo", text="a") if len(request.messages) == 1 else "done"] * 4
    )
    async with harness(app, model=both) as h:
        runs = [await h.start(agent, "Go."), await h.start(agent, "Go again.")]
        await h.idle()
        assert [await run.result() for run in runs] == ["done", "done"]
        [(pid, _)] = servers.noted("started")
        assert is_alive(pid)
    assert not is_alive(pid)


async def test_a_server_gets_nothing_of_our_environment(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    app, agent = clerk(servers.make("stdio"))
    model, asked = asking(call("environment"))
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        await run.result()
    [given] = results_in(asked[1])
    assert given["MCP_LOG"] == str(servers.log)
    assert "OPENAI_API_KEY" not in given


@TRANSPORTS
async def test_a_person_decides_about_the_tools_that_are_named(servers: Servers, transport: str) -> None:
    server = servers.make(transport, approval={"echo": Approval(timeout="1h")}, only=["echo", "find_order"])
    app, agent = clerk(server)
    calls = [call("echo", text=text) for text in ("one", "two", "three", "four")]
    model, asked = asking([*calls, call("find_order", id="1")])
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        assert servers.noted("echo:one") == []
        requests = {request.args["text"]: request for request in (await app.approvals.list()).data}  # type: ignore[index]
        await app.approvals.decide(requests["one"].id, Approve(), by="ana")
        await app.approvals.decide(requests["two"].id, Deny("not that"), by="ana")
        await app.approvals.decide(requests["three"].id, Edit({"text": "3"}), by="ana")
        await app.approvals.decide(requests["four"].id, Edit({"words": 4}), by="ana")
        await h.idle()
        await run.result()
    one, two, three, four, order = results_in(asked[1])
    assert (one, two, three, order) == ("one", "not that", "3", {"id": "1", "total": 12})
    assert "do not validate" in four
    said = {line.split()[1] for line in lines(servers.log) if "echo:" in line}
    assert said == {"echo:one", "echo:3"}


async def test_arguments_that_do_not_fit_are_told_to_the_model_and_never_sent(servers: Servers) -> None:
    app, agent = clerk(servers.make("stdio"))
    model, asked = asking([call("echo", text=5), call("echo")])
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        await run.result()
    assert results_in(asked[1]) == [
        "The arguments do not validate: text: 5 is not of type 'string'",
        "The arguments do not validate: 'text' is a required property",
    ]
    assert not [line for line in lines(servers.log) if "echo" in line]


@pytest.mark.crash
@TRANSPORTS
async def test_a_server_killed_in_the_middle_of_a_call_is_there_again_on_the_next_try(
    servers: Servers, transport: str
) -> None:
    server = servers.make(transport)
    app, agent = clerk(server)
    model, asked = asking(call("echo", text="before"), call("wait_to_be_killed"))
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        pid = await servers.wait_for("wait_to_be_killed")
        if isinstance(server, McpHttp):
            assert servers.http is not None
            servers.http.kill()
            servers.start_http()
            server.url = servers.url
        else:
            os.kill(pid, signal.SIGKILL)
        await h.idle()
        key = "clerk#0/turn1/0:wait_to_be_killed"
        step = (await steps_of(app, run.id))[key]
        assert step.error is not None
        assert step.error.name == "ConnectionError"
        assert "called tool 'wait_to_be_killed', and the connection broke" in step.error.message
        await h.advance("1m")
        assert await run.result() == "done"
        assert (await steps_of(app, run.id))[key].attempts == 2
    assert results_in(asked[2]) == ["survived"]
    first, second = servers.noted("wait_to_be_killed")
    assert first[0] != second[0]
    assert first[1] == second[1]  # the key is the step's, not the attempt's


async def test_a_server_that_hangs_is_ended_and_started_again_on_the_next_try(servers: Servers) -> None:
    app, agent = clerk(servers.make("stdio", timeout="3s"))
    model, asked = asking(call("stand_still"))
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        step = (await steps_of(app, run.id))["clerk#0/turn0/0:stand_still"]
        assert step.error is not None
        assert "did not answer within 3 s (timeout=)" in step.error.message
        await h.advance("1m")
        assert await run.result() == "done"
    assert results_in(asked[1]) == ["moved"]
    (hung, _), (fresh, _) = servers.noted("started")
    assert hung != fresh
    assert not is_alive(hung)


async def test_a_call_that_takes_too_long_does_not_cost_the_server_its_process(servers: Servers) -> None:
    app, agent = clerk(servers.make("stdio", timeout="1s"))
    model, asked = asking(call("take_long"))
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        await h.advance("1m")
        assert await run.result() == "done"
    assert results_in(asked[1]) == ["done"]
    assert len(servers.noted("started")) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("no-such-program",), "cannot be reached: FileNotFoundError"),
        ((sys.executable, "-c", "import nothing_such"), "No module named 'nothing_such'"),
        (("sleep", "60"), "was not ready within 0.3 s (connect_timeout=)"),
    ],
    ids=["no program", "dies at once", "says nothing"],
)
async def test_a_server_that_does_not_start_fails_the_run_and_says_why(
    arguments: tuple[str, ...], told: str
) -> None:
    app, agent = clerk(
        McpStdio("files", *arguments, retry=1, connect_timeout=0.3 if "sleep" in arguments else 30)
    )
    async with harness(app, model=ScriptedModel([])) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        await h.advance("1m")
        with pytest.raises(RunFailed) as failed:
            await run.result()
        steps = await steps_of(app, run.id)
    assert told in failed.value.error.message
    assert "MCP server 'files'" in failed.value.error.message
    assert failed.value.error.step_id == "clerk#0/mcp/files"
    assert steps["clerk#0/mcp/files"].attempts == 2


@tool(approval=True)
async def publish() -> str:
    """Publish it."""
    return "published"


@TRANSPORTS
async def test_replay_needs_no_server(servers: Servers, transport: str, database_url: str) -> None:
    """The run goes on where nothing listens at the URL, and no such program is."""

    def make(server: McpServer) -> tuple[App, Agent[Any, Any]]:
        app = App("archive")
        agent: Agent[Any, Any] = Agent("clerk", model="test:none", tools=[server, publish])
        app.add(agent)
        return app, agent

    app, agent = make(servers.make(transport))
    model, _ = asking(call("echo", text="a"), call("publish"))
    async with harness(app, database_url=database_url, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        [request] = (await app.approvals.list(status="pending")).data
    noted = lines(servers.log)
    if servers.http is not None:
        servers.http.kill()
    gone = McpStdio("files", "no-such-program") if transport == "stdio" else McpHttp("files", servers.url)
    app, agent = make(gone)
    last: list[ModelRequest] = []
    model = ScriptedModel([lambda request: last.append(request) or "done"])
    async with harness(app, database_url=database_url, model=model) as h:
        await app.approvals.decide(request.id, Approve(), by="ana")
        await h.idle()
        assert await app.runs.handle(run.id).result() == "done"
    assert results_in(last[0]) == ["published"]
    assert "echo" in [spec.name for spec in last[0].tools]
    assert lines(servers.log) == noted


# ------------------------------------------------------------------------------------------------ configuration


async def failure(app: App, agent: Agent[Any, Any]) -> str:
    async with harness(app, model=ScriptedModel([])) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        with pytest.raises(RunFailed) as failed:
            await run.result()
    assert failed.value.error.name == "ConfigurationError"
    return failed.value.error.message


async def test_two_tools_of_one_name_are_refused_and_a_prefix_parts_them(servers: Servers) -> None:
    @tool
    async def echo(text: str) -> str:
        """Mine."""
        return text

    app = App("archive")
    agent: Agent[Any, Any] = Agent("clerk", model="test:none", tools=[echo, servers.make("stdio")])
    app.add(agent)
    told = await failure(app, agent)
    assert "'echo' is there twice: it comes from MCP server 'files': give that a prefix=" in told

    app = App("archive")
    agent = Agent("clerk", model="test:none", tools=[echo, servers.make("stdio", prefix="files_")])
    app.add(agent)
    model, asked = asking([call("echo", text="a"), call("files_echo", text="b")])
    async with harness(app, model=model) as h:
        run = await h.start(agent, "Go.")
        await h.idle()
        await run.result()
    assert results_in(asked[1]) == ["a", "b"]
    assert [line.split()[1] for line in lines(servers.log) if "echo" in line] == ["echo:b"]


async def test_only_names_tools_that_there_are(servers: Servers) -> None:
    app, agent = clerk(servers.make("stdio", only=["echo", "shout"]))
    assert "has no tool 'shout' (only=); it has: echo, find_order" in await failure(app, agent)


async def test_agents_that_hand_over_share_a_servers_list(servers: Servers) -> None:
    server = servers.make("stdio", only=["echo"])
    app = App("archive")
    second: Agent[Any, Any] = Agent("second", model="test:none", tools=[server])
    first: Agent[Any, Any] = Agent("first", model="test:none", tools=[server], handoffs=[second])
    app.add(first)
    model, asked = asking(call("transfer_to_second"), call("echo", text="a"))
    async with harness(app, model=model) as h:
        run = await h.start(first, "Go.")
        await h.idle()
        await run.result()
        keys = [key for key in await steps_of(app, run.id) if "/mcp/" in key]
    assert keys == ["first#0/mcp/files"]
    assert results_in(asked[2]) == ["a"]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: McpStdio("a b", "x"), "a name has letters"),
        (lambda: McpHttp("files", "ftp://x"), "is no http"),
        (lambda: McpStdio("files", "x", only="echo"), "give a list of names"),
        (lambda: McpStdio("files", "x", approval="yes"), "approval='yes'"),
        (lambda: McpStdio("files", "x", timeout=0), "give more than nothing"),
        (lambda: McpStdio("files", "x", tiemout=1), "has no option tiemout"),
        (lambda: McpStdio("files", "x", effect="twice"), "effect='twice'"),
        (
            lambda: Agent("a", model="test:none", tools=[McpStdio("files", "x"), McpStdio("files", "y")]),
            "two MCP servers called 'files'",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_where_it_is_written(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        make()


def test_no_secret_is_in_the_name_of_a_server() -> None:
    shown = [
        repr(
            McpHttp("files", "https://user:canary@x.test/mcp?key=canary", headers={"Authorization": "canary"})
        ),
        repr(McpStdio("files", "/usr/bin/serve", "--key", "canary", env={"KEY": "canary"})),
    ]
    assert shown == ["<McpHttp files: https://x.test/mcp>", "<McpStdio files: serve>"]


def test_an_overridden_agent_keeps_its_servers() -> None:
    server = McpStdio("files", "x")
    agent: Agent[Any, Any] = Agent("clerk", model="test:none", tools=[publish, server])
    changed = agent.override(model="test:other")
    assert (changed.tools, changed.servers) == (agent.tools, (server,))
    assert agent.override(tools=[publish]).servers == ()


async def test_a_schema_that_refers_to_a_url_fetches_nothing() -> None:
    connections = 0

    def count(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    listening = await asyncio.start_server(count, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        spec = ToolSpec(name="a", description="", schema={"$ref": f"http://127.0.0.1:{port}/schema.json"})
        with pytest.raises(ArgumentsInvalid, match="refers to what is not in it"):
            await asyncio.to_thread(McpStdio("files", "x").tool(spec).validate, {})
        await asyncio.sleep(0)
        assert connections == 0


def test_names_become_what_the_models_take() -> None:
    spec = ToolSpec(name="files.read/v2", description="", schema={})
    assert McpStdio("files", "x", prefix="my.").tool(spec).name == "my_files_read_v2"


def test_content_that_no_model_is_shown_is_said_to_be_there() -> None:
    import mcp_types as theirs

    contents: list[theirs.ContentBlock] = [
        theirs.AudioContent(data="AAAA", mime_type="audio/wav"),
        theirs.ResourceLink(name="readme", uri="file:///readme.md"),
        theirs.EmbeddedResource(resource=theirs.TextResourceContents(uri="file:///a.txt", text="inside")),
        theirs.EmbeddedResource(
            resource=theirs.BlobResourceContents(
                uri="file:///a.zip", blob="AAA=", mime_type="application/zip"
            )
        ),
    ]
    assert as_result(theirs.CallToolResult(content=contents)) == (
        "[audio/wav, 3 bytes: not shown]\n[readme: file:///readme.md]\ninside\n"
        "[file:///a.zip, application/zip, 2 bytes: not shown]"
    )
