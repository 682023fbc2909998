"""What tests of durable functions and agents need. Nothing here is imported before it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentflow.crashpoints import CRASH_POINTS
    from agentflow.models.registry import block_models
    from agentflow.testing.cassettes import meter, scrubbed_vcr_config
    from agentflow.testing.fake_provider import fake_provider
    from agentflow.testing.app_harness import Harness, harness
    from agentflow.testing.scripted import FunctionModel, ScriptedModel

_PLACES = {
    "CRASH_POINTS": "agentflow.crashpoints",
    "FunctionModel": "agentflow.testing.scripted",
    "Harness": "agentflow.testing.app_harness",
    "ScriptedModel": "agentflow.testing.scripted",
    "block_models": "agentflow.models.registry",
    "fake_provider": "agentflow.testing.fake_provider",
    "harness": "agentflow.testing.app_harness",
    "meter": "agentflow.testing.cassettes",
    "scrubbed_vcr_config": "agentflow.testing.cassettes",
}

__all__ = [
    "CRASH_POINTS",
    "FunctionModel",
    "Harness",
    "ScriptedModel",
    "block_models",
    "fake_provider",
    "harness",
    "meter",
    "scrubbed_vcr_config",
]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(place), name)
