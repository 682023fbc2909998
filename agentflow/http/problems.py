"""Every error answer of the HTTP API: RFC 9457 `application/problem+json` with a stable `code`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from agentflow.errors import (
    AlreadyDecided,
    ApprovalExpired,
    DatabaseUnavailable,
    DigestMismatch,
    IdempotencyConflict,
    InvalidInput,
    LimitExceeded,
    NotFound,
    NotPermitted,
    NoWaiter,
    SignalConflict,
    Unserialisable,
)

logger = logging.getLogger("agentflow.http")

MEDIA_TYPE: Final = "application/problem+json"


@dataclass(frozen=True)
class ProblemKind:
    """What a `code` stands for; documented in docs/reference/problem-codes.md."""

    status: int
    title: str


PROBLEMS: Final[Mapping[str, ProblemKind]] = {
    "malformed_json": ProblemKind(400, "The body is not JSON"),
    "unauthenticated": ProblemKind(401, "Who is calling is not known"),
    "cross_origin": ProblemKind(403, "A page of another origin may not do this"),
    "missing_scope": ProblemKind(403, "The caller lacks a scope"),
    "not_permitted": ProblemKind(403, "The caller may not do this"),
    "not_found": ProblemKind(404, "There is nothing here"),
    "no_waiter": ProblemKind(404, "Nobody waits for this signal"),
    "method_not_allowed": ProblemKind(405, "This path has other methods"),
    "already_decided": ProblemKind(409, "The approval was decided already"),
    "signal_conflict": ProblemKind(409, "A signal of that name is kept already"),
    "approval_expired": ProblemKind(410, "The approval's time is over"),
    "digest_mismatch": ProblemKind(412, "The approval is about something else now"),
    "too_large": ProblemKind(413, "The body is too large"),
    "unsupported_media_type": ProblemKind(415, "The body has to be plain JSON"),
    "idempotency_conflict": ProblemKind(422, "The idempotency key was used with another body"),
    "idempotency_unsupported": ProblemKind(422, "An idempotency key does not work here"),
    "invalid_input": ProblemKind(422, "The request does not validate"),
    "digest_required": ProblemKind(428, "A decision has to name the digest it is about"),
    "http_error": ProblemKind(400, "The request failed"),
    "internal_error": ProblemKind(500, "Something went wrong here"),
    "unavailable": ProblemKind(503, "The service is not ready"),
}

DATABASE_AWAY: Final = "The database does not answer."
# One body for what is unknown, somebody else's, or gone: the answer must not tell which.
NOTHING_HERE: Final = "Nothing of that id exists, or you may not see it."

_OF_ERROR: Final[Mapping[type[Exception], str]] = {
    InvalidInput: "invalid_input",
    Unserialisable: "invalid_input",
    IdempotencyConflict: "idempotency_conflict",
    NoWaiter: "no_waiter",
    SignalConflict: "signal_conflict",
    ApprovalExpired: "approval_expired",
    NotPermitted: "not_permitted",
    DigestMismatch: "digest_mismatch",
    LimitExceeded: "too_large",
}
_OF_STATUS: Final = {
    401: "unauthenticated",
    403: "not_permitted",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    503: "unavailable",
}


class FieldProblem(BaseModel):
    """One thing in the request that does not validate. `loc` leads to it."""

    loc: list[str | int]
    msg: str
    type: str


class Problem(BaseModel):
    """The body of every error answer. `code` is stable; `detail` is for people and may change."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    detail: str


@dataclass
class ProblemError(Exception):
    """Ends a request with a problem."""

    code: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    status: int | None = None


def not_found() -> ProblemError:
    """The same 404 for all that cannot be seen."""
    return ProblemError("not_found", NOTHING_HERE)


def answer_to(error: Exception) -> Response:
    """The answer that an exception becomes. What nobody foresaw is logged and told to nobody."""
    problem = _problem_of(error)
    if problem is None:
        logger.error("a request ended with %s", type(error).__name__, exc_info=error)
        problem = ProblemError("internal_error", "The error is in the server's log.")
    kind = PROBLEMS[problem.code]
    status = problem.status or kind.status
    body = Problem(
        type=f"urn:agentflow:problem:{problem.code}",
        title=kind.title,
        status=status,
        code=problem.code,
        detail=problem.detail,
        **problem.more,
    )
    # Any text may come back in a detail; what UTF-8 cannot write is escaped rather than a second error.
    content = to_json(body.model_dump(mode="json"), inf_nan_mode="null")
    return Response(content, status_code=status, headers=dict(problem.headers), media_type=MEDIA_TYPE)


def openapi_responses() -> dict[int | str, dict[str, Any]]:
    """Problems in the OpenAPI document, for every route alike."""
    schema = Problem.model_json_schema()
    schema["properties"]["code"]["enum"] = sorted(PROBLEMS)
    return {"default": {"description": "A problem", "content": {MEDIA_TYPE: {"schema": schema}}}}


def _problem_of(error: Exception) -> ProblemError | None:
    match error:
        case ProblemError():
            return error
        case NotFound():
            return not_found()
        case DatabaseUnavailable():
            return ProblemError("unavailable", DATABASE_AWAY)
        case AlreadyDecided(request=request):
            is_open = request.status == "pending"  # it is this person alone who has decided already
            winner = (
                request.decisions[-1].model_dump(mode="json") if request.decisions and not is_open else None
            )
            more = {"winner": winner, "approval": request.model_dump(mode="json")}
            return ProblemError("already_decided", str(error), more=more)
        case RequestValidationError():
            return _does_not_validate(error.errors())
        case HTTPException(status_code=404):
            return not_found()
        case HTTPException(status_code=status):
            return ProblemError(
                _OF_STATUS.get(status, "http_error"),
                str(error.detail),
                headers=error.headers or {},
                status=status,
            )
    code = next((code for kind, code in _OF_ERROR.items() if isinstance(error, kind)), None)
    if code is None:
        return None
    return ProblemError(code, str(error), more=_fields_of(error) if code == "invalid_input" else {})


def _does_not_validate(found: Any) -> ProblemError:
    fields = [_field(item["loc"], item) for item in found]
    told = "; ".join(f"{'.'.join(map(str, item.loc))}: {item.msg}" for item in fields[:3])
    return ProblemError("invalid_input", told, more={"errors": [item.model_dump() for item in fields]})


def _fields_of(error: Exception) -> dict[str, Any]:
    """What pydantic complained of, where it did: own errors keep it as their cause."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__cause__
    if cause is None:
        return {}
    found = cause.errors(include_url=False, include_context=False, include_input=False)
    return {"errors": [_field(("body", *item["loc"]), item).model_dump() for item in found]}


def _field(loc: tuple[str | int, ...], item: Mapping[str, Any]) -> FieldProblem:
    return FieldProblem(loc=list(loc), msg=item["msg"], type=item["type"])
