"""Anthropic's models for agentflow: `anthropic:claude-sonnet-4-5`, or `Anthropic("claude-sonnet-4-5")`."""

from agentflow_anthropic.provider import Anthropic

__all__ = ["Anthropic"]
