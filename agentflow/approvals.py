"""Approvals as values: the policy, the request a server issues, the decision a person takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from agentflow.codec import digest
from agentflow.errors import ConfigurationError


class ApprovalStatus(StrEnum):
    """Where a request stands."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    RESPONDED = "responded"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Approval:
    """Who may decide, and until when.

    `when(args)` tells whether to ask at all; `approvers` holds ids and roles, empty means anybody who may decide;
    `min_approvals` counts distinct people; a `timeout` is a denial. `editable=None` lets every argument be edited,
    a tuple names those that may, `()` none.
    """

    when: Callable[[dict[str, Any]], bool] | None = None
    approvers: tuple[str, ...] = ()
    min_approvals: int = 1
    timeout: timedelta | float | str = "3d"
    editable: tuple[str, ...] | None = None
    escalate: Any = None

    def __post_init__(self) -> None:
        if self.min_approvals < 1:
            raise ConfigurationError(
                f"Approval(min_approvals={self.min_approvals}): at least one person must decide"
            )
        if isinstance(self.approvers, str):
            raise ConfigurationError(f"Approval(approvers={self.approvers!r}): give a tuple of ids and roles")


class Approve(BaseModel):
    """Run it as it stands."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["approve"] = "approve"


class Edit(BaseModel):
    """Run it with these arguments instead; they are the full arguments."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["edit"] = "edit"
    args: dict[str, Any]

    def __init__(self, args: Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        super().__init__(**({} if args is None else {"args": dict(args)}), **fields)


class Deny(BaseModel):
    """Do not run it; the message goes to the model."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["deny"] = "deny"
    message: str | None = None

    def __init__(self, message: str | None = None, /, **fields: Any) -> None:
        super().__init__(**({} if message is None else {"message": message}), **fields)


class Respond(BaseModel):
    """Do not run it; this value is the result."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["respond"] = "respond"
    value: Any

    def __init__(self, *value: Any, **fields: Any) -> None:
        super().__init__(**dict(zip(("value",), value, strict=True) if value else ()), **fields)


DecisionInput = Approve | Edit | Deny | Respond


class GivenDecision(BaseModel):
    """One person's decision as it is stored."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["approve", "edit", "deny", "respond"]
    by: str
    comment: str | None = None
    message: str | None = None
    value: Any = None
    at: datetime


class ApprovalRequest(BaseModel):
    """A question the server issued. A decision names its `id` and gives `args_digest` back."""

    model_config = ConfigDict(frozen=True)

    id: str
    run_id: str
    step_key: str
    tool: str | None
    title: str
    details: Any = None
    args: dict[str, Any] | None = None
    args_digest: str
    status: ApprovalStatus
    approvers: tuple[str, ...] = ()
    min_approvals: int = 1
    decisions: tuple[GivenDecision, ...] = ()
    edited_args: dict[str, Any] | None = None
    requested_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None


class Decision(BaseModel):
    """What `step.approval` returns. `reason` is `None`, `"denied"` or `"timeout"`."""

    model_config = ConfigDict(frozen=True)

    approved: bool
    by: str | None = None
    comment: str | None = None
    edited: dict[str, Any] | None = None
    value: Any = None
    reason: Literal["denied", "timeout"] | None = None


def approval_digest(*, tool: str | None, args: Any, title: str, details: Any) -> str:
    """SHA-256 of what a person decides about: tool and arguments, or title and details where there is no tool."""
    return digest({"tool": tool, "args": args} if tool is not None else {"title": title, "details": details})
