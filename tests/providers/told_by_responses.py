"""Responses as OpenAI's Responses API tells them, whole and as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.providers.raw_server import Json, pieces

USAGE = {
    "input_tokens": 100,
    "input_tokens_details": {
        "cached_tokens": 64,
        "cache_write_tokens": 8,
        "cache_write_tokens_details": {"ttl_30m_tokens": 8, "ttl_12h_tokens": 0},
    },
    "output_tokens": 300,
    "output_tokens_details": {"reasoning_tokens": 256},
    "total_tokens": 400,
}


def response(output: list[Json], status: str = "completed", **more: Any) -> Json:
    return {
        "id": "resp_01",
        "object": "response",
        "created_at": 1741476542,
        "completed_at": 1741476543.5,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": "gpt-5-mini-2025-08-07",
        "output": output,
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": None},
        "service_tier": "flex",
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tools": [{"type": "function", "name": "look", "parameters": {"schema": {}}, "strict": True}],
        "top_p": 1,
        "usage": USAGE,
        "metadata": {},
        **more,
    }


def reasoning(id: str, *summary: str, **more: Any) -> Json:
    told = [{"type": "summary_text", "text": text} for text in summary]
    return {"id": id, "type": "reasoning", "summary": told, "encrypted_content": "gAAAAAB" * 40, **more}


def said(*content: Json, **more: Any) -> Json:
    return {
        "id": "msg_01",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [*content],
        **more,
    }


def text(told: str, *annotations: Json, **more: Any) -> Json:
    return {"type": "output_text", "text": told, "annotations": [*annotations], "logprobs": [], **more}


def call(n: int, arguments: str, call_id: str | None = None, **more: Any) -> Json:
    return {
        "id": f"fc_{n}",
        "type": "function_call",
        "status": "completed",
        "name": "look",
        "call_id": f"call_{n}" if call_id is None else call_id,
        "arguments": arguments,
        **more,
    }


CITATION = {
    "type": "url_citation",
    "start_index": 0,
    "end_index": 4,
    "url": "https://e.com/?a=ä",
    "title": "A",
}
FILE = {"type": "file_citation", "file_id": "file_1", "filename": "a.pdf", "index": 3}
SERVER_TOOLS = [
    {
        "id": "ws_1",
        "type": "web_search_call",
        "status": "completed",
        "action": {
            "type": "search",
            "query": "x",
            "queries": ["x"],
            "sources": [{"type": "url", "url": "u"}],
        },
    },
    {"id": "ws_2", "type": "web_search_call", "status": "completed", "action": {"type": "a_new_action"}},
    {
        "id": "fs_1",
        "type": "file_search_call",
        "status": "completed",
        "queries": ["x"],
        "results": [{"file_id": "file_1", "score": 1, "text": "t", "attributes": {"n": 1.0}}],
    },
    {
        "id": "ci_1",
        "type": "code_interpreter_call",
        "status": "completed",
        "code": "1+1",
        "container_id": "cntr_1",
        "outputs": [{"type": "logs", "logs": "2"}],
    },
    {
        "id": "mcpl_1",
        "type": "mcp_list_tools",
        "server_label": "s",
        "tools": [{"name": "t", "input_schema": {"$ref": "x"}, "annotations": {"readOnlyHint": True}}],
        "error": None,
    },
    {
        "id": "mcp_1",
        "type": "mcp_call",
        "server_label": "s",
        "name": "t",
        "arguments": "{}",
        "output": "o",
        "error": None,
    },
    {
        "id": "ig_1",
        "type": "image_generation_call",
        "status": "completed",
        "result": "aGk=",
        "quality": "low",
    },
    {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAAA"},
]
FUTURE = [
    {
        "id": "tw_1",
        "type": "time_travel_call",
        "content": "a text where others have blocks",
        "arguments": [1, 2.0],
    },
    {
        "id": "tw_2",
        "type": "dream",
        "content": [{"type": "refusal", "refusal": "of a dream"}],
        "summary": "s",
    },
    said(text("A"), {"type": "output_smell", "smell": "rose"}, mood={"of": "the day"}, phase="afterthought"),
]

THOUGHT = [
    reasoning("rs_1", "I look.\n", "Then I tell. 思考"),
    said(text("One moment. 🌍"), phase="commentary"),
    call(1, '{"city":"Zürich","near":1.0}', caller=None, namespace="maps"),
    call(2, "{}"),
]
CASES: dict[str, Json] = {
    "thought and calls": response(THOUGHT),
    "texts and annotations": response(
        [reasoning("rs_1"), said(text("It is", CITATION, FILE), text(" so.\u2028"), phase="final_answer")]
    ),
    "tools at their side": response([reasoning("rs_1"), *SERVER_TOOLS, said(text("Done"))]),
    "what nobody knows yet": response(FUTURE, weather="fair"),
    "refused": response([said({"type": "refusal", "refusal": "I will not."})]),
    "cut": response(
        [reasoning("rs_1"), said(text("And so"), status="incomplete")],
        "incomplete",
        incomplete_details={"reason": "max_output_tokens"},
    ),
    "filtered": response(
        [said(text("And"), status="incomplete")],
        "incomplete",
        incomplete_details={"reason": "content_filter"},
    ),
    "cut in a call": response(
        [reasoning("rs_1"), call(1, '{"city":"Z', status="incomplete")],
        "incomplete",
        incomplete_details={"reason": "max_output_tokens"},
    ),
    "nothing": response([]),
}


def events_of(told: Json) -> Iterator[Json]:
    """The stream in which the API would tell this response."""
    events = [*_events_of(told)]
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}


def _events_of(told: Json) -> Iterator[Json]:
    begun = {**told, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for at, item in enumerate(told["output"]):
        where = {"item_id": item["id"], "output_index": at}
        unfinished = {key: value for key, value in item.items() if key != "encrypted_content"}
        yield {
            "type": "response.output_item.added",
            "output_index": at,
            "item": unfinished | {"status": "in_progress"},
        }
        yield {"type": "response.something_new.delta", "delta": {"not": "a text"}, **where}
        match item["type"]:
            case "message":
                for n, block in enumerate(item["content"]):
                    here = {**where, "content_index": n}
                    yield {"type": "response.content_part.added", "part": {**block, "text": ""}, **here}
                    kind = "refusal" if block["type"] == "refusal" else "output_text"
                    for piece in pieces(block.get("text") or block.get("refusal") or ""):
                        yield {"type": f"response.{kind}.delta", "delta": piece, "obfuscation": "x1", **here}
                    for k, annotation in enumerate(block.get("annotations") or []):
                        yield {
                            "type": "response.output_text.annotation.added",
                            "annotation": annotation,
                            "annotation_index": k,
                            **here,
                        }
                    yield {"type": "response.content_part.done", "part": block, **here}
            case "reasoning":
                for n, part in enumerate(item["summary"]):
                    for piece in pieces(part["text"]):
                        yield {
                            "type": "response.reasoning_summary_text.delta",
                            "delta": piece,
                            "summary_index": n,
                            **where,
                        }
            case "function_call":
                for piece in pieces(item["arguments"], 2):
                    yield {"type": "response.function_call_arguments.delta", "delta": piece, **where}
                yield {
                    "type": "response.function_call_arguments.done",
                    "arguments": item["arguments"],
                    **where,
                }
        yield {"type": "response.output_item.done", "output_index": at, "item": item}
    yield {"type": f"response.{told['status']}", "response": told}
