"""pytest fixtures, found by entry point: `harness`, `block_models`, `fake_provider`. Imports nothing heavy itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture
def harness() -> Callable[..., Any]:
    """`agentflow.testing.app_harness`: `async with harness(app, model=...) as h:`."""
    from agentflow.testing.app_harness import harness

    return harness


@pytest.fixture
def block_models() -> Iterator[None]:
    """In this test a call to a model that could cost money is an error."""
    from agentflow.models.registry import block_models

    with block_models():
        yield


@pytest.fixture
def fake_provider() -> Callable[..., Any]:
    """`agentflow.testing.provider_server`: `async with fake_provider(...) as provider:`."""
    from agentflow.testing.provider_server import fake_provider

    return fake_provider
