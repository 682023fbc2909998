"""MCP servers as sources of tools: which there are is a step of the run, and each call is a step like any other's."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict
from urllib.parse import urlsplit, urlunsplit

from pydantic import ValidationError
from typing_extensions import Unpack

from agentflow.agents.mcp_sessions import session_of
from agentflow.agents.signatures import Arguments, ArgumentsInvalid
from agentflow.agents.tools import Effect, Tool, ToolContext
from agentflow.approvals import Approval
from agentflow.durations import Duration, parse_duration
from agentflow.errors import ConfigurationError, ToolFailed
from agentflow.models.media import ImagePart
from agentflow.models.response import ToolSpec
from agentflow.retry import Retry
from agentflow.roundtrip import storable_text, with_texts

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult, ContentBlock

_NAME = re.compile(r"[\w.-]{1,100}")


class ToolOptions(TypedDict, total=False):
    """How the tools of a server are used."""

    only: Sequence[str] | None
    """The tools to take, by the server's names; all of them without it."""
    prefix: str
    """What the model sees before each name."""
    approval: bool | Approval | Mapping[str, bool | Approval]
    """As of `@tool`, for all tools, or by the server's names for those that are named."""
    retry: Retry | None
    timeout: Duration
    """What one call may take, "60s" without it. It is never without: a server may hang."""
    effect: Effect
    connect_timeout: Duration
    """What the start of the server and the handshake may take, "30s" without it."""


class McpServer:
    """A server that gives tools: `McpStdio` or `McpHttp`. Give it to an agent among its `tools`."""

    def __init__(self, name: str, **options: Unpack[ToolOptions]) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"MCP server {name!r}: a name has letters, digits, '.', '-' and '_'")
        if unknown := set(options) - set(ToolOptions.__annotations__):
            raise ConfigurationError(f"MCP server {name!r} has no option {', '.join(sorted(unknown))}")
        self.name = name
        self.prefix = options.get("prefix", "")
        only = options.get("only")
        if isinstance(only, str):
            raise ConfigurationError(f"MCP server {name!r}: only={only!r}: give a list of names")
        self.only = None if only is None else tuple(only)
        self.approval = options.get("approval", False)
        self.retry = options.get("retry")
        self.effect: Effect = options.get("effect", "idempotent")
        self.timeout_seconds = _seconds(name, "timeout", options.get("timeout", "60s"))
        self.connect_timeout_seconds = _seconds(
            name, "connect_timeout", options.get("connect_timeout", "30s")
        )
        self.tool(
            ToolSpec(name="any", description="", schema={})
        )  # raises what each of its tools would raise

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.address}>"

    @property
    def address(self) -> str:
        """Where it is, for messages: without secrets."""
        raise NotImplementedError

    async def connect(self, stack: AsyncExitStack, hear: Callable[[str], None]) -> Client:
        """Connect to it."""
        raise NotImplementedError

    async def list_tools(self) -> list[ToolSpec]:
        """The tools it has now, those of `only`. Raises `ConnectionError`, `TimeoutError`, `ConfigurationError`."""
        found = {
            tool.name: ToolSpec(
                name=tool.name, description=tool.description or tool.title or "", schema=tool.input_schema
            )
            for tool in await session_of(self).list_tools()
        }
        chosen = tuple(found) if self.only is None else self.only
        if missing := [name for name in chosen if name not in found]:
            raise ConfigurationError(
                f"MCP server {self.name!r} has no tool {', '.join(map(repr, missing))} (only=); it has: "
                f"{', '.join(found) or 'none'}"
            )
        for name in chosen:
            _check_schema(self, found[name])
        return [found[name] for name in chosen]

    def tool(self, listed: ToolSpec) -> McpTool:
        """One of its tools, as an agent's."""
        return McpTool(self, listed)

    def _client(self, transport: Any) -> Client:
        from importlib.metadata import version

        from mcp import Client
        from mcp_types import Implementation

        return Client(
            transport,
            read_timeout_seconds=self.timeout_seconds,
            client_info=Implementation(name="agentflow", version=version("agentflow-steps")),
        )


class McpStdio(McpServer):
    """A server that is a program: it is started when first needed, and ended when the App is closed.

        files = McpStdio("files", "uvx", "files-server", "/srv/texts", approval={"delete": True})
        agent = Agent("archivist", model=..., tools=[files])

    The program gets `env` and the few variables that every program needs (PATH, HOME), nothing else of ours. What it
    writes to stderr goes to the log `agentflow.mcp`.
    """

    def __init__(
        self,
        name: str,
        command: str,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        **options: Unpack[ToolOptions],
    ) -> None:
        self.command = command
        self.args = args
        self.env = dict(env or {})
        self.cwd = cwd
        super().__init__(name, **options)

    @property
    def address(self) -> str:
        return Path(self.command).name  # its arguments may hold a key

    async def connect(self, stack: AsyncExitStack, hear: Callable[[str], None]) -> Client:
        from mcp.client.stdio import StdioServerParameters, stdio_client

        parameters = StdioServerParameters(
            command=self.command, args=list(self.args), env=self.env, cwd=self.cwd
        )
        read_end, write_end = os.pipe()
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
        )
        stack.callback(transport.close)
        listening = asyncio.create_task(_listen(reader, hear))
        stack.push_async_callback(_stop, listening)
        with os.fdopen(write_end, "w") as stderr:
            try:
                return await stack.enter_async_context(self._client(stdio_client(parameters, errlog=stderr)))
            except BaseException:
                stderr.close()
                await asyncio.wait([listening], timeout=0.5)  # what it said before it died
                raise


class McpHttp(McpServer):
    """A server at a URL, over streamable HTTP.

        tickets = McpHttp("tickets", "https://mcp.example.com/mcp", headers={"Authorization": f"Bearer {key}"})

    `headers` may be a function, called for each connection. The headers are in no message and no memo.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        **options: Unpack[ToolOptions],
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(f"MCP server {name!r}: {url!r} is no http(s) URL")
        self.url = url
        self._headers = headers
        super().__init__(name, **options)

    @property
    def address(self) -> str:
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    async def connect(self, stack: AsyncExitStack, hear: Callable[[str], None]) -> Client:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        given = self._headers() if callable(self._headers) else self._headers
        # The call's own clock rules; a stream that is silent for longer than a call may take is broken.
        timeout = httpx2.Timeout(self.connect_timeout_seconds, read=self.timeout_seconds + 30)
        http = await stack.enter_async_context(httpx2.AsyncClient(headers=dict(given or {}), timeout=timeout))
        return await stack.enter_async_context(
            self._client(streamable_http_client(self.url, http_client=http))
        )


class McpTool(Tool[..., Any]):
    """A tool of a server."""

    def __init__(self, server: McpServer, listed: ToolSpec) -> None:
        async def call(arguments: dict[str, Any], context: ToolContext[Any]) -> Any:
            session = session_of(server)
            result = as_result(await session.call_tool(listed.name, arguments, key=context.idempotency_key))
            return with_texts(result, storable_text)  # or a server's NUL would fail the run

        super().__init__(
            call,
            name=_model_name(server.prefix + listed.name),
            description=listed.description,
            approval=_approval(server, listed.name),
            retry=server.retry,
            effect=server.effect,
        )
        self.server = server
        self._listed = listed
        self._checker: Any = None

    @property
    def schema(self) -> dict[str, Any]:
        return self._listed.schema

    def validate(self, given: dict[str, Any]) -> Arguments:
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        if self._checker is None:
            self._checker = _validator(self.schema)
        try:
            error = best_match(self._checker.iter_errors(given))
        except Unresolvable as unresolvable:
            raise ArgumentsInvalid(
                f"The arguments cannot be checked: the schema of {self.name!r} refers to what is not in it: "
                f"{unresolvable}"
            ) from unresolvable
        if error is not None:
            where = ".".join(map(str, error.absolute_path))
            raise ArgumentsInvalid(
                f"The arguments do not validate: {f'{where}: ' if where else ''}{error.message}"
            )
        return Arguments(values={"arguments": given}, json=given)

    def plain(self, arguments: Arguments) -> dict[str, Any]:
        return dict(arguments.json)


def as_result(result: CallToolResult) -> Any:
    """What a model is told of a call. Raises `ToolFailed` where the server says that it failed."""
    blocks = [_block(item) for item in result.content]
    texts = [block for block in blocks if isinstance(block, str)]
    if result.is_error:
        raise ToolFailed("\n".join(texts) or "The tool failed, and its server does not say why.")
    if len(texts) < len(blocks):
        return [
            {"kind": "text", "text": block} if isinstance(block, str) else block.model_dump()
            for block in blocks
        ]
    structured = result.structured_content
    # A server wraps a plain text as {"result": text}, as structure has to be an object in older protocols.
    if structured is not None and structured != {"result": "\n".join(texts)}:
        return structured
    return "\n".join(texts)


def _block(item: ContentBlock) -> str | ImagePart:
    match item.type:
        case "text":
            return item.text
        case "image":
            return _image(item.mime_type, item.data) or _not_shown(item.mime_type, item.data)
        case "audio":
            return _not_shown(item.mime_type, item.data)
        case "resource_link":
            return f"[{item.title or item.name}: {item.uri}]"
        case "resource":
            resource = item.resource
            text: str | None = getattr(resource, "text", None)
            if text is not None:
                return text
            kind, data = resource.mime_type or "application/octet-stream", getattr(resource, "blob", "")
            return _image(kind, data) or _not_shown(f"{resource.uri}, {kind}", data)


_SHOWN = ("image/png", "image/jpeg", "image/gif", "image/webp")


def _image(kind: str, data: str) -> ImagePart | None:
    """The image; `None` where it is none that a model is shown, or is not told as MCP wants it."""
    if kind not in _SHOWN:
        return None
    try:
        return ImagePart(media_type=kind, data=data)
    except ValidationError:
        return None


def _not_shown(what: str, data: str) -> str:
    return f"[{what}, {len(data.rstrip('=')) * 3 // 4} bytes: not shown]"


def _approval(server: McpServer, tool: str) -> bool | Approval:
    given = server.approval
    if isinstance(given, bool | Approval):
        return given
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"MCP server {server.name!r}: approval={given!r}: give True, an Approval, or a dict by the tools' names"
        )
    return given.get(tool, False)


def _model_name(name: str) -> str:
    """As both big APIs take it; MCP allows more."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64]


def _check_schema(server: McpServer, listed: ToolSpec) -> None:
    from jsonschema.exceptions import SchemaError

    validator = _validator(listed.schema)
    try:
        validator.check_schema(listed.schema)
    except SchemaError as error:
        raise ConfigurationError(
            f"MCP server {server.name!r}: the schema of tool {listed.name!r} is no JSON Schema: {error.message}. "
            "Leave the tool out with only="
        ) from error


def _validator(schema: dict[str, Any]) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for
    from referencing import Registry

    # An empty registry: without one, a `$ref` to a URL would be fetched from wherever the server says.
    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())


def _seconds(name: str, option: str, given: Duration) -> float:
    length = parse_duration(given)
    if length <= timedelta(0):
        raise ConfigurationError(f"MCP server {name!r}: {option}={given!r}: give more than nothing")
    return length.total_seconds()


async def _listen(reader: asyncio.StreamReader, hear: Callable[[str], None]) -> None:
    while said := await reader.read(8192):
        hear(said.decode("utf-8", "replace"))


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
