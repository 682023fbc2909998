"""OpenAI's completion windows: a background response that is ready in two or in eight hours, for less."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from agentflow.providers import (
    BackgroundModel,
    DeferredModel,
    Latency,
    ModelRequest,
    RawAnswer,
    Submitted,
    at_once,
)

SubmitForWindow = Callable[[ModelRequest, Latency, Mapping[str, str]], Awaitable[Submitted]]


class Windowed(DeferredModel):
    """A model whose calls are background responses with a completion window."""

    def __init__(self, model: BackgroundModel, latency: Latency, *, submit: SubmitForWindow) -> None:
        super().__init__(model, latency)
        self._jobs = model
        self._submit = submit

    async def submit(
        self, request: ModelRequest, *, metadata: Mapping[str, str], stream: bool = False
    ) -> Submitted:
        return await self._submit(at_once(request), self._latency, metadata)

    async def poll(self, provider_id: str) -> RawAnswer | None:
        return await self._jobs.poll(provider_id)

    async def cancel(self, provider_id: str) -> None:
        await self._jobs.cancel(provider_id)
