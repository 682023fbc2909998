"""Images and files in a message: where they come from, and what they count for.

Each has one source: its content in the message itself, a URL that the provider fetches, or the id of a file that was
uploaded to the provider. What an API can carry of it is known to the API's provider.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

from pydantic import BeforeValidator, field_validator, model_validator

from agentflow.errors import InvalidInput
from agentflow.models.values import Positional

CHARACTERS_PER_TOKEN: Final = 4
TOKENS_OF_AN_IMAGE: Final = 1_600
"""About what a large image counts for, at both big APIs; also what is taken for a file that nobody has seen."""
BYTES_PER_TOKEN_OF_A_FILE: Final = 40
"""A page of a PDF has some 100 KB, and counts for some 2,500 tokens."""

_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9.+-]*/[a-z0-9][a-z0-9.+-]*")


_OFFICE = "application/vnd.openxmlformats-officedocument"
_KNOWN_LATE: Final = {  # what not every Python knows by itself
    ".md": "text/markdown",
    ".webp": "image/webp",
    ".docx": f"{_OFFICE}.wordprocessingml.document",
    ".xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    ".pptx": f"{_OFFICE}.presentationml.presentation",
}


def _as_base64(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode("ascii")
    if not isinstance(value, str):
        return value
    text = "".join(value.split())
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise ValueError(f"is no base64 ({error}): give bytes, or base64 text") from None
    return text


Base64: TypeAlias = Annotated[str, BeforeValidator(_as_base64)]
"""Text in base64; bytes are taken, too, and become it."""


class Media(Positional):
    """What an image and a file have in common."""

    by_position = ("url",)

    url: str | None = None
    media_type: str | None = None
    data: Base64 | None = None
    file_id: str | None = None

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://[^/\s]", url):
            raise ValueError(
                f"{url[:100]!r} is no http(s) URL: give what is at hand as data=, or from_path()"
            )
        return url

    @field_validator("media_type")
    @classmethod
    def _check_media_type(cls, media_type: str | None) -> str | None:
        if media_type is not None and not _MEDIA_TYPE.fullmatch(media_type):
            raise ValueError(
                f"{media_type[:100]!r} is no media type, as 'image/png' and 'application/pdf' are"
            )
        return media_type

    @model_validator(mode="after")
    def _hold_one_source(self) -> Self:
        given = [name for name in self._sources() if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(self._sources())}, not {' and '.join(given) or 'none'}")
        if not getattr(self, given[0]):
            raise ValueError(f"{given[0]} is empty")
        if self.data is not None and self.media_type is None:
            raise ValueError("data needs its media_type=")
        return self

    @classmethod
    def from_bytes(cls, content: bytes, media_type: str) -> Self:
        """What these bytes hold."""
        return cls(data=base64.b64encode(content).decode("ascii"), media_type=media_type)

    @classmethod
    def _sources(cls) -> tuple[str, ...]:
        return ("data", "url", "file_id")

    @property
    def size(self) -> int:
        """Bytes of its content in the message; 0 where it is elsewhere."""
        return len((self.data or "").rstrip("=")) * 3 // 4

    @property
    def content_length(self) -> int:
        """Characters of its content in the message, as it is stored; 0 where it is elsewhere."""
        return len(self.data or "")

    @property
    def tokens(self) -> int:
        """About how many tokens it counts for, beside the text in its JSON."""
        return TOKENS_OF_AN_IMAGE

    @property
    def data_url(self) -> str:
        """Its data as a URL: `data:image/png;base64,...`."""
        return f"data:{self.media_type};base64,{self.data}"

    @property
    def told(self) -> str:
        """What a reader is told who cannot be shown it."""
        return f"[{self._described()}: not shown]"

    def _described(self) -> str:
        if self.data is not None:
            return f"{self.media_type}, {self.size} bytes"
        return f"{self.media_type or 'something'} at {self.url or self.file_id}"


class ImagePart(Media):
    """An image: `ImagePart("https://...")`, `ImagePart.from_path("photo.png")`, `ImagePart(file_id=...)`, or `data`
    (bytes or base64) with its `media_type`. How closely a model is to look is `detail`, for APIs that know it."""

    kind: Literal["image"] = "image"
    detail: Literal["auto", "low", "high"] | None = None

    @model_validator(mode="after")
    def _hold_an_image(self) -> Self:
        if self.media_type is not None and not self.media_type.startswith("image/"):
            raise ValueError(f"{self.media_type!r} is no image: give a FilePart")
        return self

    @classmethod
    def from_path(cls, path: str | Path, media_type: str | None = None) -> ImagePart:
        """The image in a file; its media type is told by the file's name. Raises `InvalidInput`, `OSError`."""
        return cls.from_bytes(Path(path).read_bytes(), media_type or _guessed(Path(path)))


class FilePart(Media):
    """A file or document: `FilePart("https://...")`, `FilePart.from_path("terms.pdf")`, `FilePart(text="...")`,
    `FilePart(file_id=...)`, or `data` (bytes or base64) with its `media_type`."""

    kind: Literal["file"] = "file"
    text: str | None = None
    name: str | None = None
    """What the model is told it is called."""

    @classmethod
    def from_path(cls, path: str | Path, media_type: str | None = None) -> FilePart:
        """A file, by its name too; what holds text is kept as text. Raises `InvalidInput`, `OSError`."""
        path = Path(path)
        kind, content = media_type or _guessed(path), path.read_bytes()
        if is_text(kind):
            try:
                return cls(text=content.decode("utf-8"), media_type=kind, name=path.name)
            except UnicodeDecodeError:
                pass  # kept as it is, for an API that can read it
        return cls(data=base64.b64encode(content).decode("ascii"), media_type=kind, name=path.name)

    @classmethod
    def _sources(cls) -> tuple[str, ...]:
        return ("data", "text", "url", "file_id")

    @property
    def content_length(self) -> int:
        return super().content_length if self.text is None else len(self.text)

    @property
    def tokens(self) -> int:
        if self.text is not None:
            return 0  # its JSON is its text
        if self.data is None:
            return TOKENS_OF_AN_IMAGE
        if is_text(self.media_type):
            return self.size // CHARACTERS_PER_TOKEN
        return max(TOKENS_OF_AN_IMAGE, self.size // BYTES_PER_TOKEN_OF_A_FILE)

    @property
    def told(self) -> str:
        if self.text is not None:
            return f"[{self.name}]\n{self.text}" if self.name else self.text
        return super().told

    def _described(self) -> str:
        return f"{self.name}, {super()._described()}" if self.name else super()._described()

    @property
    def file_name(self) -> str:
        """Its name; one that fits its media type where it has none."""
        if self.name:
            return self.name
        kind = self.media_type or ("text/plain" if self.text is not None else "application/pdf")
        return f"document{_types().guess_extension(kind, strict=False) or ''}"

    def read_text(self) -> str | None:
        """The text of a document that is plain text and at hand; `None` of all others. Raises `InvalidInput`."""
        if self.text is not None or self.data is None or not is_text(self.media_type):
            return self.text
        try:
            return base64.b64decode(self.data).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"the file {self.file_name!r} is {self.media_type} and not UTF-8 ({error}): decode it, and give text="
            ) from error


def is_text(media_type: str | None) -> bool:
    """Whether what is of that type can be read as plain text."""
    return media_type is not None and media_type.startswith("text/")


def characters_that_count(characters: int, media: Iterable[Media]) -> int:
    """So many characters of JSON, as they count for tokens: images and files by what they show, not by their base64."""
    return characters + sum(part.tokens * CHARACTERS_PER_TOKEN - len(part.data or "") for part in media)


def _guessed(path: Path) -> str:
    guessed = _types().guess_type(path.name, strict=False)[0]
    if guessed is None:
        raise InvalidInput(f"the media type of {path.name!r} is not told by its name: give media_type=")
    return guessed


@cache
def _types() -> mimetypes.MimeTypes:
    """Python's own tables: by those of the machine, two workers might ask two different questions."""
    types = mimetypes.MimeTypes()
    for extension, media_type in _KNOWN_LATE.items():
        types.add_type(media_type, extension)
    return types
