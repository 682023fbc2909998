"""pytest fixtures, found by entry point, of the names that `agentflow.testing` has. Imports nothing heavy itself."""

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
def crash_after() -> Callable[..., Any]:
    """`agentflow.testing.crash_after`: `with crash_after("after_commit", n=2):`."""
    from agentflow.testing.crashes import crash_after

    return crash_after


@pytest.fixture
def block_models() -> Iterator[None]:
    """In this test a call to a model that could cost money is an error."""
    from agentflow.models.registry import block_models

    with block_models():
        yield


@pytest.fixture
def meter() -> Callable[..., Any]:
    """`agentflow.testing.meter`: the cassette of pytest-recording's `vcr` as a billing meter."""
    from agentflow.testing.cassettes import meter

    return meter


@pytest.fixture
def scrubbed_vcr_config() -> dict[str, Any]:
    """`agentflow.testing.scrubbed_vcr_config()`, for a `vcr_config` fixture to return."""
    from agentflow.testing.cassettes import scrubbed_vcr_config

    return scrubbed_vcr_config()


@pytest.fixture
def provider_contract() -> Callable[..., Any]:
    """`agentflow.testing.provider_contract`: the checks that every provider has to pass."""
    from agentflow.testing.contracts import provider_contract

    return provider_contract


@pytest.fixture
def fake_provider() -> Callable[..., Any]:
    """`agentflow.testing.provider_server`: `async with fake_provider(...) as provider:`."""
    from agentflow.testing.provider_server import fake_provider

    return fake_provider
