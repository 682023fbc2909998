"""Approvals as values: the policy, the request a server issues, the decision a person takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from agentflow.codec import digest
from agentflow.durations import parse_duration, to_micros
from agentflow.errors import ConfigurationError, InvalidInput


class ApprovalStatus(StrEnum):
    """Where a request stands."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    RESPONDED = "responded"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Escalation:
    """Who else may decide, ids and roles, when nobody has after a while: `Escalation("4h", ("head",))`."""

    after: timedelta | float | str
    to: tuple[str, ...]

    def __post_init__(self) -> None:
        parse_duration(self.after)
        given: Any = self.to
        if (
            not isinstance(given, tuple | list)
            or not given
            or not all(isinstance(name, str) for name in given)
        ):
            raise ConfigurationError(f"Escalation(to={self.to!r}): give a tuple of ids and roles")


@dataclass(frozen=True, kw_only=True)
class Approval:
    """Who may decide, and until when.

    `when(args)` tells whether to ask at all; `approvers` holds ids and roles, empty means anybody who may decide;
    `min_approvals` counts distinct people; a `timeout` is a denial. `editable=None` lets every argument be edited,
    a tuple names those that may, `()` none. `escalate` lets others decide too after a while: an `Escalation`, or what
    one is made of. With `bar_starter` the one who started the run may not decide, where it is known who did.
    """

    when: Callable[[dict[str, Any]], bool] | None = None
    approvers: tuple[str, ...] = ()
    min_approvals: int = 1
    timeout: timedelta | float | str = "3d"
    editable: tuple[str, ...] | None = None
    escalate: Escalation | tuple[timedelta | float | str, tuple[str, ...]] | None = None
    bar_starter: bool = False

    def __post_init__(self) -> None:
        try:
            parse_duration(self.timeout)
        except InvalidInput as error:
            raise ConfigurationError(f"Approval(timeout={self.timeout!r}): {error}") from None
        self._check_escalation()
        if self.min_approvals < 1:
            raise ConfigurationError(
                f"Approval(min_approvals={self.min_approvals}): at least one person must decide"
            )
        if isinstance(self.approvers, str):
            raise ConfigurationError(f"Approval(approvers={self.approvers!r}): give a tuple of ids and roles")
        if isinstance(self.editable, str):
            raise ConfigurationError(
                f"Approval(editable={self.editable!r}): give a tuple of names of arguments"
            )

    def _check_escalation(self) -> None:
        given: Any = self.escalate
        if given is None:
            return
        try:
            escalation = given if isinstance(given, Escalation) else Escalation(*given)
        except (TypeError, InvalidInput) as error:
            raise ConfigurationError(
                f"Approval(escalate={given!r}): give Escalation(after, to), or a tuple of the two: {error}"
            ) from None
        if not self.approvers:
            raise ConfigurationError(
                f"Approval(escalate={given!r}): without approvers= anybody may decide from the beginning"
            )
        if parse_duration(escalation.after) >= parse_duration(self.timeout):
            raise ConfigurationError(
                f"Approval(escalate={given!r}): by then the time is over (timeout={self.timeout!r})"
            )
        object.__setattr__(self, "escalate", escalation)

    @property
    def escalation(self) -> Escalation | None:
        """Whom to ask later."""
        return self.escalate if isinstance(self.escalate, Escalation) else None


class ApprovalRules(BaseModel):
    """What of a policy is stored with the request beside what everybody sees of it."""

    model_config = ConfigDict(frozen=True)

    escalates_at: int | None = None
    escalates_to: tuple[str, ...] = ()
    bars_starter: bool = False

    @classmethod
    def of(cls, policy: Approval, *, now: int) -> ApprovalRules:
        later = policy.escalation
        if later is None:
            return cls(bars_starter=policy.bar_starter)
        at = now + to_micros(parse_duration(later.after))
        return cls(escalates_at=at, escalates_to=tuple(later.to), bars_starter=policy.bar_starter)

    def approvers(self, named: tuple[str, ...], *, now: int) -> tuple[str, ...]:
        """Who may decide at that instant."""
        if self.escalates_at is None or now < self.escalates_at:
            return named
        return (*named, *(name for name in self.escalates_to if name not in named))


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
    """SHA-256 of what a person decides about: tool and arguments, or title and details where there is no tool.

    Without a tool there are arguments once somebody has given some, by an edit: who decides then decides on them too.
    """
    if tool is not None:
        return digest({"tool": tool, "args": args})
    return digest({"title": title, "details": details} | ({} if args is None else {"args": args}))
