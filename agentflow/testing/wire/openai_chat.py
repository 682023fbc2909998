"""OpenAI's Chat Completions, as a server speaks them."""

from __future__ import annotations

import json

from agentflow.models.messages import Message, Part, ReasoningPart, TextPart, ToolCall, ToolResult
from agentflow.models.response import ModelRequest, ModelResponse, ToolSpec
from agentflow.testing.wire import BadRequest, Event, Json, arguments_of, openai_responses, pieces
from agentflow.testing.wire.media import chat_part

error = openai_responses.error

_FINISH_REASONS = {"refusal": "stop", "pause": "stop"}


def request_of(body: Json) -> ModelRequest:
    """The request in a body of POST /v1/chat/completions; raises `BadRequest` as they would."""
    tools = tuple(
        ToolSpec(
            name=tool["function"]["name"],
            description=tool["function"].get("description") or "",
            schema=tool["function"]["parameters"],
        )
        for tool in body.get("tools", [])
    )
    wanted = body.get("response_format") or {}
    asked = {"type": wanted.get("type"), **wanted.get("json_schema", {})}
    system = [item["content"] for item in body["messages"] if item["role"] in ("system", "developer")]
    return ModelRequest(
        model=f"openai-chat:{body['model']}",
        messages=_messages(body["messages"]),
        instructions="\n\n".join(system) or None,
        tools=tools,
        output=openai_responses.output_of(asked, tools),
    )


def answer(response: ModelResponse, body: Json, *, number: int) -> Json:
    said: Json = {"role": "assistant", "content": response.text or None, "refusal": None, "annotations": []}
    if response.finish_reason == "refusal":
        said |= {"content": None, "refusal": response.text}
    thoughts = [part.text for part in response.messages[-1].parts if isinstance(part, ReasoningPart)]
    if thoughts:
        said["reasoning_content"] = "".join(thoughts)
    if response.tool_calls:
        said["tool_calls"] = [_call(call) for call in response.tool_calls]
    finish = response.finish_reason
    usage = response.usage
    return {
        "id": response.provider_id or f"chatcmpl-{number:06d}",
        "object": "chat.completion",
        "created": 1_700_000_000 + number,
        "model": body["model"],
        "metadata": body.get("metadata") or {},
        "choices": [
            {
                "index": 0,
                "message": said,
                "logprobs": None,
                "finish_reason": _FINISH_REASONS.get(finish, finish),
            }
        ],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
    }


def events(answer: Json) -> list[Event]:
    (choice,) = answer["choices"]
    said = choice["message"]
    deltas: list[Json] = [{"role": "assistant", "content": None}]
    for key in ("reasoning_content", "content", "refusal"):
        deltas.extend({key: text} for text in pieces(said.get(key) or ""))
    for index, call in enumerate(said.get("tool_calls", [])):
        named = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
        deltas.append({"tool_calls": [named]})
        deltas.extend(
            {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            for text in pieces(call["function"]["arguments"])
        )
    chunk = {key: answer[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    told = [{**chunk, "choices": [_choice(delta, None)], "usage": None} for delta in deltas]
    told.append({**chunk, "choices": [_choice({}, choice["finish_reason"])], "usage": None})
    told.append({**chunk, "choices": [], "usage": answer["usage"]})
    return [(None, event) for event in told]


def error_event(message: str, code: str | None) -> Event:
    return None, error(500, message, code)


def _choice(delta: Json, finish_reason: str | None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _call(call: ToolCall) -> Json:
    written = call.invalid_args if call.invalid_args is not None else json.dumps(call.args)
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": written}}


def _messages(items: list[Json]) -> list[Message]:
    told: list[Message] = []
    for item in items:
        match item["role"]:
            case "system" | "developer":
                pass
            case "user":
                blocks = item["content"]
                if isinstance(blocks, str):
                    blocks = [{"type": "text", "text": blocks}]
                told.append(Message(role="user", parts=[chat_part(block) for block in blocks]))
            case "assistant":
                told.append(Message(role="assistant", parts=_parts(item)))
            case "tool":
                if not isinstance(item["content"], str):
                    raise BadRequest("Invalid content of a tool message: a string is expected")
                result = ToolResult(call_id=item["tool_call_id"], content=item["content"])
                told.append(Message(role="tool", parts=[result]))
            case other:
                raise BadRequest(f"Invalid value: {other!r}")
    return told


def _parts(item: Json) -> list[Part]:
    said: list[Part] = [TextPart(text=item["content"])] if item.get("content") else []
    for call in item.get("tool_calls") or []:
        function = call["function"]
        args = arguments_of(function["arguments"])
        said.append(ToolCall(id=call["id"], name=function["name"], args=args))
    return said
