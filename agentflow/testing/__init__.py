"""What tests of durable functions and agents need. Nothing here is imported before it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentflow.crashpoints import CRASH_POINTS
    from agentflow.models.registry import block_models
    from agentflow.testing.app_harness import Harness, harness
    from agentflow.testing.cassettes import meter, scrubbed_vcr_config
    from agentflow.testing.contracts import provider_contract
    from agentflow.testing.crashes import crash_after
    from agentflow.testing.provider_jobs import Job
    from agentflow.testing.provider_server import BrokenStream, Cut, HttpError, Stall, fake_provider
    from agentflow.testing.scripted import FunctionModel, ScriptedModel

_PLACES = {
    "CRASH_POINTS": "agentflow.crashpoints",
    "FunctionModel": "agentflow.testing.scripted",
    "Harness": "agentflow.testing.app_harness",
    "ScriptedModel": "agentflow.testing.scripted",
    "block_models": "agentflow.models.registry",
    "BrokenStream": "agentflow.testing.provider_server",
    "Cut": "agentflow.testing.provider_server",
    "Job": "agentflow.testing.provider_jobs",
    "HttpError": "agentflow.testing.provider_server",
    "Stall": "agentflow.testing.provider_server",
    "crash_after": "agentflow.testing.crashes",
    "fake_provider": "agentflow.testing.provider_server",
    "harness": "agentflow.testing.app_harness",
    "meter": "agentflow.testing.cassettes",
    "provider_contract": "agentflow.testing.contracts",
    "scrubbed_vcr_config": "agentflow.testing.cassettes",
}

__all__ = [
    "CRASH_POINTS",
    "BrokenStream",
    "Cut",
    "FunctionModel",
    "Harness",
    "HttpError",
    "Job",
    "ScriptedModel",
    "Stall",
    "block_models",
    "crash_after",
    "fake_provider",
    "harness",
    "meter",
    "provider_contract",
    "scrubbed_vcr_config",
]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(place), name)
