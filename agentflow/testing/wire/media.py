"""Images and files as the model APIs demand them: what they would refuse with a 400 is refused here."""

from __future__ import annotations

import base64
import re

from agentflow.models.media import FilePart, ImagePart
from agentflow.models.messages import TextPart, UserPart
from agentflow.testing.wire import BadRequest, Json

_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
_PDF = "application/pdf"
_DATA_URL = re.compile(r"data:([^;,]+);base64,(.*)", re.DOTALL)


def anthropic_part(block: Json) -> UserPart:
    """A text, an image or a document of Anthropic's API."""
    match block["type"], (block.get("source") or {}).get("type"):
        case "text", None:
            return TextPart(text=block["text"])
        case "image", "base64":
            return _image(block["source"]["media_type"], block["source"]["data"])
        case "image", "url":
            return ImagePart(url=block["source"]["url"])
        case "image", "file":
            return ImagePart(file_id=_their_id(block["source"]["file_id"], "file_"))
        case "document", "base64":
            _expect(block["source"]["media_type"] == _PDF, "media_type: Input should be 'application/pdf'")
            return FilePart(media_type=_PDF, data=block["source"]["data"], name=block.get("title"))
        case "document", "text":
            _expect(block["source"]["media_type"] == "text/plain", "media_type: Input should be 'text/plain'")
            return FilePart(text=block["source"]["data"], name=block.get("title"))
        case "document", "url":
            return FilePart(url=block["source"]["url"], name=block.get("title"))
        case "document", "file":
            file_id = _their_id(block["source"]["file_id"], "file_")
            return FilePart(file_id=file_id, name=block.get("title"))
        case other:
            raise BadRequest(f"messages: a block of type {other!r} is not expected")


def responses_part(block: Json) -> UserPart:
    """A text, an image or a file of the Responses API."""
    match block["type"]:
        case "input_text":
            return TextPart(text=block["text"])
        case "input_image":
            _expect("detail" in block, "Missing required parameter: 'detail'.")
            if "file_id" in block:
                return ImagePart(file_id=_their_id(block["file_id"], "file-"))
            return _image_at(block["image_url"])
        case "input_file":
            sources = {"file_data", "file_url", "file_id"} & block.keys()
            _expect(len(sources) == 1, "Mutually exclusive parameters: file_data, file_url, file_id.")
            if "file_url" in block:
                return FilePart(url=block["file_url"])
            return _openai_file(block)
        case other:
            raise BadRequest(f"Invalid value: {other!r}")


def chat_part(block: Json) -> UserPart:
    """A text, an image or a file of Chat Completions."""
    match block["type"]:
        case "text":
            return TextPart(text=block["text"])
        case "image_url":
            return _image_at(block["image_url"]["url"])
        case "file":
            _expect(
                block["file"].keys() <= {"file_data", "file_id", "filename"}, "Unknown parameter in 'file'."
            )
            part = _openai_file(block["file"])
            _expect(part.data is None or part.media_type == _PDF, "Only PDF files are supported.")
            return part
        case other:
            raise BadRequest(f"Invalid value: {other!r}")


def _openai_file(block: Json) -> FilePart:
    if "file_id" in block:
        return FilePart(file_id=_their_id(block["file_id"], "file-"))
    _expect(bool(block.get("filename")), "Missing required parameter: 'filename'.")
    media_type, data = _in_data_url(block["file_data"])
    return FilePart(media_type=media_type, data=data, name=block["filename"])


def _image_at(url: str) -> ImagePart:
    return _image(*_in_data_url(url)) if url.startswith("data:") else ImagePart(url=url)


def _image(media_type: str, data: str) -> ImagePart:
    _expect(media_type in _IMAGE_TYPES, f"media_type: {media_type!r} is not supported")
    return ImagePart(media_type=media_type, data=data)


def _in_data_url(url: str) -> tuple[str, str]:
    found = _DATA_URL.fullmatch(url)
    _expect(found is not None, "Expected a base64-encoded data URL.")
    assert found is not None
    base64.b64decode(found[2], validate=True)
    return found[1], found[2]


def _their_id(file_id: str, prefix: str) -> str:
    _expect(
        file_id.startswith(prefix),
        f"Invalid 'file_id': {file_id!r}. Expected an ID that begins with {prefix!r}.",
    )
    return file_id


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BadRequest(otherwise)
