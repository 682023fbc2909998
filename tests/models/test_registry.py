"""Models are found by name, by themselves, or made of a function; prices; and what an import costs."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import pytest

from agentflow.errors import ConfigurationError
from agentflow.models.function import FunctionModel
from agentflow.models.pricing import cost_of, prices_version
from agentflow.models.protocol import Model, model_ref
from agentflow.models.registry import (
    block_models,
    known_providers,
    register_provider,
    resolve_model,
    substitute_model,
)
from agentflow.models.response import ModelRequest, Usage
from agentflow.testing.scripted import ScriptedModel


async def shout(request: ModelRequest) -> str:
    return request.prompt.upper()


@pytest.mark.parametrize(
    "ref", ["openai:gpt-5-mini", "openai-chat:llama", "anthropic:claude-sonnet-4-5", "scripted:a:b"]
)
def test_our_providers_are_found_by_entry_point(ref: str) -> None:
    model = resolve_model(ref)
    assert isinstance(model, Model)
    assert model_ref(model) == ref
    assert resolve_model(ref) is model


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("acme:best", "Known: anthropic, openai, openai-chat, scripted.*acme"),
        ("gpt-5-mini", "provider:model"),
        ("openai:", "provider:model"),
    ],
)
def test_an_unknown_name_says_what_is_known_and_what_to_do(ref: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        resolve_model(ref)


async def test_a_function_is_a_model() -> None:
    model = resolve_model(shout)
    answer = await model.request(ModelRequest(model=model_ref(model), messages="hello"))
    assert model.parse(answer.raw).text == "HELLO"
    assert model_ref(model) == "function:shout"


def test_a_provider_may_be_registered_without_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentflow.models.registry._registered", {})
    register_provider("acme", lambda name: FunctionModel(shout, name=name))
    assert resolve_model("acme:best").model == "best"
    assert "acme" in known_providers()


async def test_blocked_models_refuse_and_tests_own_do_not() -> None:
    scripted = ScriptedModel(["ok"])
    with block_models():
        blocked = resolve_model("openai:gpt-5-mini")
        with pytest.raises(ConfigurationError, match="openai:gpt-5-mini") as raised:
            await blocked.request(ModelRequest(model="openai:gpt-5-mini", messages="hi"))
        assert not blocked.classify(raised.value).retriable
        with pytest.raises(ConfigurationError):
            [event async for event in blocked.stream(ModelRequest(model="openai:gpt-5-mini", messages="hi"))]
        assert resolve_model(scripted) is scripted
        await scripted.request(ModelRequest(model="scripted:x", messages="hi"))
    assert resolve_model("openai:gpt-5-mini") is not blocked


def test_a_substitute_stands_for_every_model_while_it_is_open() -> None:
    outer, inner = ScriptedModel([]), ScriptedModel([])
    with substitute_model(outer):
        assert resolve_model("openai:gpt-5-mini") is outer
        with substitute_model(inner), block_models():
            assert resolve_model(shout) is inner
        assert resolve_model("anything") is outer
    assert resolve_model("openai:gpt-5-mini") is not outer


def test_a_price_is_known_or_none_and_never_nothing() -> None:
    usage = Usage(input_tokens=1_000, cached_tokens=200, cache_write_tokens=100, output_tokens=50)
    # 700 at $3, 200 read at $0.30, 100 written at $3.75, 50 at $15 a million.
    assert cost_of("anthropic", "claude-sonnet-4-5-20250929", usage) == Decimal("0.003285")
    assert cost_of("openai-chat", "gpt-4o", usage) == cost_of("openai", "gpt-4o", usage) != 0
    assert cost_of("openai", "no-such-model", usage) is None
    assert cost_of("no-such-provider", "gpt-4o", usage) is None
    assert prices_version().startswith("genai-prices ")


def test_importing_models_and_resolving_one_imports_no_sdk() -> None:
    code = (
        "import sys, agentflow.providers, agentflow.models.answers, agentflow.testing.scripted, "
        "agentflow.testing.provider_server, agentflow.testing.cassettes\n"
        "from agentflow.providers import resolve_model\n"
        "for ref in ('openai:a', 'openai-chat:a', 'anthropic:a', 'scripted:a'): resolve_model(ref)\n"
        "heavy = ('openai', 'anthropic', 'httpx2', 'sqlalchemy', 'vcr', 'pytest', 'genai_prices')\n"
        "print(sorted(name for name in sys.modules if name in heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
