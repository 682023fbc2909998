"""From rows to the records that people see.

What cannot be decoded (a row somebody changed by hand) shows as an error of that record; the list around it lives.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from pydantic import ValidationError

from agentflow.approvals import ApprovalRequest, ApprovalRules, ApprovalStatus, GivenDecision
from agentflow.clock import NEVER, to_datetime
from agentflow.errors import InvalidInput
from agentflow.events import EventRecord
from agentflow.keys import step_id_of
from agentflow.runs import (
    ErrorInfo,
    Run,
    RunStatus,
    StepKind,
    StepRecord,
    StepStatus,
    StreamItem,
    Waiting,
)
from agentflow.store.stored_types import Status

Row = Mapping[str, Any]
WaitingByRun = Mapping[str, list[Waiting]]

_LATEST = datetime.max.replace(tzinfo=UTC)


def run_record(row: Row, waiting: WaitingByRun, *, payloads: bool) -> Run:
    """A run; its payloads only if they were read."""
    shown: dict[str, Any] = {}
    if payloads:
        error = _error(row["error"])
        try:
            shown = {"input": decode(row["input"]), "output": decode(row["output"])}
        except ValueError as broken:
            error = error or _undecodable(broken)
        shown["error"] = error
    return Run(
        id=row["id"],
        app=row["app"],
        function=row["function"],
        status=RunStatus(Status(row["status"]).name.lower()),
        reason=row["reason"] or _held_back(row),
        tags=_texts(row["tags"]),
        parent_id=row["parent_id"],
        root_id=row["root_id"],
        rerun_of=row["rerun_of"],
        created_at=_moment(row["created_at"]),
        started_at=_optional_moment(row["started_at"]),
        ended_at=_optional_moment(row["ended_at"]),
        waiting=waiting.get(row["id"], []),
        **shown,
    )


def _held_back(row: Row) -> str | None:
    """Why nobody goes on with it, where that is not told by the run itself."""
    stays = (
        row["paused_at"] is not None and row["status"] < Status.COMPLETED and row["status"] != Status.RUNNING
    )
    return f"the function {row['function']!r} is paused" if stays else None


def waiting_by_run(waits: Sequence[Row], attempts: Sequence[Row]) -> WaitingByRun:
    """What each run waits for; a retry is a wait of kind `retry`."""
    found: defaultdict[str, list[Waiting]] = defaultdict(list)
    for row in waits:
        found[row["run_id"]].append(
            Waiting(
                step_key=row["key"],
                kind=_kind(row["kind"]),
                name=row["name"],
                since=_moment(row["since"]),
                until=_optional_moment(row["deadline"]),
            )
        )
    for row in attempts:
        if row["next_at"] >= NEVER:
            continue
        found[row["run_id"]].append(
            Waiting(
                step_key=row["key"],
                kind=StepKind.RETRY,
                name=None,
                since=_moment(row["started_at"]),
                until=_optional_moment(row["next_at"]),
            )
        )
    return found


def step_record(row: Row) -> StepRecord:
    """A step with its outcome."""
    error, output = _error(row["error"]), None
    ok = bool(row["ok"])
    try:
        output = decode(row["output"])
    except ValueError as broken:
        error = error or _undecodable(broken)
    return StepRecord(
        run_id=row["run_id"],
        key=row["key"],
        id=step_id_of(row["key"]),
        kind=_kind(row["kind"]),
        name=row["name"],
        status=StepStatus.COMPLETED if ok else StepStatus.FAILED,
        output=output,
        error=error,
        attempts=row["attempt"],
        seq=row["seq"],
        started_at=_moment(row["started_at"]),
        ended_at=_moment(row["ended_at"]),
    )


def waiting_step(row: Row) -> StepRecord:
    """A step that waits, from its wait."""
    return StepRecord(
        run_id=row["run_id"],
        key=row["key"],
        id=step_id_of(row["key"]),
        kind=_kind(row["kind"]),
        name=row["name"],
        status=StepStatus.WAITING,
        attempts=1,
        seq=None,
        started_at=_moment(row["since"]),
    )


def attempted_step(row: Row) -> StepRecord:
    """A step between two attempts, from the last failed one."""
    return StepRecord(
        run_id=row["run_id"],
        key=row["key"],
        id=step_id_of(row["key"]),
        kind=StepKind.RUN,
        status=StepStatus.WAITING,
        error=_error(row["error"]),
        attempts=row["n"],
        seq=None,
        started_at=_moment(row["started_at"]),
    )


def step_item(row: Row) -> StreamItem:
    """A step's outcome as an item of the run's stream."""
    record = step_record(row)
    kind = "step.completed" if record.status is StepStatus.COMPLETED else "step.failed"
    data = record.model_dump(mode="json", exclude={"run_id", "cost"})
    attempt = max(0, record.attempts - 1)  # as its deltas name it: the first one is 0
    return StreamItem(seq=row["seq"], kind=kind, step_key=record.key, attempt=attempt, data=data)


def chunk_item(row: Row) -> StreamItem:
    """A chunk as an item of the run's stream."""
    try:
        data = decode(row["data"])
    except ValueError as broken:
        data = _undecodable(broken).model_dump()
    return StreamItem(
        seq=row["seq"], kind=row["kind"], step_key=row["step_key"], attempt=row["attempt"], data=data
    )


def costs_by_key(rows: Iterable[Row]) -> dict[str, Decimal | None]:
    """What each step's model calls cost together; `None` if one's price is not known."""
    costs: dict[str, Decimal | None] = {}
    for row in rows:
        try:
            cost = None if row["cost"] is None else Decimal(row["cost"])
        except InvalidOperation:
            cost = None
        before = costs.get(row["key"], Decimal(0))
        costs[row["key"]] = None if before is None or cost is None else before + cost
    return costs


def event_record(row: Row) -> EventRecord:
    """An event."""
    try:
        data = decode(row["data"])
    except ValueError as broken:
        data = _undecodable(broken).model_dump()
    return EventRecord(
        id=row["id"],
        name=row["name"],
        data=data,
        ts=_moment(row["ts"]),
        received_at=_moment(row["received_at"]),
    )


def shown_approval(row: Row, now: int) -> ApprovalRequest:
    """An approval for a list: one that cannot be decoded shows so, and nobody can decide it."""
    try:
        return approval_request(row, now)
    except InvalidInput as broken:
        return ApprovalRequest(
            id=row["id"],
            run_id=row["run_id"],
            step_key=row["step_key"],
            tool=row["tool"],
            title=row["title"],
            details=_undecodable(broken).model_dump(),
            args_digest=row["args_digest"],
            status=ApprovalStatus.CANCELLED,
            requested_at=_moment(row["requested_at"]),
            expires_at=_moment(row["expires_at"]),
            decided_at=_optional_moment(row["decided_at"]),
        )


def approval_request(row: Row, now: int) -> ApprovalRequest:
    """An approval as a person sees it at that instant: with those who may decide then. Raises `InvalidInput` for a row
    that cannot be decoded."""
    try:
        rules = ApprovalRules.model_validate_json(row["policy"])
        given = [{name: decision[name] for name in _GIVEN} for decision in json.loads(row["decisions"])]
        return ApprovalRequest(
            id=row["id"],
            run_id=row["run_id"],
            step_key=row["step_key"],
            tool=row["tool"],
            title=row["title"],
            details=decode(row["details"]),
            args=decode(row["args"]),
            args_digest=row["args_digest"],
            status=ApprovalStatus(row["status"]),
            approvers=rules.approvers(_texts(row["approvers"]), now=now),
            min_approvals=row["min_approvals"],
            decisions=tuple(GivenDecision(**{**one, "at": _moment(one["at"])}) for one in given),
            edited_args=decode(row["edited_args"]),
            requested_at=_moment(row["requested_at"]),
            expires_at=_moment(row["expires_at"]),
            decided_at=_optional_moment(row["decided_at"]),
        )
    except (ValueError, KeyError, TypeError) as broken:
        raise InvalidInput(f"approval {row['id']} cannot be read: {broken}") from broken


_GIVEN = ("kind", "by", "comment", "message", "value", "at")


def decode(text: str | None) -> Any:
    """The value of stored JSON text; `None` for none. Raises `ValueError`."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _texts(text: str | None) -> tuple[str, ...]:
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _error(text: str | None) -> ErrorInfo | None:
    if text is None:
        return None
    try:
        stored = json.loads(text)
        return ErrorInfo(
            name=stored["name"],
            message=stored["message"],
            traceback=stored.get("traceback"),
            attributes=stored.get("attributes") or {},
            step_id=stored.get("step_id"),
        )
    except (ValueError, KeyError, TypeError, ValidationError, RecursionError) as broken:
        return _undecodable(broken)


def _undecodable(broken: Exception) -> ErrorInfo:
    return ErrorInfo(name="InvalidInput", message=f"the stored text cannot be decoded: {broken}")


def _kind(text: str) -> StepKind:
    try:
        return StepKind(text)
    except ValueError:
        return StepKind.RUN


def _moment(micros: int) -> datetime:
    if micros >= NEVER:
        return _LATEST
    try:
        return to_datetime(micros)
    except InvalidInput:
        return _LATEST


def _optional_moment(micros: int | None) -> datetime | None:
    return None if micros is None or micros >= NEVER else _moment(micros)
