"""OpenAI's Responses API, as a server speaks it."""

from __future__ import annotations

import json
from typing import Any

from agentflow.models.messages import Message, Part, ReasoningPart, TextPart, ToolCall, ToolResult
from agentflow.models.output import FINAL_ANSWER
from agentflow.models.response import ModelRequest, ModelResponse, OutputSpec, ToolSpec
from agentflow.testing.wire import BadRequest, Event, Json, arguments_of, pieces, seal
from agentflow.testing.wire.media import responses_part


def request_of(body: Json) -> ModelRequest:
    """The request in a body of POST /v1/responses; raises `BadRequest` as they would."""
    tools = tuple(
        ToolSpec(name=tool["name"], description=tool.get("description") or "", schema=tool["parameters"])
        for tool in body.get("tools", [])
    )
    return ModelRequest(
        model=f"openai:{body['model']}",
        messages=_messages(body["input"]),
        instructions=body.get("instructions") or None,
        tools=tools,
        output=output_of((body.get("text") or {}).get("format"), tools),
    )


def output_of(wanted: Json | None, tools: tuple[ToolSpec, ...]) -> OutputSpec | None:
    """The structured output that is asked for: by schema, or by a tool for the final answer."""
    if wanted and wanted.get("type") == "json_schema":
        schema, mode = wanted["schema"], "native"
    else:
        final = next((tool for tool in tools if tool.name == FINAL_ANSWER), None)
        if final is None:
            return None
        schema, mode = final.schema, "tool"
    wrapped = list(schema.get("properties", {})) == ["value"]
    return OutputSpec(
        name="output", schema=schema, mode="tool" if mode == "tool" else "native", wrapped=wrapped
    )


def answer(response: ModelResponse, body: Json, *, number: int) -> Json:
    id = response.provider_id or f"resp_{number:06d}"
    usage = response.usage
    finish = response.finish_reason
    return {
        "id": id,
        "object": "response",
        "created_at": 1_700_000_000 + number,
        "status": "incomplete" if finish in ("length", "content_filter") else "completed",
        "background": body.get("background", False),
        "error": None,
        "incomplete_details": {
            "length": {"reason": "max_output_tokens"},
            "content_filter": {"reason": "content_filter"},
        }.get(finish),
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata") or {},
        "model": body["model"],
        "output": [
            _item(part, f"{id}_{position}", is_refusal=finish == "refusal")
            for position, part in enumerate(response.messages[-1].parts)
        ],
        "parallel_tool_calls": True,
        "store": body.get("store", True),
        "tool_choice": "auto",
        "tools": body.get("tools", []),
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        },
    }


def events(answer: Json) -> list[Event]:
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    told: list[Json] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for position, item in enumerate(answer["output"]):
        told.extend({"output_index": position, **event} for event in _item_events(item))
    told.append({"type": f"response.{answer['status']}", "response": answer})
    return [(event["type"], {**event, "sequence_number": number}) for number, event in enumerate(told)]


def queued(answer: Json) -> Json:
    """A job that is accepted and not done."""
    return {**answer, "status": "queued", "output": [], "usage": None}


def error(status: int, message: str, code: str | None) -> Json:
    kind = {401: "invalid_request_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_event(message: str, code: str | None) -> Event:
    return "error", {
        "type": "error",
        "code": code or "server_error",
        "message": message,
        "param": None,
        "sequence_number": 0,
    }


def _messages(items: Any) -> list[Message]:
    if isinstance(items, str):
        return [Message(role="user", parts=[TextPart(text=items)])]
    told: list[Message] = []
    for item in items:
        if item.get("role") == "user" and isinstance(item["content"], list):
            told.append(Message(role="user", parts=[responses_part(block) for block in item["content"]]))
            continue
        role, part = _said(item)
        # One turn of the assistant, or of the tools, is several items here.
        if told and told[-1].role == role and role != "user":
            told[-1] = told[-1].model_copy(update={"parts": [*told[-1].parts, part]})
        else:
            told.append(Message(role=role, parts=[part]))
    return told


def _said(item: Json) -> tuple[Any, Part]:
    match item.get("type", "message"):
        case "message":
            content = item["content"]
            text = (
                content if isinstance(content, str) else "".join(block.get("text", "") for block in content)
            )
            return item["role"], TextPart(text=text)
        case "function_call":
            args = arguments_of(item["arguments"])
            return "assistant", ToolCall(id=item["call_id"], name=item["name"], args=args)
        case "function_call_output":
            if isinstance(item["output"], list):
                [responses_part(block) for block in item["output"]]
            return "tool", ToolResult(call_id=item["call_id"], content=item["output"])
        case "reasoning":
            if item.get("encrypted_content") != seal(item["id"]):
                raise BadRequest(f"The encrypted content for item {item['id']} could not be verified.")
            return "assistant", ReasoningPart(text="".join(block["text"] for block in item["summary"]))
        case other:
            raise BadRequest(f"Invalid value: {other!r}")


def _item(part: Part, id: str, *, is_refusal: bool) -> Json:
    match part:
        case TextPart(text=text):
            block: Json = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
            if is_refusal:
                block = {"type": "refusal", "refusal": text}
            return {
                "id": f"msg_{id}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [block],
            }
        case ReasoningPart(text=text):
            return {
                "id": f"rs_{id}",
                "type": "reasoning",
                "summary": [{"type": "summary_text", "text": text}] if text else [],
                "encrypted_content": seal(f"rs_{id}"),
            }
        case ToolCall():
            return {
                "id": f"fc_{id}",
                "type": "function_call",
                "call_id": part.id,
                "name": part.name,
                "arguments": part.invalid_args if part.invalid_args is not None else json.dumps(part.args),
                "status": "completed",
            }
        case _:
            raise TypeError(f"the Responses API has no item for {part!r}")


def _item_events(item: Json) -> list[Json]:
    at = {"item_id": item["id"]}
    match item["type"]:
        case "message":
            (block,) = item["content"]
            kind, text = (
                ("refusal", block["refusal"])
                if block["type"] == "refusal"
                else ("output_text", block["text"])
            )
            empty = {**item, "status": "in_progress", "content": []}
            deltas = [
                {"type": f"response.{kind}.delta", **at, "content_index": 0, "delta": piece, "logprobs": []}
                for piece in pieces(text)
            ]
        case "function_call":
            empty = {**item, "status": "in_progress", "arguments": ""}
            deltas = [
                {"type": "response.function_call_arguments.delta", **at, "delta": piece}
                for piece in pieces(item["arguments"])
            ]
        case _:
            empty = {**item, "summary": []}
            deltas = [
                {"type": "response.reasoning_summary_text.delta", **at, "summary_index": 0, "delta": piece}
                for block in item["summary"]
                for piece in pieces(block["text"])
            ]
    return [
        {"type": "response.output_item.added", "item": empty},
        *deltas,
        {"type": "response.output_item.done", "item": item},
    ]
