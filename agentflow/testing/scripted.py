"""Models for tests: replies from a list, replies from a function, or none at all."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable

from agentflow.errors import ProviderError
from agentflow.models.failures import exception_failure
from agentflow.models.function import FunctionModel
from agentflow.models.protocol import Failure
from agentflow.models.registry import block_models
from agentflow.models.replies import Reply
from agentflow.models.response import ModelRequest

__all__ = ["FunctionModel", "ScriptExhausted", "ScriptedModel", "block_models"]

ScriptedReply = Reply | Callable[[ModelRequest], Reply | Awaitable[Reply]]


class ScriptExhausted(AssertionError):
    """The model was asked more often than the test foresaw."""


class ScriptedModel(FunctionModel):
    """Gives the replies of a list, one for each call.

    A reply is a str, a `ToolCall` or a list of them, a model or dict (structured output), an exception to
    raise, a `ModelResponse`, or a function of the `ModelRequest`, sync or async, that returns one of these.
    Running out is an error. A worker that crashes and restarts in this process goes on where the list
    stands, as a real model would.

        model = ScriptedModel([ToolCall(name="lookup_order", args={"order_id": "7"}), "It is on its way."])
        ...
        assert len(model.requests) == 2
    """

    provider = "scripted"

    def __init__(self, replies: Iterable[ScriptedReply], *, name: str = "scripted") -> None:
        super().__init__(self._next_reply, name=name)
        self.replies: list[ScriptedReply] = list(replies)
        self.requests: list[ModelRequest] = []

    @property
    def remaining(self) -> int:
        """How many replies have not been given yet."""
        return max(0, len(self.replies) - len(self.requests))

    def classify(self, error: BaseException) -> Failure:
        if isinstance(error, ScriptExhausted):
            return Failure(ProviderError(str(error), provider=self.provider, model=self.model))
        return exception_failure(error, provider=self.provider, model=self.model)

    async def _next_reply(self, request: ModelRequest) -> Reply:
        # Counted before the reply is made: a call that fails is a call.
        self.requests.append(request)
        position = len(self.requests)
        if position > len(self.replies):
            raise ScriptExhausted(
                f"{self!r} has {len(self.replies)} replies and was asked {position} times; the last message: "
                f"{request.messages[-1]!r}"
            )
        reply = self.replies[position - 1]
        if not callable(reply):
            return reply
        made = reply(request)
        return await made if inspect.isawaitable(made) else made
