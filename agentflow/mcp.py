"""MCP servers as tool sources: give an `McpStdio` or an `McpHttp` to an agent among its `tools`."""

from agentflow.agents.mcp import McpHttp, McpServer, McpStdio

__all__ = ["McpHttp", "McpServer", "McpStdio"]
