"""Images and files reach each API in its own shape, and what it cannot carry never leaves."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from agentflow_anthropic import Anthropic
from agentflow_anthropic import mapping as anthropic
from agentflow_openai import OpenAIChat, OpenAIResponses, chat, responses
from openai.types.chat.chat_completion_content_part_param import ChatCompletionContentPartParam
from openai.types.responses import ResponseInputContentParam
from openai.types.responses.response_function_call_output_item_param import (
    ResponseFunctionCallOutputItemParam,
)
from pydantic import TypeAdapter

from agentflow.content import FilePart, ImagePart, TextPart
from agentflow.errors import InvalidInput
from agentflow.models.conversation import check_can_carry
from agentflow.models.deferral import deferred
from agentflow.providers import (
    Capabilities,
    Message,
    Model,
    ModelRequest,
    ToolCall,
    ToolResult,
    ToolSpec,
    resolve_model,
)
from agentflow.testing import FunctionModel
from agentflow.testing.provider_server import FakeProvider

PNG, PDF = base64.b64encode(b"\x89PNG....").decode(), base64.b64encode(b"%PDF-1.7").decode()

IMAGE = ImagePart(data=PNG, media_type="image/png")
IMAGE_AT = ImagePart("https://example.org/a.png", detail="low")
IMAGE_OF_OPENAI = ImagePart(file_id="file-1")
IMAGE_OF_ANTHROPIC = ImagePart(file_id="file_1")
FILE = FilePart(data=PDF, media_type="application/pdf", name="terms.pdf")
FILE_AT = FilePart("https://example.org/a.pdf")
FILE_OF_OPENAI = FilePart(file_id="file-2")
FILE_OF_ANTHROPIC = FilePart(file_id="file_2")
TEXT = FilePart(text="Größe: 5", name="notes.txt")
TEXT_BYTES = FilePart.from_bytes("Größe: 5".encode(), "text/plain")
SHEET = FilePart.from_bytes(b"PK..", "application/vnd.ms-excel")
HEIC = ImagePart.from_bytes(b"....", "image/heic")
LATIN = FilePart.from_bytes("Größe".encode("latin-1"), "text/plain")


def asking(*parts: Any) -> ModelRequest:
    return ModelRequest(model="any:model", messages=[Message("user", list(parts))])


def by_anthropic(*parts: Any) -> Any:
    return anthropic.request_body(asking(*parts), model="m")["messages"][0]["content"]


def by_responses(*parts: Any) -> Any:
    return responses.request_body(asking(*parts), model="m")["input"][0]["content"]


def by_chat(*parts: Any) -> Any:
    return chat.request_body(asking(*parts), model="m", is_gateway=False)["messages"][0]["content"]


# --- shapes ---------------------------------------------------------------------------------------


def test_anthropic_is_told_images_and_documents_as_blocks() -> None:
    assert by_anthropic("Compare: ", IMAGE, IMAGE_AT, IMAGE_OF_ANTHROPIC) == [
        {"type": "text", "text": "Compare: "},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
    ]
    text = {"type": "text", "media_type": "text/plain", "data": "Größe: 5"}
    assert by_anthropic(FILE, FILE_AT, FILE_OF_ANTHROPIC, TEXT, TEXT_BYTES) == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            "title": "terms.pdf",
        },
        {"type": "document", "source": {"type": "url", "url": "https://example.org/a.pdf"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_2"}},
        {"type": "document", "source": text, "title": "notes.txt"},
        {"type": "document", "source": text},
    ]


def test_the_responses_api_is_told_them_as_input_items() -> None:
    assert by_responses("Compare: ", IMAGE, IMAGE_AT, IMAGE_OF_OPENAI) == [
        {"type": "input_text", "text": "Compare: "},
        {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{PNG}"},
        {"type": "input_image", "detail": "low", "image_url": "https://example.org/a.png"},
        {"type": "input_image", "detail": "auto", "file_id": "file-1"},
    ]
    text = base64.b64encode("Größe: 5".encode()).decode()
    assert by_responses(FILE, FILE_AT, FILE_OF_OPENAI, TEXT, TEXT_BYTES) == [
        {"type": "input_file", "filename": "terms.pdf", "file_data": f"data:application/pdf;base64,{PDF}"},
        {"type": "input_file", "file_url": "https://example.org/a.pdf"},
        {"type": "input_file", "file_id": "file-2"},
        {"type": "input_file", "filename": "notes.txt", "file_data": f"data:text/plain;base64,{text}"},
        {"type": "input_file", "filename": "document.txt", "file_data": f"data:text/plain;base64,{text}"},
    ]
    [sheet] = by_responses(SHEET)
    assert sheet["file_data"].startswith("data:application/vnd.ms-excel;base64,")


def test_chat_completions_are_told_them_as_content_parts() -> None:
    assert by_chat("Compare: ", IMAGE, IMAGE_AT) == [
        {"type": "text", "text": "Compare: "},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png", "detail": "low"}},
    ]
    assert by_chat(FILE, FILE_OF_OPENAI, TEXT, TEXT_BYTES) == [
        {
            "type": "file",
            "file": {"filename": "terms.pdf", "file_data": f"data:application/pdf;base64,{PDF}"},
        },
        {"type": "file", "file": {"file_id": "file-2"}},
        {"type": "text", "text": "[notes.txt]\nGröße: 5"},
        {"type": "text", "text": "[document.txt]\nGröße: 5"},
    ]


def test_texts_alone_stay_one_text() -> None:
    assert by_responses("a", "b") == by_chat("a", "b") == "ab"


@pytest.mark.parametrize("part", [IMAGE, IMAGE_AT, FILE, TEXT], ids=lambda part: part.told)
def test_the_shapes_are_those_of_the_sdks(part: Any) -> None:
    from anthropic.types import DocumentBlockParam, ImageBlockParam

    both: Any = TypeAdapter(ImageBlockParam | DocumentBlockParam)
    for shape, made in (
        (both, by_anthropic(part)),
        (TypeAdapter(ResponseInputContentParam), by_responses(part)),
        (TypeAdapter(ResponseFunctionCallOutputItemParam), by_responses(part)),
        (TypeAdapter(ChatCompletionContentPartParam), by_chat(part, IMAGE)[:1]),
    ):
        [block] = made
        assert shape.validate_python(block) == block


# --- what cannot be carried -----------------------------------------------------------------------

ANTHROPIC, RESPONSES, CHAT = "anthropic:claude-sonnet-4-5", "openai:gpt-5-mini", "openai-chat:gpt-4o"

CANNOT = [
    (ANTHROPIC, HEIC, "does not take images of this type, but image/png, image/jpeg"),
    (ANTHROPIC, IMAGE_OF_OPENAI, "the ids of OpenAI's files: upload it to Anthropic"),
    (ANTHROPIC, FILE_OF_OPENAI, "the ids of OpenAI's files"),
    (ANTHROPIC, SHEET, "other documents than PDF and text"),
    (ANTHROPIC, FilePart("https://a.org/b.txt", media_type="text/plain"), "other documents than PDF"),
    (ANTHROPIC, FilePart(text=" \n"), "documents without any text"),
    (ANTHROPIC, LATIN, "not UTF-8"),
    (RESPONSES, HEIC, "images of this type"),
    (RESPONSES, IMAGE_OF_ANTHROPIC, "the ids of Anthropic's files: upload it to OpenAI"),
    (RESPONSES, FILE_OF_ANTHROPIC, "the ids of Anthropic's files"),
    (CHAT, HEIC, "images of this type"),
    (CHAT, IMAGE_OF_OPENAI, "images by their file_id"),
    (CHAT, FILE_AT, "files by their url"),
    (CHAT, FILE_OF_ANTHROPIC, "the ids of Anthropic's files"),
    (CHAT, SHEET, "other files than PDF and text"),
]


@pytest.mark.parametrize(("ref", "part", "told"), CANNOT)
async def test_what_an_api_cannot_carry_is_refused_before_the_request(
    server: FakeProvider, ref: str, part: Any, told: str
) -> None:
    model = resolve_model(ref)
    with pytest.raises(InvalidInput, match=told):
        check_can_carry(model, [Message("user", ["Look", part])])
    with pytest.raises(InvalidInput, match=told) as raised:
        await model.request(asking("Look", part))
    failure = model.classify(raised.value)
    assert (failure.billed, failure.retriable) == ("no", False)
    assert server.requests == []


@pytest.mark.parametrize(
    ("part", "told"), [(IMAGE, r"image/png.*any:thing takes no images"), (TEXT, "takes no files")]
)
def test_a_provider_that_says_nothing_of_images_is_not_given_any(part: Any, told: str) -> None:
    class Thing(FunctionModel):
        provider = "any"
        capabilities = Capabilities(tools=True)

    def never(_: ModelRequest) -> str:
        raise AssertionError

    model = Thing(never, name="thing")
    with pytest.raises(InvalidInput, match=told):
        check_can_carry(model, [Message("user", ["Look", part])])
    check_can_carry(model, [Message("user", ["Look"])])


@pytest.mark.parametrize(
    ("ref", "part", "told"), [CANNOT[0], CANNOT[7], CANNOT[12]], ids=[ANTHROPIC, RESPONSES, CHAT]
)
def test_a_batch_carries_what_its_model_does(ref: str, part: Any, told: str) -> None:
    model = deferred(resolve_model(ref), "batch")
    check_can_carry(model, [Message("user", ["Look", IMAGE, FILE])])
    with pytest.raises(InvalidInput, match=told):
        check_can_carry(model, [Message("user", ["Look", part])])


# --- over the wire --------------------------------------------------------------------------------

CARRIED = {
    ANTHROPIC: [IMAGE, IMAGE_AT, IMAGE_OF_ANTHROPIC, FILE, FILE_AT, FILE_OF_ANTHROPIC, TEXT],
    RESPONSES: [IMAGE, IMAGE_AT, IMAGE_OF_OPENAI, FILE, FILE_AT, FILE_OF_OPENAI, TEXT, SHEET],
    CHAT: [IMAGE, IMAGE_AT, FILE, FILE_OF_OPENAI, TEXT],
}


@pytest.mark.parametrize("ref", CARRIED)
async def test_each_api_takes_what_is_sent_to_it(server: FakeProvider, ref: str) -> None:
    seen: list[ModelRequest] = []

    def reply(request: ModelRequest) -> str:
        seen.append(request)
        return "seen"

    server.add(reply)
    model = resolve_model(ref)
    answer = await model.request(asking("Look: ", *CARRIED[ref]))
    assert model.parse(answer.raw).text == "seen"
    [message] = seen[0].messages
    kinds = [type(part) for part in message.user_parts]
    expected = [TextPart, *map(type, CARRIED[ref])]
    if ref == CHAT:
        expected[-1] = TextPart  # a text file is told as text
    assert kinds == expected
    [image] = [part for part in message.media if isinstance(part, ImagePart) and part.data]
    assert image == IMAGE


async def test_the_fake_server_refuses_what_the_real_ones_refuse(server: FakeProvider) -> None:
    server.add("never", "never", "never")
    wrong: list[tuple[Model, Any]] = [
        (
            Anthropic("claude-sonnet-4-5"),
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "image",
                                "source": {"type": "base64", "media_type": "image/heic", "data": PNG},
                            }
                        ],
                    }
                ]
            },
        ),
        (
            OpenAIResponses("gpt-5-mini"),
            {
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_file", "file_data": PDF, "file_id": "file-1"}],
                    }
                ]
            },
        ),
        (
            OpenAIChat("gpt-4o"),
            {
                "messages": [
                    {"role": "user", "content": [{"type": "file", "file": {"file_url": "https://a.org"}}]}
                ]
            },
        ),
    ]
    for model, extra in wrong:
        request = asking("Look")
        request = request.model_copy(
            update={"settings": request.settings.model_copy(update={"extra": extra})}
        )
        with pytest.raises(Exception, match="400") as raised:
            await model.request(request)
        assert model.classify(raised.value).error.status == 400
    assert server.generations == 0


# --- what tools give ------------------------------------------------------------------------------

PAINT = ToolSpec("paint", "Paint.", {"type": "object", "properties": {}})


def painted(*content: Any) -> ModelRequest:
    shown = [part if isinstance(part, str) else part.model_dump(mode="json") for part in content]
    messages = [
        Message("user", ["go"]),
        Message("assistant", [ToolCall(0, "c1", "paint", {})]),
        Message("tool", [ToolResult("c1", shown)]),
    ]
    return ModelRequest(model="any:model", messages=messages, tools=(PAINT,))


async def test_what_a_tool_gave_is_carried_where_the_api_can(server: FakeProvider) -> None:
    request = painted("a dot", IMAGE, FILE)
    bodies = []
    for ref in (ANTHROPIC, RESPONSES, CHAT):
        server.add("seen")
        model = resolve_model(ref)
        check_can_carry(model, request.messages)
        assert model.parse((await model.request(request)).raw).text == "seen"
        bodies.append(server.requests[-1].body)
    [result] = bodies[0]["messages"][-1]["content"]
    assert [block["type"] for block in result["content"]] == ["text", "image", "document"]
    assert [block["type"] for block in bodies[1]["input"][-1]["output"]] == [
        "input_text",
        "input_image",
        "input_file",
    ]
    assert bodies[2]["messages"][-1]["content"] == (
        "a dot\n[image/png, 8 bytes: not shown]\n[terms.pdf, application/pdf, 8 bytes: not shown]"
    )


@pytest.mark.parametrize("ref", [ANTHROPIC, RESPONSES])
def test_what_a_tool_gave_and_the_api_cannot_carry_is_an_error(ref: str) -> None:
    with pytest.raises(InvalidInput, match=r"image/heic.* does not take images of this type"):
        check_can_carry(resolve_model(ref), painted("a dot", HEIC).messages)


def test_one_part_needs_no_list() -> None:
    content = json.loads(IMAGE.model_dump_json())
    messages = [*painted().messages[:2], Message("tool", [ToolResult("c1", content)])]
    body = anthropic.request_body(ModelRequest(model="m", messages=messages), model="m")
    assert body["messages"][-1]["content"][0]["content"] == by_anthropic(IMAGE)
