"""Any call of an official SDK as a memo: made without the SDK's retries, and given back as the SDK's own
object.

What is stored is the answer's JSON and the name of its class; OpenAI's and Anthropic's clients both build
their typed objects from that. What another SDK returns is stored as plain JSON, and is plain JSON on
replay.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from agentflow.errors import ConfigurationError, Unserialisable
from agentflow.models.failures import exception_failure
from agentflow.models.protocol import Failure
from agentflow.models.registry import known_providers, resolve_model

SdkCall = Callable[..., Any]


@runtime_checkable
class SdkObject(Protocol):
    """What both SDKs' own models can do, besides being pydantic's."""

    def to_dict(self, *, mode: Literal["json"], warnings: bool) -> dict[str, object]: ...

    @classmethod
    def construct(cls, **values: Any) -> Any: ...


def without_sdk_retries(call: SdkCall) -> SdkCall:
    """The same method of a client that never repeats a request; an unknown SDK's is given back as it is."""
    resource: Any = getattr(call, "__self__", None)
    with_options = getattr(getattr(resource, "_client", None), "with_options", None)
    if with_options is None:
        return call
    made: SdkCall = getattr(type(resource)(with_options(max_retries=0)), call.__name__)
    return made


async def call_sdk(call: SdkCall, arguments: Mapping[str, Any]) -> Any:
    """What the call returns, asked for once."""
    if arguments.get("stream") is True:
        raise ConfigurationError(
            f"{_name(call)}(stream=True) gives no answer that can be stored: leave stream out, or use step.ai.infer"
        )
    # In a thread, for the clients that are not async; an async one only makes its coroutine there.
    answer = await asyncio.to_thread(without_sdk_retries(call), **arguments)
    return await answer if inspect.isawaitable(answer) else answer


def encode_sdk_answer(answer: object) -> dict[str, Any]:
    """The JSON to store; raises `Unserialisable`."""
    if isinstance(answer, SdkObject) and isinstance(answer, BaseModel):
        kind = type(answer).__pydantic_generic_metadata__["origin"] or type(answer)
        data = answer.to_dict(mode="json", warnings=False)
        return {"type": f"{kind.__module__}:{kind.__qualname__}", "data": data}
    try:
        return {"data": to_jsonable_python(answer)}
    except PydanticSerializationError as error:
        raise Unserialisable(f"an answer of type {type(answer).__name__} is no JSON: {error}") from error


def decode_sdk_answer(memo: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """The SDK's object again. `arguments` are the call's: a type to parse into is only known from them."""
    if "type" not in memo:
        return memo["data"]
    module, _, name = memo["type"].partition(":")
    kind: Any = import_module(module)
    for part in name.split("."):
        kind = getattr(kind, part)
    parsed_into = [
        value for value in arguments.values() if isinstance(value, type) and issubclass(value, BaseModel)
    ]
    if parsed_into and kind.__pydantic_generic_metadata__["parameters"]:
        kind = kind[parsed_into[0]]
    return kind.construct(**memo["data"])


def classify_sdk_error(error: BaseException) -> Failure:
    """What an exception of a wrapped call means for the bill, by the provider of the same name as its
    package.
    """
    package = type(error).__module__.partition(".")[0]
    if package in known_providers():
        return resolve_model(f"{package}:wrapped").classify(error)
    return exception_failure(error, provider=package, model="wrapped")


def _name(call: SdkCall) -> str:
    return getattr(call, "__qualname__", repr(call))
