"""What goes over the wire where it differs from the records of `agentflow.runs` and `agentflow.approvals`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from agentflow.approvals import Approve, DecisionInput, Deny, Edit, Respond
from agentflow.clock import to_datetime
from agentflow.errors import InvalidInput
from agentflow.events import Event
from agentflow.runs import Page, RunStatus, StepRecord, Waiting
from agentflow.store.claim_types import FunctionInfo

T = TypeVar("T")


def _storable(text: object) -> object:
    if isinstance(text, str) and "\x00" in text:
        raise ValueError("it holds a NUL character")
    return text


Text = Annotated[str, BeforeValidator(_storable), Field(max_length=4096)]
"""Text of a query or a path, which may hold what no database stores."""
Limit = Annotated[int, Field(ge=1, le=100)]


class PageInfo(BaseModel):
    """Give `cursor` back for the next page."""

    cursor: str | None
    has_more: bool
    limit: int


class PageBody(BaseModel, Generic[T]):
    """One page of a list."""

    data: list[T]
    page: PageInfo

    @classmethod
    def of(cls, page: Page[Any], items: list[T], *, limit: int) -> Self:
        return cls(data=items, page=PageInfo(cursor=page.cursor, has_more=page.has_more, limit=limit))


class RunSummary(BaseModel):
    """A run in a list: without its payloads."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    app: str
    function: str
    status: RunStatus
    reason: str | None
    tags: tuple[str, ...]
    parent_id: str | None
    root_id: str
    rerun_of: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    waiting: list[Waiting]


class StepBody(StepRecord):
    """A step, and what it waits for: since when, until when."""

    waiting: Waiting | None = None

    @classmethod
    def of(cls, step: StepRecord, waiting: list[Waiting]) -> Self:
        mine = next((item for item in waiting if item.step_key == step.key), None)
        return cls(**dict(step), waiting=mine)


class FunctionBody(BaseModel):
    """A function as others see it who do not import it."""

    id: str
    app: str
    version: str
    description: str
    is_agent: bool
    triggers: list[dict[str, Any]]
    config: dict[str, Any]
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    paused_at: datetime | None

    @classmethod
    def of(cls, info: FunctionInfo) -> Self:
        schemas = json.loads(info.schemas)
        return cls(
            id=info.id,
            app=info.app,
            version=info.version,
            description=schemas.get("description", ""),
            is_agent=bool(schemas.get("agent")),
            triggers=json.loads(info.triggers),
            config=json.loads(info.config),
            input_schema=schemas.get("input", {}),
            output_schema=schemas.get("output", {}),
            paused_at=None if info.paused_at is None else to_datetime(info.paused_at),
        )


class FunctionList(BaseModel):
    """All functions of the app."""

    data: list[FunctionBody]


Events = Annotated[list[Event], Field(min_length=1, max_length=100)]
OneOrMore = Annotated[
    Annotated[Event, Tag("event")] | Annotated[Events, Tag("events")],
    # By what it looks like, so that an error is about what was sent, and not about what might have been.
    Discriminator(lambda body: "events" if isinstance(body, list) else "event"),
]


class SentBody(BaseModel):
    """The ids of the events, in their order, and of the runs they started."""

    event_ids: list[str]
    run_ids: list[str]


class CancelBody(BaseModel):
    """Why a run is cancelled."""

    model_config = ConfigDict(extra="forbid")

    reason: str | None = Field(default=None, max_length=2000)


class RerunBody(BaseModel):
    """From which step on a run is done again, and with what in place of its input; `null` leaves it as it was."""

    model_config = ConfigDict(extra="forbid")

    from_step: Text | None = None
    data: Any = None


class SignalBody(BaseModel):
    """A message to the one run that waits for its name. `buffer` ("1h") keeps it for a wait that comes later."""

    model_config = ConfigDict(extra="forbid")

    signal: str = Field(min_length=1, max_length=512)
    data: Any = None
    buffer: str | float | None = None


class SignalledBody(BaseModel):
    """The run the signal went to; `null` when it is kept for later."""

    run_id: str | None


class DecisionBody(BaseModel):
    """A person's decision. Who decides is known from authentication alone: no field can say it."""

    model_config = ConfigDict(extra="ignore")

    decision: Literal["approve", "edit", "deny", "respond"]
    args_digest: str | None = Field(default=None, max_length=200)
    edited_args: dict[str, Any] | None = None
    message: str | None = Field(default=None, max_length=10_000)
    value: Any = None
    comment: str | None = Field(default=None, max_length=10_000)

    @model_validator(mode="after")
    def _refuse_what_does_not_fit(self) -> Self:
        # An approval with edited arguments beside it would run the others: better no decision than a wrong one.
        fitting = {"approve": None, "edit": "edited_args", "deny": "message", "respond": "value"}[
            self.decision
        ]
        for name in ("edited_args", "message", "value"):
            if name != fitting and getattr(self, name) is not None:
                raise ValueError(f"{name} has no meaning with decision {self.decision!r}")
        if self.decision == "edit" and self.edited_args is None:
            raise ValueError("decision 'edit' needs edited_args, all of them")
        if self.decision == "respond" and "value" not in self.model_fields_set:
            raise ValueError("decision 'respond' needs a value")
        return self

    def as_decision(self) -> DecisionInput:
        match self.decision:
            case "approve":
                return Approve()
            case "edit":
                return Edit(self.edited_args or {})
            case "deny":
                return Deny(self.message)
            case "respond":
                return Respond(self.value)


class HealthBody(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadyBody(BaseModel):
    """What this process is ready for; `worker` is `none` where it only serves the API."""

    status: Literal["ready"] = "ready"
    database: Literal["ok"] = "ok"
    worker: Literal["running", "none"]


def self_contained(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema without `$ref`, so that it may stand anywhere in an OpenAPI document.

    A type that contains itself is left open at its second occurrence.
    """
    definitions = schema.get("$defs", {})

    def resolve(node: Any, within: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [resolve(item, within) for item in node]
        if not isinstance(node, dict):
            return node
        found = {key: resolve(item, within) for key, item in node.items() if key not in ("$ref", "$defs")}
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return found
        name = reference.removeprefix("#/$defs/")
        if name in within or name not in definitions:
            return found
        return {**resolve(definitions[name], (*within, name)), **found}

    resolved = resolve(schema, ())
    assert isinstance(resolved, dict)
    return resolved


def parse_since(text: datetime | None) -> datetime | None:
    """A time with its zone. Raises `InvalidInput` for one without."""
    if text is not None and text.tzinfo is None:
        raise InvalidInput(f"since={text.isoformat()}: say which zone, as in {text.isoformat()}Z")
    return text
