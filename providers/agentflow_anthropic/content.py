"""Ours to Anthropic's content blocks: texts, images and documents. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agentflow.errors import InvalidInput
from agentflow.providers import FilePart, ImagePart, Item, Media, Message, TextPart, UserPart

_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_PDF = "application/pdf"


def block_of(part: UserPart) -> Item:
    """One part of a user's message or of a tool's result. Raises `InvalidInput`."""
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            return {"type": "image", "source": _image_source(part)}
        case FilePart():
            title = {"title": part.name} if part.name else {}
            return {"type": "document", "source": _document_source(part), **title}


def check_content(messages: Sequence[Message]) -> None:
    """Raise `InvalidInput` for an image or a file that the API cannot carry."""
    for message in messages:
        for part in message.media:
            block_of(part)


def _image_source(part: ImagePart) -> Item:
    if part.media_type not in (None, *_IMAGE_TYPES):
        raise _cannot(part, f"images of this type, but {', '.join(_IMAGE_TYPES)}")
    if part.data:
        return {"type": "base64", "media_type": part.media_type, "data": part.data}
    return _elsewhere(part)


def _document_source(part: FilePart) -> Item:
    text = part.read_text()
    if text is not None:
        if not text.strip():
            raise _cannot(part, "documents without any text")
        return {"type": "text", "media_type": "text/plain", "data": text}
    if not part.file_id and part.media_type not in (None, _PDF):
        raise _cannot(part, "other documents than PDF and text: give its text=, or a PDF of it")
    if part.data:
        return {"type": "base64", "media_type": _PDF, "data": part.data}
    return _elsewhere(part)


def _elsewhere(part: Media) -> Item:
    if part.url:
        return {"type": "url", "url": part.url}
    if str(part.file_id).startswith("file-"):  # theirs begin with "file_"
        raise _cannot(part, "the ids of OpenAI's files: upload it to Anthropic, or give its data")
    return {"type": "file", "file_id": part.file_id}


def _cannot(part: Media, what: str) -> InvalidInput:
    return InvalidInput(f"{part.told}: Anthropic's API does not take {what}")
