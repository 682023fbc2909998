"""An MCP server written with the official SDK, run by the tests as a process: over stdio as a module, over HTTP by
uvicorn as `tests.agents.mcp_server:http`. It notes in a file who called what, under which key."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from mcp.server.mcpserver import Context, Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301"
    "0100c9fe92ef0000000049454e44ae426082"
)
LOG = os.environ.get("MCP_LOG", os.devnull)

server: MCPServer[Any] = MCPServer("files", log_level="ERROR")


class Order(BaseModel):
    id: str
    total: int


def note(what: str, ctx: Context[Any, Any] | None = None) -> None:
    meta = None if ctx is None else ctx.request_context.meta
    key = dict(meta or {}).get("agentflow/idempotency_key", "-")
    file = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{os.getpid()} {what} {key}\n".encode())
    os.close(file)


@server.tool()
async def echo(text: str, ctx: Context[Any, Any]) -> str:
    """Say it again."""
    note(f"echo:{text}", ctx)
    return text


@server.tool()
async def find_order(id: str) -> Order:
    """Find an order."""
    return Order(id=id, total=12)


@server.tool(structured_output=False)
async def picture(caption: str) -> list[Any]:
    """Paint."""
    return [caption, Image(data=PIXEL, format="png")]


@server.tool()
async def dump(size: int) -> str:
    """Show what no text is."""
    return "\x00" * size + "ELF"


@server.tool()
async def fail(text: str) -> str:
    """Fail."""
    raise ToolError(text)


@server.tool()
async def environment() -> dict[str, str]:
    """What this process was given."""
    return dict(os.environ)


@server.tool()
async def stand_still(ctx: Context[Any, Any]) -> str:
    """The first process to be asked says nothing more at all; later ones answer."""
    note("stand_still", ctx)
    if is_first("stand_still"):
        import time

        time.sleep(600)  # noqa: ASYNC251 - this is the hanging that is tested
    return "moved"


@server.tool()
async def take_long(ctx: Context[Any, Any]) -> str:
    """The first call takes too long, while others are answered."""
    note("take_long", ctx)
    if is_first("take_long"):
        await asyncio.sleep(600)
    return "done"


@server.tool()
async def wait_to_be_killed(ctx: Context[Any, Any]) -> str:
    """The first call never ends; a later one does."""
    note("wait_to_be_killed", ctx)
    if is_first("wait_to_be_killed"):
        await asyncio.sleep(600)
    return "survived"


def is_first(what: str) -> bool:
    with open(LOG) as log:
        return sum(f" {what} " in line for line in log) == 1


http = server.streamable_http_app()

if __name__ == "__main__":
    note("started")
    print("files: ready", file=sys.stderr, flush=True)
    server.run("stdio")
