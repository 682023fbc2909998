"""Finding the model that "provider:model" names, through the entry-point group `agentflow.providers`.

Ours are found the way a third party's are. A provider is imported when one of its models is first asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType, MethodType
from typing import Any, TypeAlias, TypeGuard
from weakref import WeakSet, WeakValueDictionary

from agentflow.errors import ConfigurationError
from agentflow.models.failures import exception_failure
from agentflow.models.function import FunctionModel
from agentflow.models.protocol import Capabilities, Failure, Model, StreamEvent, model_ref
from agentflow.models.response import ModelRequest, ModelResponse, RawAnswer

ENTRY_POINT_GROUP = "agentflow.providers"

ModelLike: TypeAlias = str | Model | Callable[[ModelRequest], Awaitable[Any]]

_resolved: dict[str, Model] = {}
_registered: dict[str, Callable[[str], Model]] = {}
_substitutes: list[Model] = []
_asked: WeakValueDictionary[str, Model] = WeakValueDictionary()
_models: WeakSet[Model] = WeakSet()
"""What was seen to be a model: to look whether something has all that a model has takes as long as a step."""
_blocked = 0


def resolve_model(model: ModelLike) -> Model:
    """The model itself; raises `ConfigurationError` when nothing is known by that name. Makes no
    connection.
    """
    if _substitutes:
        return _substitutes[-1]
    found = _find(model)
    return _Blocked(found) if _blocked and not found.capabilities.offline else found


def is_model(thing: object) -> TypeGuard[Model]:
    """Whether it has all that a `Model` has."""
    if isinstance(thing, FunctionModel | FunctionType | MethodType):
        return isinstance(thing, FunctionModel)
    try:
        if thing in _models:
            return True
    except TypeError:  # it cannot be hashed, or not be referred to weakly
        return isinstance(thing, Model)
    if not isinstance(thing, Model):
        return False
    with suppress(TypeError):
        _models.add(thing)
    return True


def model_asked_before(ref: str) -> Model:
    """The model of that name which this process has given a job, with the server and key it has; else the one that is
    found by its name."""
    return _asked.get(ref) or resolve_model(ref)


def note_asked(model: Model) -> None:
    """Keep a model to be found by `model_asked_before`."""
    with suppress(TypeError):  # one with slots that cannot be referred to so
        _asked[model_ref(model)] = model


def register_provider(name: str, make: Callable[[str], Model]) -> None:
    """Make "name:..." known in this process without an entry point; `make` takes what stands after the
    colon.
    """
    _registered[name] = make
    for ref in [ref for ref in _resolved if ref.startswith(f"{name}:")]:
        del _resolved[ref]


def known_providers() -> list[str]:
    return sorted({*_registered, *_entry_points()})


def own_model(ref: str) -> Model:
    """The provider's own model by that name, whatever stands in for models just now: to read answers and errors."""
    return _find(ref)


def check_not_blocked(ref: str) -> None:
    """Raise `ConfigurationError` while `block_models()` is in force; for a call that an SDK's own client makes."""
    if _blocked:
        raise ConfigurationError(
            f"block_models() is in force and {ref} was about to be asked by its SDK: in a test that is to make this "
            "call leave block_models() out and let the client come to agentflow.testing.fake_provider()"
        )


@contextmanager
def substitute_model(model: ModelLike) -> Iterator[Model]:
    """While this is open, every model of this process is that one."""
    substitute = _find(model)
    _substitutes.append(substitute)
    try:
        yield substitute
    finally:
        _substitutes.remove(substitute)


@contextmanager
def block_models() -> Iterator[None]:
    """While this is open, a call to a model that could cost money is a `ConfigurationError`."""
    global _blocked
    _blocked += 1
    try:
        yield
    finally:
        _blocked -= 1


def _find(model: ModelLike) -> Model:
    if isinstance(model, str):
        if model not in _resolved:
            _resolved[model] = _make(model)
        return _resolved[model]
    if is_model(model):
        return model
    if callable(model):
        return FunctionModel(model)
    raise ConfigurationError(
        f"{model!r} is no model: give 'provider:model', a Model, or an async function of a ModelRequest"
    )


def _make(ref: str) -> Model:
    provider, colon, name = ref.partition(":")
    if not colon or not name:
        raise ConfigurationError(
            f"the model {ref!r} names no provider: write 'provider:model', as 'openai:gpt-5-mini'"
        )
    return _provider(provider, ref)(name)


def _provider(provider: str, ref: str) -> Callable[[str], Model]:
    if provider in _registered:
        return _registered[provider]
    entry_point = _entry_points().get(provider)
    if entry_point is None:
        raise ConfigurationError(
            f"no provider {provider!r} is known (for the model {ref!r}). "
            f"Known: {', '.join(known_providers()) or 'none'}. "
            f"Install a package with an entry point {provider!r} in the group {ENTRY_POINT_GROUP!r}, "
            "or call agentflow.providers.register_provider"
        )
    try:
        make: Callable[[str], Model] = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"the provider {provider!r} cannot be imported from {entry_point.value!r}: {error}"
        ) from error
    return make


def _entry_points() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINT_GROUP)}


class _Blocked:
    """A model that may be named and read from, but not asked."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.provider = model.provider
        self.model = model.model
        self.capabilities: Capabilities = model.capabilities

    async def request(self, request: ModelRequest) -> RawAnswer:
        raise self._refusal()

    async def stream(self, request: ModelRequest) -> AsyncIterator[StreamEvent]:
        raise self._refusal()
        yield  # pragma: no cover  (makes this a generator)

    def parse(self, raw: dict[str, Any]) -> ModelResponse:
        return self._model.parse(raw)

    def classify(self, error: BaseException) -> Failure:
        return exception_failure(error, provider=self.provider, model=self.model)

    def _refusal(self) -> ConfigurationError:
        return ConfigurationError(
            f"block_models() is in force and {model_ref(self._model)} was about to be asked: "
            "give the test a ScriptedModel or FunctionModel"
        )
