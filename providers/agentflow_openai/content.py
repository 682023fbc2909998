"""Ours to the content parts of both APIs: texts, images and files. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agentflow.errors import InvalidInput
from agentflow.providers import FilePart, ImagePart, Item, Media, Message, TextPart, UserPart

_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_PDF = "application/pdf"


def response_content(parts: Sequence[UserPart]) -> str | list[Item]:
    """A user's message for the Responses API. Raises `InvalidInput`."""
    if all(isinstance(part, TextPart) for part in parts):
        return _joined(parts)
    return [response_part(part) for part in parts]


def response_part(part: UserPart) -> Item:
    """One part of a user's message or of a tool's result. Raises `InvalidInput`."""
    match part:
        case TextPart():
            return {"type": "input_text", "text": part.text}
        case ImagePart():
            _check(part, "OpenAI's Responses API")
            where = {"file_id": part.file_id} if part.file_id else {"image_url": part.url or part.data_url}
            return {"type": "input_image", "detail": part.detail or "auto", **where}
        case FilePart():
            _check(part, "OpenAI's Responses API")
            return {"type": "input_file", **_file(part)}


def chat_content(parts: Sequence[UserPart]) -> str | list[Item]:
    """A user's message for Chat Completions. Raises `InvalidInput`."""
    if all(isinstance(part, TextPart) for part in parts):
        return _joined(parts)
    return [_chat_part(part) for part in parts]


def check_responses(messages: Sequence[Message]) -> None:
    """Raise `InvalidInput` for an image or a file that the Responses API cannot carry."""
    for part in _media(messages, of_tools=True):
        response_part(part)


def check_chat(messages: Sequence[Message]) -> None:
    """Raise `InvalidInput` for one of the user's that Chat Completions cannot carry; of a tool's it tells in words."""
    for part in _media(messages, of_tools=False):
        _chat_part(part)


def _media(messages: Sequence[Message], *, of_tools: bool) -> list[ImagePart | FilePart]:
    return [part for message in messages if message.role == "user" or of_tools for part in message.media]


def _chat_part(part: UserPart) -> Item:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text}
        case ImagePart():
            _check(part, "Chat Completions")
            if part.file_id:
                raise _cannot(part, "Chat Completions", "images by their file_id: give a url, or the data")
            detail = {"detail": part.detail} if part.detail else {}
            return {"type": "image_url", "image_url": {"url": part.url or part.data_url, **detail}}
        case FilePart():
            return _chat_file(part)


def _chat_file(part: FilePart) -> Item:
    _check(part, "Chat Completions")
    text = part.read_text()
    if text is not None:
        return {"type": "text", "text": f"[{part.file_name}]\n{text}"}
    if part.url:
        raise _cannot(part, "Chat Completions", "files by their url: give the data, or use 'openai:'")
    if part.data and part.media_type != _PDF:
        raise _cannot(part, "Chat Completions", "other files than PDF and text: use 'openai:'")
    return {"type": "file", "file": _file(part)}


def _file(part: FilePart) -> Item:
    if part.file_id:
        return {"file_id": part.file_id}
    if part.url:
        return {"file_url": part.url}
    if part.text is None:
        return {"filename": part.file_name, "file_data": part.data_url}
    of_bytes = FilePart.from_bytes(part.text.encode(), part.media_type or "text/plain")
    return {"filename": part.file_name, "file_data": of_bytes.data_url}


def _check(part: Media, api: str) -> None:
    if isinstance(part, ImagePart) and part.media_type not in (None, *_IMAGE_TYPES):
        raise _cannot(part, api, f"images of this type, but {', '.join(_IMAGE_TYPES)}")
    if (part.file_id or "").startswith("file_"):  # theirs begin with "file-"
        raise _cannot(part, api, "the ids of Anthropic's files: upload it to OpenAI, or give its data")


def _cannot(part: Media, api: str, what: str) -> InvalidInput:
    return InvalidInput(f"{part.told}: {api} does not take {what}")


def _joined(parts: Sequence[UserPart]) -> str:
    return "".join(part.text for part in parts if isinstance(part, TextPart))
