"""Reads request bodies: at most 1 MB of plain, strict JSON. What is wrong is told after authentication, not before."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Request

from agentflow.codec import loads
from agentflow.errors import InvalidInput
from agentflow.http.problems import ProblemError

MOST_BODY_BYTES: Final = 1024 * 1024


class JsonRequest(Request):
    """A request whose body FastAPI may read before it asks who is calling.

    What is wrong with the body is kept in `refusal`; the dependency `refuse_unreadable_body` raises it in its turn.
    """

    refusal: ProblemError | None = None

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._body = await self._read()
        return self._body

    async def json(self) -> Any:
        try:
            return loads(await self.body())
        except InvalidInput as error:
            self.refusal = ProblemError("malformed_json", str(error))
            return None

    async def _read(self) -> bytes:
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            return self._refuse(
                "unsupported_media_type",
                f"Content-Encoding {encoding!r}: send the body as it is, not compressed.",
            )
        announced = self.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > MOST_BODY_BYTES:
            return self._refuse_size()
        pieces: list[bytes] = []
        size = 0
        async for piece in self.stream():
            size += len(piece)
            if size > MOST_BODY_BYTES:
                return self._refuse_size()
            pieces.append(piece)
        if size and not _is_json(self.headers.get("content-type", "")):
            # Also what keeps a page of another origin from posting here without a preflight.
            return self._refuse("unsupported_media_type", "Send Content-Type: application/json.")
        return b"".join(pieces)

    def _refuse_size(self) -> bytes:
        return self._refuse("too_large", f"A body has {MOST_BODY_BYTES} bytes at most.")

    def _refuse(self, code: str, detail: str) -> bytes:
        self.refusal = ProblemError(code, detail)
        return b""


async def refuse_unreadable_body(request: Request) -> None:
    """A dependency, asked after authentication."""
    if isinstance(request, JsonRequest) and request.refusal is not None:
        raise request.refusal


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    kind, _, subtype = media_type.partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))
