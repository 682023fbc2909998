"""Messages as Anthropic's API tells them, whole and as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.providers.raw_server import Json, pieces

SIGNATURE = "EqQBCkYIBxgCKkB/a+signed==" * 20
SEARCHED = {
    "type": "web_search_result",
    "url": "https://example.com/a",
    "title": "Ä – page",
    "encrypted_content": "Eo8BCioI" * 9,
    "page_age": None,
}
CITED = {
    "type": "web_search_result_location",
    "cited_text": "It is “so”.",
    "url": "https://example.com/a",
    "title": "Ä – page",
    "encrypted_index": "Eo8BCioIAhgB",
}
USAGE = {
    "input_tokens": 100,
    "cache_creation_input_tokens": 30,
    "cache_read_input_tokens": 5,
    "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    "output_tokens": 321,
    "output_tokens_details": {"thinking_tokens": 200},
    "server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0},
    "service_tier": "priority",
    "inference_geo": "eu",
}


def message(content: list[Json], stop_reason: str, **more: Any) -> Json:
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-6",
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": USAGE,
        **more,
    }


def tool_use(id: str, input: Json) -> Json:
    return {"type": "tool_use", "id": id, "name": "look", "input": input, "caller": {"type": "direct"}}


THINKING = [
    {"type": "thinking", "thinking": "Hm… 思考\u2028", "signature": SIGNATURE},
    {"type": "redacted_thinking", "data": "EmwKAhgB" * 30},
    {"type": "text", "text": "I look. 🌍"},
    tool_use("toolu_1", {"city": "Zürich", "near": 1.0, "far": 10}),
    tool_use("toolu_2", {}),
]
SERVER_TOOLS = [
    {"type": "text", "text": "I search."},
    {
        "type": "server_tool_use",
        "id": "srvtoolu_1",
        "name": "web_search",
        "input": {"query": "x"},
        "caller": {"type": "direct"},
    },
    {
        "type": "web_search_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": [SEARCHED],
        "caller": {"type": "direct"},
    },
    {"type": "text", "text": "It is so", "citations": [CITED, CITED]},
    {
        "type": "server_tool_use",
        "id": "srvtoolu_2",
        "name": "bash_code_execution",
        "input": {"command": "ls"},
    },
    {
        "type": "bash_code_execution_tool_result",
        "tool_use_id": "srvtoolu_2",
        "content": {
            "type": "bash_code_execution_result",
            "stdout": "a\n",
            "stderr": "",
            "return_code": 0,
            "content": [{"type": "bash_code_execution_output", "file_id": "file_1"}],
        },
    },
    {"type": "container_upload", "file_id": "file_1"},
    {
        "type": "web_fetch_tool_result",
        "tool_use_id": "srvtoolu_3",
        "content": {"type": "web_fetch_tool_error", "error_code": "url_not_accessible"},
    },
    {
        "type": "tool_search_tool_result",
        "tool_use_id": "srvtoolu_4",
        "content": {
            "type": "tool_search_tool_search_result",
            "tool_references": [{"type": "tool_reference", "tool_name": "look"}],
        },
    },
]
FUTURE = [
    {
        "type": "hologram",
        "beam": "abcdef",
        "layers": [{"depth": 1.5}],
        "text": 7,
        "content": "x",
        "input": None,
    },
    {"type": "compaction", "content": "So far: all is well.", "encrypted_content": "Zm9v" * 5},
    {"type": "text", "text": "There.", "tone": "warm", "citations": None},
]
CONTAINER = {"id": "container_01", "expires_at": "2026-11-23T05:00:00Z", "skills": None}

CASES: dict[str, Json] = {
    "thinking and tools": message(THINKING, "tool_use", container=None, stop_details=None),
    "server tools, paused": message(SERVER_TOOLS, "pause_turn", container=CONTAINER),
    "what nobody knows yet": message(FUTURE, "end_turn", mood={"of": "the day"}),
    "refused": message(
        [],
        "refusal",
        stop_details={"type": "refusal", "category": "cyber", "explanation": "No."},
    ),
    "window full": message([{"type": "text", "text": "And so"}], "model_context_window_exceeded"),
    "stopped": message([{"type": "text", "text": "A"}], "stop_sequence", stop_sequence="END"),
    "nothing": message([], "end_turn"),
    "a reason to come": message([{"type": "text", "text": "A"}], "tired"),
}


def events_of(told: Json) -> Iterator[Json]:
    """The stream in which the API would tell this message."""
    late = ("stop_reason", "stop_sequence", "stop_details", "container")
    started = {**told, "content": [], **{key: None for key in late if key in told}}
    started["usage"] = {**told["usage"], "output_tokens": 1, "output_tokens_details": None}
    yield {"type": "message_start", "message": started}
    for index, block in enumerate(told["content"]):
        yield from _events_of_block(index, block)
        yield {"type": "an_event_to_come", "index": index, "delta": {"type": "x"}}
    usage = {
        "input_tokens": None,
        "cache_read_input_tokens": None,
        "output_tokens": told["usage"]["output_tokens"],
        "output_tokens_details": told["usage"]["output_tokens_details"],
    }
    yield {"type": "message_delta", "delta": {key: told[key] for key in late if key in told}, "usage": usage}
    yield {"type": "message_stop"}


def _events_of_block(index: int, block: Json) -> Iterator[Json]:
    deltas: list[Json] = []
    empty: Json = {}
    match block["type"]:
        case "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
            empty = {"text": ""}
            if block.get("citations"):
                deltas += [
                    {"type": "citations_delta", "citation": citation} for citation in block["citations"]
                ]
                empty |= {"citations": []}
        case "thinking":
            deltas = [
                {"type": "thinking_delta", "thinking": piece, "estimated_tokens": 50}
                for piece in pieces(block["thinking"])
            ]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
            empty = {"thinking": "", "signature": ""}
        case "tool_use" | "server_tool_use":
            written = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
            deltas = [
                {"type": "input_json_delta", "partial_json": piece} for piece in ["", *pieces(written, 2)]
            ]
            empty = {"input": {}}
        case "compaction":
            deltas = [
                {
                    "type": "compaction_delta",
                    "content": block["content"],
                    "encrypted_content": block["encrypted_content"],
                }
            ]
            empty = {"content": None, "encrypted_content": None}
        case "hologram":
            deltas = [
                {"type": "beam_delta", "beam": "def"},
                {"type": "layer_delta", "layers": block["layers"]},
            ]
            empty = {"beam": "abc", "layers": []}
    yield {"type": "content_block_start", "index": index, "content_block": {**block, **empty}}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}
