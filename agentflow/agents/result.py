"""What an agent is asked, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Generic, TypeAlias

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeVar

from agentflow.models.messages import Message, MessageLike
from agentflow.models.response import Usage

T = TypeVar("T", default=Any)

Prompt: TypeAlias = MessageLike | Sequence[MessageLike]
"""A str, text with images and files (a list of str and parts), or a conversation that ends with the user."""


class AgentResult(BaseModel, Generic[T]):
    """The outcome of an agent's run."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    output: T
    messages: list[Message]
    """The whole conversation, the prompt first."""
    usage: Usage
    """Tokens of the agent and of its sub-agents."""
    cost: Decimal | None
    """US dollars; `None` when the cost of one call is not known."""
    steps: list[str]
    """The keys of the agent's steps, in the order in which they were called."""
