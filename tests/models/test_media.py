"""Images and files in messages: what they are made from, what is refused, and what they count for."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agentflow.content import FilePart, ImagePart, TextPart
from agentflow.errors import InvalidInput
from agentflow.model_limits import estimate_tokens
from agentflow.models.conversation import check_size
from agentflow.models.messages import Message, ToolCall, ToolResult, to_messages
from agentflow.models.replies import decode_reply, encode_reply
from agentflow.models.response import ModelRequest, ModelSettings
from agentflow.models.values import canonical_json
from agentflow.testing import FunctionModel

PNG = b"\x89PNG\r\n\x1a\n not much of one"
PNG_TEXT = base64.b64encode(PNG).decode()
PDF = b"%PDF-1.7 " + bytes(range(256))

PARTS = [
    ImagePart("https://example.org/a.png"),
    ImagePart(url="https://example.org/a.png", media_type="image/png", detail="low"),
    ImagePart.from_bytes(PNG, "image/png"),
    ImagePart(file_id="file-1"),
    FilePart("https://example.org/a.pdf"),
    FilePart.from_bytes(PDF, "application/pdf"),
    FilePart(data=base64.b64encode(PDF).decode(), media_type="application/pdf", name="terms.pdf"),
    FilePart(text="Größe", name="notes.txt"),
    FilePart(file_id="file_1"),
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.told)
def test_an_image_or_a_file_comes_back_equal_from_json(part: Any) -> None:
    message = Message("user", ["Look: ", part])
    assert Message.model_validate_json(message.model_dump_json()) == message
    assert message.media == [part]
    assert message.text == "Look: "


def test_bytes_are_kept_as_base64() -> None:
    given: Any = PNG
    assert ImagePart(data=given, media_type="image/png") == ImagePart.from_bytes(PNG, "image/png")
    part = ImagePart.from_bytes(PNG, "image/png")
    assert (part.data, part.size) == (PNG_TEXT, len(PNG))
    lines = "\n".join(PNG_TEXT[start : start + 16] for start in range(0, len(PNG_TEXT), 16))
    assert ImagePart(data=lines, media_type="image/png") == part


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "give one of data, url, file_id, not none"),
        ({"url": "https://a.org/b.png", "file_id": "file-1"}, "not url and file_id"),
        ({"url": "gs://bucket/b.png"}, "no http"),
        ({"url": "https://"}, "no http"),
        ({"data": PNG_TEXT}, "data needs its media_type"),
        ({"data": "", "media_type": "image/png"}, "data is empty"),
        ({"data": b"", "media_type": "image/png"}, "data is empty"),
        ({"data": "never!", "media_type": "image/png"}, "no base64"),
        ({"data": "iVBORw", "media_type": "image/png"}, "no base64"),
        ({"data": PNG_TEXT, "media_type": "png"}, "no media type"),
        ({"data": PNG_TEXT, "media_type": "application/pdf"}, "no image: give a FilePart"),
        ({"file_id": ""}, "file_id is empty"),
        ({"file_id": "file-1", "of": "sin"}, "Extra inputs"),
    ],
)
def test_what_is_no_image_is_refused_in_words(fields: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ImagePart(**fields)


def test_a_file_has_one_source_too() -> None:
    with pytest.raises(ValidationError, match="give one of data, text, url, file_id, not none"):
        FilePart(name="terms.pdf")
    with pytest.raises(ValidationError, match="not text and url"):
        FilePart(text="a", url="https://a.org/b.txt")


def test_a_path_tells_the_media_type_and_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.PNG").write_bytes(PNG)
    (tmp_path / "terms.pdf").write_bytes(PDF)
    (tmp_path / "notes.md").write_text("Größe", encoding="utf-8")
    (tmp_path / "old.txt").write_bytes("Größe".encode("latin-1"))
    (tmp_path / "secret").write_bytes(PDF)
    assert ImagePart.from_path(tmp_path / "a.PNG") == ImagePart.from_bytes(PNG, "image/png")
    assert ImagePart.from_path(tmp_path / "secret", "image/webp").media_type == "image/webp"
    pdf = FilePart.from_path(str(tmp_path / "terms.pdf"))
    assert (pdf.media_type, pdf.name, pdf.size) == ("application/pdf", "terms.pdf", len(PDF))
    text = FilePart.from_path(tmp_path / "notes.md")
    assert text == FilePart(text="Größe", media_type="text/markdown", name="notes.md")
    old = FilePart.from_path(tmp_path / "old.txt")
    assert (old.text, old.media_type, old.size) == (None, "text/plain", 5)
    with pytest.raises(InvalidInput, match="not UTF-8"):
        old.read_text()
    with pytest.raises(
        InvalidInput, match="media type of 'secret' is not told by its name: give media_type="
    ):
        FilePart.from_path(tmp_path / "secret")
    with pytest.raises(FileNotFoundError):
        ImagePart.from_path(tmp_path / "none.png")


def test_a_file_has_a_name_that_fits_it() -> None:
    assert FilePart.from_bytes(PDF, "application/pdf").file_name == "document.pdf"
    assert FilePart(text="a").file_name == "document.txt"
    assert FilePart(text="a", name="b.md").file_name == "b.md"


# --- in conversations -----------------------------------------------------------------------------

IMAGE = PARTS[2]
IMAGE_JSON = IMAGE.model_dump(mode="json")


@pytest.mark.parametrize(
    "given",
    [
        ["What is this?", IMAGE],
        [TextPart("What is this?"), IMAGE],
        ["What is this?", IMAGE_JSON],
        ["What is this?", {"kind": "image", "data": PNG_TEXT, "media_type": "image/png"}],
        {"role": "user", "content": ["What is this?", IMAGE]},
        Message("user", ["What is this?", IMAGE]),
    ],
)
def test_texts_and_parts_in_a_list_are_one_message(given: Any) -> None:
    assert to_messages(given) == [Message("user", [TextPart("What is this?"), IMAGE])]


def test_an_image_alone_is_a_message_and_others_stay_apart() -> None:
    assert to_messages(IMAGE) == to_messages([IMAGE]) == [Message("user", [IMAGE])]
    said = Message("assistant", ["A dot."])
    assert to_messages(["a", IMAGE, said, "b", IMAGE, "c"]) == [
        Message("user", ["a", IMAGE]),
        said,
        Message("user", ["b", IMAGE, "c"]),
    ]
    assert len(to_messages(["a", "b"])) == 2


@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_only_a_user_says_images(role: str) -> None:
    with pytest.raises(InvalidInput, match=f"role '{role}' cannot hold a part of kind 'image'"):
        to_messages([{"role": role, "parts": [IMAGE_JSON]}])
    with pytest.raises(InvalidInput, match=r"message 1 .*no base64"):
        to_messages([Message("user", ["a"]), {"role": "user", "content": [{**IMAGE_JSON, "data": "!"}]}])


def test_another_text_leaves_images_where_they_are() -> None:
    message = Message("user", [IMAGE, "a", IMAGE, "b"])
    assert message.with_text("c") == Message("user", [IMAGE, "c", IMAGE])
    assert Message("user", [IMAGE]).with_text("c") == Message("user", ["c", IMAGE])


# --- in tool results ------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.told)
def test_what_a_tool_gave_is_known_again_by_all_its_fields(part: Any) -> None:
    content = part.model_dump(mode="json")
    assert ToolResult("c1", content).blocks == [part]
    assert ToolResult("c1", ["Here: ", content]).blocks == [TextPart("Here: "), part]
    assert Message("tool", [ToolResult("c1", ["Here: ", content])]).media == [part]
    assert part.told in ToolResult("c1", ["Here: ", content]).text


@pytest.mark.parametrize(
    "content",
    [
        [{"kind": "image", "url": "https://example.org/a.png"}],
        [{"kind": "file", "name": "a.pdf", "url": "https://example.org/a.pdf"}],
        {"kind": "file", "name": "a.pdf", "size": 5},
        [{**FilePart(text="a").model_dump(), "more": 1}],
        [FilePart(text="a").model_dump(), 5],
    ],
)
def test_json_that_only_looks_like_a_file_stays_json(content: Any) -> None:
    assert ToolResult("c1", content).blocks == []
    assert json.loads(ToolResult("c1", content).text) == content


# --- what they count for --------------------------------------------------------------------------


def request(*said: Any) -> ModelRequest:
    return ModelRequest(model="any:model", messages=[Message("user", ["Look.", *said])])


def test_base64_is_not_counted_as_text() -> None:
    without = estimate_tokens(request())
    large = ImagePart.from_bytes(bytes(3_000_000), "image/png")
    assert without < 60
    assert 1_600 <= estimate_tokens(request(large)) - without < 1_700
    assert 1_600 <= estimate_tokens(request(PARTS[0])) - without < 1_700
    file = FilePart.from_bytes(bytes(400_000), "application/pdf")
    assert 10_000 <= estimate_tokens(request(file)) - without < 10_100
    text = FilePart(text="word " * 1000)
    assert 1_250 <= estimate_tokens(request(text)) - without < 1_300
    as_data = FilePart.from_bytes(b"word " * 1000, "text/plain")
    assert 1_250 <= estimate_tokens(request(as_data)) - without < 1_320
    shown = Message("tool", [ToolResult("c1", [large.model_dump()])])
    asked = request().model_copy(
        update={"messages": [Message("assistant", [ToolCall(id="c1", name="f")]), shown]}
    )
    assert 1_600 <= estimate_tokens(asked) < 1_800


def test_models_made_of_functions_count_as_they_would() -> None:
    async def reply(_: ModelRequest) -> str:
        return "A dot."

    large = ImagePart.from_bytes(bytes(3_000_000), "image/png")
    usage = decode_reply(encode_reply("A dot.", request(large), name="fake")).usage
    assert 1_600 < usage.input_tokens < 1_800
    assert FunctionModel(reply).capabilities.images


def test_what_is_too_large_is_refused_with_what_to_do_about_it() -> None:
    messages = [Message("user", ["Look", ImagePart.from_bytes(bytes(900), "image/png")])] * 2
    check_size(messages, most=2_400)
    with pytest.raises(
        InvalidInput, match=r"2400 bytes .* limit of 2399 .*give a url=, or upload .*file_id="
    ):
        check_size(messages, most=2_399)
    with pytest.raises(InvalidInput, match="holds 11 bytes"):
        check_size([Message("user", ["Look", FilePart(text="word " * 2 + "w")])], most=10)
    check_size([Message("tool", [ToolResult("c1", [messages[0].media[0].model_dump()])])], most=10)


def test_equal_content_gives_equal_digests_and_settings_that_nobody_made_do_not_count() -> None:
    assert request(IMAGE).digest() == request(ImagePart.model_validate(IMAGE_JSON)).digest()
    assert request(IMAGE).digest() != request(PARTS[0]).digest()
    plain = request()
    asked = {**plain.model_dump(mode="json"), "settings": {}}
    assert plain.digest() == "sha256:" + hashlib.sha256(canonical_json(asked).encode()).hexdigest()
    assert plain.digest() != plain.model_copy(update={"settings": ModelSettings(cache="5m")}).digest()
