"""A call of an official SDK, made once: without the SDK's retries, without a stream, its failures as ours.

A call is a method of a client's, as `client.responses.create`, sync or async. Any other function passes too, as the
call of an SDK that nobody here knows.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from agentflow.errors import ConfigurationError, ProviderError
from agentflow.models.failures import exception_failure
from agentflow.models.protocol import Failure
from agentflow.models.registry import known_providers, own_model

SdkCall = Callable[..., Any]
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]

# They say how a request travels, not what is asked.
_NOT_ASKED = ("timeout", "extra_headers", "idempotency_key")
# What SDKs give for an argument that is left out.
_LEFT_OUT = ("NotGiven", "Omit")
_OF_THE_PROGRAM = (TypeError, ValueError, LookupError, AttributeError, Warning)


def check_sdk_call(call: object, arguments: Mapping[str, Any]) -> None:
    """Raise `ConfigurationError` for what cannot be made a step; nothing is asked by this."""
    if not callable(call) or isinstance(call, type):
        raise ConfigurationError(
            f"{call!r} is no call of a client: give the method itself, as client.responses.create"
        )
    extra_body = arguments.get("extra_body")
    is_streamed = arguments.get("stream") or (isinstance(extra_body, Mapping) and extra_body.get("stream"))
    if is_streamed or (_client_of(call) is not None and getattr(call, "__name__", "") == "stream"):
        raise ConfigurationError(
            f"{call_name(call)} as a stream gives no answer that can be stored: wrap the call that gives the whole "
            "answer, or use step.ai.infer(stream=True)"
        )
    if _client_of(call) is None and _client_of(inspect.unwrap(call)) is not None:
        raise ConfigurationError(
            f"{call_name(call)} is wrapped (with_raw_response, with_streaming_response, a decorator), so neither can "
            "its answer be stored nor the SDK's retries be turned off: give the client's own method"
        )
    try:
        inspect.signature(call).bind(**arguments)
    except TypeError as error:
        raise ConfigurationError(f"{call_name(call)} cannot be called so: {error}") from error
    except ValueError:
        pass  # a callable that does not tell its parameters


def provider_of(call: SdkCall) -> str:
    """The SDK's package, by which its provider is known: "openai", "anthropic"."""
    function = call.func if isinstance(call, functools.partial) else call
    owner = getattr(function, "__self__", None)
    owner = function if owner is None or inspect.ismodule(owner) else type(owner)
    module = getattr(owner, "__module__", None) or type(function).__module__
    return str(module).partition(".")[0]


def call_name(call: object) -> str:
    """What the call goes by in messages: `AsyncResponses.create`."""
    if isinstance(call, functools.partial):
        return call_name(call.func)
    return str(getattr(call, "__qualname__", None) or type(call).__qualname__)


def without_sdk_retries(call: SdkCall) -> SdkCall:
    """The same method of a client that never repeats a request; an unknown SDK's is given back as it is."""
    if isinstance(call, functools.partial):
        return functools.partial(without_sdk_retries(call.func), *call.args, **call.keywords)
    client = _client_of(call)
    if client is None:
        return call
    owner: Any = call.__self__  # type: ignore[attr-defined]
    quiet = client.with_options(max_retries=0)
    made: SdkCall = getattr(quiet if owner is client else type(owner)(quiet), call.__name__)
    return made


async def call_sdk(
    call: SdkCall, arguments: Mapping[str, Any], *, in_thread: InThread = asyncio.to_thread
) -> Any:
    """What the call returns, asked for once. A client that is not async is called in a thread."""
    check_sdk_call(call, arguments)
    made = functools.partial(without_sdk_retries(call), **arguments)
    function = made.func
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        return await made()
    answer = await in_thread(made)
    if inspect.isawaitable(answer):
        return await answer
    if not isinstance(answer, BaseModel) and (hasattr(answer, "__enter__") or hasattr(answer, "__aenter__")):
        raise ConfigurationError(
            f"{call_name(call)} gave a {type(answer).__name__} to be read piece by piece, which cannot be stored"
        )
    return answer


def classify_sdk_error(error: BaseException, *, provider: str, model: str) -> Failure:
    """What an exception of a wrapped call means for the bill: the provider of its SDK knows."""
    if _is_of_the_program(error):
        told = f"{provider}:{model}: the call raised {type(error).__name__}: {error}; asking again would not mend it"
        # Before the request or while its answer was read: nobody can say.
        return Failure(ProviderError(told, provider=provider, model=model, billed="possible"))
    if provider in known_providers():
        return own_model(f"{provider}:{model}").classify(error)
    return exception_failure(error, provider=provider, model=model)


def describe_arguments(call: SdkCall, arguments: Mapping[str, Any]) -> str:
    """The call as canonical JSON text, the same in every process: what its digest is made of."""
    asked = {name: value for name, value in arguments.items() if name not in _NOT_ASKED}
    return json.dumps([call_name(call), _plain(asked)], sort_keys=True)


def _client_of(call: object) -> Any:
    """The SDK's client whose method this is, `None` where there is none."""
    owner = getattr(call, "__self__", None)
    for client in (owner, getattr(owner, "_client", None)):
        if not isinstance(client, type) and callable(getattr(client, "with_options", None)):
            return client
    return None


def _is_of_the_program(error: BaseException) -> bool:
    """An argument that cannot be sent, or an answer that does not fit the type it was to be parsed into."""
    if isinstance(error, ValidationError | json.JSONDecodeError):
        return True
    return type(error).__module__ == "builtins" and isinstance(error, _OF_THE_PROGRAM)


def _plain(value: object) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes() | bytearray():
            return hashlib.sha256(value).hexdigest()
        case type():
            return f"{value.__module__}:{value.__qualname__}"
        case BaseModel():
            return _plain(value.model_dump(mode="python", warnings=False))
        case Mapping():
            return {
                str(name): _plain(item)
                for name, item in value.items()
                if type(item).__name__ not in _LEFT_OUT
            }
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            # A file, an iterator, a client's own helper: looking inside could use it up.
            return f"{type(value).__module__}:{type(value).__qualname__}"
